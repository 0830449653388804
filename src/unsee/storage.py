"""What stands on disk: files and folders that appear whole or not at all, scratch folders, and who may write.

Whole: what appears is still there after a power cut.

Scratch: a process that is killed cleans nothing up. So each temporary folder is locked (`flock`, on the folder itself)
as long as its process lives, and whoever makes the next one removes those by such names that nobody holds any more.
Where the file system has no such locks, nothing is removed.

Locks are `flock`: the system gives them back when their holder ends, however it ends. On a network file system they are
as good as its own. A ledger cannot do without (`exclusive`); an output goes unprotected where the file system has no
locks (`sole_writer`), as temporary folders do.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from unsee.errors import BadInput

P = ParamSpec("P")
T = TypeVar("T")
OURS = r"[0-9a-f]{12}"  # in the name of every temporary folder, from uuid4; `tempfile` draws eight characters
LOCK = "unsee-lock"  # how the name of an output's lock file ends
_own: dict[tuple[str, int], int] = {}  # (output, thread) -> how often it is held


def write_durably(path: Path, content: bytes, private: bool = False) -> None:
    """Give `path` this content in one step, see `replacing`.

    Args:
        private: for nobody but the owner (mode 0600); else an existing file keeps its mode.

    Raises:
        BadInput: see `replacing`.
    """
    with replacing(path) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        try:
            if path.exists() and not private:
                os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
            write_all(handle, content)
        finally:
            os.close(handle)


def write_all(handle: int, content: bytes) -> None:
    """The system may take less than it is given. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]


def replace_text(path: Path, content: str) -> Path:
    """Readers see the old file or the new one, never half of it. Raises BadInput, see `replacing`."""
    write_durably(path, content.encode())
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to become the file `path` in one step: synced, renamed, folder synced after the block.

    Killed at any moment, `path` holds the old content or the new one. What may be left over is `partial_of(path)`,
    which the next call replaces. One writer at a time: the caller sees to that. A link stays a link: what it leads to
    is made or replaced.

    Raises:
        BadInput: disk full, read-only, no permission, ...; `path` is as it was, unless the message says otherwise.
    """
    true, partial, renamed = true_path(path), partial_of(path), False
    try:
        partial.unlink(missing_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, true)
        renamed = True
        sync_folder(true.parent)
    except OSError as error:
        raise unwritten(path, error, renamed) from error
    finally:
        if not renamed:
            with suppress(OSError):  # a disk that takes nothing more: the next call removes it
                partial.unlink(missing_ok=True)


def unwritten(path: Path, error: Exception, renamed: bool) -> BadInput:
    """What to say of a file or folder that could not be written, or (`renamed`) perhaps not for good.

    Args:
        error: the system's; where it names another place than that of `path`, this is said too.
    """
    reason = getattr(error, "strerror", None) or error
    if renamed:
        return BadInput(f"{path}: written, but its folder cannot be synced ({reason}); a power cut may undo it")
    place = getattr(error, "filename2", None) or getattr(error, "filename", None)  # of a copy, the second is the target
    if place is not None and Path(os.fsdecode(place)).parent not in (path.parent, true_path(path).parent):
        reason = f"{reason}, at {os.fsdecode(place)}"
    return BadInput(
        f"{path}: cannot be written ({reason}) and is as it was; free space or check permissions, then run the command "
        "again"
    )


def no_room(error: OSError) -> BadInput | None:
    """What to say where a disk takes nothing more, or no name as long as that; None: it is something else."""
    place = error.filename2 or error.filename
    if error.errno == errno.ENAMETOOLONG:
        return BadInput(f"{os.fsdecode(place)}: the name is too long for its disk; choose or write a shorter one")
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return None
    return BadInput(
        f"{os.fsdecode(place) if place else 'the disk'}: cannot be written ({error.strerror}); what is finished is "
        "kept: free space, then run the command again, with --resume if it has that"
    )


def check_utf8(path: str) -> None:
    """Refuse a path that no record could hold.

    Raises:
        BadInput: it is not UTF-8, or holds half of a character.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{path}: the name is not UTF-8; rename it, e.g. with letters of ASCII") from error


def true_path(path: Path) -> Path:
    """Where writing to `path` ends up: absolute, through all links, whether anything is there or not."""
    return Path(os.path.realpath(path))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that each outlives a power cut. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_tree(folder: Path) -> None:
    """Write a folder through to the disk, with all that is in it. Raises OSError."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(place, name))
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut. Raises OSError."""
    _sync(folder)


def _sync(path: Path) -> None:
    if os.name == "nt":
        return  # there, only what is open for writing can be synced, and folders cannot at all
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_of(path: Path) -> Path:
    """Under which name `replacing` writes."""
    true = true_path(path)
    return true.with_name(f".{true.name}.partial")


# Scratch --------------------------------------------------------------------------------------------------------------


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


# Locks ----------------------------------------------------------------------------------------------------------------


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
