"""The report of a sequence of unlearning requests: one page, tables for machines and papers, from its lines alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from unsee.errors import BadInput
from unsee.evaluation.sequence import GROUPS, POINTS, WINDOW, summarise
from unsee.reporting.parts import UNSCORED, Drawing, Measured, Row, Section, duration, interval, percent, templates
from unsee.reporting.sequence_figures import figures
from unsee.reporting.sequence_lines import read_sequence
from unsee.storage import replace_text
from unsee.table import MISSING, escape, latex_table, table_text

STEM = "sequence"
PROVENANCE = ("created", "command", "commit", "dirty")  # may all be absent
MET, MISSED = "✓", "✗"
WARNINGS_SHOWN = 5  # before a reader unfolds the others


def write_sequence_report(folder: Path) -> Path:
    """Write `sequence.html`, `.csv`, `.tex`, `-summary.json` and `figures/` beside `sequence.jsonl`; returns the page.

    The page loads nothing. The same lines, in whatever order, give the same bytes.

    Raises:
        BadInput: the lines cannot be used, or the folder cannot be written to; no page is written.
    """
    folder = Path(folder)
    courses, about = read_sequence(folder)
    results = summarise(courses)
    text, drawings = page(results, about)
    summary = {key: value for key, value in results.items() if key != "stages"}
    try:
        (folder / "figures").mkdir(exist_ok=True)
        for one in drawings:
            replace_text(folder / "figures" / f"{one.name}.svg", one.svg)
        replace_text(folder / f"{STEM}.csv", table_text(map(_flat, results["stages"])))
        replace_text(folder / f"{STEM}.tex", latex(results))
        replace_text(folder / f"{STEM}-summary.json", json.dumps(summary, indent=2) + "\n")
        return replace_text(folder / f"{STEM}.html", text)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be written ({error.strerror}); check permissions and space"
        ) from error


def page(results: Measured, about: Mapping[str, Any]) -> tuple[str, tuple[Drawing, ...]]:
    """The page as text, and its figures.

    Args:
        results: what `summarise` gives.
        about: `settings` and `provenance`.
    """
    drawings = figures(results)
    text = templates().get_template("sequence.html.j2").render(
        heading=_heading(results),
        results=results,
        sentences=[(arm["arm"], _sentence(arm)) for arm in results["arms"]],
        warnings=warnings(results["stages"]),
        shown=WARNINGS_SHOWN,
        sections=sections(results),
        drawings=drawings,
        markup={one.name: Markup(one.inline) for one in drawings},
        provenance=dict.fromkeys(PROVENANCE) | dict(about["provenance"]),
        about=json.dumps(about, indent=2, ensure_ascii=False, default=str),
        met=MET,
        missed=MISSED,
    )  # fmt: skip
    return text, drawings


def _heading(results: Measured) -> str:
    number = results["requests"]
    return f"{number} {'request' if number == 1 else 'requests'} to be forgotten, one after another"


def _sentence(arm: Measured) -> str:
    """What a reader who reads nothing else should know of an arm."""
    shown = ("recognised", "recognised_by_gold", "retained", "retained_by_vanilla")
    left, gold, kept, before = (f"{percent(arm[key]['value'])}\u00a0%" for key in shown)
    orders = f"on average over {len(arm['orders'])} orders, " if len(arm["orders"]) > 1 else ""
    asked = f"{orders}{left} of the answers about those who asked are still right"
    if arm["recognised_by_gold"]["value"] is not None:
        asked += f" (a model that never saw them: {gold})"
    if arm["retained"]["value"] is None:
        return f"{asked}; those who stay were not asked about."
    return f"{asked}, and {kept} of those about people who stay (before any request: {before})."


def warnings(stages: Sequence[Measured]) -> list[str]:
    """Every warning once per arm and order, with the requests it came at."""
    found: dict[tuple[str, int, str], list[int]] = {}
    for stage in stages:
        for text in stage["warnings"]:
            found.setdefault((stage["arm"], stage["order"], text), []).append(stage["request"])
    return [f"{arm}, order {order}, {_runs(at)}: {text}" for (arm, order, text), at in found.items()]


def _runs(numbers: Sequence[int]) -> str:
    """3, 4, 5, 9 as "requests 3–5, 9"."""
    runs: list[list[int]] = []
    for number in dict.fromkeys(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spans = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"request{'s' if len(numbers) > 1 else ''} {spans}"


# Tables ---------------------------------------------------------------------------------------------------------------


def sections(results: Measured) -> list[Section]:
    """The tables of the page; those that are not folded are for a terminal, too."""
    return list(_sections(results))


def _sections(results: Measured) -> Iterator[Section]:
    arms, aims = results["arms"], results["aims"]
    yield Section(
        f"After {results['requests']} requests: within the aims?",
        "Percentage points, mean over people and orders. An aim is met if the number itself is within it; a dash was "
        "not measured. Below gold is over-forgetting: within the aim, but no merit.",
        ("method", *(_aim(name, limit) for name, limit in aims.items())),
        tuple(_aims_row(arm) for arm in arms),
    )
    yield Section(
        "Do they stay forgotten?",
        "Right answers about those who asked, in %, on test pictures; all else in percentage points, each person "
        "compared with him- or herself. Over gold: against a model that never saw them; below zero is over-forgetting. "
        "Rebound: after the last request against right after the own one; rises: the mean rise from one request to the "
        "next, which other work calls Forgetting Rebound. In brackets 95 % intervals clustered by person.",
        FORGOTTEN,
        tuple(map(_forgotten_row, arms)),
        brief=(0, 1, 2, 3, 4, 5, 8, 9),
    )
    yield Section(
        "What did the others lose?",
        "Percentage points of right answers since the model before any request; below zero is a gain. Attributes are "
        "what anybody can see on a picture, of everybody; text is facts asked without a picture. Retain Stability "
        "Rate: how far right answers about those who stay move from one request to the next; low is stable.",
        LOST,
        tuple(map(_lost_row, arms)),
        brief=(0, 1, 2, 4, 6, 8),
    )
    yield Section(
        "Can it go on?",
        f"Time of the edits alone; first and last are means of {WINDOW} requests (of half of all where there are fewer "
        f"than {2 * WINDOW}). Free directions: the smallest share over layers of what later requests may still use. "
        "Drift: the largest relative change of a layer on what must stay.",
        EFFORT,
        tuple(map(_effort_row, arms)),
        brief=(0, 1, 4, 5, 7, 9),
    )
    if results["orders"]:
        yield Section(
            "Every order of the requests",
            "The same measures for each order alone.",
            ("method", "order", *FORGOTTEN[1:], *LOST[1:]),
            tuple(
                (one["arm"], str(one["orders"][0]), *_forgotten_row(one)[1:], *_lost_row(one)[1:])
                for one in results["orders"]
            ),
            folded=True,
        )
    for arm in arms:
        for order in arm["orders"]:
            stages = [s for s in results["stages"] if (s["arm"], s["order"]) == (arm["arm"], order)]
            yield Section(
                f"{arm['arm']}, order {order}: every request",
                "After each request: right answers in % about the person who asked and about everybody who has asked "
                "so far, all else in percentage points.",
                REQUESTS,
                tuple(map(_request_row, stages)),
                folded=True,
            )


AIMS = {
    "over_gold": "over gold, mean",
    "over_gold_95": "over gold, 95 % of people",
    "retain": "lost of those who stay",
    "attributes": "attributes lost",
    "text": "text lost",
    "rebound": "rebound, mean",
    "slowdown": "time, last / first",
}
FORGOTTEN = (
    "method", "still right", "gold", "over gold", "95 % of them at most", "worst",
    *(f"share at most {points} over" for points in POINTS), "rebound", "worst", "rises",
)  # fmt: skip
LOST = (
    "method", "those who stay, still right", "lost", "worst", "attributes lost", "worst", "text lost", "worst",
    "Retain Stability Rate",
)  # fmt: skip
EFFORT = (
    "method", "time per request", f"first {WINDOW}", f"last {WINDOW}", "last / first",
    "least free", "in layer", "most drift", "in layer", "warnings",
)  # fmt: skip
REQUESTS = (
    "request", "who", "own, right after", "so far", "gold", "over gold", "rebound of earlier ones",
    "stay lost", "attributes lost", "text lost", "least free", "time",
)  # fmt: skip


def _aim(name: str, limit: float) -> str:
    return f"{AIMS[name]} (≤\u00a0{limit if name == 'slowdown' else round(100 * limit, 6):g})"


def _aims_row(arm: Measured) -> Row:
    values = {
        "over_gold": arm["over_gold"]["value"],
        "over_gold_95": arm["over_gold"]["percentile_95"]["value"],
        **{group: arm["loss"][group]["value"] for group in GROUPS},
        "rebound": arm["rebound"]["value"],
    }
    shown = {name: points(value, digits=2) for name, value in values.items()} | {
        "slowdown": _times(arm["seconds"]["ratio"])
    }
    return (_label(arm), *(_judged(shown[name], met) for name, met in arm["aims"].items()))


def _judged(text: str, met: bool | None) -> str:
    return text if met is None else f"{MET if met else MISSED} {text}"


def _forgotten_row(arm: Measured) -> Row:
    over, back = arm["over_gold"], arm["rebound"]
    return (
        _label(arm),
        interval(arm["recognised"]),
        interval(arm["recognised_by_gold"]),
        _points(over),
        points(over["percentile_95"]["value"]),
        _who(over["worst"]),
        *(percent(over[f"within_{limit}"]["value"]) for limit in POINTS),
        _points(back),
        _who(back["worst"]),
        _points(arm["rebound_per_request"], digits=2),
    )


def _lost_row(arm: Measured) -> Row:
    each = (text for group in GROUPS for text in (_points(arm["loss"][group]), _who(arm["loss"][group]["worst"])))
    return (_label(arm), interval(arm["retained"]), *each, _points(arm["retain_stability"], digits=2))


def _effort_row(arm: Measured) -> Row:
    times, free, drift = arm["seconds"], arm["free"], arm["drift"]
    return (
        _label(arm),
        *(duration(times[part]["value"]) for part in ("mean", "first", "last")),
        _times(times["ratio"], ends=True),
        percent(free["value"]),
        free["layer"] or UNSCORED,
        UNSCORED if drift["value"] is None else f"{drift['value']:.3g}",
        drift["layer"] or UNSCORED,
        str(arm["warnings"]),
    )


def _request_row(stage: Measured) -> Row:
    return (
        str(stage["request"]),
        ", ".join(stage["subjects"]),
        percent(stage["own"]),
        percent(stage["recognised"]["value"]),
        percent(stage["recognised_by_gold"]["value"]),
        points(stage["over_gold"]["value"]),
        points(stage["rebound"]["value"]),
        *(points(stage["loss"][group]["value"]) for group in GROUPS),
        percent(stage["free"]["value"]),
        duration(stage["seconds"]),
    )


def _label(arm: Measured) -> str:
    return arm["arm"] if len(arm["orders"]) == 1 else f"{arm['arm']} ({len(arm['orders'])} orders)"


# How numbers are written ----------------------------------------------------------------------------------------------


def points(value: float | None, digits: int = 1) -> str:
    """A difference in percentage points."""
    return UNSCORED if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _points(cell: Measured, digits: int = 1) -> str:
    value, low, high = (points(cell[end], digits) for end in ("value", "low", "high"))
    return value if cell["low"] is None else f"{value} [{low} to {high}]"


def _who(worst: Measured | None) -> str:
    """Nobody is named where nobody got worse."""
    if worst is None or worst["value"] <= 0:
        return points(worst["value"] if worst else None)
    return f"{points(worst['value'])} ({worst['subject']})"


def _times(cell: Measured, ends: bool = False) -> str:
    if cell["value"] is None:
        return UNSCORED
    between = f" [{cell['low']:.2f}–{cell['high']:.2f}]" if ends and cell["low"] is not None else ""
    return f"{cell['value']:.2f}{between}"


# Other files ----------------------------------------------------------------------------------------------------------


def _flat(stage: Measured) -> dict[str, Any]:
    """The row of one arm, order and request; fractions, None where nothing was measured."""
    row = {key: stage[key] for key in ("arm", "order", "request")}
    row |= {"subject": " + ".join(stage["subjects"]), "seconds": stage["seconds"], "own": stage["own"]}
    cells = {name: stage[name] for name in ("recognised", "recognised_by_vanilla", "recognised_by_gold", "over_gold")}
    cells |= {f"loss.{group}": stage["loss"][group] for group in GROUPS} | {"rebound": stage["rebound"]}
    for name, cell in cells.items():
        row |= {name: cell["value"], f"{name}.low": cell["low"], f"{name}.high": cell["high"], f"{name}.n": cell["n"]}
    for name in ("free", "drift"):
        row |= {name: stage[name]["value"], f"{name}.layer": stage[name]["layer"]}
    return row | {"warnings": " | ".join(stage["warnings"])}


def latex(results: Measured) -> str:
    r"""The state after the last request as one table for `\usepackage{booktabs}`, a row per arm."""
    head = ("method", "still right (\\%)", "over gold", "95\\,\\% at most", "worst", "stay lost", "attr.\\ lost",
            "text lost", "rebound", "last / first", "least free (\\%)")  # fmt: skip
    asked = f"{results['requests']} request{'' if results['requests'] == 1 else 's'}"
    caption = (
        f"After {asked} one after another. Still right: answers about all {results['targets']} who asked; over gold, "
        "losses since vanilla and rebound in percentage points, mean over people and orders. In brackets 95\\,\\% "
        "intervals clustered by person. Last / first: time per request. Least free: smallest share of free directions "
        "over layers."
    )
    rows = []
    for arm in results["arms"]:
        over = arm["over_gold"]
        worst = points(over["worst"]["value"]) if over["worst"] else UNSCORED
        cells = (
            interval(arm["recognised"]),
            _points(over),
            points(over["percentile_95"]["value"]),
            worst,
            *(_points(arm["loss"][group]) for group in GROUPS),
            _points(arm["rebound"]),
            _times(arm["seconds"]["ratio"]),
            percent(arm["free"]["value"]),
        )
        rows.append((escape(arm["arm"]), *map(_written, cells)))
    return latex_table(head, rows, caption=caption)


def _written(cell: str) -> str:
    """A cell of the page as LaTeX."""
    if cell == UNSCORED:
        return MISSING
    return cell.replace("−", "$-$").replace("–", "--")
