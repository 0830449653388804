"""One record of a ledger as one line of bytes, and back.

A line is in canonical form: ASCII, no white space, outer keys in the order below, all others sorted.

    {"number":1,"time":"2026-01-31T09:30:00+00:00","kind":"note","content":{},"previous":HASH,"hash":HASH}

`hash` is the SHA-256 of the line without `,"hash":"..."` and its newline, `previous` the hash of the line before, in
the first line `EMPTY`. Reading builds every line again from what it says and compares bytes, so a change of any byte
is found, white space and the last newline included.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

EMPTY = hashlib.sha256(b"unsee ledger, format 1\n").hexdigest()  # the head of a ledger without records
HASH = re.compile(r"[0-9a-f]{64}")
KIND = re.compile(r"[a-z][a-z-]{0,31}")
DEPTH = 32  # levels of nesting in a content
WHOLE = 2**53  # beyond this, other readers of JSON round


@dataclass(frozen=True)
class Record:
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


def record_of(line: bytes, number: int, previous: str) -> Record:
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
    return Record(content=_frozen(content), **fields)


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
