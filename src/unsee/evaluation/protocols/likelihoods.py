"""How likely a model finds given answers, each token after the true ones before it (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unsee.data.examples import Example
from unsee.evaluation.engine import Engine, EngineRequest
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


def recite(loaded: Loaded, examples: Sequence[Example]) -> list[Recited]:
    """The answers of examples, in order. Pictures and beginnings that they share are looked at once (see `Engine`)."""
    engine = Engine(loaded, [EngineRequest(e, spoken=False) for e in examples], longest=0)
    weighed = {
        number: reply.weighed[examples[number].answer]
        for batch in engine.batches
        for number, reply in zip(batch, engine.run(batch), strict=True)
    }
    found = (weighed[number] for number in range(len(examples)))
    return [Recited(tuple(min(x, 0.0) for x in one.log_probs), one.hits) for one in found]
