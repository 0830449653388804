"""What an attack brings back: counted by hand, shown by the report, refused where its file is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp
from test_report import make_run, page_of

from unsee.attacks.relearn_run import cell, gain, outcome
from unsee.errors import BadInput
from unsee.evaluation.intervals import share
from unsee.reporting.read import read_run


def test_gain_by_hand() -> None:
    before = {"a": (0, 10), "b": (2, 10), "c": (1, 10)}
    after = {"a": (1, 10), "b": (4, 10), "c": (4, 10)}
    found = gain(before, after)
    expected = ttest_1samp([0.1, 0.2, 0.3], 0).confidence_interval(0.95)
    assert (found["value"], found["n"]) == (pytest.approx(0.2), 30)
    assert (found["low"], found["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert gain(after, before)["value"] == pytest.approx(-0.2)
    assert gain(before, before) == {"value": 0.0, "low": None, "high": None, "n": 30}
    assert cell(after) == share(
        [i < r for r, n in after.values() for i in range(n)], [s for s in "abc" for _ in range(10)]
    )


def test_each_group_is_counted_over_its_own_attacks() -> None:
    def record(attacked: str, held_out: str, after: dict[str, tuple[int, int]]) -> dict[str, Any]:
        points = [({"a": (0, 4), "b": (1, 4)}, (3, 4)), (after, (2, 4))]
        curve = [{"step": i, "forget": forget, "retain": {"r": kept}} for i, (forget, kept) in enumerate(points)]
        return {"attacked": [attacked], "held_out": [held_out], "curve": curve, "seconds": 1.5}

    found = outcome([record("a", "b", {"a": (4, 4), "b": (2, 4)}), record("b", "a", {"a": (0, 4), "b": (3, 4)})])
    values = {
        group: [found[group][when]["value"] for when in ("before", "after", "gain")]
        for group in found
        if group in ("held_out", "attacked", "retain")
    }
    assert values == {
        "held_out": [1 / 8, 2 / 8, 1 / 8],
        "attacked": [1 / 8, 7 / 8, 6 / 8],
        "retain": [6 / 8, 4 / 8, -2 / 8],
    }
    assert found["subjects"] == {"a": {"before": 0.0, "after": 0.0}, "b": {"before": 0.25, "after": 0.5}}
    assert (found["attacks"], found["seconds"]) == (2, 3.0)
    assert [found["retain"][when]["n"] for when in ("before", "after")] == [4, 8]  # before is the same in both attacks


def share_of(value: float, spread: float = 0.05) -> dict[str, Any]:
    return {"value": value, "low": max(0.0, value - spread), "high": min(1.0, value + spread), "n": 48}


def attacked_run(directory: Path, **roles: float) -> Path:
    """A run directory with attacks on the given roles: what the held-out half came back to."""
    make_run(directory)
    content: dict[str, Any] = {
        role: {
            **{
                group: {
                    "before": share_of(0.1),
                    "after": share_of(after),
                    "gain": {**share_of(0), "value": after - 0.1},
                }
                for group in ("held_out", "attacked", "retain")
            },
            "curve": [
                {"step": step, "held_out": share_of(0.1 + (after - 0.1) * step / 30)} for step in (0, 10, 20, 30)
            ],
            "attacks": 8,
            "seconds": 40.0,
        }
        for role, after in roles.items()
    }
    content |= {"settings": {"steps": 30, "pictures": 4}, "provenance": {"models": {}}}
    (directory / "relearn.json").write_text(json.dumps(content))
    return directory


def test_the_report_shows_the_attack_if_there_was_one(tmp_path: Path) -> None:
    assert 'id="attack"' not in page_of(make_run(tmp_path / "without"))
    directory = attacked_run(tmp_path / "with", unlearned=0.3, gold=0.17, vanilla=0.98, other=0.5)
    text = page_of(directory)
    section = text[text.index('id="attack"') : text.index('id="claims"')]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</span>(\w+)</th>(.*?)</tr>", section, re.S)
    assert [role for role, _ in rows] == ["vanilla", "gold", "unlearned", "other"]
    assert "+20.0" in dict(rows)["unlearned"]
    assert "trained for 30 steps" in section
    svg = (directory / "figures" / "relearning.svg").read_text()
    assert "all its parameters are trained" in section
    content = json.loads((directory / "relearn.json").read_text())
    content["settings"]["attacker"] = "lora"
    (directory / "relearn.json").write_text(json.dumps(content))
    assert "low-rank adapters on all its linear layers are trained" in page_of(directory)
    assert "unlearned: step 0 10.0%" in svg


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("unlearned", "held_out", "after", "value"), 30, "unlearned.held_out.after.value: expected a fraction"),
        (("unlearned", "held_out", "gain", "value"), 30, "gain.value: expected a number from -1 to 1"),
        (("unlearned", "curve"), [], "unlearned: expected a gain, the number of attacks and a curve"),
        (("unlearned", "attacked"), None, "unlearned: expected an object 'attacked'"),
        (("settings", "attacker"), "magic", "settings.attacker: expected one of full, lora, visual"),
        (("provenance",), None, "expected an object 'provenance'"),
        (("provenance", "models"), {"unlearned": {"sha256": {"model.safetensors": "b" * 64}}}, "with other weights"),
    ],
)
def test_a_broken_attack_file_is_one_clear_line(tmp_path: Path, keys: Sequence[str], value: Any, says: str) -> None:
    directory = attacked_run(tmp_path / "run", unlearned=0.3)
    assert read_run(directory).relearning is not None
    content = inner = json.loads((directory / "relearn.json").read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (directory / "relearn.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=re.escape(says)) as caught:
        read_run(directory)
    assert "relearn.json" in str(caught.value)
    assert "\n" not in str(caught.value)
