"""Pictures made hard to recognise before any processor sees them, so that it works for every family.

VGID (arXiv 2606.00105) publishes neither kind nor scale of its noise: kinds and units are our choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from unsee.data.examples import ImageSource

Noise = Literal["gaussian", "blur", "shuffle", "mask"]
CELLS = 8  # per side, of `shuffle` and `mask`
BLUR = 1 / 16  # of the shorter side; what a scale of 1 means for `blur`
LARGEST: dict[str, float] = {"gaussian": math.inf, "blur": math.inf, "shuffle": 1.0, "mask": 1.0}


@dataclass(frozen=True)
class NoisyPicture:
    """A picture under noise; the same seed always gives the same pixels, whatever was drawn elsewhere.

    Attributes:
        scale: 0 is the picture itself. `gaussian`: standard deviation of what is added to every value, in units of the
            standard deviation of the picture's own values, cut to 0 ... 255. `blur`: standard deviation of the kernel,
            in sixteenths of the shorter side; nothing in it is random. `shuffle`: share of the cells of an 8 x 8 grid
            that trade places (a rim too narrow for the grid stays). `mask`: share of such cells painted in the
            picture's mean colour.
    """

    source: ImageSource
    noise: Noise
    scale: float
    seed: int

    @property
    def label(self) -> str:
        return f"{self.source.label} ({self.noise} noise of {self.scale:g}, seed {self.seed})"

    def open(self) -> Image.Image:
        picture = self.source.open()
        if not self.scale:
            return picture
        if self.noise == "blur":
            return picture.filter(ImageFilter.GaussianBlur(self.scale * BLUR * min(picture.size)))
        change = {"gaussian": _gaussian, "shuffle": _shuffled, "mask": _masked}[self.noise]
        pixels = np.asarray(picture, dtype=np.float32)
        noisy = change(pixels, self.scale, np.random.default_rng(self.seed))
        return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))


Pixels = NDArray[np.float32]  # [height, width, 3], 0 ... 255


def _gaussian(pixels: Pixels, scale: float, random: np.random.Generator) -> Pixels:
    noisy: Pixels = pixels + scale * pixels.std() * random.standard_normal(pixels.shape, dtype=np.float32)
    return noisy


def _shuffled(pixels: Pixels, share: float, random: np.random.Generator) -> Pixels:
    """Every chosen cell takes the place of another one, as in a ring."""
    height, width, _ = pixels.shape
    rows, columns = min(CELLS, height), min(CELLS, width)
    tall, wide = height // rows, width // columns
    inner = pixels[: rows * tall, : columns * wide]
    cells = inner.reshape(rows, tall, columns, wide, 3).swapaxes(1, 2).reshape(rows * columns, tall, wide, 3)
    chosen = _choose(len(cells), share, random)
    cells[np.roll(chosen, 1)] = cells[chosen]
    noisy: Pixels = pixels.copy()
    noisy[: rows * tall, : columns * wide] = (
        cells.reshape(rows, columns, tall, wide, 3).swapaxes(1, 2).reshape(inner.shape)
    )
    return noisy


def _masked(pixels: Pixels, share: float, random: np.random.Generator) -> Pixels:
    height, width, _ = pixels.shape
    hidden = np.zeros(CELLS**2, dtype=bool)
    hidden[_choose(len(hidden), share, random)] = True
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    where = hidden.reshape(CELLS, CELLS)[rows][:, columns]
    return np.where(where[..., None], pixels.mean((0, 1)), pixels)


def _choose(count: int, share: float, random: np.random.Generator) -> NDArray[np.int64]:
    """A share of `count` places, in random order."""
    return random.permutation(count)[: round(share * count)]
