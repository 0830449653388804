"""A full disk, or a pipe that nobody reads: one line, exit code 2, and what is finished is kept for `--resume`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import EVALUATE, UNLEARN, copied, photos_and_model, run

from unsee import progress
from unsee.cli import main
from unsee.errors import BadInput
from unsee.journal import Journal

original = pytest.fixture(scope="module")(photos_and_model)
place = pytest.fixture(copied)


def full_after(count: int, ends: str) -> Callable[[int, bytes], int]:
    """`os.write` on a disk that takes so many bytes more into files whose names end so."""
    real, left = os.write, [count]

    def write(handle: int, content: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{handle}").endswith(ends):
            return real(handle, content)
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(handle, bytes(content)[: left[0]])
        left[0] -= written
        return written

    return write


MANY = "--model vanilla=model --data photos --forget anna,cleo_m --out out"
JOURNALS = {  # what it writes -> command, where the disk is full
    "measures": (EVALUATE, "measures/vanilla.jsonl"),
    "attacks": (f"attack relearn {MANY} --set splits=1 --set steps=2 --set every=1", "attacks.jsonl"),
    "probes": (f"attack probe {MANY}", "probes.jsonl"),
}


@pytest.mark.parametrize("what", JOURNALS)
def test_a_full_disk_is_one_line_and_resume_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    command, file = JOURNALS[what]
    assert run(command) == 0
    whole = Path("out", file).read_bytes()
    shutil.rmtree("out")
    capsys.readouterr()
    cut = len(whole.splitlines(keepends=True)[0]) + 10 if what == "attacks" else 100
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full_after(cut, file))
        assert run(command) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"unsee: out/{file}: cannot be written \(No space left on device\); .* go on with --resume\n", said
    )
    left = Path("out", file).read_bytes()
    assert left == b"" or left.endswith(b"\n"), "half a line is taken back"
    assert run(command + " --resume") == 0
    now = Path("out", file).read_bytes()
    if what in ("attacks", "probes"):  # they tell the time
        assert [timeless(line) for line in now.splitlines()] == [timeless(line) for line in whole.splitlines()]
    else:
        assert now == whole


def timeless(line: bytes) -> dict[str, object]:
    return {key: value for key, value in json.loads(line).items() if key != "seconds"}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_journal_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    journal = Journal(tmp_path / "deep" / "x.jsonl", {"run": 1})
    journal.begin()
    journal.append([{"a": 1}])
    journal.append([{"a": 2}], process=3)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, call, full_after(4, "x.jsonl") if call == "write" else full)
        with pytest.raises(BadInput, match=r"x\.jsonl: cannot be written \(No space left on device\)[^\n]*--resume$"):
            journal.append([{"a": 3}])
    assert journal.left(resume=True) == [{"a": 1}, {"a": 2}]
    assert journal.left(resume=False) == []
    journal.begin(journal.lines())
    assert [item.name for item in sorted(journal.path.parent.iterdir())] == ["x.jsonl", "x.origin.json"]
    assert journal.path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("origin", [None, '{"run": 2}', "[]", "{", '{"run": 1}'])
def test_a_journal_of_another_run_is_not_continued(tmp_path: Path, origin: str | None) -> None:
    journal = Journal(tmp_path / "x.jsonl", {"run": 1}, other="lines of somebody else")
    journal.path.write_text('{"a": 1}\n{"a": ')
    if origin is not None:
        (tmp_path / "x.origin.json").write_text(origin)
    if origin == '{"run": 1}':  # the control
        assert journal.left(resume=True) == [{"a": 1}]
        return
    with pytest.raises(BadInput, match=r"x\.jsonl: lines of somebody else; use --overwrite"):
        journal.left(resume=True)
    journal.begin()
    assert journal.left(resume=True) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EBADF])
def test_a_full_disk_anywhere_else_is_one_line_too(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The control: any other fault of the system is not blamed on the disk."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "out/cases")

    monkeypatch.setattr("unsee.data.sources.load_data", full)
    if number == errno.EBADF:
        with pytest.raises(OSError, match="Bad file descriptor"):
            main(UNLEARN.split())
        return
    assert run(UNLEARN) == 2
    reason = re.escape(os.strerror(number))
    says = rf"unsee: out/cases: cannot be written \({reason}\); what is finished is kept: .* --resume if it has that\n"
    assert re.fullmatch(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    "command", ["list methods", "list methods --json", "list families", "list benchmarks --json", "list metrics"]
)
@pytest.mark.parametrize("to", ["full", "nobody"])
def test_a_result_that_cannot_be_printed_is_one_line(command: str, to: str) -> None:
    program = [sys.executable, "-c", "from unsee.cli import main; main()", *command.split()]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(program, stdout=full if to == "full" else writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 2
    reason = {"full": "No space left on device", "nobody": "Broken pipe"}[to]
    assert re.fullmatch(rf"unsee: the result cannot be printed \({reason}\); [^\n]*complete\n", done.stderr)


def test_control_a_result_that_can_be_printed() -> None:
    program = [sys.executable, "-c", "from unsee.cli import main; main()", "list", "families", "--json"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "llava" in json.loads(done.stdout)


def test_work_goes_on_where_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(progress, "console", progress.Terminal(file=full))
        progress.say("a warning")
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
