"""MMUnlearner (arXiv 2502.11051): ascent on the targets' pictures, through a mask of what matters to nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from unsee.data.examples import Split
from unsee.methods.parts.base import Given, positive
from unsee.methods.parts.tuned import Masked, linear_weights_in, parameters_in
from unsee.models.batching import Batch, answer_loss
from unsee.models.loading import Loaded
from unsee.subspace.saliency import FisherSaliency, Mask, ratio_rule
from unsee.training.loop import Phase, Role, shuffled


@dataclass(frozen=True)
class MMUnlearner(Masked):
    """theta <- theta - lr * (-m * grad CE_T), then theta <- theta - lr * grad CE_P, the first less often.

    T: questions about the targets' pictures. P: questions about other pictures, and text questions about anybody,
    the targets among them. m = 1[S(T) / S(P) >= beta] entry by entry, S the diagonal Fisher information; P is
    pictured questions alone for vision tower and projector, all of them for the language model. One forget step per
    floor(N_P / N_T) retain steps. Published: the above. Ours: `scope`, answer tokens only, that weights beside the
    mask are frozen, that entries outside it are put back after each forget step.

    Attributes:
        beta: ratio of saliencies from which on an entry is salient.
        forget_weight: of CE_T (alpha of the public script).
        weights: `linear` layers' alone, without the head, as published (there by parts of names: proj, fc, linear,
            mlp, qkv), or `all` parameters of `scope`.
        retain_steps: on `all` of P, as the paper's objective has it, or its `pictured` part, as the public script.
    """

    name: ClassVar[str] = "mmunlearner"
    paper: ClassVar[str] = "MMUnlearner (Huo et al. 2025, 2502.11051); masked entries restored, frozen rest: ours"
    given: ClassVar[tuple[Given, ...]] = (*Masked.given, "text")
    masks: ClassVar[tuple[Role, ...]] = ("forget",)
    mask_settings: ClassVar[tuple[str, ...]] = ("beta", "weights")

    steps: int = 600
    learning_rate: float = positive(6e-4)
    batch: int = 12
    beta: float = positive(0.25)
    forget_weight: float = 1.0
    weights: Literal["linear", "all"] = "linear"
    retain_steps: Literal["all", "pictured"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "all" and self.lora_rank:
            raise ValueError(f"lora_rank={self.lora_rank}: adapters change linear layers only; expected weights=linear")

    def edited(self, student: Loaded) -> dict[str, nn.Parameter]:
        return (linear_weights_in if self.weights == "linear" else parameters_in)(student, self.scope)

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        kinds = [retain.pictured]
        if self.retain_steps == "all" and self.scope != "visual":  # text has no gradient on what sees
            kinds.append(everybody_in_text(forget, retain))
        pace = sum(map(len, kinds)) // len(forget.pictured)
        return [
            Phase(
                "forget",
                self.drawing(student, forget.pictured),
                lambda batch: {"forget": -self.forget_weight * answer_loss(student.model, batch)},
                every=max(pace, 1),
            ),
            Phase("retain", self.mixing(student, kinds), lambda batch: {"retain": answer_loss(student.model, batch)}),
        ]

    def mixing(self, student: Loaded, kinds: list[Split]) -> Callable[[], Batch]:
        """The next batch of one kind or another, each as often as it has batches."""
        draws = [self.drawing(student, kind) for kind in kinds]
        turns = [i for i, kind in enumerate(kinds) for _ in range(-(-len(kind) // self.batch))]
        order = shuffled(len(turns), 1)
        return lambda: draws[turns[int(next(order))]]()

    def mask(self, student: Loaded, edited: Mapping[str, nn.Parameter], forget: Split, retain: Split) -> Mask:
        visual = student.visual.named_parameters()
        parts = [{n: p for n, p in edited.items() if (n in visual) == seeing} for seeing in (True, False)]
        seeing, speaking = (FisherSaliency(part) if part else None for part in parts)
        targets = FisherSaliency(edited)
        preserved = [fitter for fitter in (seeing, speaking) if fitter is not None]
        self.gather(student, forget.pictured, "pictures to forget", targets)
        self.gather(student, retain.pictured, "pictures to keep", *preserved)
        if speaking is not None:
            self.gather(student, everybody_in_text(forget, retain), "text to keep", speaking)
        return Mask.of(entry for fitter in preserved for entry in ratio_rule(targets, fitter, self.beta))


def everybody_in_text(forget: Split, retain: Split) -> Split:
    """Text questions about everybody: what is known without seeing stays, also of the targets."""
    return Split((*forget.text_only, *retain.text_only))
