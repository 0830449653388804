"""What pages are made of: scores and how numbers are written, figures as deterministic SVG, sections, templates."""

from __future__ import annotations

import html
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from unsee.errors import BadInput
from unsee.evaluation.results import AGAIN

UNSCORED = "–"
WIDTH = 5.2  # inches
Row = tuple[str, ...]
Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
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
    def parse(raw: object, where: str) -> Score:
        """A cell of results.json; an absent one (None) is unscored.

        Raises:
            BadInput: not an object with `value`, `low`, `high` (fractions or null) and `n`.
        """
        if raw is None:
            return Score()
        if not isinstance(raw, Mapping):
            raise BadInput(f"{where}: expected an object with value, low, high and n; {AGAIN}")
        n = raw.get("n", 0)
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise BadInput(f"{where}.n: expected a whole number, found {n!r}; {AGAIN}")
        value, low, high = (_fraction(raw.get(key), f"{where}.{key}") for key in ("value", "low", "high"))
        return Score(value, low, high, n)

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


def finite(
    raw: object, where: str, expected: str, limits: tuple[float, float] = (-math.inf, math.inf), again: str = AGAIN
) -> float:
    """A finite number that a file holds.

    Raises:
        BadInput: something else, or one outside `limits`; the message says what was `expected` and how to get it.
    """
    low, high = limits
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not (math.isfinite(raw) and low <= raw <= high):
        raise BadInput(f"{where}: expected {expected}, found {raw!r}; {again}")
    return float(raw)


def _fraction(raw: object, where: str) -> float | None:
    return None if raw is None else finite(raw, where, "a fraction from 0 to 1 or null", (0, 1))


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


def percent(value: float | None) -> str:
    return UNSCORED if value is None else f"{100 * value + 0.0:.1f}"


def interval(cell: Measured | None) -> str:
    """A share in percent with its 95 % interval."""
    if cell is None or cell["value"] is None:
        return UNSCORED
    return f"{percent(cell['value'])} [{100 * cell['low']:.0f}–{100 * cell['high']:.0f}]"


def spread(value: Measured, write: Callable[[float | None], str] = percent) -> str:
    """Mean in points; if there are several runs ± their standard deviation, and the worst in brackets."""
    if value["mean"] is None or value["sd"] is None:
        return write(value["mean"])
    return f"{write(value['mean'])} ± {write(value['sd'])} ({write(value['worst'])})"


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# Figures --------------------------------------------------------------------------------------------------------------

STYLE: Any = {  # Any: matplotlib types the keys, and differently from version to version
    "svg.hashsalt": "unsee",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a subject may be called "$x$"
    "font.family": "DejaVu Sans",  # comes with matplotlib, so lengths are the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": "#3a414b",
    "text.color": "#1d232b",
    "xtick.color": "#3a414b",
    "ytick.color": "#3a414b",
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
FONTS = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: file name without ending.
        group: the section it stands in: bars, features, history, ....
        alt: what it shows, in words.
        svg: the file's content.
    """

    name: str
    group: str
    caption: str
    alt: str
    svg: str

    @property
    def inline(self) -> str:
        """The SVG element alone, its ids made unique among several in one page."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{self.name}-", body)
        return body.strip()


@contextmanager
def _styled() -> Iterator[None]:
    """Our style alone, whatever matplotlibrc says; letters the font lacks are left to the browser."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def drawing(
    name: str, group: str, caption: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None]
) -> Drawing:
    """Paint one figure and keep it as SVG: the same input gives the same bytes on any day."""
    with _styled():
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        out = StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = out.getvalue().replace("'DejaVu Sans'", FONTS)
    description = f"<desc>{html.escape(alt)}</desc>"
    svg = re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + description, svg, count=1)
    return Drawing(re.sub(r"[^A-Za-z0-9_-]+", "-", name), group, caption, alt, svg)


# Sections and pages ---------------------------------------------------------------------------------------------------


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


def templates() -> jinja2.Environment:
    """Strict about names, and everything that is no markup is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
