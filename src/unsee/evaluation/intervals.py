"""Confidence intervals when answers about one subject hang together: of shares, and Student's of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal, TypedDict

from scipy.stats import t as student_t

Relation = Literal["above", "below", "level", "unknown"]
ROUNDING = 1e-12  # a standard error below this is rounding: nothing was seen to vary


class Cell(TypedDict):
    """A share with its 95 % interval; all null when there is nothing to score (n = 0)."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def nothing() -> Cell:
    """The cell of what was not asked or cannot be scored."""
    return {"value": None, "low": None, "high": None, "n": 0}


def student(degrees: int, alpha: float = 0.05) -> float:
    """Student's t: how many standard errors a two-sided interval reaches to either side."""
    return float(student_t.ppf(1 - alpha / 2, degrees))


def around(value: float, half: float | None, n: int, limits: tuple[float, float] = (0.0, 1.0)) -> Cell:
    """A value with ends so far away, cut off at `limits`; null ends without a half-width."""
    if half is None:
        return {"value": value, "low": None, "high": None, "n": n}
    return {"value": value, "low": max(limits[0], value - half), "high": min(limits[1], value + half), "n": n}


def with_error(
    value: float, error: float | None, groups: int, n: int, limits: tuple[float, float] = (0.0, 1.0)
) -> Cell:
    """A value with Student's interval at (groups - 1) degrees of freedom; null ends without an error."""
    half = student(groups - 1) * error if error is not None and error >= ROUNDING else None  # nor with a NaN
    return around(value, half, n, limits)


def share(right: Sequence[bool], cluster: Sequence[str]) -> Cell:
    """Share of `right` with a 95 % interval clustered by subject.

    Wilson's interval at the effective sample size n / design effect, with Student's t at (clusters - 1) degrees of
    freedom; the design effect compares the cluster-robust variance with the binomial one and is never below 1. At 0
    or 1, where no variance can be estimated, the clusters count as one answer each. Our choice: it neither collapses
    to zero width at the ends nor treats answers about one face as independent.
    """
    n = len(right)
    if not n:
        return nothing()
    p = sum(right) / n
    sums: dict[str, float] = {}
    for r, c in zip(right, cluster, strict=True):
        sums[c] = sums.get(c, 0.0) + (r - p)
    groups = len(sums)
    if groups == 1:
        effective, degrees = float(n), n - 1
    elif p in (0.0, 1.0):
        effective, degrees = float(groups), groups - 1
    else:
        robust = sum(s * s for s in sums.values()) / n**2 * groups / (groups - 1)
        effective, degrees = n / max(1.0, robust / (p * (1 - p) / n)), groups - 1
    z = student(degrees) if degrees else 12.706
    middle = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * (p * (1 - p) / effective + z * z / (4 * effective**2)) ** 0.5
    return {"value": p, "low": min(p, max(0.0, middle - half)), "high": max(p, min(1.0, middle + half)), "n": n}


def paired_spread(before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """Right answers after minus before, as a share from -1 to 1: mean and standard deviation over subjects.

    Every subject is compared with itself, so what makes some easier than others drops out. A difference is weighed by
    the number of answers behind it. The deviation of a single subject is 0.

    Args:
        before, after: subject -> right answers, answers.
    """
    usual = fmean(n for _, n in after.values())
    parts = [(right / n - before[s][0] / before[s][1]) * n / usual for s, (right, n) in after.items()]
    return fmean(parts), stdev(parts) if len(parts) > 1 else 0.0


def relation(one: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Relation:
    """Where an interval lies from others: above or below all of them, level if it overlaps one or lies between two.

    Two 95 % intervals that overlap prove no equality. Unknown where there is no interval.
    """
    ends = [(cell.get("low"), cell.get("high")) for cell in (one, *others)]
    known = [(float(low), float(high)) for low, high in ends if low is not None and high is not None]
    if not others or len(known) < len(ends):
        return "unknown"
    (low, high), *rest = known
    if all(low > top for _, top in rest):
        return "above"
    return "below" if all(high < bottom for bottom, _ in rest) else "level"
