"""Are people's values like those of strangers who stand in for them? Persons are the units, on both sides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from unsee.evaluation.intervals import paired_spread

Array = NDArray[np.float64]
DRAWS = 9999  # of the permutation test, beside the one that was seen
SEED = 20


@dataclass(frozen=True)
class Estimate:
    """An effect with what is not known about it.

    Attributes:
        value: the effect.
        error: its standard error. degrees: of freedom of that.
        above, below: chance that people drawn at random stand as far above or below as these; None where not tested.
        people: of whom it is.
        strangers: beside whom; 0 where there are none.
        stranger_error: the part of the standard error that more strangers alone would shrink.
    """

    value: float
    error: float
    degrees: float
    above: float | None = None
    below: float | None = None
    people: int = 0
    strangers: int = 0
    stranger_error: float = 0.0

    def half(self, alpha: float = 0.05) -> float:
        """How far the interval of a level reaches to either side."""
        return float(student_t.ppf(1 - alpha / 2, self.degrees)) * self.error

    def ends(self, alpha: float = 0.05) -> tuple[float, float]:
        reach = self.half(alpha)
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class StandIns:
    """What a model makes of pictures of people, asked for what was taught of the forgotten.

    Attributes:
        subjects: the forgotten people t, in order.
        targets: of pictures of forgotten person u, asked for what was taught of t [u, t].
        strangers: of pictures of stranger j, asked for what was taught of t [j, t].
        least: the smallest step of a value of one person, where values are shares of answers; else 0.
    """

    subjects: tuple[str, ...]
    targets: Array
    strangers: Array
    least: float = 0.0

    @property
    def excess(self) -> Array:
        """How far each target's own value stands above the mean of the strangers in its place [t]."""
        found: Array = self.targets.diagonal() - np.nanmean(self.strangers, 0)
        return found

    def estimate(self, unit: float = 1.0) -> Estimate:
        """The mean excess in `unit`s, with its interval and the permutation test.

        The spread of a person is that of targets and strangers pooled, which is right where targets are like strangers,
        or that of the targets where it is larger, as where some are remembered and some are not. Student's interval at
        the degrees of freedom of both together: a few targets alone say too little of their spread, and one of them
        says nothing. Our choice.
        """
        excess, (people, strangers) = self.excess, (len(self.targets), len(self.strangers))
        of_strangers = float(np.nanmean(np.nanvar(self.strangers, 0, ddof=1)))
        of_mean = float(np.nanmean(self.strangers, 1).var(ddof=1)) / strangers
        own = float(excess.var(ddof=1)) if people > 1 else 0.0
        degrees = people + strangers - 2
        pooled = ((people - 1) * own + (strangers - 1) * of_strangers) / degrees
        variance = max((self.least / people) ** 2, max(pooled, own) / people + of_mean)
        above, below = permuted(self)
        return Estimate(
            float(excess.mean()) / unit,
            variance**0.5 / unit,
            float(degrees),
            above,
            below,
            people,
            strangers,
            of_mean**0.5 / unit,
        )

    def under_another(self) -> StandIns:
        """The same of the best of the *other* forgotten's names: whether people go on being told apart, misnamed.

        Only for two targets or more.
        """
        middle = np.nanmean(self.strangers, 0)

        def best(values: Array) -> Array:
            centred = np.where(np.isnan(values), 0.0, values - middle)
            others = [np.delete(centred, t, axis=1).max(1) for t in range(len(middle))]
            return np.stack(others, 1)

        return StandIns(self.subjects, best(self.targets), best(self.strangers), self.least)

    def singly(self, unit: float = 1.0) -> list[Estimate]:
        """Each target alone beside the strangers in its place: where one more stranger may stand."""
        strangers = len(self.strangers)
        spread = np.nanvar(self.strangers, 0, ddof=1)
        floor = self.least**2
        return [
            Estimate(
                float(value) / unit,
                max(floor, float(variance) * (1 + 1 / strangers)) ** 0.5 / unit,
                float(strangers - 1),
                people=1,
                strangers=strangers,
            )
            for value, variance in zip(self.excess, spread, strict=True)
        ]


def permuted(values: StandIns) -> tuple[float, float]:
    """Chance that people drawn at random, one for each name, stand as far above or below as the targets do.

    The people are targets and strangers together, whose pictures are exchangeable if the model tells none of them
    apart: a permutation test of persons, exact up to the draws (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585, for
    the one that is added). It assumes no distribution.
    """
    everybody = np.concatenate([values.targets, values.strangers])
    everybody = everybody - np.nanmean(values.strangers, 0)
    everybody = np.where(np.isnan(everybody), 0.0, everybody)
    names = values.targets.shape[1]
    means = everybody[_drawn(len(everybody), names, DRAWS), np.arange(names)].mean(1)
    seen, slack = float(values.excess.mean()), 1e-12
    return (
        (1 + int((means >= seen - slack).sum())) / (DRAWS + 1),
        (1 + int((means <= seen + slack).sum())) / (DRAWS + 1),
    )


@lru_cache(maxsize=8)
def _drawn(people: int, names: int, draws: int) -> NDArray[np.int64]:
    """Who stands in for each name, without anybody twice [draws, names]; the same at every call."""
    chance = np.random.default_rng(SEED)
    chosen = chance.random((draws, people)).argpartition(names - 1, axis=1)[:, :names]
    return chance.permuted(chosen, axis=1)


def paired(before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]) -> Estimate | None:
    """How much the share of right answers changed, every person compared with itself; None where nothing was asked.

    The spread is taken to be no less than if one answer of one person had changed: that none did is no proof that none
    ever does.

    Args:
        before, after: person -> right answers, answers.
    """
    if not after:
        return None
    value, spread = paired_spread(before, after)
    people, answers = len(after), sum(n for _, n in after.values())
    error = max(spread / people**0.5, 1 / answers)
    return Estimate(value, error, float(max(1, people - 1)), people=people)


def paired_singly(
    before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]], people: Collection[str]
) -> dict[str, Estimate]:
    """`paired` of some people alone; how far others' changes spread says what is chance, for which two are needed.

    A person has too few pictures to tell their own spread from.
    """
    changed = {person: right / n - before[person][0] / before[person][1] for person, (right, n) in after.items()}
    others = [change for person, change in changed.items() if person not in people]
    if len(others) < 2:
        return {}
    found = {}
    for person in people:
        if person in changed:
            error = max(stdev(others), 1 / after[person][1]) * (1 + 1 / len(others)) ** 0.5
            found[person] = Estimate(changed[person], error, float(len(others) - 1), people=1)
    return found


def cell(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.ends()
    found: dict[str, Any] = {"value": estimate.value, "low": low, "high": high, "n": estimate.people}
    if estimate.above is not None:
        found |= {"p_above": estimate.above, "p_below": estimate.below}
    return found
