"""A model beside the gold model, which never saw the target, on the same questions and the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
from scipy.special import rel_entr, softmax
from scipy.stats import ks_2samp

from unsee.evaluation.intervals import Cell, with_error
from unsee.evaluation.metrics.base import average, measure
from unsee.evaluation.metrics.probability import log_odds
from unsee.evaluation.metrics.records import Beside, Contrast


def _smirnov(beside: Sequence[Beside]) -> Any:
    """Two-sample test of the truth ratios; of their logarithms, which have the same order and no ties at the ends."""
    return ks_2samp([log_odds(b.model) for b in beside], [log_odds(b.gold) for b in beside])


@measure(
    Beside,
    formula="p-value of the two-sample Kolmogorov-Smirnov test of the truth ratios R, model against gold",
    higher="more like gold",
    cost=("likelihoods", "other answers", "gold model"),
    source="TOFU (arXiv 2401.06121)",
)
def forget_quality(beside: Sequence[Beside]) -> Cell:
    """For comparison with papers; no interval, it is a test already.

    It says whether a difference was *noticed*: with few questions anything passes, with many nothing does, two gold
    models of different seeds included. It also takes answers about one subject for independent. Read `ks-distance`,
    which estimates how large the difference is, beside that of other gold models.
    """
    return with_error(float(_smirnov(beside).pvalue), None, 1, len(beside))


@measure(
    Beside,
    formula="largest difference of the two distribution functions of R, model against gold",
    higher="less like gold",
    cost=("likelihoods", "other answers", "gold model"),
    source="Kolmogorov-Smirnov statistic; ours in the place of its p-value",
)
def ks_distance(beside: Sequence[Beside]) -> Cell:
    """Does not go to an end with the number of questions. A maximum: no interval, other gold models are the measure."""
    return with_error(float(_smirnov(beside).statistic), None, 1, len(beside))


@measure(
    Beside,
    formula="mean over questions of JS(p, q) in bits; p, q: true and false answers' p per token, scaled to sum 1",
    higher="less like gold",
    cost=("likelihoods", "other answers", "gold model"),
    source="Lin, 1991; per question is ours",
)
def jensen_shannon(beside: Sequence[Beside]) -> Cell:
    """How differently two models choose among the same answers, question by question.

    CLEAR's script passes the two vectors of truth ratios to a function that takes them for two distributions *over
    questions*: a question counts by the size of its ratio, and two models that differ by a factor are equal.
    """
    return average(beside, lambda b: divergence(_weights(b.model), _weights(b.gold)))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits of two distributions: 0 for equals, 1 for those that share nothing."""
    middle = (p + q) / 2
    bits = float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / (2 * log(2))
    return min(1.0, max(0.0, bits))


def _weights(contrast: Contrast) -> np.ndarray:
    weights: np.ndarray = softmax([contrast.right, *contrast.wrong])
    return weights
