"""`unsee probe`: what can still be read out of a model's inside."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from unsee.cli.options import (
    DataOption,
    DeviceOption,
    ForgetOption,
    JsonOption,
    ModelsOption,
    OutOption,
    OverwriteOption,
    ResumeOption,
    SeedOption,
    roles,
)
from unsee.device import choose_device
from unsee.output import check_output, present
from unsee.settings import from_text

SettingsOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, see docs/probes.md")]


def probe(
    model: ModelsOption,
    data: DataOption,
    forget: ForgetOption,
    out: OutOption,
    settings: SettingsOption = None,
    seed: SeedOption = 10,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask linear probes who is seen at every stage of models, beside gold and random weights."""
    models = roles(model)
    check_output(out, overwrite or not (out / "probes.jsonl").exists(), resume, inputs=[data, *models.values()])
    choose_device(device)
    from unsee.attacks.probe import Probing
    from unsee.attacks.probe import probe as carry_out
    from unsee.cli.terminal import plain_table
    from unsee.data.sources import load_data
    from unsee.reporting.probing import sections

    chosen, loaded = from_text(Probing, settings or []), load_data(data)
    results = carry_out(models, loaded, loaded.choose(forget, seed), chosen, seed, out, resume)

    def table() -> Any:
        return plain_table(*sections(results)[0].short())

    present(results, as_json, table, f"forgotten subjects named right, in %; page: {out / 'probes.html'}")
