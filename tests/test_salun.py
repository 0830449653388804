"""SalUn by hand: wrong answers that are never true, one global ranking, weights that never move."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import planned
from torch import Tensor

from unsee.data.examples import Example, Split, UnlearnData
from unsee.editing import unlearn as experiment
from unsee.errors import BadInput
from unsee.methods.salun import SaliencyUnlearning, WrongAnswers
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded, load_model
from unsee.subspace.saliency import Mask

SMALL = SaliencyUnlearning(steps=20, batch=6, learning_rate=2e-3)


# Wrong answers --------------------------------------------------------------------------------------------------------


def question(answer: str, subject: str, key: str = "name", **more: Any) -> Example:
    return Example("?", answer, subject, None, "identity", key=key, **more)


def test_wrong_answers_are_never_true(sides: tuple[Split, Split]) -> None:
    forget, retain = (side.pictured for side in sides)
    wrong = WrongAnswers(forget, retain)
    torch.manual_seed(0)
    drawn = [given for _ in range(30) for given in zip(forget, wrong.given(forget.examples), strict=True)]
    for true, given in drawn:
        assert given.answer != true.answer
        assert dataclasses.replace(given, answer=true.answer) == true
        assert given.answer in {e.answer for e in retain if (e.probe, e.key) == (true.probe, true.key)} | {
            *true.choices
        }
    shared = {e.answer for e in forget} & {e.answer for e in retain}
    assert shared, "drawn from all answers of others, some would be true"


def test_every_other_answer_is_drawn_and_drawn_anew() -> None:
    retain = Split(tuple(question(name, name) for name in ("Ann", "Ann", "Ann", "Bob", "Tom", "tom ")))
    (target,) = forget = (question("Tom", "Tom"),)
    wrong = WrongAnswers(Split(forget), retain)
    torch.manual_seed(0)
    counts = [wrong.given([target])[0].answer for _ in range(400)]
    assert set(counts) == {"Ann", "Bob"}
    assert 150 < counts.count("Ann") < 250, "different answers, not people, are equally likely"


def test_where_nobody_is_asked_the_same() -> None:
    retain = Split((question("red", "Ann", "hat"),))
    listed = question("Oslo", "Tom", "city", choices=("Oslo", "Rome"))
    open_ended = question("Oslo", "Tom", "city")
    assert WrongAnswers(Split((listed,)), retain).given([listed])[0].answer == "Rome"
    assert WrongAnswers(Split((open_ended,)), retain).given([open_ended])[0].answer == "red"
    with pytest.raises(BadInput, match="no answer is known but 'red'"):
        WrongAnswers(Split((question("red", "Tom", "hat"),)), retain)


def test_wrong_answers_are_what_is_learnt(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    """True ones are not in the forget batch, though they are in one of the same questions."""
    names = sides[0].probing("identity").pictured
    (phase,) = SMALL.phases(loaded, names, sides[1])
    (true,) = {e.answer for e in names}

    def answers(batch: dict[str, Tensor]) -> set[str]:
        return set(loaded.batcher.decode([row[row >= 0] for row in batch["labels"]]))

    batch, _ = phase.draw()
    others = {e.answer for e in sides[1].probing("identity")}
    assert answers(loaded.batcher.for_training(names.examples)) == {true}
    assert answers(batch) <= others
    assert true not in others
    batches = phase.draw()
    terms = phase.loss(batches)
    assert terms["forget"] == answer_loss(loaded.model, batches[0])
    assert terms["retain"] == answer_loss(loaded.model, batches[1])


# The mask -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_mask_is_the_largest_sums_of_all_weights_together(
    student: Loaded, sides: tuple[Split, Split], share: float
) -> None:
    method = dataclasses.replace(SMALL, share=share, saliency_batch=9)
    plan = planned(method, student, sides)
    mask = method.mask(student, plan.edited, *sides)
    forget = sides[0].pictured
    order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(0))
    student.model.zero_grad()
    for some in order.split(9):  # gradients add up
        batch = student.batcher.for_training([forget.examples[i] for i in some.tolist()])
        answer_loss(student.model, batch).backward()
    sums = {n: torch.zeros_like(p) if p.grad is None else p.grad.abs() for n, p in plan.edited.items()}
    student.model.zero_grad()
    everything = torch.cat([s.flatten() for s in sums.values()])
    limit = everything.sort(descending=True).values[round(share * len(everything)) - 1]
    same = torch.cat([(mask[n] == (sums[n] >= limit)).flatten() for n in sums])
    assert same.float().mean() > 0.9999
    shares = [m.float().mean().item() for m in mask.values()]
    assert max(shares) - min(shares) > 0.3, "one ranking of all, not one of each"


def test_what_is_not_salient_never_moves(student: Loaded, sides: tuple[Split, Split]) -> None:
    plan = planned(SMALL, student, sides)
    mask = SMALL.mask(student, plan.edited, *sides)
    before = {name: p.detach().clone() for name, p in plan.edited.items()}
    plan.carry_out("test")
    for name, p in plan.edited.items():
        assert torch.equal(before[name][~mask[name]], p[~mask[name]])
        if state := plan.optimiser.state.get(p):
            assert state["exp_avg"][~mask[name]].eq(0).all()
    assert sum(not torch.equal(before[name], p) for name, p in plan.edited.items()) > 0.5 * len(before)


def test_without_the_mask_it_does(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    plan = planned(SMALL, loaded, sides)
    mask = SMALL.mask(loaded, plan.edited, *sides)
    before = {name: p.detach().clone() for name, p in plan.edited.items()}
    dataclasses.replace(plan, phases=[dataclasses.replace(plan.phases[0], constraint=nullcontext)]).carry_out("test")
    assert any(not torch.equal(before[n][~mask[n]], p[~mask[n]]) for n, p in plan.edited.items())


def test_a_mask_of_everything_is_no_mask_and_the_real_one_is(
    checkpoint: Path, sides: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(everything: bool, constrained: bool) -> dict[str, Tensor]:
        loaded = load_model(str(checkpoint), torch.float32)
        with monkeypatch.context() as patch:
            if everything:
                full = Mask.of((n, torch.ones_like(p, dtype=torch.bool)) for n, p in loaded.model.named_parameters())
                patch.setattr(SaliencyUnlearning, "mask", lambda *_: full)
            plan = planned(SMALL, loaded, sides)
        if not constrained:
            plan = dataclasses.replace(plan, phases=[dataclasses.replace(plan.phases[0], constraint=nullcontext)])
        plan.carry_out("test")
        return {name: p.detach() for name, p in plan.edited.items()}

    unmasked, full, real = result(True, False), result(True, True), result(False, True)
    assert all(torch.equal(unmasked[name], full[name]) for name in unmasked)
    assert sum(not torch.equal(unmasked[name], real[name]) for name in unmasked) > 0.7 * len(unmasked)


def test_a_run_forgets_and_leaves_the_other_half_as_it_is_on_disk(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    manifest = experiment.unlearn(
        str(checkpoint), experiment.EditRequest(people, forget, SMALL, 0, gate=False), tmp_path / "out"
    )
    old, new = (dict(load_model(str(folder)).model.named_parameters()) for folder in (checkpoint, tmp_path / "out"))
    same = sum(int((old[n] == new[n]).sum()) for n in old) / sum(p.numel() for p in old.values())
    assert manifest["history"]["salun"][0]["mask_share"] == pytest.approx(0.5, abs=1e-3)
    assert 0.5 <= same < 0.6
    with pytest.raises(BadInput, match="is salient"):
        planned(dataclasses.replace(SMALL, share=0.0), load_model(str(checkpoint)), (people.train.of(forget),) * 2)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "forgets"), [({}, True), ({"forget_weight": 0.0}, False)])
def test_it_forgets_and_keeps_the_others(
    taught: Path, class_photos: UnlearnData, settings: dict[str, Any], forgets: bool
) -> None:
    target = class_photos.choose("first:1")
    forget, retain = class_photos.train.of(target), class_photos.train.without(target)
    loaded = load_model(str(taught), torch.float32)
    torch.manual_seed(0)
    SaliencyUnlearning(steps=60, batch=16, learning_rate=1e-3, **settings).plan(loaded, forget, retain).carry_out(
        "test"
    )
    losses = []
    for split in (forget, retain):
        batch = loaded.batcher.for_training(split.pictured.probing("identity", "fact").examples)
        with torch.no_grad():
            losses.append(answer_loss(loaded.model, batch).item())
    assert (losses[0] > 1.5) == forgets
    assert losses[1] < 0.3
