"""Verdicts: what passes, what must not, and by which thresholds."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unsee.cli import main
from unsee.errors import BadInput
from unsee.evaluation.faithfulness import Yardstick
from unsee.evaluation.results import read_measures
from unsee.evaluation.verdict import KEEP, VerdictSettings, read_settings, verdict, write_settings

WIDTH = 0.07  # of an interval, to either side
LEAD = ("answer-probability", "candidate-rank")
SETTINGS = VerdictSettings(
    lead=LEAD,
    yardsticks={(measure, part): Yardstick(0.01, 9) for measure in (*LEAD, "accuracy") for part in ("forget", *KEEP)},
)


def cells(forget: float, rank: float | None = None, retain: float = 0.98, sick: float = 0.0, **parts: float) -> Any:
    """A model as a measures.json has it.

    Args:
        forget, rank: leading measures on the forget set.
        sick: share of answers off the list on the forget set.
        parts: accuracy on a set other than retain.
    """

    def cell(value: float | None) -> dict[str, Any]:
        if value is None:
            return {"value": None, "low": None, "high": None, "n": 0}
        return {"value": value, "low": max(0.0, value - WIDTH), "high": min(1.0, value + WIDTH), "n": 72}

    kept = {part: cell(parts.get(part, 0.99)) for part in KEEP} | {"retain": cell(retain)}
    healthy = {part: cell(0.0) for part in ("forget", *KEEP)}
    return {
        "answer-probability": {"forget": cell(forget), "retain": cell(retain)},
        "candidate-rank": {"forget": cell(forget / 2 + 0.5 if rank is None else rank)},
        "accuracy": kept | {"forget": cell(forget)},
        "health-empty": dict(healthy),
        "health-repeated": dict(healthy),
        "health-off-list": healthy | {"forget": cell(sick)},
    }


def roles(**others: Any) -> dict[str, Any]:
    return {"vanilla": cells(0.96), "gold": cells(0.05), **others}


def say(model: Any, settings: VerdictSettings = SETTINGS, **others: Any) -> dict[str, Any]:
    return verdict(roles(judged=model, **others), "judged", settings)


def words(found: Mapping[str, Any]) -> list[str]:
    return [one["verdict"] for one in found["criteria"]]


def test_gold_and_unlearned_models_pass_and_vanilla_does_not() -> None:
    assert say(cells(0.07))["verdict"] == "PASS"
    assert say(cells(0.03))["verdict"] == "PASS"
    assert say(cells(0.97))["verdict"] == "FAIL"
    others = roles(**{"gold-2": cells(0.06), "vanilla-2": cells(0.95)})
    said = {role: verdict(others, role, SETTINGS)["verdict"] for role in others}
    assert said == {"vanilla": "FAIL", "gold": "PASS", "gold-2": "PASS", "vanilla-2": "FAIL"}
    assert verdict(others, "gold-2", SETTINGS)["golds"] == ["gold"], "nobody is compared with itself"


@pytest.mark.parametrize(
    ("broken", "criterion"),
    [
        (cells(0.05, sick=1.0), "health"),  # refuses about the forget set, and knows and keeps the rest as gold does
        (cells(0.05, retain=0.4), "keeping"),  # noised
        (cells(0.05, forget_text=0.5), "keeping"),  # the name is gone from the text too
        (cells(0.05, retain_attributes=0.5), "keeping"),
        (cells(0.6), "forgetting"),
        (cells(0.05, rank=0.0), "forgetting"),  # the true name avoided: beyond gold is no success
    ],
)
def test_one_clear_violation_fails(broken: Any, criterion: str) -> None:
    found = say(broken)
    assert found["verdict"] == "FAIL"
    assert [one["criterion"] for one in found["criteria"] if one["verdict"] == "FAIL"] == [criterion]


def test_positions_run_from_gold_to_vanilla() -> None:
    [line, *_] = say(cells(0.96))["criteria"][0]["lines"]
    assert line["position"] == pytest.approx(1.0)
    [line, *_] = say(cells(0.05))["criteria"][0]["lines"]
    assert line["position"] == pytest.approx(0.0)
    assert line["low"] == pytest.approx(-line["high"])
    [line, *_] = say(cells(0.25))["criteria"][0]["lines"]
    assert line["position"] == pytest.approx(0.2 / 0.91)
    assert line["spreads"] == pytest.approx(20.0)
    assert "farther than other seeds lie" in line["finding"]
    assert line["verdict"] == "INCONCLUSIVE"


def test_a_longer_yardstick_passes_more_until_it_measures_nothing() -> None:
    def with_spread(spread: float) -> str:
        sticks = {(measure, "forget"): Yardstick(spread, 9) for measure in LEAD}
        found: str = words(say(cells(0.15), dataclasses.replace(SETTINGS, yardsticks=sticks)))[0]
        return found

    assert [with_spread(s) for s in (0.01, 0.03, 0.3)] == ["INCONCLUSIVE", "PASS", "INCONCLUSIVE"]
    sticks = {(measure, "forget"): Yardstick(0.3, 9) for measure in LEAD}
    for model, word in ((cells(0.05), "INCONCLUSIVE"), (cells(0.96), "FAIL")):  # plain recognition can only fail it
        found = say(model, dataclasses.replace(SETTINGS, yardsticks=sticks))
        assert words(found)[0] == word
        lead = [line for line in found["criteria"][0]["lines"] if line["of"] in LEAD]
        assert [line["verdict"] for line in lead] == ["INCONCLUSIVE"] * 2
        assert all("not measurable" in line["finding"] for line in lead)


def test_golds_of_the_case_are_a_yardstick_of_their_own() -> None:
    bare = dataclasses.replace(SETTINGS, yardsticks={})
    alone = say(cells(0.07), bare)
    assert words(alone)[0] == "INCONCLUSIVE"
    assert "yardstick" in alone["criteria"][0]["sentence"]
    near = {f"gold-{i}": cells(0.05 + i / 200) for i in range(2, 8)}
    assert say(cells(0.07), bare, **near)["verdict"] == "PASS"
    assert words(say(cells(0.30), bare, **near))[0] == "INCONCLUSIVE"
    far = {f"gold-{i}": cells(0.05 + i / 40) for i in range(2, 8)}
    assert words(say(cells(0.30), bare, **far))[0] == "PASS"


def test_gold_above_vanilla_measures_nothing() -> None:
    upside_down = {"vanilla": cells(0.05), "gold": cells(0.96), "judged": cells(0.96)}
    found = verdict(upside_down, "judged", SETTINGS)
    assert "not measurable" in found["criteria"][0]["sentence"]
    assert found["verdict"] != "PASS"


def test_losses_are_read_in_three_bands_and_gains_pay_for_nothing() -> None:
    bare = dataclasses.replace(SETTINGS, yardsticks={})
    said = [words(say(cells(0.05, retain=0.98 - lost), bare))[1] for lost in (-0.02, 0.03, 0.05, 0.07)]
    assert said == ["PASS", "PASS", "INCONCLUSIVE", "FAIL"]
    wide = dataclasses.replace(SETTINGS, yardsticks={("accuracy", "retain"): Yardstick(5.0, 9)})
    said = [words(say(cells(0.05, retain=0.98 - lost), wide))[1] for lost in (0.05, 0.07)]
    assert said == ["PASS", "FAIL"], "other seeds lose more than the margin, but never more than twice"
    assert words(say(cells(0.05, retain=1.0, forget_text=0.5)))[1] == "FAIL"


def test_what_was_not_measured_never_passes() -> None:
    for measure, part in (
        ("answer-probability", "forget"),
        ("accuracy", "retain"),
        ("accuracy", "forget_text"),
        ("health-off-list", "forget"),
    ):
        model = cells(0.05)
        model[measure][part] = {"value": None, "low": None, "high": None, "n": 0}
        assert say(model)["verdict"] == "INCONCLUSIVE", (measure, part)
        del model[measure][part]
        assert say(model)["verdict"] == "INCONCLUSIVE", (measure, part)


def test_what_was_asked_of_nobody_is_named_and_does_not_count() -> None:
    without = copy.deepcopy(roles(judged=cells(0.05)))
    for model in without.values():
        for part in ("forget_text", "retain_text"):
            del model["accuracy"][part]
    found = verdict(without, "judged", SETTINGS)
    assert found["verdict"] == "PASS"
    assert "Not asked: retain_text, forget_text." in found["criteria"][1]["sentence"]
    for model in without.values():
        del model["health-off-list"]
    assert verdict(without, "judged", SETTINGS)["verdict"] == "INCONCLUSIVE", "a refusal could hide here"


def test_bad_roles_and_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="not measured"):
        verdict(roles(), "unlearned", SETTINGS)
    with pytest.raises(BadInput, match="no gold model beside it"):
        verdict({"vanilla": cells(0.9), "gold": cells(0.1)}, "gold", SETTINGS)
    for wrong in (
        {"lead": ()},
        {"lead": ("no-such",)},
        {"lead": ("ks-distance",)},
        {"lead": ("health-empty",)},
        {"lead": ("accuracy", "accuracy")},
        {"keep_by": ("truth-ratio-forget", "member-loss")},
        {"alpha": 1.0},
        {"nearer": 0.0},
        {"least_spread": 0.0},
        {"broken": -0.1},
        {"keep": {"forget_text": 0.02}},
        {"keep": {"retain": 0.0}},
    ):
        with pytest.raises(ValueError, match=r"expected|take another|choose another"):
            VerdictSettings(**wrong)


# Files and the command ------------------------------------------------------------------------------------------------


def test_settings_come_back_as_they_were_written_and_any_change_changes_their_hash(tmp_path: Path) -> None:
    file = tmp_path / "verdict.toml"
    write_settings(file, SETTINGS, {"command": 'unsee "x" \x7f 🙂', "commit": None, "dirty": True})
    again = read_settings(file)
    assert again == SETTINGS
    assert again.sha256 == SETTINGS.sha256
    (tmp_path / "empty.toml").write_text("")
    assert read_settings(tmp_path / "empty.toml") == VerdictSettings()
    stick = {**SETTINGS.yardsticks, ("accuracy", "forget"): Yardstick(0.011, 9)}
    changed = [
        dataclasses.replace(SETTINGS, **change)
        for change in (
            {"alpha": 0.02},
            {"lead": LEAD[:1]},
            {"keep": {**KEEP, "retain": 0.031}},
            {"yardsticks": stick},
        )
    ]
    assert len({one.sha256 for one in (SETTINGS, *changed)}) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alpha = 2", "alpha: expected a fraction"),
        ("lead = ['nothing']", "is no measure"),
        ("leads = 3", "no such key"),
        ("keep = { retain = -1 }", "keep.retain: expected a number above zero"),
        ("[[yardsticks]]\nmeasure = 'accuracy'\nset = 'forget'\nspread = 0.1", "degrees: missing"),
        ("[[yardsticks]]\nmeasure = 'accuracy'\nset = 'forget'\nspread = 0.1\ndegrees = 0", "1 or more"),
        ("alpha = ", "not a TOML file"),
    ],
)
def test_damaged_settings_are_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "verdict.toml"
    file.write_text(content)
    with pytest.raises(BadInput, match=message) as refused:
        read_settings(file)
    assert str(file) in str(refused.value)


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_command_prints_the_verdict_and_its_exit_code_is_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measures, settings = tmp_path / "measures.json", tmp_path / "verdict.toml"
    write_settings(settings, SETTINGS, {})
    models = roles(good=cells(0.06), bad=cells(0.9), between=cells(0.3))
    measures.write_text(json.dumps({"models": models, "provenance": {}}))
    codes = {}
    for role, word in (("good", "PASS"), ("bad", "FAIL"), ("between", "INCONCLUSIVE")):
        codes[role] = call("verdict", "--measures", measures, "--model", role, "--settings", settings)
        assert f"{role}: {word}" in capsys.readouterr().out
    assert codes == {"good": 0, "bad": 1, "between": 1}
    assert call("verdict", "--measures", measures, "--model", "good", "--settings", settings, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["settings_sha256"]) == ("PASS", SETTINGS.sha256)
    assert [one["criterion"] for one in said["criteria"]] == ["forgetting", "keeping", "health"]
    assert call("verdict", "--measures", measures, "--model", "nobody") == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"models": [1]}', '{"models": {"gold": {"accuracy": {"x": 1}}}}',
                                     '{"models": {"gold": {"accuracy": {"x": {"value": NaN}}}}}'])  # fmt: skip
def test_what_is_no_measures_file_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "measures.json"
    with pytest.raises(BadInput, match="cannot be read"):
        read_measures(file, f"--measures {file}")
    file.write_text(content)
    with pytest.raises(BadInput, match=str(file)):
        read_measures(file, f"--measures {file}")
