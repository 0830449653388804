"""Make and describe a patch: the exact difference of two checkpoints, to go there and back byte for byte."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from unsee.checkpoint.coding import difference
from unsee.checkpoint.folder import DTYPES, read_manifest
from unsee.checkpoint.patchfile import FORMAT, PatchFile, PatchWriter, new_patch
from unsee.checkpoint.raw import RawCheckpoint, readable
from unsee.errors import BadInput
from unsee.progress import track
from unsee.storage import alone

Side = Literal["base", "result"]
SIDES: tuple[Side, Side] = ("base", "result")


@contextmanager
def disk(out: Path) -> Iterator[None]:
    """A full disk or a place that cannot be written ends in one line; temporary names are gone by then."""
    try:
        yield
    except OSError as error:
        place = f" at {error.filename}" if error.filename else ""
        raise BadInput(f"--out {out}: {error.strerror or error}{place}; nothing was written there") from error


@alone
def make_patch(before: Path, after: Path, out: Path) -> dict[str, Any]:
    """Write the difference of two checkpoint folders to the file `out`; both are only read.

    Tensors that are floats of the same dtype and shape on both sides are stored as a `Difference`; any other tensor
    that changed, came or went is stored whole, both sides, and so are all other files, and headers of weight files.

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
    with disk(out), new_patch(out) as (writer, partial):
        about = {
            "request": {key: made.get(key) for key in ("kind", "method", "paper", "seed", "forget", "created")},
            "base": _side("base", old, new, base, result, writer),
            "result": _side("result", new, old, result, base, writer),
            "tensors": _tensors(old, new, writer),
        }
        writer.finish(partial, about)
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
