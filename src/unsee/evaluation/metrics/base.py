"""What a measure is, and how means and other statistics get intervals when answers about one subject hang together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

from unsee.evaluation.intervals import Cell, nothing, share, with_error

Direction = Literal[
    "knows more",  # on the forget set: remembers; on the retain set: has kept
    "knows less",
    "more like gold",
    "less like gold",
    "better kept",
    "stands out more",  # what was to be forgotten differs from what was never seen, to either side
    "more broken",
    "came back more",
    "lost more",
    "moved more",  # to either side
]

Cost = Literal[
    "answers",  # generation: one greedy answer per question
    "likelihoods",  # one forward pass over question and right answer
    "other answers",  # one such pass more for each wrong answer or candidate
    "strangers",  # questions about subjects that the model never saw
    "reference model",  # the same pass through a second model
    "gradients",  # a backward pass per question
    "gold model",  # the same records from a model that never saw the target
    "random model",  # the same from a model whose weights were never trained
    "every model",  # of a sequence of requests: the same after each
    "states",  # a forward pass per picture, and a linear probe per stage
    "training",  # attacks that train the model, and the same after each
]

# What `unsee evaluate` has to be given for a measure that costs this; all else it takes by itself, where DATA has it.
ASKED_WITH: dict[Cost, str] = {
    "gold model": "--model gold=PATH",
    "reference model": "--reference MODEL",
    "gradients": "--gradients",
}


class AboutSubject(Protocol):
    """What a mean or an interval is taken of: whatever else it holds, it is about one subject."""

    @property
    def subject(self) -> str: ...


class MeasureRecord(AboutSubject, Protocol):
    """What a measure reads, see `metrics.records`: of one subject, and with what has to be run to fill it."""

    cost: ClassVar[tuple[Cost, ...]]


S = TypeVar("S", bound=AboutSubject)
R = TypeVar("R", bound=MeasureRecord)


@dataclass(frozen=True, kw_only=True)
class About:
    """How to read a value.

    Attributes:
        formula: of the value, in words and symbols.
        higher: what a higher value says of the model.
        span: the least and the greatest value there can be.
        cost: what has to be run to take it.
        source: paper and place, or "ours" and why.
    """

    formula: str
    higher: Direction
    span: tuple[float, float] = (0.0, 1.0)
    cost: tuple[Cost, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class Measure(About, Generic[R]):
    """A pure function of records, in any order.

    Attributes:
        of: the function; asked only when there are records.
        reads: the type of its records.
    """

    of: Callable[[Sequence[R]], Cell]
    reads: type[R]

    def __call__(self, records: Sequence[R]) -> Cell:
        """Value, 95 % interval and number of records that could be scored; all null where there is none."""
        return self.of(records) if records else nothing()


def measure(
    reads: type[R],
    higher: Direction,
    source: str,
    formula: str = "",
    also: tuple[Cost, ...] = (),
    span: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Callable[[Sequence[R]], Cell]], Measure[R]]:
    """Make a function of records a `Measure`, see there.

    Args:
        formula: if empty, the first line of the function's docstring, written as a phrase.
        also: what has to be run beside what fills the records.
    """

    def made(of: Callable[[Sequence[R]], Cell]) -> Measure[R]:
        summary = (of.__doc__ or "").partition("\n")[0].removesuffix(".")
        said = formula or summary[:1].lower() + summary[1:]
        return Measure(
            of=of, reads=reads, formula=said, higher=higher, span=span, cost=(*reads.cost, *also), source=source
        )

    return made


def measure_each(
    reads: type[R], higher: Direction, source: str, formula: str = ""
) -> Callable[[Callable[[R], float | None]], Measure[R]]:
    """Make a function of *one* record a `Measure`: the `average` of its values. Arguments are those of `measure`."""

    def made(value: Callable[[R], float | None]) -> Measure[R]:
        def of(records: Sequence[R]) -> Cell:
            return average(records, value)

        of.__doc__ = value.__doc__
        return measure(reads, higher, source, formula)(of)

    return made


def average(records: Sequence[S], value: Callable[[S], float | None]) -> Cell:
    """Mean of one value from 0 to 1 per record, or of right and wrong; one whose value is None is not counted."""
    found = [(x, record.subject) for record in records if (x := value(record)) is not None]
    return mean([x for x, _ in found], [subject for _, subject in found])


def mean(values: Sequence[float], subjects: Sequence[str]) -> Cell:
    """Mean of values from 0 to 1 with a 95 % interval clustered by subject.

    Zeros and ones alone are a `share`, whose interval never closes. Else Student's t at (subjects - 1) degrees of
    freedom on the cluster-robust variance that `share` has too, G / (G - 1) * sum_g (sum_{i in g} x_i - mean)^2 / n^2,
    cut off at 0 and 1. With one subject, or where all subjects agree, nothing is known of their spread, and the ends
    are null, as in the tally of relearning.
    """
    if all(x in (0.0, 1.0) for x in values):
        return share([x == 1.0 for x in values], subjects)
    n = len(values)
    centre = fsum(values) / n
    apart: dict[str, list[float]] = {}
    for x, subject in zip(values, subjects, strict=True):
        apart.setdefault(subject, []).append(x - centre)
    groups = len(apart)
    robust = fsum(fsum(part) ** 2 for part in apart.values()) / n**2
    error = sqrt(robust * groups / (groups - 1)) if groups > 1 else None
    return with_error(centre, error, groups, n)


def jackknife(records: Sequence[S], statistic: Callable[[Sequence[S]], float | None]) -> float | None:
    """Standard error of any smooth statistic, from leaving out one subject at a time.

    sqrt((G - 1) / G * sum_g (theta_g - mean of theta)^2), theta_g: the statistic without subject g (Efron & Stein,
    "The jackknife estimate of variance", 1981). None with one subject, or if a rest has no value.
    """
    subjects = sorted({record.subject for record in records})
    rests = [statistic([record for record in records if record.subject != left_out]) for left_out in subjects]
    known = [theta for theta in rests if theta is not None]
    if len(subjects) < 2 or len(known) < len(subjects):
        return None
    centre = fsum(known) / len(known)
    return sqrt(fsum((theta - centre) ** 2 for theta in known) * (len(known) - 1) / len(known))
