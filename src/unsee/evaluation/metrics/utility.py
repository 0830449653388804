"""One number for everything that must stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import harmonic_mean

from unsee.evaluation.intervals import Cell, nothing, with_error
from unsee.evaluation.metrics.base import jackknife, measure
from unsee.evaluation.metrics.overlap import rouge
from unsee.evaluation.metrics.probability import probability, truth_above
from unsee.evaluation.metrics.records import Kept


@dataclass(frozen=True)
class Views:
    """One question, looked at in three ways: probability, ROUGE-L recall, max(0, 1 - R)."""

    part: str
    subject: str
    values: tuple[float, float, float]


@measure(
    Kept,
    formula="harmonic mean, over parts and these three, of: mean probability, ROUGE-L recall, max(0, 1 - R)",
    higher="better kept",
    cost=("answers", "likelihoods", "other answers"),
    source="TOFU (arXiv 2401.06121)",
)
def model_utility(kept: Sequence[Kept]) -> Cell:
    """Of one part three means, of three parts nine: one of them at 0 makes it 0, so its parts belong beside it.

    The probability is the plain one in every part; TOFU scales it by the false answers' in some parts only. Papers
    differ in their parts (TOFU: 9 means, CLEAR: 12), so values compare within one evaluation. The interval is a
    jackknife over subjects; null ends where a part has one subject only.
    """
    views = []
    for k in kept:
        recall = rouge(k.answer, None, "recall")
        if recall is not None:  # a true answer without a word cannot be scored
            views.append(Views(k.part, k.subject, (probability(k.recital), recall, truth_above(k.contrast))))
    parts = sorted({v.part for v in views})

    def utility(some: Sequence[Views]) -> float | None:
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
