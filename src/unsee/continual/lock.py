"""One process at a time. The system gives the lock back when its holder ends, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unsee.errors import BadInput
from unsee.progress import console


@contextmanager
def exclusive(path: Path, wait: bool) -> Iterator[None]:
    """Hold the file `path` (`flock`; made if need be, never removed) while the block runs.

    The file says who holds it, or held it when it was killed. Processes forked inside the block hold it too, until they
    end. On a network file system the lock is as good as that system's `flock`.

    Args:
        wait: for another process, after one line that names it; else refuse at once.

    Raises:
        BadInput: another process holds it and `wait` is False, this very process does, or it cannot be opened.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise BadInput(f"{path.parent}: cannot be locked on this system; use Linux or macOS") from error
    own = f"process {os.getpid()} on {socket.gethostname()}"
    handle = None
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 1000, 0).decode(errors="replace").strip() or "another process"
            if holder == own:
                raise BadInput(f"{path.parent}: already in use by this process; close it there first") from None
            if not wait:
                raise BadInput(f"{path.parent}: in use by {holder}; try again when it has ended") from None
            line = f"waiting for {holder}, which uses {path.parent}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{own}\n".encode(), 0)
    except BaseException as error:
        if handle is not None:
            os.close(handle)
        if isinstance(error, OSError):
            reason = f"{path.parent}: cannot be locked ({error.strerror}); nothing was changed, free space or check"
            raise BadInput(f"{reason} permissions of {path.name}") from error
        raise
    try:
        yield
    finally:
        try:
            os.ftruncate(handle, 0)  # else this process, waiting for it again, might take the next holder for itself
        finally:
            os.close(handle)  # gives the lock back
