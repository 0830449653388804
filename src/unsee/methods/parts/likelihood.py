"""Likelihoods of answers, divergence of predictions, and methods that weigh forgetting against retained answers.

Everything here looks at answer tokens alone (with the end of sequence): prompt, image and padding positions carry
nothing, so no value changes when padding is added.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from unsee.data.examples import Split
from unsee.methods.parts.tuned import Tuned
from unsee.models.batching import Batch, answer_loss, answer_scores
from unsee.models.loading import Loaded
from unsee.training.loop import Phase

Likelihood = Literal["sequence_sum", "token_mean"]


def kl_at_answers(student_scores: Tensor, reference_scores: Tensor) -> Tensor:
    """Forward divergence KL(reference || student) in nats, mean over answer tokens (scalar).

    Args:
        student_scores, reference_scores: of one batch, see `answer_scores` [answer tokens, vocabulary].
    """
    return F.kl_div(
        student_scores.log_softmax(-1), reference_scores.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def answer_log_likelihoods(
    model: PreTrainedModel, batch: Mapping[str, Tensor], likelihood: Likelihood = "sequence_sum"
) -> Tensor:
    """log p(answer | pictures, question) of every row of the batch, in nats [rows]."""
    return by_row(*answer_scores(model, batch), len(batch["labels"]), likelihood)


def by_row(scores: Tensor, targets: Tensor, rows: Tensor, count: int, likelihood: Likelihood) -> Tensor:
    """Log-likelihoods of the true tokens, put together to one value per row [count].

    Args:
        scores, targets, rows: as `answer_scores` returns them.
        likelihood: `sequence_sum`: of the whole answer, its tokens' added up; `token_mean`: divided by their number.
    """
    tokens = -F.cross_entropy(scores, targets, reduction="none")
    sums = tokens.new_zeros(count).index_add(0, rows, tokens)
    return sums if likelihood == "sequence_sum" else sums / rows.bincount(minlength=count)


@dataclass(frozen=True)
class Balanced(Tuned):
    """A loss L_f on forget questions and CE on retained ones, in one step: forget_weight * L_f + retain_weight * CE_r.

    Attributes:
        forget_weight: of L_f.
        retain_weight: of CE_r, the mean negative log-likelihood of the answer tokens of retained questions.
    """

    forget_weight: float = 1.0
    retain_weight: float = 1.0

    @abstractmethod
    def forgetting(self, student: Loaded, forget: Split) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
        """What is drawn of the forget questions at every step, and L_f of it; `student` still equals the reference."""

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        draw_forget, forget_loss = self.forgetting(student, forget.pictured)
        draw_retain = self.drawing(student, retain.pictured)

        def loss(drawn: tuple[Any, Batch]) -> dict[str, Tensor]:
            return {
                "forget": self.forget_weight * forget_loss(drawn[0]),
                "retain": self.retain_weight * answer_loss(student.model, drawn[1]),
            }

        return [Phase("both", lambda: (draw_forget(), draw_retain()), loss)]
