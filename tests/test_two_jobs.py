"""Two jobs, one output: the second is refused at once, in one line that names the first, and nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import EVALUATE, UNLEARN, copied, photos_and_model, run, tree

from unsee import output
from unsee.errors import BadInput
from unsee.storage import LOCK, alone, sole_writer

original = pytest.fixture(scope="module")(photos_and_model)
place = pytest.fixture(copied)

HOLD = """
import sys, time
from pathlib import Path
from unsee.storage import sole_writer

with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
CASE = 'data = "photos"\nforget = "anna"\nvanilla = "model"\ngolds = ["gold", "gold-2"]\nname = "NAME"\n'
GRIDS = {
    "compare.toml": f'[[given]]\n{CASE}[[arms]]\nmethod = "cvf"\n',
    "search.toml": f"[[given]]\n{CASE}[search]\nseconds = 9\ntries = 1\n"
    f'[[search.given]]\n{CASE}[[arms]]\nmethod = "cvf"\n',
    "ablate.toml": f'[[given]]\n{CASE}[[tables]]\nname = "t"\ntitle = "T"\nlearning_rates = [0.1]\n'
    '[[tables.arms]]\nmethod = "cvf"\n',
    "sequence.toml": f'[[given]]\n{CASE}[[arms]]\nmethod = "nscvf"\n',
    "audit.toml": f"[[choose.given]]\n{CASE}[[report.given]]\n{CASE.replace('NAME', 'other')}",
}
MANY = "--model vanilla=model --data photos --forget anna --out out"
WRITERS = (  # every command that writes; `test_every_command_that_writes_is_here` finds new ones
    UNLEARN,
    EVALUATE,
    f"attack relearn {MANY}",
    f"attack probe {MANY}",
    "audit --before model --after model --data photos --forget anna --out out",
    "benchmark run --model vanilla=model --data mllmu:bench --out out",
    "compare --grid compare.toml --out out",
    "study search --grid search.toml --out out",
    "study ablate --grid ablate.toml --out out",
    "study sequence --grid sequence.toml --out out",
    "study audit --grid audit.toml --out out",
    "demo --out out",
    "study merge --model model --edited model --data photos --out out",
    "pocket build --data people --out out",
    "moments fit --model model --data photos --out out",
    "benchmark export --data photos --out out",
    "patch make --before model --after model --out out",
    "patch apply --model model --patch p --out out",
    "patch revert --model model --patch p --out out",
    "request run --ledger book --model model --data photos --out out",
    "benchmark make clear --out out",
    "benchmark scores results --out out",
    "benchmark tasks --model model --data photos --out out",
    "report out",
)

Start = Callable[[str | Path], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """A process that writes an output."""
    started: list[subprocess.Popen[str]] = []

    def begin(out: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        with process:
            process.kill()


def locks(folder: Path) -> list[Path]:
    return [*folder.rglob(f".*.{LOCK}")]


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize("command", WRITERS, ids=lambda command: " ".join(command.split(" --")[0].split()))
def test_the_second_job_is_refused_at_once_and_nothing_changes(
    place: Path, start: Start, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    for name, grid in GRIDS.items():
        Path(name).write_text(grid.replace("NAME", name.split(".")[0]))
    process = start(Path("out").resolve())
    before = tree(place)
    for more in ("", " --overwrite", " --resume"):
        if more.strip() not in {"", *options(command)}:
            continue
        assert run(command + more) == 2
        said = capfd.readouterr().err
        assert re.fullmatch(
            rf"unsee: --out out: in use by process {process.pid} on \S+, which writes there; .*\n", said
        )
        assert tree(place) == before


def options(command: str) -> set[str]:
    from typer.main import get_command

    from unsee.cli.app import app

    found = get_command(app)
    for word in command.split():
        if hasattr(found, "commands"):
            found = found.commands[word]
    return {option for one in found.params for option in one.opts}


def test_every_command_that_writes_is_here() -> None:
    """Whatever has `--out`, and `report`, which writes where it reads."""
    from typer.main import get_command

    from unsee.cli.app import app

    def below(found: object, name: str) -> Iterator[str]:
        for word, one in getattr(found, "commands", {}).items():
            yield from below(one, f"{name} {word}")
        if any("--out" in one.opts for one in getattr(found, "params", ())):
            yield name.strip()

    listed = set(below(get_command(app), ""))
    assert {name for name in listed if not any(command.startswith(name + " ") for command in WRITERS)} == set()
    assert len(WRITERS) == len(listed) + 1


@pytest.mark.parametrize("spelling", ["link", "./photos/../out", "deep/out", "absolute"])
def test_two_spellings_of_one_path_are_one_output(place: Path, start: Start, spelling: str) -> None:
    Path("link").symlink_to("out")  # what it leads to is not there yet
    Path("deep").symlink_to(".")
    process = start(place / "out")
    out = place / "out" if spelling == "absolute" else Path(spelling)
    with pytest.raises(BadInput, match=f"in use by process {process.pid}"), sole_writer(out):
        pass
    with sole_writer(Path("other")):  # the control
        pass


def test_another_output_in_the_same_folder_is_free(place: Path, start: Start) -> None:
    start(place / "other")
    assert run(UNLEARN) == 0


@pytest.mark.parametrize("command", [UNLEARN, EVALUATE])
def test_a_killed_first_job_blocks_nobody_and_nothing_is_left(place: Path, start: Start, command: str) -> None:
    process = start(place / "out")
    assert run(command) == 2
    stop(process)
    assert locks(place), "a killed process cleans nothing up"
    assert run(command) == 0
    assert locks(place) == []


def test_folders_made_for_a_lock_go_with_it(place: Path) -> None:
    before = tree(place)
    with sole_writer(Path("a/b/out")):
        assert Path("a/b").is_dir()
    assert tree(place) == before
    with sole_writer(Path("a/b/out")):
        Path("a/b/out").write_text("done")
    assert Path("a/b/out").read_text() == "done"


def test_a_library_call_is_refused_too(place: Path, start: Start) -> None:
    from unsee.checkpoint.patch import make_patch
    from unsee.data.sources import load_data
    from unsee.editing.request import EditRequest
    from unsee.editing.unlearn import unlearn
    from unsee.evaluation.evaluate import EvaluationRequest, evaluate
    from unsee.settings import named_method

    data, method, out = load_data("photos"), named_method("cvf", {"steps": 1}), Path("out")
    process = start(place / "out")
    before = tree(place)
    for call in (
        lambda: unlearn("model", EditRequest(data, ["anna"], method, 0, gate=False), out),
        lambda: evaluate(EvaluationRequest({"vanilla": "model"}, data, ["anna"]), out=out),
        lambda: make_patch(Path("model"), Path("model"), out=out),
    ):
        with pytest.raises(BadInput, match=f"in use by process {process.pid}"):
            call()
    assert tree(place) == before
    stop(process)
    unlearn("model", EditRequest(data, ["anna"], method, 0, gate=False), out)
    assert locks(place) == []


def test_one_thread_may_nest_it_and_another_may_not(tmp_path: Path) -> None:
    said = []

    @alone
    def write(out: Path) -> None:
        said.append(out.name)

    def elsewhere() -> None:
        try:
            write(tmp_path / "out")
        except BadInput as problem:
            said.append(str(problem))

    with sole_writer(tmp_path / "out"):
        write(tmp_path / "out")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    write(tmp_path / "out")
    assert said[0] == said[2] == "out"
    assert f"in use by process {os.getpid()}" in said[1]


def test_where_there_are_no_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with sole_writer(tmp_path / "out"):
        assert list(tmp_path.iterdir()) == []
    with sole_writer(tmp_path / "out"):
        pass


def test_a_folder_of_ones_own_in_somebody_elses_is_locked_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, everything can be written: so a refusal in its place."""
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if Path(path).name.endswith(LOCK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *mode)

    def second() -> None:
        with pytest.raises(BadInput, match="in use by another process"), sole_writer(tmp_path / "out"):
            pass
        refused.append(True)

    refused: list[bool] = []
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "open", refuse)
    with sole_writer(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert refused
    with pytest.raises(BadInput, match="cannot be written"), sole_writer(tmp_path / "new"):
        pass
    assert (tmp_path / "out").is_dir()


def test_a_command_gives_its_output_back_however_it_ends(place: Path) -> None:
    for command, code in (("unlearn --model model --data nowhere --forget anna --out out", 2), (UNLEARN, 0)):
        assert run(command) == code
        assert locks(place) == []
        with output.output_of_command():
            output.hold_output(Path("out"))
            assert len(locks(place)) == 1
        assert locks(place) == []
