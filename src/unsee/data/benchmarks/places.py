"""Where a benchmark lies: a clone of its repository, a folder of parquet files, or the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TypeVar

from unsee.data.benchmarks.cells import Cell
from unsee.data.benchmarks.items import divided
from unsee.data.examples import ImageSource
from unsee.data.folder_listing import all_files, listed
from unsee.data.rows import ParquetRows, Rows, pictures
from unsee.data.tables import open_store
from unsee.errors import BadInput

POINTER = b"version https://git-lfs"  # how the file begins that Git leaves where Git LFS did not fetch the real one
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})$")
PICTURES = ("image", "images")  # a column of pictures, or of lists of them

T = TypeVar("T")
Known = dict[str, ImageSource]  # pictures by content or path: one picture is one source, in however many rows


@dataclass(frozen=True)
class Row:
    """One row: its cells, and its pictures, not opened."""

    cells: Cell
    images: tuple[ImageSource, ...]


@dataclass(frozen=True)
class Place:
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


def open_place(kind: str, place: str, files: Sequence[str]) -> Place:
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
        return Place(f"{kind}:{place}", folder)
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
    return Place(f"{kind}:{place}", Path(fetched))


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


def read_rows(tables: Sequence[Rows], columns: Sequence[str], known: Known, optional: Sequence[str] = ()) -> list[Row]:
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


def _rows(table: Rows, columns: Sequence[str], known: Known, optional: Sequence[str]) -> Iterator[Row]:
    there = table.columns
    shown = next((column for column in PICTURES if column in there), PICTURES[0])
    for column in (*columns, shown):
        if column not in there:
            raise BadInput(f"{table.name}: no column '{column}' among {', '.join(there)}; get a sound copy")
    records = table.records([*columns, *(column for column in optional if column in there)])
    for number, (cells, images) in enumerate(zip(records, pictures(table, shown, known), strict=True)):
        yield Row(Cell(f"{table.name}, row {table.number(number)}", "", cells), images)


def one_each(rows: Sequence[Row], column: str) -> dict[str, Row]:
    """Rows by who they are about, each with at least one picture.

    Raises:
        BadInput: somebody twice, or a row without a picture.
    """
    found: dict[str, Row] = {}
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
            found.append(Cell(f"{table.name}, row {table.number(number)}", "", cells)[column].identifier())
    return found


def forget_and_retain(
    place: Place, forget: int, read: Callable[[Sequence[Rows], str], dict[str, T]]
) -> tuple[dict[str, T], dict[str, T]]:
    """The people of both sets of one percentage, as MLLMU-Bench and UMU-Bench name them; see `divided` for the check.

    Args:
        read: tables and the name of their configuration -> what they say of each person.
    """
    gone, kept = (read(place.needed(name), name) for name in (f"forget_{forget}", f"retain_{100 - forget}"))
    full = place.tables("Full_Set")
    divided(str(place.folder), list(gone), list(kept), identifiers(full, "ID") if full else None)
    return gone, kept
