"""Pictures without labels, for `--set also_keep=FOLDER`: none that a lab model was taught or is asked about.

    .venv/bin/python benchmarks/unlabelled.py textures runs/textures
    .venv/bin/python benchmarks/unlabelled.py symbols runs/symbols

`textures` are stripes, checks, blots, slopes and noise in random colours: nothing a model of the lab knows. `symbols`
are emblems, shapes and digits as `world` has them, of another seed: other emblems with other names, other pictures.
"""

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from unsee.data.people import SIDE, SUPERSAMPLING
from unsee.data.world import make_emblems, make_things

Colour = tuple[int, int, int]
WIDE = SIDE * SUPERSAMPLING


def colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def stripes(rng: random.Random, image: Image.Image) -> None:
    pen, width, turn = ImageDraw.Draw(image), rng.uniform(8, 40), rng.uniform(0, math.pi)
    along, across = (math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))
    ink = colour(rng)
    for number in range(-20, 21, 2):
        x, y = (WIDE / 2 + number * width * part for part in across)
        ends = [(x + sign * 2 * WIDE * along[0], y + sign * 2 * WIDE * along[1]) for sign in (-1, 1)]
        pen.line(ends, fill=ink, width=round(width))


def checks(rng: random.Random, image: Image.Image) -> None:
    pen, side, ink = ImageDraw.Draw(image), rng.randrange(10, 48), colour(rng)
    for row in range(0, WIDE, side):
        for column in range(0, WIDE, side):
            if (row + column) // side % 2:
                pen.rectangle([column, row, column + side, row + side], fill=ink)


def blots(rng: random.Random, image: Image.Image) -> None:
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 14)):
        x, y, rx, ry = rng.uniform(0, WIDE), rng.uniform(0, WIDE), rng.uniform(5, 50), rng.uniform(5, 50)
        pen.ellipse([x - rx, y - ry, x + rx, y + ry], fill=colour(rng))


def lines(rng: random.Random, image: Image.Image) -> None:
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 12)):
        points = [(rng.uniform(0, WIDE), rng.uniform(0, WIDE)) for _ in range(rng.randint(2, 5))]
        pen.line(points, fill=colour(rng), width=rng.randrange(3, 16), joint="curve")


def noise(rng: random.Random, image: Image.Image) -> None:
    cells = rng.choice((4, 8, 16, 48))
    small = Image.frombytes("RGB", (cells, cells), rng.randbytes(3 * cells * cells))
    image.paste(small.resize(image.size, rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))))


KINDS: tuple[Callable[[random.Random, Image.Image], None], ...] = (stripes, checks, blots, lines, noise)


def texture(number: int, seed: int) -> Image.Image:
    rng = random.Random(f"{seed}/texture/{number}")
    image = Image.new("RGB", (WIDE, WIDE), colour(rng))
    for kind in rng.sample(KINDS, rng.randint(1, 2))[::-1]:
        kind(rng, image)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 8)))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("textures", "symbols"))
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--count", type=int, default=600, help="pictures")
    parser.add_argument("--seed", type=int, default=900, help="of no people or model")
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    if given.kind == "textures":
        made = [texture(number, given.seed) for number in range(given.count)]
    else:
        each = -(-given.count // 3)
        made = [thing.open() for thing in make_things(make_emblems(120, given.seed), each, "unlabelled", given.seed)]
    for number, image in enumerate(made):
        image.save(given.out / f"{number:04d}.png")
    print(f"{given.out}: {len(made)} pictures")


if __name__ == "__main__":
    main()
