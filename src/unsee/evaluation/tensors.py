"""Which tensors two checkpoints share bit for bit: the proof that a language model was left alone."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from unsee.models.loading import Loaded


class Difference(TypedDict):
    """Counts of stored tensors, and how many of them differ in any bit."""

    tensors: int
    changed: int
    language_tensors: int
    language_changed: int


def difference(base: Loaded, other: Loaded) -> Difference | None:
    """Compare every stored tensor of two checkpoints, one at a time.

    Whatever is neither vision tower nor projector counts as language model.

    Returns:
        None if the two do not hold the same tensors (another architecture or vocabulary).
    """
    keys = sorted(base.folder.file_of)
    if keys != sorted(other.folder.file_of):
        return None
    changed = {key for key in keys if not _identical(_read(base, key), _read(other, key))}
    language = set(keys) - set(base.checkpoint_keys(base.visual.named_parameters()).values())
    return {
        "tensors": len(keys),
        "changed": len(changed),
        "language_tensors": len(language),
        "language_changed": len(language & changed),
    }


def _read(loaded: Loaded, key: str) -> Tensor:
    [(_, tensor)] = loaded.folder.read([key])
    return tensor


def _identical(one: Tensor, two: Tensor) -> bool:
    """Same type, shape and bits; -0.0 differs from 0.0, and a NaN equals itself."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(one.flatten().view(torch.uint8), two.flatten().view(torch.uint8))
