"""Settings are written as TOML that reads back to the same values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from unsee.errors import BadInput
from unsee.strict_toml import as_it_is, assignments, open_toml
from unsee.study.search import freeze, read_frozen

MADE = {"created": "2026", "command": "unsee search"}
RESULTS: dict[str, Any] = {"arms": [], "seconds": 1.5, "tries": 0, "weights": {"forget": 1.0}, "provenance": MADE}


@pytest.mark.parametrize("folder", ["plain", "Jürgen", "people 🦊", "𝔘nseen", 'a "b" \\ \x7f\t'])
def test_people_are_found_again_whatever_their_folder_is_called(folder: str, tmp_path: Path) -> None:
    case = {"name": "a", "family": "llava", "data": f"photos:{folder}", "fingerprint": "f", "request": "x"}
    freeze(tmp_path / "settings.toml", {**RESULTS, "cases": [case]}, {})
    text = (tmp_path / "settings.toml").read_text(encoding="utf-8")
    (tmp_path / "settings.toml").write_text(f"{text}\n[[chosen]]\n{CHOSEN}", encoding="utf-8")
    assert read_frozen(tmp_path / "settings.toml").people == {f"photos:{folder}": "f"}


CHOSEN = 'family = "llava"\narm = "a"\nmethod = "ga"\nsettings = {}\n'

VALUES = {"b": True, "i": -3, "f": 0.1 + 0.2, "small": 1e-07, "big": 1e22, "t": "🙂 é", "l": ("a", "b"), "none": ()}


def test_values_read_back_exactly(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("\n".join(assignments(VALUES)), encoding="utf-8")
    keys = open_toml(tmp_path / "x.toml", "--settings")
    for key, value in VALUES.items():
        read = keys.take(key, as_it_is)
        assert read == (list(value) if isinstance(value, tuple) else value)
        assert type(read) is (list if isinstance(value, tuple) else type(value))
    keys.done()


@pytest.mark.parametrize("value", [None, math.nan, math.inf, {"a": 1}, object(), [None], [math.inf]])
def test_what_toml_has_no_word_for_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written as a setting"):
        assignments({"x": value})


def test_half_a_character_is_one_line_when_it_is_read(tmp_path: Path) -> None:
    """A path that is no UTF-8: nothing is lost when a search ends, and the reader says what is wrong."""
    case = {"name": "a", "family": "llava", "data": "photos:\udcff", "fingerprint": "f", "request": "x"}
    freeze(tmp_path / "settings.toml", {**RESULTS, "cases": [case]}, {})
    with pytest.raises(BadInput, match="not a TOML file"):
        read_frozen(tmp_path / "settings.toml")
