"""`unsee pocket`: small models to try things on."""

from __future__ import annotations

from typing import Annotated

import typer

from unsee.cli.options import DataOption, JsonOption, OutOption, OverwriteOption, SeedOption
from unsee.output import check_output, present, short

pocket = typer.Typer(no_args_is_help=True, help="Small models to try things on.")


@pocket.command("build")
def pocket_build(
    data: DataOption,
    out: OutOption,
    family: Annotated[str, typer.Option(help="model family")] = "llava",
    seed: SeedOption = 10,
    without_images_of: Annotated[
        list[str] | None, typer.Option(help="SUBJECTS whose pictures are never shown: this makes the gold model")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a pocket model on DATA (cached), or its gold model."""
    check_output(out, overwrite, kind="checkpoint", inputs=[data])
    from unsee.data.sources import load_data
    from unsee.lab.build import build_pocket

    loaded = load_data(data)
    hidden = loaded.choose(without_images_of, seed, "--without-images-of") if without_images_of else ()
    manifest = build_pocket(family, loaded, seed, out, hidden)
    present(short(manifest), as_json, None, f"model: {out} (trained in {manifest['seconds']:.0f} s)")
