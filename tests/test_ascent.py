"""Gradient ascent and difference: what separates them, on a tiny LLaVA. The rest of their contract: test_methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unsee.data.examples import UnlearnData
from unsee.methods.ascent import GradientAscent, GradientDifference
from unsee.models.batching import answer_loss
from unsee.models.loading import load_model


def after_steps(checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], method: GradientAscent) -> list[Tensor]:
    loaded = load_model(str(checkpoint), torch.float32)
    torch.manual_seed(0)
    plan = method.plan(loaded, people.train.of(forget), people.train.without(forget))
    plan.carry_out("test")
    return [p.detach() for p in plan.edited.values()]


def test_difference_without_retain_weight_is_ascent(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    settings: dict[str, Any] = {"steps": 1, "learning_rate": 1e-3, "batch": 6}
    ascent = after_steps(checkpoint, people, forget, GradientAscent(**settings))
    for retain_weight, same in ((0.0, True), (1.0, False)):
        difference = GradientDifference(**settings, forget_weight=1.0, retain_weight=retain_weight)
        other = after_steps(checkpoint, people, forget, difference)
        close = [torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ascent, other, strict=True)]
        assert all(close) if same else not any(close[-3:])


def test_difference_holds_the_retained_answers_that_ascent_destroys(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    settings: dict[str, Any] = {"steps": 15, "learning_rate": 2e-3, "batch": 24}
    losses = {}
    for kind, weights in ((GradientAscent, {}), (GradientDifference, {"forget_weight": 0.2})):
        loaded = load_model(str(checkpoint), torch.float32)
        retained = loaded.batcher.for_training(people.train.without(forget).pictured.examples)
        forgotten = loaded.batcher.for_training(people.train.of(forget).pictured.examples)
        start = [answer_loss(loaded.model, batch).item() for batch in (retained, forgotten)]
        torch.manual_seed(0)
        kind(**settings, **weights).plan(loaded, people.train.of(forget), people.train.without(forget)).carry_out(
            "test"
        )
        losses[kind] = [
            answer_loss(loaded.model, b).item() - s for b, s in zip((retained, forgotten), start, strict=True)
        ]
    assert all(forgotten > 0 for _, forgotten in losses.values())
    assert losses[GradientAscent][0] > 0 > losses[GradientDifference][0]
