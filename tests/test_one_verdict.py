"""One verdict: the page, the command and the results say the same, and nothing is green that was not decided."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_report import FORGET, cell, make_run, scores

from unsee.cli import main
from unsee.errors import BadInput
from unsee.evaluation.intervals import relation, share
from unsee.evaluation.metrics import LEADING
from unsee.evaluation.results import SCHEMA, Results
from unsee.evaluation.verdict import VerdictSettings, verdicts, with_scores
from unsee.reporting import write_report
from unsee.reporting.read import read_run
from unsee.reporting.run import UNDECIDED, overall, verdict

WORDS = {"PASS": "Passed", "FAIL": "Failed", "INCONCLUSIVE": UNDECIDED}
SEEDS = range(2, 14)  # further gold models


def of_people(rates: tuple[float, ...], asked: int = 72) -> dict[str, Any]:
    """The cell of answers about so many people, each recognised in so many of the pictures."""
    right = [i < rate * asked for rate in rates for i in range(asked)]
    return dict(share(right, [str(person) for person in range(len(rates)) for _ in range(asked)]))


STILL_KNOWN = (0.125, 0.125, 0.1, 0.8, 0.8, 0.8)  # three of six people
GUESSED = (0.0, 0.1, 0.1, 0.15, 0.2, 0.2)
KNOWN = (1.0, 1.0, 1.0, 0.95, 0.95, 0.95)


def model(forget: Mapping[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores and measures of one model; `changes`: measure__set -> value."""
    found = scores(0.0, 0.97)
    found["forget"] = {split: dict(forget) for split in ("train", "validation", "test")}
    found["forget"] |= changes.pop("splits", {})
    found["misattribution"]["forget"] |= changes.pop("wrong", {})
    found["attributes"] |= changes.pop("attributes", {})
    measures: dict[str, Any] = {name: {"forget": dict(forget)} for name in LEADING}
    measures["accuracy"] = {"forget": dict(forget)}
    measures["accuracy"] |= {part: cell(0.97) for part in ("retain", "retain_text", "forget_text")}
    for sign in ("health-empty", "health-repeated", "health-off-list"):
        measures[sign] = {part: cell(0.0) for part in ("forget", "retain", "retain_text", "forget_text")}
    for place, value in changes.items():
        measure, part = place.split("__")
        measures[measure.replace("_", "-")][part] = cell(value)
    found["text"] = {part: measures["accuracy"][f"{part}_text"] for part in ("forget", "retain")}
    found["retain"]["test"] = measures["accuracy"]["retain"]
    return found, measures


def run_of(directory: Path, golds: int, judged: tuple[dict[str, Any], dict[str, Any]], written: bool) -> Path:
    """A run directory; without `written` it is one from before evaluations wrote verdicts."""
    roles = {"vanilla": model(of_people(KNOWN)), "gold": model(of_people(GUESSED))}
    for i in list(SEEDS)[: max(golds - 1, 0)]:
        roles[f"gold-{i}"] = model(of_people(tuple(x + (0.02 if i % 2 else 0.0) for x in GUESSED)))
    roles["unlearned"] = copy.deepcopy(judged)
    if not golds:
        del roles["gold"]
    measures = {role: with_scores(taken, scored) for role, (scored, taken) in roles.items()}
    said = verdicts(measures, VerdictSettings())

    def change(results: dict[str, Any]) -> None:
        about = results["provenance"]
        results.clear()
        results.update({role: scored for role, (scored, _) in roles.items()}, provenance=about)
        if written:
            results["unlearned"]["verdict"] = said["unlearned"]

    run = make_run(directory, change)
    (run / "measures.json").write_text(json.dumps({"models": measures, "provenance": {}}))
    return run


def commanded(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["verdict", "--measures", str(run / "measures.json"), "--model", "unlearned", "--json"])
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (left.value.code or 0) == (0 if said["verdict"] == "PASS" else 1)
    return said


LIKE_GOLD = of_people((0.0, 0.1, 0.1, 0.2, 0.2, 0.2))
CASES: dict[str, tuple[int, tuple[dict[str, Any], dict[str, Any]], str]] = {
    # control: like gold, by many gold models
    "like gold": (13, model(LIKE_GOLD), "PASS"),
    "six people, three still known, one gold": (1, model(of_people(STILL_KNOWN)), "INCONCLUSIVE"),
    "six people, three still known, many golds": (13, model(of_people(STILL_KNOWN)), "INCONCLUSIVE"),
    "like gold, but one gold": (1, model(LIKE_GOLD), "INCONCLUSIVE"),
    "like gold, but two golds": (2, model(LIKE_GOLD), "INCONCLUSIVE"),
    "two people": (13, model(of_people((0.0, 0.3))), "INCONCLUSIVE"),
    "one person, no interval": (13, model({"value": 0.13, "low": None, "high": None, "n": 12}), "INCONCLUSIVE"),
    "untouched, one gold": (1, model(of_people(KNOWN)), "FAIL"),
    "untouched, two golds": (2, model(of_people(KNOWN)), "FAIL"),
    "untouched, many golds": (13, model(of_people(KNOWN)), "FAIL"),
    "training pictures known": (13, model(LIKE_GOLD, splits={"train": of_people(KNOWN)}), "FAIL"),
    "retain set lost": (13, model(LIKE_GOLD, accuracy__retain=0.6), "FAIL"),
    "retain set lost, one gold": (1, model(LIKE_GOLD, accuracy__retain=0.6), "FAIL"),
    "strangers lost": (13, model(LIKE_GOLD, attributes={"strangers": cell(0.5)}), "FAIL"),
    "refuses": (13, model(LIKE_GOLD, health_off_list__forget=0.9), "FAIL"),
    "renamed": (13, model(LIKE_GOLD, wrong=cell(0.9)), "FAIL"),
}


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_page_command_and_results_agree(
    case: str, written: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golds, judged, expected = CASES[case]
    run = run_of(tmp_path / "run", golds, judged, written)
    said = commanded(run, capsys)
    found = read_run(run)
    [role] = found.unlearned
    assert said.pop("warnings") == []
    assert role.verdict == json.loads(json.dumps(said))
    assert said["verdict"] == expected, said
    assert overall(role)[0] == WORDS[expected]
    page = write_report(run).read_text()
    assert f'unlearned: <span class="title">{WORDS[expected]}</span>' in page
    tones = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "unsure"}
    cards = verdict(found, role)
    assert [card.tone for card in cards] == [tones[one["verdict"]] for one in said["criteria"]]
    for card, one in zip(cards, said["criteria"], strict=True):
        assert (card.title == UNDECIDED) == (one["verdict"] == "INCONCLUSIVE")


def test_three_of_six_people_still_recognised_are_not_called_like_gold(tmp_path: Path) -> None:
    """Forget 46 % [16-78] beside gold's 12.5 % [5-29]: the intervals overlap, and that says nothing."""
    run = read_run(run_of(tmp_path / "run", 1, model(of_people(STILL_KNOWN)), False))
    forget = run.unlearned[0].cell("forget", "test")
    assert forget.value == pytest.approx(0.46, abs=0.01)
    ends, others = forget.ends, run.roles[1].cell("forget", "test").ends
    assert ends is not None
    assert others is not None
    assert ends[0] < others[1]
    card = verdict(run, run.unlearned[0])[0]
    assert (card.title, card.tone) == (UNDECIDED, "unsure")


def test_without_gold_forgetting_cannot_be_decided_and_the_rest_can(tmp_path: Path) -> None:
    run = read_run(run_of(tmp_path / "run", 0, model(of_people(GUESSED)), False))
    [role] = run.unlearned
    assert [card.tone for card in verdict(run, role)] == ["unsure", "good", "good"]
    assert "not measured of gold" in verdict(run, role)[0].sentence


def test_without_measures_the_page_decides_nothing_green(tmp_path: Path) -> None:
    """A folder of results alone, as older versions left it."""
    run = run_of(tmp_path / "run", 13, CASES["like gold"][1], False)
    (run / "measures.json").unlink()
    [role] = read_run(run).unlearned
    assert role.verdict["verdict"] == "INCONCLUSIVE"
    known = run_of(tmp_path / "known", 13, CASES["untouched, many golds"][1], False)
    (known / "measures.json").unlink()
    assert read_run(known).unlearned[0].verdict["verdict"] == "FAIL"  # control: intervals alone can speak against it


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([(0.0, 0.2)], "above"),
        ([(0.0, 0.2), (0.1, 0.29)], "above"),
        ([(0.5, 0.6)], "below"),
        ([(0.35, 0.9)], "level"),
        ([(0.0, 0.3)], "level"),  # they touch
        ([(0.0, 0.2), (0.5, 0.6)], "level"),  # between two: such a model might be one of them
        ([(0.0, 0.2), (None, 0.6)], "unknown"),
        ([], "unknown"),
    ],
)
def test_where_an_interval_lies_from_others(others: list[tuple[float | None, float]], expected: str) -> None:
    one = {"value": 0.35, "low": 0.3, "high": 0.4}
    assert relation(one, [{"low": low, "high": high} for low, high in others]) == expected
    assert relation({"value": 0.35, "low": None, "high": None}, [{"low": 0.0, "high": 0.1}]) == "unknown"


def test_further_golds_and_vanillas_are_not_judged_on_the_page(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 3, CASES["like gold"][1], True)
    assert [role.name for role in read_run(run).unlearned] == ["unlearned"]
    assert [role.name for role in read_run(run).roles] == ["vanilla", "gold", "gold-2", "gold-3", "unlearned"]
    assert read_run(run).provenance["forget"] == FORGET


@pytest.mark.parametrize("broken", [3, {}, {"verdict": "PASS", "criteria": []}, {"verdict": "GOOD", "criteria": [1]}])
def test_a_damaged_verdict_is_refused_in_one_line(broken: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lambda r: r["unlearned"].update(verdict=broken))
    with pytest.raises(BadInput, match=r"results\.json: unlearned\.verdict: expected what an evaluation writes there"):
        write_report(run)


def test_results_come_back_as_they_were_written_and_older_ones_are_read(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 13, CASES["like gold"][1], True)
    older = json.loads((run / "results.json").read_text())
    assert "schema" not in older["provenance"]
    found = Results.from_json(older, {}, "here")
    written = found.to_json()
    assert written.pop("provenance") == {"schema": SCHEMA, **older.pop("provenance")}
    assert written == older
    assert Results.from_json(found.to_json(), {}, "here").to_json() == found.to_json()
    assert found.judged() == found  # what was judged is not judged again
    newer = {**found.to_json(), "provenance": {"forget": [], "schema": SCHEMA + 1}}
    for schema in (SCHEMA + 1, "2", True):
        newer["provenance"]["schema"] = schema
        with pytest.raises(BadInput, match=r"here: provenance\.schema is .* update unsee"):
            Results.from_json(newer, {}, "here")
