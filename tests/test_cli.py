"""The command line: what works leaves what it says; what fails on its way leaves what was there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from command_line import (
    EVALUATE,
    MOMENTS,
    SUBJECTS,
    UNLEARN,
    copied,
    lose_a_tensor,
    made_here,
    photos_and_model,
    run,
    tree,
)
from safetensors.torch import load_file

from unsee.data.sources import load_data
from unsee.errors import BadInput, WorkerLost
from unsee.evaluation.results import Results
from unsee.methods import METHODS
from unsee.reporting.read import read_run
from unsee.settings import configured, from_text

original = pytest.fixture(scope="module")(photos_and_model)
place = pytest.fixture(copied)


# Good input -----------------------------------------------------------------------------------------------------------


def test_unlearn_writes_a_model_that_differs_in_the_tensors_it_names(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place)
    assert run(UNLEARN + " --json") == 0
    shown = json.loads(capsys.readouterr().out)
    manifest = json.loads(Path("out/unsee.json").read_text())
    assert shown.items() <= manifest.items()
    assert (manifest["method"], manifest["settings"]["steps"], manifest["forget"]) == ("cvf", 3, ["anna"])
    old, new = load_file("model/model.safetensors"), load_file("out/model.safetensors")
    assert {key for key in old if not torch.equal(old[key], new[key])} == set(manifest["changed"])
    assert not [key for key in manifest["changed"] if "language_model" in key]
    assert {path: content for path, content in tree(place).items() if path.split("/")[0] != "out"} == before


def test_a_broken_demo_is_taken_up_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr("unsee.study.demo.run_demo", lambda *_: begun.append(1) or (Results({}, {}), Path("page")))
    made_here("broken/models/vanilla")
    assert run("demo --out broken --resume --json") == 0
    assert run("demo --out broken --overwrite --json") == 0
    assert len(begun) == 2


def test_overwrite_replaces_what_unsee_wrote_and_what_is_empty(place: Path) -> None:
    for command, own in ((UNLEARN, "out/config.json"), (EVALUATE, "results/results.json")):
        out = own.split("/")[0]
        command = command.replace("--out out", f"--out {out}") + " --overwrite"
        Path(out, "nothing").mkdir(parents=True)
        assert run(command) == 0
        Path(own).parent.mkdir(parents=True, exist_ok=True)
        Path(own).write_text("older")
        assert run(command) == 0


def test_the_same_seed_gives_the_same_model(place: Path) -> None:
    def weights(out: str, seed: int) -> bytes:
        more = "--set forget_pictures=2 --set retain_pictures=2"  # fewer than there are, so that their order matters
        assert run(f"{UNLEARN.replace('--out out', f'--out {out}')} {more} --seed {seed}") == 0
        return Path(out, "model.safetensors").read_bytes()

    first = weights("first", 1)
    assert weights("again", 1) == first
    assert weights("other", 2) != first


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(place: Path, method: str) -> None:
    settings = {field.name for field in dataclasses.fields(METHODS[method])}  # type: ignore[arg-type]
    steps = " --set steps=3" if "steps" in settings else ""
    if method == "manu":  # of the last three layers; the tiny model has two
        steps = " --set vision_layers=1 --set language_layers=1 --set share=0.3"
    assert run(UNLEARN.replace("cvf", method).replace(" --set steps=3", steps)) == 0
    manifest = json.loads(Path("out/unsee.json").read_text())
    assert bool(manifest["changed"]) == (method != "in-context")
    assert (manifest["certificate"] is None) == (METHODS[method].level == "outputs")


def test_evaluate_then_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(UNLEARN.replace("--out out", "--out edited")) == 0
    capsys.readouterr()
    assert run(EVALUATE + " --model unlearned=edited") == 0
    printed = capsys.readouterr()
    assert "results: out/results.json" in printed.out
    assert printed.err == ""
    assert run("report out") == 0
    assert capsys.readouterr().out == "report: out/report.html\n"
    page = Path("out/report.html").read_text()
    assert "unlearned" in page
    assert run("report out --json") == 0
    assert json.loads(capsys.readouterr().out) == {"report": "out/report.html"}
    assert [role.name for role in read_run(Path("out")).roles] == ["vanilla", "unlearned"]
    before = tree(place)
    assert run(EVALUATE) == 2  # it exists now
    assert tree(place) == before


def test_evaluate_prints_what_it_writes_and_resumes_to_the_same(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(EVALUATE + " --json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(Path("out/results.json").read_text())
    answers = Path("out/predictions/vanilla.jsonl").read_bytes()
    Path("out/predictions/vanilla.jsonl").write_bytes(answers[: len(answers) // 2])
    assert run(EVALUATE + " --resume --json") == 0
    assert json.loads(capsys.readouterr().out)["vanilla"] == printed["vanilla"]
    assert Path("out/predictions/vanilla.jsonl").read_bytes() == answers
    assert run(EVALUATE + " --overwrite") == 0


def test_stored_moments_equal_those_taken_on_the_spot(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = UNLEARN.replace("cvf", "nscvf")
    assert run(MOMENTS + " --without anna --json") == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == "8"  # four training pictures of two subjects
    assert run(command.replace("--out out", "--out stored") + " --moments out") == 0
    assert run(command.replace("--out out", "--out fresh")) == 0
    assert run(UNLEARN.replace("--out out", "--out free")) == 0
    stored, fresh, free = (load_file(f"{name}/model.safetensors") for name in ("stored", "fresh", "free"))
    key = "multi_modal_projector.linear_1.weight"
    torch.testing.assert_close(stored, fresh, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(stored[key], free[key], atol=1e-4, rtol=1e-3)  # control: cvf, without a null space
    layers = json.loads(Path("stored/unsee.json").read_text())["certificate"]["layers"]
    assert layers
    assert all(0 <= layer["drift"] < 1 for layer in layers.values())


def test_subjects_drawn_at_random_are_the_same_for_every_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fitted(without: str) -> str:
        capsys.readouterr()
        assert run(f"{MOMENTS} --overwrite --json --without {without}") == 0
        return str(json.loads(capsys.readouterr().out)["data"])

    data = load_data("photos")
    left_out = {subject: fitted(subject) for subject in SUBJECTS}
    drawn = {data.choose("random:1", seed)[0]: seed for seed in range(20)}
    assert {subject: fitted(f"random:1 --seed {seed}") for subject, seed in drawn.items()} == left_out
    assert len(set(left_out.values())) == len(SUBJECTS)  # control: whom it leaves out makes a difference


@pytest.mark.parametrize("kind", ["methods", "families", "metrics"])
def test_lists_are_json_for_machines_and_a_table_for_people(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert run(f"list {kind} --json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert run(f"list {kind}") == 0
    table = capsys.readouterr().out
    assert listed
    assert all(name in table for name in listed)


def test_methods_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list methods --json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(METHODS)
    assert all(listed[name]["settings"] == vars(method()) for name, method in METHODS.items())
    assert all(listed[name]["given"] == list(method().inputs) for name, method in METHODS.items())


def test_help_is_there_without_loading_torch() -> None:
    code = """
import sys
from unsee.cli import main
from unsee.settings import configured, from_text
try:
    main(["unlearn", "--help"])
finally:
    print(sorted({"torch", "transformers"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--moments" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


# Failures on the way --------------------------------------------------------------------------------------------------


def test_moments_of_another_model_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(UNLEARN.replace("--out out", "--out other")) == 0  # the same layers, other weights
    assert run(MOMENTS.replace("--model model", "--model other")) == 0
    before = tree(place)
    capsys.readouterr()
    command = UNLEARN.replace("cvf", "nscvf").replace("--out out", "--out new --moments out")
    assert run(command) == 2
    assert re.fullmatch(r"unsee: --moments out: taken from another model than model .*\n", capsys.readouterr().err)
    assert tree(place) == before
    assert run(command.replace("--model model", "--model other")) == 0  # control


def test_a_model_that_does_not_load_leaves_older_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(EVALUATE) == 0
    shutil.copytree("model", "whole")
    lose_a_tensor()
    before = tree(place)
    assert run(EVALUATE + " --overwrite") == 2
    assert tree(place) == before
    Path("out/predictions/old.jsonl").write_text("")
    assert run(EVALUATE.replace("=model", "=whole") + " --overwrite") == 0  # control: a sound one replaces them
    assert not Path("out/predictions/old.jsonl").exists()


def test_answers_of_another_model_are_not_resumed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(EVALUATE) == 0
    assert run(UNLEARN.replace("--out out", "--out other")) == 0
    before = tree(place)
    capsys.readouterr()
    assert run(EVALUATE.replace("=model", "=other") + " --resume") == 2
    assert re.fullmatch(r"unsee: out/predictions/vanilla\.jsonl: .*--overwrite.*\n", capsys.readouterr().err)
    assert tree(place) == before


def test_a_worker_that_died_is_exit_code_1_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise WorkerLost("asking models, vanilla: its process was killed")

    monkeypatch.setattr("unsee.evaluation.evaluate.evaluate", dies)
    assert run(EVALUATE + " --jobs 2") == 1
    assert capsys.readouterr().err == "unsee: asking models, vanilla: its process was killed\n"


def test_a_wrecked_model_is_exit_code_1_and_not_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(place)
    wreck = UNLEARN.replace("steps=3", "steps=30 --set retain_weight=0 --set contrast_weight=0 --set learning_rate=0.5")
    assert run(wreck.replace("--no-gate", "--gate")) == 1
    assert re.fullmatch(r"unsee: retained pictures .*nothing was written.*\n", capsys.readouterr().err)
    assert tree(place) == before
    assert run(wreck) == 0  # control: without the gate it is written


# Settings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knobs:
    count: int = 1
    rate: float = 1.0
    side: Literal["left", "right"] = "left"
    loud: bool = True


def test_settings_are_read_by_their_type() -> None:
    assert from_text(Knobs, []) == Knobs()
    assert from_text(Knobs, ["count=3", "rate=1e-3", "side=right"]) == Knobs(3, 0.001, "right")
    for wrong in ("count=3.5", "count=", "rate=fast", "side=up"):
        with pytest.raises(BadInput, match=f"--set {wrong}: expected"):
            from_text(Knobs, [wrong])


def test_settings_in_a_mapping_have_the_types_of_their_fields() -> None:
    assert configured(Knobs, {"count": 3, "rate": 2, "loud": False}) == Knobs(3, 2.0, loud=False)
    assert isinstance(configured(Knobs, {"rate": 2}).rate, float)
    for wrong in ({"count": 3.0}, {"count": True}, {"rate": "1"}, {"side": "up"}, {"loud": 1}, {"louder": True}):
        with pytest.raises(BadInput, match=f"settings: {next(iter(wrong))}"):
            configured(Knobs, wrong)


def test_truth_values_are_read_as_such() -> None:
    assert not from_text(Knobs, ["loud=false"]).loud
    assert from_text(Knobs, ["loud=true"]).loud
    with pytest.raises(BadInput, match="--set loud=perhaps: expected"):
        from_text(Knobs, ["loud=perhaps"])
