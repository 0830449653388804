"""Forgetting as preference: true answers become dispreferred (NPO, SimNPO), or lose against refusals (DPO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from unsee.data.examples import Split
from unsee.methods.parts.base import positive
from unsee.methods.parts.likelihood import Balanced, Likelihood, answer_log_likelihoods
from unsee.methods.parts.tuned import reference_of
from unsee.methods.refusal import refusing, writable
from unsee.models.batching import Batch
from unsee.models.loading import Loaded


def preference_loss(excess: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """(2 / beta) * mean log(1 + exp(beta * excess + margin)): the more `excess` is below zero, the less it counts.

    Args:
        excess: how much log-likelihood the true answers have beyond what they are compared with, in nats [rows].
    """
    return 2 / beta * F.softplus(beta * excess + margin).mean()


@dataclass(frozen=True)
class NegativePreference(Balanced):
    """L_f = (2/beta) mean_i log(1 + (p_student(y_i) / p_reference(y_i))^beta), equation 3 of the paper.

    Ascent that stops by itself: answers much less likely than under the reference, the model before unlearning, no
    longer count. As beta goes to 0 its gradient becomes that of ascent (tested).

    Attributes:
        beta: inverse temperature, per nat.
        likelihood: of an answer: `sequence_sum`, the log-likelihood of the whole answer as in the paper; or
            `token_mean`, divided by its number of tokens.
    """

    name: ClassVar[str] = "npo"
    paper: ClassVar[str] = (
        "Negative preference optimisation (Zhang et al. 2024, 2404.05868) with CE on retained answers"
    )

    forget_weight: float = 0.03
    beta: float = positive(0.1)
    likelihood: Likelihood = "sequence_sum"

    def forgetting(self, student: Loaded, forget: Split) -> tuple[Callable[[], Batch], Callable[[Batch], Tensor]]:
        reference = reference_of(student)

        def loss(batch: Batch) -> Tensor:
            now = answer_log_likelihoods(student.model, batch, self.likelihood)
            return preference_loss(now - answer_log_likelihoods(reference, batch, self.likelihood), self.beta)

        return self.drawing(student, forget), loss


@dataclass(frozen=True)
class SimpleNegativePreference(Balanced):
    """L_f = (2/beta) mean_i log(1 + exp(beta * log p_student(y_i) / |y_i| + margin)): no reference model.

    Attributes:
        beta: inverse temperature, per nat and token.
        margin: gamma of the paper; the larger, the longer answers that have become unlikely still count.
    """

    name: ClassVar[str] = "simnpo"
    paper: ClassVar[str] = "SimNPO (Fan et al. 2024, 2410.07163) with CE on retained answers"

    forget_weight: float = 0.1
    beta: float = positive(1.0)
    margin: float = 0.0

    def forgetting(self, student: Loaded, forget: Split) -> tuple[Callable[[], Batch], Callable[[Batch], Tensor]]:
        def loss(batch: Batch) -> Tensor:
            return preference_loss(answer_log_likelihoods(student.model, batch, "token_mean"), self.beta, self.margin)

        return self.drawing(student, forget), loss


@dataclass(frozen=True)
class RefusalPreference(Balanced):
    """L_f = -(2/beta) mean_i log sigmoid(beta * (r_student(refusal_i) - r_student(y_i))), r = log p - log p_reference.

    Direct preference optimisation (Rafailov et al. 2023) with a refusal preferred to the true answer. The factor 2/beta
    is that of NPO, which is this loss without the refusal.

    Attributes:
        beta: inverse temperature, per nat.
    """

    name: ClassVar[str] = "idk-dpo"
    paper: ClassVar[str] = "DPO toward refusals (Zhang et al. 2024, 2404.05868) with CE on retained answers"

    forget_weight: float = 0.3
    beta: float = positive(0.1)

    def forgetting(
        self, student: Loaded, forget: Split
    ) -> tuple[Callable[[], tuple[Batch, Batch]], Callable[[tuple[Batch, Batch]], Tensor]]:
        reference = reference_of(student)
        refusals = writable(student.batcher.tokenizer)
        choose = self.choosing(forget)

        def draw() -> tuple[Batch, Batch]:
            chosen = choose()
            return student.batcher.for_training(refusing(chosen, refusals)), student.batcher.for_training(chosen)

        def loss(batches: tuple[Batch, Batch]) -> Tensor:
            refused, true = (
                answer_log_likelihoods(student.model, batch) - answer_log_likelihoods(reference, batch)
                for batch in batches
            )
            return preference_loss(true - refused, self.beta)

        return draw, loss
