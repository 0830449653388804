"""What stands in a ledger: requests, runs that carried them out, withdrawals. One dataclass per kind of record.

What may be written and what may be read is the same: a record is checked by the same rules (`_Book.take`) before it is
appended and whenever it is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from typing import Any, Literal

from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.provenance import origin
from unsee.requests import subjects as salted
from unsee.requests.ledger import HASH, Ledger, LedgerRecord
from unsee.requests.subjects import NoLongerTestable, Salt, forget_pictures, name_within, salt_of

Status = Literal["open", "done", "failed", "withdrawn"]
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
EARLIEST = date(1970, 1, 1)  # a slip of the pen before


@dataclass(frozen=True)
class ForgetRequest:
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
class EditRun:
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
        certificate: SHA-256 of the certificate, see `checks.certificate_hash`, if there is one.
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


Entry = ForgetRequest | EditRun | Withdrawal
KINDS: dict[str, type[Entry]] = {"request": ForgetRequest, "run": EditRun, "withdrawal": Withdrawal}


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


# Into the ledger and out of it ----------------------------------------------------------------------------------------


class _Book:
    """What the records say, taken one after the other."""

    def __init__(self) -> None:
        self.requests: dict[str, ForgetRequest] = {}
        self.runs: list[EditRun] = []

    @classmethod
    def read(cls, ledger: Ledger, until_run: int | None = None) -> _Book:
        """Args: until_run: leave out this run, counted from 1, and all that was written after it."""
        book = cls()
        for record in ledger.records:
            if record.kind == "run" and len(book.runs) + 1 == until_run:
                break
            try:
                if record.kind == salted.KIND:
                    continue
                if record.kind not in KINDS:
                    raise ValueError(f"unknown kind '{record.kind}'; expected one of {', '.join(KINDS)}")
                book.take(parsed(KINDS[record.kind], record.content))
            except ValueError as error:
                raise BadInput(f"{ledger.path}, record {record.number}: {error}") from error
        return book

    def take(self, entry: Entry) -> None:
        """Raises ValueError if it does not go together with what came before."""
        if isinstance(entry, ForgetRequest):
            if entry.id in self.requests:
                raise ValueError(f"there is a request '{entry.id}' already; choose another id")
            self.requests[entry.id] = replace(entry, status="open")
            return
        ids = (entry.request,) if isinstance(entry, Withdrawal) else entry.requests
        for one in ids:
            if one not in self.requests:
                raise ValueError(f"no request '{one}'; add it first")
            if self.requests[one].status == "withdrawn":
                raise ValueError(f"request '{one}' was withdrawn; leave it out, or add it anew under another id")
        for one in ids:
            status: Status = "withdrawn" if isinstance(entry, Withdrawal) else entry.outcome
            if not (status == "failed" and self.requests[one].status == "done"):  # the model with it is still there
                self.requests[one] = replace(self.requests[one], status=status)
        if isinstance(entry, EditRun):
            self.runs.append(entry)


def requests_of(ledger: Ledger, until_run: int | None = None) -> tuple[ForgetRequest, ...]:
    """All requests, oldest first, each with its status.

    Args:
        until_run: as they stood when this run, counted from 1, was recorded.

    Raises:
        BadInput: a record that is not understood, with its number.
    """
    return tuple(_Book.read(ledger, until_run).requests.values())


def runs_of(ledger: Ledger) -> tuple[EditRun, ...]:
    """All runs, oldest first. Raises BadInput as `requests_of` does."""
    return tuple(_Book.read(ledger).runs)


def add(ledger: Ledger, entry: Entry) -> LedgerRecord:
    """Append a request, a run or a withdrawal; waits for other processes.

    Raises:
        BadInput: an id that is taken or unknown, a withdrawn request, or what `Ledger.append` refuses.
    """
    with ledger.locked():
        try:
            _Book.read(ledger).take(entry)
        except ValueError as error:
            raise BadInput(f"{ledger.path}: {error}") from error
        kind = next(kind for kind, cls in KINDS.items() if isinstance(entry, cls))
        return ledger.append(kind, {key: getattr(entry, key) for key in stored(type(entry))})


def new_request(
    ledger: Ledger, id: str, data: UnlearnData, forget: Sequence[str], received: date | None = None
) -> ForgetRequest:
    """A request to forget these subjects of `data`, to be given to `add`. Makes the ledger's salt if it has none.

    Args:
        received: the day; default: today, UTC.

    Raises:
        BadInput: a bad id, a day to come (but for tomorrow, which it is somewhere already) or before `EARLIEST`, a
            subject without pictures, or one whose name the id or the data's source would give away.
    """
    today = datetime.now(timezone.utc).date()
    day = received or today
    if day > today + timedelta(days=1):
        raise BadInput(f"date {day}: is in the future, by this machine's clock it is {today} (UTC); correct either")
    if day < EARLIEST:
        raise BadInput(f"date {day}: is before {EARLIEST}; expected the day on which the request was received")
    for what, text in (("id", id), ("data", data.source)):
        if (subject := name_within(text, data, forget)) is not None:
            raise BadInput(f"{what} '{text}' holds the name of subject '{subject}'; the ledger keeps none, rename it")
    for subject in forget:
        if not forget_pictures(data, [subject]):
            raise BadInput(f"{data.source}: no pictures of subject '{subject}'; expected at least one")
    salt, pictures = salt_of(ledger, create=True), forget_pictures(data, forget)
    pseudonyms = tuple(sorted({salt.subject(subject) for subject in forget}))
    salt.find(data, pseudonyms)  # each must be of one subject alone
    try:
        return ForgetRequest(id, day.isoformat(), data.source, pseudonyms, len(pictures), salt.pictures(pictures))
    except ValueError as error:
        raise BadInput(f"{ledger.path}, new request: {error}") from error


def subjects_of(request: ForgetRequest, data: UnlearnData, salt: Salt) -> tuple[str, ...]:
    """The subjects of `data` that a request is about, their pictures unchanged: what a run or a test begins with.

    Raises:
        NoLongerTestable: not all of them are there, or not exactly the pictures that were.
    """
    found = salt.find(data, request.subjects)
    pictures = forget_pictures(data, found)
    where, had = f"request {request.id} is no longer testable: {data.source} has", request.pictures
    anew = "withdraw the request and add it anew under another id"
    if len(found) < len(request.subjects):
        raise NoLongerTestable(f"{where} {len(found)} of its {len(request.subjects)} subjects; bring them back")
    if len(pictures) < had:
        raise NoLongerTestable(f"{where} {len(pictures)} pictures of it, not {had}; bring the others back, or {anew}")
    if len(pictures) > had:
        raise NoLongerTestable(
            f"{where} {len(pictures)} pictures of it, {len(pictures) - had} more than when it was added; to forget the "
            f"new ones too, {anew}, else take them out of the data"
        )
    if salt.pictures(pictures) != request.fingerprint:
        raise NoLongerTestable(f"{where} other pictures of it than there were; bring those back, or {anew}")
    return found
