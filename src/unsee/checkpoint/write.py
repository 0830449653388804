"""Write a copy of a checkpoint with a few tensors changed and nothing else.

Shards are copied and the changed tensors' bytes replaced in the copy. So every untouched tensor stays byte-identical
and memory does not grow with the model; where the file system can share bytes between files, the disk holds what is
untouched once (see `untouched.py`). An edit may also stand in front of the chat templates alone.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unsee.checkpoint.card import CARD
from unsee.checkpoint.folder import (
    DTYPES,
    INDEX,
    MANIFEST,
    PROMPTS,
    CheckpointFolder,
    new_folder,
    sha256_of,
    write_json,
)
from unsee.checkpoint.untouched import Untouched, copy
from unsee.errors import BadInput

TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"  # where transformers keeps them by now
OLDER_TEMPLATES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")  # under "chat_template"


def write_edited(
    source: CheckpointFolder,
    edits: Mapping[str, Tensor],
    out: Path,
    manifest: Mapping[str, Any],
    card: str = "",
    prelude: str = "",
    beside: Path | None = None,
    link: bool = False,
) -> dict[str, Any]:
    """Write `source` to `out` with the tensors `edits` (by checkpoint key) replaced, cast to the stored dtype.

    Configuration, tokenizer, processor and chat templates travel along; any second copy of the weights does not.

    Args:
        manifest: what is written beside the weights, with the hashes of the new files added.
        card: the text of README.md; without it the source's own travels along.
        prelude: what is put in front of every chat template, in whichever file it stands.
        beside: a file that is put beside the weights under its own name; one that is not there is left out.
        link: shards in which nothing changes become hard links: who writes into the output in place reaches `source`.

    Returns:
        the manifest as written; `untouched` says how weight files that stay came there, in bytes.

    Raises:
        BadInput: an edit whose key or shape the checkpoint does not have, or whose tensor is not stored as floats.
    """
    by_file: dict[str, dict[str, Tensor]] = {}
    for key, tensor in edits.items():
        if key not in source.file_of:
            raise BadInput(f"{source.path}: holds no tensor '{key}'")
        by_file.setdefault(source.file_of[key], {})[key] = tensor
    source.dtypes(edits)
    untouched = Untouched(link)
    with new_folder(out) as partial:
        for item in sorted(source.path.iterdir()):
            if item.is_dir() and only_texts(item):
                shutil.copytree(item, partial / item.name, copy_function=shutil.copyfile)
            elif item.is_file() and item.name in by_file:
                copy(item.resolve(), partial / item.name)
            elif item.is_file() and item.name in source.files:
                untouched.bring(item, partial / item.name)
            elif item.is_file() and not left_out(item.name, source):
                shutil.copyfile(item, partial / item.name)
        for name, group in by_file.items():
            _overwrite(partial / name, group)
        if prelude:
            _put_before_templates(prelude, partial)
        if card:
            (partial / CARD).write_text(card, encoding="utf-8")
        written = [*by_file, *(name for name in PROMPTS if prelude and (partial / name).is_file())]
        if beside is not None and beside.is_file():
            shutil.copyfile(beside, partial / beside.name)
        hashes = source.hashes() | {name: sha256_of(partial / name) for name in written}
        complete = {**manifest, "untouched": dict(untouched.bytes), "sha256": hashes}
        write_json(partial / MANIFEST, complete)
    return complete


def _put_before_templates(prelude: str, folder: Path) -> None:
    """Also before those of older files: one that were left out could be the one that some program reads."""

    def longer(template: Any) -> Any:
        if isinstance(template, str):
            return prelude + template
        if isinstance(template, dict):  # by name
            return {name: longer(text) for name, text in template.items()}
        return [{**one, "template": longer(one["template"])} for one in template]  # the same, as it was written once

    for file in (folder / TEMPLATE, *folder.glob(f"{TEMPLATES}/*.jinja")):
        if file.is_file():
            file.write_text(longer(file.read_text(encoding="utf-8")), encoding="utf-8")
    for file in map(folder.joinpath, OLDER_TEMPLATES):
        about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if about.get("chat_template"):
            write_json(file, {**about, "chat_template": longer(about["chat_template"])})


def only_texts(folder: Path) -> bool:
    """Whether a folder holds templates or settings and nothing else, e.g. `additional_chat_templates`."""
    files = [item for item in folder.rglob("*") if not item.is_dir()]
    texts = bool(files) and all(item.suffix in (".json", ".jinja") for item in files)
    return texts and not folder.name.startswith(".")


def left_out(name: str, source: CheckpointFolder) -> bool:
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
            stored = tensor.detach().cpu().to(DTYPES[entry["dtype"]]).contiguous()
            data = stored.flatten().view(torch.uint8).numpy().tobytes()
            start, end = entry["data_offsets"]
            if len(data) != end - start:
                raise BadInput(f"{path.name}: '{key}' takes {end - start} bytes, the edit {len(data)}")
            file.seek(8 + length + start)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
