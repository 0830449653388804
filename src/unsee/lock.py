"""Who may write: locks that the system gives back when their holder ends, however it ends.

All are `flock`; on a network file system they are as good as its own. A ledger cannot do without (`exclusive`); an
output goes unprotected where the file system has no locks (`sole_writer`), as temporary folders do.
"""

from __future__ import annotations

import functools
import inspect
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from unsee.durable import make_folder, true_path, unwritten
from unsee.errors import BadInput

P = ParamSpec("P")
T = TypeVar("T")
LOCK = "unsee-lock"  # how the name of an output's lock file ends
_own: dict[tuple[str, int], int] = {}  # (output, thread) -> how often it is held


def hold(path: Path) -> int | None:
    """Lock a file or folder until the handle is closed or the process ends; None where that cannot be had.

    Raises:
        BlockingIOError: another process holds it. FileNotFoundError: it is gone.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError:  # somebody else's; on Windows any folder
        return None
    try:
        _flock(handle)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system, or a system, without such locks
        os.close(handle)
        return None
    return handle


def still(path: Path, handle: int) -> bool:
    """Whether the name still leads to what is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(path: Path, wait: bool) -> Iterator[None]:
    """Hold the file `path` (made if need be, never removed) while the block runs.

    The file says who holds it, or held it when it was killed. Processes forked inside the block hold it too, until they
    end.

    Args:
        wait: for another process, after one line that names it; else refuse at once.

    Raises:
        BadInput: another process holds it and `wait` is False, this very process does, or it cannot be locked.
    """
    handle = None
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(handle)
        except BlockingIOError:
            holder = _holder(handle)
            if holder == _name():
                raise BadInput(f"{path.parent}: already in use by this process; close it there first") from None
            if not wait:
                raise BadInput(f"{path.parent}: in use by {holder}; try again when it has ended") from None
            from unsee.progress import say  # rich takes its time, and is hardly ever needed here

            say(f"waiting for {holder}, which uses {path.parent}")
            _flock(handle, wait=True)
        _sign(handle)
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


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Let nobody else write the output `out` while the block runs, under whichever name; a thread may nest this.

    A hidden file beside it is held (made with the folders above it, gone when the block ends). One that a killed
    process left blocks nobody.

    Raises:
        BadInput: somebody else writes there, or its folder cannot be written.
    """
    true = true_path(out)
    key = str(true), threading.get_ident()
    if key in _own:
        _own[key] += 1
        try:
            yield
        finally:
            _own[key] -= 1
        return
    file = true.with_name(f".{true.name}.{LOCK}")
    missing = [folder for folder in true.parents if not folder.exists()]
    handle = None
    try:
        try:
            handle = _taken(file, out)
        except PermissionError:  # a folder of one's own in somebody else's
            file = true
            handle = hold(true)
    except BlockingIOError:
        raise _in_use(out, "another process") from None
    except OSError as error:
        raise unwritten(out, error, renamed=False) from error
    _own[key] = 1
    try:
        yield
    finally:
        del _own[key]
        if file != true:
            with suppress(OSError):  # a disk gone read-only: an unheld file blocks nobody
                file.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)
        with suppress(OSError):  # not empty
            for folder in missing:
                folder.rmdir()


def alone(function: Callable[P, T]) -> Callable[P, T]:
    """A function that holds what is given to it as `out` while it runs, see `sole_writer`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with sole_writer(signature.bind(*args, **kwargs).arguments["out"]):
            return function(*args, **kwargs)

    return held


def _taken(file: Path, out: Path) -> int | None:
    """A signed lock file of an output; None where the file system has no locks."""
    while True:
        make_folder(file.parent)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # who made the folder took it away again
            continue
        kept = False
        try:
            _flock(handle)
            if still(file, handle):
                _sign(handle)
                kept = True
                return handle
        except BlockingIOError:
            raise _in_use(out, _holder(handle)) from None
        except _NoLocks:
            file.unlink(missing_ok=True)
            return None
        finally:
            if not kept:
                os.close(handle)


def _in_use(out: Path, holder: str) -> BadInput:
    return BadInput(f"--out {out}: in use by {holder}, which writes there; wait for its end, or choose another place")


class _NoLocks(OSError):
    """The system or the file system has no such locks."""


def _flock(handle: int, wait: bool = False) -> None:
    """Raises BlockingIOError: somebody holds it. _NoLocks: there are none here."""
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise _NoLocks(0, "no locks on this system; use Linux or macOS") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        raise _NoLocks(error.errno, error.strerror) from error


def _name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{_name()}\n".encode(), 0)


def _holder(handle: int) -> str:
    return os.pread(handle, 1000, 0).decode(errors="replace").strip() or "another process"
