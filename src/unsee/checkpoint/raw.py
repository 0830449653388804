"""A checkpoint folder as bytes: which files belong to it, and the tensors inside the weight files as they are stored.

The tensors of a safetensors file stand without gaps. So header and tensors give the file back byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unsee.checkpoint.folder import MANIFEST, CheckpointFolder, new_file, sha256_of
from unsee.checkpoint.untouched import Untouched
from unsee.checkpoint.weights import Entry, entries_of, header_of
from unsee.checkpoint.write import left_out, only_texts
from unsee.errors import BadInput

CHUNK = 1 << 24  # bytes copied at once


@contextmanager
def readable() -> Iterator[None]:
    """A file that cannot be read ends in one line."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{error.filename or 'a checkpoint'}: cannot be read ({error.strerror or error})") from error


class RawCheckpoint:
    """A checkpoint folder whose tensors are read as stored bytes, one at a time.

    Attributes:
        headers: of each weight file.
        texts: the other files that belong to it, by path relative to the folder.
        others: files and folders in it that `unsee unlearn` would not carry along either: hidden ones and further
            copies of the weights. No patch speaks of them.

    Raises:
        BadInput: not a readable checkpoint, see `CheckpointFolder`.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise BadInput(f"{path}: no such folder; expected a local checkpoint")
        self.path = path
        self.folder = CheckpointFolder(path)
        self.headers = {name: header_of(path / name) for name in self.folder.files}
        self.places: dict[str, tuple[str, Entry]] = {}
        for name, header in self.headers.items():
            for key, entry in entries_of(header).items():
                self.places[key] = name, entry
        texts: list[str] = []
        others: list[str] = []
        for item in sorted(path.iterdir()):
            if item.is_dir() and only_texts(item):
                texts += [p.relative_to(path).as_posix() for p in sorted(item.rglob("*")) if p.is_file()]
            elif item.is_file() and (item.name == MANIFEST or not left_out(item.name, self.folder)):
                texts += [item.name] if item.name not in self.headers else []
            else:
                others.append(item.name)
        self.texts, self.others = tuple(texts), tuple(others)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that belongs to the checkpoint."""
        return {name: sha256_of(self.path / name) for name in sorted((*self.texts, *self.headers))}

    def read(self, key: str) -> bytearray:
        """A tensor's bytes."""
        name, entry = self.places[key]
        data = bytearray(entry.end - entry.start)
        with (self.path / name).open("rb") as file:
            file.seek(len(self.headers[name]) + entry.start)
            if file.readinto(data) != len(data):
                raise BadInput(f"{self.path / name}: ends inside tensor '{key}'; download it again")
        return data

    def write_weights(
        self,
        target: Path,
        headers: Mapping[str, bytes],
        changed: Iterable[str],
        bytes_of: Callable[[str], bytes | bytearray],
        untouched: Untouched,
    ) -> None:
        """Write weight files with these headers into the folder `target`, one tensor in memory at a time.

        Tensors in `changed` come from `bytes_of`, all others are this checkpoint's own. A file in which nothing changes
        is brought there by `untouched`.
        """
        replaced = frozenset(changed)
        for name, header in headers.items():
            entries = entries_of(header)
            if header == self.headers.get(name) and not replaced & entries.keys():
                untouched.bring(self.path / name, target / name)
                continue
            with new_file(target / name) as file:
                file.write(header)
                for key in entries:
                    if key in replaced:
                        file.write(bytes_of(key))
                    else:
                        self._copy(key, file.write)

    def _copy(self, key: str, write: Callable[[bytes], object]) -> None:
        name, entry = self.places[key]
        with (self.path / name).open("rb") as file:
            file.seek(len(self.headers[name]) + entry.start)
            left = entry.end - entry.start
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    raise BadInput(f"{self.path / name}: ends inside tensor '{key}'; download it again")
                write(data)
                left -= len(data)

    def copy_texts(self, target: Path, names: Iterable[str]) -> None:
        """Copy other files than weights into the folder `target`."""
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / name, target / name)
            with (target / name).open("rb+") as file:
                os.fsync(file.fileno())
