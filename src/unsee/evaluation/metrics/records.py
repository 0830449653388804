"""What measures read: small typed records, one per question, which an evaluation fills and writes down.

Log-likelihoods are natural logarithms (nats). Tokens are those of the answer with its end, never of prompt or padding.
A value that is not a number has no place here: an evaluation leaves such a question out and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import ClassVar

from unsee.evaluation.metrics.base import Cost


@dataclass(frozen=True)
class FreeAnswer:
    """A question answered freely.

    Attributes:
        subject: who or what the answer depends on.
        given: what the model said.
        right: the true answer.
        options: the closed list of answers, if there is one; may leave out the true one.
    """

    cost: ClassVar[tuple[Cost, ...]] = ("answers",)

    subject: str
    given: str
    right: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recital:
    """A true answer that was fed to the model token by token (teacher forcing).

    Attributes:
        subject: who or what the answer depends on.
        log_probs: log p(token | picture, question, tokens before it) [tokens].
        hits: whether the token was the one the model found most likely [tokens].
    """

    cost: ClassVar[tuple[Cost, ...]] = ("likelihoods",)

    subject: str
    log_probs: tuple[float, ...]
    hits: tuple[bool, ...]

    def __post_init__(self) -> None:
        _log_likelihoods("log_probs", self.log_probs)
        _as_many("hits", self.hits, self.log_probs)


@dataclass(frozen=True)
class Contrast:
    """How likely a model finds a true answer and false ones of the same form.

    Attributes:
        subject: who or what the answer depends on.
        right: mean log-likelihood per token of the true answer, in other words than it was taught if there are such.
        wrong: the same of each false answer.
    """

    cost: ClassVar[tuple[Cost, ...]] = ("likelihoods", "other answers")

    subject: str
    right: float
    wrong: tuple[float, ...]

    def __post_init__(self) -> None:
        _log_likelihoods("right", [self.right])
        _log_likelihoods("wrong", self.wrong)


@dataclass(frozen=True)
class Composite:
    """Several records about one question, all of them about the same subject."""

    def __post_init__(self) -> None:
        first, *others = self._subjects
        for other in others:
            if other != first:
                raise ValueError(f"subject: '{first}' beside '{other}'; expected two records about the same subject")

    @property
    def _subjects(self) -> list[str]:
        values = [getattr(self, field.name) for field in fields(self)]
        return [value.subject for value in values if hasattr(value, "subject")]

    @property
    def subject(self) -> str:
        return self._subjects[0]


@dataclass(frozen=True)
class Beside(Composite):
    """One question asked of a model and of the gold model, with the same answers in the same order."""

    cost: ClassVar[tuple[Cost, ...]] = ("likelihoods", "other answers", "gold model")

    model: Contrast
    gold: Contrast

    def __post_init__(self) -> None:
        super().__post_init__()
        _as_many("wrong", self.gold.wrong, self.model.wrong)


@dataclass(frozen=True)
class Ranking:
    """A closed list of answers, such as all names, each weighed by the model.

    Attributes:
        subject: who or what the answer depends on.
        right: the true answer, one of the candidates.
        log_likelihoods: candidate -> log p(candidate | picture, question) of the whole of it. A sum over its tokens
            with the end, not their mean: the end makes sums of short and long names comparable.
    """

    cost: ClassVar[tuple[Cost, ...]] = ("likelihoods", "other answers")

    subject: str
    right: str
    log_likelihoods: Mapping[str, float]

    def __post_init__(self) -> None:
        _log_likelihoods("log_likelihoods", self.log_likelihoods.values())
        if self.right not in self.log_likelihoods or len(self.log_likelihoods) < 2:
            raise ValueError(f"log_likelihoods: expected '{self.right}' and at least one other candidate; add them")

    @property
    def weighed(self) -> tuple[float, list[float]]:
        """The log-likelihood of the true answer, and those of the others."""
        others = [value for name, value in self.log_likelihoods.items() if name != self.right]
        return self.log_likelihoods[self.right], others


@dataclass(frozen=True)
class Pair(Composite):
    """The same fact asked with the picture, and in text alone with the name in the question."""

    cost: ClassVar[tuple[Cost, ...]] = ("answers",)

    picture: FreeAnswer
    text: FreeAnswer


@dataclass(frozen=True)
class Kept(Composite):
    """A question that must still be answered, in the three ways that model utility looks at it.

    Attributes:
        part: the set it belongs to, e.g. "retain", "real people", "the world": each counts the same.
    """

    cost: ClassVar[tuple[Cost, ...]] = ("answers", "likelihoods", "other answers")

    part: str
    answer: FreeAnswer
    recital: Recital
    contrast: Contrast


@dataclass(frozen=True)
class MembershipRecord:
    """A true answer of which an attacker guesses whether the model was taught it. None: not taken.

    Attributes:
        subject: who or what the answer depends on.
        member: whether the vanilla model was taught it: forget set, against strangers that no model saw.
        text: the answer.
        log_probs: as in `Recital` [tokens].
        expected: mean of log p over the model's own prediction at each token, minus its entropy [tokens].
        spread: standard deviation of log p over the same [tokens].
        reference: mean log-likelihood per token under a model that was taught neither members nor strangers.
        gradient_norm: Euclidean norm of the gradient of the answer's loss, over the same weights for all records.
    """

    cost: ClassVar[tuple[Cost, ...]] = ("likelihoods", "strangers")

    subject: str
    member: bool
    text: str
    log_probs: tuple[float, ...]
    expected: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    reference: float | None = None
    gradient_norm: float | None = None

    def __post_init__(self) -> None:
        _log_likelihoods("log_probs", self.log_probs)
        if (self.expected is None) != (self.spread is None):
            raise ValueError("expected, spread: one without the other; give both or none")
        if self.expected is not None and self.spread is not None:
            _log_likelihoods("expected", self.expected)
            _at_least_zero("spread", self.spread)
            _as_many("expected", self.expected, self.log_probs)
            _as_many("spread", self.spread, self.log_probs)
        if self.reference is not None:
            _log_likelihoods("reference", [self.reference])
        if self.gradient_norm is not None:
            _at_least_zero("gradient_norm", [self.gradient_norm])


def _log_likelihoods(what: str, values: Iterable[float]) -> None:
    given = list(values)
    if not given:
        raise ValueError(f"{what}: empty; expected at least one log-likelihood, leave the question out")
    for value in given:
        if not (isfinite(value) and value <= 0):
            raise ValueError(f"{what}: {value} is no log-likelihood; expected a finite number of at most 0")


def _at_least_zero(what: str, values: Iterable[float]) -> None:
    for value in values:
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"{what}: {value}; expected a finite number of at least 0")


def _as_many(what: str, values: tuple[object, ...], others: tuple[object, ...]) -> None:
    if len(values) != len(others):
        raise ValueError(f"{what}: {len(values)} values beside {len(others)}; expected as many of both")
