"""Ways in which weights stand in a checkpoint folder, and what plain transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from unsee.checkpoint.apply_patch import carry_patches
from unsee.checkpoint.folder import INDEX, SINGLE, CheckpointFolder, sha256_of
from unsee.checkpoint.patch import make_patch
from unsee.checkpoint.write import write_edited
from unsee.models.loading import load_visual, opens_alike

Tensors = dict[str, Tensor]


def stored(folder: Path) -> Tensors:
    return load_file(folder / SINGLE)


def put(folder: Path, tensors: Mapping[str, Tensor], name: str = SINGLE) -> None:
    save_file({key: t.contiguous().clone() for key, t in tensors.items()}, folder / name, {"format": "pt"})


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Rewrite the single file."""
    tensors = stored(folder)
    edit(tensors)
    put(folder, tensors)


def configure(folder: Path, **about: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | about))


def shards_beside(folder: Path, tensors: Mapping[str, Tensor], count: int = 3, name: str = INDEX) -> dict[str, str]:
    """Shards with an index, whatever else lies there."""
    places: dict[str, str] = {}
    for i in range(count):
        part = dict(list(tensors.items())[i::count])
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        put(folder, part, file)
        places |= dict.fromkeys(part, file)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def split(folder: Path, count: int = 3) -> None:
    """Shards instead of the single file."""
    shards_beside(folder, stored(folder), count)
    (folder / SINGLE).unlink()


def other(tensors: Mapping[str, Tensor]) -> Tensors:
    return {key: tensor + 1 for key, tensor in tensors.items()}


def adapter(folder: Path) -> None:
    about = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def plain(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Values by parameter name, and the load report; tied parameters are in it under both names."""
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    return {name: t.detach().clone() for name, t in model.state_dict().items()}, report


def check_edit(folder: Path, out: Path, patched: bool = True) -> None:
    """Edit one parameter: plain transformers loads the edited value and else what it loaded before.

    Hashes speak of the files that it loads, and so do patches, which are made and applied if `patched`.

    Raises:
        BadInput: the folder is refused.
    """
    before = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    loaded = load_visual(str(folder))
    name = next(n for n in loaded.visual.named_parameters() if n.endswith(("linear_1.weight", "mlp.0.weight")))
    parameter = loaded.visual.named_parameters()[name].detach()
    edits = loaded.stored({name: (parameter * 2 + 1)})
    manifest = write_edited(loaded.folder, edits, out, {}, opens=partial(opens_alike, loaded))
    assert {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()} == before

    (old, old_report), (new, new_report) = plain(folder), plain(out)
    assert old_report == new_report
    assert not old_report["missing_keys"]
    assert {key for key, value in new.items() if not torch.equal(value, old[key])} == {name}
    [precision] = loaded.folder.dtypes(edits).values()
    assert torch.equal(new[name], (parameter * 2 + 1).to(precision).to(new[name].dtype))

    written = CheckpointFolder(out)
    weights = {item.name for item in out.iterdir() if ".safetensors" in item.name}
    assert weights == {*written.files, *([written.index] if written.index else [])}
    assert {n for n in manifest["sha256"] if n.endswith(".safetensors")} == set(written.files)
    assert all(digest == sha256_of(out / n) for n, digest in manifest["sha256"].items())
    if not patched:
        return
    patch = out.parent / f"{out.name}.patch"
    assert make_patch(folder, out, patch)["tensors"].keys() == edits.keys()
    carry_patches(folder, [patch], out.parent / f"{out.name}-there")
    carry_patches(out, [patch], out.parent / f"{out.name}-back", back=True)
    for there, expected in (("there", new), ("back", old)):
        found, report = plain(out.parent / f"{out.name}-{there}")
        assert report == old_report
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
