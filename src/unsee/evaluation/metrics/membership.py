"""Membership inference: can an attacker tell what was to be forgotten from what no model ever saw?

The measure is the area under the ROC curve (AUC) of an attack's score, *two-sided*: max(AUC, 1 - AUC). One-sided AUC,
and privleak made of it, call a model that finds the forget set much *less* likely than strangers a success, but whoever
looks for faces that a model avoids finds the same people. 0.5 is the aim; as a maximum it is a little above that by
chance, the more so with few questions, so read it beside gold's.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np

from unsee.evaluation.intervals import Cell, nothing, share, with_error
from unsee.evaluation.metrics.base import Cost, Measure, jackknife, measure
from unsee.evaluation.metrics.records import MembershipRecord

LOWEST = 5  # Min-K looks at one token in five: the 20 % of the paper, but at least at one token
LEAST_SPREAD = 1e-3  # of a prediction; sqrt(1e-6) in open-unlearning


@dataclass(frozen=True)
class Guess:
    """An attack's score of one answer: the higher, the likelier it was taught."""

    subject: str
    member: bool
    score: float


def area(guesses: Sequence[Guess]) -> float | None:
    """Probability that a member's score is above a stranger's, ties one half; None without both."""
    members = [g.score for g in guesses if g.member]
    strangers = np.sort([g.score for g in guesses if not g.member])
    if not (members and len(strangers)):
        return None
    below, not_above = (np.searchsorted(strangers, members, side).sum() for side in ("left", "right"))
    return float(below + not_above) / (2 * len(members) * len(strangers))


def two_sided(guesses: Sequence[Guess]) -> Cell:
    """max(AUC, 1 - AUC), with the interval of the AUC folded likewise; null without members or without strangers.

    A jackknife over subjects, with the degrees of freedom of the side that has fewer. Where the two sides do not
    overlap nothing varies, and each subject of that side counts as one answer, as in `share`.
    """
    one_sided = area(guesses)
    if one_sided is None:
        return nothing()
    fewer = min(len({g.subject for g in guesses if g.member is side}) for side in (True, False))
    if one_sided in (0.0, 1.0):
        cell: Cell = {**share([one_sided == 1.0] * fewer, [str(i) for i in range(fewer)]), "n": len(guesses)}
    else:
        error = jackknife(guesses, area) if fewer > 1 else None
        cell = with_error(one_sided, error, fewer, len(guesses))
    value, low, high = max(one_sided, 1 - one_sided), cell["low"], cell["high"]
    if low is None or high is None:
        return {**cell, "value": value}
    nearest = 0.5 if low <= 0.5 <= high else min(abs(low - 0.5), abs(high - 0.5)) + 0.5
    return {"value": value, "low": nearest, "high": max(high, 1 - low), "n": len(guesses)}


def mean_log_prob(record: MembershipRecord) -> float:
    return fsum(record.log_probs) / len(record.log_probs)


def per_byte(record: MembershipRecord) -> float:
    """Mean log p / bytes of the compressed text. Of a name almost all of these are zlib's own: it is LOSS again."""
    return mean_log_prob(record) / len(zlib.compress(record.text.encode()))


def least_likely(record: MembershipRecord) -> float:
    return _lowest(record.log_probs)


def least_likely_scaled(record: MembershipRecord) -> float | None:
    """Of (log p - expected) / spread at each token; None if those were not taken."""
    if record.expected is None or record.spread is None:
        return None
    tokens = zip(record.log_probs, record.expected, record.spread, strict=True)
    return _lowest([(x - middle) / max(spread, LEAST_SPREAD) for x, middle, spread in tokens])


def _lowest(values: Sequence[float]) -> float:
    count = max(1, len(values) // LOWEST)
    return fsum(sorted(values)[:count]) / count


def _attack(
    score: Callable[[MembershipRecord], float | None], what: str, source: str, also: tuple[Cost, ...] = ()
) -> Measure[MembershipRecord]:
    def of(records: Sequence[MembershipRecord]) -> Cell:
        return two_sided([Guess(r.subject, r.member, x) for r in records if (x := score(r)) is not None])

    formula = f"max(AUC, 1 - AUC), forget set against strangers, of {what}"
    source = f"{source}; two-sided is ours"
    return measure(MembershipRecord, "stands out more", source, formula, also, span=(0.5, 1.0))(of)


loss = _attack(mean_log_prob, "mean log p per token", "Yeom et al. (arXiv 1709.01604)")
zlib_ratio = _attack(
    per_byte, "mean log p per token / bytes of the text under zlib", "Carlini et al. (arXiv 2012.07805)"
)
min_k = _attack(least_likely, "mean log p of the least likely 20 % of tokens", "Shi et al. (arXiv 2310.16789)")
min_k_plus_plus = _attack(
    least_likely_scaled,
    "mean of the lowest 20 % of (log p - its mean) / its deviation under the model's own prediction",
    "Zhang et al. (arXiv 2404.02936)",
)
reference = _attack(
    lambda e: None if e.reference is None else mean_log_prob(e) - e.reference,
    "mean log p per token - the same under a reference model",
    "Carlini et al. (arXiv 2012.07805)",
    ("reference model",),
)
gradient_norm = _attack(
    lambda e: None if e.gradient_norm is None else -e.gradient_norm,
    "-(norm of the loss's gradient)",
    "Wang et al. (arXiv 2402.17012)",
    ("gradients",),
)
