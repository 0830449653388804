"""Progress bars for people; silent when the error stream is not a terminal."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


class Terminal(Console):
    """Says so when nobody reads any more; rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise


console = Terminal(stderr=True)


def silence() -> None:
    """No bars from now on: for a process that works beside the one that people look at."""
    console.file = io.StringIO()  # no terminal


def say(line: str) -> None:
    """One line for people, as it is. Where nobody can read it (a full disk, a closed pipe), work goes on."""
    with suppress(OSError):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(sentence: str) -> None:
    """A warning in one line, see `say`."""
    say(f"warning: {sentence}")


def track(steps: Iterable[T], what: str, total: int | None = None) -> Generator[T, None, None]:
    """Yield from `steps`, drawing one bar labelled `what`."""
    if not console.is_terminal:  # a bar that nobody sees would still start a thread
        yield from steps
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield from bar.track(steps, total=total, description=what)
