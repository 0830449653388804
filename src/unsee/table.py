"""Tables as text: CSV, LaTeX, Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
MISSING = "--"  # in LaTeX


def table_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV; an absent value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row.values())
    return text.getvalue()


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def latex_table(head: Sequence[str], *groups: Sequence[Sequence[str]], columns: str = "", caption: str = "") -> str:
    r"""A table for `\usepackage{booktabs}`; with a caption it floats.

    Args:
        head, groups: cells that are LaTeX already; a rule stands between groups of rows.
        columns: how they are aligned; by default all but the first to the right.
    """
    lines = [f"\\begin{{tabular}}{{{columns or 'l' + 'r' * (len(head) - 1)}}}", "\\toprule", _line(head)]
    for group in [group for group in groups if group] or [()]:
        lines += ["\\midrule", *map(_line, group)]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if caption:
        lines = ["\\begin{table}", "\\centering", f"\\caption{{{caption}}}", *lines, "\\end{table}"]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_percent(value: float) -> str:
    """A share in percent, or a difference in percentage points."""
    return f"{100 * value + 0.0:.1f}".replace("-", "$-$")


def latex_share(share: Mapping[str, Any] | None) -> str:
    """A share in percent with its 95 % interval, if there is one."""
    if share is None or share["value"] is None:
        return MISSING
    if share["low"] is None or share["high"] is None:
        return latex_percent(share["value"])
    return f"{latex_percent(share['value'])} [{latex_percent(share['low'])}, {latex_percent(share['high'])}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table for Markdown; `numbers`: all columns but the first are aligned to the right."""
    first, *others = ("| " + " | ".join(row) + " |" for row in (head, *rows))
    rule = "|---|" + ("--:|" if numbers else "---|") * (len(head) - 1)
    return "\n".join([first, rule, *others, ""])
