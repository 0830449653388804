"""Values of a benchmark's files with the place they stand in, so that every complaint names file, row and key."""

from __future__ import annotations

import ast
import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from unsee.data.rows import short
from unsee.errors import BadInput


@dataclass(frozen=True)
class Cell:
    """One value, however deep.

    Attributes:
        where: file and row.
        key: the way from the row to the value, e.g. `Classification_Task.Pure_Text_Questions.2.Question`.
        value: as read: None, text, number, list or dict.
    """

    where: str
    key: str
    value: Any

    def wrong(self, expected: str) -> BadInput:
        """The complaint that this value is not what was expected."""
        what = f"'{self.key}' is" if self.key else "holds"
        return BadInput(f"{self.where}: {what} {short(self.value)}; expected {expected}")

    def __getitem__(self, name: str) -> Cell:
        """A field of a struct; its value is None where it is not there.

        Raises:
            BadInput: this is no struct.
        """
        if not isinstance(self.value, dict):
            raise self.wrong(f"an object with '{name}'")
        return Cell(self.where, f"{self.key}.{name}" if self.key else name, self.value.get(name))

    @property
    def empty(self) -> bool:
        """Whether there is nothing: null, or a text of spaces alone."""
        return self.value is None or (isinstance(self.value, str) and not self.value.strip())

    def text(self) -> str:
        """A text that says something, in Unicode's composed form, without spaces around it.

        Raises:
            BadInput: empty, or no text.
        """
        if self.empty or not isinstance(self.value, str):
            raise self.wrong("a text")
        if any("\ud800" <= character <= "\udfff" for character in self.value):
            raise self.wrong("whole characters")
        return unicodedata.normalize("NFC", self.value).strip()

    def maybe(self) -> str:
        """The same, or an empty text where there is none."""
        return "" if self.empty else self.text()

    def identifier(self) -> str:
        """Who this is: numbers, also written as texts, get at least three digits, as in MLLMU-Bench.

        Raises:
            BadInput: neither a text nor a whole number.
        """
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return f"{self.value:03d}"
        said = self.text()
        return said.zfill(3) if said.isdecimal() else said

    def items(self) -> list[Cell]:
        """The entries of a list that are not null; of null, none.

        Raises:
            BadInput: no list.
        """
        if self.value is not None and not isinstance(self.value, list):
            raise self.wrong("a list")
        entries = enumerate(self.value or (), start=1)
        return [Cell(self.where, f"{self.key}.{number}", entry) for number, entry in entries if entry is not None]

    def texts(self) -> tuple[str, ...]:
        """The texts of a list; one text counts as a list of one.

        Raises:
            BadInput: neither, or an entry that is no text.
        """
        return (self.text(),) if isinstance(self.value, str) else tuple(entry.text() for entry in self.items())

    def fields(self) -> dict[str, Cell]:
        """The fields of a struct that are not null, in order.

        Raises:
            BadInput: no struct.
        """
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return {str(name): self[name] for name, value in self.value.items() if value is not None}

    def parsed(self) -> Cell:
        """What a text holds: JSON, or the literals of Python that some benchmarks write instead. Nothing is executed.

        Raises:
            BadInput: neither.
        """
        if not isinstance(self.value, str):
            return self  # some copies store the object itself
        for read in (json.loads, ast.literal_eval):
            try:
                return Cell(self.where, self.key, read(self.value))
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
        raise self.wrong("JSON, or a literal of Python")
