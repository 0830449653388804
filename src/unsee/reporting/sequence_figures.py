"""The figures of a sequence of requests: who is still recognised and what was lost; the room left and the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unsee.reporting.compared import style
from unsee.reporting.figures import FIXED
from unsee.reporting.parts import WIDTH, Drawing, Measured, drawing, percent

BANDED_MOST = 4  # arms; the intervals of more hide each other
BANDED_FROM = 5  # requests; what a few people say about all others is next to nothing
KNOWN = {"vanilla": "before any request (vanilla)", "gold": "never saw them (gold)"}
MARKS = 10  # markers along a line, at most
Read = Callable[[Measured], Mapping[str, Any]]
Lines = dict[str, dict[int, list[Measured]]]  # arm -> order -> its stages


def figures(results: Measured) -> tuple[Drawing, ...]:
    """Those there is something to show in."""
    return (*people(results), *effort(results))


def lines_of(results: Measured) -> Lines:
    found: Lines = {}
    for stage in results["stages"]:
        found.setdefault(stage["arm"], {}).setdefault(stage["order"], []).append(stage)
    return found


def first_order(lines: Lines) -> dict[str, int]:
    """Arm -> the order its bold line shows: one that all arms ran through, if there is one."""
    common = set.intersection(*(set(orders) for orders in lines.values()))
    return {arm: min(common or orders) for arm, orders in lines.items()}


# People ---------------------------------------------------------------------------------------------------------------


def people(results: Measured) -> tuple[Drawing]:
    """Over the number of requests: right answers about those who asked, against gold; losses of those who stay."""
    lines = lines_of(results)
    last = {arm: orders[first_order(lines)[arm]][-1] for arm, orders in lines.items()}
    said = "; ".join(
        f"{arm}: {percent(stage['recognised']['value'])} % still recognised, gold "
        f"{percent(stage['recognised_by_gold']['value'])} %, {percent(stage['loss']['retain']['value'])} points lost "
        "of those who stay"
        for arm, stage in last.items()
    )
    caption = (
        "Above: right answers about everybody who has asked so far; good is where gold is, a model that never saw "
        "them. Below: how many right answers fewer than before any request about everybody who stays; good is zero. "
    )
    if len(lines) <= BANDED_MOST:
        caption += f"Bands, from request {BANDED_FROM} on: 95 % intervals clustered by person. "
    if any(len(orders) > 1 for orders in lines.values()):
        caption += "Thin: the same people in other orders. "
    size = (WIDTH, 5.6 + 0.17 * ((len(lines) + 3) // 2))
    alt = f"After {results['requests']} requests: {said}."
    return (drawing("sequence-people", "sequence", caption.strip(), alt, size, people_painter(results)),)


def people_painter(results: Measured) -> Callable[[Figure], None]:
    lines = lines_of(results)

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        bold = first_order(lines)
        shown = next(orders[bold[arm]] for arm, orders in lines.items() if bold[arm] == min(bold.values()))
        for role, label in KNOWN.items():
            reference = LineStyle(FIXED[role], label, "--", zorder=4)
            _line(above, shown, itemgetter(f"recognised_by_{role}"), reference)
        banded = len(lines) <= BANDED_MOST
        high = 0.0
        for place, (arm, orders) in enumerate(lines.items()):
            colour, marker = style(place)
            for order, stages in orders.items():
                own = order == bold[arm]
                how = LineStyle(colour, arm, marker=marker, banded=banded) if own else LineStyle(colour, thin=True)
                _line(above, stages, itemgetter("recognised"), how)
                _line(below, stages, _lost, how)
                losses = [_lost(stage)["value"] for stage in stages]
                high = max([high, *(100 * loss for loss in losses if loss is not None)])
        above.set_ylim(0, 100)
        above.set_yticks(range(0, 101, 25))
        above.set_ylabel("right answers, %")
        above.set_title("Those who asked to be forgotten: still recognised")
        below.set_ylim(0, min(100, max(10, 10 * math.ceil(high / 10))))
        below.set_ylabel("lost, percentage points")
        below.set_title("Those who stay: lost")
        _along(below, results["requests"])
        for axes in (above, below):
            axes.grid(axis="y")
        handles, labels = above.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=2.2)

    return paint


def _lost(stage: Measured) -> Mapping[str, Any]:
    """A gain is drawn at zero."""
    cell = stage["loss"]["retain"]
    return {end: None if cell[end] is None else max(0.0, cell[end]) for end in ("value", "low", "high")}


# Effort ---------------------------------------------------------------------------------------------------------------


def effort(results: Measured) -> tuple[Drawing, ...]:
    """The room left and the time per request, as far as they were measured; nothing if neither was."""
    lines, bold = lines_of(results), first_order(lines_of(results))
    own = [stage for arm, orders in lines.items() for stage in orders[bold[arm]]]
    room = any(stage["free"]["value"] is not None for stage in own)
    timed = any(stage["seconds"] is not None for stage in own)
    if not room and not timed:
        return ()
    says = []
    if room:
        says.append(
            "Room left: the smallest share, over layers, of directions in which a later request may still move the "
            "weights. At zero nothing more can be forgotten; methods without a null space have no such limit. "
        )
    if timed:
        says.append("Time: of each edit alone; good is a line that does not rise.")
    ends = "; ".join(
        f"{stage['arm']}: {percent(stage['free']['value'])} % of directions free, {_seconds(stage['seconds'])}"
        for stage in (orders[bold[arm]][-1] for arm, orders in lines.items())
    )
    size = (WIDTH, (1.0 + 2.3 * (room + timed)) + 0.17 * ((len(lines) + 2) // 3))
    alt = f"At request {results['requests']}: {ends}."
    return (drawing("sequence-effort", "sequence", "".join(says).strip(), alt, size, effort_painter(results)),)


def effort_painter(results: Measured) -> Callable[[Figure], None]:
    lines = lines_of(results)
    bold = first_order(lines)
    reads: dict[str, tuple[Read, str, float]] = {
        "Room left in the tightest layer": (lambda stage: stage["free"], "free directions, %", 100.0),
        "Time per request": (lambda stage: {"value": stage["seconds"]}, "seconds", 1.0),
    }

    def measured(read: Read) -> bool:
        return any(read(stage)["value"] is not None for arm, own in lines.items() for stage in own[bold[arm]])

    def paint(figure: Figure) -> None:
        shown = {title: found for title, found in reads.items() if measured(found[0])}
        panels: list[Axes] = list(figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0])
        labelled: dict[str, Any] = {}
        for axes, (title, (read, unit, scale)) in zip(panels, shown.items(), strict=True):
            for place, (arm, orders) in enumerate(lines.items()):
                colour, marker = style(place)
                _line(axes, orders[bold[arm]], read, LineStyle(colour, arm, marker=marker), scale)
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
            axes.set_ylim(0, 100 if unit.endswith("%") else None)
            axes.set_ylabel(unit)
            axes.set_title(title)
            axes.grid(axis="y")
        _along(panels[-1], results["requests"])
        named = [arm for arm in lines if arm in labelled]
        figure.legend([labelled[arm] for arm in named], named, loc="outside lower center", ncols=3, handlelength=2.2)

    return paint


def _seconds(value: float | None) -> str:
    return "time not known" if value is None else f"{value:.0f} s"


# Lines ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineStyle:
    """How one line is drawn; `banded`: with its intervals."""

    colour: str
    label: str = "_"
    dash: str = "-"
    marker: str = ""
    banded: bool = False
    thin: bool = False
    zorder: int = 3


def _line(axes: Axes, stages: Sequence[Measured], read: Read, style: LineStyle, scale: float = 100.0) -> None:
    """One line over the requests that were measured; nothing where none was."""
    known = [(stage["request"], read(stage)) for stage in stages if read(stage)["value"] is not None]
    if not known:
        return
    numbers = [number for number, _ in known]
    axes.plot(
        numbers, [scale * cell["value"] for _, cell in known], style.dash, color=style.colour, marker=style.marker,
        label=style.label, markersize=4, markevery=max(1, math.ceil(len(known) / MARKS)),
        linewidth=0.7 if style.thin else 1.6, alpha=0.55 if style.thin else 1.0,
        zorder=2 if style.thin else style.zorder, clip_on=False,
    )  # fmt: skip
    if not style.banded:
        return
    ends = [(number, cell) for number, cell in known if number >= BANDED_FROM and cell["low"] is not None]
    if ends:
        low, high = ([scale * cell[end] for _, cell in ends] for end in ("low", "high"))
        axes.fill_between([number for number, _ in ends], low, high, color=style.colour, alpha=0.13, linewidth=0)


def _along(axes: Axes, requests: int) -> None:
    axes.set_xlim(0, requests + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("requests carried out")
