"""How a sequence of unlearning requests went: pure functions of counts of right answers.

Shares are fractions from 0 to 1, differences of shares from -1 to 1, both over all answers asked. Every measure is a
`Cell`: `value, low, high, n`. What was not measured is null with n = 0, never 0. Where an arm ran through the same
requests in several orders, a measure is the mean over orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unsee.evaluation.intervals import Cell, nothing, share, with_error

Counts = Mapping[str, tuple[float, float]]  # subject -> (right, asked); nobody in it was asked nothing
Pair = tuple[Counts, Counts]  # before, after
Floats = NDArray[np.float64]
Reading = Callable[[Floats, Floats], Floats]  # shares before and after -> what is averaged over pairs

GROUPS = ("retain", "attributes", "text")  # what may be lost
WINDOW = 5  # requests at either end whose times are compared
PERCENTILE = Fraction(95, 100)
POINTS = (3, 8)  # percentage points over gold within which targets are counted
ROUNDING = 1e-9  # of a mean over targets: far below one answer in any count


@dataclass(frozen=True)
class Stage:
    """One model of a sequence and how it answered.

    Attributes:
        request: how many requests had been carried out.
        subjects: whom the last of them asked to forget.
        seconds: what it took; None if not known.
        counts: `targets` (names and facts asked from test pictures, of everybody whom any request names), and each of
            `GROUPS`: `retain` (the same of those whom none names), `attributes` (what is visible on pictures of
            anybody), `text` (facts asked without a picture). A group that was not asked is empty.
        free: layer -> share of input directions that later requests may still use; empty without a null space.
        drift: layer -> relative drift since vanilla, see docs/certificate.md; empty if not known.
    """

    request: int
    subjects: tuple[str, ...]
    seconds: float | None
    counts: Mapping[str, Counts]
    free: Mapping[str, float] = field(default_factory=dict)
    drift: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Course:
    """One arm through all requests in one order.

    Attributes:
        vanilla: the model before any request.
        stages: after request 1, 2, ..., K.
        gold: a model that never saw anybody whom a request names; None if there is none.
    """

    arm: str
    order: int
    vanilla: Stage
    stages: tuple[Stage, ...]
    gold: Stage | None

    def after(self, request: int) -> Stage:
        return self.stages[request - 1] if request else self.vanilla

    def requested(self, request: int) -> set[str]:
        """Everybody whom the first `request` requests name."""
        return {subject for stage in self.stages[:request] for subject in stage.subjects}


@dataclass(frozen=True)
class Aims:
    """What a sequence should stay within; our choice.

    Attributes:
        over_gold: mean over targets of how far they lie over gold.
        over_gold_95: the same, at most, for 95 % of the targets.
        retain, attributes, text: loss since vanilla.
        rebound: mean Forgetting Rebound.
        slowdown: time of the last requests over that of the first.
    """

    over_gold: float = 0.03
    over_gold_95: float = 0.08
    retain: float = 0.03
    attributes: float = 0.02
    text: float = 0.0
    rebound: float = 0.01
    slowdown: float = 1.2


class Change(NamedTuple):
    """How one subject's share moved in one order, exactly."""

    value: Fraction
    subject: str
    order: int


# Measures -------------------------------------------------------------------------------------------------------------


def recognised(courses: Sequence[Course], request: int, read: Callable[[Course], Stage | None] | None = None) -> Cell:
    """Forget score: share of right answers about everybody who has asked so far, interval clustered by subject.

    `intervals.share` over the answers of all orders.

    Args:
        read: whose answers, e.g. gold's about the same people; none: those of the model after `request`.
    """
    stages = [read(course) if read else course.after(request) for course in courses]
    asked = [course.requested(request) for course in courses]
    return _share([_of(stage, "targets", people) for stage, people in zip(stages, asked, strict=True)])


def retained(courses: Sequence[Course], request: int) -> Cell:
    """Share of right answers about those whom no request names, interval clustered by subject."""
    return _share([course.after(request).counts["retain"] for course in courses])


def over_gold(courses: Sequence[Course], request: int) -> Cell:
    """A_now - A_gold about everybody who has asked so far; each subject is compared with itself (our choice)."""
    return change([_pair(*pair) for pair in _against_gold(courses, request)])


def loss(courses: Sequence[Course], group: str, request: int) -> Cell:
    """A_vanilla - A_now on one of `GROUPS`; below zero is a gain."""
    return change([_pair(*pair) for pair in _lost(courses, group, request)])


def rebound(courses: Sequence[Course], request: int) -> Cell:
    """Forgetting Rebound: A_now - A_own of everybody whom an earlier request names, A_own being right after their own.

    Our choice of definition: it adds up over all later requests, and a later fall pays for an earlier rise. Those of
    the last request had no time to come back and do not count. The other definition is `rebound_per_request`.
    """
    return change([_pair(*pair) for pair in _since_own(courses, request)])


def rebound_per_request(courses: Sequence[Course]) -> Cell:
    """Forgetting Rebound as other work on continual unlearning writes it: mean over requests b = 2 ... K of
    max(0, A_history,b - A_history,b-1), the history being everybody whom requests before b name (our reading).

    Only rises count, so it grows with the noise of small counts and says nothing about where they end.
    """
    pairs = []
    for course in courses:
        for before, after in pairwise(course.stages):
            history = course.requested(before.request)
            pairs.append(_pair(_of(before, "targets", history), _of(after, "targets", history)))
    return change(pairs, lambda before, after: np.maximum(0.0, after - before), (0.0, 1.0))


def retain_stability(courses: Sequence[Course]) -> Cell:
    """Retain Stability Rate as other work writes it: mean over requests b = 1 ... K of |A_retain,b - A_retain,b-1|.

    A_retain,0 is vanilla's. Despite its name low is stable, and a steady small loss counts as little as noise does:
    read it beside `loss`.
    """
    pairs = [
        _pair(before.counts["retain"], after.counts["retain"])
        for course in courses
        for before, after in pairwise((course.vanilla, *course.stages))
    ]
    return change(pairs, lambda before, after: np.abs(after - before), (0.0, 1.0))


def seconds(courses: Sequence[Course]) -> dict[str, Cell]:
    """Time per request: mean of all, mean of the `first` and of the `last` five, and their `ratio` (last / first).

    With fewer than ten timed requests halves stand for the five. Intervals: requests are the clusters. Our choice.
    """
    every, ends = [], []
    for course in courses:
        known = {str(stage.request): (stage.seconds, 1) for stage in course.stages if stage.seconds is not None}
        window, timed = min(WINDOW, len(known) // 2), list(known.items())
        every.append((known, known))
        ends.append((dict(timed[:window]), dict(timed[len(timed) - window :])))
    positive = (0.0, math.inf)
    return {
        "mean": change(every, lambda before, after: after, positive),
        "first": change(ends, lambda before, after: before, positive),
        "last": change(ends, lambda before, after: after, positive),
        "ratio": change(ends, _ratio, positive),
    }


def least_free(courses: Sequence[Course], request: int) -> dict[str, Any]:
    """Smallest share of free directions over layers and orders, and its `layer`; computed, so without an interval."""
    return _extreme(min, ((course.after(request).free, course.order) for course in courses))


def most_drift(courses: Sequence[Course], request: int) -> dict[str, Any]:
    """Largest relative drift since vanilla over layers and orders, and its `layer`."""
    return _extreme(max, ((course.after(request).drift, course.order) for course in courses))


# One by one -----------------------------------------------------------------------------------------------------------


def changes(pairs: Iterable[Pair], orders: Iterable[int]) -> list[Change]:
    """Every subject of every order with how far it moved, largest first; ties by name."""
    found = []
    for (before, after), order in zip(pairs, orders, strict=True):
        known = _pair(before, after)
        for subject in known[0]:
            moved = _rate(known[1][subject]) - _rate(known[0][subject])
            found.append(Change(moved, subject, order))
    return sorted(found, key=lambda one: (-one.value, one.subject, one.order))


def percentile(found: Sequence[Change], share_of: Fraction = PERCENTILE) -> Cell:
    """The smallest change that at least this share of subjects do not exceed (nearest rank, without an interval).

    So "the 95th percentile is at most 8 points" and "95 % of them are at most at 8 points" say the same.
    """
    if not found:
        return nothing()
    rank = math.ceil(share_of * len(found))
    value = float(sorted(one.value for one in found)[rank - 1])
    return {"value": value, "low": None, "high": None, "n": len(found)}


def within(found: Sequence[Change], points: int) -> Cell:
    """Share of subjects that moved up by at most so many percentage points, exactly compared."""
    return share([one.value <= Fraction(points, 100) for one in found], [one.subject for one in found])


def worst(found: Sequence[Change]) -> dict[str, Any] | None:
    """Who moved up most, in which order, and by how much."""
    if not found:
        return None
    return {"value": float(found[0].value), "subject": found[0].subject, "order": found[0].order}


# Together -------------------------------------------------------------------------------------------------------------


def summarise(courses: Sequence[Course], aims: Aims | None = None) -> dict[str, Any]:
    """All measures: `arms` after the last request, `orders` likewise one by one, `stages` after every request.

    Args:
        courses: at least one; every arm and order has the same number of requests.
    """
    by_arm: dict[str, list[Course]] = {}
    for course in sorted(courses, key=lambda one: (one.arm, one.order)):
        by_arm.setdefault(course.arm, []).append(course)
    ordered = [course for own in by_arm.values() for course in own]
    first = ordered[0]
    wanted = aims or Aims()
    return {
        "kind": "sequence",
        "requests": len(first.stages),
        "targets": len(first.requested(len(first.stages))),
        "retained": len(first.vanilla.counts["retain"]),
        "gold": first.gold is not None,
        "aims": vars(wanted),
        "arms": [_arm(own, wanted) for own in by_arm.values()],
        "orders": [_arm([course], wanted) for own in by_arm.values() if len(own) > 1 for course in own],
        "stages": [_stage(course, stage) for course in ordered for stage in course.stages],
    }


def _arm(courses: Sequence[Course], aims: Aims) -> dict[str, Any]:
    last, orders = len(courses[0].stages), [course.order for course in courses]
    over = changes(_against_gold(courses, last), orders)
    arm: dict[str, Any] = {
        "arm": courses[0].arm,
        "orders": orders,
        "requests": last,
        "recognised": recognised(courses, last),
        "recognised_by_vanilla": recognised(courses, last, lambda course: course.vanilla),
        "recognised_by_gold": recognised(courses, last, lambda course: course.gold),
        "retained": retained(courses, last),
        "retained_by_vanilla": retained(courses, 0),
        "over_gold": {
            **over_gold(courses, last),
            "percentile_95": percentile(over),
            "worst": worst(over),
            **{f"within_{points}": within(over, points) for points in POINTS},
        },
        "loss": {
            group: {**loss(courses, group, last), "worst": worst(changes(_lost(courses, group, last), orders))}
            for group in GROUPS
        },
        "rebound": {**rebound(courses, last), "worst": worst(changes(_since_own(courses, last), orders))},
        "rebound_per_request": rebound_per_request(courses),
        "retain_stability": retain_stability(courses),
        "seconds": seconds(courses),
        "free": least_free(courses, last),
        "drift": most_drift(courses, last),
        "warnings": sum(len(stage.warnings) for course in courses for stage in course.stages),
    }
    measured = {
        "over_gold": arm["over_gold"],
        "over_gold_95": arm["over_gold"]["percentile_95"],
        **{group: arm["loss"][group] for group in GROUPS},
        "rebound": arm["rebound"],
        "slowdown": arm["seconds"]["ratio"],
    }
    return arm | {"aims": {name: _met(measured[name], limit) for name, limit in vars(aims).items()}}


def _met(cell: Mapping[str, Any], limit: float) -> bool | None:
    """Whether the value itself is within the limit; None if it was not measured."""
    return None if cell["value"] is None else bool(cell["value"] <= limit + ROUNDING)


def _stage(course: Course, stage: Stage) -> dict[str, Any]:
    number, alone = stage.request, (course,)
    own = _of(stage, "targets", stage.subjects)
    return {
        "arm": course.arm,
        "order": course.order,
        "request": number,
        "subjects": list(stage.subjects),
        "own": _total(own),
        "recognised": recognised(alone, number),
        "recognised_by_vanilla": recognised(alone, number, lambda one: one.vanilla),
        "recognised_by_gold": recognised(alone, number, lambda one: one.gold),
        "over_gold": over_gold(alone, number),
        "loss": {group: loss(alone, group, number) for group in GROUPS},
        "rebound": rebound(alone, number),
        "seconds": stage.seconds,
        "free": least_free(alone, number),
        "drift": most_drift(alone, number),
        "warnings": list(stage.warnings),
    }


# What is compared with what -------------------------------------------------------------------------------------------


def _of(stage: Stage | None, group: str, subjects: Iterable[str]) -> Counts:
    """The counts of these subjects, as far as they were asked."""
    known = stage.counts[group] if stage else {}
    return {subject: known[subject] for subject in sorted(subjects) if subject in known}


def _against_gold(courses: Sequence[Course], request: int) -> list[Pair]:
    return [
        (_of(course.gold, "targets", asked), _of(course.after(request), "targets", asked))
        for course in courses
        for asked in [course.requested(request)]
    ]


def _lost(courses: Sequence[Course], group: str, request: int) -> list[Pair]:
    """From now to vanilla: what has to be added to be where it was."""
    return [(course.after(request).counts[group], course.vanilla.counts[group]) for course in courses]


def _since_own(courses: Sequence[Course], request: int) -> list[Pair]:
    pairs: list[Pair] = []
    for course in courses:
        earlier = [stage for stage in course.stages if stage.request < request]
        own = {s: counts for stage in earlier for s, counts in _of(stage, "targets", stage.subjects).items()}
        pairs.append((own, _of(course.after(request), "targets", own)))
    return pairs


def _pair(before: Counts, after: Counts) -> Pair:
    """Only those who were asked both times, so that each is compared with itself."""
    both = sorted(before.keys() & after.keys())
    return {subject: before[subject] for subject in both}, {subject: after[subject] for subject in both}


def _share(counts: Iterable[Counts]) -> Cell:
    right: list[bool] = []
    cluster: list[str] = []
    for of_one in counts:
        for subject, (number, asked) in of_one.items():
            right += [place < number for place in range(int(asked))]
            cluster += [subject] * int(asked)
    return share(right, cluster)


def _rate(counts: tuple[float, float]) -> Fraction:
    return Fraction(int(counts[0]), int(counts[1]))


def _total(counts: Counts) -> float | None:
    asked = sum(number for _, number in counts.values())
    return sum(right for right, _ in counts.values()) / asked if asked else None


# Intervals of changes -------------------------------------------------------------------------------------------------


def _difference(before: Floats, after: Floats) -> Floats:
    return after - before


def _ratio(before: Floats, after: Floats) -> Floats:
    return np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)


def change(pairs: Sequence[Pair], read: Reading = _difference, limits: tuple[float, float] = (-1.0, 1.0)) -> Cell:
    """Mean over pairs of a reading of two shares, with a 95 % interval clustered by subject.

    The interval is the delete-one jackknife over subjects (Quenouille, Tukey), each left out of all pairs at once,
    with Student's t at (subjects - 1) degrees of freedom. For a mean difference of subjects who were all asked equally
    much it is Student's t on their differences, as for relearning; it also holds for readings that are no sums, such
    as ratios. Our choice. Where all subjects moved alike nothing about their spread is known, and the ends are null.

    Args:
        pairs: counts before and after. Pairs without answers on either side do not count.
        limits: what the ends of the interval cannot exceed.

    Returns:
        n counts the answers after.
    """
    usable = [pair for pair in pairs if pair[0] and pair[1]]
    subjects = sorted({subject for pair in usable for side in pair for subject in side})
    if not subjects:
        return nothing()
    counts = np.array(
        [[[side.get(subject, (0, 0)) for side in pair] for pair in usable] for subject in subjects], dtype=np.float64
    )  # [subjects, pairs, 2 times, right and asked]
    together = counts.sum(axis=0)
    value, without = float(_mean(read, together)), _mean(read, together - counts)  # [], [subjects]
    asked, number = int(together[:, 1, 1].sum()), len(subjects)
    if math.isnan(value):
        return nothing()
    spread = math.sqrt((number - 1) / number * float(((without - without.mean()) ** 2).sum()))
    return with_error(value, spread, number, asked, limits)


def _mean(read: Reading, counts: Floats) -> Floats:
    """[..., pairs, 2, 2] -> [...]; pairs that nobody is left in do not count, nan if none is left."""
    right, asked = counts[..., 0], counts[..., 1]
    shares = np.divide(right, asked, out=np.full_like(right, np.nan), where=asked > 0)
    found = read(shares[..., 0], shares[..., 1])
    mean: Floats = np.ma.filled(np.ma.masked_invalid(found).mean(axis=-1), np.nan)
    return mean


def _extreme(pick: Callable[..., Any], found: Iterable[tuple[Mapping[str, float], int]]) -> dict[str, Any]:
    values = [(value, layer, order) for layers, order in found for layer, value in sorted(layers.items())]
    if not values:
        return {**nothing(), "layer": None, "order": None}
    value, layer, order = pick(values, key=lambda one: one[0])
    return {"value": value, "low": None, "high": None, "n": len(values), "layer": layer, "order": order}
