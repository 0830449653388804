"""SalUn (arXiv 2310.12508): learn wrong answers, through a mask of the weights that the true ones lean on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unsee.data.examples import Example, Split
from unsee.errors import BadInput
from unsee.methods.parts import base
from unsee.methods.parts.tuned import Masked
from unsee.models.batching import Batch, answer_loss
from unsee.models.loading import Loaded
from unsee.subspace.saliency import GradientSaliency, Mask, top_rule
from unsee.training.loop import Phase, Role


@dataclass(frozen=True)
class SaliencyUnlearning(Masked):
    """forget_weight * CE of wrong answers to forget questions + retain_weight * CE_r; only salient entries ever move.

    Published for classifiers: random labels on the forget set and CE on the retained one, gradients masked to the
    largest entries of |sum of forget gradients| over all weights together, the others restored after every step. Our
    reconstruction for answers in words: a random label is what is true of somebody else (`WrongAnswers`), drawn anew
    at every step; both losses in one step; AdamW for SGD.

    Attributes:
        share: of all entries that `scope` holds, those with the largest saliency.
        forget_weight: of CE of the wrong answers.
        retain_weight: of CE_r.
    """

    name: ClassVar[str] = "salun"
    paper: ClassVar[str] = "SalUn (Fan et al. 2024, 2310.12508); random labels for answers in words: ours"
    masks: ClassVar[tuple[Role, ...]] = ("both",)
    mask_settings: ClassVar[tuple[str, ...]] = ("share",)

    learning_rate: float = base.positive(1e-4)
    share: float = base.share(0.5)
    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        wrong = WrongAnswers(forget.pictured, retain.pictured)
        choose = self.choosing(forget.pictured)
        draw_retain = self.drawing(student, retain.pictured)

        def draw() -> tuple[Batch, Batch]:
            return student.batcher.for_training(wrong.given(choose())), draw_retain()

        def loss(batches: tuple[Batch, Batch]) -> dict[str, Tensor]:
            return {
                "forget": self.forget_weight * answer_loss(student.model, batches[0]),
                "retain": self.retain_weight * answer_loss(student.model, batches[1]),
            }

        return [Phase("both", draw, loss)]

    def mask(self, student: Loaded, edited: Mapping[str, nn.Parameter], forget: Split, retain: Split) -> Mask:
        saliency = GradientSaliency(edited)
        self.gather(student, forget.pictured, "pictures to forget", saliency)
        return Mask.of(top_rule(saliency, self.share))


class WrongAnswers:
    """What is said of others when the same is asked about them, never what is true of the target itself.

    Every different answer is as likely as any other, as random labels are. Where nobody else is asked the same, the
    closed list of answers is drawn from, and without one whatever is said of others.

    Raises:
        BadInput: nothing but a true answer can be said to a question.
    """

    def __init__(self, forget: Split, retain: Split) -> None:
        said: dict[tuple[str, str], dict[str, None]] = {}
        for e in retain:
            said.setdefault(_asked(e), {})[e.answer] = None
        anything = dict.fromkeys(e.answer for e in retain)
        self._wrong = {}
        for e in forget:
            pools = (said.get(_asked(e), ()), e.choices, anything)
            wrong = next((found for pool in pools if (found := [a for a in pool if not _same(a, e.answer)])), None)
            if wrong is None:
                raise BadInput(f"question '{e.question}': no answer is known but '{e.answer}'; use another method")
            self._wrong[e] = wrong

    def given(self, examples: Sequence[Example]) -> list[Example]:
        """The same questions, each with a wrong answer (global torch seed)."""
        return [dataclasses.replace(e, answer=self._drawn(self._wrong[e])) for e in examples]

    @staticmethod
    def _drawn(answers: Sequence[str]) -> str:
        return answers[int(torch.randint(len(answers), ()))]


def _asked(e: Example) -> tuple[str, str]:
    return e.probe, e.key or e.question


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
