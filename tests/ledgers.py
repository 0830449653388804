"""Ledgers for tests: one with records in it, and what lies in its folder."""

from __future__ import annotations

from pathlib import Path

from unsee.requests.ledger import Ledger

CONTENT = {"text": "Zoë\u2028", "numbers": [0, -1.5e-7, 0.1, True, None], "nested": {"b": {}, "a": []}}


def filled(folder: Path, count: int = 8) -> Ledger:
    ledger = Ledger.open(folder, create=True)
    for i in range(count):
        ledger.append("note", {**CONTENT, "i": i})
    return ledger


def names_in(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}
