"""`unsee probe`: what can still be read out of a model's inside."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from unsee.device import choose_device
from unsee.options import (
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
    from unsee.audit.probe import Probing
    from unsee.data.sources import load_data
    from unsee.experiments.probe import probe as carry_out
    from unsee.reporting.probing import sections
    from unsee.terminal import plain_table

    chosen, loaded = from_text(Probing, settings or []), load_data(data)
    results = carry_out(models, loaded, loaded.choose(forget, seed), chosen, seed, out, resume)

    def table() -> Any:
        return plain_table(*sections(results)[0].short())

    present(results, as_json, table, f"forgotten subjects named right, in %; page: {out / 'probes.html'}")
