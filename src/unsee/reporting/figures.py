"""The figures, each one small enough to be read on a phone: bars with intervals, feature maps, training curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from unsee.reporting.certificate import figures as certificate_figures
from unsee.reporting.parts import Drawing, Score, drawing
from unsee.reporting.read import SETS, SPLITS, EvaluatedRun, Features
from unsee.reporting.relearning import figure as relearning_figure

FIXED = {"vanilla": "#7d8894", "gold": "#e0a100"}
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #56b4e9 #7a5195 #8c6d31 #222222".split()  # after Okabe and Ito
MARKERS = "osD^vP*X"
WIDTH = 3.75  # inches
LEGEND_MOST = 12  # subjects named below a feature map
LABELLED_MOST = 4  # roles; with more, numbers above the bars would collide
BARS: tuple[tuple[str, str, str, dict[str, tuple[str, ...]]], ...] = (
    (
        "accuracy-forget",
        "Forget set",
        "Right answers about pictures of the forget set: names and facts together. Good is where gold is.",
        {split: ("forget", split) for split in SPLITS},
    ),
    (
        "accuracy-retain",
        "Retain set",
        "Right answers about pictures of the retain set: names and facts together. Good is where vanilla is.",
        {split: ("retain", split) for split in SPLITS},
    ),
    (
        "attributes",
        "Visible attributes",
        "Questions about what can be seen, on unseen pictures. Strangers are in neither set.",
        {part: ("attributes", part) for part in (*SETS, "strangers")},
    ),
    (
        "bystanders",
        "Bystanders",
        "Questions about quite other pictures, which no edit was given. Good is where vanilla is.",
        {"test": ("bystanders", "test")},
    ),
    ("text", "Text only", "The same facts asked without a picture.", {part: ("text", part) for part in SETS}),
    (
        "names-and-facts",
        "Names and facts apart",
        "Right answers on test pictures: who it is, and what no picture shows.",
        {f"{probe}\n{part}": (probe, part, "test") for part in SETS for probe in ("names", "facts")},
    ),
    (
        "side-effects",
        "Side effects",
        "Largest share of one target’s pictures under one wrong name; shares of broken answers. Low is good.",
        {
            "one wrong\nname": ("misattribution", "forget"),
            "empty\nanswers": ("health", "empty"),
            "repeated\nanswers": ("health", "repeated"),
            "off-list\nanswers": ("health", "off_list"),
        },
    ),
)


def draw(run: EvaluatedRun) -> tuple[Drawing, ...]:
    """Every figure this run has data for; names that would collide as files are numbered."""
    seen: dict[str, int] = {}
    made = []
    for figure in (*_bars(run), *_maps(run), *_curves(run), *_relearning(run), *_certificates(run)):
        seen[figure.name] = number = seen.get(figure.name, 0) + 1
        made.append(figure if number == 1 else replace(figure, name=f"{figure.name}-{number}"))
    return tuple(made)


def colours(run: EvaluatedRun) -> dict[str, str]:
    """Role -> colour, the same in every figure."""
    others = (role.name for role in run.roles if role.name not in ("vanilla", "gold"))
    return FIXED | {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(others)}


def _bars(run: EvaluatedRun) -> Iterator[Drawing]:
    for name, title, caption, groups in BARS:
        cells = {label: {role.name: role.cell(*path) for role in run.roles} for label, path in groups.items()}
        if any(cell.value is not None for row in cells.values() for cell in row.values()):
            said = "; ".join(
                f"{' '.join(label.split())}: " + ", ".join(f"{role} {cell.words}" for role, cell in row.items())
                for label, row in cells.items()
            )
            yield drawing(
                name, "bars", caption, f"{title}. {said}.", (WIDTH, 2.8), _bar_painter(title, cells, colours(run))
            )


def _bar_painter(
    title: str, cells: Mapping[str, Mapping[str, Score]], colour: Mapping[str, str]
) -> Callable[[Figure], None]:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        roles = list(next(iter(cells.values())))
        width = 0.8 / len(roles)
        for place, role in enumerate(roles):
            for group, row in enumerate(cells.values()):
                at = group + (place - (len(roles) - 1) / 2) * width
                style = {"color": colour[role], "hatch": "////" if role == "gold" else None}
                style["label"] = role if group == 0 else "_"
                _bar(axes, at, 0.9 * width, row[role], len(roles) <= LABELLED_MOST, style)
        labels = [f"{label}\nn = {max(cell.n for cell in row.values())}" for label, row in cells.items()]
        axes.set_xticks(range(len(cells)), labels)
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, len(cells) - 0.5)
        axes.set_ylim(0, 110)
        axes.set_yticks(range(0, 101, 25))
        axes.set_ylabel("share of answers, %")
        axes.grid(axis="y")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=min(3, len(roles)), handlelength=1.2)

    return paint


def _bar(axes: Axes, at: float, width: float, cell: Score, numbered: bool, style: Mapping[str, Any]) -> None:
    """One bar with its interval and number; an unscored cell is a dash, never a bar of height zero."""
    value = 0.0 if cell.value is None else 100 * cell.value
    axes.bar(at, value, width, edgecolor="white", linewidth=0, **style)
    top = value
    if cell.ends is not None:
        top = 100 * cell.ends[1]
        ends = [[max(0.0, value - 100 * cell.ends[0])], [max(0.0, top - value)]]
        axes.errorbar(at, value, yerr=ends, color="#1d232b", capsize=2.5, linewidth=1, label="_")
    if numbered or cell.value is None:
        text = "–" if cell.value is None else f"{value:.0f}"
        axes.text(at, top + 1.5, text, ha="center", va="bottom", fontsize=7.5)


def _relearning(run: EvaluatedRun) -> Iterator[Drawing]:
    if run.relearning is not None:
        yield relearning_figure(run.relearning, colours(run), (WIDTH, 3.2))


def _certificates(run: EvaluatedRun) -> Iterator[Drawing]:
    for role in run.unlearned:
        if role.certificate is not None:
            yield from certificate_figures(role.name, role.certificate, colours(run)[role.name], WIDTH)


def _maps(run: EvaluatedRun) -> Iterator[Drawing]:
    features = run.features
    if features is None:
        return
    known = [role.name for role in run.roles if role.name in features.places]
    spots = [spot for role in known for spot in features.places[role]]
    if not spots:
        return
    limits = []
    for axis in (0, 1):
        low, high = min(s[axis] for s in spots), max(s[axis] for s in spots)
        margin = 0.06 * (high - low) or 1.0
        limits.append((low - margin, high + margin))
    targets = list(
        dict.fromkeys(s for s, part in zip(features.subjects, features.parts, strict=True) if part == "forget")
    )
    shown = len(features.subjects)
    for role in known:
        alt = f"{role}: {shown} test pictures in the plane of visual features, {len(targets)} forget subjects coloured."
        caption = f"Visual features under {role}: one point per test picture, the same plane and axes for every model."
        paint = _map_painter(run, role, features, targets, (limits[0], limits[1]))
        yield drawing(f"features-{role}", "features", caption, alt, (WIDTH, 4.5), paint)


def _map_painter(
    run: EvaluatedRun,
    role: str,
    features: Features,
    targets: list[str],
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> Callable[[Figure], None]:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        by_subject: dict[str, list[tuple[float, float]]] = {}
        for spot, subject, part in zip(features.places[role], features.subjects, features.parts, strict=True):
            by_subject.setdefault(subject if part == "forget" else "", []).append(spot)
        _scatter(axes, by_subject.get("", []), "#b4bbc4", "o", 6, "not to be forgotten")
        for place, subject in enumerate(targets):
            label = run.display(subject) if place < LEGEND_MOST else "_"
            marker = MARKERS[(place // len(COLOURS) + place) % len(MARKERS)]
            _scatter(axes, by_subject[subject], COLOURS[place % len(COLOURS)], marker, 22, label)
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("first component")
        axes.set_ylabel("second component")
        axes.set_title(role)
        figure.legend(loc="outside lower center", ncols=2, handletextpad=0.2)

    return paint


def _scatter(axes: Axes, spots: list[tuple[float, float]], colour: str, marker: str, size: int, label: str) -> None:
    edge = "none" if size < 10 else "white"
    axes.scatter(
        [x for x, _ in spots], [y for _, y in spots], s=size, c=colour, marker=marker, label=label,
        edgecolors=edge, linewidths=0.4,
    )  # fmt: skip


def _curves(run: EvaluatedRun) -> Iterator[Drawing]:
    for role in run.roles:
        for phase, records in role.history.items():
            terms = _terms(records)
            if terms:
                title = f"{role.name} · {phase}"
                alt = f"{title}. " + "; ".join(
                    f"{term}: from {line[0][1]:.3g} to {line[-1][1]:.3g} over {len(line)} records"
                    for term, line in terms.items()
                )
                caption = f"Training of {role.name}, phase “{phase}”: every term on its own axis."
                size = (WIDTH, 0.75 + 0.95 * len(terms))
                paint = _curve_painter(title, terms, colours(run)[role.name])
                yield drawing(f"history-{role.name}-{phase}", "history", caption, f"{alt}.", size, paint)


def _terms(records: list[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Every numeric term as (step, value); records without a step count from one, gaps stay gaps."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for number, record in enumerate(records, 1):
        step = number if record.get("step") is None else record["step"]
        for term, value in record.items():
            usual = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if term != "step" and usual:
                lines.setdefault(term, []).append((float(step), float(value)))
    return lines


def _curve_painter(title: str, terms: Mapping[str, list[tuple[float, float]]], colour: str) -> Callable[[Figure], None]:
    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(terms), sharex=True, squeeze=False)[:, 0]
        for axes, (term, line) in zip(panels, terms.items(), strict=True):
            values = [value for _, value in line]
            axes.plot([step for step, _ in line], values, color=colour, marker="." if len(line) < 3 else "")
            if min(values) > 0 and max(values) > 100 * min(values):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.grid(axis="y")
            axes.set_title(term, fontsize=8.5, fontweight="normal")
        panels[-1].set_xlabel("step")
        figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")

    return paint
