"""Checkpoint folders without a model, edits of them, and a patch from one to the other."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from unsee.checkpoint.folder import INDEX, CheckpointFolder, write_json
from unsee.checkpoint.patch import make_patch
from unsee.checkpoint.write import Companions, write_edited

SHAPES = {"a.weight": (48, 64), "b.weight": (64, 48), "b.bias": (64,), "c.weight": (4, 3, 5, 5), "d.weight": (32, 48)}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(folder: Path, tensors: dict[str, Tensor], shards: int = 1, **texts: str) -> Path:
    """A checkpoint folder without a model: what patches need to know."""
    folder.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(tensors)
        parts = [names[i::shards] for i in range(shards)]
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        for part, name in zip(parts, files, strict=True):
            save_file({key: tensors[key] for key in part}, folder / name, {"format": "pt"})
        mapped = {key: name for part, name in zip(parts, files, strict=True) for key in part}
        write_json(folder / INDEX, {"metadata": {}, "weight_map": mapped})
    for name, text in {"config.json": "{}", **texts}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def random_tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    new = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=new).mul(0.1).to(dtype) for key, shape in SHAPES.items()}


def edits_of(tensors: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """A dense edit, one of rank 2, one of a bias; `c` and `d` stay."""
    new = torch.Generator().manual_seed(seed)
    factors = torch.randn(64, 2, generator=new) @ torch.randn(2, 48, generator=new) * 1e-3
    return {
        "a.weight": tensors["a.weight"].float() + torch.randn(48, 64, generator=new) * 0.05,
        "b.weight": tensors["b.weight"].float() + factors,
        "b.bias": -tensors["b.bias"].float(),
    }


Pair = tuple[Path, Path]


def edited(before: Path, out: Path, seed: int = 1) -> Path:
    source = CheckpointFolder(before)
    manifest = {"kind": "unlearned", "method": "cvf", "paper": "ours", "seed": seed, "forget": ["anna"]}
    write_edited(source, edits_of(dict(source.read(source.file_of)), seed), out, manifest, Companions("# Edited\n"))
    return out


def edited_pair(tmp_path: Path) -> Pair:
    """A checkpoint and one edited from it; two shards."""
    before = written(tmp_path / "before", random_tensors(), shards=2, **{"chat_template.jinja": "{{ messages }}"})
    return before, edited(before, tmp_path / "after")


def patch_of_pair(pair: Pair, tmp_path: Path) -> Path:
    make_patch(*pair, tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"
