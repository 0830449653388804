"""How likely a model finds given answers: one forward pass over question and answer (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unsee.data.examples import Example
from unsee.models.batching import answer_scores
from unsee.models.loading import Loaded


@dataclass(frozen=True)
class Recited:
    """One answer, token by token, its end included.

    Attributes:
        log_probs: log p(token | picture, question, tokens before it) [tokens].
        hits: whether it was the most likely token [tokens].
    """

    log_probs: tuple[float, ...]
    hits: tuple[bool, ...]

    @property
    def per_token(self) -> float:
        return sum(self.log_probs) / len(self.log_probs)


@torch.no_grad()
def recite(loaded: Loaded, examples: Sequence[Example]) -> list[Recited]:
    """The answers of examples, in order. All with a picture, or all without."""
    batch = {key: value.to(loaded.model.device) for key, value in loaded.batcher.for_training(examples).items()}
    scores, tokens, rows = answer_scores(loaded.model, batch)
    log_probs = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0].clamp(max=0.0)
    hits = scores.argmax(-1) == tokens
    found = []
    for row in range(len(examples)):
        mine = rows == row
        found.append(Recited(tuple(log_probs[mine].tolist()), tuple(hits[mine].tolist())))
    return found
