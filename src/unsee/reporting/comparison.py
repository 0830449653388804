"""The page of `unsee compare`, `unsee study search` and `unsee study ablate`, from their results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from markupsafe import Markup

from unsee.reporting.ablated import ablated
from unsee.reporting.compared import compared
from unsee.reporting.parts import UNSCORED, Drawing, Measured, Row, Section, duration, percent, templates

PROVENANCE = ("created", "command", "commit", "dirty", "runs_made_at", "warnings")  # may all be absent
HEAD = ("method", "settings", "total", "distance to gold", "retain drop", "attributes drop", "text drop", "time")


def searched(results: Measured) -> Iterator[Section]:
    """Settings under the same budget: tables of `search.json`."""
    limit = f"{results['tries']} tries at most, {duration(results['seconds'])} each"
    for family in dict.fromkeys(case["family"] for case in results["cases"]):
        arms = [arm for arm in results["arms"] if arm["family"] == family]
        text = (
            f"The best of {limit}, in percentage points on the test pictures of the validation people, mean over runs. "
            "Judged by the total: the weighted sum of the distance to gold and of everything lost against vanilla. "
            "Time: the longest edit."
        )
        best = tuple(_best(arm) for arm in arms)
        yield Section(f"{family}: settings found", text, HEAD, best, brief=(0, 1, 2, 3, 4, 7))
        every = tuple((*_row(arm, tried), tried["status"]) for arm in arms for tried in arm["tries"])
        text = (
            "A try over the budget, or with a run that broke down, is never chosen. One that is beaten was stopped "
            "when its totals added up to more than those of a better one: its means are over the runs until then."
        )
        yield Section(f"{family}: every try", text, (*HEAD, "status"), every, folded=True)


def _best(arm: Measured) -> Row:
    if arm["chosen"] is None:
        return (arm["arm"], "nothing within the budget", *[UNSCORED] * (len(HEAD) - 2))
    return _row(arm, arm["tries"][arm["chosen"]])


def _row(arm: Measured, tried: Measured) -> Row:
    drops = (percent(tried["drops"][what]) for what in ("retain", "attributes", "text"))
    settings = " ".join(f"{key}={value}" for key, value in tried["searched"].items()) or "as given"
    scores = (percent(tried["total"]), percent(tried["distance"]), *drops)
    return (arm["arm"], settings, *scores, duration(tried["seconds"]))


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
