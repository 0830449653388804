"""Rows of tables as they lie on disk: JSON lines, CSV, parquet, Arrow. Pictures are read only when asked for."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from unsee.data.examples import ImageSource
from unsee.data.folder_listing import doubles, find_file
from unsee.data.pictures import FileImage, decode
from unsee.errors import BadInput, one_line

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

    def number(self, row: int) -> int | str:
        """What a person calls row `row` (from 0): for text files its line, as an editor counts."""

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of every row in order, few of them in memory at once."""

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
    `path` as `datasets` stores pictures, or a list of these. Accents in paths may be composed or not, see `find_file`.

    Args:
        known: sources by path or content. One picture is one source, in however many rows it stands.

    Raises:
        BadInput: a cell that is none of these.
    """
    for row, record in enumerate(rows.records([column])):
        where = f"{rows.name}, row {rows.number(row)}"
        found = []
        for index, item in enumerate(_items(record[column])):
            if content := _content(item):
                key = hashlib.sha256(content).hexdigest()
                label = where if index == 0 else f"{where}, picture {index + 1}"
                source: ImageSource = TableImage(label, column, row, index, key, rows)
            else:
                path = item["path"] if isinstance(item, dict) and "path" in item else item
                if not isinstance(path, str) or not path:
                    expected = "the path of a picture, its bytes, a struct of these, or nothing"
                    raise BadInput(f"{where}: '{column}' holds {short(item)}; expected {expected}")
                file = find_file(rows.folder, path)
                if file is None:
                    named = os.path.normpath(os.path.join(rows.folder, path))
                    raise BadInput(f"{where}: '{column}' names {named}, which is no file; correct the path or the row")
                key, source = file, FileImage(file)
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
    """The rows of a file of one of the kinds in `TABLES`.

    Raises:
        BadInput: another kind of file, or one that cannot be read as what its name says.
    """
    kind = os.path.splitext(path)[1].lower()
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such file; check the path")
    if kind not in TABLES:
        known = ", ".join(f"*{suffix}" for suffix in TABLES)
        raise BadInput(f"{path}: not a table; expected one of {known}, save it as one (.csv: UTF-8, with commas)")
    return TABLES[kind](path)


@dataclass(frozen=True)
class TextRows:
    """Rows of a text file, all in memory: they hold no pictures, only paths."""

    name: str
    cells: list[dict[str, Any]]
    numbers: Sequence[int | str]

    @property
    def folder(self) -> str:
        return os.path.dirname(self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for row in self.cells for column in row))

    def number(self, row: int) -> int | str:
        return self.numbers[row]

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        return ({column: row.get(column) for column in columns} for row in self.cells)

    def cell(self, column: str, row: int) -> Any:
        return self.cells[row].get(column)


def _json_lines(path: str) -> TextRows:
    cells: list[dict[str, Any]] = []
    numbers: list[int | str] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        row, end = _parsed(where, line, 0, "write one object per line")
        if rest := line[end:].strip():
            raise BadInput(f"{where}: not JSON ({short(rest)} follows the object); write one object per line")
        cells.append(_object(where, row, "write one object per line"))
        numbers.append(number)
    return TextRows(path, cells, numbers)


def _json(path: str) -> TextRows:
    """A list of objects; else, as many files of that name hold them, lines of objects."""
    text = _text(path)
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        return _json_lines(path)
    fix = "write a list of objects, or one object per line into a .jsonl"
    cells: list[dict[str, Any]] = []
    numbers: list[int | str] = []
    line, seen = 1, 0
    at = _after_space(text, at + 1)
    while text[at : at + 1] != "]":
        line, seen = line + text.count("\n", seen, at), at
        where = f"{path}, row {len(cells) + 1} (line {line})"
        row, at = _parsed(where, text, at, fix)
        cells.append(_object(where, row, fix))
        numbers.append(f"{len(cells)} (line {line})")
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise BadInput(f"{where}: not JSON (a comma or the end of the list is missing after it); {fix}")
    if rest := text[at + 1 :].strip():
        raise BadInput(f"{path}: not JSON ({short(rest)} follows the list); {fix}")
    return TextRows(path, cells, numbers)


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _parsed(where: str, text: str, at: int, fix: str) -> tuple[Any, int]:
    """The JSON value that begins at a place in a text, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, _after_space(text, at))
        if "\\u" in text[at:end]:
            json.dumps(value, ensure_ascii=False).encode()
    except _Twice as error:
        raise BadInput(f"{where}: '{error}' is there twice in one object; keep one") from error
    except UnicodeEncodeError as error:
        odd = json.dumps(error.object[error.start])
        raise BadInput(f"{where}: {odd} is half of a character; write the text anew, as UTF-8") from error
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise BadInput(f"{where}: not JSON ({error.msg}{line}, column {error.colno}); {fix}") from error
    except (ValueError, RecursionError) as error:  # numbers too long, lists too deep
        raise BadInput(f"{where}: not JSON ({error}); {fix}") from error
    return value, end


class _Twice(ValueError):
    """An object has one key twice, so one of its values would be lost."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `object_pairs_hook`."""
    if twice := doubles(key for key, _ in pairs):
        raise _Twice(twice[0])
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=once)


def _object(where: str, row: Any, fix: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"{where}: {short(row)} is no JSON object; {fix}")
    return row


def csv_rows(path: str) -> list[tuple[int, list[str]]]:
    """The rows of a table with commas that are not blank, each with the line it begins in.

    Raises:
        BadInput: no UTF-8, or quotes that do not close.
    """
    rows = []
    reader = csv.reader(io.StringIO(_text(path)), strict=True)
    begins = 1
    try:
        for row in reader:
            if row:
                rows.append((begins, row))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{path}, row {begins}: not a UTF-8 table with commas ({error}); save it so") from error
    return rows


def _csv(path: str) -> TextRows:
    (first, header), *rows = csv_rows(path) or [(1, [])]
    _check_columns(f"{path}, row {first}", header)
    cells: list[dict[str, Any]] = []
    for number, row in rows:
        if len(row) > len(header):
            raise BadInput(f"{path}, row {number}: more cells than headers; quote cells that hold commas")
        cells.append({column: cell or None for column, cell in zip_longest(header, row, fillvalue="")})
    return TextRows(path, cells, [number for number, _ in rows])


def _check_columns(where: str, columns: Iterable[str]) -> None:
    """Refuse what would be lost: of two columns of one name, one is never read."""
    if twice := doubles(column for column in columns if column):
        raise BadInput(f"{where}: column '{twice[0]}' appears twice; keep one")


def _text(path: str) -> str:
    """A file's text, whatever ends its lines, without the mark that some editors begin with."""
    try:
        with open(path, "rb") as file:
            content = file.read().removeprefix(codecs.BOM_UTF8)
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, row {line}: cannot be read as UTF-8 text ({error}); save it so") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check permissions") from error


class ParquetRows:
    """Rows of a parquet file. The two row groups used last stay in memory, so small ones are better than one large."""

    def __init__(self, path: str) -> None:
        from pyarrow.parquet import ParquetFile

        self.name, self.folder = path, os.path.dirname(path)
        try:
            self._file = ParquetFile(path)
            names = self._file.schema_arrow.names
        except (OSError, ValueError) as error:  # what pyarrow raises for damage is a ValueError
            raise BadInput(f"{path}: cannot be read as parquet ({one_line(error)}); write it again") from error
        _check_columns(path, names)
        about = self._file.metadata
        self._starts = [0, *accumulate(about.row_group(g).num_rows for g in range(about.num_row_groups))]
        self._group = lru_cache(maxsize=2)(self._read_group)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._file.schema_arrow.names)

    def number(self, row: int) -> int:
        return row + 1

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        return _python(self, self._batches(columns))

    def cell(self, column: str, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        return self._group(group, column)[row - self._starts[group]].as_py()

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(batch_size=BATCH, columns=list(columns))
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.name}: cannot be read as parquet ({one_line(error)}); write it again") from error

    def _read_group(self, group: int, column: str) -> pa.ChunkedArray:
        return self._file.read_row_group(group, columns=[column]).column(0)


class ArrowRows:
    """Rows of an Arrow table, as a rule mapped from files by `datasets`."""

    def __init__(self, name: str, folder: str, table: pa.Table) -> None:
        self.name, self.folder, self._table = name, folder, table
        _check_columns(name, table.column_names)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._table.column_names)

    def number(self, row: int) -> int:
        return row + 1

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        return _python(self, self._table.select(list(columns)).to_batches(max_chunksize=BATCH))

    def cell(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()


def _python(rows: Rows, batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The rows of batches one by one. A text in such files may be any bytes; one that is none is refused by its row."""
    row = 0
    for batch in batches:
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:
            for start in range(batch.num_rows):
                try:
                    batch.slice(start, 1).to_pylist()
                except UnicodeDecodeError as error:
                    where = f"{rows.name}, row {rows.number(row + start)}"
                    raise BadInput(f"{where}: a text is not UTF-8 ({error}); write the table anew") from error
            raise
        row += batch.num_rows


TABLES: dict[str, Callable[[str], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": ParquetRows,
}
