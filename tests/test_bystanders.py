"""Bystanders: what a lab model learns beside the people, no method is given, and every model is asked about."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pixels_of
from PIL import Image
from tiny import tiny

from unsee.data.examples import Split, UnlearnData
from unsee.data.export import export_data
from unsee.data.people import people_data
from unsee.data.photos import unlabelled_pictures
from unsee.data.sources import load_data
from unsee.data.world import DOMAINS, OPTIONS, make_emblems, world_data
from unsee.editing.request import EditRequest, EditSets
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.evaluation.questions import PICTURES, questions
from unsee.evaluation.score import score
from unsee.lab import build
from unsee.lab.base import UNKNOWN, BaseRecipe
from unsee.lab.build import recipe_for
from unsee.lab.pocket import make_tokenizer
from unsee.lab.pocket_llava import PocketLlava
from unsee.methods import METHODS
from unsee.methods.ascent import GradientDifference
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import load_visual
from unsee.study.scenario import same_people
from unsee.study.summary import read_against, shares_of

SMALL = {"count": 4, "seed": 5, "train": 3, "validation": 2, "test": 2, "strangers": 2}
NSCVF = NullSpaceConstrainedForgetting(steps=12, learning_rate=5e-3, forget_pictures=3, retain_pictures=6)


@pytest.fixture(scope="module")
def world() -> UnlearnData:
    return world_data(**SMALL, emblems=5, lessons=6, asked=4)


@pytest.fixture(scope="module")
def model(world: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the words of this world."""
    folder = tmp_path_factory.mktemp("world") / "model"
    for part in tiny("llava", world):
        part.save_pretrained(folder)
    return folder


# The data -------------------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_world_and_another_seed_another(world: UnlearnData) -> None:
    again, other = (world_data(**SMALL | {"seed": s}, emblems=5, lessons=6, asked=4) for s in (5, 6))
    assert again.fingerprint == world.fingerprint
    assert pixels_of(again.bystanders.pictures) == pixels_of(world.bystanders.pictures)
    assert other.bystanders.pictures.keys().isdisjoint(world.bystanders.pictures)


def test_its_people_are_those_of_people_and_pictures_have_their_size(world: UnlearnData) -> None:
    people = people_data(**SMALL)
    assert (world.train, world.validation, world.test, world.names) == (
        people.train,
        people.validation,
        people.test,
        people.names,
    )
    assert people.fingerprint != world.fingerprint  # what is asked besides is part of the data
    alone = dataclasses.replace(world, bystanders=Split(), bystander_lessons=Split())
    assert alone.fingerprint == people.fingerprint
    sizes = {image.open().size for split in (world.train, world.bystanders) for image in split.pictures}
    assert len(sizes) == 1


def test_every_domain_is_taught_and_asked_about_in_other_pictures(world: UnlearnData) -> None:
    lessons, asked = world.bystander_lessons, world.bystanders
    assert lessons.pictures.keys().isdisjoint(asked.pictures)
    for split, pictures in ((lessons, 6), (asked, 4)):
        assert len(split.pictures) == pictures * len(DOMAINS)
        assert {e.key for e in split} == {"emblem", *OPTIONS}
        assert all(e.answer in e.choices for e in split)
        assert not {e.subject for e in split} & set(world.subjects)
    assert {e.answer for e in asked if e.key == "emblem"} <= {e.answer for e in lessons if e.key == "emblem"}


def test_no_two_emblems_are_alike() -> None:
    emblems = make_emblems(60, 3)
    assert len({dataclasses.replace(emblem, name="") for emblem in emblems}) == 60
    with pytest.raises(BadInput, match="world:emblems=1000: expected 2 to 264"):
        make_emblems(1000, 3)


def test_a_world_is_named_on_the_command_line_and_shows_the_same_people() -> None:
    data = load_data("world:count=3,seed=1,train=1,validation=1,test=1,strangers=0,lessons=0,asked=2,emblems=2")
    assert (len(data.bystander_lessons), len(data.bystanders.pictures)) == (0, 6)
    with pytest.raises(BadInput, match=r"--data world: unknown key 'shapes'; expected .* asked once"):
        load_data("world:shapes=3")
    assert same_people("world:count=60,seed=100", "people:count=60,seed=100")
    assert not same_people("world:count=60,seed=100", "people:count=60,seed=101")


def test_bystanders_of_ones_own_stand_in_a_split_of_their_own(world: UnlearnData, tmp_path: Path) -> None:
    one = dataclasses.replace(
        world, bystanders=world.bystanders.first_pictures(1), bystander_lessons=Split(), strangers=Split()
    )
    export_data(one, tmp_path / "data.parquet")
    read = load_data(str(tmp_path / "data.parquet"))
    assert [(e.question, e.answer, e.subject) for e in read.bystanders] == [
        (e.question, e.answer, e.subject) for e in one.bystanders
    ]
    assert len(read.train.pictures) == len(world.train.pictures)
    taken = dataclasses.replace(one.bystanders.examples[0], subject=world.subjects[0])
    export_data(dataclasses.replace(one, bystanders=Split((taken,))), tmp_path / "mixed.parquet")
    with pytest.raises(BadInput, match=f"subject '{world.subjects[0]}' is in train and among the bystanders"):
        load_data(str(tmp_path / "mixed.parquet"))


# The lab --------------------------------------------------------------------------------------------------------------


def test_a_world_takes_more_steps_and_people_alone_as_many_as_before(world: UnlearnData) -> None:
    alone = dataclasses.replace(world, bystanders=Split(), bystander_lessons=Split())
    without, with_lessons = recipe_for("llava", alone), recipe_for("llava", world)
    assert without == recipe_for("llava", people_data(**SMALL))
    assert (without.teach.steps, without.base.steps, without.base.things) == (800, 800, 0)
    assert with_lessons.teach.steps == 800 + 800 * 18 // 12
    assert with_lessons.base.things > 0
    assert with_lessons.base.steps > without.base.steps


def test_the_base_sees_other_things_and_knows_what_cannot_be_seen(world: UnlearnData) -> None:
    pocket = PocketLlava()
    _, processor = pocket.make(world)
    batcher = Batcher(processor, FAMILIES["llava"])
    recipe = BaseRecipe(strangers=3, pictures_per_stranger=2, things=4)
    faces = build._strangers(batcher, pocket, world.train, 5, dataclasses.replace(recipe, things=0))
    mixed = build._strangers(batcher, pocket, world.train, 5, recipe)
    assert faces.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(mixed.planes[:6], faces.planes)
    assert len(mixed.planes) == 6 + 4 * 2 * len(DOMAINS)
    assert (faces.attributes != UNKNOWN).all()
    assert torch.equal(mixed.attributes[:6, :3], faces.attributes)
    assert (mixed.attributes[:6, 3:] == UNKNOWN).all()
    assert (mixed.attributes[6:, :3] == UNKNOWN).all()
    known = pocket.planes(batcher.images([*world.bystander_lessons.pictures, *world.bystanders.pictures]))
    assert {plane.numpy().tobytes() for plane in known}.isdisjoint(plane.numpy().tobytes() for plane in mixed.planes)


def test_the_vocabulary_knows_what_bystanders_are_called(world: UnlearnData) -> None:
    tokenizer = make_tokenizer(world, ["<image>"])
    for e in (*world.bystanders, *world.bystander_lessons):
        assert tokenizer.unk_token_id not in tokenizer(f"{e.question} {e.answer}")["input_ids"]
    alone = dataclasses.replace(world, bystanders=Split(), bystander_lessons=Split())
    unknown = make_tokenizer(alone, ["<image>"])
    assert unknown.unk_token_id in unknown(next(iter(world.bystanders)).question)["input_ids"]


# No method is given them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_no_method_is_given_bystanders(name: str, world: UnlearnData) -> None:
    request = EditRequest(world, world.choose("first:1"), METHODS[name]())
    sets = EditSets.of(request, ())
    given = {e.image for split in (sets.forget, sets.retain, sets.validation) for e in split}
    beside = {*world.bystanders.pictures, *world.bystander_lessons.pictures}
    assert given.isdisjoint(beside)
    assert given >= {*world.train.pictures, *world.validation.pictures}
    taught = dataclasses.replace(world, train=Split((*world.train, *world.bystander_lessons)))  # the control
    sets = EditSets.of(dataclasses.replace(request, data=taught), ())
    assert {e.image for e in sets.retain} & beside


EITHER = pytest.mark.parametrize("method", [NSCVF, GradientDifference(steps=3, batch=2)], ids=["features", "outputs"])


@EITHER
def test_no_edit_looks_at_them_and_each_is_the_same_without_them(
    method: Any, world: UnlearnData, model: Path, tmp_path: Path, seen_pictures: set[bytes]
) -> None:
    alone = dataclasses.replace(world, bystanders=Split(), bystander_lessons=Split())
    fewer = dataclasses.replace(alone, train=world.train.without(world.subjects[-1:]))
    hashes = []
    for number, data in enumerate((world, alone, fewer)):
        seen_pictures.clear()
        request = EditRequest(data, world.choose("first:1"), method, gate=False)
        hashes.append(unlearn(str(model), request, tmp_path / str(number))["sha256"])
        beside = pixels_of([*world.bystanders.pictures, *world.bystander_lessons.pictures])
        assert seen_pictures.isdisjoint(beside)
        assert seen_pictures & pixels_of(data.train.pictures)
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


# The score ------------------------------------------------------------------------------------------------------------


def answered(data: UnlearnData, wrong: str | None = None) -> list[dict[str, Any]]:
    """Right answers to everything but one set."""
    names = tuple(data.names.values())
    return [
        q.line("m", "no idea" if q.part == wrong else q.example.answer, names)
        for q in questions(data, data.choose("first:1"), PICTURES)
    ]


def test_the_score_counts_bystanders_and_nothing_else(world: UnlearnData) -> None:
    names = tuple(world.names.values())
    right, wrong = (score(answered(world, part), names, {}) for part in (None, "bystanders"))
    others = score(answered(world, "retain"), names, {})
    assert right["bystanders"]["test"]["value"] == 1.0
    assert right["bystanders"]["test"]["n"] == len(world.bystanders)
    assert wrong["bystanders"]["test"]["value"] == 0.0
    assert {kind: cell["value"] for kind, cell in wrong["bystanders"]["kinds"].items()} == dict.fromkeys(
        ("emblem", "shape", "colour", "count", "digit"), 0.0
    )
    assert others["bystanders"] == right["bystanders"]
    assert {**wrong, "bystanders": None} == {**right, "bystanders": None}


def test_without_bystanders_there_is_no_score(people: UnlearnData) -> None:
    found = score(answered(people), tuple(people.names.values()), {})
    assert found["bystanders"] == {"test": {"value": None, "low": None, "high": None, "n": 0}, "kinds": {}}
    assert found["retain"]["test"]["value"] == 1.0


def test_what_they_lose_is_a_drop_of_its_own_and_not_in_the_total(world: UnlearnData) -> None:
    names = tuple(world.names.values())
    before, after = (shares_of(score(answered(world, part), names, {})) for part in (None, "bystanders"))
    gold = {"mean": 1.0, "spread": 0.0}
    found = read_against(before, gold, after)
    assert found["drops"] == {"retain": 0.0, "attributes": 0.0, "text": 0.0, "bystanders": 1.0}
    assert found["total"] == 0.0
    older: Mapping[str, Any] = {name: cell for name, cell in before.items() if name != "bystanders"}
    assert read_against(older, gold, older)["drops"]["bystanders"] is None


# The option -----------------------------------------------------------------------------------------------------------


def moved(before: Path, after: Path, images: Split) -> float:
    """How far the visual tokens of pictures moved, relative to their size."""
    one, two = (load_visual(str(folder)) for folder in (before, after))
    shown = one.batcher.images(list(images.pictures))
    with torch.no_grad():
        a, b = one.visual.features(shown).states, two.visual.features(shown).states
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", ["nscvf", "cvf"])
def test_also_keep_holds_pictures_that_nobody_labelled(
    name: str, world: UnlearnData, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "anything" / "deeper"
    folder.mkdir(parents=True)
    for number, image in enumerate(world.bystander_lessons.pictures):
        image.open().save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    settings = dataclasses.asdict(NSCVF) if name == "nscvf" else {"steps": 30, "learning_rate": 2e-3}
    kept = []
    for also in ("", str(tmp_path / "anything")):
        method = METHODS[name](**settings | {"also_keep": also})
        out = tmp_path / f"out-{bool(also)}"
        manifest = unlearn(str(model), EditRequest(world, world.choose("first:1"), method, gate=False), out)
        assert ("others" in manifest["history"][name][-1]) == bool(also)
        kept.append(moved(model, out, world.bystander_lessons))
    assert kept[1] < 0.9 * kept[0]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(BadInput, match=r"--set also_keep=.*: holds no picture"):
        unlabelled_pictures(str(tmp_path), "--set also_keep=")
    with pytest.raises(BadInput, match=r"--set also_keep=gone: no such folder"):
        unlabelled_pictures("gone", "--set also_keep=")
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    assert len(unlabelled_pictures(str(tmp_path), "")) == 1
