"""Membership inference from the command line: a reference model and gradient norms, asked for at once or later."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import NewCheckpoint
from typer.main import get_command

from unsee.cli.app import app, main
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation import engine
from unsee.evaluation import evaluate as measuring
from unsee.evaluation.evaluate import EvaluationRequest, measure
from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.metrics.base import ASKED_WITH
from unsee.evaluation.questions import EXPOSED, MeasuredQuestion
from unsee.evaluation.score import line, measures_of
from unsee.evaluation.verdict import VerdictSettings, verdict
from unsee.journal import Line, read_lines

DATA = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"
ATTACKS = {"member-reference", "member-gradient-norm"}


@pytest.fixture(scope="module")
def models(new_checkpoint: NewCheckpoint) -> tuple[str, str]:
    """Two random models."""
    return str(new_checkpoint(seed=0)), str(new_checkpoint(seed=1))


def unsee(arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments.split())
    return int(ending.value.code or 0)


def measured(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "measures.json").read_text())
    return content


# The command ----------------------------------------------------------------------------------------------------------


def test_each_option_fills_its_own_measure(models: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = f"evaluate --model vanilla={models[0]} --data {DATA} --forget first:1 --out {out}"
    assert unsee(command) == 0
    plain = measured(out)
    assert not ATTACKS & set(plain["models"]["vanilla"])  # control: nobody asked for them
    answers = (out / "predictions/vanilla.jsonl").read_bytes()
    assert unsee(f"{command} --resume --reference {models[1]}") == 0
    one = measured(out)
    assert set(one["models"]["vanilla"]) - set(plain["models"]["vanilla"]) == {"member-reference"}
    assert (one["provenance"]["reference"]["path"], one["provenance"]["gradients"]) == (models[1], False)
    assert unsee(f"{command} --resume --reference {models[1]} --gradients") == 0
    both = measured(out)
    assert set(both["models"]["vanilla"]) - set(plain["models"]["vanilla"]) == ATTACKS
    assert both["provenance"]["gradients"] is True
    assert {name: both["models"]["vanilla"][name] for name in plain["models"]["vanilla"]} == plain["models"]["vanilla"]
    assert set(both["models"]) == {"vanilla"}  # the reference is asked, not measured
    assert not any("gradient_norm" in x for x in read_lines(out / "measures/reference.jsonl"))
    assert (out / "predictions/vanilla.jsonl").read_bytes() == answers


def test_a_model_is_no_reference_for_itself(models: tuple[str, str], people: UnlearnData, tmp_path: Path) -> None:
    """Beside itself every member has the same score as every stranger; beside another model they differ."""
    values = []
    for i, reference in enumerate(models):
        found = measure(
            EvaluationRequest({"it": models[0]}, people, people.subjects[:1], reference=reference), tmp_path / str(i)
        )
        values.append(found["models"]["it"]["member-reference"]["forget"]["value"])
    assert values[0] == 0.5
    assert values[1] > 0.5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--reference nowhere", "--reference nowhere: no such folder; expected a checkpoint folder or a hub id"),
        ("--reference {folder}", "--reference {folder}: no config.json"),
        ("--reference {model} --model reference={model}", "--model reference=…: the reference model's lines stand"),
        ("--gradients", "--gradients: folder:{folder} has no strangers to compare the forget set with"),
        ("--reference {model}", "--reference {model}: folder:{folder} has no strangers to compare"),
    ],
)
def test_what_cannot_be_asked_ends_before_anything_is(
    given: str,
    expected: str,
    models: tuple[str, str],
    people: UnlearnData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "photos"
    for subject in people.subjects[:2]:
        (folder / subject).mkdir(parents=True)
        for i, picture in enumerate(people.train.of([subject]).pictures):
            picture.open().save(folder / subject / f"{i}.png")
    data, about = folder if "strangers" in expected else DATA, {"folder": folder, "model": models[0]}
    command = f"evaluate --model vanilla={models[0]} --data {data} --forget first:1 --out {tmp_path}/out "
    assert unsee(command + given.format(**about)) == 2
    said = capsys.readouterr().err
    assert expected.format(**about) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_metrics_name_the_options_that_evaluate_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert unsee("list metrics --json") == 0
    listed = json.loads(capsys.readouterr().out)
    known = {name for p in get_command(app).commands["evaluate"].params for name in p.opts}  # type: ignore[attr-defined]
    named = {option for about in listed.values() for option in about["options"]}
    assert {option.split()[0] for option in named} <= known
    assert named == set(ASKED_WITH.values())  # each is of use to a measure
    assert "--strangers" not in known  # control
    assert listed["member-reference"]["options"] == ["--reference MODEL"]
    assert listed["member-gradient-norm"]["options"] == ["--gradients"]
    assert listed["accuracy"]["options"] == []
    for name, about in listed.items():
        asked = name in MEASURES and ASKED_WITH.keys() & set(MEASURES[name].cost)
        assert bool(about["options"]) == bool(asked)  # those of other commands have none


# Later than the rest --------------------------------------------------------------------------------------------------


def test_gradients_asked_for_later_leave_the_same_files(
    models: tuple[str, str], people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PICTURES", 1)  # per batch, which is always asked as a whole
    request = EvaluationRequest({"it": models[0]}, people, people.subjects[:1])
    with_norms = dataclasses.replace(request, gradients=True)
    measure(with_norms, tmp_path / "once")
    measure(request, tmp_path / "later")
    file = "measures/it.jsonl"
    assert (tmp_path / "later" / file).read_bytes() != (tmp_path / "once" / file).read_bytes()  # control
    asked: list[str] = []

    def noted(one: MeasuredQuestion, *rest: Any) -> Line:
        asked.append(one.part)
        return line(one, *rest)

    monkeypatch.setattr(measuring, "line", noted)
    measure(with_norms, tmp_path / "later", resume=True)
    assert set(asked) == set(EXPOSED)  # nothing else again
    for name in (file, "measures/it.origin.json"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    asked.clear()
    kept = measure(request, tmp_path / "later", resume=True)
    assert "member-gradient-norm" in kept["models"]["it"]
    assert (kept["provenance"]["gradients"], asked) == (True, [])
    assert all(("gradient_norm" in x) == (x["set"] in EXPOSED) for x in read_lines(tmp_path / "later" / file))


# Gold -----------------------------------------------------------------------------------------------------------------


def test_measures_and_verdicts_know_the_same_gold_models(
    models: tuple[str, str], people: UnlearnData, tmp_path: Path
) -> None:
    """`gold-2` is one to both, `gold-like` to neither."""
    measure(EvaluationRequest({"it": models[0], "other": models[1]}, people, people.subjects[:1]), tmp_path)
    it, other = (list(read_lines(tmp_path / f"measures/{role}.jsonl")) for role in ("it", "other"))
    for role, known in {"gold": True, "gold-2": True, "gold-like": False, "golden": False}.items():
        found = measures_of({"it": it, "vanilla": it, role: other}, ["it", "vanilla", role])
        assert ("ks-distance" in found["it"]) is known
        assert "ks-distance" not in found[role]
        if known:
            assert verdict(found, "it", VerdictSettings())["golds"] == [role]
        else:
            with pytest.raises(BadInput, match="no gold model beside it"):
                verdict(found, "it", VerdictSettings())
