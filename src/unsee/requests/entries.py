"""What stands in a ledger: requests, runs that carried them out, withdrawals. One dataclass per kind of record."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from unsee.provenance import origin
from unsee.requests.records import HASH

Status = Literal["open", "done", "failed", "withdrawn"]
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Request:
    """Somebody's pictures must no longer be recognised.

    Attributes:
        id: letters, digits, '.', '-' and '_'; once per ledger.
        date: day it was received, YYYY-MM-DD.
        data: the DATA argument that leads to the pictures.
        subjects: their pseudonyms, see `Salt.subject`, sorted.
        pictures: how many there are of them.
        fingerprint: of these pictures, see `Salt.pictures`.
        status: what later records made of it; not part of its own.
    """

    id: str
    date: str
    data: str
    subjects: tuple[str, ...]
    pictures: int
    fingerprint: str
    status: Status = field(default="open", metadata={"derived": True})

    def __post_init__(self) -> None:
        _check_id("id", self.id)
        _expect(_is_date(self.date), "date", self.date, "a day as YYYY-MM-DD")
        _expect(isinstance(self.data, str) and bool(self.data), "data", self.data, "a DATA argument")
        _check_all("subjects", self.subjects, "hashes", _is_hash)
        _expect(_is_whole(self.pictures) and self.pictures > 0, "pictures", self.pictures, "a whole number above 0")
        _check_hash("fingerprint", self.fingerprint)


def _origin() -> dict[str, Any]:
    """Versions, machine, commit, time; without the command line, which may name subjects."""
    return {key: value for key, value in origin().items() if key != "command"}


@dataclass(frozen=True)
class Run:
    """A model was edited for some requests, or the attempt ended at a gate. Its values must name no subject.

    Attributes:
        requests: ids of those it carried out; ones that were done before may be among them (a re-base).
        outcome: `done`, or `failed`: no model was written.
        before: file -> SHA-256 of the model it began with, as `CheckpointFolder.hashes` gives them.
        after: the same of what it wrote; empty if it failed.
        beside: SHA-256 of all other files in that folder: tokenizer, manifest, card, ...
        data: fingerprint of the data it worked with.
        method, settings, seed: how.
        moments: SHA-256 of the stored statistics it was given, if any.
        first: file -> SHA-256 of the model that what must stay was kept as seen by; null: of the one in `before`.
        remember: whether it left statistics of what was forgotten beside the weights.
        scores: what was measured; null for what was not. Per subject only under pseudonyms.
        certificate: SHA-256 of the certificate, see `made.certificate_hash`, if there is one.
        drift: budget used so far, by name (a layer, "worst", ...); empty if the method has none.
        origin: see `provenance.origin`; without `command`.
    """

    requests: tuple[str, ...]
    outcome: Literal["done", "failed"]
    before: Mapping[str, str]
    after: Mapping[str, str]
    data: str
    method: str
    settings: Mapping[str, Any]
    seed: int
    scores: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    moments: str | None = None
    remember: bool = False
    first: Mapping[str, str] | None = None
    certificate: str | None = None
    drift: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=_origin)

    def __post_init__(self) -> None:
        _check_all("requests", self.requests, "ids", _is_id)
        _expect(self.outcome in ("done", "failed"), "outcome", self.outcome, "done or failed")
        for key, files in (("before", self.before), ("after", self.after)):
            sound = isinstance(files, Mapping) and all(map(_is_hash, files.values()))
            empty = key == "after" and self.outcome == "failed"
            _expect(sound and bool(files) is not empty, key, files, "nothing" if empty else "files with their SHA-256")
        others = isinstance(self.beside, Mapping) and all(map(_is_hash, self.beside.values()))
        _expect(others and not (self.beside and self.outcome == "failed"), "beside", self.beside, "files as in after")
        _check_hash("data", self.data)
        _expect(isinstance(self.method, str) and bool(self.method), "method", self.method, "a method's name")
        _expect(_is_whole(self.seed), "seed", self.seed, "a whole number, 0 or more")
        sound = self.first is None or (isinstance(self.first, Mapping) and all(map(_is_hash, self.first.values())))
        _expect(sound, "first", self.first, "files with their SHA-256, or null")
        _expect(isinstance(self.remember, bool), "remember", self.remember, "true or false")
        for name in ("moments", "certificate"):
            if getattr(self, name) is not None:
                _check_hash(name, getattr(self, name))
        for name in ("settings", "scores", "drift", "origin"):
            _expect(isinstance(getattr(self, name), Mapping), name, getattr(self, name), "a mapping")
        numbers = all(isinstance(used, int | float) and not isinstance(used, bool) for used in self.drift.values())
        _expect(numbers, "drift", self.drift, "a number under each name")
        _expect("command" not in self.origin, "origin", "a command line", "none: it may name subjects")


@dataclass(frozen=True)
class Withdrawal:
    """A request need not be carried out any more. A model edited for it stays so until it is made anew without it."""

    request: str

    def __post_init__(self) -> None:
        _check_id("request", self.request)


Entry = Request | Run | Withdrawal
KINDS: dict[str, type[Entry]] = {"request": Request, "run": Run, "withdrawal": Withdrawal}


def stored(kind: type[Entry]) -> tuple[str, ...]:
    """The fields that are written."""
    return tuple(f.name for f in dataclasses.fields(kind) if not f.metadata.get("derived"))


def parsed(kind: type[Entry], content: Mapping[str, Any]) -> Entry:
    """An entry of a record's content. Raises ValueError: a key too many or too few, or a value that cannot be."""
    keys = stored(kind)
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f"{missing[0]} is missing")
    if unknown := [key for key in content if key not in keys]:
        raise ValueError(f"unknown key {unknown[0]}; expected {', '.join(keys)}")
    return kind(**content)


def _expect(holds: bool, key: str, found: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{key}: {str(found)[:80]!r}; expected {expected}")


def _check_id(key: str, value: Any) -> None:
    _expect(_is_id(value), key, value, "at most 64 letters, digits, '.', '-' and '_'")


def _check_hash(key: str, value: Any) -> None:
    _expect(_is_hash(value), key, value, "a SHA-256 in hexadecimal digits")


def _check_all(key: str, values: Any, what: str, sound: Callable[[str], bool]) -> None:
    right = isinstance(values, tuple) and all(isinstance(one, str) and sound(one) for one in values)
    _expect(right and 0 < len(values) == len(set(values)), key, values, f"a list of different {what}, at least one")


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(ID.fullmatch(value))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(HASH.fullmatch(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(DATE.fullmatch(value)) and bool(date.fromisoformat(value))
    except ValueError:
        return False
