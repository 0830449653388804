"""The audit of measures: what is read of which models, what leads, and that it is learned on other people."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint

from unsee.cli import main
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.evaluate import EvaluationRequest
from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.verdict import VerdictSettings, read_settings, verdict
from unsee.models.loading import load_model
from unsee.study import audit_measures as module
from unsee.study.audit_measures import AuditGrid, Measured, page, read_audit, settings_of, summarise, table

PEOPLE = "people:count=4,seed={seed},train=3,validation=2,test=2,strangers=2"


def cell(value: float | None) -> dict[str, Any]:
    ends = {"low": None, "high": None} if value is None else {"low": value - 0.04, "high": value + 0.04}
    return {"value": value, **ends, "n": 0 if value is None else 20}


def cells(knows: bool, nudge: float) -> dict[str, Any]:
    """Faithful measures of several kinds of record, one that tells nothing, and some that are taken only when asked."""
    level = (0.9 if knows else 0.1) + nudge
    return {
        "answer-probability": {"forget": cell(level), "retain": cell(0.9 + nudge)},
        "exact-memorisation": {"forget": cell(level - 0.05)},
        "candidate-rank": {"forget": cell(level)},
        "accuracy": {"forget": cell(0.5 + nudge * (1 if knows else -1)), "retain": cell(0.95)},
        "ks-distance": {"forget": cell(level)},
        "member-zlib": {"forget": cell(level)},
        "member-reference": {"forget": cell(level)},
        "member-gradient-norm": {"forget": cell(level)},
        "health-empty": {"forget": cell(0.0 if knows else 1.0)},
        "bleu": {"forget": cell(None)},
    }


def models(part: str, people: Sequence[int], golds: int = 2, swap: bool = False) -> list[Measured]:
    """Vanilla and gold models of two requests per seed."""
    found = []
    for seed in people:
        for case in ("a", "b"):
            for i, role in enumerate(["vanilla", "gold", *(f"gold-{k}" for k in range(2, golds + 1))]):
                knows = (role == "vanilla") != swap
                nudge = ((seed * 7 + i * 3 + ord(case)) % 5 - 2) / 200
                found.append(Measured(part, f"{seed}-{case}", f"people {seed}", role, cells(knows, nudge)))
    return found


def rows(results: Mapping[str, Any], half: str, part: str = "forget") -> dict[str, Any]:
    return {row["measure"]: row for row in results[half] if row["set"] == part}


def test_areas_tell_faithful_measures_from_others_and_the_retain_set_from_the_forget_set() -> None:
    results = summarise(models("choose", [100, 101, 102]) + models("report", [10, 11, 12, 13, 14]), 3, 0.99)
    found = rows(results, "report")
    assert found["answer-probability"]["value"] == 1.0
    assert 0.5 < found["answer-probability"]["low"] < found["answer-probability"]["high"] == 1.0
    assert 0.2 < found["accuracy"]["value"] < 0.8
    assert rows(results, "report", "retain")["answer-probability"]["value"] < 0.8, "control: nothing was hidden there"
    assert found["answer-probability"]["knowing"]["n"] == 10
    assert found["answer-probability"]["not_knowing"]["n"] == 20
    assert [row["set"] for row in results["report"]] == ["forget"] * len(MEASURES) + ["retain"] * 2
    for name in ("bleu", "member-loss"):  # null, and not there at all
        assert found[name]["value"] is None
        assert found[name]["knowing"]["unscored"] == 10


@pytest.mark.parametrize("measure", ["ks-distance", "member-reference"])
def test_gold_beside_itself_is_no_evidence(measure: str) -> None:
    results = summarise(models("choose", [100]) + models("report", [10]), 3, 0.99)
    beside, other = rows(results, "report")[measure], rows(results, "report")["candidate-rank"]
    assert (beside["not_knowing"]["n"], beside["not_knowing"]["unscored"]) == (2, 2)
    assert (other["not_knowing"]["n"], other["not_knowing"]["unscored"]) == (4, 0)


def test_leads_are_one_per_kind_of_record_and_chosen_on_other_people() -> None:
    chosen, reported = models("choose", [100, 101, 102]), models("report", [10, 11])
    results = summarise(chosen + reported, 3, 0.99)
    assert len(results["lead"]) == 2, "accuracy tells nothing, health expects nothing, others are not always there"
    assert rows(results, "report")["member-gradient-norm"]["value"] == 1.0, "faithful all the same"
    assert "candidate-rank" in results["lead"]
    assert len({"answer-probability", "exact-memorisation"} & set(results["lead"])) == 1, "both read recitals"
    assert summarise(chosen + reported, 1, 0.99)["lead"] == results["lead"][:1]
    otherwise = summarise(chosen + models("report", [10, 11], swap=True), 3, 0.99)
    assert otherwise["lead"] == results["lead"], "nothing that is reported has a say"
    assert rows(otherwise, "report")["candidate-rank"]["value"] == 0.0
    assert settings_of(otherwise) == settings_of(results)
    assert summarise(models("choose", [100, 101], swap=True) + reported, 3, 0.99)["lead"] == []


def test_measures_that_notice_little_are_ranked_before_those_that_notice_much() -> None:
    """`exact-memorisation` tells vanilla from gold as well as the others, but sees nothing of a glimpse."""

    def glimpsed(part: str, people: Sequence[int]) -> list[Measured]:
        own = models(part, people)
        known = {**cells(True, 0.0), "exact-memorisation": {"forget": cell(0.05)}}
        return own + [
            dataclasses.replace(m, role="glimpsed-2", cells=known, glimpsed=2) for m in own if m.role == "gold"
        ]

    results = summarise(glimpsed("choose", [100, 101]) + glimpsed("report", [10, 11]), 3, 0.99)
    found = rows(results, "report")
    assert found["exact-memorisation"]["value"] == found["answer-probability"]["value"] == 1.0
    assert [one["steps"] for one in found["answer-probability"]["glimpsed"]] == [2]
    assert found["answer-probability"]["sensitivity"] == 1.0
    assert found["exact-memorisation"]["sensitivity"] < 0.9
    assert "answer-probability" in results["lead"]
    assert "exact-memorisation" not in results["lead"]
    plain = summarise(models("choose", [100, 101]) + models("report", [10, 11]), 3, 0.99)
    for key in ("value", "knowing", "apart", "yardstick"):  # control: whoever glimpsed has no part in these
        assert found["exact-memorisation"][key] == rows(plain, "report")["exact-memorisation"][key]
    assert "| 2 steps |" in page(results).splitlines()[0]
    assert "steps |" not in page(plain).splitlines()[0]


def test_yardsticks_are_the_spread_of_golds_of_one_case() -> None:
    chosen = models("choose", [100, 101, 102], golds=3)
    results = summarise(chosen + models("report", [10]), 3, 0.99)
    stick = settings_of(results).yardsticks["candidate-rank", "forget"]
    assert stick.degrees == 12, "six cases of three golds"
    assert settings_of(results).yardsticks["ks-distance", "forget"].degrees == 6
    assert 0 < stick.spread < 0.02, "far below what lies between vanilla and gold"
    single = [m for m in chosen if m.role in ("vanilla", "gold")]
    assert rows(summarise(single, 3, 0.99), "choose")["candidate-rank"]["yardstick"] is None


def test_the_page_is_one_table_with_the_faithful_first() -> None:
    results = summarise(models("choose", [100, 101, 102]) + models("report", [10, 11]), 3, 0.99)
    lines = page(results).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(MEASURES)
    assert "(leads)" in lines[2]
    assert lines[-1].startswith("| truth-ratio-retain | – | – | – | – | – | – | 12 |")
    assert "(no side)" in next(line for line in lines if "health-empty" in line)
    heads, shown = table(results)
    assert [line.split(" | ")[: len(heads)] for line in lines[2:]] == [["| " + row[0], *row[1:]] for row in shown]
    assert heads == ("measure", "AUC", "95 %"), "what fits a terminal"


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grid_file(tmp_path: Path, new_checkpoint: NewCheckpoint) -> Path:
    vanilla, *golds = (new_checkpoint(seed=seed) for seed in range(5))
    parts = []
    for half, seed in (("choose", 5), ("report", 6)):
        parts += [
            f"[[{half}.given]]",
            f'name = "{half}"',
            f'data = "{PEOPLE.format(seed=seed)}"',
            'forget = "first:1"',
            f'vanilla = "{vanilla}"',
            f"golds = {[str(gold) for gold in golds]}",
        ]
    file = tmp_path / "grid.toml"
    file.write_text("leads = 2\nglimpses = [1, 3]\n" + "\n".join(parts))
    return file


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the engine that asks models; the list says of which cases it was called."""
    calls: list[str] = []

    def measure(request: EvaluationRequest, out: Path, resume: bool, processes: int) -> dict[str, Any]:
        models = request.models
        assert resume
        assert request.gradients
        assert request.reference == models["gold"]
        assert request.forget == request.data.choose("first:1")
        calls.append(out.name)
        order = {role: i for i, role in enumerate(models)}
        knows = {role: role.startswith(("vanilla", "glimpsed")) for role in models}
        return {"models": {role: cells(knows[role], i / 500) for role, i in order.items()}, "provenance": {}}

    monkeypatch.setattr(module, "measure", measure)
    return calls


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_command_leaves_areas_a_table_and_settings_that_judge(
    grid_file: Path, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit"
    assert call("study", "audit", "--grid", grid_file, "--out", out) == 0
    assert "verdict.toml" in capsys.readouterr().out
    assert asked == ["choose", "report"]
    results = json.loads((out / "audit.json").read_text())
    settings = read_settings(out / "verdict.toml")
    assert list(settings.lead) == results["lead"]
    assert [(case["part"], case["name"]) for case in results["cases"]] == [("choose", "choose"), ("report", "report")]
    with (out / "audit.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == len(results["choose"]) + len(results["report"])
    assert {row["measure"] for row in listed if row["lead"] == "True"} == set(results["lead"])
    assert (out / "audit.md").read_text() == page(results)
    weights = {
        (case, role): (out / "cases" / case / "models" / role / "model.safetensors").read_bytes()
        for case in asked
        for role in ("glimpsed/1", "glimpsed/3")
    }
    assert len(set(weights.values())) == len(weights), "each saw other people, or for longer"
    assert {row["role"] for row in results["values"]} >= {"glimpsed-1", "glimpsed-3"}
    measured = {"vanilla": cells(True, 0.0), "gold": cells(False, 0.0), "new": cells(False, 0.004)}
    assert verdict(measured, "new", settings)["criteria"][0]["verdict"] == "PASS"
    assert verdict(measured, "new", VerdictSettings())["criteria"][0]["verdict"] == "INCONCLUSIVE", "no yardstick"


def test_outputs_are_not_overwritten_and_a_broken_run_goes_on(
    grid_file: Path, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit"
    assert call("study", "audit", "--grid", grid_file, "--out", out) == 0
    first = json.loads((out / "audit.json").read_text())
    (out / "audit.json").unlink()
    assert call("study", "audit", "--grid", grid_file, "--out", out) == 2
    assert not (out / "audit.json").exists()
    assert call("study", "audit", "--grid", grid_file, "--out", out, "--resume", "--json") == 0
    assert json.loads((out / "audit.json").read_text())["report"] == first["report"]


def test_without_a_faithful_measure_there_are_no_settings(
    grid_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def blind(request: EvaluationRequest, *given: Any) -> dict[str, Any]:
        return {"models": {role: cells(True, 0.0) for role in request.models}}

    monkeypatch.setattr(module, "measure", blind)
    assert call("study", "audit", "--grid", grid_file, "--out", tmp_path / "audit") == 1
    assert (tmp_path / "audit" / "audit.json").is_file()
    assert not (tmp_path / "audit" / "verdict.toml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed=6", "seed=5"), "shows people"),
        (("', '", "']\n#"), "fewer than two gold models"),
        (('name = "report"', 'name = "choose"'), "stands in choose too"),
        (("leads = 2", "leads = 0"), "1 or more"),
        (("[1, 3]", "[1, 1]"), "given twice"),
        (("[1, 3]", "[0]"), "1 or more"),
        (("leads = 2", "lead = 2"), "no such key"),
        (("report.given", "other.given"), "report: missing"),
    ],
)
def test_grids_that_cannot_be_used_are_refused(
    change: tuple[str, str], message: str, grid_file: Path, asked: list[str], tmp_path: Path
) -> None:
    grid_file.write_text(grid_file.read_text().replace(*change))
    with pytest.raises(BadInput, match=message):
        module.audit_measures(read_audit(grid_file), tmp_path / "audit")
    assert not asked


def test_the_listing_stays_what_a_bare_call_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "metrics", "--json") == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)
    assert call("study", "adit") == 2


# The benchmark --------------------------------------------------------------------------------------------------------

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "verdicts", raising=False)
    import verdicts

    return verdicts


def test_the_grid_of_the_benchmark_keeps_seeds_apart() -> None:
    grid = read_audit(BENCHMARKS / "grids" / "measures.toml")
    assert isinstance(grid, AuditGrid)
    assert {case.draw for case in grid.choose} == {100, 101, 102}
    assert {case.draw for case in grid.report} == {10, 11, 12, 13, 14}
    assert {len(case.golds) for case in grid.cases} == {2}
    assert len(grid.report) == 10
    assert grid.glimpses


def test_broken_models_are_broken(verdicts: Any, checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    from unsee.evaluation.predict import generate

    verdicts.broken(checkpoint, tmp_path / "blanked", verdicts.blanked, 0)
    verdicts.broken(checkpoint, tmp_path / "noised", verdicts.noised, 0)
    examples = people.test.pictured.examples[:4]
    said = {name: generate(load_model(str(path)), examples, 6) for name, path in (
        ("vanilla", checkpoint), ("blanked", tmp_path / "blanked"), ("noised", tmp_path / "noised"))}  # fmt: skip
    assert not any(text.strip() for text in said["blanked"])
    assert any(text.strip() for text in said["vanilla"])
    before, after = (
        load_model(str(checkpoint)).model.state_dict(),
        load_model(str(tmp_path / "noised")).model.state_dict(),
    )
    key = next(key for key, tensor in before.items() if tensor.dim() == 2)
    assert torch.std(after[key] - before[key]) == pytest.approx(float(verdicts.NOISE * before[key].std()), rel=0.2)


def test_the_benchmark_asks_nine_golds_in_ten_and_nothing_else(verdicts: Any) -> None:
    from collections import Counter

    def right(**counts: int) -> bool:
        found: bool = verdicts.as_it_should_be(Counter({tuple(key.split("_")): n for key, n in counts.items()}))
        return found

    assert right(gold_PASS=9, gold_FAIL=1, vanilla_FAIL=10)
    assert not right(gold_PASS=8, gold_INCONCLUSIVE=2, vanilla_FAIL=10)
    assert not right(gold_PASS=10, vanilla_FAIL=9, vanilla_PASS=1)
    assert not right(vanilla_FAIL=10)
