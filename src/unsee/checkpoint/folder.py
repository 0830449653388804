"""Checkpoint folders on disk: which tensors they hold, what unsee wrote about them, and how new ones appear.

Which weights plain transformers loads from a folder is decided here alone, by the rules of `from_pretrained` for a
folder and nothing else: the file that config.json names as `transformers_weights`; else `model.safetensors`, whatever
lies beside it; else the shards of the index. Of a shard every tensor is loaded, named in the index or not. What means
two things is refused. Only safetensors is read; pickle never is.

A safetensors file is 8 bytes header length, a JSON header, then the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unsee.errors import BadInput
from unsee.storage import (
    OURS,
    abandoned,
    held_folder,
    hold,
    make_folder,
    sync_folder,
    sync_tree,
    true_path,
    unwritten,
    write_durably,
)

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # of torch.distributed
MANIFEST = "unsee.json"
PROMPTS = ("chat_template.jinja", "chat_template.json")  # how a question is put is part of a model too
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointFolder:
    """The weights of a local checkpoint folder, as plain transformers loads them; no more than headers is read.

    Attributes:
        files: the weight files.
        index: the index that names them; None for a single file.
        file_of: tensor -> the file it stands in.

    Raises:
        BadInput: no checkpoint, no safetensors weights, a damaged file, an index that does not fit its files, or
            weights that mean two things: a tensor in two shards, an adapter beside full weights, shards of
            torch.distributed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hashes: dict[str, tuple[tuple[int, ...], str]] = {}
        if not (path / CONFIG).is_file():
            raise BadInput(f"{path}: no config.json; expected a checkpoint folder as `save_pretrained` writes it")
        self.files, self.index, self.file_of = _weights_of(path)

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, nothing else read; mapped one at a time, so that what was read leaves memory again."""
        for key in keys:
            with opened(self.path / self.file_of[key]) as file:
                yield key, file.get_tensor(key)

    def dtypes(self, keys: Iterable[str]) -> dict[str, torch.dtype]:
        """The stored dtype of each named tensor.

        Raises:
            BadInput: one that no edited float fits in, e.g. of a quantised model.
        """
        keys_of: dict[str, list[str]] = {}
        for key in keys:
            keys_of.setdefault(self.file_of[key], []).append(key)
        found = {}
        for name, inside in keys_of.items():
            with opened(self.path / name) as file:
                for key in inside:
                    stored = file.get_slice(key).get_dtype()
                    if stored not in DTYPES:
                        problem = f"tensor '{key}' is stored as {stored}; only float weights can be edited"
                        raise BadInput(f"{self.path}: {problem}")
                    found[key] = DTYPES[stored]
        return found

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every weight file, of config.json and of chat templates; read again only if written to."""
        prompts = [name for name in PROMPTS if (self.path / name).is_file()]
        for name in (CONFIG, *prompts, *self.files):
            about = (self.path / name).stat()
            state = (about.st_ino, about.st_size, about.st_mtime_ns)
            if name not in self._hashes or self._hashes[name][0] != state:
                self._hashes[name] = state, sha256_of(self.path / name)
        return {name: digest for name, (_, digest) in self._hashes.items()}


# Which weights --------------------------------------------------------------------------------------------------------


def _weights_of(path: Path) -> tuple[tuple[str, ...], str | None, dict[str, str]]:
    """`files`, `index` and `file_of` of a `CheckpointFolder`."""
    name = _named_in(path / CONFIG)
    if name is None:
        found = [name for name in (SINGLE, INDEX) if (path / name).is_file()]
        if not found:
            raise BadInput(f"{path}: no {SINGLE} or {INDEX}; convert the weights to safetensors (pickle is not read)")
        name = found[0]
    if (path / ADAPTER).is_file():
        raise BadInput(
            f"{path / ADAPTER}: an adapter beside full weights, which transformers adds to them where peft is "
            "installed; merge it (peft: merge_and_unload) and save, or move it to a folder of its own"
        )
    if odd := sorted(item.name for item in path.iterdir() if _DISTRIBUTED.fullmatch(item.name)):
        raise BadInput(
            f"{path / odd[0]}: a shard of torch.distributed, which transformers loads instead of {name}; "
            "save with `save_pretrained`, or move these shards away"
        )
    if not name.endswith(".index.json"):
        with opened(path / name) as file:
            return (name,), None, dict.fromkeys(list(file.keys()), name)
    shards = _read_index(path / name)
    files = tuple(dict.fromkeys(shards.values()))
    file_of: dict[str, str] = {}
    for shard in files:
        if not (path / shard).is_file():
            raise BadInput(f"{path / shard}: named in {name} but missing; download the checkpoint again")
        with opened(path / shard) as file:
            for key in list(file.keys()):
                if key in file_of:
                    raise BadInput(f"{path}: tensor '{key}' stands in {file_of[key]} and in {shard}; keep one")
                file_of[key] = shard
    for key, shard in shards.items():
        if file_of.get(key) != shard:
            raise BadInput(f"{path / shard}: holds no tensor '{key}', which {name} says it does; download both again")
    return files, name, file_of


def _named_in(config: Path) -> str | None:
    """The weights that config.json names, if it does."""
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("transformers_weights")
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{config}: not a usable configuration ({error}); save or download it again") from error
    if name is None:
        return None
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or not name.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise BadInput(
            f"{config}: transformers_weights is {name!r}; expected a safetensors file of this folder, or an index"
        )
    if not (config.parent / name).is_file():
        raise BadInput(f"{config.parent / name}: named in {CONFIG} but missing; download the checkpoint again")
    return name


def _read_index(file: Path) -> dict[str, str]:
    """Which shard holds each tensor."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        shards: dict[str, str] = about["weight_map"]
        names = set(shards.values())
        about["metadata"]  # without it transformers does not load
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file}: not a safetensors index ({error}); download it again") from error
    if not shards:
        raise BadInput(f"{file}: names no tensor; download it again, with its shards")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{file}: names the shard '{name}'; expected a file in this folder, download it again")
    return shards


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped.

    Raises:
        BadInput: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error}); download it again") from error


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def entries_of(header: bytes) -> dict[str, Entry]:
    """The tensors of a safetensors header (with its 8 bytes of length), in the order of their data."""
    about = json.loads(header[8:])
    found = {
        key: Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for key, entry in about.items()
        if key != "__metadata__"
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))


def header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(8)
        return head + file.read(struct.unpack("<Q", head)[0])


# What unsee wrote about a checkpoint ----------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def mismatch(found: Mapping[str, str], recorded: Mapping[str, str]) -> str | None:
    """The first file, weights before others, whose SHA-256 is not as it was recorded; None if all are."""
    for name in sorted(found.keys() | recorded.keys(), key=lambda name: (not name.endswith(".safetensors"), name)):
        if name not in found:
            return f"'{name}' is missing"
        if name not in recorded:
            return f"'{name}' is one file too many"
        if found[name] != recorded[name]:
            return f"'{name}' has SHA-256 {found[name][:12]}…, recorded is {recorded[name][:12]}…"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """What unsee wrote about a checkpoint when it made it; empty for one made elsewhere."""
    file = path / MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: not valid JSON ({error}); delete it if the checkpoint was made elsewhere") from error
    if not isinstance(manifest, dict):
        raise BadInput(f"{file}: expected a JSON object; delete it if the checkpoint was made elsewhere")
    if base := manifest.get("base"):
        line = base.get("lineage") or [] if isinstance(base, dict) else None
        complete = isinstance(line, list) and all(
            isinstance(a, dict) and {"method", "created"} <= a.keys() for a in line
        )
        if not complete or not isinstance(base.get("sha256"), dict):
            raise BadInput(f"{file}: 'base' lacks sha256 or a complete lineage; restore the file, or delete it")
    return manifest


class Ancestor(TypedDict):
    """One checkpoint in a line of edits; `method` is null for one that unsee did not make."""

    method: str | None
    created: str | None
    sha256: dict[str, str]


def lineage(manifest: Mapping[str, Any]) -> list[Ancestor]:
    """The checkpoints a manifest tells of, oldest first, the one it stands beside last; empty if it is empty."""
    if not manifest:
        return []
    line: list[Ancestor] = []
    if base := manifest.get("base"):
        line = base.get("lineage") or [{"method": None, "created": None, "sha256": base["sha256"]}]
    own: Ancestor = {
        "method": manifest.get("method", manifest.get("kind")),
        "created": manifest.get("created"),
        "sha256": manifest.get("sha256", {}),
    }
    return [*line, own]


def base_of(model: str, folder: CheckpointFolder) -> dict[str, Any]:
    """What the manifest of a checkpoint says about the one it was made from.

    Args:
        model: as it was named: a path or a hub id.
    """
    about = lineage(read_manifest(folder.path))
    return {"model": model, "path": str(folder.path), "sha256": folder.hashes(), "lineage": about}


def forgotten_by(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The subjects that a checkpoint and those it was made from were made to forget, by its manifest, oldest first."""
    return tuple(manifest.get("forgotten", manifest.get("forget", ())))


# New folders and files ------------------------------------------------------------------------------------------------


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name only if the block succeeds; replaces an older `out`.

    A link stays a link: what it leads to is made or replaced, and the temporary folder stands beside that.

    Killed at any moment, `out` is whole: the old one, the new one, written through to the disk, or, for a moment while
    one replaces the other, none. What a killed process left beside it goes when the next folder is made there; an old
    `out` that was being replaced comes back then.

    Raises:
        BadInput: disk full, read-only, no permission, ...; `out` is as it was, unless the message says otherwise.
    """
    renamed, true = False, true_path(out)
    try:
        make_folder(true.parent)
        _clear(true.parent)
        with held_folder(true.parent, f".{true.name}.", ".partial") as partial:
            yield partial
            sync_tree(partial)
            with _retired(true):
                os.replace(partial, true)
                renamed = True
                sync_folder(true.parent)
    except (OSError, SafetensorError) as error:  # the second where safetensors itself writes
        raise unwritten(out, error, renamed) from error


def _clear(parent: Path) -> None:
    """Take away what killed processes left of new folders, or give it back its name."""
    for found, left in abandoned(parent, re.compile(rf"\.(.+)\.{OURS}\.(partial|old)")):
        if found[2] == "old" and not parent.joinpath(found[1]).exists():
            os.replace(left, parent / found[1])
        else:
            _remove(left)


@contextmanager
def _retired(out: Path) -> Iterator[None]:
    """Move an older `out` aside while the block puts a new one in its place; back again if that fails."""
    if not out.exists():
        yield
        return
    aside = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}.old"
    handle = hold(out)
    try:
        os.replace(out, aside)
        try:
            yield
        finally:
            if out.exists():
                _remove(aside)
            else:
                os.replace(aside, out)
    finally:
        if handle is not None:
            os.close(handle)


def _remove(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that was not there before, written through to the disk when the block ends; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably: readers never see half a file, see `write_durably`."""
    write_durably(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
