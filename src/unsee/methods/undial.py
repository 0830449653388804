"""UNDIAL: distil from the model's own predictions, with the memorised token made less likely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unsee.data.examples import Split
from unsee.methods.parts.base import positive
from unsee.methods.parts.likelihood import Balanced, kl_at_answers
from unsee.methods.parts.tuned import reference_of
from unsee.models.batching import Batch, answer_scores
from unsee.models.loading import Loaded


@dataclass(frozen=True)
class AdjustedSelfDistillation(Balanced):
    """L_f = mean over answer tokens of KL(softmax(z_reference - beta * onehot(y)) || student).

    The paper's cross-entropy differs from this divergence by the teacher's entropy, which no weight changes; the
    divergence is 0 where the student has arrived. CE on retained answers is ours: the paper has no retained term.

    Attributes:
        beta: how far the reference's score of the true token is lowered. Where its lead over the next token is larger
            than that, the true token stays in front.
    """

    name: ClassVar[str] = "undial"
    paper: ClassVar[str] = "UNDIAL (Dong et al. 2024, 2402.10052); with CE on retained answers by us"

    beta: float = positive(10.0)

    def forgetting(self, student: Loaded, forget: Split) -> tuple[Callable[[], Batch], Callable[[Batch], Tensor]]:
        reference = reference_of(student)

        def loss(batch: Batch) -> Tensor:
            scores, targets, _ = answer_scores(student.model, batch)
            teacher = lowered(answer_scores(reference, batch)[0], targets, self.beta)
            return kl_at_answers(scores, teacher)

        return self.drawing(student, forget), loss


def lowered(scores: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Scores [tokens, vocabulary] with that of each true token reduced by `beta`; the rest is left as it is."""
    return scores.scatter_add(1, targets[:, None], scores.new_full((len(targets), 1), -beta))
