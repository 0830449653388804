"""The tables of the documentation say what was measured."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from unsee.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "measured.py"))


@pytest.fixture(scope="module")
def studies(tool: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = tool["measured"](ROOT / "docs")
    return found


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: str(page.stem))
def test_pages_say_what_was_measured(tool: dict[str, Any], studies: dict[str, Any], page: Path) -> None:
    text = page.read_text()
    assert tool["page"](text, studies) == text, "run tools/measured.py"
    wrong = re.sub(r"(<!-- measured: .+? -->\n(?:.*\n)*?\| [^|]+\| [^|]+\| )\d", r"\g<1>7777", text, count=1)
    if "<!-- measured:" in text and tool["NOTHING"] not in text:
        assert wrong != text
        assert tool["page"](wrong, studies) == text, "control: a number somebody changed is written anew"


def test_every_method_has_its_place(tool: dict[str, Any], studies: dict[str, list[dict[str, str]]]) -> None:
    measured = {row["arm"] for rows in studies.values() for row in rows} & METHODS.keys()
    assert measured
    for name in METHODS:
        text = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        place = f"<!-- measured: method {name} -->" in text
        assert place or name not in measured, "a method that was measured says so on its page"
        assert (tool["NOTHING"] in text) == (place and name not in measured)
