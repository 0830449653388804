"""A benchmark's files: a clone of its repository, a folder of parquet files, or the hub; their rows and values.

Every value knows the place it stands in, so that every complaint names file, row and key.
"""

from __future__ import annotations

import ast
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from unsee.data.examples import ImageSource
from unsee.data.folder_listing import all_files, listed
from unsee.data.rows import ParquetRows, Rows, pictures, short
from unsee.data.tables import open_store
from unsee.errors import BadInput

POINTER = b"version https://git-lfs"  # how the file begins that Git leaves where Git LFS did not fetch the real one
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})$")
PICTURES = ("image", "images")  # a column of pictures, or of lists of them

T = TypeVar("T")
Known = dict[str, ImageSource]  # pictures by content or path: one picture is one source, in however many rows


@dataclass(frozen=True)
class BenchmarkValue:
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

    def __getitem__(self, name: str) -> BenchmarkValue:
        """A field of a struct; its value is None where it is not there.

        Raises:
            BadInput: this is no struct.
        """
        if not isinstance(self.value, dict):
            raise self.wrong(f"an object with '{name}'")
        return BenchmarkValue(self.where, f"{self.key}.{name}" if self.key else name, self.value.get(name))

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

    def items(self) -> list[BenchmarkValue]:
        """The entries of a list that are not null; of null, none.

        Raises:
            BadInput: no list.
        """
        if self.value is not None and not isinstance(self.value, list):
            raise self.wrong("a list")
        entries = enumerate(self.value or (), start=1)
        return [
            BenchmarkValue(self.where, f"{self.key}.{number}", entry) for number, entry in entries if entry is not None
        ]

    def texts(self) -> tuple[str, ...]:
        """The texts of a list; one text counts as a list of one.

        Raises:
            BadInput: neither, or an entry that is no text.
        """
        return (self.text(),) if isinstance(self.value, str) else tuple(entry.text() for entry in self.items())

    def fields(self) -> dict[str, BenchmarkValue]:
        """The fields of a struct that are not null, in order.

        Raises:
            BadInput: no struct.
        """
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return {str(name): self[name] for name, value in self.value.items() if value is not None}

    def parsed(self) -> BenchmarkValue:
        """What a text holds: JSON, or the literals of Python that some benchmarks write instead. Nothing is executed.

        Raises:
            BadInput: neither.
        """
        if not isinstance(self.value, str):
            return self  # some copies store the object itself
        for read in (json.loads, ast.literal_eval):
            try:
                return BenchmarkValue(self.where, self.key, read(self.value))
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
        raise self.wrong("JSON, or a literal of Python")


@dataclass(frozen=True)
class BenchmarkRow:
    """One row: its cells, and its pictures, not opened."""

    cells: BenchmarkValue
    images: tuple[ImageSource, ...]


@dataclass(frozen=True)
class BenchmarkFolder:
    """An existing folder with a benchmark in it.

    Attributes:
        source: the DATA argument, for messages and the record.
        folder: its files.
    """

    source: str
    folder: Path

    def tables(self, *spelled: str) -> list[Rows] | None:
        """The tables of a configuration, shard by shard in order; None if it is not there under any of its names.

        A configuration NAME is a folder `NAME/` of parquet files (or what `datasets` saves), `NAME.parquet`, or
        `NAME-00000-of-00002.parquet` and so on.

        Raises:
            BadInput: a shard is missing, a file was not fetched, or cannot be read.
        """
        files = listed(str(self.folder)).files
        for name in spelled:
            inside = self.folder / name
            within = all_files(str(inside)) if inside.is_dir() else {}
            forms = [
                [path for file, path in within.items() if file.endswith(".parquet")],
                [path for file, path in files.items() if file == f"{name}.parquet"],
                [path for file, path in files.items() if fnmatchcase(file, f"{escape(name)}-*-of-*.parquet")],
            ]
            there = [[Path(path) for path in found] for found in forms if found]
            if len(there) > 1:
                raise BadInput(f"{there[0][0]} and {there[1][0]} are both '{name}'; keep one of them")
            if there:
                _check_files(there[0])
                return [ParquetRows(str(path)) for path in there[0]]
            if inside.is_dir():
                return [rows for rows, _ in open_store(str(inside), None).tables]
        return None

    def needed(self, *spelled: str) -> list[Rows]:
        """The same for a configuration that must be there.

        Raises:
            BadInput: it is not; the message lists what is.
        """
        if (found := self.tables(*spelled)) is None:
            there = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            listed = ", ".join(there[:12]) or "nothing"
            raise BadInput(
                f"{self.folder}: no '{spelled[0]}' here, but {listed}; "
                f"give the folder that holds the configurations of the benchmark, or another forget percentage"
            )
        return found


def open_folder(kind: str, place: str, files: Sequence[str]) -> BenchmarkFolder:
    """The folder of a benchmark; one of the hub is fetched into the hub's own cache, as files.

    Args:
        kind: the benchmark's name in DATA.
        place: a folder, or an id of the hub.
        files: patterns of the files needed, for the hub.

    Raises:
        BadInput: neither a folder nor an id, or the hub does not give it.
    """
    folder = Path(os.path.expanduser(place))
    if folder.is_dir():
        return BenchmarkFolder(f"{kind}:{place}", folder)
    if folder.exists():
        raise BadInput(f"--data {kind}:{place}: is a file; give the folder that holds the benchmark's files")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place):
        raise BadInput(f"--data {kind}:{place}: no such folder, and no hub id 'owner/name'; check the path")
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(place, repo_type="dataset", allow_patterns=list(files))
    except Exception as error:  # of requests, httpx, huggingface_hub, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"--data {kind}:{place}: no such folder, and the hub did not give it ({reason}); "
            "check the id and the connection, or clone the data set and give its folder"
        ) from error
    return BenchmarkFolder(f"{kind}:{place}", Path(fetched))


def _check_files(paths: Sequence[Path]) -> None:
    shards: dict[tuple[Path, str, str], set[int]] = {}
    for path in paths:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise BadInput(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in the clone")
        if match := SHARD.fullmatch(path.stem):
            shards.setdefault((path.parent, match[1], match[3]), set()).add(int(match[2]))
    for (folder, name, count), numbers in shards.items():
        for number in range(int(count)):
            if number not in numbers:
                lost = f"{folder / name}-{number:05d}-of-{count}.parquet"
                raise BadInput(f"{lost}: this shard is missing beside its others; fetch it too")


def read_rows(
    tables: Sequence[Rows], columns: Sequence[str], known: Known, optional: Sequence[str] = ()
) -> list[BenchmarkRow]:
    """The rows of a configuration; its pictures, in `image` or `images`, are found and not opened.

    Args:
        columns: those that must be there, beside one of `PICTURES`.
        optional: read if they are there.

    Raises:
        BadInput: no rows, a column is missing, or a cell of a picture is none.
    """
    found = [row for table in tables for row in _rows(table, columns, known, optional)]
    if not found:
        raise BadInput(f"{tables[0].name}: has no rows; get a sound copy")
    return found


def _rows(table: Rows, columns: Sequence[str], known: Known, optional: Sequence[str]) -> Iterator[BenchmarkRow]:
    there = table.columns
    shown = next((column for column in PICTURES if column in there), PICTURES[0])
    for column in (*columns, shown):
        if column not in there:
            raise BadInput(f"{table.name}: no column '{column}' among {', '.join(there)}; get a sound copy")
    records = table.records([*columns, *(column for column in optional if column in there)])
    for number, (cells, images) in enumerate(zip(records, pictures(table, shown, known), strict=True)):
        yield BenchmarkRow(BenchmarkValue(f"{table.name}, row {table.number(number)}", "", cells), images)
