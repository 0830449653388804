"""Settings onto frozen dataclasses: from mappings, and, for the command line alone, from text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from unsee.errors import BadInput

if TYPE_CHECKING:
    from unsee.methods import Method

S = TypeVar("S")
COMMAND_LINE = "--set "  # before the name of a setting that was given as text
NUMBERS = {"int": "a whole number", "float": "a number"}


def configured(kind: type[S], settings: Mapping[str, Any], where: str = "settings: ") -> S:
    """An instance of the dataclass `kind` with these values over its defaults.

    Args:
        settings: field -> a value of its type; a whole number is a number too.
        where: what stands before a setting in messages.

    Raises:
        BadInput: an unknown setting, one given under its old name and its new one, a value of another type, or one
            that `kind` itself refuses.
    """
    hints = _hints(kind)
    settings = now_named(kind, settings, where)
    for key, value in settings.items():
        if key not in hints:
            raise BadInput(f"{where}{key}: no such setting; expected one of {', '.join(hints)}")
        if (expected := _misfit(value, hints[key])) is not None:
            shown = value if where == COMMAND_LINE else repr(value)  # as it was typed
            raise BadInput(f"{where}{key}={shown}: expected {expected}")
    try:
        return kind(**{key: float(v) if hints[key] is float else v for key, v in settings.items()})
    except ValueError as error:
        raise BadInput(f"{where}{error}") from error


def renamed(kind: type) -> dict[str, str]:
    """Settings that had another name in an earlier version -> what they are called now."""
    return {f.metadata["was"]: f.name for f in dataclasses.fields(kind) if "was" in f.metadata}


def now_named(kind: type, settings: Mapping[str, Any], where: str = "settings: ") -> dict[str, Any]:
    """Settings under the names they have today, see `renamed`; what has no other name stays.

    Raises:
        BadInput: a setting is given under both of its names.
    """
    names = renamed(kind)
    for old, new in names.items():
        if old in settings and new in settings:
            raise BadInput(f"{where}{old}: now called {new}, which is given too; keep one of them")
    return {names.get(key, key): value for key, value in settings.items()}


def of_method(name: Any, settings: Any) -> Any:
    """The settings that a file of an earlier run has, `now_named`; of an unknown method, or damaged, they stay."""
    from unsee.methods import METHODS

    return now_named(METHODS[name], settings) if name in METHODS and isinstance(settings, Mapping) else settings


def named_method(name: str, settings: Mapping[str, Any], where: str = "settings: ") -> Method:
    """A method of the table with these settings.

    Raises:
        BadInput: no such method, or see `configured`.
    """
    return configured(_kind(name), settings, where)


def from_text(kind: type[S], assignments: Iterable[str]) -> S:
    """An instance of the dataclass `kind` with `key=value` assignments of the command line over its defaults.

    Raises:
        BadInput: not `key=value`, a key given twice, a text that is no value of its type, or see `configured`.
    """
    hints, names = _hints(kind), renamed(kind)
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput(f"{COMMAND_LINE}{assignment}: expected key=value")
        if key in values:
            raise BadInput(f"{COMMAND_LINE}{key}: given twice; keep one")
        values[key] = _value(text, hints.get(names.get(key, key)))
    return configured(kind, values, COMMAND_LINE)


def method_from_text(name: str, assignments: Iterable[str]) -> Method:
    """A method of the table with `key=value` settings of the command line.

    Raises:
        BadInput: no such method, or see `from_text`.
    """
    return from_text(_kind(name), assignments)


def _kind(name: str) -> type[Method]:
    from unsee.methods import METHODS

    if name not in METHODS:
        raise BadInput(f"--method {name}: unknown; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def _hints(kind: type) -> dict[str, Any]:
    """Setting -> its type."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _misfit(value: Any, kind: Any) -> str | None:
    """What was expected, if the value is not of this type."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return None if value in choices else f"one of {', '.join(map(str, choices))}"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    return None if fits else NUMBERS.get(kind.__name__, kind.__name__)


def _value(text: str, kind: Any) -> Any:
    """A value as its type reads it; the text itself where it does not, which `configured` refuses."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text
