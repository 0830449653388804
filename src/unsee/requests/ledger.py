"""An append-only, hash-chained file of JSON lines: what was asked for, what was done, in which order.

A line is in canonical form: ASCII, no white space, outer keys in the order below, all others sorted.

    {"number":1,"time":"2026-01-31T09:30:00+00:00","kind":"note","content":{},"previous":HASH,"hash":HASH}

`hash` is the SHA-256 of the line without `,"hash":"..."` and its newline, `previous` the hash of the line before, in
the first line `EMPTY`. Reading builds every line again from what it says and compares bytes, so a change of any byte
is found, white space and the last newline included. Whole lines missing at the end, and a chain written anew from some
line on, look sound by themselves: only a head kept elsewhere shows them.

To append is to write the whole file anew under another name and rename it (`write_durably`), not to write at its end: a
line torn by a crash could not be told from one torn by hand, so either every crash would read as damage or some damage
as a crash; and a journal beside it would be a second file to protect. The price is the size of the file per record:
see docs/ledger.md, which measures it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unsee.errors import BadInput
from unsee.storage import exclusive, make_folder, partial_of, write_durably

LEDGER = "ledger.jsonl"
SALT = "salt"  # see `unsee.requests.subjects`
LOCK = "lock"
EMPTY = hashlib.sha256(b"unsee ledger, format 1\n").hexdigest()  # the head of a ledger without records
HASH = re.compile(r"[0-9a-f]{64}")
KIND = re.compile(r"[a-z][a-z-]{0,31}")
DEPTH = 32  # levels of nesting in a content
WHOLE = 2**53  # beyond this, other readers of JSON round


@dataclass(frozen=True)
class LedgerRecord:
    """One line.

    Attributes:
        number: from 1.
        time: when it was written, UTC, by the clock of the machine.
        kind: what the content is about.
        content: a JSON object, immutable throughout: mappings for objects, tuples for lists.
        previous: hash of the record before, `EMPTY` for the first.
        hash: SHA-256 of everything else.
    """

    number: int
    time: str
    kind: str
    content: Mapping[str, Any]
    previous: str
    hash: str


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
        self._records: tuple[LedgerRecord, ...] = ()
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
    def records(self) -> tuple[LedgerRecord, ...]:
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

    def append(self, kind: str, content: Mapping[str, Any]) -> LedgerRecord:
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


# One record as one line of bytes, and back ----------------------------------------------------------------------------


def lines_of(raw: bytes) -> Iterator[bytes]:
    """With their newlines; the last may lack it."""
    start = 0
    while start < len(raw):
        end = raw.find(b"\n", start) + 1 or len(raw)
        yield raw[start:end]
        start = end


def line_of(number: int, time: str, kind: str, content: dict[str, Any], previous: str) -> bytes:
    """Canonical bytes of a record; `content` is sorted already, see `plain`."""
    fields = {"number": number, "time": time, "kind": kind, "content": content, "previous": previous}
    body = json.dumps(fields, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    return body[:-1] + b',"hash":"' + hashlib.sha256(body).hexdigest().encode("ascii") + b'"}\n'


def record_of(line: bytes, number: int, previous: str) -> LedgerRecord:
    """The record of a line, which must be the `number`th and follow `previous`.

    Raises:
        ValueError: it is any other, or not exactly as `line_of` writes it.
    """
    if not line.endswith(b"\n"):
        raise ValueError("ends before its newline")
    try:
        found = json.loads(line.decode("ascii"))
        fields = {key: found[key] for key in ("number", "time", "kind", "previous", "hash")}
        content = plain(found["content"], "content")
        rebuilt = line_of(fields["number"], fields["time"], fields["kind"], content, fields["previous"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("is not a record") from error
    if type(fields["number"]) is not int or not isinstance(fields["time"], str) or not isinstance(content, dict):
        raise ValueError("is not a record")
    if fields["number"] != number or fields["previous"] != previous:
        raise ValueError("does not follow the line before")
    if rebuilt != line:
        stated = f'"hash":"{fields["hash"]}"}}\n'.encode()
        raise ValueError("is not in canonical form" if rebuilt.endswith(stated) else "does not fit its own hash")
    return LedgerRecord(content=_frozen(content), **fields)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` as JSON knows it, keys sorted.

    Raises:
        ValueError: it would not read back as it is.
    """
    if depth > DEPTH:
        raise ValueError(f"{where[:80]}...: nested more than {DEPTH} levels deep; make it flatter")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -WHOLE <= value <= WHOLE:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: {value!r} is no valid Unicode; rename it") from error
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {plain(key, where): plain(value[key], f"{where}.{key}", depth + 1) for key in sorted(value)}
    raise ValueError(
        f"{where}: {value!r} ({type(value).__name__}) would not read back as it is; expected text, a finite number up "
        "to 2^53, true, false, null, a list, or a mapping with texts as keys"
    )


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
