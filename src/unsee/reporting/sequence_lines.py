"""What `sequence.jsonl` and `sequence.json` hold, checked line by line.

    {"arm": "nscvf", "order": 0, "request": 3, "subject": "alba-vance", "seconds": 41.5,
     "targets": {"alba-vance": [2, 80], ...}, "retain": {...}, "attributes": {...}, "text": {...},
     "free": {"blocks.1": 0.91, ...}, "drift": {"blocks.1": 0.02, ...}, "warnings": []}

See docs/sequence.md. Lines may stand in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unsee.data.rows import TextRows, open_table, short
from unsee.errors import BadInput
from unsee.evaluation.sequence import GROUPS, Counts, Course, Stage

LINES, ABOUT = "sequence.jsonl", "sequence.json"
KEYS = ("arm", "order", "request", "subject", "seconds", "targets", *GROUPS, "free", "drift", "warnings")
AGAIN = "run the sequence again with --resume"
ASKED_MOST, LARGEST = 10**6, 1e12  # answers about one subject, seconds or drift: more is damage


@dataclass(frozen=True)
class SequenceLine:
    """One line; `where` names it in messages, `asked` has everybody who stands in it, by group."""

    where: str
    arm: str
    order: int | None
    stage: Stage
    asked: Mapping[str, frozenset[str]]


def read_sequence(folder: Path) -> tuple[list[Course], Mapping[str, Any]]:
    """Every arm in every order, and the `settings` and `provenance` beside them.

    Raises:
        BadInput: a file is missing, a line is malformed or cut short, a request is missing or stands there twice, or
            somebody stands in one line and not in another.
    """
    path = Path(folder) / LINES
    rows = cast(TextRows, open_table(str(path)))
    lines = [_line(row, f"{path}, row {number}") for row, number in zip(rows.cells, rows.numbers, strict=True)]
    if not any(line.arm not in ("vanilla", "gold") for line in lines):
        raise BadInput(f"{path}: no request of any method stands there; {AGAIN}")
    _same_people(lines)
    return _courses(path, lines), _about(Path(folder) / ABOUT)


def _about(path: Path) -> Mapping[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({' '.join(str(error).split())}); {AGAIN}") from error
    if not isinstance(about, dict) or not all(isinstance(about.get(key), dict) for key in ("settings", "provenance")):
        raise BadInput(f"{path}: expected an object with the objects 'settings' and 'provenance'; {AGAIN}")
    return about


# Lines together -------------------------------------------------------------------------------------------------------


def _same_people(lines: Sequence[SequenceLine]) -> None:
    """Raises BadInput if two lines ask about different people, or a request names somebody nobody asks about."""
    for group in ("targets", *GROUPS):
        known = [line for line in lines if line.asked[group]]
        for line in known[1:]:
            first, people = known[0].where, known[0].asked[group]
            if extra := sorted(line.asked[group] - people):
                raise BadInput(f"{line.where}: {group}: '{extra[0]}' does not stand in {first}; {AGAIN}")
            if lost := sorted(people - line.asked[group]):
                raise BadInput(f"{line.where}: {group}: '{lost[0]}' of {first} is missing; {AGAIN}")
    for line in lines:
        if unknown := sorted(set(line.stage.subjects) - line.asked["targets"]):
            raise BadInput(f"{line.where}: unknown target '{unknown[0]}': 'targets' asks nothing about it; {AGAIN}")
        if both := sorted(line.asked["targets"] & line.asked["retain"]):
            raise BadInput(f"{line.where}: '{both[0]}' stands among targets and retain; keep only those nobody names")


def _courses(path: Path, lines: Sequence[SequenceLine]) -> list[Course]:
    golds = [line for line in lines if line.arm == "gold"]
    if len(golds) > 1:
        raise BadInput(f"{golds[1].where}: a second gold model; keep one of the two lines")
    arms: dict[tuple[str, int | None], dict[int, SequenceLine]] = {}
    for line in lines:
        if line.arm != "gold":
            own, number = arms.setdefault((line.arm, line.order), {}), line.stage.request
            if number in own:
                raise BadInput(f"{line.where}: {_named(line)} stands in {own[number].where} already; keep one of them")
            own[number] = line
    vanillas = {order: own for (arm, order), own in arms.items() if arm == "vanilla"}
    requests = golds[0].stage.request if golds else max(line.stage.request for line in lines)
    found: list[Course] = []
    sequence: dict[tuple[int, int], SequenceLine] = {}
    for (arm, order), own in arms.items():
        if arm == "vanilla":
            continue
        assert order is not None  # a line without one is vanilla's or gold's
        for number in range(1, max(requests, *own) + 1):
            if number not in own:
                raise BadInput(f"{path}: {arm}, order {order}: request {number} of {requests} is missing; {AGAIN}")
            if number > requests:
                raise BadInput(f"{own[number].where}: request {number}, but gold was made for {requests}; {AGAIN}")
            other = sequence.setdefault((order, number), own[number])
            if other.stage.subjects != own[number].stage.subjects:
                raise BadInput(f"{own[number].where}: subject differs from {other.where}, the same order; {AGAIN}")
        _each_once(own)
        vanilla = vanillas.get(order) or (next(iter(vanillas.values())) if len(vanillas) == 1 else {})
        if 0 not in vanilla:
            raise BadInput(f"{path}: order {order}: request 0 of arm 'vanilla' is missing; {AGAIN}")
        stages = tuple(own[number].stage for number in range(1, requests + 1))
        found.append(Course(arm, order, vanilla[0].stage, stages, golds[0].stage if golds else None))
    return found


def _each_once(own: Mapping[int, SequenceLine]) -> None:
    """Raises BadInput if a request names nobody or somebody again, or if no request names one of the targets."""
    named: dict[str, SequenceLine] = {}
    for _, line in sorted(own.items()):
        if not line.stage.subjects:
            raise BadInput(f"{line.where}: subject: expected whom request {line.stage.request} names, found nobody")
        for subject in line.stage.subjects:
            if subject in named:
                raise BadInput(f"{line.where}: '{subject}' was requested in {named[subject].where} already; {AGAIN}")
            named[subject] = line
    if never := sorted(line.asked["targets"] - named.keys()):
        raise BadInput(f"{line.where}: target '{never[0]}' is named by no request of {line.arm}; {AGAIN}")


def _named(line: SequenceLine) -> str:
    return f"{line.arm}, order {line.order}, request {line.stage.request}"


# One line -------------------------------------------------------------------------------------------------------------


def _line(row: Mapping[str, Any], where: str) -> SequenceLine:
    for key in KEYS:
        if key not in row:
            raise BadInput(f"{where}: the key '{key}' is missing; {AGAIN}")
    arm, order, request, subject = row["arm"], row["order"], row["request"], row["subject"]
    if not _name(arm):
        raise BadInput(f"{where}: arm: expected a name, found {short(arm)}; {AGAIN}")
    if not _whole(order) and not (order is None and arm in ("vanilla", "gold")):
        raise BadInput(f"{where}: order: expected a whole number from 0, found {short(order)}; {AGAIN}")
    if not _whole(request) or (request == 0) != (arm == "vanilla"):
        expected = "0" if arm == "vanilla" else "a whole number from 1"
        raise BadInput(f"{where}: request of arm '{arm}': expected {expected}, found {short(request)}; {AGAIN}")
    named = [] if subject is None else subject if isinstance(subject, list) else [subject]
    if not all(map(_name, named)):
        raise BadInput(f"{where}: subject: expected a name, a list of names or null, found {short(subject)}; {AGAIN}")
    said = row["warnings"]
    if not isinstance(said, list) or not all(map(_name, said)):
        raise BadInput(f"{where}: warnings: expected a list of texts of one line, found {short(said)}; {AGAIN}")
    seconds = row["seconds"]
    if not (seconds is None or _number(seconds)):
        raise BadInput(f"{where}: seconds: expected a number from 0 or null, found {short(seconds)}; {AGAIN}")
    groups = {group: _object(row, group, where) for group in ("targets", *GROUPS)}
    counts = {group: _counts(found, f"{where}: {group}") for group, found in groups.items()}
    if not groups["targets"]:
        raise BadInput(f"{where}: targets: expected right and asked of every target, found none; {AGAIN}")
    free = _numbers(_object(row, "free", where), f"{where}: free", 1.0)
    drift = _numbers(_object(row, "drift", where), f"{where}: drift", LARGEST)
    who = tuple(sorted(named)) if arm not in ("vanilla", "gold") else ()
    stage = Stage(request, who, seconds, counts, free, drift, tuple(said))
    return SequenceLine(where, arm, order, stage, {group: frozenset(found) for group, found in groups.items()})


def _object(row: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = row[key]
    if found is not None and not isinstance(found, dict):
        raise BadInput(f"{where}: {key}: expected an object or null, found {short(found)}; {AGAIN}")
    if unreadable := [name for name in found or {} if not _name(name)]:
        raise BadInput(f"{where}: {key}: expected names of one line, found {short(unreadable[0])}; {AGAIN}")
    return found or {}


def _counts(raw: Mapping[str, Any], where: str) -> Counts:
    """Sorted by subject; who was asked nothing is left out."""
    for subject, counts in raw.items():
        pair = isinstance(counts, list) and len(counts) == 2 and all(map(_whole, counts))
        if not pair or not counts[0] <= counts[1] <= ASKED_MOST:
            raise BadInput(f"{where}: '{subject}': expected [right, asked], found {short(counts)}; {AGAIN}")
    return {subject: (raw[subject][0], raw[subject][1]) for subject in sorted(raw) if raw[subject][1]}


def _numbers(raw: Mapping[str, Any], where: str, most: float) -> Mapping[str, float]:
    for layer, value in raw.items():
        if not _number(value) or value > most:
            expected = "a share from 0 to 1" if most == 1 else "a number from 0"
            raise BadInput(f"{where}: '{layer}': expected {expected}, found {short(value)}; {AGAIN}")
    return {layer: float(raw[layer]) for layer in sorted(raw)}


def _name(value: object) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST
