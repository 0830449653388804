"""DATA and SUBJECTS that mean two things are refused with both spelled out; what means one thing is taken."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unsee.attacks.probe import Probing, probe
from unsee.attacks.relearn_plan import AttackRequest, Relearning
from unsee.attacks.relearn_run import relearn
from unsee.cli import main
from unsee.data.examples import Example, Split, UnlearnData
from unsee.data.people import people_data
from unsee.data.sources import load_data
from unsee.errors import BadInput
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.evaluation.questions import misasked
from unsee.reporting import write_report
from unsee.study.grid import compare_grid, read_compare
from unsee.study.scenario import resolve

# DATA -----------------------------------------------------------------------------------------------------------------


def photos(root: Path, number: int = 0) -> Path:
    for i, subject in enumerate(("anna", "bob", "cleo")):
        (root / subject).mkdir(parents=True)
        for shot in range(4):
            seed = 1 + number * 100 + i * 10 + shot
            content = bytes((seed * 37 * (1 + k) ** 2 + k * seed) % 256 for k in range(16 * 16 * 3))
            Image.frombytes("RGB", (16, 16), content).resize((64, 64)).save(root / subject / f"{shot}.png")
    return root


@pytest.mark.parametrize(
    ("folder", "spec", "expected"),
    [
        ("people", "people", ["./people for the folder", "people:count=60 for generated people"]),
        ("people:count=3", "people:count=3", ["./people:count=3 for the folder", "people: count=3 for generated"]),
        ("clear", "clear", ["./clear for the folder", "clear:PATH for the benchmark"]),
        ("mllmu", "mllmu", ["./mllmu for the folder", "mllmu:PATH for the benchmark"]),
        ("umu", "umu", ["./umu for", "umu:PATH"]),
        ("fiubench", "fiubench", ["./fiubench for", "fiubench:PATH"]),
        ("folder", "folder", ["./folder for the folder", "folder:PATH for a folder"]),
        ("dataset", "dataset", ["./dataset for", "dataset:PATH for a dataset"]),
        ("clear:owner/name", "clear:owner/name", ["./clear:owner/name for the folder", "of the hub"]),
    ],
)
def test_data_that_means_two_things_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, spec: str, expected: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path(folder))
    with pytest.raises(BadInput, match="means two things") as refused:
        load_data(spec)
    assert "\n" not in str(refused.value)
    for part in expected:
        assert part in str(refused.value)
    assert load_data(f"./{spec}").subjects == ("anna", "bob", "cleo")  # as it is told to be written


def test_generated_people_can_be_written_beside_a_folder_of_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("people:count=3,train=1"))
    assert load_data("people: count=3,train=1").source == "people:count=3,seed=10,train=1"


def test_data_that_means_one_thing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people:count=3,train=1").write_text("a file that is no data")
    assert load_data("people:count=3,train=1").source == "people:count=3,seed=10,train=1"
    for folder in ("people:of ours", "folder:x"):  # neither generated people nor another folder
        photos(Path(folder))
        assert load_data(folder).subjects == ("anna", "bob", "cleo")
    photos(Path("x"), 1)
    with pytest.raises(BadInput, match=r"write \./folder:x for the folder of that name, or folder:\./x for a folder"):
        load_data("folder:x")
    one, other = load_data("./folder:x"), load_data("folder:./x")
    assert one.fingerprint != other.fingerprint


def test_a_folder_with_group_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    literal = photos(Path("set,group=.+"))
    alone = load_data(str(literal)).fingerprint
    photos(Path("set"), 1)
    for spec in (str(literal), f"folder:{literal}"):
        with pytest.raises(BadInput, match="means two things") as refused:
            load_data(spec)
        assert "write folder:set,group=.+/, or folder:set/,group=.+" in str(refused.value)
    assert load_data("folder:set,group=.+/").fingerprint == alone
    assert load_data("folder:set/,group=.+").fingerprint == load_data("set").fingerprint != alone


def test_a_dataset_with_an_option_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("set"))
    assert main_code(["benchmark", "export", "--data", "set", "--out", "x,name=y.parquet"]) == 0
    assert load_data("dataset:x,name=y.parquet").subjects == ("anna", "bob", "cleo")


def main_code(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


# SUBJECTS -------------------------------------------------------------------------------------------------------------


def data_with(names: dict[str, str]) -> UnlearnData:
    asked = tuple(Example("Who?", name, subject, None, "identity") for subject, name in names.items())
    return UnlearnData("test", Split(asked), Split(), Split(), names=dict(names))


PLAIN = {one: one for one in ("anna", "bob", "cleo", "dora")}
TWO_BOBS = {"bob": "Robert", "x": "Bob", "y": "Yan"}
SWAPPED = {"bob": "x", "x": "bob", "y": "Yan"}
COMMAS = {**PLAIN, "Smith": "Smith", "John": "John", "Smith, John": "Smith, John", "Doe, Jane": "Doe, Jane"}
RULES = {**PLAIN, "first:2": "first:2", "random:3": "random:3", "first:x": "first:x"}
AT = {**PLAIN, "@list": "@list", "@gone": "@gone"}


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (TWO_BOBS, "bob", ["'bob' means 2 subjects", "Robert for 'bob'", "x for 'x', called 'Bob'"]),
        (TWO_BOBS, "y,bob", ["'bob' means 2 subjects"]),
        (SWAPPED, "bob", ["means 2 subjects", "rename one of them"]),
        (COMMAS, "Smith, John", ["one subject, 'Smith, John'", "--forget Smith --forget John", "@FILE with the line"]),
        (COMMAS, "anna, Smith, John", ["means two things", "--forget anna --forget Smith --forget John"]),
        (RULES, "first:2", ["first:02 for the first 2", "@FILE with the line first:2"]),
        (RULES, "random:3", ["random:03 for the random 3", "@FILE with the line random:3"]),
        (AT, "@list", ["@./list for those in that file", "@FILE with the line @list"]),
        ({"é": "é", "e\u0301": "two", "f": "f"}, "é", ["means 2 subjects"]),
        (PLAIN, "Doe, Jane", ["unknown subject 'Doe'", "@FILE, one name per line"]),
    ],
)
def test_subjects_that_mean_two_things_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], wanted: str, expected: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").write_text("bob\n")
    with pytest.raises(BadInput) as refused:
        data_with(names).choose(wanted)
    assert "\n" not in str(refused.value)
    for part in expected:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (TWO_BOBS, "Robert", ("bob",)),
        (TWO_BOBS, "x", ("x",)),
        (TWO_BOBS, "BOB", ("x",)),  # no subject is called so, one person is
        (COMMAS, ["Smith", "John"], ("Smith", "John")),
        (COMMAS, "@lines", ("Smith, John", "anna")),
        (COMMAS, "Doe, Jane", ("Doe, Jane",)),
        (COMMAS, "anna,Doe, Jane, bob", ("anna", "Doe, Jane", "bob")),
        (COMMAS, ["Doe, Jane", "bob,anna", "bob"], ("Doe, Jane", "bob", "anna")),
        (RULES, "first:02", ("anna", "bob")),
        (RULES, "first:x", ("first:x",)),
        (RULES, "@rule", ("first:2",)),
        (RULES, "first:3", ("anna", "bob", "cleo")),
        (AT, "@gone", ("@gone",)),
        (AT, "@./list", ("bob",)),
        (AT, "anna,@list", ("anna", "@list")),
        (PLAIN, ["cleo", "first:2"], ("cleo", "anna", "bob")),
        (PLAIN, "@bom", ("bob", "anna")),
        ({"é": "Zoë", "f": "f"}, "e\u0301", ("é",)),
        ({"e\u0301": "Zoë", "f": "f"}, "é", ("e\u0301",)),
        ({"x": "Zoë", "f": "f"}, "ZOE\u0308", ("x",)),
        ({"x": "#1", "f": "f", "y": "y"}, "@hash", ("x", "f")),  # comments are not invented
    ],
)
def test_subjects_that_mean_one_thing_are_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: dict[str, str],
    wanted: str | list[str],
    expected: Sequence[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").write_text("bob\n")
    Path("lines").write_text("Smith, John\n\n anna \n")
    Path("rule").write_text("first:2")
    Path("bom").write_bytes("\ufeffbob\r\nanna\r\n".encode())
    Path("hash").write_text("#1\nf\n")
    assert data_with(names).choose(wanted) == expected


def test_what_is_told_to_be_typed_works(tmp_path: Path) -> None:
    """Every spelling in a refusal, taken at its word, means what the refusal says."""
    file = tmp_path / "names.txt"
    file.write_text("Smith, John\n")
    data = data_with(COMMAS)
    assert data.choose(f"@{file}") == ("Smith, John",)
    assert data.choose(["Smith", "John"]) == ("Smith", "John")
    file.write_text("anna\nSmith; John\n")
    with pytest.raises(BadInput, match=r"names\.txt, line 2: unknown subject 'Smith; John'"):
        data.choose(f"@{file}")


def test_a_long_list_is_divided_at_once() -> None:
    names = {f"p{i}": f"p{i}, the {i}." for i in range(2000)}
    data = data_with(names)
    assert data.choose(",".join(list(names)[:-1])) == tuple(names)[:-1]
    assert data.choose(",".join(list(names.values())[:-1])) == tuple(names)[:-1]


def test_two_spellings_of_one_name_are_one_folder(tmp_path: Path) -> None:
    photos(tmp_path / "set")
    os.rename(tmp_path / "set" / "anna", tmp_path / "set" / unicodedata.normalize("NFD", "zoë"))
    data = load_data(str(tmp_path / "set"))
    for form in ("NFC", "NFD"):
        assert data.choose(unicodedata.normalize(form, "zoë")) == ("zoë",)


# Where they are given -------------------------------------------------------------------------------------------------


def test_grids_take_a_list_of_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = '[[given]]\ndata = "set"\nforget = ["Smith, John", "bob"]\nvanilla = "m"\n\n[[arms]]\nmethod = "cvf"\n'
    Path("grid.toml").write_text(given)
    case = read_compare(Path("grid.toml")).cases[0]
    assert case.forget == ("Smith, John", "bob")
    assert compare_grid(None, {"vanilla": "m"}, "set", ["Smith, John", "bob"], "cvf", None).cases == (case,)
    photos(Path("set"))
    with pytest.raises(BadInput, match="unknown subject 'Smith'"):
        resolve(case)
    built = '[models]\nfamilies = ["llava"]\ndata = "people:count=4,seed={people}"\npeople = [1]\n'
    Path("grid.toml").write_text(f'{built}forget = ["first:1", ["first:1", "random:2"]]\n[[arms]]\nmethod = "cvf"\n')
    cases = read_compare(Path("grid.toml")).cases
    assert [case.forget for case in cases] == ["first:1", ("first:1", "random:2")]
    assert [case.name[-16:] for case in cases] == ["1-model1-first-1", "first-1-random-2"]


def test_forget_can_be_given_again_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("set"))
    (tmp_path / "set" / "bob").rename(tmp_path / "set" / "Smith, John")
    arguments = ["request", "add", "--ledger", "ledger", "--id", "r1", "--data", "set"]
    assert main_code([*arguments, "--forget", "anna", "--forget", "Smith, John"]) == 0
    assert "2 subjects" in capsys.readouterr().out
    for command in (
        "unlearn --model m --out o",
        "evaluate --model vanilla=m --out o",
        "attack relearn --model vanilla=m --out o",
        "attack probe --model vanilla=m --out o",
        "audit --before m --after m --out o",
        "benchmark tasks --model m --out o",
        "request add --ledger l --id r",
    ):
        assert main_code([*command.split(), "--data", "set", "--forget", "anna", "--forget", "zoe"]) == 2
        assert "--forget: unknown subject 'zoe'" in capsys.readouterr().err
    for command, option in (("moments fit --model m", "--without"), ("pocket build", "--without-images-of")):
        assert main_code([*command.split(), "--out", "o", "--data", "set", option, "anna", option, "zoe"]) == 2
        assert f"{option}: unknown subject 'zoe'" in capsys.readouterr().err


# The wrong question ---------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = people_data(count=4, seed=5, train=3, validation=2, test=2, strangers=2).subjects[:3]
FORGETS = {"kind": "unlearned", "forget": [FIRST], "forgotten": [FIRST]}
GOLD: dict[str, Any] = {"kind": "pocket", "without_images_of": [FIRST]}
HERE, ELSEWHERE = {"source": "here", "fingerprint": "1"}, {"source": "there", "fingerprint": "2"}


@pytest.mark.parametrize(
    ("role", "manifest", "asked", "expected"),
    [
        ("mine", FORGETS, [FIRST], []),
        ("mine", FORGETS, [SECOND], [f"mine: was made to forget {FIRST}, but is asked about {SECOND}"]),
        ("mine", FORGETS, [FIRST, SECOND], [f"asked about {SECOND}"]),
        ("mine", {**FORGETS, "forget": [SECOND], "forgotten": [FIRST, SECOND]}, [FIRST], []),  # a part, and earlier
        ("mine", {"kind": "patched", "forgotten": [FIRST]}, [SECOND, THIRD], [f"asked about {SECOND}, {THIRD}"]),
        ("mine", {"kind": "patched", "forgotten": []}, [SECOND], []),  # a patch that was taken back
        ("mine", {"kind": "unlearned", "forget": list("abcde")}, ["x"], ["made to forget a, b, c and 2 more"]),
        ("mine", {"kind": "unlearned", "forget": ["Zoe\u0308"]}, ["Zoë"], []),
        ("mine", {}, [SECOND], []),
        ("vanilla", FORGETS, [SECOND], []),  # what the second edit of a line began with
        ("gold", GOLD, [FIRST], []),
        ("gold", GOLD, [SECOND], [f"gold: was never shown pictures of {FIRST}, but is asked about {SECOND}"]),
        ("gold-2", {**GOLD, "without_images_of": []}, [FIRST], ["gold-2: was shown everybody's pictures"]),
        ("pocket", {**GOLD, "without_images_of": []}, [FIRST], []),
        ("mine", {**FORGETS, "data": HERE}, [FIRST], []),
        ("mine", {**FORGETS, "data": ELSEWHERE}, [FIRST], ["mine: was made with there, but is asked about here"]),
        ("mine", {**FORGETS, "data": {**HERE, "fingerprint": "2"}}, [FIRST], []),  # --retain-free reads a part of it
        ("mine", {**FORGETS, "data": {**ELSEWHERE, "fingerprint": "1"}}, [FIRST], []),  # the same data elsewhere
        ("gold", {**GOLD, "data": ELSEWHERE}, [FIRST], ["gold: was made with there"]),
    ],
)
def test_a_model_made_to_forget_others_is_asked_the_wrong_question(
    tmp_path: Path, role: str, manifest: dict[str, Any], asked: list[str], expected: list[str]
) -> None:
    if manifest:
        (tmp_path / "unsee.json").write_text(json.dumps(manifest))
    found = misasked({role: str(tmp_path)}, "here", asked, "1")
    assert list(found) == ([role] if expected else [])
    for said, part in zip(found.get(role, []), expected, strict=True):
        assert part in said


def test_every_command_that_asks_warns_of_the_wrong_question(
    checkpoint: Path, people: UnlearnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(checkpoint, edited)
    (edited / "unsee.json").write_text(json.dumps(FORGETS))
    gold = tmp_path / "gold"
    shutil.copytree(checkpoint, gold)
    (gold / "unsee.json").write_text(json.dumps({**GOLD, "without_images_of": [FIRST, SECOND]}))
    models = {"vanilla": str(checkpoint), "gold": str(gold), "mine": str(edited)}
    asked = (FIRST, SECOND)
    wrong = {"mine": [f"mine: was made to forget {FIRST}, but is asked about {SECOND}, whom it was not"]}
    attack = Relearning(splits=1, steps=1, every=1)
    runs: dict[str, Callable[[Sequence[str], Path], Any]] = {
        "results": lambda whom, out: evaluate(EvaluationRequest(models, people, whom), out).to_json(),
        "probes": lambda whom, out: probe(models, people, whom, Probing(depths=1), 0, out),
        "relearn": lambda whom, out: relearn(models, AttackRequest(people, whom, attack, 0), out),
    }
    for name, run in runs.items():
        out = tmp_path / name
        assert run(asked, out)["provenance"]["warnings"] == wrong
        assert capsys.readouterr().err.count(wrong["mine"][0]) == 1
        assert json.loads((out / f"{name}.json").read_text())["provenance"]["warnings"] == wrong
    measures = tmp_path / "results" / "measures.json"
    assert json.loads(measures.read_text())["provenance"]["warnings"] == wrong
    pages = [write_report(tmp_path / "results"), tmp_path / "probes" / "probes.html"]
    for page in pages:
        assert page.read_text().count(wrong["mine"][0]) == 1
    assert main_code(["verdict", "--measures", str(measures), "--model", "mine"]) in (1, 2)
    assert wrong["mine"][0] in capsys.readouterr().err
    assert runs["results"]((FIRST,), tmp_path / "right")["provenance"]["warnings"] == {}  # control
    assert "warning" not in capsys.readouterr().err
    assert "wrong question" not in write_report(tmp_path / "right").read_text()
