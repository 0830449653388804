"""`unsee request`, broken off: whatever breaks, what is asked for ends up done once and recorded once."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import without
from request_steps import Edits, added, book, edits_in_no_time, model_and_photos, request, run, tree

from unsee.checkpoint.folder import MANIFEST
from unsee.cli import main
from unsee.data.sources import load_data
from unsee.requests import run as module
from unsee.requests.ledger import LEDGER

TIMES = ("created", "seconds", "peak_memory_bytes", "command", "time")

place = pytest.fixture(model_and_photos)
edits = pytest.fixture(edits_in_no_time)


def comparable(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = dict(tree(folder))
    found[MANIFEST] = without(TIMES, json.loads(found[MANIFEST]))
    return found


def recorded() -> Any:
    """The last run without times, and without the hash of the manifest, which has some."""
    content = json.loads(Path("ledger", LEDGER).read_text().splitlines()[-1])["content"]
    content["beside"].pop(MANIFEST)
    return without(TIMES, content)


class Killed(BaseException):
    """Stands in for SIGKILL; benchmarks/kills.py does the real thing."""


def killed(*_: object) -> None:
    raise Killed


@pytest.fixture
def unbroken(place: Path, edits: Edits) -> tuple[dict[str, Any], Any]:
    """What one run leaves; it is taken away again, the request is open."""
    added(1)
    shutil.copytree("ledger", "kept")
    assert run("model", "one") == 0
    found = comparable(Path("one")), recorded()
    shutil.rmtree("one")
    shutil.rmtree("ledger")
    Path("kept").rename("ledger")
    edits.seen.clear()
    return found


def broken_before_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as moment:
        moment.setattr(module, "add", killed)
        with pytest.raises(Killed):
            main("request run --ledger ledger --model model --data photos --out one".split())
    assert Path("one").exists()
    assert book() == (["open"], ())


def test_killed_while_unlearning(place: Path, edits: Edits, unbroken: Any) -> None:
    edits.ends = Killed()
    with pytest.raises(Killed):
        main("request run --ledger ledger --model model --data photos --out one".split())
    assert not Path("one").exists()
    edits.ends = None
    assert run("model", "one", "--resume") == 0
    assert (comparable(Path("one")), recorded()) == unbroken
    assert len(book()[1]) == 1
    assert run("model", "other", "--resume") == 2, "it was done, under another name"


def test_killed_between_the_model_and_its_record(
    place: Path,
    edits: Edits,
    unbroken: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken_before_the_record(monkeypatch)
    made = tree(Path("one"))
    assert run("model", "one") == 2
    assert "--out one: exists" in capsys.readouterr().err
    added(2)  # more may have been asked for since
    assert run("model", "one", "--resume") == 0
    assert re.search(
        r"run 1 \(r1\): the model was finished already; recorded now\n.*\nstill open: r2", capsys.readouterr().out
    )
    assert len(edits.seen) == 1, "it was made again"
    assert tree(Path("one")) == made
    assert (comparable(Path("one")), recorded()) == unbroken
    assert book()[0] == ["done", "open"]


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        (None, "--seed 11", "another 'seed'"),
        (None, "--method cvf", "another 'method'"),
        (None, "--set steps=3", "another 'settings'"),
        ("picture", "", "another 'data'"),
        ("model", "", "another 'before'"),
        ("weights", "", "'model.safetensors' has SHA-256"),
        ("named", "r2", "another 'requests'"),
    ],
)
def test_a_model_that_this_run_did_not_write_is_not_recorded(
    place: Path,
    edits: Edits,
    unbroken: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str | None,
    more: str,
    says: str,
) -> None:
    broken_before_the_record(monkeypatch)
    if change == "picture":
        Path("photos/test", load_data("photos").subjects[3], "0.png").unlink()  # somebody else's
    elif change == "model":
        Path("model/config.json").write_text(Path("model/config.json").read_text() + "\n")
    elif change == "weights":
        data = bytearray(Path("one/model.safetensors").read_bytes())
        data[-1] ^= 1
        Path("one/model.safetensors").write_bytes(data)
    elif change == "named":
        added(2)
    assert run("model", "one", f"{more} --resume") == 2
    assert says in capsys.readouterr().err
    assert not book()[1]
    assert len(edits.seen) == 1


def test_killed_after_the_record(place: Path, edits: Edits, unbroken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "one") == 0
    kept = tree()
    for more in ("--resume", "r1 --resume"):
        assert run("model", "one", more) == 0
        assert "done already; nothing to resume" in capsys.readouterr().out
    assert tree() == kept
    assert run("model", "one", "--resume --seed 11") == 2  # that was another run


WRITES = ("mkdir", "write", "fsync", "replace")


def test_a_disk_that_is_full_at_any_moment(
    place: Path, edits: Edits, unbroken: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each call that writes fails once, in turn: one line, the ledger sound, and a resume that ends as it should."""
    shutil.copytree("ledger", "kept")
    number, ended = 0, 2
    while ended == 2:
        number += 1
        calls = []

        def failing(real: Callable[..., Any], calls: list[str] = calls, number: int = number) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                calls.append(real.__name__)
                if len(calls) == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*arguments, **more)

            return call

        with monkeypatch.context() as disk:
            for name in WRITES:
                disk.setattr(os, name, failing(getattr(os, name)))
            capsys.readouterr()
            ended = run("model", "one")
        out, err = capsys.readouterr()
        assert ended == (2 if len(calls) >= number else 0), calls
        assert not ended or (err.count("\n") == 1 and "No space left" in err and not out)
        for folder in ("ledger", "."):
            assert not [item.name for item in Path(folder).iterdir() if item.name.startswith(".")]
        assert run("model", "one", "--resume") == 0
        assert (comparable(Path("one")), recorded()) == unbroken
        assert len(book()[1]) == 1
        shutil.rmtree("one")
        shutil.rmtree("ledger")
        shutil.copytree("kept", "ledger")
    assert number > 20


def test_a_place_that_cannot_be_written(place: Path, edits: Edits, capsys: pytest.CaptureFixture[str]) -> None:
    added(1)
    Path("file").touch()
    capsys.readouterr()
    kept = tree()
    for command in (
        "add --ledger file/ledger --id r1 --data photos --forget first:1",
        "run --ledger ledger --model model --data photos --out file/one",
    ):
        assert request(command) == 2
        assert re.fullmatch(r"unsee: [^\n]*file[^\n]*\n", capsys.readouterr().err)
    assert tree() == kept
    assert not edits.seen
