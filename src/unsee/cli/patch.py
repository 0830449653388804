"""`unsee patch`: small exact differences of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.cli.options import JsonOption, LinkOption, OutOption, OverwriteOption
from unsee.output import check_output, present

patch = typer.Typer(no_args_is_help=True, help="Small exact differences of checkpoints: make, apply, revert, show.")

ModelOption = Annotated[Path, typer.Option("--model", help="checkpoint folder; only read")]
PatchesOption = Annotated[list[Path], typer.Option("--patch", help="from `unsee patch make`; several: in order")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="onto a fine-tuned descendant: the float difference, no promise")
]


@patch.command("make")
def make(
    before: Annotated[Path, typer.Option("--before", help="checkpoint folder before the edit")],
    after: Annotated[Path, typer.Option("--after", help="checkpoint folder after it")],
    out: OutOption,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the difference of two checkpoints as one small safetensors file."""
    check_output(out, overwrite, kind="file", inputs=[before, after])
    from unsee.checkpoint.patch import make_patch

    about = make_patch(before, after, out)
    note = f"patch: {out} ({len(about['tensors'])} tensors, {about['bytes']} bytes, {about['share']:.1%} of {before})"
    for side, folder in (("base", before), ("result", after)):
        if left := about[side]["left_out"]:
            note += f"\nnot part of it, in {folder}: {', '.join(left)}"
    present(about, as_json, None, note)


@patch.command("apply")
def apply(
    model: ModelOption,
    patches: PatchesOption,
    out: OutOption,
    force: ForceOption = False,
    link: LinkOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the checkpoint that patches lead to from their base."""
    _carry(model, patches, out, False, force, link, overwrite, as_json)


@patch.command("revert")
def revert(
    model: ModelOption,
    patches: PatchesOption,
    out: OutOption,
    force: ForceOption = False,
    link: LinkOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the checkpoint that patches were made from, out of their result."""
    _carry(model, patches, out, True, force, link, overwrite, as_json)


@patch.command("show")
def show(file: Annotated[Path, typer.Argument(help="from `unsee patch make`")], as_json: JsonOption = False) -> None:
    """Say what a patch is: base, result, request, method, size, tensors."""
    from unsee.checkpoint.patch import PatchFile, describe
    from unsee.cli.terminal import plain_table

    about = describe(PatchFile(file))
    present(about, as_json, lambda: plain_table(("patch", str(file)), _rows(about)))


def _carry(
    model: Path,
    patches: list[Path],
    out: Path,
    back: bool,
    force: bool,
    link: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    check_output(out, overwrite, kind="checkpoint", inputs=[model, *patches])
    from unsee.checkpoint.apply_patch import carry_patches
    from unsee.checkpoint.write import said

    opens: Callable[[Path, Path], None] | None = None
    if force:
        from unsee.models.loading import opens_alike

        opens = opens_alike
    about = carry_patches(model, patches, out, back, force, opens, link)
    notes = []
    for step in about["patches"]:
        if step["exact"]:
            notes.append(f"{step['patch']}: exact, every file as recorded")
            continue
        notes.append(f"{step['patch']}: forced, since {step['differs']}; nothing measured of it holds here")
    notes += [said(about["untouched"]), f"model: {out}"]
    table = _drift_table(about) if not all(step["exact"] for step in about["patches"]) else None
    present(about, as_json, table, "\n".join(notes))


def _drift_table(about: dict[str, Any]) -> Any:
    from unsee.cli.terminal import plain_table

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f} %"

    rows = []
    for step in about["patches"]:
        for key, layer in ({} if step["exact"] else step["drift"]["tensors"]).items():
            rows.append((key, *(percent(layer[what]) for what in ("distance", "change", "change_here"))))
    heads = ("tensor", "distance from what the patch was made for", "patch changes there", "patch changes here")
    return lambda: plain_table(heads, rows)


def _rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    request = about["request"]
    rows = [
        ("format", about["format"]),
        ("sha256", about["sha256"]),
        ("size", f"{about['bytes']} bytes, {about['share']:.1%} of the base"),
        ("method", str(request["method"] or "not recorded")),
        ("request", ", ".join(request["forget"] or []) or "not recorded"),
        ("made", str(request["created"] or "not recorded")),
    ]
    for side in ("base", "result"):
        files = about[side]["files"].items()
        lines = [about[side]["name"], *(f"{digest[:12]}…  {name}" for name, digest in files)]
        rows.append((side, "\n".join(lines)))
    for key, tensor in about["tensors"].items():
        if tensor["coding"] == "whole":
            rows.append((key, f"whole, both sides, {tensor['bytes']} bytes"))
            continue
        coding = f"factors of rank {tensor['rank']}" if tensor["rank"] else "in full"
        rows.append((key, f"{tensor['dtype']} {tensor['shape']}, {coding}, {tensor['bytes']} bytes"))
    return rows
