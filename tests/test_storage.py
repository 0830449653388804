"""Files and folders that outlive a power cut, and temporary ones that do not outlive a killed process for long."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from unsee.checkpoint import folder as folders
from unsee.checkpoint.folder import new_folder, write_json
from unsee.errors import BadInput
from unsee.storage import make_folder, partial_of, scratch_folder, write_durably

PARTIAL, OLD = ".next.0123456789ab.partial", ".next.0123456789ab.old"


def names_in(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("a", "sub/b"):
        (folder / name).write_text(name)


# Through to the disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes in the order they were synced; 0 for a rename."""
    seen: list[int] = []
    fsync, replace = os.fsync, os.replace

    def watched(handle: int) -> None:
        seen.append(os.fstat(handle).st_ino)
        fsync(handle)

    def renamed(*names: Any) -> None:
        seen.append(0)
        replace(*names)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


@pytest.mark.parametrize("skipped", [False, True])
def test_a_new_folder_is_on_disk_before_it_has_its_name(
    tmp_path: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch, skipped: bool
) -> None:
    if skipped:  # the control
        monkeypatch.setattr(folders, "sync_tree", lambda _: None)
    with new_folder(tmp_path / "deep" / "next") as partial:
        fill(partial)
    out = tmp_path / "deep" / "next"
    inodes = {item.stat().st_ino for item in (out, *out.rglob("*"))}
    before, after = synced[: synced.index(0)], synced[synced.index(0) :]
    assert (inodes <= set(before)) is not skipped
    assert out.parent.stat().st_ino in after
    assert tmp_path.stat().st_ino in before  # "deep" is new


def test_json_is_on_disk_before_it_has_its_name(tmp_path: Path, synced: list[int]) -> None:
    write_json(tmp_path / "x.json", {})
    assert synced == [(tmp_path / "x.json").stat().st_ino, 0, tmp_path.stat().st_ino]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"old": 1})
    old = file.read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(os, call, full)
        with pytest.raises(BadInput, match=r"x\.json: cannot be written \(No space left on device\)[^\n]*$"):
            write_json(file, {"new": 1})
    assert file.read_bytes() == old
    assert names_in(tmp_path) == {"x.json"}
    write_json(file, {"new": 1})
    assert file.read_bytes() != old


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    partial_of(tmp_path / "x").write_text("half")
    write_durably(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert names_in(tmp_path) == {"x"}


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace", "body", "safetensors"])
def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def attempt() -> None:
        with new_folder(tmp_path / "next") as partial:
            fill(partial)
            if call == "body" and failing:
                full()
            if call == "safetensors" and failing:
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "old").touch()
    with monkeypatch.context() as disk:
        failing = True
        if call not in ("body", "safetensors"):
            disk.setattr(os, call, full)
        with pytest.raises(BadInput, match=r"next: cannot be written \([^\n]*No space left on device[^\n]*$"):
            attempt()
    assert names_in(tmp_path / "next") == {"old"}
    assert names_in(tmp_path) == {"next"}
    failing = False
    attempt()
    assert names_in(tmp_path / "next") == {"a", "sub"}


def test_the_old_folder_comes_back_if_the_new_one_cannot_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "old").touch()

    def second_fails(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            full()
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(BadInput, match="as it was"), new_folder(tmp_path / "next") as partial:
        fill(partial)
    assert names_in(tmp_path / "next") == {"old"}
    assert names_in(tmp_path) == {"next"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """As root, everything can be: so below a file."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"below/next: cannot be written"), new_folder(tmp_path / "file/below/next"):
        pass
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        make_folder(tmp_path / "file" / "below")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


# What killed processes leave ------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from unsee.storage import held_folder

with held_folder(Path(sys.argv[1]), sys.argv[2], sys.argv[3]) as folder:
    (folder / "half").touch()
    print(folder.name, flush=True)
    time.sleep(600)
"""

Holder = Callable[[Path, str, str], "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def holder() -> Iterator[Holder]:
    """A process that lives in a temporary folder."""
    started: list[subprocess.Popen[str]] = []

    def begin(place: Path, before: str, after: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", HOLD, str(place), before, after]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield begin
    for process in started:
        with process:
            process.kill()


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path, holder: Holder) -> None:
    process, name = holder(tmp_path, ".other.", ".partial")
    with new_folder(tmp_path / "next") as partial:
        assert names_in(tmp_path) == {name, partial.name}
    assert names_in(tmp_path) == {name, "next"}
    process.kill()
    process.wait()
    assert (tmp_path / name / "half").exists()
    with new_folder(tmp_path / "next"):
        pass
    assert names_in(tmp_path) == {"next"}


def test_scratch_is_private_and_goes_the_same_way(
    tmp_path: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process, name = holder(tmp_path, "unsee-", "")

    def ends_badly() -> None:
        with scratch_folder() as scratch:
            (scratch / "moments").touch()
            assert scratch.stat().st_mode & 0o777 == 0o700
            assert names_in(tmp_path) == {scratch.name, name}
            raise ValueError("ends")

    with pytest.raises(ValueError, match="ends"):
        ends_badly()
    assert names_in(tmp_path) == {name}
    process.kill()
    process.wait()
    with scratch_folder():
        pass
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path, there: bool) -> None:
    """Killed between the two renames: `next` is gone and both are complete under hidden names."""
    for name in (PARTIAL, OLD, *(["next"] if there else [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "next"):
        raise KeyboardInterrupt
    assert names_in(tmp_path) == {"next"}
    assert names_in(tmp_path / "next") == {"next" if there else OLD}


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = {"next.partial", ".next.partial", ".next.abc.partial", ".next.0123456789ab.parts", "..0123456789ab.old"}
    others |= {".next.0123456789AB.partial", "unsee-0123456789ab"}
    for name in others | {PARTIAL}:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "next"):
        pass
    assert names_in(tmp_path) == others | {"next"}


def test_without_locks_nothing_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / PARTIAL).mkdir()
    with monkeypatch.context() as system:
        system.setattr(fcntl, "flock", none)
        with new_folder(tmp_path / "next") as partial:
            fill(partial)
    assert names_in(tmp_path) == {PARTIAL, "next"}
    with new_folder(tmp_path / "next"):
        pass
    assert names_in(tmp_path) == {"next"}
