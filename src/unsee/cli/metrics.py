"""`unsee metrics`: what can be measured, how to read it, and which measures can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.cli.options import DeviceOption, JobsOption, JsonOption, OutOption, OverwriteOption, ResumeOption
from unsee.device import choose_device
from unsee.output import check_output, present

metrics = typer.Typer(invoke_without_command=True)


@metrics.callback()
def listed(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the measures: what a higher value says, range, cost, the command that takes it, formula, source."""
    if context.invoked_subcommand is not None:
        return
    from unsee.cli.terminal import plain_table
    from unsee.evaluation.metrics import MEASURES, OTHER_COMMANDS
    from unsee.evaluation.metrics.base import ASKED_WITH, About, Cost

    places: list[tuple[str, str, Mapping[str, About], Mapping[Cost, str]]] = [
        ("unsee evaluate", "", MEASURES, ASKED_WITH),
        ("unsee sequence", "sequence.", OTHER_COMMANDS["sequence"], {}),
        ("unsee probe", "probes.", OTHER_COMMANDS["probes"], {}),
        ("unsee relearn", "relearn.", OTHER_COMMANDS["relearn"], {}),
    ]
    about: dict[str, dict[str, Any]] = {
        file + name: {
            "higher": m.higher,
            "range": list(m.span),
            "cost": list(m.cost),
            "command": command,
            "options": [asked_with[cost] for cost in m.cost if cost in asked_with],
            "formula": m.formula,
            "source": m.source,
        }
        for command, file, known, asked_with in places
        for name, m in known.items()
    }
    rows = [
        (
            name,
            m["higher"],
            "{:g} to {:g}".format(*m["range"]),
            ", ".join(m["cost"]),
            " ".join([m["command"], *m["options"]]),
            m["source"],
        )
        for name, m in about.items()
    ]

    heads = ("measure", "higher: it", "range", "needs", "taken by", "source")
    present(about, as_json, lambda: plain_table(heads, rows))


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
    from unsee.cli.terminal import plain_table
    from unsee.study.audit_measures import SETTINGS, STEM, audit_measures, read_audit
    from unsee.study.audit_measures import table as table_of
    from unsee.study.grid import reads

    chosen = read_audit(grid)
    check_output(out, overwrite, resume, inputs=[grid, *reads(chosen.cases)])
    choose_device(device)
    results = audit_measures(chosen, out, resume, jobs)
    note = f"whole table: {out / STEM}.md; settings: {out / SETTINGS}"
    present(results, as_json, lambda: plain_table(*table_of(results)), note)
