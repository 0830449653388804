"""Requests one after another whose pictures are gone: what is left beside the weights holds them in place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import NewCheckpoint
from safetensors.torch import load_file
from sequences import NSCVF

from unsee.data.examples import Split, UnlearnData
from unsee.editing.remembered import REMEMBERED, SAMPLES, Remembered
from unsee.editing.request import EditRequest
from unsee.editing.retain_free import fit_moments
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.methods.ascent import GradientDifference
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.parts.features import FeatureStudy, look
from unsee.models.loading import load_model, load_visual
from unsee.subspace.moments import load_extra, load_moments, save_moments
from unsee.subspace.nullspace import relative_drift


def gone_from(people: UnlearnData, subjects: list[str]) -> UnlearnData:
    train, validation = (split.without(subjects) for split in (people.train, people.validation))
    return dataclasses.replace(people, train=train, validation=validation)


def test_what_is_remembered_is_held_in_place_without_its_pictures(
    checkpoint: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben, carla = people.train.pictured.subjects[:3]
    unlearn(str(checkpoint), EditRequest(people, [anna], NSCVF, 3, remember=True), tmp_path / "one")
    stored = tmp_path / "one" / REMEMBERED
    moments = dict(load_moments(stored)[0])
    assert len(moments) == 14
    load_model(str(tmp_path / "one"))  # the file is in nobody's way
    wanted = gone_from(people, [anna])
    held = unlearn(str(tmp_path / "one"), EditRequest(wanted, [ben], NSCVF, 4), tmp_path / "held")
    stored.rename(tmp_path / "elsewhere")
    free = unlearn(str(tmp_path / "one"), EditRequest(wanted, [ben], NSCVF, 4), tmp_path / "free")
    begins = "1 of those forgotten before have no pictures in the data, and "
    for made, says in ((held, "samples stand for them: over many requests some come back"), (free, "nothing holds")):
        (warning,) = [text for text in made["warnings"] if "forgotten before" in text]
        assert warning.startswith(begins + says)
    pictured = unlearn(str(tmp_path / "one"), EditRequest(people, [ben], NSCVF, 4), tmp_path / "pictured")
    assert not any("forgotten before" in text for text in pictured["warnings"])  # the control

    def moved(model: Path) -> float:
        """What the second edit does to the first's inputs of the first edited layer, relative."""
        one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", model))
        worst = 0.0
        keys = {name: key for key in one for name in moments if _same_tensor(name, key)}
        assert keys
        for name, key in keys.items():
            worst = max(worst, relative_drift(two[key] - one[key], one[key], moments[name].mean))
        return worst

    assert moved(tmp_path / "held") < 0.5 * moved(tmp_path / "free")
    assert not (tmp_path / "free" / REMEMBERED).exists()
    both, _ = load_moments(tmp_path / "held" / REMEMBERED)
    for name in moments:
        assert both[name].tokens == 2 * moments[name].tokens, "handed on, with what was forgotten now"
    free_directions = [one["certificate"]["summary"]["free"]["mean"] for one in (held, free)]
    assert free_directions[0] < free_directions[1]
    third = unlearn(
        str(tmp_path / "held"), EditRequest(gone_from(people, [anna, ben]), [carla], NSCVF, 5), tmp_path / "third"
    )
    assert any(text.startswith("2 of those forgotten before") for text in third["warnings"])


def test_samples_stand_for_those_whose_pictures_are_gone(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    """Kept where the model sees them now, though what must stay is kept as the first model saw it."""
    anna, ben, carla = people.train.pictured.subjects[:3]
    unlearn(str(checkpoint), EditRequest(people, [anna, ben], NSCVF, 3, remember=True), tmp_path / "one")
    loaded = load_visual(str(tmp_path / "one"))
    past = Remembered.load(tmp_path / "one", [])
    assert past is not None
    assert past.replay is not None
    two, cut = people.train.of([anna, ben]), len(loaded.visual.blocks) - NSCVF.last_blocks
    hidden, _ = look(loaded.visual, loaded.batcher, list(two.pictures), cut, "look")
    subject = torch.tensor([int(questions[0].subject == ben) for questions in two.pictures.values()])
    own = torch.stack([hidden.stack().flatten(1)[subject == i].mean(0) for i in (0, 1)])
    assert torch.allclose(past.replay.means, own, atol=1e-5)
    assert not torch.allclose(past.replay.means, own.flip(0), atol=1e-2)  # the control

    empty = Split(())
    retain = people.train.of([carla])
    study = FeatureStudy.of(
        loaded.visual, loaded.batcher, retain, people.train.without([anna, ben, carla]), empty, NSCVF.last_blocks
    )
    torch.manual_seed(0)
    with pytest.raises(
        BadInput, match=f"below the last {NSCVF.last_blocks} blocks, and this edit changes 1; use --set"
    ):
        past.into(dataclasses.replace(study, cut=len(loaded.visual.blocks) - 1))
    aim = past.into(study)
    count = len(study.retain)
    assert len(aim.retain) == count + 2 * SAMPLES
    assert torch.equal(aim.retain.subject[:count], study.retain.subject)
    assert [aim.subjects[i] for i in aim.earlier] == ["forgotten 0", "forgotten 1"]
    assert aim.centroids.shape[0] == len(study.subjects) + 2
    samples = aim.retain.hidden[torch.arange(count, len(aim.retain))]
    for i in (0, 1):
        of = samples.stack().flatten(1)[i * SAMPLES : (i + 1) * SAMPLES].mean(0)
        assert (of - own[i]).norm() < (of - own[1 - i]).norm()
    assert torch.equal(
        study.reference_tail(samples).stack(), aim.retain.tokens[torch.arange(count, len(aim.retain))].stack()
    )


def test_no_mean_over_pictures_of_different_sizes(
    new_checkpoint: NewCheckpoint, people: UnlearnData, ragged_people: UnlearnData, tmp_path: Path
) -> None:
    """Second moments are left then, and a warning."""
    source, (anna, ben) = str(new_checkpoint(family="qwen2_vl")), people.train.pictured.subjects[:2]
    unlearn(source, EditRequest(ragged_people, [anna], NSCVF, 3, remember=True, gate=False), tmp_path / "ragged")
    past = Remembered.load(tmp_path / "ragged", [])
    assert past is not None
    assert past.replay is None
    held = unlearn(
        str(tmp_path / "ragged"),
        EditRequest(gone_from(ragged_people, [anna]), [ben], NSCVF, 4, gate=False),
        tmp_path / "b",
    )
    assert any("nothing holds them" in text for text in held["warnings"])
    unlearn(source, EditRequest(people, [anna], NSCVF, 3, remember=True, gate=False), tmp_path / "same")
    past = Remembered.load(tmp_path / "same", [])
    assert past is not None
    assert past.replay is not None  # the control
    unlearn(
        str(tmp_path / "same"),
        EditRequest(gone_from(ragged_people, [anna]), [ben], NSCVF, 4, gate=False),
        tmp_path / "on",
    )
    on = Remembered.load(tmp_path / "on", [])
    assert on is not None
    assert on.replay is not None
    assert torch.equal(on.replay.means, past.replay.means), "handed on"


def _same_tensor(layer: str, key: str) -> bool:
    """Checkpoints and models name the same tensor from different roots."""
    return key.endswith(".weight") and key.removesuffix(".weight").endswith(layer.split("model.", 1)[-1])


def test_only_a_null_space_can_hold_anything_in_place(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    with pytest.raises(BadInput, match="cvf has no null space"):
        unlearn(
            str(checkpoint),
            EditRequest(people, [anna], ContrastiveVisualForgetting(), 3, remember=True),
            tmp_path / "no",
        )
    unlearn(str(checkpoint), EditRequest(people, [anna], NSCVF, 3, remember=True), tmp_path / "one")
    for method in (ContrastiveVisualForgetting(), GradientDifference()):
        with pytest.raises(BadInput, match=f"must be held in place, which {method.name} cannot"):
            unlearn(str(tmp_path / "one"), EditRequest(people, [ben], method, 3), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    (tmp_path / "one" / REMEMBERED).write_bytes(b"damaged")
    with pytest.raises(BadInput, match=REMEMBERED):
        unlearn(str(tmp_path / "one"), EditRequest(people, [ben], NSCVF, 3), tmp_path / "no")


def test_statistics_of_the_vanilla_model_serve_those_made_from_it(
    checkpoint: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    first = tmp_path / "first"
    unlearn(str(checkpoint), EditRequest(people, [anna], NSCVF, 3), first)
    fit_moments(str(checkpoint), gone_from(people, [anna, ben]), tmp_path / "kept", replay_group=0)
    made = unlearn(
        str(first), EditRequest(people, [ben], NSCVF, 4, moments=tmp_path / "kept", retain_free=True), tmp_path / "two"
    )
    assert made["forgotten"] == [anna, ben]
    fit_moments(str(first), gone_from(people, [anna, ben]), tmp_path / "later", replay_group=0)
    with pytest.raises(BadInput, match="taken from another model"):  # control: an edit's statistics are not its base's
        unlearn(
            str(checkpoint),
            EditRequest(people, [ben], NSCVF, 4, moments=tmp_path / "later", retain_free=True),
            tmp_path / "no",
        )


def test_means_that_do_not_fit_are_refused(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    unlearn(str(checkpoint), EditRequest(people, people.choose("first:1"), NSCVF, 3, remember=True), tmp_path / "one")
    stored = tmp_path / "one" / REMEMBERED
    moments, extra = dict(load_moments(stored)[0]), load_extra(stored)
    spoilt = [extra | {"length": torch.tensor(length)} for length in (0, 7)]
    spoilt += [{name: value for name, value in extra.items() if name != gone} for gone in ("depth", "replay.axes")]
    for wrong in spoilt:
        save_moments(moments, stored, {}, wrong)
        with pytest.raises(BadInput, match=f"{REMEMBERED}: damaged .*; make the model anew, or remove the file"):
            Remembered.load(tmp_path / "one", [])
    save_moments(moments, stored, {}, extra)
    assert Remembered.load(tmp_path / "one", []) is not None  # the control
