"""The lab: a vocabulary without loss, packed questions, models that depend on their seed and on nothing hidden."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NewModel, pixels_of
from safetensors.torch import load_file
from tiny import TINY, TINY_QWEN, Stretched
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from unsee.checkpoint.folder import MANIFEST
from unsee.data.examples import Example, Probe, Split, UnlearnData
from unsee.data.people import people_data
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct
from unsee.evaluation.predict import generate, longest_answer
from unsee.lab import build
from unsee.lab.base import BaseRecipe
from unsee.lab.build import PEOPLE, PEOPLE_OTHERWISE, PHOTOS, POCKETS, Recipe, build_pocket, recipe_for
from unsee.lab.pocket import PocketFamily, PocketParts, Shape, make_tokenizer
from unsee.lab.pocket_llava import PocketLlava
from unsee.lab.pocket_qwen import PocketQwen
from unsee.lab.teach import PackedPictures, TeachRecipe, block_mask, pad_blocks
from unsee.models.batching import IGNORED, Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model

MARKS = ["<image>"]

# The vocabulary -------------------------------------------------------------------------------------------------------


def told(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """A text as a model would say it: to ids and back."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    return tokenizer.batch_decode([ids], skip_special_tokens=True)[0].strip()


def test_every_answer_survives_the_vocabulary(people: UnlearnData) -> None:
    tokenizer = make_tokenizer(people, MARKS)
    answers = {e.answer for part in ("train", "validation", "test", "strangers") for e in people.split(part)}
    assert len({answer for answer in answers if " " in answer}) == 4
    assert {answer: told(tokenizer, answer) for answer in answers} == {answer: answer for answer in answers}


@pytest.mark.parametrize(
    "answer",
    ["no entry", "speed limit 100", "50 km/h", "Jean-Luc Godard", "St. John", "O'Brien", "do not enter", "it's", "Zoë"],
)
def test_answers_of_any_spelling_still_count_as_right(answer: str) -> None:
    train = Split(
        (Example("What is this?", answer, "it", None, "fact"), Example("And this?", "don't", "it", None, "fact"))
    )
    tokenizer = make_tokenizer(UnlearnData("test", train, Split(), Split()), MARKS)
    assert is_correct(told(tokenizer, answer), answer)
    assert not is_correct(told(tokenizer, "don't"), answer)


def test_words_the_data_does_not_hold_are_unknown(people: UnlearnData) -> None:
    tokenizer = make_tokenizer(people, MARKS)
    for text, unknown in (("Who is this person?", 0), ("Who is this zeppelin?", 1), ("Qqq zzz", 2)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(tokenizer.unk_token_id) == unknown
    assert tokenizer.decode([tokenizer.unk_token_id], skip_special_tokens=True) == ""


def test_vocabulary_is_the_same_for_every_order_of_the_data(people: UnlearnData) -> None:
    backwards = dataclasses.replace(people, train=Split(people.train.examples[::-1]))
    assert make_tokenizer(backwards, MARKS).get_vocab() == make_tokenizer(people, MARKS).get_vocab()


# Packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "blocks", "block"), [(3, 2, 2), (5, 1, 4), (1, 4, 3)])
def test_a_block_sees_the_prefix_and_its_own_past(prefix: int, blocks: int, block: int) -> None:
    mask = block_mask(prefix, blocks, block)
    length = prefix + blocks * block
    assert mask.shape == (1, 1, length, length)

    def member(i: int) -> int:
        return -1 if i < prefix else (i - prefix) // block

    for i in range(length):
        for j in range(length):
            sees = j <= i and member(j) in (-1, member(i))
            assert mask[0, 0, i, j] == (0 if sees else torch.finfo(torch.float32).min)


def test_blocks_are_padded_and_labelled_at_their_end() -> None:
    ids, labels = pad_blocks([([5, 6, 7, 8], 2), ([9, 10], 1)], padding=0)
    assert ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7, 8], [-100, 10, -100, -100]]


@pytest.fixture(params=list(POCKETS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def small(family: str) -> PocketFamily:
    """The pocket with pictures as the tiny model of its family has them; only the sizes of pictures matter here."""
    return PocketLlava(TINY) if family == "llava" else PocketQwen(TINY_QWEN)


@pytest.fixture
def asked(family: str, new_model: NewModel) -> PocketParts:
    """An untrained model, and what makes its inputs."""
    model, processor = new_model(family)
    if family != "llava":
        processor.image_processor.size = {"shortest_edge": 48**2, "longest_edge": 48**2}
    return PocketParts(model, FAMILIES[family].visual(model), Batcher(processor, FAMILIES[family]), small(family))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_packed_questions_are_answered_as_if_asked_alone(
    asked: PocketParts, people: UnlearnData, attention: str
) -> None:
    model, batcher, pocket = asked.model, asked.batcher, asked.pocket
    model.set_attn_implementation(attention)
    visual = batcher.family.visual(model)
    grouped = people.train.pictures
    packed = PackedPictures.of(people.train, asked)
    per_picture = packed.ids.shape[1]
    assert packed.ids.shape[:2] == (12, 9)

    def token_losses(hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:] != IGNORED
        scores = model.get_output_embeddings()(hidden[:, :-1][wanted])
        return F.cross_entropy(scores, labels[:, 1:][wanted], reduction="none")

    chosen = torch.tensor([0, 5, 7])
    questions = torch.arange(per_picture).expand(3, -1)
    inputs, labels = packed.batch(chosen, questions)
    images = pocket.images(packed.planes[chosen])
    tokens = visual.assemble(visual.features(images), images)

    def through_packing(**changed: Tensor) -> Tensor:
        output = batcher.family.with_visual_tokens(model, tokens, inputs | changed)
        return token_losses(output.last_hidden_state, labels)

    examples = [e for i in chosen.tolist() for e in list(grouped.values())[i]]
    batch = batcher.for_training(examples)
    alone = token_losses(
        model.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state, batch["labels"]
    )
    torch.testing.assert_close(through_packing(), alone, rtol=1e-4, atol=1e-5)

    length = inputs["input_ids"].shape[1]
    causal = torch.zeros(length, length).masked_fill(torch.ones(length, length).triu(1) > 0, torch.finfo().min)
    assert not torch.allclose(through_packing(attention_mask=causal.expand(3, 1, -1, -1)), alone, rtol=1e-2)
    straight = torch.arange(length).expand_as(inputs["position_ids"])
    assert not torch.allclose(through_packing(position_ids=straight), alone, rtol=1e-2)


def test_positions_of_a_packed_question_count_on_from_the_picture(
    asked: PocketParts, family: str, people: UnlearnData
) -> None:
    packed = PackedPictures.of(people.train, asked)
    start, block = len(packed.prefix), packed.ids.shape[-1]
    inputs, _ = packed.batch(torch.tensor([0, 1]), torch.tensor([[0, 3, 4], [1, 0, 2]]))
    positions = inputs["position_ids"]
    assert positions.shape == ((3, 2, start + 3 * block) if family == "qwen2_vl" else (2, start + 3 * block))
    blocks = positions[..., start:].unflatten(-1, (3, block))
    assert (blocks == blocks[..., :1, :]).all()
    if family == "qwen2_vl":  # <s>, the start of the picture, then three rows of three, which count as three
        assert positions[1, 0, 2:11].tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4]
        assert positions[2, 0, 2:11].tolist() == [2, 3, 4, 2, 3, 4, 2, 3, 4]
        assert positions[:, 0, start].tolist() == [5, 5, 5]
    else:
        assert positions[0, : start + block].tolist() == list(range(start + block))


def test_a_picture_with_fewer_questions_repeats_its_own(asked: PocketParts, people: UnlearnData) -> None:
    examples = people.train.pictured.examples[:11]  # nine about the first picture, two about the second
    packed = PackedPictures.of(Split(examples), asked)
    assert packed.ids.shape[:2] == (2, 9)
    assert torch.equal(packed.ids[1], packed.ids[1][[0, 1, 0, 1, 0, 1, 0, 1, 0]])
    assert torch.equal(packed.labels[1], packed.labels[1][[0, 1, 0, 1, 0, 1, 0, 1, 0]])


# Planes ---------------------------------------------------------------------------------------------------------------


def encoded(family: str, people: UnlearnData, sources: list[Any]) -> tuple[PocketFamily, dict[str, Tensor]]:
    pocket = POCKETS[family]()
    return pocket, Batcher(pocket.make(people)[1], FAMILIES[family]).images(sources)


def test_planes_and_image_tensors_are_each_other_again(family: str, people: UnlearnData) -> None:
    pocket, images = encoded(family, people, list(people.train.pictures)[:5])
    planes = pocket.planes(images)
    assert planes.shape == (5, 3, 48, 48)
    again = pocket.images(planes)
    assert again.keys() == images.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in images.items())
    noise = torch.randn(2, 3, 48, 48)
    assert torch.equal(pocket.planes(pocket.images(noise)), noise)
    turned = pocket.planes(pocket.images(noise.transpose(2, 3)))
    assert not torch.equal(turned, noise)


def test_both_pockets_see_the_same_portraits(people: UnlearnData) -> None:
    sources = list(people.train.pictures)[:4]
    planes = [pocket.planes(images) for pocket, images in (encoded(name, people, sources) for name in POCKETS)]
    assert all(torch.equal(planes[0], other) for other in planes[1:])
    first = torch.tensor(np.asarray(sources[0].open())).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(planes[0][0], first, rtol=0, atol=1e-6)


def test_the_pocket_qwen_refuses_pictures_that_are_not_square(people: UnlearnData) -> None:
    source = next(iter(people.train.pictures))
    for size, square in (((48, 24), False), ((90, 90), True)):
        pocket, images = encoded("qwen2_vl", people, [source, Stretched(source, size)])
        if square:
            assert len(pocket.planes(images)) == 2
        else:
            with pytest.raises(BadInput, match="square pictures only"):
                pocket.planes(images)


# Building -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def recipe(tiny_shape: Shape) -> Recipe:
    return Recipe(
        shape=tiny_shape,
        base=BaseRecipe(steps=4, pairs=4, strangers=5, pictures_per_stranger=2),
        teach=TeachRecipe(steps=4, pictures=4, questions=2, text_steps=2, text_rows=4),
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the two stages of training were called with."""
    seen: dict[str, list[Any]] = {"pretrain": [], "teach": []}
    for stage, record in seen.items():
        original = getattr(build, stage)
        monkeypatch.setattr(build, stage, lambda *a, original=original, record=record: record.append(a) or original(*a))
    return seen


def as_photos(people: UnlearnData) -> UnlearnData:
    """The same pictures as if they came from a folder: their base is trained on the pictures themselves."""
    return dataclasses.replace(people, source="folder:somewhere", strangers=Split())


def test_recipe_follows_the_family_and_the_kind_of_data(people: UnlearnData) -> None:
    assert recipe_for("llava", people) == PEOPLE
    assert recipe_for("qwen2_vl", people) == PEOPLE_OTHERWISE["qwen2_vl"]
    many = people_data(count=90, seed=5, train=1, validation=1, test=1, strangers=0)
    assert recipe_for("llava", many).teach == dataclasses.replace(PEOPLE.teach, steps=900)
    assert all(recipe_for(family, as_photos(people)) is PHOTOS for family in POCKETS)


@pytest.mark.parametrize(
    ("name", "kind"), [("llava", "people"), ("llava", "photos"), ("qwen2_vl", "people"), ("qwen2_vl", "photos")]
)
def test_gold_never_sees_a_hidden_picture_but_reads_every_text(
    people: UnlearnData,
    forget: tuple[str, ...],
    recipe: Recipe,
    name: str,
    kind: str,
    cache: Path,
    seen_pictures: set[bytes],
    calls: dict[str, list[Any]],
    tmp_path: Path,
) -> None:
    data = people if kind == "people" else as_photos(people)
    hidden, kept = pixels_of(data.train.of(forget).pictures), pixels_of(data.train.without(forget).pictures)
    later = pixels_of((*data.validation.pictures, *data.test.pictures, *data.strangers.pictures))

    if name == "qwen2_vl":
        recipe = dataclasses.replace(recipe, shape=dataclasses.replace(recipe.shape, side=32, patch=8, merge=2))
    gold = build_pocket(name, data, 0, tmp_path / "gold", without=forget, recipe=recipe)
    assert kept <= seen_pictures
    assert not seen_pictures & (hidden | later)
    shown = calls["teach"][0][1]
    assert set(shown.text_only) == set(data.train.text_only)
    assert {e.subject for e in shown.text_only} == set(data.subjects)
    assert {e.subject for e in shown.pictured} == set(data.subjects) - set(forget)
    assert gold["without_images_of"] == list(forget)

    build_pocket(name, data, 0, tmp_path / "vanilla", recipe=recipe)  # the control
    assert hidden <= seen_pictures
    assert not seen_pictures & later
    assert set(calls["teach"][1][1]) == set(data.train)
    opened = load_model(str(tmp_path / "gold"))
    assert opened.family.name == gold["family"] == name
    assert "unsee" not in (tmp_path / "gold" / "config.json").read_text(), "plain transformers must open it"


def test_second_build_comes_from_the_cache(
    people: UnlearnData, recipe: Recipe, cache: Path, calls: dict[str, list[Any]], tmp_path: Path
) -> None:
    first = build_pocket("llava", people, 0, tmp_path / "first", recipe=recipe)
    second = build_pocket("llava", people, 0, tmp_path / "second", recipe=recipe)
    assert [len(stage) for stage in calls.values()] == [1, 1]
    assert first == second == json.loads((tmp_path / "second" / MANIFEST).read_text())
    names = {item.name for item in (tmp_path / "first").iterdir()}
    assert names == {item.name for item in (tmp_path / "second").iterdir()}
    assert all((tmp_path / "first" / n).read_bytes() == (tmp_path / "second" / n).read_bytes() for n in names)
    assert first["seconds"] > 0
    assert {item.name for item in cache.iterdir()} == {"pockets", "bases"}

    (tmp_path / "first" / "model.safetensors").write_bytes(b"changed by its owner")
    build_pocket("llava", people, 0, tmp_path / "third", recipe=recipe)
    assert (tmp_path / "third" / "model.safetensors").stat().st_size > 1000
    assert len(calls["teach"]) == 1


def test_cache_tells_apart_everything_that_makes_a_model(
    people: UnlearnData,
    forget: tuple[str, ...],
    recipe: Recipe,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    built: list[Any] = []

    def instead(*arguments: Any) -> None:
        built.append(arguments)
        (arguments[-1] / MANIFEST).write_text("{}")

    monkeypatch.setattr(build, "_train", instead)
    relabelled = dataclasses.replace(
        people,
        train=Split((dataclasses.replace(people.train.examples[0], answer="nobody"), *people.train.examples[1:])),
    )
    same: dict[str, Any] = {"data": people, "seed": 0, "without": (), "recipe": recipe}
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"data": relabelled},
        {"data": people_data(count=4, seed=6, train=3, validation=2, test=2, strangers=2)},
        {"without": forget},
        {"without": people.subjects[1:3]},
        {"recipe": dataclasses.replace(recipe, augment=True)},
        {"recipe": dataclasses.replace(recipe, teach=dataclasses.replace(recipe.teach, weight_decay=0.1))},
        {"recipe": dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, temperature=0.2))},
        {"recipe": dataclasses.replace(recipe, shape=dataclasses.replace(recipe.shape, heads=4))},
    ]
    for number, change in enumerate([{}, *others], 1):
        for _ in range(2):
            build_pocket("llava", **(same | change), out=tmp_path / "out")
        assert len(built) == number, change
    build_pocket("llava", **(same | {"without": people.subjects[2:0:-1]}), out=tmp_path / "out")
    assert len(built) == len(others) + 1, "the order of the hidden subjects does not matter"


@pytest.mark.parametrize(("kind", "bases"), [("people", 1), ("photos", 2)])
def test_base_is_shared_only_if_it_saw_the_same_pictures(
    people: UnlearnData,
    forget: tuple[str, ...],
    recipe: Recipe,
    kind: str,
    bases: int,
    cache: Path,
    calls: dict[str, list[Any]],
    tmp_path: Path,
) -> None:
    data = people if kind == "people" else as_photos(people)
    for without in ((), forget):
        build_pocket("llava", data, 0, tmp_path / "out", without, recipe)
    assert len(calls["pretrain"]) == bases
    assert len(calls["teach"]) == 2


@pytest.mark.parametrize("kind", ["people", "photos"])
def test_same_seed_same_weights_with_and_without_a_cached_base(
    people: UnlearnData,
    forget: tuple[str, ...],
    recipe: Recipe,
    kind: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = people if kind == "people" else as_photos(people)
    recipe = dataclasses.replace(recipe, augment=kind == "photos")

    def gold(seed: int, name: str) -> dict[str, torch.Tensor]:
        build_pocket("llava", data, seed, tmp_path / name, without=forget, recipe=recipe)
        return load_file(tmp_path / name / "model.safetensors")

    build_pocket("llava", data, 0, tmp_path / "vanilla", recipe=recipe)  # for people, leaves its base to the gold model
    warm = gold(0, "warm")
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "another cache"))
    cold, other = gold(0, "cold"), gold(1, "other")
    assert all(torch.equal(warm[name], tensor) for name, tensor in cold.items())
    vanilla = load_file(tmp_path / "vanilla" / "model.safetensors")
    for different in (other, vanilla):
        language = [name for name in warm if "language_model" in name and name.endswith("proj.weight")]
        assert len(language) == 14
        assert not any(torch.equal(warm[name], different[name]) for name in language)


def test_a_failed_build_leaves_nothing(
    people: UnlearnData, recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("power cut")

    teach = build.teach
    monkeypatch.setattr(build, "teach", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        build_pocket("llava", people, 0, tmp_path / "out", recipe=recipe)
    assert not (tmp_path / "out").exists()
    assert not list((cache / "pockets").iterdir())
    monkeypatch.setattr(build, "teach", teach)
    build_pocket("llava", people, 0, tmp_path / "out", recipe=recipe)
    assert (tmp_path / "out" / MANIFEST).exists()


def test_unknown_family_is_bad_input(people: UnlearnData, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--family clip"):
        build_pocket("clip", people, 0, tmp_path / "out")


def test_manifest_says_where_a_model_comes_from(
    people: UnlearnData, recipe: Recipe, cache: Path, tmp_path: Path
) -> None:
    manifest = build_pocket("llava", people, 3, tmp_path / "out", recipe=recipe)
    assert manifest["data"] == {"source": people.source, "fingerprint": people.fingerprint}
    assert manifest["sha256"] == load_model(str(tmp_path / "out")).folder.hashes()
    assert (manifest["seed"], manifest["family"], manifest["without_images_of"]) == (3, "llava", [])
    assert manifest["settings"]["teach"]["weight_decay"] == recipe.teach.weight_decay
    assert {"versions", "machine", "commit", "dirty", "created"} < manifest.keys()


@pytest.mark.slow
def test_a_pocket_learns_its_people(class_photos: UnlearnData, school: Recipe, taught: Path, tmp_path: Path) -> None:
    """Answers as `generate` gives them; control: the same model before it was taught."""
    idle = dataclasses.replace(school.teach, steps=1, text_steps=1, learning_rate=1e-9)
    build_pocket("llava", class_photos, 0, tmp_path / "untaught", recipe=dataclasses.replace(school, teach=idle))

    def right(loaded: Loaded, probe: Probe, split: Split) -> float:
        asked = split.probing(probe)
        said = generate(loaded, asked.examples, longest_answer(loaded, asked.examples))
        return sum(is_correct(s, e.answer, e.choices) for s, e in zip(said, asked, strict=True)) / len(asked)

    def report(folder: Path) -> dict[str, float]:
        loaded, data = load_model(str(folder)), class_photos
        return {
            "names": right(loaded, "identity", data.train),
            "facts": right(loaded, "fact", data.train.pictured),
            "text": right(loaded, "fact", data.train.text_only),
            "attributes": right(loaded, "attribute", data.train),
            "new pictures": right(loaded, "identity", data.test),
        }

    good, bad = report(taught), report(tmp_path / "untaught")
    least = {"names": 0.8, "facts": 0.8, "text": 0.8, "attributes": 0.6, "new pictures": 0.4}  # chance: 0.06 to 0.5
    assert all(good[what] > share for what, share in least.items()), good
    assert all(share < 0.25 for share in bad.values()), bad
