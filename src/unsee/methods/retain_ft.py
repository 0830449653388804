"""Retain-only fine-tuning: the target is simply left out of further training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unsee.data.examples import Split
from unsee.methods.parts.base import Given, positive
from unsee.methods.parts.tuned import Tuned
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded
from unsee.training.loop import Phase


@dataclass(frozen=True)
class RetainFinetuning(Tuned):
    """Minimise CE_r, the mean negative log-likelihood of the answer tokens of retained questions, and nothing else.

    There is nothing to weigh: how much is forgotten on the way is decided by `steps` and `learning_rate` alone.
    """

    name: ClassVar[str] = "retain-ft"
    paper: ClassVar[str] = "Fine-tuning on retained data (baseline of TOFU, 2401.06121, and of CLEAR, 2410.18057)"
    given: ClassVar[tuple[Given, ...]] = ("retained pictures", "retained answers", "attributes")

    learning_rate: float = positive(1e-3)

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        draw = self.drawing(student, retain.pictured)
        return [Phase("retain", draw, lambda b: {"retain": answer_loss(student.model, b)})]
