"""Baselines on answers: what each loss is, by hand and by its equation. What training does: test_baselines_runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from unsee.data.examples import UnlearnData
from unsee.methods.divergence import DivergenceMinimisation
from unsee.methods.parts.likelihood import by_row, kl_at_answers
from unsee.methods.parts.tuned import Tuned, reference_of
from unsee.methods.preference import (
    NegativePreference,
    RefusalPreference,
    SimpleNegativePreference,
    preference_loss,
)
from unsee.methods.refusal import Refusal
from unsee.methods.retain_ft import RetainFinetuning
from unsee.methods.rmu import RepresentationMisdirection, control_vector, relative_error
from unsee.methods.undial import AdjustedSelfDistillation, lowered
from unsee.models.batching import IGNORED, Batch
from unsee.models.loading import Loaded
from unsee.training.loop import Phase

BATCH = 7
ALL: dict[str, Tuned] = {
    "kl-min": DivergenceMinimisation(batch=BATCH, divergence_weight=0.7),
    "npo": NegativePreference(batch=BATCH, beta=0.5, forget_weight=0.3),
    "npo by tokens": NegativePreference(batch=BATCH, likelihood="token_mean", retain_weight=0.5),
    "simnpo": SimpleNegativePreference(batch=BATCH, margin=0.2),
    "idk": Refusal(batch=BATCH),
    "idk-dpo": RefusalPreference(batch=BATCH, beta=0.5),
    "undial": AdjustedSelfDistillation(batch=BATCH, beta=3.0),
    "rmu": RepresentationMisdirection(batch=BATCH),
    "retain-ft": RetainFinetuning(batch=BATCH),
}
REFERENCED = [name for name in ALL if name not in ("simnpo", "idk", "retain-ft")]
ON_SCORES = [name for name in ALL if name != "rmu"]


@dataclasses.dataclass
class Posed:
    """One method on a student that has moved away from its reference, and what one step draws."""

    method: Tuned
    student: Loaded
    phase: Phase
    drawn: Any

    def loss(self, drawn: Any) -> Tensor:
        return torch.stack(list(self.phase.loss(drawn).values()))


@pytest.fixture
def pose(student: Loaded, people: UnlearnData, forget: tuple[str, ...]) -> Callable[[str], Posed]:
    def make(name: str) -> Posed:
        torch.manual_seed(0)
        (phase,) = ALL[name].phases(student, people.train.of(forget), people.train.without(forget))
        stir(student.model)
        return Posed(ALL[name], student, phase, phase.draw())

    return make


@torch.no_grad()
def stir(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(0.3 * parameter.std(unbiased=False) * torch.randn_like(parameter))


def batches(drawn: Any) -> Iterator[Batch]:
    if isinstance(drawn, dict):
        yield drawn
    else:
        for part in drawn:
            yield from batches(part)


def each(drawn: Any, change: Callable[[Batch], Batch]) -> Any:
    return change(drawn) if isinstance(drawn, dict) else tuple(each(part, change) for part in drawn)


def padded(batch: Batch) -> Batch:
    """Seven more columns; whatever else has one value per position grows along."""
    shape = batch["input_ids"].shape
    return {
        key: F.pad(value, (0, 7), value=IGNORED if key == "labels" else 0) if value.shape == shape else value
        for key, value in batch.items()
    }


def everywhere(batch: Batch) -> Batch:
    """The public defect: prompt, image and padding positions are in the loss."""
    return batch | {"labels": batch["input_ids"]}


def predicting(batch: Batch) -> Tensor:
    """Where an answer token is predicted [rows, positions]."""
    return F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))


# By hand --------------------------------------------------------------------------------------------------------------


def test_divergence_by_hand() -> None:
    """KL((1/2, 1/2) || (3/4, 1/4)) = ln(4/3) / 2; and a token on which both agree."""
    student = torch.tensor([[0.75, 0.25], [0.1, 0.9]]).log() + 3.0  # a constant changes nothing
    reference = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
    assert kl_at_answers(student, reference).item() == pytest.approx(math.log(4 / 3) / 2 / 2)
    assert kl_at_answers(reference, student).item() != pytest.approx(math.log(4 / 3) / 2 / 2, rel=0.05), "reverse"


def test_divergence_is_zero_of_equals_and_positive_otherwise() -> None:
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    assert kl_at_answers(scores, scores).abs() < 1e-6
    assert all(kl_at_answers(scores[i : i + 1], scores[i + 1 : i + 2]) > 1e-3 for i in range(49))


def test_likelihoods_by_hand() -> None:
    """An answer of two tokens with probabilities 1/2 and 1/4, and one of a single token with 1/8."""
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.375, 0.125]]).log()
    targets, rows = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    sums, means = (by_row(scores, targets, rows, 2, how).exp() for how in ("sequence_sum", "token_mean"))  # type: ignore[arg-type]
    torch.testing.assert_close(sums, torch.tensor([1 / 8, 1 / 8]))
    torch.testing.assert_close(means, torch.tensor([8**-0.5, 1 / 8]))


def test_preference_by_hand() -> None:
    """One answer twice as likely as under the reference, one half as likely."""
    excess = torch.tensor([2.0, 0.5]).log()
    assert preference_loss(excess, 1.0).item() == pytest.approx(math.log(3) + math.log(1.5))
    root = math.sqrt(2)
    assert preference_loss(excess, 0.5).item() == pytest.approx(2 * (math.log(1 + root) + math.log(1 + 1 / root)))
    assert preference_loss(excess[1:], 2.0, margin=math.log(2)).item() == pytest.approx(math.log(1.5))


def test_teacher_has_the_true_token_lowered_and_no_other() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [5.0, 5.0, 7.0], [1.0, 1.0, 1.0]])
    found = lowered(scores, torch.tensor([0, 2, 2]), 3.0)
    assert torch.equal(found, torch.tensor([[-1.0, 1.0, 0.0], [5.0, 5.0, 4.0], [1.0, 1.0, -2.0]]))
    assert torch.equal(scores[0], torch.tensor([2.0, 1.0, 0.0])), "the reference's own scores are left alone"


def test_misdirection_by_hand() -> None:
    """|(1, 0) - (0, 2)|^2 / |(0, 1)|^2 = 5, and a state that has arrived."""
    states, wanted = torch.tensor([[1.0, 0.0], [4.0, 4.0]]), torch.tensor([[0.0, 2.0], [4.0, 4.0]])
    assert relative_error(states, wanted, torch.tensor([[0.0, 1.0], [3.0, 3.0]])).item() == 2.5


# By equation ----------------------------------------------------------------------------------------------------------


def told(model: PreTrainedModel, batch: Batch) -> list[list[Tensor]]:
    """Log-probabilities of the whole vocabulary at every answer token of every row, from plain transformers."""
    scores = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.log_softmax(-1)
    return [
        [scores[row, at - 1] for at in range(len(labels)) if labels[at] != IGNORED]
        for row, labels in enumerate(batch["labels"])
    ]


def of_truth(model: PreTrainedModel, batch: Batch) -> list[list[float]]:
    return [
        [values[label].item() for values, label in zip(row, labels[labels != IGNORED], strict=True)]
        for row, labels in zip(told(model, batch), batch["labels"], strict=True)
    ]


def mean(values: Any) -> float:
    listed = list(values)
    return float(sum(listed) / len(listed))


def equation(name: str, m: Any, student: PreTrainedModel, reference: PreTrainedModel, drawn: Any) -> dict[str, float]:
    """The terms as docs/methods writes them, without any code of ours."""

    def ce(batch: Batch) -> float:
        return -mean(value for row in of_truth(student, batch) for value in row)

    def total(model: PreTrainedModel, batch: Batch) -> list[float]:
        return [sum(row) for row in of_truth(model, batch)]

    def average(model: PreTrainedModel, batch: Batch) -> list[float]:
        return [mean(row) for row in of_truth(model, batch)]

    def divergence(batch: Batch, beta: float) -> float:
        found = []
        now, before = ([token for row in told(model, batch) for token in row] for model in (student, reference))
        for q, p, truth in zip(now, before, batch["labels"][batch["labels"] != IGNORED], strict=True):
            teacher = (p - beta * F.one_hot(truth, len(p))).softmax(-1)
            found.append((teacher * (teacher.log() - q)).sum().item())
        return mean(found)

    def negative(excess: list[float], margin: float = 0.0) -> float:
        return mean(2 / m.beta * math.log(1 + math.exp(m.beta * x + margin)) for x in excess)

    def gain(batch: Batch) -> list[float]:
        return [a - b for a, b in zip(total(student, batch), total(reference, batch), strict=True)]

    if name == "retain-ft":
        return {"retain": ce(drawn)}
    forget, retain = drawn
    kept = {"retain": m.retain_weight * ce(retain)}
    if name == "kl-min":
        return kept | {
            "forget": -m.forget_weight * ce(forget),
            "divergence": m.divergence_weight * divergence(retain, 0),
        }
    if name == "npo":
        lost = negative(gain(forget))
    elif name == "npo by tokens":
        lost = negative([a - b for a, b in zip(average(student, forget), average(reference, forget), strict=True)])
    elif name == "simnpo":
        lost = negative(average(student, forget), m.margin)
    elif name == "idk":
        lost = ce(forget)
    elif name == "idk-dpo":
        refused, true = forget
        lost = negative([t - r for t, r in zip(gain(true), gain(refused), strict=True)])
    else:
        lost = divergence(forget, m.beta)
    return kept | {"forget": m.forget_weight * lost}


@pytest.mark.parametrize("name", ON_SCORES)
def test_loss_is_its_equation(pose: Callable[[str], Posed], student: Loaded, name: str) -> None:
    vanilla = reference_of(student)
    posed = pose(name)
    found = {key: value.item() for key, value in posed.phase.loss(posed.drawn).items()}
    with torch.no_grad():
        assert found == pytest.approx(equation(name, posed.method, student.model, vanilla, posed.drawn), rel=1e-4)
        other = equation(name, posed.method, vanilla, student.model, posed.drawn)
    assert found != pytest.approx(other, rel=1e-3), "student and reference exchanged"


def test_misdirection_is_its_equation(pose: Callable[[str], Posed], student: Loaded) -> None:
    """States of two layers: one half of the depth is the first of them."""
    vanilla = reference_of(student)
    torch.manual_seed(0)
    direction = control_vector(16)
    posed = pose("rmu")

    def states(model: PreTrainedModel, batch: Batch, layer: int) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return model.model(**inputs, output_hidden_states=True).hidden_states[layer][predicting(batch)]  # type: ignore[no-any-return]

    def terms(layer: int) -> dict[str, float]:
        (now, before), (kept, known) = (
            [states(model, batch, layer) for model in (student.model, vanilla)] for batch in posed.drawn
        )
        away = [(a - 2 * b.norm() * direction).norm() / b.norm() for a, b in zip(now, before, strict=True)]
        drift = [(a - b).norm() / b.norm() for a, b in zip(kept, known, strict=True)]
        return {"forget": mean(x.item() ** 2 for x in away), "retain": 10 * mean(x.item() ** 2 for x in drift)}

    with torch.no_grad():
        found = {key: value.item() for key, value in posed.phase.loss(posed.drawn).items()}
        assert found == pytest.approx(terms(1), rel=1e-4)
        assert found != pytest.approx(terms(0), rel=1e-2)


# Answers only ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ALL))
@torch.no_grad()
def test_padding_changes_no_loss(pose: Callable[[str], Posed], name: str) -> None:
    posed = pose(name)
    assert not all(batch["attention_mask"].all() for batch in batches(posed.drawn)), "nothing was padded"
    loss = posed.loss(posed.drawn)
    torch.testing.assert_close(posed.loss(each(posed.drawn, padded)), loss, rtol=1e-4, atol=1e-6)
    careless = each(posed.drawn, everywhere)
    wider = each(each(posed.drawn, padded), everywhere)
    assert not torch.allclose(posed.loss(wider), posed.loss(careless), rtol=1e-3)


@pytest.mark.parametrize("name", list(ALL))
def test_ignored_positions_get_no_gradient(pose: Callable[[str], Posed], student: Loaded, name: str) -> None:
    posed = pose(name)
    asked: list[Tensor] = []
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        states = output if isinstance(output, Tensor) else output.last_hidden_state
        states.retain_grad()
        seen.append(states)

    layers: Any = student.family.language_model(student.model).layers
    whole = student.model.model
    whole.register_forward_pre_hook(lambda _, __, inputs: asked.append(inputs["input_ids"]), with_kwargs=True)
    (layers[0] if name == "rmu" else whole).register_forward_hook(watch)

    def touched(drawn: Any) -> list[bool]:
        """For every batch: the positions with a gradient are those that predict an answer token."""
        asked.clear()
        seen.clear()
        posed.loss(drawn).sum().backward()
        assert len(asked) == len(seen) == len(list(batches(drawn)))
        answers = {id(batch["input_ids"]): batch for batch in batches(posed.drawn)}
        return [
            torch.equal(s.grad.abs().sum(-1) > 0, predicting(answers[id(a)])) for a, s in zip(asked, seen, strict=True)
        ]  # type: ignore[union-attr]

    assert all(touched(posed.drawn))
    assert not any(touched(each(posed.drawn, everywhere)))
