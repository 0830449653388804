"""Rows of tables as they lie on disk: JSON lines, CSV, parquet, Arrow. Pictures are read only when asked for."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from unsee.data.examples import ImageSource
from unsee.data.pictures import FileImage, decode
from unsee.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 16  # rows whose pictures are in memory at once while a table is read


class Rows(Protocol):
    """A table whose cells can be had one by one.

    Attributes:
        name: how messages call it, e.g. its path.
        folder: where relative paths of pictures begin.
        columns: in order.
    """

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...

    def number(self, row: int) -> int:
        """What a person calls row `row` (from 0): for text files its line."""

    def records(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of every row."""

    def stream(self, column: str) -> Iterator[Any]:
        """One column's cells in order, few of them in memory at once."""

    def cell(self, column: str, row: int) -> Any:
        """One cell."""


@dataclass(frozen=True)
class TableImage:
    """A picture inside a table: known by its place, decoded when opened.

    Attributes:
        label: table, row and, in a list, which picture.
        column, row, index: its cell, and its place in it.
        digest: SHA-256 of the encoded picture.
    """

    label: str
    column: str
    row: int
    index: int
    digest: str
    rows: Rows = field(compare=False, repr=False)

    def open(self) -> Image.Image:
        """The picture, read as `decode` says."""
        return decode(self.encoded(), self.label)

    def encoded(self) -> bytes:
        """The picture as it stands in the table."""
        return _content(_items(self.rows.cell(self.column, self.row))[self.index])


def pictures(rows: Rows, column: str, known: dict[str, ImageSource]) -> Iterator[tuple[ImageSource, ...]]:
    """The pictures in each row's cell of `column`.

    A cell may be empty, a path relative to the table's folder, the content of a picture file, a struct of `bytes` and
    `path` as `datasets` stores pictures, or a list of these.

    Args:
        known: sources by path or content. One picture is one source, in however many rows it stands.

    Raises:
        BadInput: a cell that is none of these.
    """
    for row, cell in enumerate(rows.stream(column)):
        where = f"{rows.name}, row {rows.number(row)}"
        found = []
        for index, item in enumerate(_items(cell)):
            if content := _content(item):
                key = hashlib.sha256(content).hexdigest()
                label = where if index == 0 else f"{where}, picture {index + 1}"
                source: ImageSource = TableImage(label, column, row, index, key, rows)
            else:
                path = item["path"] if isinstance(item, dict) and "path" in item else item
                if not isinstance(path, str) or not path:
                    expected = "the path of a picture, its bytes, a struct of these, or nothing"
                    raise BadInput(f"{where}: '{column}' holds {short(item)}; expected {expected}")
                key = os.path.normpath(os.path.join(rows.folder, path))
                if not os.path.isfile(key):
                    raise BadInput(f"{where}: '{column}' names {key}, which is no file; correct the path or the row")
                source = FileImage(key)
            found.append(known.setdefault(key, source))
        yield tuple(found)


def _items(cell: Any) -> list[Any]:
    return [item for item in (cell if isinstance(cell, list) else [cell]) if item is not None]


def _content(item: Any) -> bytes:
    content = item.get("bytes") if isinstance(item, dict) else item
    return content if isinstance(content, bytes) else b""


def short(value: Any) -> str:
    """A cell as messages show it."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else f"{text[:40]}…"


# The kinds of tables --------------------------------------------------------------------------------------------------


def open_table(path: str) -> Rows:
    """The rows of a `.jsonl`, `.csv` or `.parquet` file.

    Raises:
        BadInput: another kind of file, or one that cannot be read as what its name says.
    """
    kind = os.path.splitext(path)[1].lower()
    if kind not in TABLES:
        raise BadInput(f"{path}: not a table; expected one of {', '.join(f'*{suffix}' for suffix in TABLES)}")
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such file; check the path")
    return TABLES[kind](path)


@dataclass(frozen=True)
class TextRows:
    """Rows of a text file, all in memory: they hold no pictures, only paths."""

    name: str
    cells: list[dict[str, Any]]
    numbers: list[int]

    @property
    def folder(self) -> str:
        return os.path.dirname(self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for row in self.cells for column in row))

    def number(self, row: int) -> int:
        return self.numbers[row]

    def records(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        return [{column: row.get(column) for column in columns} for row in self.cells]

    def stream(self, column: str) -> Iterator[Any]:
        return (row.get(column) for row in self.cells)

    def cell(self, column: str, row: int) -> Any:
        return self.cells[row].get(column)


def _json_lines(path: str) -> TextRows:
    cells, numbers = [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, row {number}: not JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise BadInput(f"{path}, row {number}: {short(row)} is no JSON object; write one object per line")
        cells.append(row)
        numbers.append(number)
    return TextRows(path, cells, numbers)


def _csv(path: str) -> TextRows:
    reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
    cells = []
    try:
        for row in reader:
            cells.append({column: cell or None for column, cell in row.items()})
            if None in row:
                raise BadInput(f"{path}, row {len(cells) + 1}: more cells than headers; quote cells that hold commas")
    except csv.Error as error:
        raise BadInput(f"{path}, row {len(cells) + 2}: not a table with commas ({error}); save it so") from error
    return TextRows(path, cells, list(range(2, len(cells) + 2)))  # the header is row 1


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error}); save it so") from error


class ParquetRows:
    """Rows of a parquet file. The two row groups used last stay in memory, so small ones are better than one large."""

    def __init__(self, path: str) -> None:
        from pyarrow.parquet import ParquetFile

        self.name, self.folder = path, os.path.dirname(path)
        try:
            self._file = ParquetFile(path)
        except (OSError, ValueError) as error:  # what pyarrow raises for damage is a ValueError
            raise BadInput(f"{path}: cannot be read as parquet ({_reason(error)}); write it again") from error
        about = self._file.metadata
        self._starts = [0, *accumulate(about.row_group(g).num_rows for g in range(about.num_row_groups))]
        self._group = lru_cache(maxsize=2)(self._read_group)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._file.schema_arrow.names)

    def number(self, row: int) -> int:
        return row + 1

    def records(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        return [row for batch in self._batches(columns) for row in batch.to_pylist()]

    def stream(self, column: str) -> Iterator[Any]:
        for batch in self._batches([column]):
            yield from batch.column(0).to_pylist()

    def cell(self, column: str, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        return self._group(group, column)[row - self._starts[group]].as_py()

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(batch_size=BATCH, columns=list(columns))
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.name}: cannot be read as parquet ({_reason(error)}); write it again") from error

    def _read_group(self, group: int, column: str) -> pa.ChunkedArray:
        return self._file.read_row_group(group, columns=[column]).column(0)


class ArrowRows:
    """Rows of an Arrow table, as a rule mapped from files by `datasets`."""

    def __init__(self, name: str, folder: str, table: pa.Table) -> None:
        self.name, self.folder, self._table = name, folder, table

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._table.column_names)

    def number(self, row: int) -> int:
        return row + 1

    def records(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._table.select(list(columns)).to_pylist()
        return rows

    def stream(self, column: str) -> Iterator[Any]:
        for batch in self._table.select([column]).to_batches(max_chunksize=BATCH):
            yield from batch.column(0).to_pylist()

    def cell(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


TABLES: dict[str, Callable[[str], Rows]] = {".jsonl": _json_lines, ".csv": _csv, ".parquet": ParquetRows}
