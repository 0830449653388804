"""Gradient ascent and gradient difference: the oldest baselines, on the answers of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unsee.data.examples import Split
from unsee.methods.parts.base import Given, positive
from unsee.methods.parts.likelihood import Balanced
from unsee.methods.parts.tuned import Tuned
from unsee.models.batching import Batch, answer_loss
from unsee.models.loading import Loaded
from unsee.training.loop import Phase


@dataclass(frozen=True)
class GradientAscent(Tuned):
    """Raise the negative log-likelihood of the true answers about forget pictures: minimise -CE_f.

    Settings chosen on people and model seeds 100-102 (docs/LOG.md).
    """

    name: ClassVar[str] = "ga"
    paper: ClassVar[str] = "Gradient ascent (Thudi et al. 2022; baseline of MLLMU-Bench, 2410.22108)"
    given: ClassVar[tuple[Given, ...]] = ("facts",)

    steps: int = 20
    learning_rate: float = positive(1e-4)

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        draw = self.drawing(student, forget.pictured)
        return [Phase("forget", draw, lambda b: {"forget": -answer_loss(student.model, b)})]


@dataclass(frozen=True)
class GradientDifference(Balanced):
    """L_f = -CE_f: ascent on the forget answers and descent on retained ones.

    Joint in one step (Liu, Liu & Stone 2022), not the two sequential passes of the public MLLMU-Bench script.
    """

    name: ClassVar[str] = "graddiff"
    paper: ClassVar[str] = "Gradient difference (Liu, Liu & Stone 2022), joint steps"

    forget_weight: float = 0.03

    def forgetting(self, student: Loaded, forget: Split) -> tuple[Callable[[], Batch], Callable[[Batch], Tensor]]:
        return self.drawing(student, forget), lambda batch: -answer_loss(student.model, batch)
