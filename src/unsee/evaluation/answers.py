"""Is a free answer right? Text in, verdict out; no model."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from unsee.data.normalisation import plain


def mentioned(prediction: str, options: Iterable[str]) -> str | None:
    """The option that the prediction names first, as whole words; the longer one if two begin together.

    Listing every option therefore wins nothing.
    """
    return _first(prediction, tuple(options))


@lru_cache(maxsize=1 << 14)  # models give few answers to the same questions
def _first(prediction: str, options: tuple[str, ...]) -> str | None:
    said = f" {plain(prediction)} "
    best: tuple[int, int] | None = None
    found = None
    for option in options:
        words = plain(option)
        place = said.find(f" {words} ") if words else -1
        if place >= 0 and (best is None or (place, -len(words)) < best):
            best, found = (place, -len(words)), option
    return found


def is_correct(prediction: str, answer: str, options: Iterable[str] = ()) -> bool:
    """Right if the answer is the first option named; without options, if it appears as whole words."""
    known = tuple(options)
    if known:
        named = mentioned(prediction, (*known, answer))
        return named is not None and plain(named) == plain(answer)
    return bool(plain(answer)) and f" {plain(answer)} " in f" {plain(prediction)} "


def repeats(prediction: str) -> bool:
    """The same one to four words at least three times in a row."""
    words = plain(prediction).split()
    return any(
        words[i : i + size] == words[i + size : i + 2 * size] == words[i + 2 * size : i + 3 * size]
        for size in range(1, 5)
        for i in range(len(words) - 3 * size + 1)
    )


def is_empty(prediction: str) -> bool:
    """Neither a letter nor a digit nor a picture (emoji)."""
    return not any(c.isalnum() or unicodedata.category(c) == "So" for c in plain(prediction))
