"""What every command does with its output: look before it writes, print afterwards. Light to import."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from unsee.errors import BadInput

SOURCE, OPTIONS = re.compile(r"^[a-z]+:"), re.compile(r",(?:group|name|forget)=.*$", re.DOTALL)  # around a DATA's path


def check_output(
    out: Path, overwrite: bool, resume: bool = False, kind: str = "results", inputs: Sequence[str | Path | None] = ()
) -> None:
    """Refuse an output that is in the way, cannot be written, or would destroy something unsee did not make.

    Args:
        kind: `results` (a folder that files are written into), `demo` (the same with models), `checkpoint` (a folder
            that is replaced as a whole) or `file`.
        inputs: what the command reads; the output must not replace it, nor lie inside a folder of it.

    Raises:
        BadInput: see above.
    """
    if out.exists() and not (overwrite or resume):
        raise BadInput(f"--out {out}: exists; choose another place or add --overwrite")
    if out.exists() and out.is_dir() == (kind == "file"):
        found, expected = ("folder", "file") if kind == "file" else ("file", "folder")
        raise BadInput(f"--out {out}: is a {found}; expected a {expected}")
    if out.exists() and not _made_by_unsee(out, kind):
        raise BadInput(f"--out {out}: was not written by unsee and is left alone; remove it or choose another place")
    for given in inputs:
        place = OPTIONS.sub("", SOURCE.sub("", str(given)))
        read, target = Path(place).expanduser().resolve(), out.absolute().resolve()
        if given is None or not place or not read.exists():
            continue
        if read.is_dir() and read in target.parents:
            raise BadInput(f"--out {out}: lies inside {given}, which this command reads; choose another place")
        if kind in ("checkpoint", "file") and read.is_relative_to(target):
            raise BadInput(f"--out {out}: would replace {given}, which this command reads; choose another place")
    parent = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if parent != out.absolute() and not parent.is_dir():
        raise BadInput(f"--out {out}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK):
        raise BadInput(f"--out {out}: {parent} cannot be written to")


def _made_by_unsee(out: Path, kind: str) -> bool:
    """Whether an output of this kind stands at `out`, or nothing that could be lost."""
    if kind == "file":
        with out.open("rb") as file:
            head = file.read(1 << 16)
            file.seek(max(0, out.stat().st_size - (1 << 16)))
            tail = file.read()
        ours = any(m in head for m in (b'"unsee-moments-', b'"unsee-patch-')) or (
            tail.endswith(b"PAR1") and b"unsee-table-1" in tail
        )
        return ours or not head
    marks = {
        "checkpoint": ("unsee.json",),
        "results": (
            *("predictions/*.origin.json", "protocol/*/*.origin.json", "attacks.origin.json", "probes.origin.json"),
            "grid.json",
        ),
        "demo": ("predictions/*.origin.json", "models/vanilla/unsee.json"),
    }
    return any(any(out.glob(mark)) for mark in marks[kind]) or not any(path.is_file() for path in out.rglob("*"))


def present(value: Any, as_json: bool, table: Any, note: str = "") -> None:
    """Print a result: as JSON, or as what the function `table` returns (None: no table), with a note below."""
    from unsee.terminal import output

    if as_json:
        typer.echo(json.dumps(value, indent=2, default=str))
        return
    if table is not None:
        output.print(table())
    if note:
        typer.echo(note)
