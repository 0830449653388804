"""CLEAR (arXiv 2410.18057): names and captions of pictures, TOFU's questions in text, real faces, general knowledge.

Its own script scores likelihoods and overlap of free answers; multiple choice is how MMUnlearner (arXiv 2502.11051) and
those who follow it report CLEAR. Both are here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem
from unsee.evaluation.intervals import Cell, nothing
from unsee.evaluation.metrics.likelihoods import model_utility
from unsee.evaluation.metrics.records import Kept
from unsee.evaluation.protocols import published
from unsee.evaluation.protocols.base import Protocol, ProtocolQuestion, ProtocolReply, Scored, Whole
from unsee.evaluation.protocols.measured import (
    ACCURACY,
    PAPER_RECALL,
    PROBABILITY,
    RECALL,
    TRUTH,
    average,
    beside_gold,
    contrast,
    picked,
    rate,
    recital,
    taken,
)
from unsee.evaluation.protocols.wording import Mode, paper_first_letter, question_text

NAME = "clear"
TOKENS = {"caption": 300, "name": 300, "answer": 300, "classification": 50, "generation": 50}
TASK = 300  # questions per task, as published
TASKS: tuple[tuple[str, str], ...] = (
    ("retain", "caption"),
    ("retain", "name"),
    ("celebrity", "answer"),
    ("world", "answer"),
)  # of model utility


T = TypeVar("T")


def ask(data: BenchmarkData, mode: Mode, seed: int) -> tuple[ProtocolQuestion, ...]:
    """All questions: paper takes at most 300 of each task, drawn by the seed; corrected takes all.

    Pictures are those of the `_perturbed` configurations, which have false answers; TOFU's questions are in text.
    """
    groups: dict[tuple[str, str, bool], list[tuple[BenchmarkItem, str]]] = {}
    for item in data.items:
        for asked, what in _tasks(item):
            groups.setdefault((item.part, what, bool(item.images)), []).append((asked, what))
    found = []
    for place, group in groups.items():
        for item, what in _sampled(seed, f"clear/{place}", group, TASK) if mode == "paper" else group:
            text = question_text(NAME, item, mode)
            likely = item.kind == "generation" and bool(item.wrong)
            found.append(ProtocolQuestion(item, mode, text, TOKENS[what], what=what, contrast=likely))
    return tuple(found)


def _sampled(seed: int, what: str, items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, in their order; which ones, the seed and `what` decide."""
    if len(items) <= count:
        return list(items)
    places = sorted(random.Random(f"{seed}/{what}").sample(range(len(items)), count))
    return [items[place] for place in places]


def _tasks(item: BenchmarkItem) -> Iterator[tuple[BenchmarkItem, str]]:
    """A name and a real face are asked twice: as a choice, and freely."""
    if item.kind == "classification":
        yield item, "classification"
        yield replace(item, kind="generation"), "name" if item.part in ("forget", "retain") else "answer"
    elif not item.images:
        yield item, "generation"
    elif item.wrong:  # the plain configurations hold the same captions
        yield item, "caption"


# Scores ---------------------------------------------------------------------------------------------------------------


def _cell(replies: Sequence[ProtocolReply] | None, part: str, what: str) -> list[ProtocolReply]:
    return taken([r for r in replies or () if (r.part, r.what) == (part, what)])


def _paper_utility(model: Sequence[ProtocolReply], _: Sequence[ProtocolReply] | None) -> Cell:
    cells = [_cell(model, *task) for task in TASKS]
    return published.clear_utility(cells) if all(cells) else nothing()


def _utility(model: Sequence[ProtocolReply], _: Sequence[ProtocolReply] | None) -> Cell:
    cells = {task: _cell(model, *task) for task in TASKS}
    return model_utility(
        [
            Kept("/".join(task), reply.answer, recital(reply), contrast(reply))
            for task, replies in cells.items()
            for reply in replies
        ]
        if all(cells.values())
        else []
    )


def _paper_in_gold(of: Callable[[Sequence[ProtocolReply], Sequence[ProtocolReply]], Cell], name: str) -> Whole:
    def captions(model: Sequence[ProtocolReply], gold: Sequence[ProtocolReply] | None) -> Cell:
        return of(_cell(model, "forget", "caption"), _cell(gold, "forget", "caption"))

    return Whole("forget", "caption", name, captions)


FREE = ("caption", "name", "answer")

PROTOCOL = Protocol(
    benchmark=NAME,
    published="entity",
    ask=ask,
    scored={
        ("paper", "classification"): (Scored("accuracy", rate(picked(paper_first_letter)), "options"),),
        ("paper", "generation"): (PAPER_RECALL,),
        **{
            ("paper", what): (
                PAPER_RECALL,
                Scored(
                    "probability", average(published.clear_probability), "nothing" if what == "caption" else "options"
                ),
                Scored("truth ratio", published.clear_truth_ratio, "ungated"),
            )
            for what in FREE
        },
        ("corrected", "classification"): (ACCURACY,),
        ("corrected", "generation"): (RECALL,),
        **{("corrected", what): (RECALL, PROBABILITY, TRUTH) for what in FREE},
    },
    wholes={
        "paper": (
            Whole("retain", "all", "model utility", _paper_utility),
            _paper_in_gold(published.clear_forget_quality, "forget quality (KS p-value)"),
            _paper_in_gold(published.clear_likeness, "1 - JS of raw ratios"),
        ),
        "corrected": (
            Whole("retain", "all", "model utility", _utility),
            *beside_gold("caption"),
        ),
    },
)
