"""Scores: pure functions of prediction lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from unsee.data.examples import SPLITS
from unsee.evaluation.answers import is_empty, mentioned, repeats
from unsee.evaluation.intervals import Cell, share
from unsee.journal import Line

RECOGNITION = ("identity", "fact")  # what a right answer takes recognition for


def score(lines: Sequence[Line], names: Sequence[str], choices: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """All measures of one model.

    Args:
        lines: its predictions.
        names: every name an identity question could be answered with.
        choices: question text -> its closed list of answers, where there is one.

    Returns:
        `forget`, `retain` (identity and facts asked from the picture), `names`, `facts` (the same, apart), each per
        split; `attributes` on test pictures; `text`; `misattribution`; `health`. Fractions 0-1 with intervals.
    """

    def rate(keep: Callable[[Line], bool]) -> Cell:
        kept = [line for line in lines if keep(line)]
        return share([line["correct"] for line in kept], [line["subject"] for line in kept])

    def splits(part: str, probes: tuple[str, ...]) -> dict[str, Cell]:
        return {
            name: rate(lambda x, s=name: x["set"] == part and x["split"] == s and x["probe"] in probes)  # type: ignore[misc]
            for name in SPLITS
        }

    def attribute(part: str) -> Cell:
        split = "strangers" if part == "strangers" else "test"
        return rate(lambda x: x["set"] == part and x["split"] == split and x["probe"] == "attribute")

    parts = ("forget", "retain")
    return {
        "forget": splits("forget", RECOGNITION),
        "retain": splits("retain", RECOGNITION),
        "names": {part: splits(part, ("identity",)) for part in parts},
        "facts": {part: splits(part, ("fact",)) for part in parts},
        "attributes": {part: attribute(part) for part in (*parts, "strangers")},
        "text": {part: rate(lambda x, p=part: x["set"] == p and x["split"] == "text") for part in parts},  # type: ignore[misc]
        "misattribution": {"forget": misattribution(lines, names)},
        "health": health(lines, names, choices)
        | {part: health([x for x in lines if x["set"] == part], names, choices) for part in parts},
    }


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

    def off_list(line: Line) -> bool:
        options = names if line["probe"] == "identity" else choices.get(line["question"], ())
        return bool(options) and mentioned(line["prediction"], (*options, line["answer"])) is None

    signs: dict[str, Callable[[Line], bool]] = {
        "empty": lambda line: is_empty(line["prediction"]),
        "repeated": lambda line: repeats(line["prediction"]),
        "off_list": off_list,
    }
    subjects = [line["subject"] for line in asked]
    return {sign: share([shows(line) for line in asked], subjects) for sign, shows in signs.items()}
