"""Readable tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from unsee.progress import Terminal

output = Terminal()

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("forget set: names and facts, test pictures", ("forget", "test")),
    ("  validation pictures", ("forget", "validation")),
    ("  training pictures", ("forget", "train")),
    ("retain set: names and facts, test pictures", ("retain", "test")),
    ("  names", ("names", "retain", "test")),
    ("  facts", ("facts", "retain", "test")),
    ("visible attributes: forget set", ("attributes", "forget")),
    ("  retain set", ("attributes", "retain")),
    ("  strangers", ("attributes", "strangers")),
    ("text questions: forget set", ("text", "forget")),
    ("  retain set", ("text", "retain")),
    ("same wrong name for one target", ("misattribution", "forget")),
    ("answers off the list (forget set)", ("health", "forget", "off_list")),
)


def results_table(results: Mapping[str, Any]) -> Table:
    """One column per model; percentages with their 95 % intervals."""
    roles = [role for role in results if role != "provenance"]
    table = Table(box=box.SIMPLE_HEAD, title="right answers in % (95 % interval, clustered by subject)")
    table.add_column("")
    for role in roles:
        table.add_column(role, justify="right")
    for label, path in ROWS:
        table.add_row(label, *(_cell(_at(results[role], path)) for role in roles))
    seconds = [results[role]["cost"]["seconds"] for role in roles]
    table.add_row("seconds to make", *("–" if s is None else f"{s:.1f}" for s in seconds))
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")  # a command that is cut short mends nothing
    for row in rows:
        table.add_row(*row)
    return table


def _at(value: Any, path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        value = value[key]
    found: Mapping[str, Any] = value
    return found


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "–"
    return f"{100 * cell['value']:5.1f} [dim]({100 * cell['low']:.0f}–{100 * cell['high']:.0f})[/dim]"
