"""What a model made of every request, as lines on disk, and the records and measures that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from typing import Any

from unsee.evaluation.engine import Reply
from unsee.evaluation.engine_requests import EXPOSED, SETS, UNMEASURED, Asked
from unsee.evaluation.intervals import Cell
from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.metrics.records import (
    Beside,
    Contrast,
    FreeAnswer,
    Kept,
    MembershipRecord,
    Pair,
    Ranking,
    Recital,
)
from unsee.journal import Line

DIGITS = 6  # behind the point, of values written down
Cells = dict[str, dict[str, Cell]]
Records = dict[type, dict[str, list[Any]]]


def line(asked: Asked, reply: Reply, gradient_norm: float | None) -> Line:
    """One request and its reply; only what was taken stands in it."""
    e, right = asked.example, reply.weighed[asked.example.answer]
    found: Line = {
        "request": asked.number,
        "set": asked.part,
        "subject": e.subject,
        "probe": e.probe,
        "key": e.key,
        "question": e.question,
        "answer": e.answer,
        "image": e.image.label if e.image is not None else None,
    }
    if asked.part in SETS:
        found["options"] = list(asked.options)
    if asked.spoken:
        found["given"] = reply.given
    if asked.part == UNMEASURED:
        return found
    found["log_probs"] = _short(right.log_probs)
    found["hits"] = list(right.hits)
    if asked.part in EXPOSED:
        found |= {"expected": _short(right.expected), "spread": _short(right.spread)}
    if asked.wrong:
        tokens = {answer: reply.weighed[answer].log_probs for answer in asked.wrong}
        found["wrong"] = {answer: round(fsum(t) / len(t), DIGITS) for answer, t in tokens.items()}
    if asked.names:
        found["names"] = {name: round(fsum(reply.weighed[name].log_probs), DIGITS) for name in asked.names}
    if gradient_norm is not None:
        found["gradient_norm"] = round(gradient_norm, DIGITS)
    return found


def records(lines: Sequence[Line], reference: Mapping[int, Line]) -> Records:
    """Type of record -> set -> records.

    Args:
        reference: by request, what a reference model made of `members` and `strangers`; may be empty.
    """
    found: Records = {}

    def add(part: str, *new: Any) -> None:
        for record in new:
            found.setdefault(type(record), {}).setdefault(part, []).append(record)

    text = {(x["subject"], x["key"]): x for x in lines if x["set"].endswith("_text") and x["key"]}
    for x in lines:
        part, contrast = x["set"], _contrast(x)
        if part == UNMEASURED:
            continue
        if part in EXPOSED:
            beside = reference.get(x["request"])
            add("forget", _membership(x, None if beside is None else _mean(beside["log_probs"])))
            continue
        answer, recital = _answer(x), _recital(x)
        add(part, answer, recital)
        if contrast is not None:
            add(part, contrast)
        if "names" in x:
            add(part, Ranking(x["subject"], x["answer"], x["names"]))
        if part in ("forget", "retain") and (x["subject"], x["key"]) in text:
            add(part, Pair(answer, _answer(text[x["subject"], x["key"]])))
        if part in ("retain", "retain_text") and contrast is not None:
            add("retain", Kept(part, answer, recital, contrast))
    return found


def beside(lines: Sequence[Line], gold: Sequence[Line]) -> dict[str, list[Beside]]:
    """Set -> contrasts of a model and of gold, request by request."""
    known = {x["request"]: x for x in gold}
    found: dict[str, list[Beside]] = {}
    for x in lines:
        model, other = _contrast(x), _contrast(known[x["request"]])
        if model is not None and other is not None:
            found.setdefault(x["set"], []).append(Beside(model, other))
    return found


def measures(found: Records) -> Cells:
    """Every measure of every set that could be scored; what was not taken is absent."""
    cells: Cells = {}
    for name, measure in MEASURES.items():
        of_sets = {part: measure(some) for part, some in found.get(measure.reads, {}).items()}
        scored = {part: of_sets[part] for part in SETS if part in of_sets and of_sets[part]["n"]}
        if scored:
            cells[name] = scored
    return cells


def _answer(x: Line) -> FreeAnswer:
    return FreeAnswer(x["subject"], x["given"], x["answer"], tuple(x["options"]))


def _recital(x: Line) -> Recital:
    return Recital(x["subject"], tuple(x["log_probs"]), tuple(x["hits"]))


def _contrast(x: Line) -> Contrast | None:
    return Contrast(x["subject"], _mean(x["log_probs"]), tuple(x["wrong"].values())) if "wrong" in x else None


def _membership(x: Line, reference: float | None) -> MembershipRecord:
    return MembershipRecord(
        subject=x["subject"],
        member=x["set"] == "members",
        text=x["answer"],
        log_probs=tuple(x["log_probs"]),
        expected=tuple(x["expected"]),
        spread=tuple(x["spread"]),
        reference=reference,
        gradient_norm=x.get("gradient_norm"),
    )


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _short(values: Iterable[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
