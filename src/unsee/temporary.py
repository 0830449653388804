"""Temporary folders that outlive a killed process by no more than one run.

A process that is killed cleans nothing up. So each temporary folder is locked (`flock`, on the folder itself) as long
as its process lives, and whoever makes the next one removes those by such names that nobody holds any more. Where the
file system has no such locks, nothing is removed. On a network file system the lock is as good as its `flock`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unsee.lock import hold, still

OURS = r"[0-9a-f]{12}"  # in every name, from uuid4; `tempfile` draws eight characters


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder where the system keeps temporary files; it goes with the block, however the block ends.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir())
    for _, left in abandoned(place, re.compile(rf"unsee-{OURS}")):
        shutil.rmtree(left)
    with held_folder(place, "unsee-", "", 0o700) as folder:
        yield folder


@contextmanager
def held_folder(parent: Path, before: str, after: str, mode: int = 0o777) -> Iterator[Path]:
    """A new folder of a random name between `before` and `after`; what is still there under it goes with the block.

    Raises:
        OSError: it cannot be made.
    """
    folder, handle = _new_held(parent, before, after, mode)
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)
        if handle is not None:
            os.close(handle)


def abandoned(parent: Path, name: re.Pattern[str]) -> Iterator[tuple[re.Match[str], Path]]:
    """Own files and folders in `parent` by such names whose process has ended, each held while it is looked at."""
    for item in sorted(parent.iterdir()):
        found = name.fullmatch(item.name)
        if found is None:
            continue
        try:
            handle = hold(item)
        except (BlockingIOError, FileNotFoundError):  # somebody lives, or was faster
            continue
        if handle is None:
            continue
        try:
            if still(item, handle) and os.fstat(handle).st_uid == os.geteuid():
                yield found, item
        finally:
            os.close(handle)


def _new_held(parent: Path, before: str, after: str, mode: int) -> tuple[Path, int | None]:
    while True:
        folder = parent / f"{before}{uuid.uuid4().hex[:12]}{after}"
        folder.mkdir(mode)
        try:
            handle = hold(folder)
        except (BlockingIOError, FileNotFoundError):  # taken for abandoned before it was locked
            continue
        if handle is None or still(folder, handle):
            return folder, handle
        os.close(handle)
