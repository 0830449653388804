"""Requests one after another: what was forgotten is never taught again, edits add up, a broken run goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint
from safetensors.torch import load_file

from unsee.checkpoint.folder import CheckpointFolder, forgotten_by, read_manifest
from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput
from unsee.experiments import sequence as module
from unsee.experiments.merge import merge
from unsee.experiments.remembered import REMEMBERED, SAMPLES, Remembered
from unsee.experiments.sequence import ABOUT, LINES, Examiner, sequence
from unsee.experiments.sequence_grid import read_sequence
from unsee.experiments.statistics import fit_moments
from unsee.experiments.unlearn import unlearn
from unsee.methods import OutputMethod
from unsee.methods.ascent import GradientDifference
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.features import FeatureStudy, look
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.models.batching import answer_loss
from unsee.models.loading import load_model, load_visual
from unsee.subspace.moments import load_moments
from unsee.subspace.nullspace import relative_drift

NSCVF = NullSpaceConstrainedForgetting(
    steps=12, learning_rate=5e-4, forget_pictures=3, retain_pictures=6, threshold=0.05
)


class Stop(Exception):
    """Far enough."""


@pytest.fixture(scope="module")
def first(checkpoint: Path, people: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after the first request."""
    out = tmp_path_factory.mktemp("first") / "model"
    unlearn(str(checkpoint), people, people.choose("first:1"), NSCVF, 3, out)
    return out


def retained_by(
    model: Path, people: UnlearnData, forget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Split:
    """What a method on outputs is given to be kept."""
    seen: list[Split] = []

    def plan(self: OutputMethod, student: Any, forget: Split, retain: Split) -> Any:
        seen.append(retain)
        raise Stop

    monkeypatch.setattr(GradientDifference, "plan", plan)
    with pytest.raises(Stop):
        unlearn(str(model), people, [forget], GradientDifference(), 3, tmp_path / "never", gate=False)
    assert not (tmp_path / "never").exists()
    return seen[0]


def test_whom_an_earlier_request_named_is_not_taught_again(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben, *others = people.train.pictured.subjects
    kept = retained_by(first, people, ben, tmp_path, monkeypatch)
    assert set(kept.pictured.subjects) == set(others)
    assert anna in kept.text_only.subjects, "what is known of them by word stays"
    control = retained_by(checkpoint, people, ben, tmp_path, monkeypatch)
    assert set(control.pictured.subjects) == {anna, *others}


def test_methods_on_answers_need_somebody_who_stays(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    *others, last = people.train.pictured.subjects
    unlearn(str(checkpoint), people, others, NSCVF, 3, tmp_path / "others", gate=False)
    with pytest.raises(BadInput, match="the retain set has no training pictures"):
        unlearn(str(tmp_path / "others"), people, [last], GradientDifference(), 3, tmp_path / "never")
    once = dataclasses.replace(NSCVF, steps=1)
    unlearn(str(tmp_path / "others"), people, [last], once, 3, tmp_path / "kept", gate=False)  # control: keeps them


def test_methods_on_features_keep_those_forgotten_before_as_they_are(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    seen: list[Any] = []

    def plan(self: ContrastiveVisualForgetting, study: Any, moments: Any) -> Any:
        seen.append(study)
        raise Stop

    monkeypatch.setattr(ContrastiveVisualForgetting, "plan", plan)
    for model in (first, checkpoint):
        with pytest.raises(Stop):
            unlearn(str(model), people, [ben], NSCVF, 3, tmp_path / "never")
    after, before = seen
    number = after.subjects.index(anna)
    assert number >= after.forgotten, "not to be forgotten once more"
    one, other = (study.retain.tokens[study.retain.subject == number].states for study in (after, before))
    assert not torch.equal(one, other), "kept as the edited model sees her, not as the vanilla model did"


def test_the_manifest_counts_who_was_forgotten_and_what_drifted(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    second = unlearn(str(first), people, [ben], NSCVF, 4, tmp_path / "second")
    assert second["forget"] == [ben]
    assert second["forgotten"] == [anna, ben] == list(forgotten_by(read_manifest(tmp_path / "second")))
    assert forgotten_by(read_manifest(checkpoint)) == ()
    again = unlearn(str(first), people, [anna], NSCVF, 4, tmp_path / "again")
    assert again["forgotten"] == [anna], "nobody twice"
    drifts = read_manifest(first)["drift_so_far"]
    for layer, about in second["certificate"]["layers"].items():
        assert second["drift_so_far"][layer] == drifts[layer] + about["drift_after_cast"] > drifts[layer]


def test_a_line_of_edits_with_an_uncertified_one_has_no_known_drift(
    first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    ben, carla = people.train.pictured.subjects[1:3]
    once = GradientDifference(steps=1, batch=2)
    made = unlearn(str(first), people, [ben], once, 4, tmp_path / "uncertified", gate=False)
    assert made["drift_so_far"] is None
    after = unlearn(str(tmp_path / "uncertified"), people, [carla], NSCVF, 4, tmp_path / "after", gate=False)
    assert after["drift_so_far"] is None
    assert after["certificate"] is not None


# Without their pictures -----------------------------------------------------------------------------------------------


def gone_from(people: UnlearnData, subjects: list[str]) -> UnlearnData:
    train, validation = (split.without(subjects) for split in (people.train, people.validation))
    return dataclasses.replace(people, train=train, validation=validation)


def test_what_is_remembered_is_held_in_place_without_its_pictures(
    checkpoint: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben, carla = people.train.pictured.subjects[:3]
    unlearn(str(checkpoint), people, [anna], NSCVF, 3, tmp_path / "one", remember=True)
    stored = tmp_path / "one" / REMEMBERED
    moments = dict(load_moments(stored)[0])
    assert len(moments) == 14
    load_model(str(tmp_path / "one"))  # the file is in nobody's way
    wanted = gone_from(people, [anna])
    held = unlearn(str(tmp_path / "one"), wanted, [ben], NSCVF, 4, tmp_path / "held")
    stored.rename(tmp_path / "elsewhere")
    free = unlearn(str(tmp_path / "one"), wanted, [ben], NSCVF, 4, tmp_path / "free")
    for made, warned in ((held, 0), (free, 1)):
        texts = [text for text in made["warnings"] if "forgotten before have no pictures in the data" in text]
        assert [text[0] for text in texts] == ["1"] * warned

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
    third = unlearn(str(tmp_path / "held"), gone_from(people, [anna, ben]), [carla], NSCVF, 5, tmp_path / "third")
    assert not any("no pictures in the data" in text for text in third["warnings"]), "two stand in the file"


def test_samples_stand_for_those_whose_pictures_are_gone(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    """Kept where the model sees them now, though what must stay is kept as the first model saw it."""
    anna, ben, carla = people.train.pictured.subjects[:3]
    unlearn(str(checkpoint), people, [anna, ben], NSCVF, 3, tmp_path / "one", remember=True)
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
    aim = past.into(study)
    count = len(study.retain)
    assert len(aim.retain) == count + 2 * SAMPLES
    assert torch.equal(aim.retain.subject[:count], study.retain.subject)
    assert [aim.subjects[i] for i in aim.settled] == ["forgotten 0", "forgotten 1"]
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
    unlearn(source, ragged_people, [anna], NSCVF, 3, tmp_path / "ragged", remember=True, gate=False)
    past = Remembered.load(tmp_path / "ragged", [])
    assert past is not None
    assert past.replay is None
    held = unlearn(
        str(tmp_path / "ragged"), gone_from(ragged_people, [anna]), [ben], NSCVF, 4, tmp_path / "b", gate=False
    )
    assert any("no pictures in the data" in text for text in held["warnings"])
    unlearn(source, people, [anna], NSCVF, 3, tmp_path / "same", remember=True, gate=False)
    past = Remembered.load(tmp_path / "same", [])
    assert past is not None
    assert past.replay is not None  # the control
    unlearn(str(tmp_path / "same"), gone_from(ragged_people, [anna]), [ben], NSCVF, 4, tmp_path / "on", gate=False)
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
        unlearn(str(checkpoint), people, [anna], ContrastiveVisualForgetting(), 3, tmp_path / "no", remember=True)
    unlearn(str(checkpoint), people, [anna], NSCVF, 3, tmp_path / "one", remember=True)
    for method in (ContrastiveVisualForgetting(), GradientDifference()):
        with pytest.raises(BadInput, match=f"must be held in place, which {method.name} cannot"):
            unlearn(str(tmp_path / "one"), people, [ben], method, 3, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    (tmp_path / "one" / REMEMBERED).write_bytes(b"damaged")
    with pytest.raises(BadInput, match=REMEMBERED):
        unlearn(str(tmp_path / "one"), people, [ben], NSCVF, 3, tmp_path / "no")


def test_statistics_of_the_vanilla_model_serve_those_made_from_it(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    fit_moments(str(checkpoint), gone_from(people, [anna, ben]), tmp_path / "kept", replay_group=0)
    made = unlearn(str(first), people, [ben], NSCVF, 4, tmp_path / "two", tmp_path / "kept", retain_free=True)
    assert made["forgotten"] == [anna, ben]
    fit_moments(str(first), gone_from(people, [anna, ben]), tmp_path / "later", replay_group=0)
    with pytest.raises(BadInput, match="taken from another model"):  # control: an edit's statistics are not its base's
        unlearn(str(checkpoint), people, [ben], NSCVF, 4, tmp_path / "no", tmp_path / "later", retain_free=True)


# What must stay, as the first model saw it ----------------------------------------------------------------------------


def test_what_must_stay_is_kept_as_the_first_model_sees_it(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben, carla = people.train.pictured.subjects[:3]
    seen: list[Any] = []

    def plan(self: ContrastiveVisualForgetting, study: Any, moments: Any) -> Any:
        seen.append(study)
        raise Stop

    monkeypatch.setattr(ContrastiveVisualForgetting, "plan", plan)
    for model, begun in ((first, str(checkpoint)), (first, None), (checkpoint, None)):
        with pytest.raises(Stop):
            unlearn(str(model), people, [ben], NSCVF, 3, tmp_path / "never", first=begun)
    anchored, last, vanilla = (
        {name: study.retain.tokens[study.retain.subject == study.subjects.index(name)].states for name in (anna, carla)}
        for study in seen
    )
    assert torch.equal(anchored[carla], vanilla[carla]), "as the first model sees who stays"
    assert not torch.equal(last[carla], vanilla[carla]), "control: the first edit moved it"
    assert torch.equal(anchored[anna], last[anna]), "who was forgotten stays as the last model sees her"
    assert not torch.equal(anchored[anna], vanilla[anna])


def test_only_the_beginning_of_a_line_of_edits_can_be_the_first_model(
    checkpoint: Path, first: Path, people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path
) -> None:
    ben = people.train.pictured.subjects[1]
    made = unlearn(str(first), people, [ben], NSCVF, 3, tmp_path / "fits", first=str(checkpoint))
    assert made["first"] == CheckpointFolder(checkpoint).hashes()
    with pytest.raises(BadInput, match="give the model that the line of edits began with"):
        unlearn(str(first), people, [ben], NSCVF, 3, tmp_path / "never", first=str(new_checkpoint(seed=9)))
    with pytest.raises(BadInput, match="graddiff does not work on features"):
        unlearn(str(first), people, [ben], GradientDifference(), 3, tmp_path / "never", first=str(checkpoint))
    assert not (tmp_path / "never").exists()


# Merging --------------------------------------------------------------------------------------------------------------


def test_merged_edits_are_their_sum_inside_the_null_space(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    unlearn(str(checkpoint), people, [ben], NSCVF, 4, tmp_path / "second")
    edits = [str(first), str(tmp_path / "second")]
    made = merge(str(checkpoint), edits, people, NSCVF, tmp_path / "merged")
    assert made["forgotten"] == [anna, ben]
    assert made["sha256"] == CheckpointFolder(tmp_path / "merged").hashes()
    base, one, two, both = (
        {key: tensor.double() for key, tensor in load_file(Path(m) / "model.safetensors").items()}
        for m in (checkpoint, *edits, tmp_path / "merged")
    )
    for key in base:
        change, total = both[key] - base[key], one[key] + two[key] - 2 * base[key]
        if key not in made["changed"]:
            assert torch.equal(both[key], base[key])
            continue
        assert change.norm() > 0
        # a projection is never longer than what it projects, and what it takes away is at right angles to it
        assert abs(float((change * (total - change)).sum())) < 1e-4 * float(total.norm()) ** 2
    alone = merge(str(checkpoint), edits[:1], people, NSCVF, tmp_path / "alone")
    certified = read_manifest(first)["certificate"]["layers"]
    for layer, drift in alone["drift_so_far"].items():
        assert drift == pytest.approx(certified[layer]["drift"], rel=1e-3), "one edit alone is merged to itself"


def test_edits_of_another_model_or_without_a_null_space_are_not_merged(
    checkpoint: Path, first: Path, people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="was not made from"):
        merge(str(first), [str(first)], people, NSCVF, tmp_path / "merged")
    with pytest.raises(BadInput, match="not in a null space"):
        merge(str(checkpoint), [str(first)], people, ContrastiveVisualForgetting(), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# Sequences ------------------------------------------------------------------------------------------------------------

GRID = """
pictures = 1
[[given]]
data = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"
forget = "first:2"
vanilla = "{checkpoint}"
golds = ["{checkpoint}"]
[[arms]]
method = "nscvf"
settings = {{ steps = 12, learning_rate = 5e-4, forget_pictures = 3, retain_pictures = 6 }}
orders = [0, 1]
[[arms]]
name = "merged"
method = "nscvf"
mode = "merged"
settings = {{ steps = 12, learning_rate = 5e-4, forget_pictures = 3, retain_pictures = 6 }}
[[arms]]
name = "gone"
anchored = false
method = "cvf"
mode = "without pictures"
settings = {{ steps = 2 }}
"""


@pytest.fixture
def grid(checkpoint: Path, tmp_path: Path) -> Path:
    file = tmp_path / "sequence.toml"
    file.write_text(GRID.format(checkpoint=checkpoint))
    return file


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LINES).read_text().splitlines()]


def test_a_sequence_from_a_grid_to_a_page(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    page = sequence(read_sequence(grid), out)
    assert page.is_file()
    assert json.loads((out / ABOUT).read_text())["settings"]["arms"]["merged"]["mode"] == "merged"
    lines = lines_of(out)
    assert [(x["arm"], x["order"], x["request"]) for x in lines] == [
        ("vanilla", 0, 0),
        ("gold", 0, 2),
        ("gone", 0, 1),
        ("gone", 0, 2),
        ("merged", 0, 1),
        ("merged", 0, 2),
        ("nscvf", 0, 1),
        ("nscvf", 0, 2),
        ("nscvf", 1, 1),
        ("nscvf", 1, 2),
    ]
    subjects = {order: [x["subject"] for x in lines if x["order"] == order and x["arm"] == "nscvf"] for order in (0, 1)}
    assert subjects[1] == subjects[0][::-1]
    for line in lines:
        assert set(line["targets"]) == set(subjects[0])
        everything = line["request"] in (0, 2)
        for subject, (right, asked) in line["targets"].items():
            assert 0 <= right <= asked
            assert asked == (12 if everything or subject == line["subject"] else 6), "a name and five facts a picture"
        assert bool(line["text"]) is everything
    before = {x["arm"]: x for x in lines if x["request"] in (0, 2) and x["arm"] in ("vanilla", "gold")}
    assert before["vanilla"]["targets"] == before["gold"]["targets"], "here they are one model"

    monkeypatch.setattr(module, "unlearn", None)  # nothing is done again
    for file in ("request-002.json",):
        (out / "runs" / "nscvf-1" / file).unlink()
    sequence(read_sequence(grid), out, resume=True)
    assert lines_of(out) == lines, "and what is asked again is answered as before"


def test_a_model_in_which_anything_changed_is_asked_as_it_is(
    people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path
) -> None:
    """Teach a copy the answers, patch embedding included: an examiner that wears it finds what one made of it finds."""
    torch.manual_seed(0)
    start, learned = str(new_checkpoint()), tmp_path / "learned"
    data, who = dataclasses.replace(people, test=people.test.first_pictures(1)), people.subjects[:1]
    pupil = load_model(start, torch.float32)
    batch = pupil.batcher.for_training(data.test.pictured.examples)
    optimiser = torch.optim.Adam(pupil.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        answer_loss(pupil.model, batch).backward()
        optimiser.step()
    pupil.model.save_pretrained(learned)
    pupil.batcher.processor.save_pretrained(learned)
    wanted = Examiner(str(learned), data, who).some(who[0])

    examiner = Examiner(start, data, who)
    before = examiner.some(who[0])
    examiner.wear(str(learned))
    assert examiner.some(who[0]) == wanted
    right = {kind: sum(tally[0] for tally in wanted[kind].values()) for kind in ("retain", "attributes")}
    assert all(right[kind] > sum(tally[0] for tally in before[kind].values()) for kind in right)

    above_a_cut = Examiner(start, data, who, last_blocks=1)  # the control: it was told that nothing below changes
    above_a_cut.some(who[0])
    above_a_cut.wear(str(learned))
    assert above_a_cut.some(who[0]) != wanted


def test_a_broken_sequence_goes_on_to_the_same_model(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = dataclasses.replace(read_sequence(grid), arms=read_sequence(grid).arms[:1])
    sequence(chosen, tmp_path / "whole")
    calls = []

    def breaks(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise Stop
        return unlearn(*arguments, **named)

    monkeypatch.setattr(module, "unlearn", breaks)
    with pytest.raises(Stop):
        sequence(chosen, tmp_path / "broken")
    sequence(chosen, tmp_path / "broken", resume=True)
    one, other = (CheckpointFolder(tmp_path / name / "runs/nscvf-0/model-002").hashes() for name in ("whole", "broken"))
    assert one == other
    control = CheckpointFolder(tmp_path / "whole" / "runs/nscvf-1/model-002").hashes()
    assert one != control, "control: another order ends in another model"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('mode = "merged"', 'mode = "added"', "arms[1].mode: 'added' is unknown; expected one of chain"),
        ('method = "cvf"', 'method = "graddiff"\nmodel = 3', "arms[2].model"),
        (
            'mode = "without pictures"',
            'mode = "merged"',
            "arms[2].mode: 'merged' needs a null space",
        ),
        ('name = "gone"', 'name = "merged"', "the name 'merged' is given twice"),
        ("orders = [0, 1]", "orders = [-1]", "arms[0].orders"),
    ],
)
def test_a_grid_that_cannot_be_used_says_where(grid: Path, old: str, new: str, message: str) -> None:
    read_sequence(grid)  # control
    grid.write_text(grid.read_text().replace(old, new))
    with pytest.raises(BadInput) as problem:
        read_sequence(grid)
    assert message in str(problem.value)
