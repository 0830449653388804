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
from sequences import NSCVF

from unsee.checkpoint.folder import CheckpointFolder, forgotten_by, read_manifest
from unsee.data.examples import Split, UnlearnData
from unsee.editing.merge import merge
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.methods import OutputMethod
from unsee.methods.ascent import GradientDifference
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.models.batching import answer_loss
from unsee.models.loading import load_model
from unsee.study import sequence as module
from unsee.study.sequence import ABOUT, LINES, Examiner, read_sequence, sequence


class Stop(Exception):
    """Far enough."""


@pytest.fixture(scope="module")
def first(checkpoint: Path, people: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after the first request."""
    out = tmp_path_factory.mktemp("first") / "model"
    unlearn(str(checkpoint), EditRequest(people, people.choose("first:1"), NSCVF, 3), out)
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
        unlearn(str(model), EditRequest(people, [forget], GradientDifference(), 3, gate=False), tmp_path / "never")
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
    unlearn(str(checkpoint), EditRequest(people, others, NSCVF, 3, gate=False), tmp_path / "others")
    with pytest.raises(BadInput, match="the retain set has no training pictures"):
        unlearn(str(tmp_path / "others"), EditRequest(people, [last], GradientDifference(), 3), tmp_path / "never")
    once = dataclasses.replace(NSCVF, steps=1)
    unlearn(
        str(tmp_path / "others"), EditRequest(people, [last], once, 3, gate=False), tmp_path / "kept"
    )  # control: keeps them


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
            unlearn(str(model), EditRequest(people, [ben], NSCVF, 3), tmp_path / "never")
    after, before = seen
    number = after.subjects.index(anna)
    assert number >= after.forgotten, "not to be forgotten once more"
    one, other = (study.retain.tokens[study.retain.subject == number].states for study in (after, before))
    assert not torch.equal(one, other), "kept as the edited model sees her, not as the vanilla model did"


def test_the_manifest_counts_who_was_forgotten_and_what_drifted(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    second = unlearn(str(first), EditRequest(people, [ben], NSCVF, 4), tmp_path / "second")
    assert second["forget"] == [ben]
    assert second["forgotten"] == [anna, ben] == list(forgotten_by(read_manifest(tmp_path / "second")))
    assert forgotten_by(read_manifest(checkpoint)) == ()
    again = unlearn(str(first), EditRequest(people, [anna], NSCVF, 4), tmp_path / "again")
    assert again["forgotten"] == [anna], "nobody twice"
    drifts = read_manifest(first)["drift_so_far"]
    for layer, about in second["certificate"]["layers"].items():
        assert second["drift_so_far"][layer] == drifts[layer] + about["drift_after_cast"] > drifts[layer]


def test_a_line_of_edits_with_an_uncertified_one_has_no_known_drift(
    first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    ben, carla = people.train.pictured.subjects[1:3]
    once = GradientDifference(steps=1, batch=2)
    made = unlearn(str(first), EditRequest(people, [ben], once, 4, gate=False), tmp_path / "uncertified")
    assert made["drift_so_far"] is None
    after = unlearn(
        str(tmp_path / "uncertified"), EditRequest(people, [carla], NSCVF, 4, gate=False), tmp_path / "after"
    )
    assert after["drift_so_far"] is None
    assert after["certificate"] is not None


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
            unlearn(str(model), EditRequest(people, [ben], NSCVF, 3, first=begun), tmp_path / "never")
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
    made = unlearn(str(first), EditRequest(people, [ben], NSCVF, 3, first=str(checkpoint)), tmp_path / "fits")
    assert made["first"] == CheckpointFolder(checkpoint).hashes()
    with pytest.raises(BadInput, match="give the model that the line of edits began with"):
        unlearn(str(first), EditRequest(people, [ben], NSCVF, 3, first=str(new_checkpoint(seed=9))), tmp_path / "never")
    with pytest.raises(BadInput, match="graddiff does not work on features"):
        unlearn(
            str(first), EditRequest(people, [ben], GradientDifference(), 3, first=str(checkpoint)), tmp_path / "never"
        )
    assert not (tmp_path / "never").exists()


# Merging --------------------------------------------------------------------------------------------------------------


def test_merged_edits_are_their_sum_inside_the_null_space(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    anna, ben = people.train.pictured.subjects[:2]
    unlearn(str(checkpoint), EditRequest(people, [ben], NSCVF, 4), tmp_path / "second")
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


def test_a_soft_null_space_held_back_every_step_and_holds_back_no_sum(
    checkpoint: Path, first: Path, people: UnlearnData, tmp_path: Path
) -> None:
    """One edit merged is the edit; a soft space applied to it again would shrink it."""
    soft = dataclasses.replace(NSCVF, rule="soft", threshold=0.1)
    merge(str(checkpoint), [str(first)], people, soft, tmp_path / "alone")
    before, after = load_file(first / "model.safetensors"), load_file(tmp_path / "alone" / "model.safetensors")
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-7)


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
    examiner.load(str(learned))
    assert examiner.some(who[0]) == wanted
    right = {kind: sum(tally[0] for tally in wanted[kind].values()) for kind in ("retain", "attributes")}
    assert all(right[kind] > sum(tally[0] for tally in before[kind].values()) for kind in right)

    above_a_cut = Examiner(start, data, who, last_blocks=1)  # the control: it was told that nothing below changes
    above_a_cut.some(who[0])
    above_a_cut.load(str(learned))
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
