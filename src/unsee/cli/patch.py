"""`unsee patch`: small exact differences of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.cli.options import JsonOption, LinkOption, OutputOptions, present, with_options

patch = typer.Typer(no_args_is_help=True, help="Exact differences of checkpoints: make, apply, revert, show.")


@dataclass(frozen=True, kw_only=True)
class PatchOptions:
    """Patches, and the checkpoint that they lead on from or back from."""

    model: Annotated[Path, typer.Option("--model", help="checkpoint folder; only read")]
    patches: Annotated[list[Path], typer.Option("--patch", help="from `unsee patch make`; several: in order")]
    force: Annotated[
        bool, typer.Option("--force", help="onto a fine-tuned descendant: the float difference, no promise")
    ] = False
    link: LinkOption = False


@patch.command("make")
@with_options
def make(
    before: Annotated[Path, typer.Option("--before", help="checkpoint folder before the edit")],
    after: Annotated[Path, typer.Option("--after", help="checkpoint folder after it")],
    output: OutputOptions,
) -> None:
    """Write the difference of two checkpoints as one small file."""
    output.check("file", [before, after])
    from unsee.checkpoint.patch import make_patch

    about = make_patch(before, after, output.out)
    size = f"{len(about['tensors'])} tensors, {about['bytes']} bytes, {about['share']:.1%} of {before}"
    note = f"patch: {output.out} ({size})"
    for side, folder in (("base", before), ("result", after)):
        if left := about[side]["left_out"]:
            note += f"\nnot part of it, in {folder}: {', '.join(left)}"
    output.present(about, None, note)


@patch.command("apply")
@with_options
def apply(asked: PatchOptions, output: OutputOptions) -> None:
    """Write the checkpoint that patches lead to from their base."""
    _carry(asked, output, back=False)


@patch.command("revert")
@with_options
def revert(asked: PatchOptions, output: OutputOptions) -> None:
    """Write the checkpoint that patches were made from. Out of their result."""
    _carry(asked, output, back=True)


@patch.command("show")
def show(file: Annotated[Path, typer.Argument(help="from `unsee patch make`")], as_json: JsonOption = False) -> None:
    """Say what a patch is: base, result, request, method, size, tensors."""
    from unsee.checkpoint.patch import PatchFile, describe
    from unsee.cli.terminal import plain_table

    about = describe(PatchFile(file))
    present(about, as_json, lambda: plain_table(("patch", str(file)), _rows(about)))


def _carry(asked: PatchOptions, output: OutputOptions, back: bool) -> None:
    output.check("checkpoint", [asked.model, *asked.patches])
    from unsee.checkpoint.apply_patch import carry_patches
    from unsee.checkpoint.write import said

    opens: Callable[[Path, Path], None] | None = None
    if asked.force:
        from unsee.models.loading import opens_alike

        opens = opens_alike
    about = carry_patches(asked.model, asked.patches, output.out, back, asked.force, opens, asked.link)
    notes = []
    for step in about["patches"]:
        if step["exact"]:
            notes.append(f"{step['patch']}: exact, every file as recorded")
            continue
        notes.append(f"{step['patch']}: forced, since {step['differs']}; nothing measured of it holds here")
    notes += [said(about["untouched"]), f"model: {output.out}"]
    table = _drift_table(about) if not all(step["exact"] for step in about["patches"]) else None
    output.present(about, table, "\n".join(notes))


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
