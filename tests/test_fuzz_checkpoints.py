"""Checkpoint folders by chance: what we edit is what transformers loads, or the folder is refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import NewModel
from layouts import adapter, change, check_edit, configure, other, put, shards_beside, split, stored

from unsee.checkpoint.folder import INDEX, SINGLE
from unsee.errors import BadInput
from unsee.models.loading import load_model

FOLDERS, PARTS = 60, 2  # of 240 none failed
Twist = Callable[[Path, random.Random], object]


def rename(old: str, new: str) -> Twist:
    """All tensors whose names begin so."""

    def twist(folder: Path, _: random.Random) -> None:
        names = {key: new + key.removeprefix(old) if key.startswith(old) else key for key in stored(folder)}
        put(folder, {names[key]: tensor for key, tensor in stored(folder).items()})

    return twist


def doubled(old: str, new: str, equal: bool) -> Twist:
    """One tensor under another name, too."""

    def twist(folder: Path, draw: random.Random) -> None:
        tensors = stored(folder)
        if keys := [key for key in tensors if key.startswith(old)]:
            key = draw.choice(keys)
            put(folder, {**tensors, new + key.removeprefix(old): tensors[key] + (not equal)})

    return twist


def of_other_types(folder: Path, draw: random.Random) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    put(folder, {key: tensor.to(draw.choice(kinds)) for key, tensor in stored(folder).items()})


def without_one(folder: Path, draw: random.Random) -> None:
    change(folder, lambda tensors: tensors.pop(draw.choice(list(tensors))))


def with_more(folder: Path, draw: random.Random) -> None:
    name = draw.choice(["extra.weight", "rotary_emb.inv_freq", "lm_head.lora_A.weight", "lm_head.base_layer.weight"])
    change(folder, lambda tensors: tensors.update({name: torch.ones(2)}))


def with_head(folder: Path, draw: random.Random) -> None:
    change(
        folder,
        lambda t: (
            t.update({"lm_head.weight": t[key] + draw.choice([0, 0, 1])})
            if (key := "model.embed_tokens.weight") in t
            else None
        ),
    )


def beside(*names: str) -> Twist:
    def twist(folder: Path, draw: random.Random) -> None:
        name = draw.choice(names)
        if name.endswith((".json", ".txt")):
            (folder / name).write_text("{}")
        else:
            put(folder, other(stored(folder)), name)

    return twist


# Of the tensors in the single file, which come first; then files around it.
TENSORS: tuple[Twist, ...] = (
    rename("vision_tower.", "vision_tower.vision_model."),
    rename("vision_tower.", "model.vision_tower."),
    rename("language_model.model.", "model.language_model."),
    rename("multi_modal_projector.", "model.multi_modal_projector."),
    rename("visual.", "model.visual."),
    rename("model.layers.", "model.language_model.layers."),
    rename("", "model."),
    rename("", "module."),
    rename("", "base_model.model."),
    doubled("vision_tower.", "vision_tower.vision_model.", equal=False),
    doubled("multi_modal_projector.", "model.multi_modal_projector.", equal=True),
    doubled("language_model.model.", "model.language_model.", equal=False),
    doubled("visual.", "model.visual.", equal=True),
    doubled("", "module.", equal=False),
    of_other_types,
    with_head,
    with_more,
    without_one,
)
FILES: tuple[Twist, ...] = (
    lambda folder, draw: split(folder, draw.randint(1, 4)),
    lambda folder, draw: shards_beside(folder, other(stored(folder)), draw.randint(1, 4)),
    lambda folder, _: (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(stored(folder), "model-00001-of-00009.safetensors")})
    ),
    lambda folder, _: (folder / INDEX).write_text("{"),
    lambda folder, _: adapter(folder),
    beside("model.fp16.safetensors", "adapter_model.safetensors", "consolidated.safetensors", "model.safetensors.bak"),
    beside("pytorch_model.bin.index.json", "notes.txt", "trainer_state.json"),
    beside("shard-00001-model-00001-of-00001.safetensors"),
)


def named_by_config(folder: Path, draw: random.Random) -> None:
    if (folder / SINGLE).is_file():
        name = draw.choice(["mine.safetensors", "gone.safetensors"])
        put(folder, stored(folder), "mine.safetensors")
        put(folder, other(stored(folder)))
        configure(folder, transformers_weights=name)


def in_two_shards(folder: Path, draw: random.Random) -> None:
    shards = sorted(folder.glob("model-0*"))
    if len(shards) > 1:
        shutil.copyfile(shards[0], shards[1])


LAST: tuple[Twist, ...] = (named_by_config, in_two_shards)


@pytest.fixture(scope="module")
def models(new_model: NewModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for family, tied in (("llava", False), ("qwen2_vl", False), ("qwen2_vl", True)):
        model, processor = new_model(family)
        if tied:
            model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
            model.tie_weights()
        folders.append(tmp_path_factory.mktemp("fuzz") / "model")
        for part in (model, processor):
            part.save_pretrained(folders[-1])
    return folders


@pytest.mark.parametrize("part", range(PARTS))
def test_what_we_edit_is_what_transformers_loads(models: list[Path], tmp_path: Path, part: int) -> None:
    refused: dict[int, str] = {}
    for seed in range(part, FOLDERS, PARTS):
        draw = random.Random(seed)
        folder = shutil.copytree(draw.choice(models), tmp_path / f"{seed}")
        twists = [
            *draw.sample(TENSORS, draw.choice([0, 1, 1, 2])),
            *draw.sample(FILES, draw.choice([0, 0, 1, 2])),
            *draw.sample(LAST, draw.choice([0, 0, 0, 1])),
        ]
        for twist in twists:
            if (folder / SINGLE).is_file() or twist in LAST:
                twist(folder, draw)
        before = {item.name: item.read_bytes() for item in folder.iterdir()}
        try:
            check_edit(folder, tmp_path / f"{seed}-out", patched=seed % 5 == 0)
        except BadInput as error:
            refused[seed] = str(error)
        except Exception as error:
            raise AssertionError(f"folder {seed}: {error}") from error
        if seed in refused:
            assert "\n" not in refused[seed], seed
            assert not (tmp_path / f"{seed}-out").exists(), seed
            with pytest.raises(BadInput):
                load_model(str(folder))
        assert {item.name: item.read_bytes() for item in folder.iterdir()} == before, seed
        shutil.rmtree(folder)
    assert 5 < len(refused) < FOLDERS / PARTS - 5, refused  # chance makes enough of both kinds
