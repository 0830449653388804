"""One part of a comparison's page, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unsee.reporting.cells import UNSCORED
from unsee.reporting.drawing import Drawing

WIDTH = 5.2  # inches
Row = tuple[str, ...]
Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One table with its figures.

    Attributes:
        title: what is compared.
        text: how to read it.
        head, rows: as they are shown; the first column names the row.
        folded: whether a reader opens it on demand.
        brief: the columns for which a narrow terminal has room; none: all.
    """

    title: str
    text: str
    head: Row
    rows: tuple[Row, ...]
    drawings: tuple[Drawing, ...] = ()
    folded: bool = False
    brief: tuple[int, ...] = ()

    def short(self) -> tuple[Row, tuple[Row, ...]]:
        """Head and rows for a terminal."""
        kept = self.brief or range(len(self.head))
        return tuple(self.head[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in self.rows)


def percent(value: float | None) -> str:
    return UNSCORED if value is None else f"{100 * value + 0.0:.1f}"


def interval(cell: Measured | None) -> str:
    """A share in percent with its 95 % interval."""
    if cell is None or cell["value"] is None:
        return UNSCORED
    return f"{percent(cell['value'])} [{100 * cell['low']:.0f}–{100 * cell['high']:.0f}]"


def spread(value: Measured) -> str:
    """Mean in points, with the standard deviation over runs if there are several."""
    if value["mean"] is None or value["sd"] is None:
        return percent(value["mean"])
    return f"{percent(value['mean'])} ± {percent(value['sd'])}"


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
