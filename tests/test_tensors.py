"""The proof that a language model was left alone."""

from __future__ import annotations

from pathlib import Path

import torch

from unsee.checkpoint.folder import CheckpointFolder
from unsee.checkpoint.write import write_edited
from unsee.evaluation.evidence import difference
from unsee.models.loading import load_model


def edited(source: Path, out: Path, key: str) -> Path:
    folder = CheckpointFolder(source)
    [(_, tensor)] = folder.read([key])
    write_edited(folder, {key: tensor + 1}, out, {})
    return out


def test_difference_tells_visual_from_language_tensors(checkpoint: Path, tmp_path: Path) -> None:
    base = load_model(str(checkpoint))
    visual = next(k for k in base.folder.file_of if "multi_modal_projector" in k)
    language = next(k for k in base.folder.file_of if "language_model" in k)
    seen = difference(base, load_model(str(edited(checkpoint, tmp_path / "a", visual))))
    read = difference(base, load_model(str(edited(checkpoint, tmp_path / "b", language))))
    same = difference(base, base)
    assert seen is not None
    assert read is not None
    assert same is not None
    assert (same["changed"], same["language_changed"]) == (0, 0)
    assert (seen["changed"], seen["language_changed"]) == (1, 0)
    assert (read["changed"], read["language_changed"]) == (1, 1)
    assert 0 < seen["language_tensors"] < seen["tensors"]


def test_one_flipped_bit_is_seen(checkpoint: Path, tmp_path: Path) -> None:
    base = load_model(str(checkpoint))
    key = next(k for k in base.folder.file_of if "language_model" in k)
    [(_, tensor)] = base.folder.read([key])
    bits = tensor.clone().view(torch.int32)
    bits.view(-1)[0] ^= 1
    write_edited(base.folder, {key: bits.view(tensor.dtype)}, tmp_path / "out", {})
    found = difference(base, load_model(str(tmp_path / "out")))
    assert found is not None
    assert found["language_changed"] == 1


def test_checkpoints_with_other_tensors_are_not_compared(checkpoint: Path) -> None:
    base, other = load_model(str(checkpoint)), load_model(str(checkpoint))
    other.folder.file_of.popitem()
    assert difference(base, other) is None
