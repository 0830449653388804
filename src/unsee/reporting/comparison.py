"""The page of `unsee compare`, `unsee study search` and `unsee study ablate`, from their results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from markupsafe import Markup

from unsee.reporting.ablated import ablated
from unsee.reporting.compared import compared
from unsee.reporting.drawing import Drawing
from unsee.reporting.page import templates
from unsee.reporting.searched import searched
from unsee.reporting.section import Measured, Section

PROVENANCE = ("created", "command", "commit", "dirty", "runs_made_at", "warnings")  # may all be absent
KINDS: dict[str, tuple[str, Callable[[Measured], Iterable[Section]]]] = {
    "compare": ("Methods side by side", compared),
    "search": ("Settings under the same budget", searched),
    "ablation": ("Arms at matched forgetting", ablated),
}


def sections(results: Measured) -> list[Section]:
    """What `compare.json`, `search.json` or `ablation.json` holds, in the order of the page."""
    return list(KINDS[results["kind"]][1](results))


def page(results: Measured) -> tuple[str, tuple[Drawing, ...]]:
    """The page as text, and its figures. The same results give the same bytes."""
    template = templates().get_template("comparison.html.j2")
    shown = sections(results)
    drawings = tuple(one for section in shown for one in section.drawings)
    text = template.render(
        kind=results["kind"],
        heading=KINDS[results["kind"]][0],
        sections=shown,
        markup={one.name: Markup(one.inline) for one in drawings},
        provenance=dict.fromkeys(PROVENANCE) | dict(results.get("provenance", {})),
        settings=results.get("settings"),
        cases=results["cases"],
    )
    return text, drawings
