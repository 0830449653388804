"""Small files that appear whole or not at all, and are still there after a power cut."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from unsee.errors import BadInput


def write_durably(path: Path, content: bytes, private: bool = False) -> None:
    """Give `path` this content in one step: written under another name, synced, renamed, folder synced.

    Killed at any moment, `path` holds the old content or the new one. What may be left over is `partial_of(path)`,
    which `remove_partials` takes away. One writer at a time: the caller holds a lock.

    Args:
        private: for nobody but the owner (mode 0600); else an existing file keeps its mode.

    Raises:
        BadInput: disk full, read-only, no permission, ...; `path` is as it was, unless the message says otherwise.
    """
    partial = partial_of(path)
    made = renamed = False
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        made = True
        try:
            if path.exists() and not private:
                os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
        renamed = True
        sync_folder(path.parent)
    except OSError as error:
        if renamed:
            raise BadInput(
                f"{path}: written, but its folder cannot be synced ({error.strerror}); a power cut may undo it"
            ) from error
        raise BadInput(
            f"{path}: cannot be written ({error.strerror}) and is as it was; free space or check permissions, then "
            "run the command again"
        ) from error
    finally:
        if made and not renamed:
            with contextlib.suppress(OSError):  # a disk that takes nothing more: the next open removes it
                partial.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_of(path: Path) -> Path:
    """Under which name `write_durably` writes."""
    return path.with_name(f".{path.name}.partial")
