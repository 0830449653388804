"""Gradient ascent and gradient difference: the oldest baselines, on the answers of the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unsee.data.examples import Split
from unsee.errors import BadInput
from unsee.methods.base import OutputMethod, Plan, positive
from unsee.models.anatomy import trainable
from unsee.models.batching import Batch, answer_loss
from unsee.models.loading import Loaded
from unsee.training.loop import Phase, shuffled

Scope = Literal["visual", "language", "both"]


@dataclass(frozen=True)
class GradientAscent(OutputMethod):
    """Raise the negative log-likelihood of the true answers about forget pictures: minimise -CE_f.

    Settings chosen on people and model seeds 100-102 (docs/LOG.md).

    Attributes:
        steps: optimiser steps.
        learning_rate: of AdamW, constant.
        batch: questions per step and side.
        scope: what is trained: vision tower and projector, language model (with its head), or both.
        clip_norm: gradient norm above which gradients are scaled down.
    """

    name: ClassVar[str] = "ga"
    paper: ClassVar[str] = "Gradient ascent (Thudi et al. 2022; baseline of MLLMU-Bench, 2410.22108)"

    steps: int = 20
    learning_rate: float = positive(1e-4)
    batch: int = 48
    scope: Scope = "both"
    clip_norm: float = positive(1.0)

    def plan(self, student: Loaded, forget: Split, retain: Split) -> Plan:
        edited = parameters_in(student, self.scope)
        trainable(edited, student.model)
        return Plan(
            edited=edited,
            phases=self.phases(student, forget, retain),
            optimiser=torch.optim.AdamW(edited.values(), lr=self.learning_rate, fused=True),
            steps=self.steps,
            clip_norm=self.clip_norm,
        )

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        draw = drawing(student, forget.pictured, self.batch)
        return [Phase("forget", draw, lambda b: {"forget": -answer_loss(student.model, b)})]


@dataclass(frozen=True)
class GradientDifference(GradientAscent):
    """Ascent on the forget answers and descent on retained ones in one step: -CE_f + retain_weight * CE_r.

    Joint in one step (Liu, Liu & Stone 2022), not the two sequential passes of the public MLLMU-Bench script.

    Attributes:
        forget_weight: of CE_f, see `retain_weight`.
        retain_weight: of CE_r.
    """

    name: ClassVar[str] = "graddiff"
    paper: ClassVar[str] = "Gradient difference (Liu, Liu & Stone 2022), joint steps"

    steps: int = 80
    forget_weight: float = 0.2
    retain_weight: float = 1.0

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        draw_forget = drawing(student, forget.pictured, self.batch)
        draw_retain = drawing(student, retain.pictured, self.batch)

        def loss(batches: tuple[Batch, Batch]) -> dict[str, Tensor]:
            return {
                "forget": -self.forget_weight * answer_loss(student.model, batches[0]),
                "retain": self.retain_weight * answer_loss(student.model, batches[1]),
            }

        return [Phase("both", lambda: (draw_forget(), draw_retain()), loss)]


def drawing(student: Loaded, examples: Split, size: int) -> Any:
    """A function that returns the next training batch of `size` examples, endlessly."""
    order = shuffled(len(examples), size)
    return lambda: student.batcher.for_training([examples.examples[i] for i in next(order).tolist()])


def parameters_in(student: Loaded, scope: Scope) -> dict[str, nn.Parameter]:
    """The parameters of one part of the model, by full name.

    Raises:
        BadInput: an unknown scope.
    """
    if scope not in ("visual", "language", "both"):
        raise BadInput(f"scope={scope}: expected visual, language or both")
    visual = student.visual.named_parameters()
    return {
        name: parameter
        for name, parameter in student.model.named_parameters()
        if scope == "both" or (name in visual) == (scope == "visual")
    }
