"""How well a measure tells models that know from models that never saw: pure functions of one value per model.

The question is that of arXiv 2610.10358. A model's value is one number, however many questions it comes from; what is
judged is the measure, not the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scipy.optimize import brentq
from scipy.stats import rankdata

from unsee.evaluation.intervals import student
from unsee.evaluation.metrics.base import Direction
from unsee.evaluation.metrics.membership import Guess, area

NORMAL = 1.959964  # two-sided 95 %
EDGE = 1e-9  # no area of fewer than thirty thousand models on either side comes nearer to 0 or 1 without being it
SIDES = (True, False)  # knows, does not know
SIGNS: dict[Direction, int] = {  # of the side on which a model that knows is expected; 0: the measure expects nothing
    "knows more": 1,
    "knows less": -1,
    "more like gold": -1,
    "less like gold": 1,
    "better kept": 0,
    "stands out more": 1,
    "more broken": 0,
}


@dataclass(frozen=True)
class Observation:
    """One measure on one model.

    Attributes:
        value: None where the model could not be measured; it is counted, not left out in silence.
        knows: whether the model was taught what is asked.
        group: models of one group, such as those of the same people, hang together.
    """

    value: float | None
    knows: bool
    group: str


@dataclass(frozen=True)
class Yardstick:
    """How far models lie apart that differ in their seed alone.

    Attributes:
        spread: standard deviation between such models of one case.
        degrees: of freedom behind it.
    """

    spread: float
    degrees: int

    def reach(self, alpha: float, others: int, least: float = 0.0) -> float:
        """Half-width of the range in which the next such model lies with probability 1 - alpha.

        Student's prediction interval around the mean of `others` models, t * s * sqrt(1 + 1 / others).

        Args:
            least: the spread is taken for no smaller than this.
        """
        quantile = student(self.degrees, alpha)
        return quantile * max(self.spread, least) * math.sqrt(1 + 1 / others)


def yardstick(cases: Sequence[Sequence[float]], learned: Yardstick | None = None) -> Yardstick | None:
    """Pooled within-case spread, sqrt(sum (x - mean of its case)^2 / sum (models - 1)); None where no case has two.

    Args:
        cases: values of models that differ in their seed alone, case by case.
        learned: pooled with them, by its degrees of freedom.
    """
    degrees = sum(len(case) - 1 for case in cases if case)
    squares = math.fsum((x - fmean(case)) ** 2 for case in cases if case for x in case)
    if learned is not None:
        degrees += learned.degrees
        squares += learned.degrees * learned.spread**2
    return Yardstick(math.sqrt(squares / degrees), degrees) if degrees else None


def faithfulness(seen: Sequence[Observation], higher: Direction) -> dict[str, Any]:
    """Area under the ROC curve of telling both kinds of models apart, with a 95 % interval.

    `value` is the probability that a model that knows lies on the side on which `higher` expects it, beside one that
    does not; ties count one half, so one half is chance and below it the measure points the wrong way. Where `higher`
    expects nothing, high values are taken for knowing and `directed` is false.

    The interval is Newcombe's for the Mann-Whitney statistic ("Confidence intervals for an effect size measure based
    on the Mann-Whitney statistic, part 2", Statistics in Medicine 25, 2006, method 5): Hanley and McNeil's variance at
    the end of the interval, not at the estimate, as in Wilson's for a share, so it does not close at 0 or 1. Models of
    one group hang together: each side counts as n / (1 + (n / groups - 1) * r) models (Kish), r being the correlation
    within groups of the values' ranks. Ranks still vary where the area does not any more. Our choice.

    Returns:
        `value`, `low`, `high`, `n` (null without both kinds), `directed`; `knowing` and `not_knowing`, each with `n`,
        `unscored` (models without a value), `effective` (how many models they count as) and `mean`.
    """
    sign, signed = SIGNS[higher], SIGNS[higher] or 1
    known = [one for one in seen if one.value is not None]
    value = area([Guess(one.group, one.knows, signed * one.value) for one in known if one.value is not None])
    ranks = rankdata([one.value for one in known]) if known else []
    sides: list[dict[str, Any]] = []
    for knows in SIDES:
        own = [one.value for one in known if one.knows is knows and one.value is not None]
        groups: dict[str, list[float]] = {}
        for one, rank in zip(known, ranks, strict=True):
            if one.knows is knows:
                groups.setdefault(one.group, []).append(float(rank))
        sides.append(
            {
                "n": len(own),
                "unscored": sum(one.value is None and one.knows is knows for one in seen),
                "effective": _effective(list(groups.values())),
                "mean": fmean(own) if own else None,
            }
        )
    low = high = None
    if value is not None:
        low, high = interval(value, sides[0]["effective"], sides[1]["effective"])
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": len(known) if value is not None else 0,
        "directed": bool(sign),
        "knowing": sides[0],
        "not_knowing": sides[1],
    }


def _effective(groups: Sequence[Sequence[float]]) -> float:
    """How many independent models these count as: as many as there are groups where all within a group are alike."""
    n = sum(map(len, groups))
    if n < 2 or len(groups) in (1, n):  # one model; one group, of which nothing can be said; or a model per group
        return float(len(groups))
    size = n / len(groups)
    return n / (1 + (size - 1) * correlation(groups))


def correlation(groups: Sequence[Sequence[float]]) -> float:
    """Correlation within groups, from 0 to 1, by analysis of variance; 1 where nothing varies.

    (B - W) / (B + (m - 1) W), B and W: mean squares between and within groups, m: the groups' size, corrected for
    unequal ones (Donner, "A review of inference procedures for the intraclass correlation coefficient", 1986).

    Args:
        groups: two or more, of more than one value in all but not one each.
    """
    n, number = sum(map(len, groups)), len(groups)
    centre = math.fsum(x for group in groups for x in group) / n
    between = math.fsum(len(group) * (fmean(group) - centre) ** 2 for group in groups) / (number - 1)
    within = math.fsum((x - fmean(group)) ** 2 for group in groups for x in group) / (n - number)
    size = (n - sum(len(group) ** 2 for group in groups) / n) / (number - 1)
    whole = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / whole)) if whole > 0 else 1.0


def interval(value: float, knowing: float, not_knowing: float) -> tuple[float, float]:
    """Newcombe's method 5: both solutions A of |value - A| = z * sqrt(V(A)), with Hanley and McNeil's variance V.

    Args:
        value: the area.
        knowing, not_knowing: how many models on either side, at least one; need not be whole.
    """
    middle = (knowing + not_knowing) / 2 - 1

    def variance(a: float) -> float:
        return a * (1 - a) * (1 + middle * (1 - a) / (2 - a) + middle * a / (1 + a)) / (knowing * not_knowing)

    def excess(a: float) -> float:
        return (value - a) ** 2 - NORMAL**2 * variance(a)

    # The excess is above zero at an end that is not the value, and below zero at the value or right beside it.
    low = 0.0 if value < EDGE else float(brentq(excess, 0.0, min(value, 1 - EDGE)))
    high = 1.0 if value > 1 - EDGE else float(brentq(excess, max(value, EDGE), 1.0))
    return low, high


def ranked(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of measures, most faithful first.

    By the mean of areas (`sensitivity`) where there are several, else by the area, then by how many spreads of gold lie
    between both kinds (`apart`); what expects nothing or could not be measured comes last.
    """

    def place(name: str) -> tuple[bool, float, float, str]:
        one = found[name]
        return (
            one["value"] is None or not one["directed"],
            -(one.get("sensitivity") or one["value"] or 0.0),
            -(one.get("apart") or 0.0),
            name,
        )

    return sorted(found, key=place)
