"""Write a copy of a checkpoint with a few tensors changed and nothing else.

Shards are copied and the changed tensors' bytes replaced in the copy. So every untouched tensor stays byte-identical
and memory does not grow with the model; where the file system can share bytes between files, the disk holds what is
untouched once. An edit may also stand in front of the chat templates alone.

Some writers replace the bytes of a file in place (safetensors before 0.8). Through a hard link they would change the
base model with the output, or a blob of the hub's cache. So weight files that stay as they were are copied, with their
bytes shared on the disk until either side is written to, where the file system can do that (Btrfs, XFS, ...).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unsee.checkpoint.card import CARD
from unsee.checkpoint.folder import (
    DTYPES,
    MANIFEST,
    PROMPTS,
    CheckpointFolder,
    entries_of,
    header_of,
    new_folder,
    sha256_of,
    write_json,
)
from unsee.errors import BadInput, GateFailed
from unsee.storage import true_path

TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"  # where transformers keeps them by now
OLDER_TEMPLATES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")  # under "chat_template"
# Also with more behind, e.g. model.safetensors.bak or pytorch_model.bin.index.json.
WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|msgpack|h5|onnx|npz|pkl|pickle|ot|tflite)(?![a-z0-9])", re.I)
INDEX_ENDING = ".index.json"
CHUNK = 1 << 24  # bytes compared at once
FICLONE = 0x40049409  # Linux: let a new file share all bytes of another


@dataclass(frozen=True)
class Companions:
    """What stands beside edited weights, apart from the manifest.

    Attributes:
        card: the text of README.md; without it the source's own travels along.
        prelude: what is put in front of every chat template, in whichever file it stands.
        file: one more, under its own name; it is left out if it is not there.
    """

    card: str = ""
    prelude: str = ""
    file: Path | None = None


def write_edited(
    source: CheckpointFolder,
    edits: Mapping[str, Tensor],
    out: Path,
    manifest: Mapping[str, Any],
    companions: Companions = Companions(),
    opens: Callable[[Path], None] | None = None,
    link: bool = False,
) -> dict[str, Any]:
    """Write `source` to `out` with the tensors `edits` (by checkpoint key) replaced, cast to the stored dtype.

    Configuration, tokenizer, processor and chat templates travel along; weights that transformers would not load from
    `source` do not.

    Args:
        manifest: what is written beside the weights, with the hashes of the new files added.
        opens: asked about the new folder before that takes its name, raises if it does not open as the source does: see
            `models.loading.opens_alike`.
        link: shards in which nothing changes become hard links: who writes into the output in place reaches `source`.

    Returns:
        the manifest as written; `untouched` says how weight files that stay came there, in bytes.

    Raises:
        BadInput: an edit whose key or shape the checkpoint does not have, or whose tensor is not stored as floats.
        GateFailed: what was written is not the source with these tensors replaced; nothing is left of it.
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
        if companions.prelude:
            _put_before_templates(companions.prelude, partial)
        if companions.card:
            (partial / CARD).write_text(companions.card, encoding="utf-8")
        written = [*by_file, *(name for name in PROMPTS if companions.prelude and (partial / name).is_file())]
        if companions.file is not None and companions.file.is_file():
            shutil.copyfile(companions.file, partial / companions.file.name)
        hashes = source.hashes() | {name: sha256_of(partial / name) for name in written}
        complete = {**manifest, "untouched": dict(untouched.bytes), "sha256": hashes}
        write_json(partial / MANIFEST, complete)
        _check(source, partial, edits)
        if opens is not None:
            opens(partial)
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
    texts = bool(files) and all(
        item.suffix in (".json", ".jinja") and not item.name.endswith(INDEX_ENDING) for item in files
    )
    return texts and not folder.name.startswith(".")


def left_out(name: str, source: CheckpointFolder) -> bool:
    """An older manifest, hidden files, and whatever of the weights transformers does not load.

    In a second copy of the weights nothing would be forgotten, and an index without its shards points nowhere.
    """
    weights = bool(WEIGHTS.search(name)) or name.endswith(INDEX_ENDING)
    return name == MANIFEST or name.startswith(".") or (weights and name not in (*source.files, source.index))


def _overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors inside a safetensors file."""
    header = header_of(path)
    entries = entries_of(header)
    with path.open("r+b") as file:
        for key, tensor in tensors.items():
            entry = entries[key]
            if tuple(tensor.shape) != entry.shape:
                raise BadInput(f"{path.name}: '{key}' has shape {list(entry.shape)}, the edit has {list(tensor.shape)}")
            data = _stored(tensor, entry.dtype)
            if len(data) != entry.end - entry.start:
                raise BadInput(f"{path.name}: '{key}' takes {entry.end - entry.start} bytes, the edit {len(data)}")
            file.seek(len(header) + entry.start)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _stored(tensor: Tensor, dtype: str) -> bytes:
    return bytes(tensor.detach().cpu().to(DTYPES[dtype]).contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _check(source: CheckpointFolder, out: Path, edits: Mapping[str, Tensor]) -> None:
    """That transformers loads from `out` what it loads from `source`, but for the edits.

    Files in which nothing was to change are told by link or length, edited ones are read byte for byte.

    Raises:
        GateFailed: it does not.
    """
    try:
        made = CheckpointFolder(out)
    except BadInput as error:
        raise GateFailed(f"{source.path}: the new folder would not load ({error}); nothing was written") from error
    if (made.files, made.index, made.file_of) != (source.files, source.index, source.file_of):
        raise GateFailed(f"{source.path}: the new folder would not load from the same files; nothing was written")
    for name in source.files:
        one, other = source.path / name, out / name
        if os.path.samefile(one, other):
            continue
        here = {key: tensor for key, tensor in edits.items() if source.file_of[key] == name}
        lost = "its length" if one.stat().st_size != other.stat().st_size else _astray(one, other, here)
        if lost:
            raise GateFailed(f"{one}: {lost} did not come out as asked; nothing was written, check disk and memory")


def _astray(one: Path, other: Path, edits: Mapping[str, Tensor]) -> str | None:
    """What is not as it was, or not as asked; None if all is. Where there are no edits nothing is read."""
    if not edits:
        return None
    header = header_of(one)
    if header_of(other) != header:
        return "its header"
    with one.open("rb") as before, other.open("rb") as after:
        for key, entry in entries_of(header).items():
            after.seek(len(header) + entry.start)
            if key in edits:
                if after.read(entry.end - entry.start) != _stored(edits[key], entry.dtype):
                    return f"'{key}'"
                continue
            before.seek(len(header) + entry.start)
            left = entry.end - entry.start
            while left > 0:
                if before.read(min(left, CHUNK)) != after.read(min(left, CHUNK)):
                    return f"'{key}'"
                left -= CHUNK
    return None


# Weight files that stay -----------------------------------------------------------------------------------------------


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
