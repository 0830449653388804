"""KL-Min: ascent on forget answers while predictions on retained ones stay those of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from unsee.data.examples import Split
from unsee.methods.parts.likelihood import kl_at_answers
from unsee.methods.parts.tuned import Tuned, reference_of
from unsee.models.batching import Batch, answer_loss, answer_scores
from unsee.models.loading import Loaded
from unsee.training.loop import Phase


@dataclass(frozen=True)
class DivergenceMinimisation(Tuned):
    """-forget_weight * CE_f + retain_weight * CE_r + divergence_weight * KL(reference || student) on retained answers.

    The divergence is the mean over answer tokens; the public MLLMU-Bench script sums it over all positions, prompt and
    padding included. The reference is the model before unlearning.

    Attributes:
        forget_weight: of CE_f.
        retain_weight: of CE_r.
        divergence_weight: of the divergence; 0 leaves `graddiff`.
    """

    name: ClassVar[str] = "kl-min"
    paper: ClassVar[str] = "KL minimisation (Nguyen et al. 2020; baseline of MLLMU-Bench, 2410.22108), joint steps"

    forget_weight: float = 0.2
    retain_weight: float = 1.0
    divergence_weight: float = 1.0

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        reference = reference_of(student)
        draw_forget = self.drawing(student, forget.pictured)
        draw_retain = self.drawing(student, retain.pictured)

        def loss(batches: tuple[Batch, Batch]) -> dict[str, Tensor]:
            scores, targets, _ = answer_scores(student.model, batches[1])
            divergence = kl_at_answers(scores, answer_scores(reference, batches[1])[0])
            return {
                "forget": -self.forget_weight * answer_loss(student.model, batches[0]),
                "retain": self.retain_weight * F.cross_entropy(scores, targets),
                "divergence": self.divergence_weight * divergence,
            }

        return [Phase("both", lambda: (draw_forget(), draw_retain()), loss)]
