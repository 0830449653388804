"""`unsee metrics`: what can be measured, and how to read it."""

from __future__ import annotations

from typing import Any

from unsee.options import JsonOption
from unsee.output import present


def metrics(as_json: JsonOption = False) -> None:
    """List the measures: what a higher value says, range, what they cost, formula and source."""
    from unsee.evaluation.metrics import MEASURES
    from unsee.terminal import plain_table

    about: dict[str, dict[str, Any]] = {
        name: {
            "higher": m.higher,
            "range": list(m.span),
            "cost": list(m.cost),
            "formula": m.formula,
            "source": m.source,
        }
        for name, m in MEASURES.items()
    }
    rows = [
        (name, m["higher"], "{:g}–{:g}".format(*m["range"]), ", ".join(m["cost"]), m["source"])
        for name, m in about.items()
    ]

    def table() -> Any:
        listed = plain_table(("measure", "higher: it", "range", "needs", "source"), rows)
        listed.columns[0].no_wrap = True  # a name is to be copied
        return listed

    present(about, as_json, table)
