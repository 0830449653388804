"""What a model made of every question, as lines on disk, and what follows from them: scores, records, measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum
from typing import Any

from unsee.data.examples import SPLITS
from unsee.evaluation.answers import is_empty, mentioned, repeats
from unsee.evaluation.engine import EngineReply
from unsee.evaluation.intervals import Cell, share
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
from unsee.evaluation.questions import EXPOSED, RECOGNITION, SETS, UNMEASURED, MeasuredQuestion
from unsee.evaluation.verdict import is_role
from unsee.journal import Line

GOLD, REFERENCE = "gold", "reference"
DIGITS = 6  # behind the point, of values written down
Cells = dict[str, dict[str, Cell]]
Records = dict[type, dict[str, list[Any]]]


# Scores ---------------------------------------------------------------------------------------------------------------


def score(lines: Sequence[Line], names: Sequence[str], choices: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """All measures of one model.

    Args:
        lines: its predictions.
        names: every name an identity question could be answered with.
        choices: question text -> its closed list of answers, where there is one.

    Returns:
        `forget`, `retain` (identity and facts asked from the picture), `names`, `facts` (the same, apart), each per
        split; `attributes` on test pictures; `text`; `bystanders`, all together as `test` and each of their `kinds`;
        `misattribution`; `health`. Fractions 0-1 with intervals, clustered by subject, or by picture where all answers
        are about one subject.
    """

    def rate(keep: Callable[[Line], bool]) -> Cell:
        kept = [line for line in lines if keep(line)]
        return share([line["correct"] for line in kept], _clusters(kept))

    def splits(part: str, probes: tuple[str, ...]) -> dict[str, Cell]:
        return {
            name: rate(lambda x, s=name: x["set"] == part and x["split"] == s and x["probe"] in probes)  # type: ignore[misc]
            for name in SPLITS
        }

    def attribute(part: str) -> Cell:
        split = "strangers" if part == "strangers" else "test"
        return rate(lambda x: x["set"] == part and x["split"] == split and x["probe"] == "attribute")

    parts = ("forget", "retain")
    kinds = dict.fromkeys(x["key"] for x in lines if x["set"] == "bystanders" and x["key"])
    return {
        "forget": splits("forget", RECOGNITION),
        "retain": splits("retain", RECOGNITION),
        "names": {part: splits(part, ("identity",)) for part in parts},
        "facts": {part: splits(part, ("fact",)) for part in parts},
        "attributes": {part: attribute(part) for part in (*parts, "strangers")},
        "text": {part: rate(lambda x, p=part: x["set"] == p and x["split"] == "text") for part in parts},  # type: ignore[misc]
        "bystanders": {
            "test": rate(lambda x: x["set"] == "bystanders"),
            "kinds": {kind: rate(lambda x, k=kind: x["set"] == "bystanders" and x["key"] == k) for kind in kinds},  # type: ignore[misc]
        },
        "misattribution": {"forget": misattribution(lines, names)},
        "health": health(lines, names, choices)
        | {part: health([x for x in lines if x["set"] == part], names, choices) for part in parts},
    }


def _clusters(lines: Sequence[Line]) -> list[str]:
    """What answers hang together by: their subject, or their picture where all are about one subject."""
    by_subject = [line["subject"] for line in lines]
    return by_subject if len(set(by_subject)) > 1 else [str(line["image"]) for line in lines]


def misattribution(lines: Sequence[Line], names: Sequence[str]) -> dict[str, Any]:
    """The largest share of one target's test pictures that are given the same wrong name.

    Returns:
        a cell (n = test pictures of that target), with `subject` and the name it is `named`.
    """
    worst: dict[str, Any] = {**share([], []), "subject": None, "named": None}
    asked: dict[str, list[Line]] = {}
    for line in lines:
        if line["set"] == "forget" and line["split"] == "test" and line["probe"] == "identity":
            asked.setdefault(line["subject"], []).append(line)
    for subject, group in asked.items():
        said = [mentioned(line["prediction"], names) for line in group]
        wrong = Counter(name for name, line in zip(said, group, strict=True) if name and not line["correct"])
        named, _ = wrong.most_common(1)[0] if wrong else (None, 0)
        cell = share([name is not None and name == named for name in said], [subject] * len(said))
        if worst["value"] is None or (cell["value"] or 0.0) > worst["value"]:
            worst = {**cell, "subject": subject, "named": named}
    return worst


def health(lines: Sequence[Line], names: Sequence[str], choices: dict[str, tuple[str, ...]]) -> dict[str, Cell]:
    """Signs of collapse over test, text and stranger questions: empty, repeating, or off the list of answers."""
    asked = [line for line in lines if line["split"] in ("test", "text", "strangers")]
    signs = collapse_signs(names, choices)
    return {sign: share([shows(line) for line in asked], _clusters(asked)) for sign, shows in signs.items()}


def collapse_signs(names: Sequence[str], choices: Mapping[str, tuple[str, ...]]) -> dict[str, Callable[[Line], bool]]:
    """Whether an answer shows a sign of collapse, by sign; arguments as of `score`."""

    def off_list(line: Line) -> bool:
        options = names if line["probe"] == "identity" else choices.get(line["question"], ())
        return bool(options) and mentioned(line["prediction"], (*options, line["answer"])) is None

    return {
        "empty": lambda line: is_empty(line["prediction"]),
        "repeated": lambda line: repeats(line["prediction"]),
        "off_list": off_list,
    }


# Records and measures -------------------------------------------------------------------------------------------------


def line(asked: MeasuredQuestion, reply: EngineReply, gradient_norm: float | None) -> Line:
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


def measures_of(lines: Mapping[str, Sequence[Line]], roles: Sequence[str]) -> dict[str, Cells]:
    """Every measure of some roles, given the lines of all: those of a gold model and of the reference stand beside."""
    golds = [role for role in roles if is_role(role, "gold")]
    gold = GOLD if GOLD in golds else next(iter(golds), None)
    by_request = {x["request"]: x for x in lines.get(REFERENCE, ()) if REFERENCE not in roles}
    results = {}
    for role in roles:
        found = records(lines[role], by_request)
        if gold is not None and role != gold:
            found[Beside] = dict(beside(lines[role], lines[gold]))
        results[role] = measures(found)
    return results


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
