"""`unsee protocol`: a public benchmark's own table, as published and corrected."""

from __future__ import annotations

from typing import Annotated

import typer

from unsee.cli.options import (
    DeviceOption,
    JsonOption,
    ModelsOption,
    OutOption,
    OverwriteOption,
    ResumeOption,
    SeedOption,
    roles,
)
from unsee.device import choose_device
from unsee.errors import BadInput
from unsee.output import check_output, present

DataOption = Annotated[
    str, typer.Option("--data", help="mllmu:PATH, clear:PATH, umu:PATH or fiubench:PATH, see docs/protocols.md")
]


def protocol(
    model: ModelsOption,
    data: DataOption,
    out: OutOption,
    mode: Annotated[str, typer.Option("--mode", help="paper, corrected or both")] = "both",
    goal: Annotated[
        str, typer.Option("--goal", help="what was to be forgotten: visual-only or entity")
    ] = "visual-only",
    seed: SeedOption = 10,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask models what a benchmark asks, and print its table."""
    models = roles(model)
    check_output(out, overwrite, resume, inputs=[data, *models.values()])
    choose_device(device)
    from rich.console import Group

    from unsee.cli.terminal import plain_table
    from unsee.evaluation.protocols import GOALS
    from unsee.study.protocol import modes_of, rows_of, run_protocol

    chosen = next((known for known in GOALS if known == goal), None)
    if chosen is None:
        raise BadInput(f"--goal {goal}: expected {' or '.join(GOALS)}")
    results = run_protocol(models, data, modes_of(mode), out, chosen, resume, seed)
    present(
        results,
        as_json,
        lambda: Group(*(plain_table(*rows_of(results, mode), keys=3) for mode in results["modes"])),
        f"results: {out / 'protocol.json'}",
    )
