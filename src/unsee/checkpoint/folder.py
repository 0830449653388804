"""Checkpoint folders on disk: read chosen tensors and manifests, let a folder appear whole or not at all.

Only safetensors is read; pickle never is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor

from unsee.checkpoint.weights import CONFIG, opened, weights_of
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

MANIFEST = "unsee.json"
PROMPTS = ("chat_template.jinja", "chat_template.json")  # how a question is put is part of a model too
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointFolder:
    """The weights of a local checkpoint folder, as plain transformers loads them: see `weights_of`.

    Attributes:
        files: the weight files.
        index: the index that names them; None for a single file.
        file_of: tensor -> the file it stands in.

    Raises:
        BadInput: no checkpoint, or weights that transformers would not load or that mean two things.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hashes: dict[str, tuple[tuple[int, ...], str]] = {}
        if not (path / CONFIG).is_file():
            raise BadInput(f"{path}: no config.json; expected a checkpoint folder as `save_pretrained` writes it")
        weights = weights_of(path)
        self.files, self.index, self.file_of = weights.files, weights.index, weights.file_of

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


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
