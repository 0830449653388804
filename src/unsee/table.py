"""Tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any


def table_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV; an absent value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row.values())
    return text.getvalue()
