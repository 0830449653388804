"""The ledger: no crash damages it, no two processes lose each other's records."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledgers import filled, names_in

from unsee import storage
from unsee.errors import BadInput
from unsee.requests import ledger as ledger_module
from unsee.requests.ledger import LEDGER, LOCK, SALT, Damaged, Ledger
from unsee.storage import partial_of


def counts(ledger: Ledger) -> list[int]:
    return [record.content["i"] for record in ledger.records]


# Crashes --------------------------------------------------------------------------------------------------------------

APPEND = """
import os, sys
from pathlib import Path
from unsee.requests.ledger import Ledger

ledger = Ledger.open(Path(sys.argv[1]), create=True)
for _ in range(int(sys.argv[2])):
    with ledger.locked():
        record = ledger.append("note", {"i": len(ledger.records), "by": os.getpid()})
    os.write(1, f"{record.content['i']}\\n".encode())
"""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run a script with arguments in a process of its own, which ends with the test at the latest."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more))
        return started[-1]

    yield begin
    for process in started:
        with process:  # closes its pipes and waits
            process.kill()


def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path, start: Start) -> None:
    chance = random.Random(2)
    acknowledged = -1
    for _ in range(20):
        process = start(APPEND, tmp_path, 10**6)
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())  # it is under way
        time.sleep(chance.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        said, problem = process.communicate()
        assert process.returncode == -signal.SIGKILL, problem
        acknowledged = max([acknowledged, *map(int, said.split())])
        found = Ledger.open(tmp_path)
        found.verify()
        assert counts(found) == list(range(len(found.records)))
        assert len(found.records) - 1 in (acknowledged, acknowledged + 1)  # the one under way may be there, whole
        assert names_in(tmp_path) == {LEDGER, LOCK}


KILL_AT = """
import os, signal, sys
from pathlib import Path
from unsee import storage
from unsee.requests.ledger import Ledger

ledger = Ledger.open(Path(sys.argv[1]))
name, number = sys.argv[2], int(sys.argv[3])
real, calls = getattr(os, name), []
def until_then(*arguments):
    calls.append(name)
    if len(calls) == number:
        if name == "write":
            real(arguments[0], bytes(arguments[1])[:-20])  # half of it arrives
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, name, until_then)
ledger.append("note", {"i": 8})
"""


@pytest.mark.parametrize(
    ("call", "number", "there"),
    [("write", 1, False), ("fsync", 1, False), ("replace", 1, False), ("fsync", 2, True), ("fsync", 3, True)],
)
def test_killed_at_each_step(tmp_path: Path, start: Start, call: str, number: int, there: bool) -> None:
    """Before the rename the record is not there, after it is; fsync 3 does not happen: nothing is killed."""
    sound = filled(tmp_path).path.read_bytes()
    process = start(KILL_AT, tmp_path, call, number)
    _, problem = process.communicate()
    assert process.returncode == (0 if (call, number) == ("fsync", 3) else -signal.SIGKILL), problem
    assert partial_of(tmp_path / LEDGER).exists() is not there  # this is where a crash can leave something over
    assert (tmp_path / LEDGER).read_bytes().startswith(sound)
    found = Ledger.open(tmp_path)
    assert counts(found) == list(range(9 if there else 8))
    assert names_in(tmp_path) == {LEDGER, LOCK}
    found.append("note", {})  # and it goes on


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_what_cannot_be_written_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    ledger = filled(tmp_path)
    sound, real, calls = ledger.path.read_bytes(), getattr(os, call), []

    def failing(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if call == "write" and len(calls) == 1:
            return real(arguments[0], bytes(arguments[1])[:100])  # full after the first hundred bytes
        if call == "open" and Path(arguments[0]) != partial_of(ledger.path):
            return real(*arguments, **more)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(BadInput, match=rf"ledger\.jsonl: cannot be written \({os.strerror(number)}\)[^\n]+$"):
            ledger.append("note", {"i": 8})
    assert calls
    assert ledger.path.read_bytes() == sound
    assert names_in(tmp_path) == {LEDGER, LOCK}
    ledger.append("note", {"i": 8})
    assert counts(Ledger.open(tmp_path)) == list(range(9))


def test_a_folder_that_cannot_be_synced_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(tmp_path)

    def failing(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "sync_folder", failing)
        with pytest.raises(BadInput, match="written, but its folder cannot be synced"):
            ledger.append("note", {"i": 8})
    ledger.append("note", {"i": 9})
    assert counts(Ledger.open(tmp_path)) == list(range(10))


def test_a_lock_that_cannot_be_had_is_said_so(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()
    with pytest.raises(BadInput, match="cannot be locked"):
        ledger.append("note", {})
    assert counts(Ledger.open(tmp_path)) == list(range(8))  # to read takes no lock


def test_a_file_that_may_grow_no_further(tmp_path: Path, start: Start) -> None:
    """As on a full disk, by the system itself: a limit on the size of files."""
    sound = filled(tmp_path).path.read_bytes()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(sound) + 100,) * 2)

    process = start(APPEND, tmp_path, 1, preexec_fn=limited)
    _, problem = process.communicate()
    assert process.returncode == 1
    assert "BadInput" in problem
    assert "cannot be written (File too large)" in problem
    assert (tmp_path / LEDGER).read_bytes() == sound
    assert names_in(tmp_path) == {LEDGER, LOCK}


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadInput, match=r"ledger\.jsonl: cannot be written \(Permission denied\)"):
            ledger.append("note", {})
        assert counts(Ledger.open(tmp_path)) == list(range(8))
    finally:
        tmp_path.chmod(0o700)


def test_the_file_keeps_its_mode(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.path.chmod(0o640)
    ledger.append("note", {})
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o640


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_lose_nothing(tmp_path: Path, start: Start) -> None:
    both = [start(APPEND, tmp_path, 50) for _ in range(2)]
    for process in both:
        _, problem = process.communicate()
        assert process.returncode == 0, problem
    found = Ledger.open(tmp_path)
    found.verify()
    assert counts(found) == list(range(100))
    assert {record.content["by"] for record in found.records} == {process.pid for process in both}


def test_without_the_lock_a_record_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above, in one process: the other appends between reading and writing."""
    one, other = filled(tmp_path), Ledger.open(tmp_path)
    real = storage.write_durably

    def interrupted(path: Path, content: bytes) -> None:
        monkeypatch.setattr(ledger_module, "write_durably", real)
        other.append("note", {"i": "other"})
        real(path, content)

    monkeypatch.setattr(ledger_module, "write_durably", interrupted)
    with pytest.raises(BadInput, match="already in use by this process"):
        one.append("note", {"i": "one"})
    assert counts(Ledger.open(tmp_path)) == list(range(8))

    monkeypatch.setattr(ledger_module, "write_durably", interrupted)
    monkeypatch.setattr(ledger_module, "exclusive", lambda path, wait: contextlib.nullcontext())
    one.append("note", {"i": "one"})
    assert counts(Ledger.open(tmp_path)) == [*range(8), "one"]  # what the other appended is gone
    with pytest.raises(Damaged, match="no longer begins"):
        other.append("note", {})  # and it notices


HOLD = """
import sys, time
from pathlib import Path
from unsee.requests.ledger import Ledger

with Ledger.open(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_refuses_or_waits_and_says_for_whom(tmp_path: Path, start: Start) -> None:
    ledger = filled(tmp_path)
    leftover = partial_of(ledger.path)
    holder = start(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match=rf"in use by process {holder.pid} on "), ledger.locked(wait=False):
        pass
    leftover.write_bytes(b"what the holder is writing")
    assert counts(Ledger.open(tmp_path)) == list(range(8))  # to read, nobody need wait
    assert leftover.exists(), "the file that another process is writing was taken away"
    waiting = start(APPEND, tmp_path, 1)
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith(f"waiting for process {holder.pid} on ")
    assert len(Ledger.open(tmp_path).records) == 8
    holder.kill()  # the system gives its lock back
    assert waiting.wait() == 0
    assert counts(Ledger.open(tmp_path)) == list(range(9))
    assert names_in(tmp_path) == {LEDGER, LOCK}


def test_a_lock_that_was_given_back_names_nobody(tmp_path: Path) -> None:
    """Else whoever had it last, and waits for it again, may read his own name before the next one has written his."""
    ledger = filled(tmp_path)
    with ledger.locked():
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).read_text()


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    with ledger.locked(), pytest.raises(BadInput), ledger.locked():
        ledger.append("note", {"i": math.nan})
    with pytest.raises(BadInput), ledger.locked():
        ledger.append("note", {"i": math.nan})
    ledger.append("note", {"i": 8})
    with Ledger.open(tmp_path).locked(wait=False):
        assert counts(Ledger.open(tmp_path)) == list(range(9))


def test_what_was_left_half_written_goes_at_the_next_open(tmp_path: Path) -> None:
    filled(tmp_path)
    for name in (LEDGER, SALT):
        partial_of(tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the operator")
    Ledger.open(tmp_path)
    assert names_in(tmp_path) == {LEDGER, LOCK, "notes.txt"}
