"""Which files of a checkpoint folder plain transformers loads, and which tensors stand in them.

The one place that decides it, by the rules of `from_pretrained` for a folder and nothing else: the file that
config.json names as `transformers_weights`; else `model.safetensors`, whatever lies beside it; else the shards of the
index. Of a shard every tensor is loaded, named in the index or not. What means two things is refused.

A safetensors file is 8 bytes header length, a JSON header, then the tensors without gaps.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unsee.errors import BadInput

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # of torch.distributed


@dataclass(frozen=True)
class Weights:
    """What of a folder is loaded.

    Attributes:
        files: the weight files.
        index: the index that names them; None for a single file.
        file_of: tensor -> the file it stands in.
    """

    files: tuple[str, ...]
    index: str | None
    file_of: dict[str, str]


def weights_of(path: Path) -> Weights:
    """What plain transformers loads from the folder `path`; nothing but headers is read.

    Raises:
        BadInput: no safetensors weights, a damaged file, an index that does not fit its files, or weights that mean
            two things: a tensor in two shards, an adapter beside full weights, shards of torch.distributed.
    """
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
            return Weights((name,), None, dict.fromkeys(list(file.keys()), name))
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
    return Weights(files, name, file_of)


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
