"""FIUBench (arXiv 2411.03554): invented faces; every question has the picture, so only what is seen can be forgotten.

Likelihood, ROUGE and truth ratio of the questions as taught; keywords in answers to the same questions in other words.
Not here: the score of a paid judge, and membership attacks, which are `unsee list metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem
from unsee.evaluation.intervals import Cell
from unsee.evaluation.metrics.against_gold import forget_quality, jensen_shannon, ks_distance
from unsee.evaluation.metrics.base import Measure
from unsee.evaluation.metrics.records import Beside
from unsee.evaluation.protocols.base import Asked, Protocol, Reply, Scored, Whole
from unsee.evaluation.protocols.measured import (
    PAPER_RECALL,
    PROBABILITY,
    RECALL,
    TRUTH,
    average,
    beside,
)
from unsee.evaluation.protocols.parsing import keywords_named, paper_keywords
from unsee.evaluation.protocols.prompts import Mode, question_text

NAME = "fiubench"
TOKENS = 50


def ask(data: BenchmarkData, mode: Mode, seed: int) -> tuple[Asked, ...]:
    """All questions as taught; then in other words, which the published script does for the forget set only."""
    found = []
    for item in data.items:
        text = question_text(NAME, item, mode)
        found.append(Asked(item, mode, text, TOKENS, what="generation", contrast=bool(item.wrong)))
        if item.part == "forget" or mode == "corrected":
            found += [Asked(other, mode, other.question, TOKENS, what="rephrased") for other in _rephrased(item)]
    return tuple(found)


def _rephrased(item: BenchmarkItem) -> Iterator[BenchmarkItem]:
    for number, words in enumerate(item.rephrased, start=1):
        yield replace(item, question=words, key=f"{item.key}.{number}")


PAPER_KEYWORDS = Scored("keywords (exact match)", average(lambda r: paper_keywords(r.given, r.keywords)), "stand-in")
KEYWORDS = Scored("keywords (exact match)", average(lambda r: keywords_named(r.given, r.keywords)), "stand-in")


def _beside_gold(name: str, measure: Measure[Beside]) -> Whole:
    def of(model: Sequence[Reply], gold: Sequence[Reply] | None) -> Cell:
        mine, theirs = ([r for r in replies or () if r.part == "forget"] for replies in (model, gold))
        return measure(beside(mine, theirs))

    return Whole("forget", "generation", name, of)


PROTOCOL = Protocol(
    benchmark=NAME,
    published="visual-only",
    ask=ask,
    scored={
        ("paper", "generation"): (PAPER_RECALL, PAPER_KEYWORDS, PROBABILITY, TRUTH),
        ("paper", "rephrased"): (PAPER_KEYWORDS,),
        ("corrected", "generation"): (RECALL, KEYWORDS, PROBABILITY, TRUTH),
        ("corrected", "rephrased"): (RECALL, KEYWORDS),
    },
    wholes={
        "paper": (_beside_gold("forget quality (KS p-value)", forget_quality),),
        "corrected": (
            _beside_gold("forget quality (KS p-value)", forget_quality),
            _beside_gold("KS distance from gold", ks_distance),
            _beside_gold("JS from gold, per question", jensen_shannon),
        ),
    },
)
