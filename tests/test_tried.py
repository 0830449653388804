"""What an independent try of the issue on inputs found: arguments from Python, names, tables and checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import EVALUATE, SUBJECTS, UNLEARN, copied, photos_and_model, tree
from safetensors.torch import load_file, save_file

import unsee
from unsee.cli import main
from unsee.data.sources import load_data
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct
from unsee.models.loading import load_model

original = pytest.fixture(scope="module")(photos_and_model)
place = pytest.fixture(copied)

# From Python ----------------------------------------------------------------------------------------------------------

EDIT: dict[str, Any] = {
    "model": "model",
    "data": "photos",
    "forget": "anna",
    "out": "new",
    "method": "cvf",
    "gate": False,
}
ASK: dict[str, Any] = {"models": {"vanilla": "model"}, "data": "photos", "forget": "anna", "out": "new"}
ROLE = "a role is letters, digits, '-' and '_'"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, "model: None; expected a text or a Path or a transformers model"),
        ({"model": torch.nn.Linear(2, 2)}, "model: of type Linear; expected"),
        ({"data": None}, "data: None; expected a text or a Path or what load_data returned"),
        ({"data": ["photos"]}, "data: of type list; expected"),
        ({"forget": None}, "forget: None; expected a text, or texts in an order"),
        ({"forget": [None]}, "forget: [None]; expected a text"),
        ({"forget": {"anna"}}, "forget: {'anna'}; expected a text, or texts in an order: a list, no set"),
        (
            {"method": unsee.METHODS["cvf"]},
            "method: the class ContrastiveVisualForgetting; expected a name, or an inst",
        ),
        ({"method": None}, "method: None; expected a name"),
        ({"out": 5}, "out: of type int; expected a text or a Path"),
        ({"steps": 3}, "steps: no such option; expected one of seed, moments, gate"),
        ({"seed": "3"}, "seed='3': expected a whole number, 0 or more"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"seed": 1.5}, "seed=1.5: expected a whole number"),
        ({"gate": "no"}, "gate='no': expected True or False"),
        ({"device": torch.device("cpu")}, "device=device(type='cpu'): expected a text"),
        ({"moments": 5}, "moments=5: expected a text or a Path"),
        ({"out": "x" * 300}, "xxx: the name is too long for its disk"),
        ({"out": os.fsdecode(b"o\xff")}, r"out o\xff: the name is not UTF-8"),
    ],
)
def test_wrong_arguments_of_unlearn_are_one_line(place: Path, change: dict[str, Any], says: str) -> None:
    before = tree(place)
    with pytest.raises(BadInput) as problem:
        unsee.unlearn(**{**EDIT, **change})
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": {}}, "models: {}; expected a role for each model"),
        ({"models": ["model"]}, "models: of type list; expected a role"),
        ({"models": "model"}, "models: of type str; expected a role"),
        ({"models": {"../../outside": "model"}}, f"models: role '../../outside'; {ROLE}"),
        ({"models": {"a/b": "model"}}, f"models: role 'a/b'; {ROLE}"),
        ({"models": {"": "model"}}, f"models: role ''; {ROLE}"),
        ({"models": {"provenance": "model"}}, "models: role 'provenance'; a role"),
        ({"models": {1: "model"}}, f"models: role 1; {ROLE}"),
        ({"models": {"vanilla": None}}, "models['vanilla']: None; expected a text or a Path"),
        ({"jobs": 0}, "jobs=0: expected a whole number, 1 or more"),
        ({"jobs": "2"}, "jobs='2': expected a whole number"),
        ({"method": "cvf"}, "method: no such option; expected one of seed, jobs"),
    ],
)
def test_wrong_arguments_of_evaluate_are_one_line(place: Path, change: dict[str, Any], says: str) -> None:
    before = tree(place.parent)
    with pytest.raises(BadInput) as problem:
        unsee.evaluate(**{**ASK, **change})
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)
    assert tree(place.parent) == before


def test_sound_arguments_are_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    made = unsee.unlearn(
        **{**EDIT, "model": Path("~/model"), "data": Path("~/photos"), "out": Path("~/new"), "seed": 3}
    )
    assert made.path == place / "new"
    results = unsee.evaluate({"vanilla": "~/model", "my_own-1": Path("new")}, "~/photos", ("anna",), out="~/asked")
    assert {"vanilla", "my_own-1"} < results.keys()
    assert unsee.report(Path("~/asked")) == place / "asked" / "report.html"


# From the command line ------------------------------------------------------------------------------------------------

NOT_UTF8, LONG = os.fsdecode(b"n\xe9"), "x" * 300


@pytest.mark.parametrize("option", ["--out", "--model", "--data", "--first", "--moments"])
@pytest.mark.parametrize(("name", "says"), [(NOT_UTF8, r"n\xe9: the name is not UTF-8"), (LONG, "too long")])
def test_a_name_that_cannot_be_is_refused_before_the_edit(
    place: Path, capsys: pytest.CaptureFixture[str], option: str, name: str, says: str
) -> None:
    if name == NOT_UTF8 and option in ("--model", "--data"):
        shutil.copytree(option[2:] if option == "--model" else "photos", name)
    before = tree(place)
    with pytest.raises(SystemExit) as ending:
        main([*UNLEARN.split(), option, name])
    said = capsys.readouterr().err
    assert ending.value.code == 2
    assert re.fullmatch(r"unsee: [^\n]*\n", said)
    assert says in said
    assert tree(place) == before


def test_an_evaluation_under_a_name_that_is_not_utf8_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        main([*EVALUATE.split()[:-1], NOT_UTF8])
    assert (ending.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


# Tables, answers, folders ---------------------------------------------------------------------------------------------


def table(extra: dict[str, Any]) -> None:
    rows = [
        {"image": f"photos/{who}/{i}.png", "subject": who, "question": "Who?", "answer": who}
        for who in SUBJECTS
        for i in range(6)
    ]
    rows[1] |= extra
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("column", ["video", "videos", "audio", "Audios"])
@pytest.mark.parametrize("value", ["x.mp4", ["x.mp4"], [{"path": "x.mp4"}]])
def test_a_row_with_a_video_or_a_sound_is_refused(place: Path, column: str, value: Any) -> None:
    table({column: value})
    with pytest.raises(BadInput, match=rf"t\.jsonl, row 2: '{column.lower()}' holds .*only pictures are shown"):
        load_data("t.jsonl")


@pytest.mark.parametrize("value", [None, [], ""])
def test_a_column_for_videos_may_be_empty(place: Path, value: Any) -> None:
    table({"videos": value})
    assert len(load_data("t.jsonl").subjects) == len(SUBJECTS)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [("5%", "5 %", "5‰"), ("5‰", "5 ‰", "5%"), ("5", "5.", "5"), ("5‰", "it is 5‰", "5"), ("٥٪", "٥ ٪", "٥")],
)
def test_signs_of_shares_distinguish(answer: str, right: str, wrong: str) -> None:
    assert is_correct(right, answer)
    assert is_correct(wrong, answer) == (answer == wrong)


@pytest.mark.parametrize("name", ["data.csv", "data.JSONL", "train.parquet"])
def test_a_table_beside_its_folder_of_pictures_is_pointed_out(place: Path, name: str) -> None:
    Path("d").mkdir()
    os.replace("photos", "d/photos")
    Path("d", name).touch()
    with pytest.raises(BadInput, match=rf"found 1 subject folders.*or write dataset:d if {name} is the data"):
        load_data("d")


# Checkpoints ----------------------------------------------------------------------------------------------------------


def index_of_nothing() -> None:
    Path("model/model.safetensors").unlink()
    Path("model/model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')


def named(prefix: str) -> Callable[[], None]:
    def make() -> None:
        tensors = load_file("model/model.safetensors")
        save_file({prefix + key: t for key, t in tensors.items()}, "model/model.safetensors", {"format": "pt"})

    return make


def patch_size(value: Any) -> Callable[[], None]:
    def make() -> None:
        file = Path("model/processor_config.json")
        about = json.loads(file.read_text())
        file.write_text(json.dumps(about | {"patch_size": type(value)(about["patch_size"])}))

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (index_of_nothing, r"model\.safetensors\.index\.json: names no tensor"),
        (named("model.module."), r"data parallel wrapper.*take 'module\.' out of the names"),
        (named("module."), r"data parallel wrapper.*take 'module\.' out of the names"),
        (patch_size(""), r"patch_size is '\d+', but that of the vision tower in config\.json is \d+;"),
        (patch_size(0.0), r"patch_size is \d+\.0, but that of the vision tower"),
    ],
)
def test_a_checkpoint_that_is_not_whole_says_what_is_wrong(place: Path, make: Callable[[], None], says: str) -> None:
    load_model("model")
    make()
    with pytest.raises(BadInput, match=says):
        load_model("model")
