"""`unsee metrics`: what can be measured, how to read it, and which measures can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.device import choose_device
from unsee.options import DeviceOption, JobsOption, JsonOption, OutOption, OverwriteOption, ResumeOption
from unsee.output import check_output, present

metrics = typer.Typer(invoke_without_command=True)

# What `unsee evaluate` has to be given for a measure that costs this; all else it takes by itself, where DATA has it.
ASKED_WITH = {"gold model": "--model gold=PATH", "reference model": "--reference MODEL", "gradients": "--gradients"}


@metrics.callback()
def listed(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the measures: what a higher value says, range, cost, option of `unsee evaluate`, formula, source."""
    if context.invoked_subcommand is not None:
        return
    from unsee.evaluation.metrics import MEASURES
    from unsee.terminal import plain_table

    about: dict[str, dict[str, Any]] = {
        name: {
            "higher": m.higher,
            "range": list(m.span),
            "cost": list(m.cost),
            "options": [ASKED_WITH[cost] for cost in m.cost if cost in ASKED_WITH],
            "formula": m.formula,
            "source": m.source,
        }
        for name, m in MEASURES.items()
    }
    rows = [
        (
            name,
            m["higher"],
            "{:g}–{:g}".format(*m["range"]),
            ", ".join(m["cost"]),
            " ".join(m["options"]),
            m["source"],
        )
        for name, m in about.items()
    ]

    def table() -> Any:
        shown = plain_table(("measure", "higher: it", "range", "needs", "option", "source"), rows)
        shown.columns[0].no_wrap = True  # a name is to be copied
        return shown

    present(about, as_json, table)


@metrics.command("audit")
def audit(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file, see docs/verdict.md")],
    out: OutOption,
    jobs: JobsOption = 1,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say which measures tell models that know from models that never saw, on many of both."""
    from unsee.experiments.audit_measures import SETTINGS, audit_measures, read_audit
    from unsee.experiments.audit_measures import table as table_of
    from unsee.experiments.grid import reads
    from unsee.terminal import plain_table

    chosen = read_audit(grid)
    check_output(out, overwrite, resume, inputs=[grid, *reads(chosen.cases)])
    choose_device(device)
    results = audit_measures(chosen, out, resume, jobs)
    present(results, as_json, lambda: plain_table(*table_of(results)), f"settings: {out / SETTINGS}")
