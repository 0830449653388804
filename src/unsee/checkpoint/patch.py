"""Make and describe a patch: the exact difference of two checkpoints, to go there and back byte for byte.

For this a checkpoint is taken as bytes: which files belong to it, and the tensors inside the weight files as they are
stored. The tensors of a safetensors file stand without gaps, so header and tensors give the file back byte for byte.

A patch is a safetensors file of byte strings whose metadata says what it is. The metadata holds a SHA-256 over the
whole file, header included, taken with the digest's own place filled with zeros. It is checked before anything else is
believed, so a flipped byte or a lost tail is found wherever it is. It protects against damage, not against somebody who
writes a patch of his own: trust patches as you trust the models they make.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from unsee.checkpoint.folder import (
    DTYPES,
    MANIFEST,
    CheckpointFolder,
    Entry,
    entries_of,
    header_of,
    new_file,
    read_manifest,
    sha256_of,
)
from unsee.checkpoint.tensor_difference import difference
from unsee.checkpoint.write import Untouched, left_out, only_texts
from unsee.errors import BadInput
from unsee.progress import track
from unsee.storage import alone, make_folder, replacing

Side = Literal["base", "result"]
SIDES: tuple[Side, Side] = ("base", "result")
CHUNK = 1 << 24  # bytes copied at once
FORMAT = "unsee-patch-1"
BLANK = "0" * 64
LONGEST = 100_000_000  # bytes of a header, as in safetensors itself


@alone
def make_patch(before: Path, after: Path, out: Path) -> dict[str, Any]:
    """Write the difference of two checkpoint folders to the file `out`; both are only read.

    Tensors that are floats of the same dtype and shape on both sides are stored as a `TensorDifference`; any other
    tensor that changed, came or went is stored whole, both sides, and so are all other files, and headers of weight
    files.

    Returns:
        what `describe` says of the patch.

    Raises:
        BadInput: a folder is no checkpoint, or they do not differ; `out` cannot be written.
    """
    with readable():
        old, new = RawCheckpoint(before), RawCheckpoint(after)
        made = read_manifest(after)
        base, result = old.hashes(), new.hashes()
    if base == result:
        raise BadInput(f"--after {after}: every file is the same as in {before}; nothing to store")
    with new_patch(out) as writer:
        about = {
            "request": {key: made.get(key) for key in ("kind", "method", "paper", "seed", "forget", "created")},
            "base": _side("base", old, new, base, result, writer),
            "result": _side("result", new, old, result, base, writer),
            "tensors": _tensors(old, new, writer),
        }
        writer.finish(about)
    return describe(PatchFile(out))


def _side(
    side: Side,
    own: RawCheckpoint,
    other: RawCheckpoint,
    hashes: dict[str, str],
    other_hashes: dict[str, str],
    writer: PatchWriter,
) -> dict[str, Any]:
    """What a patch says of one of its two checkpoints; files and headers that differ are added to it, compressed."""
    stored = {}
    for name in own.texts:
        if hashes[name] != other_hashes.get(name):
            stored[name] = (own.path / name).read_bytes()
    for name, header in own.headers.items():
        if header != other.headers.get(name):
            stored[name] = header
    for name, content in stored.items():
        writer.add(f"{side}-file/{name}", zlib.compress(content, 9))
    return {
        "name": own.path.resolve().name,
        "bytes": sum((own.path / name).stat().st_size for name in hashes),
        "files": hashes,
        "weights": list(own.headers),
        "stored": {name: len(content) for name, content in stored.items()},
        "left_out": own.others,
    }


def _tensors(old: RawCheckpoint, new: RawCheckpoint, writer: PatchWriter) -> dict[str, Any]:
    """How each changed tensor is stored; what is stored is added to the patch."""
    tensors: dict[str, Any] = {}
    for key in track(sorted(old.places.keys() | new.places.keys()), "comparing tensors"):
        kinds = [_kind(checkpoint, key) for checkpoint in (old, new)]
        before, after = (c.read(key) if key in c.places else bytearray() for c in (old, new))
        if kinds[0] == kinds[1] and before == after:
            continue
        dtype, shape = kinds[0]
        if kinds[0] == kinds[1] and dtype in DTYPES:
            found = difference(before, after, dtype, shape)
            tensors[key] = {"coding": "difference", "dtype": dtype, "shape": shape, "rank": found.rank}
            writer.add(f"tensor/{key}", found.to_bytes())
            continue
        tensors[key] = {"coding": "whole"}
        for side, kind, data in zip(SIDES, kinds, (before, after), strict=True):
            if kind[0]:
                tensors[key][side] = {"dtype": kind[0], "shape": kind[1], "bytes": len(data)}
                writer.add(f"{side}/{key}", zlib.compress(data, 9))
    return tensors


def _kind(checkpoint: RawCheckpoint, key: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape; of a tensor that is not there, empty."""
    if key not in checkpoint.places:
        return "", ()
    entry = checkpoint.places[key][1]
    return entry.dtype, entry.shape


def describe(patch: PatchFile) -> dict[str, Any]:
    """What a patch is, for people and machines."""
    tensors = {}
    for key, tensor in patch.about["tensors"].items():
        places = [place for place in (f"tensor/{key}", *(f"{side}/{key}" for side in SIDES)) if place in patch]
        tensors[key] = {**tensor, "bytes": sum(patch.size(place) for place in places)}
    return {
        "patch": str(patch.path),
        "format": FORMAT,
        "sha256": patch.sha256,
        "bytes": patch.length,
        "share": patch.length / patch.about["base"]["bytes"],
        **{key: patch.about[key] for key in ("request", "base", "result")},
        "tensors": tensors,
    }


# Checkpoints as bytes -------------------------------------------------------------------------------------------------


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


# The file -------------------------------------------------------------------------------------------------------------


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
