"""Whole runs side by side: tables and figures of `compare.json`, and its table for a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unsee.reporting.figures import COLOURS, FIXED, MARKERS
from unsee.reporting.parts import (
    UNSCORED,
    WIDTH,
    Drawing,
    Measured,
    Row,
    Score,
    Section,
    drawing,
    duration,
    interval,
    percent,
    spread,
)
from unsee.reporting.relearning import curves
from unsee.table import MISSING, escape, latex_percent, latex_share, latex_table

DROPS = ("retain", "attributes", "text", "bystanders")
BASELINES = {"vanilla": "s", "gold": "*"}  # and their markers
COMPARED = ("method", "runs", "total", "distance to gold")
COMPARED_TAIL = ("gain over gold", "forget", "time", "best or equal", "retain", "front", "× fastest", "given")
CONTESTED = {  # where less is better, and what it is called
    "total": "total",
    "distance": "distance",
    **{f"drop.{what}": f"{what} drop" for what in DROPS},
    "gain_over_gold": "gain over gold",
    "seconds": "time",
}
EQUAL = (
    "Best: the smallest mean. Equal to the best: a mean within one standard deviation of the smallest, the larger of "
    "the two."
)
HOW_TO_READ = (
    "Percentage points on test pictures: mean over all runs (models, requests, seeds) ± standard deviation (n − 1), "
    "the worst in brackets; one run has no spread. Distance: how far right answers about the forget set stay from the "
    "mean of the gold models, above or below. Drops: what was lost against the vanilla model; below zero is a gain. "
    "Total: the weighted sum of the distance and of all losses, bystanders left out. Gain over gold: what a relearning "
    "attack brings back about people it never showed, beyond what it brings gold. Forget and retain: right answers in "
    f"%, with 95 % intervals clustered by subject. {EQUAL} Front: no other method is as near to gold and retains as "
    "much. Given: what the method may look at beyond the pictures to be forgotten and their names."
)


def compared(results: Measured) -> Iterator[Section]:
    for family in dict.fromkeys(case["family"] for case in results["cases"]):
        arms = [arm for arm in results["arms"] if arm["family"] == family]
        baselines = [one for one in results["baselines"] if one["family"] == family]
        cells = [cell for cell in results["cells"] if cell["family"] == family]
        cases = [case for case in results["cases"] if case["family"] == family]
        drops = [what for what in DROPS if what != "bystanders" or any(_bystanders(arm) is not None for arm in arms)]
        heads = (*COMPARED, *(f"{what} drop" for what in drops), *COMPARED_TAIL)
        attacked = [_attack(family, baselines, arms)] if any(arm["curve"] for arm in arms) else []
        yield Section(
            f"{family}: methods",
            HOW_TO_READ,
            heads,
            (
                *(_baseline_row(one, len(drops)) for one in baselines if one["models"]),
                *(_arm_row(arm, drops) for arm in arms),
            ),
            (_plane(family, baselines, arms), _dots(family, [arm["arm"] for arm in arms], cells), *attacked),
            brief=tuple(range(heads.index("best or equal") + 1)),
        )
        yield Section(
            f"{family}: models",
            "Right answers in % before anything was unlearned, on test pictures. Where several gold models stand, "
            "their spread says how far retraining itself is from a fixed number.",
            ("case", "forget, vanilla", "forget, gold", "gold mean", "gold spread", "retain, vanilla"),
            tuple(_case_row(case) for case in cases),
            folded=True,
        )
        yield Section(
            f"{family}: every run",
            "Right answers in %. A run that broke down (its loss or a weight was not finite) has no numbers.",
            ("case", "method", "seed", "forget", "gold mean", "retain", "attributes", "text", "total", "time"),
            tuple(_cell_row(cell, cases) for cell in cells),
            folded=True,
        )
        yield Section(
            f"{family}: settings",
            "Everything a method was told.",
            ("method", "settings"),
            tuple({cell["arm"]: _settings_row(cell) for cell in cells}.values()),
            folded=True,
        )


def style(place: int) -> tuple[str, str]:
    """Colour and marker of the arm at this place: sixty-four that differ."""
    return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


# Rows -----------------------------------------------------------------------------------------------------------------


def _bystanders(arm: Measured) -> float | None:
    """What they lost; None where none were asked about."""
    lost: float | None = arm["drops"].get("bystanders", {}).get("mean")
    return lost


def _arm_row(arm: Measured, drops: Sequence[str]) -> Row:
    failed = f", {arm['failed']} broke down" if arm["failed"] else ""
    runs = "one run" if arm["cells"] == 1 else str(arm["cells"])
    parts = (arm["total"], arm["distance"], *(arm["drops"][what] for what in drops), arm["gain_over_gold"])
    return (
        arm["arm"],
        f"{runs}{failed}",
        *map(spread, parts),
        _left(arm),
        spread(arm["time"], duration),
        standing(arm),
        interval(arm["shares"]["retain.test"]),
        "front" if arm["front"] else "",
        UNSCORED if arm["relative_seconds"] is None else f"{arm['relative_seconds']:.1f}",
        ", ".join(arm["given"]) or "nothing",
    )


def _left(arm: Measured) -> str:
    """What is left of the forget set: its spread over runs, its interval over subjects."""
    share, over_runs = arm["shares"]["forget.test"], arm["forget"]
    if share is None or over_runs["sd"] is None:
        return interval(share)
    return f"{spread(over_runs)} [{100 * share['low']:.0f}–{100 * share['high']:.0f}]"


def standing(arm: Measured) -> str:
    """In words, in what an arm is best, and in what it is equal to the best."""
    places: dict[str, list[str]] = {}
    for name, said in CONTESTED.items():
        if name in arm["standing"]:
            places.setdefault(arm["standing"][name], []).append(said)
    return "; ".join(f"{place}: {', '.join(names)}" for place, names in sorted(places.items()))


def _baseline_row(one: Measured, drops: int) -> Row:
    forget, retain = (interval(one["shares"][name]) for name in ("forget.test", "retain.test"))
    head = (one["role"], str(one["models"]), *[""] * (len(COMPARED) - 2 + drops + 1))
    return (*head, forget, "", "", retain, *[""] * (len(COMPARED_TAIL) - 5))


def _case_row(case: Measured) -> Row:
    gold = case["gold"] or {"mean": None, "spread": None}
    each = ", ".join(percent(one["forget.test"]) for one in case["golds"]) or UNSCORED
    vanilla = case["vanilla"]
    return (
        case["name"],
        percent(vanilla["forget.test"]),
        each,
        percent(gold["mean"]),
        percent(gold["spread"]),
        percent(vanilla["retain.test"]),
    )


def _cell_row(cell: Measured, cases: Sequence[Measured]) -> Row:
    case = next(one for one in cases if one["name"] == cell["case"])
    shown = cell["measures"] or dict.fromkeys(("forget.test", "retain.test", "attributes.forget", "text"))
    gold = case["gold"]["mean"] if case["gold"] else None
    numbers = (shown["forget.test"], gold, shown["retain.test"], shown["attributes.forget"], shown["text"])
    row = (cell["case"], cell["arm"], str(cell["seed"]), *map(percent, (*numbers, cell["total"])))
    return (*row, duration(cell["seconds"]))


def _settings_row(cell: Measured) -> Row:
    return (cell["arm"], f"{cell['method']}: " + " ".join(f"{key}={value}" for key, value in cell["settings"].items()))


# Figures --------------------------------------------------------------------------------------------------------------


def _plane(family: str, baselines: Sequence[Measured], arms: Sequence[Measured]) -> Drawing:
    """Retain against forget: every method a point with its intervals, gold and vanilla marked, the front drawn."""
    points = [
        (place, arm, arm["shares"]["forget.test"], arm["shares"]["retain.test"])
        for place, arm in enumerate(arms)
        if arm["shares"]["forget.test"] and arm["shares"]["retain.test"]
    ]
    marked = [
        (one["role"], one["shares"]["forget.test"], one["shares"]["retain.test"])
        for one in baselines
        if one["shares"]["forget.test"] and one["shares"]["retain.test"]
    ]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for role, forget, retain in marked:
            axes.plot(
                100 * forget["value"],
                100 * retain["value"],
                BASELINES[role],
                color=FIXED[role],
                markersize=13 if role == "gold" else 8,
                label=role,
                zorder=4,
            )
            if role == "gold":
                axes.axvline(100 * forget["value"], color=FIXED[role], linestyle="--", linewidth=1)
        for place, arm, forget, retain in points:
            colour, marker = style(place)
            axes.errorbar(
                100 * forget["value"],
                100 * retain["value"],
                xerr=_bars(forget),
                yerr=_bars(retain),
                fmt=marker,
                color=colour,
                ecolor=_faint(colour),
                elinewidth=0.8,
                markersize=5,
                label=arm["arm"],
                zorder=3,
            )
        best = sorted((100 * f["value"], 100 * r["value"]) for _, arm, f, r in points if arm["front"])
        if len(best) > 1:
            axes.plot(*zip(*best, strict=True), color="#5a6470", linestyle=":", linewidth=1.4, label="front", zorder=2)
        axes.set_xlim(103, -3)
        axes.set_ylim(top=102)
        axes.set_xlabel("forget set, right answers in % (forgetting →)")
        axes.set_ylabel("retain set, right answers in %")
        axes.grid()
        axes.set_title("forgetting and retaining")
        figure.legend(loc="outside lower center", ncols=3, handlelength=1.6)

    said = "; ".join(
        f"{name} forget {interval(f)} retain {interval(r)}"
        for name, f, r in (*marked, *((arm["arm"], f, r) for _, arm, f, r in points))
    )
    caption = (
        "One point per method, mean over runs with 95 % intervals clustered by subject. Good is high, at gold’s line. "
        "Dotted: the methods that no other beats in nearness to gold and in what is retained."
    )
    return drawing(f"front-{family}", "compare", caption, f"{family}: {said}.", (WIDTH, _height(3.6, len(arms))), paint)


def _faint(colour: str) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 0.45


def _bars(share: Measured) -> list[list[float]]:
    return [[100 * (share["value"] - share["low"])], [100 * (share["high"] - share["value"])]]


def _height(axes: float, arms: int) -> float:
    """Room for the axes, and for a legend of three columns below."""
    return axes + 0.17 * ((arms + 5) // 3)


def _dots(family: str, arms: Sequence[str], cells: Sequence[Measured]) -> Drawing:
    """One dot per run, one bar at the mean."""
    panels: dict[str, Callable[[Measured], float | None]] = {
        "distance to gold": lambda cell: cell["distance"],
        "retain drop": lambda cell: cell["drops"]["retain"],
        "attributes drop": lambda cell: cell["drops"]["attributes"],
    }

    def paint(figure: Figure) -> None:
        axes: Sequence[Axes] = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, read) in zip(axes, panels.items(), strict=True):
            for place, arm in enumerate(arms):
                known = [read(cell) for cell in cells if cell["arm"] == arm]
                values = [100 * value for value in known if value is not None]
                colour, _ = style(place)
                axis.scatter(values, [place] * len(values), s=18, color=colour, alpha=0.6, linewidths=0)
                if values:
                    middle = sum(values) / len(values)
                    axis.plot([middle, middle], [place - 0.3, place + 0.3], color=colour, linewidth=2.2)
            axis.axvline(0, color="#8a929c", linewidth=0.8)
            axis.set_title(title, fontsize=8.5, fontweight="normal")
            axis.grid(axis="x")
        axes[0].set_yticks(range(len(arms)), arms)
        axes[0].set_ylim(len(arms) - 0.5, -0.5)
        figure.supxlabel("percentage points", fontsize=9)

    height = 1.1 + 0.34 * len(arms)
    caption = "One dot per run, the bar at their mean. Near zero is good in every panel."
    alt = f"{family}: distance to gold, retain drop and attributes drop of {', '.join(arms)}."
    return drawing(f"runs-{family}", "compare", caption, alt, (1.35 * WIDTH, height), paint)


def _attack(family: str, baselines: Sequence[Measured], arms: Sequence[Measured]) -> Drawing:
    """The held-out half along the relearning attack, baselines and methods."""
    colour = dict(FIXED) | {arm["arm"]: style(place)[0] for place, arm in enumerate(arms)}
    marker = BASELINES | {arm["arm"]: style(place)[1] for place, arm in enumerate(arms)}
    every = [(one.get("arm") or one["role"], one["curve"]) for one in (*baselines, *arms)]
    lines = {name: _cells(curve) for name, curve in every if curve}
    said = "; ".join(f"{name} {', '.join(cell.percent for cell in line.values())}" for name, line in lines.items())
    caption = (
        "Right answers about the held-out half of the forget set while the model is taught the other half again, mean "
        "over runs. Good is where gold is: what it gains, anybody gains."
    )
    paint = curves(lines, colour, marker, bands=len(lines) <= 6)
    size = (WIDTH, _height(3.2, len(arms)))
    return drawing(f"relearning-{family}", "compare", caption, f"{family}, relearning: {said}.", size, paint)


def _cells(curve: Sequence[Measured]) -> Mapping[int, Score]:
    return {point["step"]: Score.parse(point["held_out"], f"curve: step {point['step']}") for point in curve}


# The same for a paper -------------------------------------------------------------------------------------------------

SHARES = {"forget": "forget.test", "retain": "retain.test"}
SPREADS: dict[str, tuple[str, Callable[[Measured], Measured]]] = {  # head, and name in `standing`
    "distance": ("distance", lambda arm: arm["distance"]),
    "retain drop": ("drop.retain", lambda arm: arm["drops"]["retain"]),
    "attr. drop": ("drop.attributes", lambda arm: arm["drops"]["attributes"]),
    "text drop": ("drop.text", lambda arm: arm["drops"]["text"]),
    "bystanders drop": ("drop.bystanders", lambda arm: arm["drops"].get("bystanders", {"mean": None})),
    "gain over gold": ("gain_over_gold", lambda arm: arm["gain_over_gold"]),
    "total": ("total", lambda arm: arm["total"]),
}
GIVEN = "p{4.5cm}"  # column of a paper's table


def latex(results: Measured) -> str:
    r"""One table per family, for `\usepackage{booktabs}`, best in bold, what is equal to the best in italics.

    Shares in % with 95 % intervals, spreads in points with standard deviations and the worst.

    The best is the smallest mean, exactly compared; of the shares none is, since neither gold's level nor vanilla's is
    a contest.
    """
    families = dict.fromkeys(case["family"] for case in results["cases"])
    return "\n".join(_table(results, family) for family in families)


def _table(results: Measured, family: str) -> str:
    arms = [arm for arm in results["arms"] if arm["family"] == family]
    baselines = [one for one in results["baselines"] if one["family"] == family and one["models"]]
    shown = {what: of for what, of in SPREADS.items() if any(of[1](arm)["mean"] is not None for arm in arms)}
    head = ["method", *(f"{what} (\\%)" for what in SHARES), *map(escape, shown), "seconds", "given"]
    levels, contest = [], []
    for one in baselines:
        shares = [latex_share(one["shares"][name]) for name in SHARES.values()]
        levels.append([escape(one["role"]), *shares, *[""] * (len(shown) + 2)])
    for arm in arms:
        retain = latex_share(arm["shares"]["retain.test"])
        numbers = [_spread(read(arm), arm["standing"].get(name)) for name, read in shown.values()]
        time = _spread(arm["time"], arm["standing"].get("seconds"), "{:.1f}".format)
        given = escape(", ".join(arm["given"]) or "nothing")
        contest.append([escape(arm["arm"]), _left_in_latex(arm), retain, *numbers, time, given])
    columns = "l" + "r" * (len(head) - 2) + GIVEN
    return latex_table(head, levels, contest, columns=columns, caption=_caption(results, family))


def _left_in_latex(arm: Measured) -> str:
    share = arm["shares"]["forget.test"]
    if share is None or arm["forget"]["sd"] is None:
        return latex_share(share)
    return f"{_spread(arm['forget'], None)} [{latex_percent(share['low'])}, {latex_percent(share['high'])}]"


def _caption(results: Measured, family: str) -> str:
    runs = max((arm["cells"] for arm in results["arms"] if arm["family"] == family), default=0)
    return (
        f"Unlearning on {escape(family)}, {'one run' if runs == 1 else f'{runs} runs'} per method. Forget and retain: "
        "right answers with 95\\,\\% intervals clustered by subject. Others in percentage points, and seconds per "
        "edit: mean $\\pm$ standard deviation over runs ($n-1$), the worst in brackets; one run has no spread. Bold: "
        "the smallest mean. Italics: equal to the best, a mean within one standard deviation of the smallest (the "
        "larger of the two). Given: what the method may look at beyond the pictures to be forgotten and their names."
    )


def _spread(spread: Measured, place: str | None, write: Callable[[float], str] = latex_percent) -> str:
    if spread["mean"] is None:
        return MISSING
    mean = STYLES.get(place or "", "{}").format(write(spread["mean"]))
    if spread["sd"] is None:
        return mean
    return f"{mean} $\\pm$ {write(spread['sd'])} ({write(spread['worst'])})"


STYLES = {"best": "\\textbf{{{}}}", "equal to the best": "\\emph{{{}}}"}
