"""What probes found, as tables, a figure and one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from unsee.reporting.comparison import PROVENANCE
from unsee.reporting.figures import COLOURS, FIXED
from unsee.reporting.parts import UNSCORED, WIDTH, Drawing, Measured, Row, Score, Section, drawing, interval, templates

GOLD, RANDOM = "gold", "random"
GROUPS = ("forget", "retain")


def sections(results: Measured) -> list[Section]:
    """Forgotten subjects, then the retained ones as a check that stages can be read at all; rows are stages."""
    roles = [role for role in results if role not in ("settings", "provenance")]
    chance = 1 / (len(results["provenance"]["forget"]) + len(results["provenance"]["others"]))
    titles = {"forget": "Forgotten subjects", "retain": "Retained subjects"}
    texts = {
        "forget": "Test pictures of forgotten subjects that a linear probe names right, in %, with 95 % intervals "
        f"clustered by subject; chance is {100 * chance:.1f} %. Alone this says nothing: towers tell people apart whom "
        "they never saw. Over gold, in points: what this model holds beyond one that never saw the pictures.",
        "retain": "The same about retained subjects: where these cannot be named, the stage is broken or unreadable, "
        "and that the forgotten cannot be named says nothing about forgetting.",
    }
    measured = [role for role in roles if results[role]["stages"] and role not in (GOLD, RANDOM)]
    compared = [role for role in measured if GOLD in roles]
    found = []
    for group in GROUPS:
        head = ("stage", *roles, *(f"{role} over gold" for role in compared))
        rows = tuple(_row(stage, group, results, roles, compared) for stage in results[roles[0]]["stages"])
        drawn = (_figure(group, titles[group], results, roles),)
        found.append(Section(titles[group], texts[group], head, rows, drawn, folded=group == "retain"))
    return found


def _row(stage: str, group: str, results: Measured, roles: Sequence[str], compared: Sequence[str]) -> Row:
    at = {role: results[role]["stages"][stage] for role in roles}
    return (
        stage,
        *(interval(at[role][group]) for role in roles),
        *(points(at[role]["over_gold"][group]) for role in compared),
    )


def points(difference: Measured) -> str:
    """A difference of shares in points with its interval."""
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if value is None:
        return UNSCORED
    ends = "" if low is None or high is None else f" [{100 * low:+.0f} to {100 * high:+.0f}]"
    return f"{100 * value:+.1f}{ends}".replace("-", "−")


def _figure(group: str, title: str, results: Measured, roles: Sequence[str]) -> Drawing:
    names = list(results[roles[0]]["stages"])
    lines = {
        role: [
            Score.parse(results[role]["stages"][name][group], f"probes.json: {role}.{name}.{group}") for name in names
        ]
        for role in roles
    }
    own = [role for role in roles if role not in (*FIXED, RANDOM)]
    colour = {RANDOM: "#b4bbc4", **FIXED, **{role: COLOURS[i % len(COLOURS)] for i, role in enumerate(own)}}

    def paint(page: Figure) -> None:
        axes = page.add_subplot()
        for role, line in lines.items():
            ends = [one.ends or (one.value or 0.0, one.value or 0.0) for one in line]
            heights = [100 * (one.value or 0.0) for one in line]
            axes.plot(names, heights, color=colour[role], marker="o", markersize=3.5, label=role)
            low, high = ([100 * end[side] for end in ends] for side in (0, 1))
            axes.fill_between(names, low, high, color=colour[role], alpha=0.16, linewidth=0)
        axes.set_ylim(0, 105)
        axes.set_ylabel("pictures named right, %")
        axes.tick_params(axis="x", labelrotation=30)
        axes.grid(axis="y")
        axes.set_title(title)
        page.legend(loc="outside lower center", ncols=min(4, len(lines)), handlelength=1.6)

    said = "; ".join(
        f"{role}: " + ", ".join(f"{name} {one.words}" for name, one in zip(names, line, strict=True))
        for role, line in lines.items()
    )
    caption = "What a linear probe reads out of each stage. Bands are 95% intervals clustered by subject. Good is gold."
    return drawing(f"probes-{group}", "probes", caption, f"{title}. {said}.", (WIDTH, 3.6), paint)


def page(results: Measured) -> str:
    """The page as text. The same results give the same bytes."""
    shown, about = sections(results), results["provenance"]
    return (
        templates()
        .get_template("comparison.html.j2")
        .render(
            kind="probe",
            heading="What can still be read out",
            sections=shown,
            markup={one.name: Markup(one.inline) for section in shown for one in section.drawings},
            provenance=dict.fromkeys(PROVENANCE) | dict(about),
            settings=None,
            cases=[{"data": about["data"]["source"], "request": f"{len(about['forget'])} subjects"}],
        )
    )


def csv_rows(results: Measured) -> Iterator[dict[str, Any]]:
    """A row per model, stage and group."""
    for role in (role for role in results if role not in ("settings", "provenance")):
        for stage, found in results[role]["stages"].items():
            for group in GROUPS:
                row = {"role": role, "stage": stage, "group": group, **found[group]}
                for base in ("over_gold", "over_random"):
                    against = (found[base] or {}).get(group, {})
                    row |= {base: against.get("value")}
                    row |= {f"{base}_{end}": against.get(end) for end in ("low", "high")}
                yield row | {key: found[key] for key in ("width", "ridge")}
