"""Work side by side: the same results, the same errors, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from unsee.errors import BadInput, GateFailed, WorkerLost
from unsee.parallel import side_by_side


def squares(offset: int, name: str, upto: int) -> Iterator[tuple[str, int, int, int, bool]]:
    """With the process that found it, its torch threads, and whether it shows bars."""
    import torch

    from unsee.progress import console

    for number in range(upto):
        yield name, number**2 + offset, os.getpid(), torch.get_num_threads(), console.is_terminal


def fails(how: str) -> list[int]:
    if how == "input":
        raise BadInput("row 3: no answer; add one")
    if how == "gate":
        raise GateFailed("the loss is nan")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "asleep":
        time.sleep(600)
    return [os.getpid()]


TASKS = {"a": ("a", 3), "b": ("b", 1), "c": ("c", 0), "d": ("d", 2)}


def test_many_find_what_one_finds() -> None:
    one = list(side_by_side("counting", partial(squares, 5), TASKS, 1))
    assert {pid for _, _, pid, _, _ in one} == {os.getpid()}
    assert [name for name, *_ in one] == ["a", "a", "a", "b", "d", "d"]
    many = list(side_by_side("counting", partial(squares, 5), TASKS, 2))
    assert sorted(found[:2] for found in many) == sorted(found[:2] for found in one)
    pids = {pid for _, _, pid, _, _ in many}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {threads for _, _, _, threads, _ in many} == {1}
    assert not any(bars for *_, bars in many)
    assert not multiprocessing.active_children()
    other = side_by_side("counting", partial(squares, 6), TASKS, 1)
    assert sorted(found[:2] for found in other) != sorted(found[:2] for found in one), "control: the offset arrives"


@pytest.mark.parametrize(("how", "kind"), [("input", BadInput), ("gate", GateFailed)])
def test_alone_an_error_is_itself_and_ends_all(how: str, kind: type[Exception]) -> None:
    results = side_by_side("failing", fails, {"works": ("",), "fails": (how,), "never": ("killed",)}, 1)
    assert next(results) == os.getpid()
    with pytest.raises(kind):
        next(results)


def test_an_error_in_a_worker_is_the_same_error_and_ends_the_others() -> None:
    with pytest.raises(BadInput, match=r"^row 3: no answer; add one$"):
        list(side_by_side("failing", fails, {"sleeps": ("asleep",), "fails": ("input",), "never": ("asleep",)}, 2))
    assert not multiprocessing.active_children()


def test_a_worker_that_was_killed_is_said_in_one_line() -> None:
    with pytest.raises(WorkerLost) as lost:
        list(side_by_side("unlearning", fails, {"npo-s0": ("asleep",), "ga-s1": ("killed",)}, 2))
    said = r"unlearning, ga-s1: its process was killed \(signal 9\).* lower --jobs.*--resume"
    assert re.fullmatch(said, str(lost.value))
    assert not multiprocessing.active_children()


SLEEPERS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background turns it off
sys.path.insert(0, sys.argv[1])
from test_workers import tell_and_sleep
from unsee.parallel import side_by_side
if __name__ == "__main__":
    for _ in side_by_side("sleeping", tell_and_sleep, {"one": (sys.argv[2],), "two": (sys.argv[2],)}, 2):
        print("both", flush=True)
"""


def tell_and_sleep(folder: str) -> Iterator[str]:
    """A result once both workers are here, and then nothing for long."""
    unfinished = Path(folder, str(os.getpid()))
    try:
        unfinished.touch()
        while len(list(Path(folder).iterdir())) < 2:
            time.sleep(0.05)
        yield "both"
        time.sleep(600)
    finally:
        unfinished.unlink()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nobody_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    """Workers hold the output of their parent: it ends when the last of them does."""
    script, folder = tmp_path / "sleepers.py", tmp_path / "here"
    script.write_text(SLEEPERS)
    folder.mkdir()
    command = [sys.executable, str(script), str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "both\n"
        assert len(list(folder.iterdir())) == 2, "control: two are at work"
        parent.send_signal(how)
        parent.communicate(timeout=120)
    assert not list(folder.iterdir()), "they removed what they had made"
