"""How a weight file that stays as it was comes into an output: so that nobody who writes there reaches the base.

Some writers replace the bytes of a file in place (safetensors before 0.8). Through a hard link they would change the
base model with the output, or a blob of the hub's cache. So the default is a copy that shares its bytes on the disk
until either side is written to, where the file system can make one (Btrfs, XFS, ...), else a copy in full.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from unsee.errors import BadInput
from unsee.storage import true_path

FICLONE = 0x40049409  # Linux: let a new file share all bytes of another


class Untouched:
    """Brings files into an output, and counts how.

    Attributes:
        link: make hard links, by the user's own choice. What cannot be linked is copied.
        bytes: how (`shared`, `copied`, `linked`) -> bytes of weight files brought so.
    """

    def __init__(self, link: bool = False) -> None:
        self.link = link
        self.bytes: Counter[str] = Counter()

    def bring(self, item: Path, target: Path) -> None:
        """What `item` is, or points at (the hub's cache holds symbolic links), under a new name. Raises OSError."""
        self.bytes[self._brought(item.resolve(), target)] += item.stat().st_size

    def _brought(self, item: Path, target: Path) -> str:
        if self.link:
            try:
                os.link(item, target)
            except OSError:  # another device, a file system without links, or a file of somebody else's
                pass
            else:
                return "linked"
        return copy(item, target)


def copy(item: Path, target: Path) -> str:
    """A copy that is written to on its own: `shared` until then, or `copied`. Raises OSError."""
    if _shares(item, target):
        return "shared"
    shutil.copyfile(item, target)
    return "copied"


def _shares(item: Path, target: Path) -> bool:
    """Whether `target` could be made to share all bytes of `item`."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    with item.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:  # another system, another device, or a file system that cannot
            return False
    return True


def check_room(files: Iterable[Path], out: Path, link: bool) -> None:
    """Refuse an edit whose copy of these weight files will not fit on the disk, before it begins.

    Raises:
        BadInput: says how much is missing.
    """
    files = [file.resolve() for file in files]
    place = next(p for p in true_path(out).parents if p.is_dir())
    if link or not files:
        return
    need, free = sum(file.stat().st_size for file in files), shutil.disk_usage(place).free
    if need <= free:
        return
    try:
        with tempfile.TemporaryDirectory(dir=place) as probe:
            if _shares(min(files, key=lambda file: file.stat().st_size), Path(probe) / "file"):
                return
    except OSError:  # not even that
        pass
    hint = ", or add --link" if files[0].stat().st_dev == place.stat().st_dev else ""
    raise BadInput(
        f"--out {out}: a copy of the weights takes {size(need)}, and {size(free)} are free in {place}; free space, "
        f"choose another disk{hint}"
    )


def said(brought: dict[str, int]) -> str:
    """One line for people."""
    how = {"shared": "shared with the base until written to", "copied": "copied", "linked": "linked to the base's"}
    parts = [f"{size(number)} {how[key]}" for key, number in sorted(brought.items())]
    return f"weight files as they were: {', '.join(parts) or 'none'}"


def size(number: int) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000  # type: ignore[assignment]
    return f"{number} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
