"""What stands beside scores: sample pictures, a map of visual features, and which tensors two checkpoints share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from torch import Tensor

from unsee.checkpoint.folder import new_folder, write_json
from unsee.data.examples import ImageSource, Split, UnlearnData
from unsee.methods.parts.features import entering
from unsee.models.loading import Loaded

SHOWN_FORGET, SHOWN_RETAIN, SHOWN_STRANGERS = 6, 4, 2  # pictures in the report, one per subject
MAPPED = 4  # pictures per subject on the map
LARGEST_SIDE = 192  # pixels of a shown picture


def write_pictures(data: UnlearnData, forget: Sequence[str], out: Path) -> None:
    """Copies of a few test pictures, one per subject, with an index that names them."""
    chosen = [
        *(("forget", *item) for item in _one_each(data.test.of(forget), SHOWN_FORGET)),
        *(("retain", *item) for item in _one_each(data.test.without(forget), SHOWN_RETAIN)),
        *(("strangers", *item) for item in _one_each(data.strangers, SHOWN_STRANGERS)),
    ]
    with new_folder(out / "pictures") as folder:
        index = []
        for number, (part, subject, source) in enumerate(chosen):
            picture = source.open()
            picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
            picture.save(folder / f"{number:02d}.png")
            index.append({"file": f"{number:02d}.png", "label": source.label, "subject": subject, "set": part})
        write_json(folder / "index.json", index)


def _one_each(split: Split, subjects: int) -> list[tuple[str, ImageSource]]:
    return [(s, next(iter(split.of([s]).pictures))) for s in split.pictured.subjects[:subjects]]


class FeatureMap:
    """Two-dimensional map of visual features: one principal-component projection for all models.

    The axes are fitted on the first model's features (the vanilla one); others are projected onto the same axes.
    """

    def __init__(self, data: UnlearnData, forget: Sequence[str]) -> None:
        forgotten = set(forget)
        kept = data.test.pictured.first_pictures(MAPPED).pictures
        self._images = list(kept)
        self._points = [
            {"subject": group[0].subject, "set": "forget" if group[0].subject in forgotten else "retain"}
            for group in kept.values()
        ]
        self._axes: tuple[Tensor, Tensor] | None = None
        self._places: dict[str, list[list[float]]] = {}

    def add(self, role: str, loaded: Loaded) -> None:
        if len(self._images) < 3:
            return
        x = pooled(loaded, self._images, f"features of {role}")
        if self._axes is None or self._axes[1].shape[0] != x.shape[1]:
            centre = x.mean(0)
            self._axes = centre, torch.linalg.svd(x - centre, full_matrices=False)[2][:2].T
        centre, axes = self._axes
        self._places[role] = ((x - centre) @ axes).tolist()

    def write(self, out: Path) -> None:
        content: Mapping[str, Any] = {"roles": self._places, "points": self._points}
        write_json(out / "features.json", content)


@torch.no_grad()
def pooled(loaded: Loaded, images: Sequence[ImageSource], what: str) -> Tensor:
    """Mean visual token of every picture [pictures, width of the language model], double precision.

    Args:
        what: is done, for the progress bar.
    """
    visual = loaded.visual
    parts = [visual.leave(visual.run(entered)).mean() for entered in entering(visual, loaded.batcher, images, what)]
    return torch.cat(parts).double()


class TensorCounts(TypedDict):
    """Counts of stored tensors, and how many of them differ in any bit."""

    tensors: int
    changed: int
    language_tensors: int
    language_changed: int


def difference(base: Loaded, other: Loaded) -> TensorCounts | None:
    """Compare every stored tensor of two checkpoints, one at a time: the proof that a language model was left alone.

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
