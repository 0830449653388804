"""Requests one after another: a method that is quick, and made-up sequences as the experiment writes them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unsee.methods.nscvf import NullSpaceConstrainedForgetting

NSCVF = NullSpaceConstrainedForgetting(
    steps=12, learning_rate=5e-4, forget_pictures=3, retain_pictures=6, rule="energy", threshold=0.05
)

Line = dict[str, Any]
ABOUT: dict[str, Any] = {
    "settings": {"method": {"nscvf": {"threshold": 0.1}}},
    "provenance": {
        "created": "2026-11-14T10:31:00+00:00",
        "command": "unsee <b> & more",
        "commit": "0123abcdef",
    },
}


def line(arm: str, request: int, subject: str | None = None, order: int = 0, **others: Any) -> Line:
    """One line in which nothing was measured but what is given."""
    nothing = dict.fromkeys(("seconds", "targets", "retain", "attributes", "text", "free", "drift"))
    return {"arm": arm, "order": order, "request": request, "subject": subject, **nothing, "warnings": [], **others}


def write(folder: Path, lines: Iterable[Mapping[str, Any]], about: Any = ABOUT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sequence.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "sequence.json").write_text(json.dumps(about))
    return folder


def small() -> list[Line]:
    """Two requests, a then b, of ten questions each; r stays. Hand-worked numbers stand in the tests."""

    def counts(a: int, b: int, r: int, s: int) -> dict[str, Any]:
        return {"targets": {"a": [a, 10], "b": [b, 10]}, "retain": {"r": [r, 10], "s": [s, 10]}}

    return [
        line("vanilla", 0, **counts(10, 9, 10, 10)),
        line("gold", 2, **counts(1, 0, 10, 10)),
        line("nscvf", 1, "a", seconds=4.0, **counts(1, 9, 10, 9)),
        line("nscvf", 2, "b", seconds=6.0, free={"x": 0.5, "y": 0.25}, **counts(3, 1, 10, 8)),
    ]


# arm -> (still right after its own request, rise per later request, lost of others per request, share of free
# directions used up per request, seconds, seconds more per request)
WAYS: dict[str, tuple[float, float, float, float | None, float, float]] = {
    "cvf": (0.05, 0.002, 0.009, None, 30.0, 0.0),
    "graddiff": (0.02, 0.0, 0.016, None, 95.0, 0.4),
    "nscvf": (0.08, 0.0003, 0.0003, 0.02, 41.0, 0.05),
}


def long(
    requests: int = 40,
    orders: Mapping[str, int] | None = None,
    stay: int = 20,
    asked: int = 80,
    ways: Mapping[str, tuple[float, float, float, float | None, float, float]] = WAYS,
) -> list[Line]:
    """Three arms as one would expect them; the number of orders by arm."""
    chance = random.Random(7)
    targets = [f"person-{number:02d}" for number in range(requests)]
    others = [f"other-{number:02d}" for number in range(stay)]
    left = {subject: chance.uniform(0.0, 0.12) for subject in targets}
    lost = {subject: chance.uniform(0.4, 1.6) for subject in others}

    def right(share: float, questions: int = asked) -> list[int]:
        return [round(questions * min(1.0, max(0.0, share))), questions]

    def counts(score: Callable[[str], float], loss: float) -> dict[str, Any]:
        seen = {subject: right(0.97 - loss / 2 + chance.gauss(0, 0.02), 40) for subject in (*targets, *others)}
        return {
            "targets": {subject: right(score(subject) + chance.gauss(0, 0.01)) for subject in targets},
            "retain": {subject: right(0.97 - loss * lost[subject] + chance.gauss(0, 0.004)) for subject in others},
            "attributes": seen,
            "text": {subject: [20, 20] for subject in (*targets, *others)},
        }

    lines = [line("vanilla", 0, **counts(lambda _: 0.96, 0.0)), line("gold", requests, **counts(left.__getitem__, 0.0))]
    for arm, (own, rise, loss, used, time, slower) in ways.items():
        for order in range((orders or {"nscvf": 3}).get(arm, 1)):
            sequence = random.Random(order).sample(targets, requests)
            for number, subject in enumerate(sequence, start=1):
                since = {one: number - place for place, one in enumerate(sequence, start=1) if place <= number}

                def score(one: str, since: Mapping[str, int] = since, own: float = own, rise: float = rise) -> float:
                    return own - 0.06 + left[one] + rise * since[one] if one in since else 0.95

                free = None if used is None else {"blocks.1": 0.97 - used * number, "blocks.2": 0.98 - 0.01 * number}
                tight = free is not None and min(free.values()) < 0.3
                lines.append(
                    line(
                        arm, number, subject, order,
                        seconds=time + slower * number + chance.uniform(0, 2),
                        free=free,
                        drift={"blocks.1": 0.002 * number, "blocks.2": 0.001 * number},
                        warnings=["little room left in blocks.1: plan to re-base"] if tight else [],
                        **counts(score, loss * number),
                    )
                )  # fmt: skip
    return lines
