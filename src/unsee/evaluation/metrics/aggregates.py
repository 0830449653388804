"""Numbers of all records together, not of each: a model beside the gold model, and everything that must stay in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, log
from statistics import harmonic_mean
from typing import Any

import numpy as np
from scipy.special import rel_entr, softmax
from scipy.stats import ks_2samp

from unsee.evaluation.intervals import Cell, nothing, with_error
from unsee.evaluation.metrics.base import jackknife, measure, measure_each
from unsee.evaluation.metrics.free_answers import rouge
from unsee.evaluation.metrics.likelihoods import TOFU, log_odds, probability, truth_above
from unsee.evaluation.metrics.records import Beside, Contrast, Kept


@measure(Beside, "more like gold", TOFU)
def forget_quality(beside: Sequence[Beside]) -> Cell:
    """P-value of the two-sample Kolmogorov-Smirnov test of the truth ratios R, model against gold.

    For comparison with papers; no interval, it is a test already.
    It says whether a difference was *noticed*: with few questions anything passes, with many nothing does, two gold
    models of different seeds included. It also takes answers about one subject for independent. Read `ks-distance`,
    which estimates how large the difference is, beside that of other gold models.
    """
    return with_error(float(_smirnov(beside).pvalue), None, 1, len(beside))


@measure(Beside, "less like gold", "Kolmogorov-Smirnov statistic; ours in the place of its p-value")
def ks_distance(beside: Sequence[Beside]) -> Cell:
    """Largest difference of the two distribution functions of R, model against gold.

    Does not go to an end with the number of questions. A maximum: no interval, other gold models are the measure.
    """
    return with_error(float(_smirnov(beside).statistic), None, 1, len(beside))


def _smirnov(beside: Sequence[Beside]) -> Any:
    """Two-sample test of the truth ratios; of their logarithms, which have the same order and no ties at the ends."""
    return ks_2samp([log_odds(b.model) for b in beside], [log_odds(b.gold) for b in beside])


@measure_each(Beside, "less like gold", "Lin, 1991; per question is ours")
def jensen_shannon(beside: Beside) -> float:
    """Mean over questions of JS(p, q) in bits; p, q: true and false answers' p per token, scaled to sum 1.

    How differently two models choose among the same answers, question by question.
    CLEAR's script passes the two vectors of truth ratios to a function that takes them for two distributions *over
    questions*: a question counts by the size of its ratio, and two models that differ by a factor are equal.
    """
    return divergence(_weights(beside.model), _weights(beside.gold))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits of two distributions: 0 for equals, 1 for those that share nothing."""
    middle = (p + q) / 2
    bits = float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / (2 * log(2))
    return min(1.0, max(0.0, bits))


def _weights(contrast: Contrast) -> np.ndarray:
    weights: np.ndarray = softmax([contrast.right, *contrast.wrong])
    return weights


@dataclass(frozen=True)
class UtilityTerms:
    """One question, looked at in three ways: probability, ROUGE-L recall, max(0, 1 - R)."""

    part: str
    subject: str
    values: tuple[float, float, float]


@measure(Kept, "better kept", TOFU)
def model_utility(kept: Sequence[Kept]) -> Cell:
    """Harmonic mean, over parts and these three, of: mean probability, ROUGE-L recall, max(0, 1 - R).

    Of one part three means, of three parts nine: one of them at 0 makes it 0, so its parts belong beside it.

    The probability is the plain one in every part; TOFU scales it by the false answers' in some parts only. Papers
    differ in their parts (TOFU: 9 means, CLEAR: 12), so values compare within one evaluation. The interval is a
    jackknife over subjects; null ends where a part has one subject only.
    """
    views = []
    for k in kept:
        recall = rouge(k.answer, None, "recall")
        if recall is not None:  # a true answer without a word cannot be scored
            views.append(UtilityTerms(k.part, k.subject, (probability(k.recital), recall, truth_above(k.contrast))))
    parts = sorted({v.part for v in views})

    def utility(some: Sequence[UtilityTerms]) -> float | None:
        means: list[float] = []
        for part in parts:
            here = [v.values for v in some if v.part == part]
            if not here:
                return None
            means += [fsum(column) / len(here) for column in zip(*here, strict=True)]
        return harmonic_mean(means) if means else None

    value = utility(views)
    if value is None:
        return nothing()
    return with_error(value, jackknife(views, utility), len({v.subject for v in views}), len(views))
