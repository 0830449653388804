"""`unsee probe`: what can still be read out of a model's inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.config import configured
from unsee.output import check_output, present

ModelsOption = Annotated[list[str], typer.Option("--model", help="ROLE=PATH, once per model; gold among them")]
DataOption = Annotated[str, typer.Option("--data", help="as for `unsee evaluate`")]
ForgetOption = Annotated[str, typer.Option("--forget", help="comma list, @file, first:N or random:N")]
OutOption = Annotated[Path, typer.Option("--out", help="where the result goes")]
SettingsOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, see docs/probes.md")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="of the random weights")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace an existing output")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="continue a broken run")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for machines")]


def probe(
    model: ModelsOption,
    data: DataOption,
    forget: ForgetOption,
    out: OutOption,
    settings: SettingsOption = None,
    seed: SeedOption = 10,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask linear probes who is seen at every stage of models, beside gold and random weights."""
    from unsee.cli import _roles

    models = _roles(model)
    check_output(out, overwrite or not (out / "probes.jsonl").exists(), resume, inputs=[data, *models.values()])
    from unsee.audit.probe import Probing
    from unsee.data.sources import load_data
    from unsee.experiments.probe import probe as carry_out
    from unsee.experiments.probe import sections
    from unsee.terminal import plain_table

    chosen, loaded = configured(Probing, settings or []), load_data(data)
    results = carry_out(models, loaded, loaded.choose(forget, seed), chosen, seed, out, resume)

    def table() -> Any:
        return plain_table(*sections(results)[0].short())

    present(results, as_json, table, f"forgotten subjects named right, in %; page: {out / 'probes.html'}")
