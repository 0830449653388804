"""MMUnlearner by hand: what saliency is taken of, the published schedule, and what the mask holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint, planned
from safetensors.torch import load_file
from torch import Tensor, nn

from unsee.data.examples import Example, Split, UnlearnData
from unsee.editing import unlearn as experiment
from unsee.errors import BadInput
from unsee.methods.ascent import GradientDifference
from unsee.methods.mmunlearner import MMUnlearner, everybody_in_text
from unsee.methods.parts.base import Plan
from unsee.methods.parts.tuned import Tuned, linear_weights_in, parameters_in
from unsee.models.batching import Batcher, answer_loss
from unsee.models.loading import Loaded, load_model
from unsee.subspace.saliency import Mask, load_mask
from unsee.training.loop import run

PUBLISHED = ("proj", "fc", "linear", "mlp", "qkv")  # parts of names
SMALL = MMUnlearner(steps=12, batch=6, learning_rate=2e-3)
State = dict[str, Tensor]


def weights_of(plan: Plan) -> State:
    return {name: p.detach().clone() for name, p in plan.edited.items()}


def fisher(student: Loaded, names: Mapping[str, nn.Parameter], kinds: list[Split], size: int) -> State:
    """The mean of squared batch gradients, all batches at once; batches in the method's own order."""
    squares: dict[str, list[Tensor]] = {name: [] for name in names}
    for kind in kinds:
        order = torch.randperm(len(kind), generator=torch.Generator().manual_seed(0))
        for some in order.split(size):
            batch = student.batcher.for_training([kind.examples[i] for i in some.tolist()])
            student.model.zero_grad()
            answer_loss(student.model, batch).backward()
            for name, p in names.items():
                squares[name].append(torch.zeros_like(p) if p.grad is None else p.grad.square())
    student.model.zero_grad()
    return {name: torch.stack(s).mean(0) for name, s in squares.items()}


# The mask -------------------------------------------------------------------------------------------------------------


def test_each_part_is_compared_with_what_it_has_to_keep(student: Loaded, sides: tuple[Split, Split]) -> None:
    """Vision tower and projector with other pictures, the language model with those and all text, the targets' too."""
    forget, retain = sides
    edited = linear_weights_in(student, "both")
    method = dataclasses.replace(SMALL, saliency_batch=5, beta=0.7)
    mask = method.mask(student, edited, forget, retain)
    mask.fits(edited)
    visual = student.visual.named_parameters()
    text = Split((*forget.text_only, *retain.text_only))
    assert forget.text_only
    targets = fisher(student, edited, [forget.pictured], 5)
    pictures = fisher(student, edited, [retain.pictured], 5)
    both = fisher(student, edited, [retain.pictured, text], 5)
    others_text = fisher(student, edited, [retain.pictured, retain.text_only], 5)

    def agreement(preserve: State, seeing: bool) -> float:
        """Share of entries where the ratio says the same."""
        same = [
            (((targets[n] >= 0.7 * preserve[n]) & (targets[n] > 0)) == mask[n]).flatten()
            for n in edited
            if (n in visual) == seeing
        ]
        return torch.cat(same).float().mean().item()

    assert agreement(pictures, seeing=True) > 0.9999  # rounding may turn a tie
    assert agreement(both, seeing=False) > 0.9999
    assert agreement(both, seeing=True) < 0.999
    assert agreement(pictures, seeing=False) < 0.999
    assert agreement(others_text, seeing=False) < 0.999


def test_the_mask_does_not_depend_on_the_seed_of_the_run(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    edited = linear_weights_in(loaded, "both")
    masks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        masks.append(SMALL.mask(loaded, edited, *sides))
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in edited)
    fewer = dataclasses.replace(SMALL, saliency_questions=7).mask(loaded, edited, *sides)
    assert not all(torch.equal(masks[0][name], fewer[name]) for name in edited)


def test_weights_of_linear_layers_are_the_published_names(student: Loaded) -> None:
    """But for biases, and the convolution that cuts Qwen-VL's patches."""
    for scope in ("visual", "language", "both"):
        ours = linear_weights_in(student, scope)
        published = {
            name
            for name, p in parameters_in(student, scope).items()
            if any(part in name for part in PUBLISHED) and name.endswith("weight") and p.dim() == 2
        }
        assert ours.keys() == published
    assert "lm_head.weight" in parameters_in(student, "both")
    assert "lm_head.weight" not in ours


# The schedule ---------------------------------------------------------------------------------------------------------


def asked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Example, ...]]:
    """The questions of every training batch, in order."""
    batches: list[tuple[Example, ...]] = []
    original = Batcher.for_training

    def spy(self: Batcher, examples: Any) -> Any:
        batches.append(tuple(examples))
        return original(self, examples)

    monkeypatch.setattr(Batcher, "for_training", spy)
    plan.carry_out("test")
    return batches


@pytest.mark.parametrize(
    ("settings", "pace"),
    [
        ({}, (81 + 20) // 27),  # pictured questions of three others and all text, over those of one target
        ({"retain_steps": "pictured"}, 81 // 27),
        ({"scope": "visual"}, 81 // 27),
    ],
)
def test_one_forget_step_per_so_many_retain_steps(
    loaded: Loaded,
    sides: tuple[Split, Split],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    pace: int,
) -> None:
    forget, retain = sides
    assert (len(forget.pictured), len(retain.pictured)) == (27, 81)
    assert len(everybody_in_text(forget, retain)) == 20
    method = dataclasses.replace(SMALL, steps=31, saliency_questions=4, **settings)
    batches = asked(planned(method, loaded, sides), monkeypatch)
    targets = set(forget.pictured)
    forgetting = [set(batch) <= targets for batch in batches]
    assert sum(forgetting) == -(-31 // pace)
    assert len(batches) - sum(forgetting) == 31
    assert forgetting[: pace + 3] == [True, *[False] * pace, True, False]
    kept = [e for batch, f in zip(batches, forgetting, strict=True) if not f for e in batch]
    assert not targets & set(kept)
    with_text = not settings
    assert any(e.image is None for e in kept) == with_text
    assert any(e.image is None and e.subject in forget.subjects for e in kept) == with_text


def test_fewer_to_keep_than_to_forget_is_one_to_one(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    forget, retain = sides
    phases = SMALL.phases(loaded, Split((*forget, *retain)), Split(retain.examples[:5]))
    assert [phase.every for phase in phases] == [1, 1]


def test_pictures_and_text_come_as_often_as_there_are_batches(
    loaded: Loaded, sides: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(dataclasses.replace(SMALL, steps=36, saliency_questions=4), loaded, sides)
    batches = asked(dataclasses.replace(plan, phases=plan.phases[1:]), monkeypatch)
    kinds = Counter(batch[0].image is None for batch in batches)
    assert kinds == {False: 2 * 14, True: 2 * 4}  # 81 and 20 questions, six at a time, twice


# The update -----------------------------------------------------------------------------------------------------------


def forget_steps(plan: Plan) -> tuple[State, State]:
    """The weights before and after 20 forget steps, whose momentum some retain steps have filled."""
    run(plan.phases[1:], plan.optimiser, 3, "test", clip_norm=plan.clip_norm)
    before = weights_of(plan)
    run(plan.phases[:1], plan.optimiser, 20 * plan.phases[0].every, "test", clip_norm=plan.clip_norm)
    return before, weights_of(plan)


def test_forget_steps_leave_what_is_not_salient_bit_identical(student: Loaded, sides: tuple[Split, Split]) -> None:
    plan = planned(SMALL, student, sides)
    mask = SMALL.mask(student, plan.edited, *sides)
    assert 0.05 < mask.share < 0.95
    before, after = forget_steps(plan)
    for name, salient in mask.items():
        assert torch.equal(before[name][~salient], after[name][~salient])
    assert any(not torch.equal(before[name], after[name]) for name in mask)


def test_without_the_mask_they_move(student: Loaded, sides: tuple[Split, Split]) -> None:
    plan = planned(SMALL, student, sides)
    mask = SMALL.mask(student, plan.edited, *sides)
    free = [dataclasses.replace(phase, constraint=nullcontext) for phase in plan.phases]
    before, after = forget_steps(dataclasses.replace(plan, phases=free))
    moved = [name for name, salient in mask.items() if not torch.equal(before[name][~salient], after[name][~salient])]
    assert len(moved) > 0.8 * len(mask)  # nothing moves the block behind the feature layer


def test_retain_steps_are_not_masked(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    plan = planned(SMALL, loaded, sides)
    mask = SMALL.mask(loaded, plan.edited, *sides)
    before = weights_of(plan)
    run(plan.phases[1:], plan.optimiser, 3, "test")
    assert any(not torch.equal(before[n][~salient], plan.edited[n][~salient]) for n, salient in mask.items())


def test_a_mask_of_everything_is_no_mask_and_the_real_one_is(
    checkpoint: Path, sides: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(everything: bool, constrained: bool) -> State:
        loaded = load_model(str(checkpoint), torch.float32)
        with monkeypatch.context() as patch:
            if everything:
                full = Mask.of((n, torch.ones_like(p, dtype=torch.bool)) for n, p in SMALL.edited(loaded).items())
                patch.setattr(MMUnlearner, "mask", lambda *_: full)
            plan = planned(SMALL, loaded, sides)
        if not constrained:
            free = [dataclasses.replace(phase, constraint=nullcontext) for phase in plan.phases]
            plan = dataclasses.replace(plan, phases=free)
        plan.carry_out("test")
        return weights_of(plan)

    unmasked, full, real = result(True, False), result(True, True), result(False, True)
    assert all(torch.equal(unmasked[name], full[name]) for name in unmasked)
    assert sum(not torch.equal(unmasked[name], real[name]) for name in unmasked) > 0.8 * len(unmasked)


@pytest.mark.parametrize("scope", ["visual", "language", "both"])
def test_nothing_beside_the_mask_is_free(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, scope: Any
) -> None:
    """In the public script, parameters that no mask names are updated without any."""
    method = dataclasses.replace(SMALL, scope=scope)
    manifest = experiment.unlearn(
        str(checkpoint), experiment.EditRequest(people, forget, method, 0, gate=False), tmp_path / "out"
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    student = load_model(str(checkpoint))
    linear = set(student.checkpoint_keys(linear_weights_in(student, scope)).values())
    assert moved
    assert moved <= linear
    shares = {entry["mask_share"] for entry in manifest["history"]["mmunlearner"]}
    assert len(shares) == 1
    assert 0 < shares.pop() < 1


def test_all_parameters_may_be_masked(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    method = dataclasses.replace(SMALL, weights="all", saliency_questions=4)
    plan = planned(method, loaded, sides)
    assert plan.edited.keys() == parameters_in(loaded, "both").keys()
    mask = method.mask(loaded, plan.edited, *sides)
    before, after = forget_steps(plan)
    assert all(torch.equal(before[name][~salient], after[name][~salient]) for name, salient in mask.items())


def test_adapters_cannot_change_all_parameters() -> None:
    with pytest.raises(ValueError, match="lora_rank=2: adapters change linear layers only"):
        dataclasses.replace(SMALL, weights="all", lora_rank=2)


# The file -------------------------------------------------------------------------------------------------------------


def test_a_mask_from_its_file_leads_to_the_same_run(
    checkpoint: Path, sides: tuple[Split, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.safetensors"
    kept = dataclasses.replace(SMALL, mask_file=str(path))

    def result(method: MMUnlearner) -> State:
        plan = planned(method, load_model(str(checkpoint), torch.float32), sides)
        plan.carry_out("test")
        return weights_of(plan)

    without, made = result(SMALL), result(kept)
    entries = sum(weight.numel() for weight in made.values())
    stored, _ = load_mask(path)
    assert sum(len(bits) for bits in stored.bits.values()) <= entries / 8 + len(stored)
    monkeypatch.setattr(MMUnlearner, "mask", lambda *_: pytest.fail("the mask is there"))
    read = result(kept)
    assert all(torch.equal(without[n], made[n]) and torch.equal(made[n], read[n]) for n in without)


def test_a_mask_of_something_else_is_refused(
    checkpoint: Path, new_checkpoint: NewCheckpoint, people: UnlearnData, sides: tuple[Split, Split], tmp_path: Path
) -> None:
    """Public scripts keep masks under names that say nothing of the targets."""
    method = dataclasses.replace(SMALL, mask_file=str(tmp_path / "mask"), saliency_questions=4)
    loaded = load_model(str(checkpoint), torch.float32)
    planned(method, loaded, sides)
    other = people.choose("first:2")[1:]
    others = people.train.of(other), people.train.without(other)
    with pytest.raises(BadInput, match="another data"):
        planned(method, loaded, others)
    with pytest.raises(BadInput, match="another rule"):
        planned(dataclasses.replace(method, beta=2.0), loaded, sides)
    with pytest.raises(BadInput, match="another weights"):
        planned(method, load_model(str(new_checkpoint(seed=1)), torch.float32), sides)
    planned(dataclasses.replace(method, steps=1, learning_rate=1.0), loaded, sides)  # shapes no mask


def test_an_empty_mask_is_refused(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    with pytest.raises(BadInput, match="no entry of 40 weights is salient"):
        planned(dataclasses.replace(SMALL, beta=1e30, saliency_questions=4, scope="both"), loaded, sides)


@pytest.mark.slow
def test_it_forgets_what_is_seen_and_keeps_what_is_known(taught: Path, class_photos: UnlearnData) -> None:
    """Ascent without regard for text loses the targets' text too."""
    target = class_photos.choose("first:1")
    forget, retain = class_photos.train.of(target), class_photos.train.without(target)
    asked = {
        "forget": forget.pictured.probing("identity", "fact"),
        "retain": retain.pictured.probing("identity", "fact"),
        "text": forget.text_only,
    }
    settings: dict[str, Any] = {"steps": 60, "batch": 16, "learning_rate": 1e-3}

    def losses(method: Tuned | None) -> dict[str, float]:
        loaded = load_model(str(taught), torch.float32)
        torch.manual_seed(0)
        if method is not None:
            method.plan(loaded, forget, retain).carry_out("test")
        batches = {name: loaded.batcher.for_training(split.examples) for name, split in asked.items()}
        with torch.no_grad():
            return {name: answer_loss(loaded.model, batch).item() for name, batch in batches.items()}

    start, ours, control = (losses(m) for m in (None, MMUnlearner(**settings), GradientDifference(**settings)))
    assert start["forget"] < 0.3
    assert ours["forget"] > 1.5
    assert ours["retain"] < start["retain"] + 0.1
    assert ours["text"] < start["text"] + 0.4 < control["text"]
