"""Adapters: trained beside the weights, merged into them, gone whatever happens; and under a mask."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import planned
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from unsee.data.examples import Split, UnlearnData
from unsee.editing import unlearn as experiment
from unsee.errors import BadInput
from unsee.methods.ascent import GradientAscent, GradientDifference
from unsee.methods.mmunlearner import MMUnlearner
from unsee.methods.parts.adapters import Adapters
from unsee.methods.parts.base import Plan
from unsee.methods.parts.tuned import Masked, linear_weights_in, reference_of
from unsee.methods.salun import SaliencyUnlearning
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded, load_model
from unsee.subspace.saliency import Mask
from unsee.training.loop import Phase, run

SMALL: dict[str, Any] = {"steps": 6, "batch": 6, "learning_rate": 5e-3, "lora_rank": 2}
State = dict[str, Tensor]


def state(model: PreTrainedModel) -> State:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def traces(model: PreTrainedModel) -> list[str]:
    """Everything of peft that can be found in a model."""
    modules = [name for name, m in model.named_modules() if type(m).__module__.startswith("peft")]
    named = [name for name in model.state_dict() if "lora" in name or "base_layer" in name]
    return modules + named + [key for m in model.modules() for key in vars(m) if "peft_config" in key]


def shape_of(model: PreTrainedModel) -> tuple[Any, ...]:
    """What must be as it was: every module object and its attributes, and which parameters collect gradients."""
    modules = {name: (id(m), frozenset(vars(m))) for name, m in model.named_modules()}
    return modules, {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}


def ones_like(parameters: Mapping[str, nn.Parameter]) -> Mask:
    return Mask.of((name, torch.ones_like(p, dtype=torch.bool)) for name, p in parameters.items())


# Merging --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_merged_model_answers_as_the_adapted_one(student: Loaded, sides: tuple[Split, Split]) -> None:
    forget = sides[0]
    inputs = student.batcher.for_generation(forget.pictured.examples[:5])
    start = student.model(**inputs).logits
    plan = planned(GradientAscent(**SMALL), student, sides)
    with plan.constraint:
        torch.testing.assert_close(student.model(**inputs).logits, start, rtol=1e-5, atol=1e-5)  # they begin as nothing
        with torch.enable_grad():
            run(plan.phases, plan.optimiser, plan.steps, "test", clip_norm=plan.clip_norm)
        assert len(traces(student.model)) > 40
        adapted = student.model(**inputs).logits
    merged = student.model(**inputs).logits
    assert traces(student.model) == []
    assert (adapted - start).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", ["visual", "language", "both"])
def test_linear_layers_of_the_scope_move_and_nothing_else(
    student: Loaded, sides: tuple[Split, Split], scope: Any
) -> None:
    """peft alone matches ends of names: `q_proj` of the language model would be that of the vision tower too."""
    before, plain = state(student.model), linear_weights_in(student, scope)
    plan = planned(GradientAscent(**SMALL, scope=scope), student, sides)
    assert plan.edited == plain
    plan.carry_out("test")
    after = state(student.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= plain.keys()
    assert len(moved) > 0.6 * len(plain)  # nothing reaches the block behind the feature layer
    ranks = [int(torch.linalg.matrix_rank((after[n] - before[n]).double(), rtol=1e-4)) for n in moved]
    assert max(ranks) == 2


def test_full_weights_move_in_more_directions(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    before = state(loaded.model)
    planned(GradientAscent(**SMALL | {"lora_rank": 0}), loaded, sides).carry_out("test")
    after = state(loaded.model)
    ranks = [
        torch.linalg.matrix_rank((after[n] - before[n]).double(), rtol=1e-4) for n in linear_weights_in(loaded, "both")
    ]
    assert max(ranks) > 4


def test_nothing_but_weights_changes_in_the_model(student: Loaded, sides: tuple[Split, Split]) -> None:
    plain = planned(GradientAscent(**SMALL | {"lora_rank": 0}), student, sides)
    assert plain.edited
    linear = linear_weights_in(student, "both")
    for p in student.model.parameters():
        p.requires_grad_(any(p is weight for weight in linear.values()))
    before = shape_of(student.model)
    plan = planned(GradientAscent(**SMALL), student, sides)
    assert shape_of(student.model) == before
    with plan.constraint:
        inside = shape_of(student.model)
    assert inside != before
    assert shape_of(student.model) == before


def test_an_exception_leaves_the_model_as_it_was(student: Loaded, sides: tuple[Split, Split]) -> None:
    weights = state(student.model)
    plan = planned(GradientAscent(**SMALL), student, sides)
    plan.phases[0].loss(plan.phases[0].draw())  # transformers notes something at the first forward pass
    before = shape_of(student.model)

    def broken(step: int) -> dict[str, float]:
        assert traces(student.model)
        if step == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(plan, after_step=broken).carry_out("test")
    assert shape_of(student.model) == before
    assert traces(student.model) == []
    now = state(student.model)
    assert all(torch.equal(weights[name], now[name]) for name in weights)


def test_adapters_that_cannot_be_made_leave_the_model_as_it_was(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    original = peft.inject_adapter_in_model

    def fails_late(*given: Any) -> None:
        original(*given)
        raise RuntimeError("late")

    monkeypatch.setattr(peft, "inject_adapter_in_model", fails_late)
    before = shape_of(loaded.model)
    with pytest.raises(RuntimeError, match="late"):
        Adapters(loaded.model, linear_weights_in(loaded, "both"), 2)
    assert shape_of(loaded.model) == before


def test_without_peft_one_line_says_what_to_do(
    loaded: Loaded, sides: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=r"lora_rank=2: LoRA needs peft; pip install 'unsee\[lora\]'") as caught:
        planned(GradientAscent(**SMALL), loaded, sides)
    assert "\n" not in str(caught.value)
    planned(GradientAscent(**SMALL | {"lora_rank": 0}), loaded, sides).carry_out("test")


@dataclass(frozen=True)
class Compared(GradientAscent):
    """Keeps the frozen reference that it was planned with."""

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        references.append(reference_of(student))
        return super().phases(student, forget, retain)


references: list[PreTrainedModel] = []


def test_the_reference_stays_the_plain_model(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    before = state(loaded.model)
    planned(Compared(**SMALL), loaded, sides).carry_out("test")
    reference = references.pop()
    assert traces(reference) == []
    kept, moved = state(reference), state(loaded.model)
    assert all(torch.equal(before[name], kept[name]) for name in before)
    assert any(not torch.equal(before[name], moved[name]) for name in before)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_run_with_adapters_writes_a_plain_checkpoint(
    checkpoint: Path, checkpoint_bf16: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, bf16: bool
) -> None:
    source = checkpoint_bf16 if bf16 else checkpoint
    method = GradientDifference(**SMALL, scope="language")
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        manifest = experiment.unlearn(
            str(source), experiment.EditRequest(people, forget, method, seed, gate=False), tmp_path / out
        )
    old, new, again, other = (
        load_file(folder / "model.safetensors") for folder in (source, *(tmp_path / out for out in "abc"))
    )
    assert old.keys() == new.keys()
    moved = {key for key in old if not torch.equal(old[key], new[key])}
    assert moved == set(manifest["changed"])
    student = load_model(str(source))
    assert moved <= set(student.checkpoint_keys(linear_weights_in(student, "language")).values())
    assert all(torch.equal(new[key], again[key]) for key in new)
    assert not all(torch.equal(new[key], other[key]) for key in new)
    batch = student.batcher.for_training(people.train.of(forget).pictured.examples)
    with torch.no_grad():
        changed = answer_loss(load_model(str(tmp_path / "a")).model, batch) - answer_loss(student.model, batch)
    assert changed.abs() > 0.001


# Under a mask ---------------------------------------------------------------------------------------------------------


def merged_weights(plan: Plan) -> State:
    """W + B A, while the adapters are in."""
    assert isinstance(plan.constraint, Adapters)
    adapted = plan.constraint._adapted
    return {
        name: (w + adapted[name].lora_B["unsee"].weight @ adapted[name].lora_A["unsee"].weight).detach()
        for name, w in plan.edited.items()
    }


def forget_steps(plan: Plan, masked: bool) -> tuple[State, State]:
    """Merged weights before and after twenty forget steps, whose momentum some unmasked retain steps have filled."""
    phases = plan.phases if masked else [dataclasses.replace(p, constraint=Phase.constraint) for p in plan.phases]
    with plan.constraint:
        run(phases[1:], plan.optimiser, 3, "test", clip_norm=plan.clip_norm)
        before = merged_weights(plan)
        run(phases[:1], plan.optimiser, 20 * phases[0].every, "test", clip_norm=plan.clip_norm)
        after = merged_weights(plan)
    for name, weight in plan.edited.items():
        torch.testing.assert_close(weight.detach(), after[name], rtol=1e-6, atol=1e-6)
    return before, after


def largest_move(mask: Mask, before: State, after: State, salient: bool) -> float:
    return max(float((after[n] - before[n])[m == salient].abs().max()) for n, m in mask.items() if (m == salient).any())


@pytest.mark.parametrize("masked", [True, False])
def test_the_mask_holds_merged_weights_in_forget_steps(
    student: Loaded, sides: tuple[Split, Split], masked: bool
) -> None:
    method = MMUnlearner(**SMALL)
    mask = planned_mask(method, student, sides)
    before, after = forget_steps(planned(method, student, sides), masked)
    assert largest_move(mask, before, after, salient=True) > 5e-3
    assert (largest_move(mask, before, after, salient=False) < 1e-5) == masked


def planned_mask(method: Masked, student: Loaded, sides: tuple[Split, Split]) -> Mask:
    edited = method.edited(student)
    for name, p in student.model.named_parameters():
        p.requires_grad_(name in edited)
    return method.mask(student, edited, *sides)


def test_a_mask_changes_what_adapters_do(checkpoint: Path, sides: tuple[Split, Split], monkeypatch: Any) -> None:
    """In the public script it does not: its names are those of weights, of which none is left beside adapters."""

    def result(everything: bool, masked: bool) -> State:
        loaded = load_model(str(checkpoint), torch.float32)
        method = MMUnlearner(**SMALL)
        with monkeypatch.context() as patch:
            if everything:
                patch.setattr(MMUnlearner, "mask", lambda _, student, edited, *__: ones_like(edited))
            plan = planned(method, loaded, sides)
        if not masked:
            free = [dataclasses.replace(p, constraint=Phase.constraint) for p in plan.phases]
            plan = dataclasses.replace(plan, phases=free)
        plan.carry_out("test")
        return state(loaded.model)

    unmasked, full, real = result(True, False), result(True, True), result(False, True)
    assert all(torch.equal(unmasked[name], full[name]) for name in unmasked)
    assert sum(not torch.equal(unmasked[name], real[name]) for name in unmasked) > 20


def test_salun_with_adapters_leaves_the_rest_where_it_was(student: Loaded, sides: tuple[Split, Split]) -> None:
    method = SaliencyUnlearning(**SMALL)
    mask, before = planned_mask(method, student, sides), state(student.model)
    plan = planned(method, student, sides)
    plan.carry_out("test")
    after = state(student.model)
    assert largest_move(mask, before, after, salient=False) < 1e-5
    assert largest_move(mask, before, after, salient=True) > 5e-3


def test_a_mask_of_other_names_is_refused(loaded: Loaded) -> None:
    edited = linear_weights_in(loaded, "visual")
    adapters = Adapters(loaded.model, edited, 2)
    optimiser = torch.optim.AdamW(adapters.parameters())
    with pytest.raises(ValueError, match="match no parameter"):
        adapters.steps_masked(optimiser, ones_like(linear_weights_in(loaded, "both"))).__enter__()
    with adapters.steps_masked(optimiser, ones_like(edited)), pytest.raises(ValueError, match="one constraint only"):
        adapters.steps_masked(optimiser, ones_like(edited)).__enter__()
