"""Strict TOML: tables read key by key, every value of the kind that was asked for, nothing ignored; and written."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from unsee.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REQUIRED = object()
T = TypeVar("T")


def open_toml(path: Path, option: str) -> Keys:
    """The whole of a file.

    Args:
        option: by which it was given, for messages.

    Raises:
        BadInput: it cannot be read, or is not TOML.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be read ({error.strerror}); expected a TOML file") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise BadInput(f"{option} {path}: not a TOML file ({error})") from error
    return Keys(content, f"{path}: ")


class Keys:
    """One table of a grid file, read key by key; `done` refuses what nobody asked for."""

    def __init__(self, values: Any, where: str) -> None:
        self._left, self._known, self.where = dict(mapping(values, where)), list[str](), where

    def take(self, key: str, parse: Callable[[Any, str], T], default: Any = REQUIRED) -> T:
        """The value of `key` by `parse`, which gets the value and where it stands; absent, the default if one is given.

        Raises:
            BadInput: absent without a default, or `parse` refuses it.
        """
        self._known.append(key)
        if key in self._left:
            return parse(self._left.pop(key), f"{self.where}{key}")
        if default is REQUIRED:
            raise BadInput(f"{self.where}{key}: missing; add it")
        return cast(T, default)

    def done(self) -> None:
        for key in self._left:
            raise BadInput(f"{self.where}{key}: no such key; expected one of {', '.join(self._known)}")


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: expected a text in quotes, found {value!r}")
    return value


def name(value: Any, where: str) -> str:
    """Names become file names."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value):
        raise BadInput(f"{where}: expected letters, digits, '-' and '_', found {value!r}")
    return value


def whole(value: Any, where: str, low: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**32:
        raise BadInput(f"{where}: expected a whole number, {low} or more, found {value!r}")
    return value


def at_least_one(value: Any, where: str) -> int:
    return whole(value, where, 1)


def positive(value: Any, where: str) -> float:
    return _number(value, where, lambda x: 0 < x < math.inf, "a number above zero")


def not_negative(value: Any, where: str) -> float:
    return _number(value, where, lambda x: 0 <= x < math.inf, "a number, zero or more")


def fraction(value: Any, where: str) -> float:
    return _number(value, where, lambda x: 0 < x < 1, "a fraction between 0 and 1")


def _number(value: Any, where: str, fits: Callable[[float], bool], expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
        raise BadInput(f"{where}: expected {expected}, found {value!r}")
    return float(value)


def truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{where}: expected true or false, found {value!r}")
    return value


def several(parse: Callable[[Any, str], T], empty: bool = False) -> Callable[[Any, str], tuple[T, ...]]:
    """A list whose items differ, each by `parse`."""

    def read(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, list) or not (value or empty):
            raise BadInput(f"{where}: expected a list{'' if empty else ' of at least one'}, found {value!r}")
        items = tuple(parse(item, f"{where}[{i}]") for i, item in enumerate(value))
        for i, item in enumerate(items):
            if item in items[:i]:
                raise BadInput(f"{where}[{i}]: {item!r} is given twice; keep one")
        return items

    return read


def tables(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: expected tables, each under [[{where.split(': ')[-1]}]]")
    return tuple(value)


def as_it_is(value: Any, where: str) -> Any:
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected a table of keys, found {value!r}")
    return value


def assignments(values: Mapping[str, Any]) -> list[str]:
    """A line per key, which reads back to the same value: truth values, finite numbers, texts and lists of these.

    Raises:
        TypeError: anything else.
    """
    return [f"{key} = {_written(value)}" for key, value in values.items()]


def _written(value: Any) -> str:
    """What JSON writes of these is TOML too, but for DEL, and for characters cut in half, which no TOML can hold."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"cannot be written as a setting: {value!r}")
    text_of = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text_of.encode(errors="backslashreplace").decode()
