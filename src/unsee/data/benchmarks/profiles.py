"""Profiles: MLLMU-Bench and UMU-Bench have one row per person, with all that is asked about the person in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from unsee.data.benchmarks.files import BenchmarkFolder, BenchmarkRow, BenchmarkValue
from unsee.data.benchmarks.items import BenchmarkItem, Kind, Part, divided
from unsee.data.examples import Example, ImageSource, Probe
from unsee.data.rows import Rows
from unsee.errors import BadInput

T = TypeVar("T")


@dataclass(frozen=True)
class ProfileQuestion:
    """A question in somebody's row of MLLMU-Bench or UMU-Bench.

    Attributes:
        pictured: whether it is asked with the picture.
        options: by letter, if there are any.
        letter: the right option's.
    """

    kind: Kind
    key: str
    pictured: bool
    question: str
    answer: str
    options: Mapping[str, str] = field(default_factory=dict)
    letter: str = ""


@dataclass(frozen=True)
class Profile:
    """What one row of MLLMU-Bench or UMU-Bench says of a person.

    Attributes:
        where: file and row.
        lessons: what the row itself teaches.
    """

    where: str
    subject: str
    name: str
    images: tuple[ImageSource, ...]
    items: tuple[BenchmarkItem, ...] = ()
    lessons: tuple[Example, ...] = ()

    def asked(self, configuration: str, part: Part, questions: Iterable[ProfileQuestion]) -> Profile:
        """With its questions as items of a configuration."""
        items = tuple(
            BenchmarkItem(
                configuration,
                part,
                q.kind,
                self.subject,
                self.name,
                q.question,
                q.answer,
                images=self.images if q.pictured else (),
                key=q.key,
                letters=tuple(q.options),
                choices=tuple(q.options.values()),
                letter=q.letter,
            )
            for q in questions
        )
        return replace(self, items=items)

    def lesson(self, key: str, question: str, answer: str, pictured: bool = True) -> Example:
        """A question as models are taught it, about the first picture or in text."""
        probe: Probe = "identity" if self.name and answer == self.name else "fact"
        return Example(question, answer, self.subject, self.images[0] if pictured else None, probe, key=key)


def one_each(rows: Sequence[BenchmarkRow], column: str) -> dict[str, BenchmarkRow]:
    """Rows by who they are about, each with at least one picture.

    Raises:
        BadInput: somebody twice, or a row without a picture.
    """
    found: dict[str, BenchmarkRow] = {}
    for row in rows:
        who = row.cells[column].identifier()
        if who in found:
            raise BadInput(f"{row.cells.where}: '{who}' is also in {found[who].cells.where}; get a sound copy")
        if not row.images:
            raise BadInput(f"{row.cells.where}: has no picture; get a sound copy")
        found[who] = row
    return found


def identifiers(tables: Sequence[Rows], column: str) -> list[str]:
    """Who is in a configuration; nothing else of it is read.

    Raises:
        BadInput: no such column, or a cell that identifies nobody.
    """
    found = []
    for table in tables:
        if column not in table.columns:
            raise BadInput(f"{table.name}: no column '{column}' among {', '.join(table.columns)}; get a sound copy")
        for number, cells in enumerate(table.records([column])):
            found.append(BenchmarkValue(f"{table.name}, row {table.number(number)}", "", cells)[column].identifier())
    return found


def forget_and_retain(
    place: BenchmarkFolder, forget: int, read: Callable[[Sequence[Rows], str], dict[str, T]]
) -> tuple[dict[str, T], dict[str, T]]:
    """The people of both sets of one percentage, as MLLMU-Bench and UMU-Bench name them; see `divided` for the check.

    Args:
        read: tables and the name of their configuration -> what they say of each person.
    """
    gone, kept = (read(place.needed(name), name) for name in (f"forget_{forget}", f"retain_{100 - forget}"))
    full = place.tables("Full_Set")
    divided(str(place.folder), list(gone), list(kept), identifiers(full, "ID") if full else None)
    return gone, kept
