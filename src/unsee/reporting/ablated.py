"""Arms at matched forgetting: tables and figures of `ablation.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unsee.reporting.figures import COLOURS, FIXED, MARKERS
from unsee.reporting.parts import (
    UNSCORED,
    WIDTH,
    Drawing,
    Measured,
    Row,
    Section,
    drawing,
    duration,
    interval,
    mean,
    percent,
)

MATCHED = ("arm", "rate", "runs", "forget", "retain", "attributes", "text", "drift", "unseen", "time")
HOW_TO_READ = (
    "Right answers in % on test pictures, read where a run has forgotten this much; brackets hold 95 % "
    "intervals clustered by subject. Rate: the learning rate that retained most on validation pictures; "
    "* marks one at the edge of those tried. Runs: how many came this far. Text is answered by the "
    "language model alone, whose weights no arm can touch: as before. Drift: relative change of the "
    "edited layers’ outputs on the retained statistics (mean over layers); unseen: of the visual tokens "
    "of retained pictures that no method looked at."
)
BRIEF = (0, 1, 2, 4, 5, 6, 8)


def ablated(results: Measured) -> Iterator[Section]:
    for table in results["tables"]:
        cases = [case for case in results["cases"] if case["family"] == table["family"]]
        for place, level in enumerate(table["arms"][0]["at"]):
            at = "gold’s forgetting" if level == "gold" else f"{level} left of the forget set"
            figures = (_ways(table, cases), _matched(table)) if place == 0 else ()
            yield Section(
                f"{table['family']}: {table['title']}, at {at}",
                HOW_TO_READ if table is results["tables"][0] and place == 0 else "",
                MATCHED,
                tuple(_matched_row(arm, level, cases) for arm in table["arms"]),
                figures,
                brief=BRIEF,
            )
        yield Section(
            f"{table['family']}: {table['title']}, learning rates",
            "What the choice was made by: runs that came to the level on validation pictures, and what they retained "
            "of the retain set there, in %.",
            ("arm", "level", "learning rate", "reached", "retain, validation", ""),
            tuple(_tried_rows(table)),
            folded=True,
        )
    yield Section(
        "Models",
        "Right answers in %, validation / test pictures, measured as the arms were.",
        ("case", "forget, vanilla", "forget, gold", "retain, vanilla", "retain, gold", "attributes, vanilla"),
        tuple(_models_row(case) for case in results["cases"]),
        folded=True,
    )
    broken = [
        (f"{table['family']}: {table['title']}", arm["name"], reason)
        for table in results["tables"]
        for arm in table["arms"]
        for reason in arm["stopped"]
    ]
    if broken:
        text = "They count as measured up to where they broke down."
        yield Section("Runs that broke down", text, ("table", "arm", "reason"), tuple(broken), folded=True)


def _matched_row(arm: Measured, level: str, cases: Sequence[Measured]) -> Row:
    at = arm["at"][level]
    reached = f"{at['reached']} of {at['runs']}"
    if at["reached"] == 0:
        return (arm["name"], UNSCORED, reached, UNSCORED, "not reached", *[UNSCORED] * 4, duration(at["seconds"]))
    return (
        arm["name"],
        f"{at['learning_rate']:g}{' *' if at['edge'] else ''}",
        reached,
        percent(at["forget"]["value"]),
        interval(at["retain"]),
        interval(at["attributes"]),
        percent(mean([case["text"]["retain"]["value"] for case in cases])),
        _small(at["drift"]["statistics"]),
        _small(at["drift"]["unseen"]),
        duration(at["seconds"]),
    )


def _tried_rows(table: Measured) -> Iterator[Row]:
    for arm in table["arms"]:
        for level, at in arm["at"].items():
            for one in at["tried"]:
                chosen = "chosen" if one["learning_rate"] == at["learning_rate"] else ""
                retained = percent(one["validation"])
                reached = f"{one['reached']} of {at['runs']}"
                yield (arm["name"], level, f"{one['learning_rate']:g}", reached, retained, chosen)


def _models_row(case: Measured) -> Row:
    def both(model: Measured, what: str) -> str:
        return " / ".join(percent(model[split][what]["value"]) for split in ("validation", "test"))

    def golds(what: str) -> str:
        return "; ".join(both(gold, what) for gold in case["golds"]) or UNSCORED

    vanilla = case["vanilla"]
    row = both(vanilla, "forget"), golds("forget"), both(vanilla, "retain"), golds("retain")
    return (case["name"], *row, both(vanilla, "attributes"))


def _ways(table: Measured, cases: Sequence[Measured]) -> Drawing:
    """Retain against forget along the runs; gold where the forget set should end."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        lowest = 100.0
        for place, arm in enumerate(table["arms"]):
            way = [p for p in arm["way"]["points"] if p["forget"] is not None and p["retain"] is not None]
            across, up = ([100 * point[what] for point in way] for what in ("forget", "retain"))
            lowest = min([lowest, *up])
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.plot(across, up, color=colour, marker=marker, markersize=3.5, label=arm["name"])
        golds = [gold["test"]["forget"]["value"] for case in cases for gold in case["golds"]]
        if golds:
            mean = 100 * sum(golds) / len(golds)
            axes.axvline(mean, color=FIXED["gold"], linestyle="--", label="gold")
        axes.set_xlim(103, -3)
        axes.set_ylim(max(0.0, lowest - 3), 101)
        axes.set_xlabel("forget set, right answers in % (forgetting →)")
        axes.set_ylabel("retain set, %")
        axes.grid()
        axes.set_title("along the runs")
        figure.legend(loc="outside lower center", ncols=2, handlelength=2.2)

    caption = "Test pictures along the runs, each arm at its own learning rate, mean over runs. Higher is better."
    return drawing(_file(table, "way"), "ablate", caption, _said(table), (WIDTH, 3.6 + _legend(table)), paint)


def _matched(table: Measured) -> Drawing:
    """What is left of the retain set, and the drift on pictures not used, where forgetting is equal."""
    arms = table["arms"]
    level = next(iter(arms[0]["at"]))
    panels: dict[str, Callable[[Measured], Measured | None]] = {
        "retain set, %": lambda at: at["retain"],
        "attributes of the forget set, %": lambda at: at["attributes"],
    }

    def paint(figure: Figure) -> None:
        axes: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
        for place, arm in enumerate(arms):
            at, colour = arm["at"][level], COLOURS[place % len(COLOURS)]
            for axis, (title, read) in zip(axes, panels.items(), strict=False):
                cell = read(at)
                axis.set_title(title, fontsize=8.5, fontweight="normal")
                if cell is None:
                    axis.text(0.5, place, "not reached", transform=axis.get_yaxis_transform(), ha="center", va="center")
                    continue
                ends = [[100 * (cell["value"] - cell["low"])], [100 * (cell["high"] - cell["value"])]]
                axis.errorbar(100 * cell["value"], place, xerr=ends, fmt="o", color=colour, capsize=2.5, markersize=4)
            for what, marker in (("statistics", "o"), ("unseen", "D")):
                if at["drift"][what] is not None:
                    face = colour if what == "unseen" else "white"
                    axes[2].plot(at["drift"][what], place, marker, color=colour, markerfacecolor=face, markersize=5)
        axes[2].set_title("drift (○ statistics, ◆ unseen)", fontsize=8.5, fontweight="normal")
        axes[2].set_xlim(left=0)
        for axis in axes:
            axis.grid(axis="x")
        axes[0].set_yticks(range(len(arms)), [arm["name"] for arm in arms])
        axes[0].set_ylim(len(arms) - 0.5, -0.5)

    where = "gold’s forgetting" if level == "gold" else f"{level} left of the forget set"
    caption = f"At {where}, test pictures, with 95 % intervals. Drift is small where retained pictures look as before."
    return drawing(
        _file(table, "matched"), "ablate", caption, _said(table), (1.35 * WIDTH, 1 + 0.36 * len(arms)), paint
    )


def _file(table: Measured, kind: str) -> str:
    return f"{table['family']}-{table['name']}-{kind}"


def _said(table: Measured) -> str:
    level = next(iter(table["arms"][0]["at"]))
    parts = []
    for arm in table["arms"]:
        at = arm["at"][level]
        parts.append(f"{arm['name']} {interval(at['retain']) if at['reached'] else 'not reached'}")
    return f"{table['title']}: retain set in % at matched forgetting ({level}). {'; '.join(parts)}."


def _legend(table: Measured) -> float:
    return 0.1 * (len(table["arms"]) + 1)


def _small(value: float | None) -> str:
    return UNSCORED if value is None else f"{value:.3g}"
