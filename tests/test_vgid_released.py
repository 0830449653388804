"""VGID as released: a blind teacher, every position but padding, forget and retain steps in turn, adapters merged."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import Open
from torch import Tensor

from unsee.data.examples import Split, UnlearnData
from unsee.methods import vgid_released
from unsee.methods.parts.adapters import Adapters
from unsee.methods.parts.base import Plan
from unsee.methods.parts.tuned import linear_weights_in
from unsee.methods.vgid_released import ReleasedVisualNoiseDistillation, blinded, divergence
from unsee.models.batching import Batch
from unsee.models.loading import Loaded

SMALL: dict[str, Any] = {"steps": 4, "batch": 6, "learning_rate": 5e-3, "lora_rank": 2}
BOTH = pytest.mark.parametrize("family", ["llava", "qwen2_vl"])


@pytest.fixture
def sides(ragged_people: UnlearnData, forget: tuple[str, ...]) -> tuple[Split, Split]:
    """Forget and retained questions, on pictures of different sizes."""
    return ragged_people.train.of(forget), ragged_people.train.without(forget)


def planned(student: Loaded, sides: tuple[Split, Split], seed: int = 0, **settings: Any) -> Plan:
    torch.manual_seed(seed)
    return ReleasedVisualNoiseDistillation(**SMALL | settings).plan(student, *sides)


@torch.no_grad()
def disturb(student: Loaded) -> None:
    torch.manual_seed(3)
    for parameter in student.model.parameters():
        parameter += 0.1 * parameter.std(correction=0) * torch.randn_like(parameter)


def state(loaded: Loaded) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters()}


# What the teacher sees ------------------------------------------------------------------------------------------------


@BOTH
def test_nothing_is_left_of_the_teachers_picture_and_all_else_stays(
    opened: Open, sides: tuple[Split, Split], family: str
) -> None:
    batcher = opened(family).batcher
    examples = list(sides[0].pictured.examples[:4])
    batch = batcher.for_training(examples)
    other = dict(batch) | {"pixel_values": -3.0 - batch["pixel_values"]}  # the same questions about other pictures
    noises = []
    for shown, seed in ((batch, 0), (other, 0), (batch, 1)):
        torch.manual_seed(seed)
        blind = blinded(shown)
        assert blind.keys() == batch.keys()
        assert all(blind[name] is shown[name] for name in batch if name != "pixel_values")
        noises.append(blind["pixel_values"])
    first, same, anew = noises
    assert torch.equal(first, same), "whatever the picture was"
    assert not torch.equal(first, anew)
    assert first.shape == batch["pixel_values"].shape
    assert 0 <= first.min() < 0.01
    assert 0.99 < first.max() < 1
    assert first.mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(batch["pixel_values"], first), "the control"


@BOTH
def test_the_student_sees_the_picture_and_the_teacher_noise_of_the_forgotten_alone(
    opened: Open, sides: tuple[Split, Split], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Batch, Batch]] = []
    original = vgid_released.divergence

    def spy(student: Any, batch: Batch, teacher: Any, taught: Batch) -> Tensor:
        assert student is not teacher
        asked.append((batch, taught))
        return original(student, batch, teacher, taught)

    monkeypatch.setattr(vgid_released, "divergence", spy)
    student = opened(family)
    for phase, split in zip(planned(student, sides).phases, sides, strict=True):
        phase.loss(phase.draw())
        seen, taught = asked.pop()
        assert (seen["pixel_values"] is taught["pixel_values"]) == (phase.role == "retain")
        assert seen["input_ids"] is taught["input_ids"], "no instruction"
        plainly = {tuple(student.batcher.for_training([e])["input_ids"][0].tolist()) for e in split.pictured}
        rows = zip(seen["input_ids"], seen["attention_mask"].bool(), strict=True)
        assert {tuple(row[real].tolist()) for row, real in rows} <= plainly


# The terms ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(p_model: Any, p_batch: Batch, q_model: Any, q_batch: Batch, padding: bool = False) -> float:
    """KL(p || q) from whole logits in float64, summed over positions, mean over rows."""
    p, q = (
        model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double().log_softmax(-1)
        for model, batch in ((p_model, p_batch), (q_model, q_batch))
    )
    each = (p.exp() * (p - q)).sum(-1)
    return (each if padding else each * q_batch["attention_mask"]).sum(1).mean().item()


@BOTH
@torch.no_grad()
def test_terms_are_forward_divergences_at_every_position_but_padding(
    opened: Open, sides: tuple[Split, Split], family: str
) -> None:
    base, student = opened(family), opened(family)
    phases = planned(student, sides, forget_weight=3.0, retain_weight=0.5, lora_rank=0).phases
    disturb(student)
    for phase, weight in zip(phases, (3.0, 0.5), strict=True):
        batch = phase.draw()
        assert not batch["attention_mask"].all(), "nothing was padded, so nothing was tested"
        torch.manual_seed(5)
        ((name, found),) = phase.loss(batch).items()
        torch.manual_seed(5)
        taught = blinded(batch) if phase.role == "forget" else batch
        assert name == phase.role
        assert found.item() == pytest.approx(weight * by_hand(base.model, taught, student.model, batch), rel=1e-4)
        for wrong in (
            by_hand(student.model, batch, base.model, taught),
            by_hand(base.model, taught, student.model, batch, padding=True),
        ):
            assert found.item() != pytest.approx(weight * wrong, rel=1e-3), "the control"


@BOTH
@torch.no_grad()
def test_a_question_weighs_the_same_alone_and_beside_longer_ones(
    opened: Open, sides: tuple[Split, Split], family: str
) -> None:
    base, student = opened(family), opened(family)
    disturb(student)
    examples = list(sides[0].pictured.examples[:6])
    together = student.batcher.for_training(examples)
    assert not together["attention_mask"].all()
    alone = [student.batcher.for_training([e]) for e in examples]
    each = [divergence(student.model, one, base.model, one).item() for one in alone]
    value = divergence(student.model, together, base.model, together).item()
    assert value == pytest.approx(sum(each) / len(each), rel=1e-4)
    careless = together | {"attention_mask": torch.ones_like(together["attention_mask"])}
    assert divergence(student.model, careless, base.model, careless).item() != pytest.approx(value, rel=1e-3)


# A run ----------------------------------------------------------------------------------------------------------------


def test_forget_and_retain_steps_take_turns(opened: Open, sides: tuple[Split, Split]) -> None:
    """Each is an optimiser step of its own: the second already sees what the first did."""
    plan = planned(opened("llava"), sides)
    assert [(phase.role, phase.every) for phase in plan.phases] == [("forget", 1), ("retain", 1)]
    turns: list[str] = []
    taken: list[int] = []

    def noted(phase: Any) -> Any:
        def loss(batch: Batch) -> Any:
            turns.append(phase.role)
            taken.append(steps[0])
            return phase.loss(batch)

        return dataclasses.replace(phase, loss=loss)

    steps = [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    plan.optimiser.register_step_post_hook(count)
    dataclasses.replace(plan, phases=[noted(phase) for phase in plan.phases]).carry_out("test")
    assert turns == ["forget", "retain"] * SMALL["steps"]
    assert taken == list(range(2 * SMALL["steps"]))


def test_only_linear_layers_of_the_scope_move_and_adapters_are_merged(
    opened: Open, sides: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    make = vgid_released.reference_of
    monkeypatch.setattr(vgid_released, "reference_of", lambda student: held.append(make(student)) or held[-1])
    student = opened("llava")
    before, classes = state(student), [type(m) for m in student.model.modules()]
    plan = planned(student, sides, scope="language")
    plan.carry_out("test")
    assert [type(m) for m in student.model.modules()] == classes, "nothing of peft is left"
    after = state(student)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert moved <= set(linear_weights_in(student, "language"))
    ranks = [int(torch.linalg.matrix_rank((after[n] - before[n]).double(), rtol=1e-4)) for n in moved]
    assert max(ranks) == SMALL["lora_rank"]
    (teacher,) = held
    assert not teacher.training
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())


def test_adapters_drop_inputs_while_the_model_is_trained_and_at_no_other_time(
    opened: Open, sides: tuple[Split, Split]
) -> None:
    student = opened("llava")
    batch = student.batcher.for_training(sides[0].pictured.examples[:4])
    edited = linear_weights_in(student, "language")

    def differs(dropout: float, training: bool) -> bool:
        adapters = Adapters(student.model, edited, 2, dropout)
        for factor in adapters.parameters():
            torch.nn.init.normal_(factor)
        adapters.__enter__()
        student.model.train(training)
        with torch.no_grad():
            torch.manual_seed(0)
            first, second = (divergence(student.model, batch, teacher.model, batch).item() for _ in range(2))
        adapters.__exit__(RuntimeError, None, None)
        return first != second

    teacher = opened("llava")
    assert differs(0.05, training=True)
    assert not differs(0.05, training=False)
    assert not differs(0.0, training=True)
    assert ReleasedVisualNoiseDistillation.lora_dropout == 0.05


@BOTH
def test_the_student_comes_to_say_of_a_target_what_it_says_of_noise(
    opened: Open, sides: tuple[Split, Split], family: str
) -> None:
    base = opened(family)
    theirs, kept = (base.batcher.for_training(side.pictured.examples) for side in sides)
    torch.manual_seed(9)
    blind = blinded(theirs)

    def distances(**settings: Any) -> tuple[float, float]:
        student = opened(family)
        planned(student, sides, steps=25, batch=24, **settings).carry_out("test")
        student.model.eval()
        return by_hand(base.model, blind, student.model, theirs), by_hand(base.model, kept, student.model, kept)

    start = by_hand(base.model, blind, base.model, theirs)
    taught, careless = distances(), distances(retain_weight=0.0)
    assert taught[0] < 0.8 * start
    assert taught[1] < 0.8 * careless[1], "the control: without the retain term the rest goes too"
    assert distances(learning_rate=1e-60) == (pytest.approx(start, rel=1e-4), pytest.approx(0, abs=1e-6))
