"""What every page is made with: the templates of this room, files that are replaced as a whole, and CSV beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from unsee.durable import write_durably


def templates() -> jinja2.Environment:
    """Strict about names, and everything that is no markup is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def replace_text(path: Path, content: str) -> Path:
    """Readers see the old file or the new one, never half of it. Raises BadInput, see `durable.replacing`."""
    write_durably(path, content.encode())
    return path


def table_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV; an absent value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row.values())
    return text.getvalue()
