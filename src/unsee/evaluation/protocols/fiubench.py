"""FIUBench (arXiv 2411.03554): invented faces; every question has the picture, so only what is seen can be forgotten.

Likelihood, ROUGE and truth ratio of the questions as taught; keywords in answers to the same questions in other words.
Not here: the score of a paid judge, and membership attacks, which are `unsee list metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem
from unsee.evaluation.protocols.base import Protocol, ProtocolQuestion, Scored
from unsee.evaluation.protocols.measured import PAPER_RECALL, PROBABILITY, RECALL, TRUTH, average, beside_gold
from unsee.evaluation.protocols.wording import Mode, keywords_named, paper_keywords, question_text

NAME = "fiubench"
TOKENS = 50


def ask(data: BenchmarkData, mode: Mode, seed: int) -> tuple[ProtocolQuestion, ...]:
    """All questions as taught; then in other words, which the published script does for the forget set only."""
    found = []
    for item in data.items:
        text = question_text(NAME, item, mode)
        found.append(ProtocolQuestion(item, mode, text, TOKENS, what="generation", contrast=bool(item.wrong)))
        if item.part == "forget" or mode == "corrected":
            found += [
                ProtocolQuestion(other, mode, other.question, TOKENS, what="rephrased") for other in _rephrased(item)
            ]
    return tuple(found)


def _rephrased(item: BenchmarkItem) -> Iterator[BenchmarkItem]:
    for number, words in enumerate(item.rephrased, start=1):
        yield replace(item, question=words, key=f"{item.key}.{number}")


PAPER_KEYWORDS = Scored("keywords (exact match)", average(lambda r: paper_keywords(r.given, r.keywords)), "stand-in")
KEYWORDS = Scored("keywords (exact match)", average(lambda r: keywords_named(r.given, r.keywords)), "stand-in")


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
    wholes={"paper": beside_gold("generation")[:1], "corrected": beside_gold("generation")},
)
