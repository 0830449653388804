"""Whatever a user gives that cannot be used: one line that says what, exit code 2, and nothing written or changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from malformed import BUILD, DEMO, EVALUATE, MOMENTS, Case, prepare
from malformed_data import DATA
from malformed_models import CHECKPOINTS, REPORTS
from malformed_options import OPTIONS
from tiny import TINY

from unsee.cli import main
from unsee.data.people import people_data
from unsee.evaluation.results import Results
from unsee.lab.base import BaseRecipe
from unsee.lab.build import Recipe
from unsee.lab.teach import TeachRecipe

CASES = [*CHECKPOINTS, *DATA, *OPTIONS, *REPORTS]
SPOILED = list(dict.fromkeys(case.command for case in CASES if case.make is not None))
BRIEF = Recipe(
    shape=TINY,
    base=BaseRecipe(steps=2, pairs=2, strangers=4, pictures_per_stranger=2),
    teach=TeachRecipe(steps=2, pictures=4, text_steps=2, text_rows=4),
)


def run(command: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(command.split())
    return int(ending.value.code or 0)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands read, before anything is spoiled."""
    place = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        prepare(people_data(count=3, seed=5, train=4, validation=1, test=2, strangers=1))
        assert run(MOMENTS.replace("runs/new", "stays.safetensors")) == 0
        assert run(EVALUATE.replace("runs/new", "results")) == 0
    return place


@pytest.fixture
def world(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, with a cache and a folder for temporary files beside it: all that a command may write to."""
    shutil.copytree(sound, tmp_path / "place")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "place")
    # Permissions bind everybody, also the one for whom they do not.
    monkeypatch.setattr("os.access", lambda path, mode: bool(os.stat(path).st_mode & 0o200) or mode != os.W_OK)
    return tmp_path


def snapshot(folder: Path) -> dict[str, str]:
    """Every folder and file inside, with its content's hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_input_is_one_line_and_nothing_is_written(
    world: Path, capfd: pytest.CaptureFixture[str], case: Case
) -> None:
    if case.make is not None:
        case.make()
    before = snapshot(world)
    code = run(case.command)
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("unsee: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert re.search(".*".join(map(re.escape, case.says.split(" … "))), err), err
    assert snapshot(world) == before


def test_the_table_is_long_and_names_every_case_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert all(len(case.says) > 8 for case in CASES)


@pytest.mark.parametrize("command", SPOILED)
def test_control_the_same_command_on_sound_files(world: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    if "locked" in command:
        Path("locked").mkdir()
    assert run(command) == 0, capfd.readouterr().err


@pytest.mark.parametrize("command", [BUILD, DEMO])
def test_control_sound_options(world: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("unsee.lab.build.PEOPLE", BRIEF)
    monkeypatch.setattr("unsee.study.demo.run_demo", lambda *_: (Results({}, {}), Path("page")))
    assert run(command + " --json --seed 4294967295") == 0
