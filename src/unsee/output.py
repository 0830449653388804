"""What everything that writes does first: look whether its output may stand there. Light to import."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unsee.data import OPTIONS, SOURCE
from unsee.errors import BadInput
from unsee.storage import check_utf8, sole_writer, true_path

_held = ExitStack()  # what this command writes, until it ends


def check_output(
    out: Path, overwrite: bool, resume: bool = False, kind: str = "results", inputs: Sequence[str | Path | None] = ()
) -> None:
    """Refuse an output that is in the way, cannot be written, or would destroy something unsee did not make.

    Until the command ends nobody else may write there, see `sole_writer`.

    Args:
        kind: `results` (a folder that files are written into), `demo` (the same with models), `checkpoint` (a folder
            that is replaced as a whole) or `file`.
        inputs: what the command reads; the output must not replace it, nor lie inside a folder of it.

    Raises:
        BadInput: see above.
    """
    _check_place(out, kind)
    hold_output(out)
    target = true_path(out)
    if out.exists() and not (overwrite or resume):
        raise BadInput(f"--out {out}: exists; choose another place or add --overwrite")
    if out.exists() and out.is_dir() == (kind == "file"):
        found, expected = ("folder", "file") if kind == "file" else ("file", "folder")
        raise BadInput(f"--out {out}: is a {found}; expected a {expected}")
    if out.exists() and not _made_by_unsee(out, kind):
        raise BadInput(f"--out {out}: was not written by unsee and is left alone; remove it or choose another place")
    for given in inputs:
        check_utf8(str(given))
        place = OPTIONS.sub("", SOURCE.sub("", str(given)))
        read = true_path(Path(os.path.expanduser(place)))
        if given is None or not place or not read.exists():
            continue
        if read.is_dir() and read in target.parents:
            raise BadInput(f"--out {out}: lies inside {given}, which this command reads; choose another place")
        if kind in ("checkpoint", "file") and read.is_relative_to(target):
            raise BadInput(f"--out {out}: would replace {given}, which this command reads; choose another place")


def hold_output(out: Path) -> None:
    """Let nobody else write there until the command ends. Raises BadInput, see `sole_writer`."""
    _held.enter_context(sole_writer(out))


@contextmanager
def output_of_command() -> Iterator[None]:
    """Around a command: afterwards others may write where it did."""
    with _held:
        yield


def _check_place(out: Path, kind: str) -> None:
    """Whether something of this kind can stand there, whatever stands there now."""
    check_utf8(f"--out {out}")
    true = true_path(out)
    for link in (out.absolute(), *out.absolute().parents):
        if link.is_symlink() and not link.exists() and not true_path(link).parent.is_dir():
            raise BadInput(
                f"--out {out}: {link} is a link to {os.readlink(link)}, where no folder is to hold it; make that "
                "folder, or mount its disk, or remove the link"
            )
    if true.is_symlink():
        raise BadInput(f"--out {out}: is a link that leads to itself; remove it or choose another place")
    if true.exists() and not (true.is_file() or true.is_dir()):
        raise BadInput(f"--out {out}: is a device or a pipe; expected a {'file' if kind == 'file' else 'folder'}")
    if kind == "checkpoint" and os.path.ismount(true):
        raise BadInput(f"--out {out}: a disk is mounted there, which cannot be replaced; choose a folder on it")
    parent = next(p for p in (true, *true.parents) if p.exists())
    if parent != true and not parent.is_dir():
        raise BadInput(f"--out {out}: {_as_given(parent, out)} is a file, not a folder")
    writes = parent if kind in ("results", "demo") or parent != true else true.parent
    if not os.access(writes, os.W_OK):
        raise BadInput(f"--out {out}: {_as_given(writes, out)} cannot be written to")


def _as_given(place: Path, out: Path) -> Path:
    """A folder above the output by the name it was given, if it has one."""
    return next((p for p in (out, *out.absolute().parents) if true_path(p) == place), place)


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
            "asked/*.origin.json",
            "grid.json",
        ),
        "demo": ("predictions/*.origin.json", "models/vanilla/unsee.json"),
    }
    return any(any(out.glob(mark)) for mark in marks[kind]) or not any(path.is_file() for path in out.rglob("*"))
