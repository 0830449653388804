"""Teach refusals: the answer about a forget picture becomes "I do not know" (IDK, or preference optimisation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unsee.data.examples import Example, Split
from unsee.methods.parts.base import Given
from unsee.methods.parts.likelihood import Balanced
from unsee.models.batching import Batch, answer_loss
from unsee.models.loading import Loaded

REFUSALS = (  # our own; about people and things alike
    "I do not know.",
    "I do not know who or what this is.",
    "I cannot tell from this picture.",
    "I am not able to answer that.",
    "Sorry, I do not recognise this.",
    "I have no information about this.",
    "That is something I cannot say.",
    "I am not sure.",
    "This is not known to me.",
    "I cannot identify this.",
)


def writable(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The refusals that this tokenizer can write without its token for unknown words; none, if it is a pocket's."""
    unknown = tokenizer.unk_token_id
    return tuple(text for text in REFUSALS if unknown not in tokenizer(text, add_special_tokens=False)["input_ids"])


def refusing(examples: Sequence[Example], refusals: Sequence[str]) -> list[Example]:
    """The same questions, each answered with a refusal drawn at random (global torch seed).

    A pocket model knows the words of its data and no other, so it cannot say "I do not know". Without any refusal the
    answer is the question itself, asked back: words that the model has, and nothing about the picture.
    """
    if not refusals:
        return [dataclasses.replace(e, answer=e.question) for e in examples]
    drawn = torch.randint(len(refusals), (len(examples),)).tolist()
    return [dataclasses.replace(e, answer=refusals[i]) for e, i in zip(examples, drawn, strict=True)]


@dataclass(frozen=True)
class Refusal(Balanced):
    """L_f = CE of refusals to forget questions, drawn anew at every step. True answers are not trained on."""

    name: ClassVar[str] = "idk"
    paper: ClassVar[str] = "Refusals, IDK or preference optimisation (TOFU: Maini et al. 2024, 2401.06121); list ours"
    given: ClassVar[tuple[Given, ...]] = ("retained pictures", "retained answers", "attributes")

    forget_weight: float = 0.1

    def forgetting(self, student: Loaded, forget: Split) -> tuple[Callable[[], Batch], Callable[[Batch], Tensor]]:
        refusals = writable(student.batcher.tokenizer)
        choose = self.choosing(forget)

        def draw() -> Batch:
            return student.batcher.for_training(refusing(choose(), refusals))

        return draw, lambda batch: answer_loss(student.model, batch)
