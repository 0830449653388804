"""What tests of the command line begin with: photos of three subjects, a model, and commands on both."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unsee.cli import main
from unsee.data.sources import load_data
from unsee.lab.pocket import Shape
from unsee.lab.pocket_llava import PocketLlava

SUBJECTS = ("anna", "bob-dylan", "cleo_m")
UNLEARN = "unlearn --model model --data photos --forget anna --method cvf --set steps=3 --no-gate --out out"
EVALUATE = "evaluate --model vanilla=model --data photos --forget anna --out out"
MOMENTS = "moments fit --model model --data photos --out out"


def photos_and_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three subjects, an untrained pocket model that knows their words, and something of the user's own."""
    place = tmp_path_factory.mktemp("place")
    for subject in SUBJECTS:
        (place / "photos" / subject).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng([*subject.encode(), number]).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / "photos" / subject / f"{number}.png")
    torch.manual_seed(0)
    shape = Shape(vision_width=16, language_width=16, vision_blocks=3, language_blocks=1, heads=2)
    for part in PocketLlava(shape).make(load_data(str(place / "photos"))):
        part.save_pretrained(place / "model")
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("not unsee's")
    return place


def copied(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, as the working directory."""
    shutil.copytree(original, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def tree(folder: Path) -> dict[str, str]:
    """Every folder and file inside, with its content's hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def run(arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments.split())
    return int(ending.value.code or 0)


def lose_a_tensor() -> None:
    tensors = load_file("model/model.safetensors")
    del tensors["multi_modal_projector.linear_1.bias"]
    save_file(tensors, "model/model.safetensors", {"format": "pt"})


def made_here(folder: str) -> None:
    """What unsee leaves in a checkpoint that it made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "unsee.json").write_text("{}")
