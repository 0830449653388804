"""One measured share with its interval, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unsee.errors import BadInput

UNSCORED = "–"


@dataclass(frozen=True)
class Cell:
    """A share of answers as a fraction from 0 to 1.

    Attributes:
        value: None if nothing was scored.
        low: lower end of the 95% interval, clustered by subject; None if there is none.
        high: upper end.
        n: how many answers stand behind it.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0

    @staticmethod
    def parse(raw: object, where: str) -> Cell:
        """A cell of results.json; an absent one (None) is unscored.

        Raises:
            BadInput: not an object with `value`, `low`, `high` (fractions or null) and `n`.
        """
        if raw is None:
            return Cell()
        if not isinstance(raw, Mapping):
            raise BadInput(f"{where}: expected an object with value, low, high and n; run `unsee evaluate` again")
        n = raw.get("n", 0)
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise BadInput(f"{where}.n: expected a whole number, found {n!r}; run `unsee evaluate` again")
        value, low, high = (_fraction(raw.get(key), f"{where}.{key}") for key in ("value", "low", "high"))
        return Cell(value, low, high, n)

    @property
    def percent(self) -> str:
        return UNSCORED if self.value is None else f"{100 * self.value:.1f}%"

    @property
    def ends(self) -> tuple[float, float] | None:
        """The 95% interval as fractions, None if there is none."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return self.low, self.high

    @property
    def interval(self) -> str:
        """The 95% interval in percent without a unit; empty if there is none."""
        return "" if self.ends is None else f"{100 * self.ends[0]:.1f}–{100 * self.ends[1]:.1f}"

    @property
    def words(self) -> str:
        return f"{self.percent} [{self.interval}]" if self.interval else self.percent


def _fraction(raw: Any, where: str) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= 1:
        raise BadInput(f"{where}: expected a fraction from 0 to 1 or null, found {raw!r}; run `unsee evaluate` again")
    return float(raw)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return UNSCORED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: float | None) -> str:
    if size is None:
        return UNSCORED
    mebibytes = size / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"
