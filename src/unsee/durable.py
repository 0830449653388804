"""Files and folders that appear whole or not at all, and are still there after a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from unsee.errors import BadInput


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
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
        finally:
            os.close(handle)


def replace_text(path: Path, content: str) -> Path:
    """Readers see the old file or the new one, never half of it. Raises BadInput, see `replacing`."""
    write_durably(path, content.encode())
    return path


@contextlib.contextmanager
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
            with contextlib.suppress(OSError):  # a disk that takes nothing more: the next call removes it
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
