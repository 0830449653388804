"""One figure as deterministic SVG, in one style, as a file and inside a page."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure

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
        group: the section it stands in: bars, features or history.
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
