"""UMU-Bench (NeurIPS 2025 D&B): every fact asked with the picture and in text, and what both say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unsee.data.benchmarks.items import BenchmarkData
from unsee.evaluation.intervals import Cell, nothing
from unsee.evaluation.metrics import base
from unsee.evaluation.metrics.free_answers import joint_overlap_forget, joint_overlap_retain
from unsee.evaluation.protocols.base import Protocol, ProtocolQuestion, ProtocolReply, Scored, Whole
from unsee.evaluation.protocols.measured import (
    ACCURACY,
    CLOZE,
    OVERLAP,
    PAPER_OVERLAP,
    BothSides,
    OfBothSides,
    as_pairs,
    both_right,
    both_wrong,
    joint,
    named,
    picked,
    rate,
)
from unsee.evaluation.protocols.published import stemmed_rouge
from unsee.evaluation.protocols.wording import (
    Mode,
    chosen,
    paper_contained_to_stop,
    paper_nearest_option,
    paper_option_text,
    question_text,
)

NAME = "umu"
PARTS = ("forget", "retain", "celebrity")
TOKENS = {"classification": 50, "cloze": 50, "generation": 200}


def ask(data: BenchmarkData, mode: Mode, seed: int) -> tuple[ProtocolQuestion, ...]:
    """All questions, without shots; nothing is drawn."""
    return tuple(
        ProtocolQuestion(item, mode, question_text(NAME, item, mode), TOKENS[item.kind])
        for part in PARTS
        for item in data.items
        if item.part == part
    )


def paper_right(reply: ProtocolReply) -> bool:
    """A choice is read in two ways: strictly for the invented people, generously for celebrities."""
    return picked(paper_nearest_option if reply.part == "celebrity" else paper_option_text)(reply)


def paper_cloze(reply: ProtocolReply) -> bool:
    return paper_contained_to_stop(reply.given, reply.right)


def _paper_overlap(
    above: Callable[[float, float], float],
) -> OfBothSides:
    def measured(found: Sequence[BothSides]) -> Cell:
        values = []
        for pair in found:
            a, b = (stemmed_rouge(reply, None, "f") for reply in pair)
            values.append(above(a, b) / (a + b) if a + b else 0.0)  # published: not a number; its limit is 0
        return base.mean(values, [a.subject for a, _ in found]) if found else nothing()

    return measured


def _wholes(mode: Mode) -> tuple[Whole, ...]:
    rights: dict[str, Callable[[ProtocolReply], bool]] = {"classification": paper_right, "cloze": paper_cloze}
    if mode == "corrected":
        rights = {"classification": picked(chosen), "cloze": named}
    retain, forget = _paper_overlap(lambda a, b: 2 * a * b), _paper_overlap(lambda a, b: a * a + b * b)
    if mode == "corrected":
        retain, forget = (
            lambda found: joint_overlap_retain(as_pairs(found)),
            lambda found: joint_overlap_forget(as_pairs(found)),
        )
    rows = [joint("forget", what, "AccF, both wrong", both_wrong(right)) for what, right in rights.items()]
    rows.append(joint("forget", "generation", "RLF, ROUGE-L of either", forget))
    for part in ("retain", "celebrity"):
        rows += [joint(part, what, "AccR, both right", both_right(right)) for what, right in rights.items()]
        rows.append(joint(part, "generation", "RLR, ROUGE-L of both", retain))
    return tuple(rows)


PROTOCOL = Protocol(
    benchmark=NAME,
    published="entity",
    ask=ask,
    scored={
        ("paper", "classification"): (Scored("accuracy", rate(paper_right), "options"),),
        ("paper", "cloze"): (Scored("cloze", rate(paper_cloze), "nothing"),),
        ("paper", "generation"): PAPER_OVERLAP[2:3],
        ("corrected", "classification"): (ACCURACY,),
        ("corrected", "cloze"): (CLOZE,),
        ("corrected", "generation"): OVERLAP[2:3],
    },
    wholes={"paper": _wholes("paper"), "corrected": _wholes("corrected")},
)
