"""Checkpoint folders on disk: read chosen tensors, write a copy with a few tensors changed and nothing else.

Only safetensors is read; pickle never is. An edited copy is made by copying the files and overwriting the changed
tensors' bytes in place, so every untouched tensor stays byte-identical and memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unsee.errors import BadInput

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MANIFEST = "unsee.json"


class CheckpointFolder:
    """The weights of a local checkpoint folder.

    Raises:
        BadInput: no safetensors weights, or an index that names a missing file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.json").is_file():
            raise BadInput(f"{path}: no config.json; expected a checkpoint folder as `save_pretrained` writes it")
        if (path / INDEX).is_file():
            try:
                self.file_of: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise BadInput(f"{path / INDEX}: not a safetensors index ({error}); download it again") from error
        elif (path / SINGLE).is_file():
            with self._open(SINGLE) as file:
                self.file_of = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise BadInput(f"{path}: no {SINGLE} or {INDEX}; convert the weights to safetensors (pickle is not read)")
        for name in self.files:
            if not (path / name).is_file():
                raise BadInput(f"{path / name}: named in {INDEX} but missing; download the checkpoint again")
            with self._open(name):
                pass  # a damaged file is named here, before anything is done with the others

    @property
    def files(self) -> tuple[str, ...]:
        """The weight files, in order."""
        return tuple(dict.fromkeys(self.file_of.values()))

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, each file opened once, nothing else read."""
        wanted: dict[str, list[str]] = {}
        for key in keys:
            wanted.setdefault(self.file_of[key], []).append(key)
        for name, group in wanted.items():
            with self._open(name) as file:
                for key in group:
                    yield key, file.get_tensor(key)

    def dtypes(self, keys: Iterable[str]) -> dict[str, torch.dtype]:
        """The stored dtype of each named tensor.

        Raises:
            BadInput: one that no edited float fits in, e.g. of a quantised model.
        """
        found = {}
        for key in keys:
            with self._open(self.file_of[key]) as file:
                stored = file.get_slice(key).get_dtype()
            if stored not in _DTYPES:
                raise BadInput(f"{self.path}: tensor '{key}' is stored as {stored}; only float weights can be edited")
            found[key] = _DTYPES[stored]
        return found

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every weight file and of config.json."""
        return {name: sha256_of(self.path / name) for name in ("config.json", *self.files)}

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self.path / name, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise BadInput(f"{self.path / name}: not a readable safetensors file ({error})") from error


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
        manifest: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(f"{file}: not valid JSON ({error}); delete it if the checkpoint was made elsewhere") from error
    return manifest


def write_edited(
    source: CheckpointFolder, edits: Mapping[str, Tensor], out: Path, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Copy `source` to `out` with the tensors `edits` (by checkpoint key) replaced, cast to the stored dtype.

    Returns:
        the manifest with the hashes of the new files, as written beside them.

    Raises:
        BadInput: an edit whose key or shape the checkpoint does not have.
    """
    with new_folder(out) as partial:
        for item in sorted(source.path.iterdir()):
            if item.is_file() and not _left_out(item.name, source):
                shutil.copyfile(item, partial / item.name)
        by_file: dict[str, dict[str, Tensor]] = {}
        for key, tensor in edits.items():
            if key not in source.file_of:
                raise BadInput(f"{source.path}: holds no tensor '{key}'")
            by_file.setdefault(source.file_of[key], {})[key] = tensor
        source.dtypes(edits)
        for name, group in by_file.items():
            _overwrite(partial / name, group)
        complete = {**manifest, "sha256": CheckpointFolder(partial).hashes()}
        write_json(partial / MANIFEST, complete)
    return complete


def _left_out(name: str, source: CheckpointFolder) -> bool:
    """An older manifest, hidden files, and any second copy of the weights: in that one nothing would be forgotten."""
    weights = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx", ".index.json")
    return name == MANIFEST or name.startswith(".") or (name.endswith(weights) and name not in (*source.files, INDEX))


def _overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors inside a safetensors file: 8 bytes header length, JSON header, then the data."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for key, tensor in tensors.items():
            entry = header[key]
            if list(tensor.shape) != entry["shape"]:
                raise BadInput(f"{path.name}: '{key}' has shape {entry['shape']}, the edit has {list(tensor.shape)}")
            stored = tensor.detach().cpu().to(_DTYPES[entry["dtype"]]).contiguous()
            data = stored.flatten().view(torch.uint8).numpy().tobytes()
            start, end = entry["data_offsets"]
            if len(data) != end - start:
                raise BadInput(f"{path.name}: '{key}' takes {end - start} bytes, the edit {len(data)}")
            file.seek(8 + length + start)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name only if the block succeeds; replaces an older `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        retired = None
        if out.exists():
            retired = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.old"
            os.replace(out, retired)
        os.replace(partial, out)
        if retired is not None and retired.is_dir() and not retired.is_symlink():
            shutil.rmtree(retired)
        elif retired is not None:
            retired.unlink()
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename: readers never see half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
