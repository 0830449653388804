"""Readable tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from unsee.progress import Terminal

if TYPE_CHECKING:
    from unsee.evaluation.results import Results

output = Terminal()
SHORT = 20  # a value with its interval: up to this length cells stand in one line

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("forget set: names and facts, test pictures", ("forget", "test")),
    ("  validation pictures", ("forget", "validation")),
    ("  training pictures", ("forget", "train")),
    ("retain set: names and facts, test pictures", ("retain", "test")),
    ("  names", ("names", "retain", "test")),
    ("  facts", ("facts", "retain", "test")),
    ("visible attributes: forget set", ("attributes", "forget")),
    ("  retain set", ("attributes", "retain")),
    ("  strangers", ("attributes", "strangers")),
    ("bystanders", ("bystanders", "test")),
    ("text questions: forget set", ("text", "forget")),
    ("  retain set", ("text", "retain")),
    ("same wrong name for one target", ("misattribution", "forget")),
    ("answers off the list (forget set)", ("health", "forget", "off_list")),
)


class Columns:
    """A table that never cuts a text: what does not fit side by side stands in further tables below, keys repeated.

    Args:
        heads, rows: of every column; in a row a cell each.
        keys: how many columns, from the left, say what a row is.
        right: whether the others are set to the right.
    """

    def __init__(
        self,
        heads: Sequence[str],
        rows: Sequence[Sequence[str | Text]],
        keys: int = 1,
        right: bool = False,
        title: str | None = None,
    ) -> None:
        cells = zip(*([Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows), strict=True)
        self._heads, self._cells = [Text(head) for head in heads], list(cells) or [() for _ in heads]
        self._keys, self._right, self._title = keys, right, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        room = options.max_width
        least = [self._least(i, room) for i in range(len(self._heads))]
        keys = list(range(min(self._keys, len(self._heads))))
        beside = max(SHORT // 2, room - sum(least[: len(keys)]) - _around(len(keys) + 1))
        least = [width if i in keys else min(width, beside) for i, width in enumerate(least)]
        block = list(keys)
        for column in range(len(keys), len(self._heads)):
            if len(block) > len(keys) and sum(least[i] for i in (*block, column)) + _around(len(block) + 1) > room:
                yield self._table(block, least, room)
                block = list(keys)
            block.append(column)
        yield self._table(block, least, room)

    def _least(self, column: int, room: int) -> int:
        """The width at which no word is broken, unless it takes half of the room, and no short cell."""
        texts = (self._heads[column], *self._cells[column])
        words = max((cell_len(word) for text in texts for word in text.plain.split()), default=0)
        whole = max(text.cell_len for text in self._cells[column]) if self._cells[column] else 0
        is_key = column < self._keys
        short = min(whole, room // 4) if is_key else whole if whole <= SHORT else 0
        return min(max(words, short), room // 2)

    def _table(self, block: Sequence[int], least: Sequence[int], room: int) -> Table:
        """One table; what room is left goes to the columns that need least of it to be in one line."""
        widths = {i: least[i] for i in block}
        spare = room - sum(widths.values()) - _around(len(block))
        wanted = {i: max(text.cell_len for text in (self._heads[i], *self._cells[i])) - least[i] for i in block}
        for i in sorted(block, key=lambda i: wanted[i]):
            more = max(0, min(wanted[i], spare))
            widths[i], spare = widths[i] + more, spare - more
        table = Table(box=box.SIMPLE_HEAD, title=self._title)
        for i in block:
            side: Literal["left", "right"] = "right" if self._right and i >= self._keys else "left"
            table.add_column(self._heads[i], justify=side, overflow="fold", width=widths[i])
        for row in zip(*(self._cells[i] for i in block), strict=True):
            table.add_row(*row)
        return table


def _around(columns: int) -> int:
    """What stands around the texts of so many columns: a space on either side, and lines between and at the edges."""
    return 3 * columns + 1


def results_table(results: Results) -> Columns:
    """One column per model; percentages with their 95 % intervals."""
    roles, found = list(results.models), results.models.values()
    rows: list[tuple[str | Text, ...]] = [
        (label, *(_cell(_at(model.scores, path)) for model in found)) for label, path in ROWS
    ]
    seconds = [model.seconds for model in found]
    rows.append(("seconds to make", *("–" if s is None else f"{s:.1f}" for s in seconds)))
    return Columns(("", *roles), rows, right=True, title="right answers in % (95 % interval, clustered by subject)")


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int = 1) -> Columns:
    """Texts as they are; nothing in them is markup."""
    return Columns(columns, rows, keys)


def _at(value: Any, path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        value = value[key]
    found: Mapping[str, Any] = value
    return found


def _cell(cell: Mapping[str, Any]) -> Text:
    if cell["value"] is None:
        return Text("–")
    ends = f"({100 * cell['low']:.0f}–{100 * cell['high']:.0f})"
    return Text.assemble(f"{100 * cell['value']:5.1f} ", (ends, "dim"))


def verdict_lines(results: Results) -> list[str]:
    """A line for every model that is judged, with the first reason why it does not pass."""
    found = []
    for role, said in ((role, of.verdict) for role, of in results.models.items() if of.verdict is not None):
        open_questions = [one["sentence"] for one in said["criteria"] if one["verdict"] == said["verdict"] != "PASS"]
        found.append(" ".join([f"{role}: {said['verdict']}.", *open_questions[:1]]))
    return found
