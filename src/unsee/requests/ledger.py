"""An append-only, hash-chained file of JSON lines: what was asked for, what was done, in which order.

Every line proves its own bytes and its place, see `unsee.requests.records`. Whole lines missing at the end, and a
chain written anew from some line on, look sound by themselves: only a head kept elsewhere shows them.

To append is to write the whole file anew under another name and rename it (`write_durably`), not to write at its end: a
line torn by a crash could not be told from one torn by hand, so either every crash would read as damage or some damage
as a crash; and a journal beside it would be a second file to protect. The price is the size of the file per record:
see docs/ledger.md, which measures it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from unsee.errors import BadInput
from unsee.requests.records import EMPTY, HASH, KIND, Record, line_of, lines_of, plain, record_of
from unsee.storage import exclusive, make_folder, partial_of, write_durably

LEDGER = "ledger.jsonl"
SALT = "salt"  # see `unsee.requests.subjects`
LOCK = "lock"


class Damaged(BadInput):
    """A ledger that is not what was once written, as far as can be told."""


class Ledger:
    """The records in `folder / LEDGER`, read and verified; get one by `Ledger.open`.

    Attributes:
        folder: where the file is; nothing else in it is read or written here but `LOCK`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._raw = b""  # the file as it was last read
        self._records: tuple[Record, ...] = ()
        self._locked = False

    @classmethod
    def open(cls, folder: Path, create: bool = False) -> Ledger:
        """Read the ledger in `folder`; what a killed process left half-written is removed.

        Args:
            create: take a folder without a ledger, or no folder, for an empty one; a folder is made.

        Raises:
            Damaged: any line is not as it was written. BadInput: no ledger there, or it cannot be read.
        """
        ledger = cls(folder)
        if create:
            try:
                make_folder(folder)
            except OSError as error:
                raise BadInput(f"{folder}: cannot be made as a folder ({error.strerror}); choose another") from error
        elif not ledger.path.exists():
            raise BadInput(f"{folder}: holds no ledger ({LEDGER}); check the path, or add a first request")
        if any(partial.exists() for partial in ledger._partials):
            # Not to be had: another process is writing it at this moment, or nobody may write here.
            with contextlib.suppress(BadInput), ledger.locked(wait=False):
                pass
        ledger._refresh()
        return ledger

    @property
    def path(self) -> Path:
        return self.folder / LEDGER

    @property
    def records(self) -> tuple[Record, ...]:
        """As they were when the ledger was opened, locked or appended to last."""
        return self._records

    @property
    def head(self) -> str:
        """Hash of the last record: keep it elsewhere. `EMPTY` if there is none."""
        return self._records[-1].hash if self._records else EMPTY

    @contextmanager
    def locked(self, wait: bool = True) -> Iterator[None]:
        """Let no other process append while the block runs; what others appended before is read. May be nested.

        Args:
            wait: for another process, after one line that names it; else refuse at once.

        Raises:
            BadInput: not to be had, see `exclusive`. Damaged: the file changed in other ways than by appending.
        """
        if self._locked:
            yield
            return
        with exclusive(self.folder / LOCK, wait):
            self._locked = True
            try:
                self._remove_partials()
                self._refresh()
                yield
            finally:
                self._locked = False

    def append(self, kind: str, content: Mapping[str, Any]) -> Record:
        """Add one record; when this returns it is on disk.

        Args:
            kind: lower-case letters and '-'.
            content: JSON: texts, finite numbers, booleans, None, lists, mappings with texts as keys.

        Raises:
            BadInput: a content that would not read back as it was given, or a file that cannot be written; the ledger
                is as it was. Damaged: see `locked`.
        """
        if not KIND.fullmatch(kind):
            raise BadInput(f"{self.path}: kind '{kind}'; expected lower-case letters and '-'")
        try:
            sorted_content = plain(content, "content")
        except ValueError as error:
            raise BadInput(f"{self.path}, new record of kind {kind}: {error}") from error
        with self.locked():
            self._refresh()  # the lock may have been held for hours
            time = datetime.now(timezone.utc).isoformat(timespec="seconds")
            line = line_of(len(self._records) + 1, time, kind, sorted_content, self.head)
            write_durably(self.path, self._raw + line)
            self._take(line)
        return self._records[-1]

    def verify(self, head: str | None = None) -> None:
        """Read the file again, every line of it.

        Args:
            head: what `head` was at some time, from where it was kept. Shows that everything written up to then is
                still there and unchanged; without it, whole lines missing at the end and a chain written anew are not
                noticed.

        Raises:
            Damaged: not as it was written, or without `head`. BadInput: `head` is no hash.
        """
        fresh = Ledger(self.folder)
        fresh._refresh()
        if head is not None and not HASH.fullmatch(head):
            raise BadInput(f"head '{head[:80]}': expected the 64 hexadecimal digits that were printed")
        hashes = {EMPTY, *(record.hash for record in fresh.records)}
        for kept in (self.head, head or self.head):
            if kept not in hashes:
                raise Damaged(
                    f"{self.path}: none of its {len(fresh.records)} records has the hash {kept}; lines were removed or "
                    "written anew since it was kept, or it is of another ledger. Compare with a copy"
                )

    @property
    def _partials(self) -> tuple[Path, ...]:
        return partial_of(self.path), partial_of(self.folder / SALT)

    def _remove_partials(self) -> None:
        for partial in self._partials:
            try:
                partial.unlink(missing_ok=True)
            except OSError as error:
                raise BadInput(f"{partial}: cannot be removed ({error.strerror}); check permissions") from error

    def _refresh(self) -> None:
        """Read what was appended since."""
        if self.path.is_symlink():
            raise BadInput(f"{self.path}: is a link; give the folder in which the file itself is")
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raw = b""
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error.strerror}); check the path and permissions") from error
        if not raw.startswith(self._raw):
            raise Damaged(f"{self.path}: no longer begins with what was read from it before; compare with a copy")
        self._take(raw[len(self._raw) :])

    def _take(self, more: bytes) -> None:
        found, head = [], self.head
        for number, line in enumerate(lines_of(more), len(self._records) + 1):
            try:
                found.append(record_of(line, number, head))
            except ValueError as error:
                raise Damaged(
                    f"{self.path}, line {number}: {error}; it was changed after it was written, compare with a copy"
                ) from error
            head = found[-1].hash
        self._records, self._raw = (*self._records, *found), self._raw + more
