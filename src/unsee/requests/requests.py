"""Requests into a ledger and out of it, each with the status that later records give it.

What may be written and what may be read is the same: a record is checked by the same rules (`_Book.take`) before it is
appended and whenever it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.requests import subjects as salted
from unsee.requests.entries import KINDS, Entry, Request, Run, Status, Withdrawal, parsed, stored
from unsee.requests.ledger import Ledger
from unsee.requests.records import Record
from unsee.requests.subjects import NoLongerTestable, Salt, forget_pictures, name_within, salt_of

EARLIEST = date(1970, 1, 1)  # a slip of the pen before


class _Book:
    """What the records say, taken one after the other."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.runs: list[Run] = []

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
        if isinstance(entry, Request):
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
        if isinstance(entry, Run):
            self.runs.append(entry)


def requests_of(ledger: Ledger, until_run: int | None = None) -> tuple[Request, ...]:
    """All requests, oldest first, each with its status.

    Args:
        until_run: as they stood when this run, counted from 1, was recorded.

    Raises:
        BadInput: a record that is not understood, with its number.
    """
    return tuple(_Book.read(ledger, until_run).requests.values())


def runs_of(ledger: Ledger) -> tuple[Run, ...]:
    """All runs, oldest first. Raises BadInput as `requests_of` does."""
    return tuple(_Book.read(ledger).runs)


def add(ledger: Ledger, entry: Entry) -> Record:
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
) -> Request:
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
        return Request(id, day.isoformat(), data.source, pseudonyms, len(pictures), salt.pictures(pictures))
    except ValueError as error:
        raise BadInput(f"{ledger.path}, new request: {error}") from error


def subjects_of(request: Request, data: UnlearnData, salt: Salt) -> tuple[str, ...]:
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
