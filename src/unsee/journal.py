"""JSON lines that a broken run goes on from: one line per finished piece of work, and whose they are beside them.

A journal belongs to one run. What shapes the run (models, data, request, settings), its identity, stands in
`NAME.origin.json`; lines without it are nobody's. Each line is on the disk before the next piece of work begins. What a
crash or a full disk leaves of a line is not a line: it is left out when the journal is read, and gone when it is
written next.

Several processes may write at once, each its own share: process 0 the file itself, process N `NAME.jsonl.N`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsee.errors import BadInput
from unsee.storage import make_folder, unwritten, write_all, write_durably

Line = dict[str, Any]
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Journal:
    """The lines of one run.

    Attributes:
        path: `NAME.jsonl`.
        identity: what shapes the run, as JSON has it.
        other: what is said of lines of another run.
        same: whether the identity of an earlier run, by which lines stand there, is good enough to go on; default: it
            is equal.
    """

    path: Path
    identity: Identity
    other: str = "answers of another model, data set or request"
    same: Callable[[Line], bool] | None = None

    def left(self, resume: bool) -> list[Line]:
        """The whole lines that an earlier run of this identity left, of all processes; none without `resume`.

        Raises:
            BadInput: they are of another run, or damaged.
        """
        if not (resume and self.path.exists()):
            return []
        known = self._known()
        same = known is not None and (self.same(known) if self.same is not None else known == self.identity)
        if not same:
            raise BadInput(f"{self.path}: {self.other}; use --overwrite instead of --resume")
        return self.lines()

    def begin(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """Let the journal hold these lines alone, and be of this run. Raises BadInput: it cannot be written."""
        try:
            make_folder(self.path.parent)
        except OSError as error:
            raise unwritten(self.path, error, renamed=False) from error
        about = json.dumps(self.identity, indent=2, ensure_ascii=False) + "\n"
        if self._known() != json.loads(about):  # lines of another run go first: they must not pass for this one's
            self.path.unlink(missing_ok=True)
        write_durably(self._origin, about.encode())
        write_durably(self.path, b"".join(map(_bytes, lines)))
        for share in self._shares():
            share.unlink()

    def append(self, lines: Iterable[Mapping[str, Any]], process: int = 0) -> None:
        """Add lines to a process's share; when this returns they are on the disk.

        Raises:
            BadInput: disk full, no permission, ...; the share holds what it did before.
        """
        file, content = self._share(process), b"".join(map(_bytes, lines))
        try:
            append_durably(file, content)
        except OSError as error:
            raise BadInput(
                f"{file}: cannot be written ({error.strerror or error}); what is finished is kept: free space or check "
                "permissions, then go on with --resume"
            ) from error

    def lines(self) -> list[Line]:
        """All whole lines, of one process after the other. Raises BadInput, see `read_lines`."""
        return [line for file in (self.path, *self._shares()) for line in read_lines(file)]

    @property
    def _origin(self) -> Path:
        return self.path.with_suffix(".origin.json")

    def _known(self) -> Line | None:
        """Whose lines stand there; None if nobody says."""
        try:
            known = json.loads(self._origin.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) else None

    def _share(self, process: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{process}") if process else self.path

    def _shares(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}.*"))


def append_durably(file: Path, content: bytes) -> None:
    """Write at the end of a file, through to the disk; what cannot be written whole is taken back. Raises OSError."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        try:
            write_all(handle, content)
            os.fsync(handle)
        except OSError:
            with suppress(OSError):  # a reader leaves half a line out
                os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def read_lines(path: Path) -> Iterator[Line]:
    """The complete lines of a file; a last one that was cut off by a crash is left out.

    Raises:
        BadInput: cannot be read, or a line is no JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check the path and permissions") from error
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            return
        try:
            yield json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: line {number} is not JSON ({error}); delete the file") from error


def json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _bytes(line: Mapping[str, Any]) -> bytes:
    return json_line(line).encode()
