"""How likely a model finds the true answer: by itself, against false ones, among all names, and beside the gold model.

Also the one number for everything that must stay, two thirds of which are likelihoods.

The truth ratio R of a question is (mean over false answers of p per token) / (the true answer's p per token). That mean
is the geometric one here, as in open-unlearning; TOFU's paper has the arithmetic one, its code this one for forget
quality and that one for model utility. R is taken per question: CLEAR's script averages the false answers' losses over
the whole set first (`.mean()` without an axis), so that one odd question moves the ratio of every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import exp, expm1, fsum, log
from statistics import harmonic_mean
from typing import Any

import numpy as np
from scipy.special import expit, rel_entr, softmax
from scipy.stats import ks_2samp

from unsee.evaluation.intervals import Cell, nothing, with_error
from unsee.evaluation.metrics.base import jackknife, measure, measure_each
from unsee.evaluation.metrics.free_answers import rouge
from unsee.evaluation.metrics.records import Beside, Contrast, Kept, Ranking, Recital

TOFU = "TOFU (arXiv 2401.06121)"


def probability(recital: Recital) -> float:
    """exp(mean log p of the tokens): the true answer's probability per token, whatever its length."""
    return exp(fsum(recital.log_probs) / len(recital.log_probs))


def log_odds(contrast: Contrast) -> float:
    """-log R, R = (geometric mean of the false answers' likelihoods) / (the true answer's), all per token.

    Above 0 the model prefers the truth. The logarithm, since ratios of a model that is sure leave the range of floats.
    """
    return contrast.right - fsum(contrast.wrong) / len(contrast.wrong)


def truth_above(contrast: Contrast) -> float:
    """max(0, 1 - R): 0 as long as the false answers are at least as likely."""
    return -expm1(-max(0.0, log_odds(contrast)))


answer_probability = measure_each(Recital, "knows more", TOFU, "mean of exp(mean log p of the true answer's tokens)")(
    probability
)


@measure_each(Contrast, "knows more", f"{TOFU}, in the form of open-unlearning's prob_mean")
def truth_ratio(contrast: Contrast) -> float:
    """Mean of 1 / (1 + R), R = geometric mean of the false answers' p per token / the true answer's.

    One half for a model that does not know, below it for one that avoids the truth: over-forgetting shows.
    """
    return float(expit(log_odds(contrast)))


@measure_each(Contrast, "knows less", f"{TOFU}, of the forget set")
def truth_ratio_forget(contrast: Contrast) -> float:
    """Mean of min(R, 1 / R).

    For comparison with papers. It folds: a model that knows and one that avoids the truth are both near 0.
    """
    return exp(-abs(log_odds(contrast)))


truth_ratio_retain = measure_each(Contrast, "knows more", f"{TOFU}, of what is kept", "mean of max(0, 1 - R)")(
    truth_above
)


# How much of a true answer a model can recite, in one pass and without sampling ---------------------------------------


@measure_each(Recital, "knows more", "Wang et al. (arXiv 2406.09179), after Carlini et al. (arXiv 2012.07805)")
def extraction_strength(recital: Recital) -> float:
    """Mean of 1 - k / T, k: least number of first tokens from which greedy decoding gives all the rest.

    The share of T tokens at the end that are all hits.
    A loop over k that never tries "nothing matches" (open-unlearning, as read) gives 1 / T for a miss at the very end,
    and 1 to every answer of one token. Here both are 0. The end of the answer is a token and often the easiest: a
    model that knows nothing but when to stop has 1 / T.
    """
    return len(list(takewhile(bool, reversed(recital.hits)))) / len(recital.hits)


@measure_each(Recital, "knows more", "Tirumala et al. (arXiv 2205.10770)")
def exact_memorisation(recital: Recital) -> float:
    """Mean of hits / T: tokens that are the most likely one after the true tokens before them.

    Mean over answers of the share within each: long answers count no more than short ones.
    """
    return sum(recital.hits) / len(recital.hits)


# Where the true name stands among all names: what a model knows though it will not say it -----------------------------


@measure_each(Ranking, "knows more", "Brown et al. (arXiv 2005.14165), closed answers by likelihood")
def candidate_first(ranking: Ranking) -> float:
    """Share of questions whose true name is the most likely candidate; a tie of k counts 1 / k.

    Accuracy without generation; a model that finds all candidates alike is at chance, not right everywhere.
    """
    mine, others = ranking.weighed
    return 0.0 if mine < max(others) else 1 / (1 + others.count(mine))


@measure_each(Ranking, "knows more", "ours: the area under the ROC curve of one question")
def candidate_rank(ranking: Ranking) -> float:
    """Mean share of the other candidates that are less likely than the true name; ties count one half.

    One half is chance, however many candidates there are; below it the true name is avoided.
    Names differ in how likely they are anyhow: read it beside gold's.
    """
    mine, others = ranking.weighed
    return sum(1.0 if other < mine else 0.5 if other == mine else 0.0 for other in others) / len(others)


@measure_each(Ranking, "knows more", f"{TOFU}, multiple choice; whole names are ours")
def candidate_probability(ranking: Ranking) -> float:
    """Mean of p(true name) / sum of p over all candidates.

    Means per token favour long names, whose later tokens follow from the first ones.
    """
    values = ranking.log_likelihoods.values()
    best = max(values)
    return exp(ranking.log_likelihoods[ranking.right] - best) / fsum(exp(value - best) for value in values)


# Beside the gold model, on the same questions and the same answers ----------------------------------------------------


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


# Everything that must stay, in one number -----------------------------------------------------------------------------


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
