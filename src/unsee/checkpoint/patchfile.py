"""The file a patch stands in: a safetensors file of byte strings whose metadata says what it is.

The metadata holds a SHA-256 over the whole file, header included, taken with the digest's own place filled with zeros.
It is checked before anything else is believed, so a flipped byte or a lost tail is found wherever it is. It protects
against damage, not against somebody who writes a patch of his own: trust patches as you trust the models they make.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from unsee.checkpoint.folder import new_file
from unsee.errors import BadInput
from unsee.storage import make_folder, replacing

FORMAT = "unsee-patch-1"
BLANK = "0" * 64
LONGEST = 100_000_000  # bytes of a header, as in safetensors itself


class PatchWriter:
    """Collects byte strings on disk, so that a large patch is never in memory."""

    def __init__(self, path: Path, data: BinaryIO) -> None:
        self._path, self._data = path, data
        self._places: dict[str, Any] = {}

    def add(self, name: str, content: bytes) -> None:
        if name in self._places or name == "__metadata__":
            raise ValueError(f"'{name}' stands twice in one patch")
        at = self._data.tell()
        self._data.write(content)
        self._places[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [at, at + len(content)]}

    def finish(self, about: dict[str, Any]) -> None:
        """Write header and data to the patch's place."""

        def header(digest: str) -> bytes:
            metadata = {"format": FORMAT, "sha256": digest, "about": json.dumps(about, ensure_ascii=False)}
            text = json.dumps({"__metadata__": metadata, **self._places}, ensure_ascii=False).encode()
            text += b" " * (-len(text) % 8)
            return struct.pack("<Q", len(text)) + text

        blank = header(BLANK)
        if len(blank) > LONGEST:
            raise BadInput(f"--out {self._path}: too many tensors for one safetensors header ({len(self._places)})")
        hashed = hashlib.sha256(blank)
        self._data.flush()
        self._data.seek(0)
        while chunk := self._data.read(1 << 20):
            hashed.update(chunk)
        self._data.seek(0)
        with new_file(self._path) as file:
            file.write(header(hashed.hexdigest()))
            shutil.copyfileobj(self._data, file, 1 << 20)


@contextmanager
def new_patch(out: Path) -> Iterator[PatchWriter]:
    """A writer of what becomes the file `out`, see `replacing`.

    Raises:
        BadInput: it cannot be written.
    """
    with replacing(out) as partial:
        make_folder(partial.parent)
        with tempfile.TemporaryFile(dir=partial.parent) as data:
            yield PatchWriter(partial, data)


class PatchFile:
    """A sound patch file; nothing of it is used before its checksum was seen to be right.

    Attributes:
        about: what the patch says of itself, see `patch.make_patch`.
        sha256: the digest over its content.

    Raises:
        BadInput: missing, not a patch, of another version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._read_header(file)
        except FileNotFoundError as error:
            raise BadInput(f"--patch {path}: no such file; `unsee patch make` writes one") from error
        except OSError as error:
            raise BadInput(f"--patch {path}: cannot be read ({error.strerror})") from error

    def _read_header(self, file: BinaryIO) -> None:
        damaged = f"{self.path}: damaged, its checksum does not fit its content; fetch it again"
        try:
            head = file.read(8)
            (length,) = struct.unpack("<Q", head)
            if length > LONGEST:
                raise ValueError("absurd header length")
            text = file.read(length)
            header = json.loads(text)
            metadata = header.pop("__metadata__")
            kind, self.sha256 = metadata["format"], metadata["sha256"]
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise BadInput(
                f"{self.path}: not a patch, or a damaged one ({type(error).__name__} in its header); "
                "expected a file that `unsee patch make` wrote"
            ) from error
        if not isinstance(kind, str) or not kind.startswith("unsee-patch-"):
            raise BadInput(f"{self.path}: not a patch (format {kind!r}); expected one that `unsee patch make` wrote")
        if not isinstance(self.sha256, str) or text.count(self.sha256.encode()) != 1:
            raise BadInput(damaged)
        hashed = hashlib.sha256(head + text.replace(self.sha256.encode(), BLANK.encode()))
        while chunk := file.read(1 << 20):
            hashed.update(chunk)
        if hashed.hexdigest() != self.sha256:
            raise BadInput(damaged)
        if kind != FORMAT:
            raise BadInput(f"{self.path}: format {kind}, expected {FORMAT}; use the version of unsee that made it")
        self._start = 8 + length
        self._places = {name: place["data_offsets"] for name, place in header.items()}
        try:
            self.about: dict[str, Any] = json.loads(metadata["about"])
            names = [*self.about["base"]["files"], *self.about["result"]["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self.path}: its metadata is not a patch's ({error}); make it again") from error
        for name in names:
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts or "\\" in name or not place.parts:
                raise BadInput(f"{self.path}: names the file '{name}'; expected one inside the checkpoint")

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def size(self, name: str) -> int:
        start, end = self._places[name]
        return int(end - start)

    def read(self, name: str) -> bytes:
        start, end = self._places[name]
        with self.path.open("rb") as file:
            file.seek(self._start + start)
            return file.read(end - start)

    @property
    def length(self) -> int:
        return self.path.stat().st_size
