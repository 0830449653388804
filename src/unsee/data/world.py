"""Generated people beside other things: named emblems, coloured shapes that can be counted, and drawn digits.

These are *bystanders*: a lab model learns them together with the people, but no edit is told of them. What they lose is
what forgetting a person does to pictures unlike any that was retained. The generator is ours; the emblems are nobody's.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from PIL import Image, ImageDraw, ImageEnhance

from unsee.data.examples import Example, Split, UnlearnData
from unsee.data.people import SIDE, SUPERSAMPLING, Colour, people_data
from unsee.errors import BadInput

Domain = Literal["emblem", "shapes", "digit"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
Outline = list[tuple[float, float]]  # points, in units of the thing's radius

COLOURS: dict[str, Colour] = {
    "red": (205, 45, 45),
    "blue": (50, 80, 205),
    "green": (45, 150, 70),
    "yellow": (230, 205, 60),
    "purple": (135, 65, 175),
    "orange": (235, 130, 35),
}
PAPER: list[Colour] = [(215, 215, 212), (200, 204, 210), (228, 222, 214)]
INK: list[Colour] = [(25, 25, 30), (30, 40, 125), (120, 25, 30)]  # of digits
BEGINNINGS = "bra cli dro fen gri hul jar kro lum mav nex ori pla qui rud sil tor ulv vex wim yon zet".split()
ENDINGS = "bo dax fi go lin mo nix pa rk sto va zu".split()
COUNTS = 4
KINDS = 5  # outlines and marks of emblems
CANDIDATES = 20  # draws per emblem in best-candidate sampling


def _regular(corners: int, inner: float = 1.0) -> Outline:
    """A regular polygon with a corner at the top; with `inner` below 1 a star."""
    turns = corners if inner == 1 else 2 * corners
    radii = [1.0 if i % 2 == 0 else inner for i in range(turns)] if inner != 1 else [1.0] * turns
    angles = [2 * math.pi * i / turns - math.pi / 2 for i in range(turns)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


SHAPES: dict[str, Outline] = {
    "circle": _regular(36),
    "triangle": _regular(3),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "star": _regular(5, 0.4),
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
}  # fmt: skip
STROKES: dict[str, list[Outline]] = {  # how a digit is written, from (-1, -1) at the top left to (1, 1)
    "0": [[(0.6 * math.cos(i * math.pi / 8), math.sin(i * math.pi / 8)) for i in range(17)]],
    "1": [[(-0.4, -0.6), (0.1, -1), (0.1, 1)]],
    "2": [[(-0.6, -0.6), (-0.3, -0.95), (0.3, -0.95), (0.6, -0.6), (0.5, -0.2), (-0.6, 1), (0.65, 1)]],
    "3": [[(-0.55, -0.8), (0, -1), (0.5, -0.75), (0.5, -0.3), (0, 0), (0.55, 0.3), (0.55, 0.75), (0, 1), (-0.6, 0.8)]],
    "4": [[(0.25, 1), (0.25, -1), (-0.65, 0.35), (0.7, 0.35)]],
    "5": [[(0.55, -1), (-0.45, -1), (-0.5, -0.1), (0.1, -0.2), (0.6, 0.2), (0.5, 0.8), (0, 1), (-0.6, 0.85)]],
    "6": [[(0.45, -0.95), (-0.2, -0.7), (-0.55, 0.1), (-0.5, 0.7), (0, 1), (0.5, 0.75), (0.5, 0.25), (0, 0),
           (-0.5, 0.3)]],
    "7": [[(-0.6, -1), (0.65, -1), (-0.1, 1)]],
    "8": [[(0, -0.05), (-0.5, -0.4), (-0.4, -0.85), (0, -1), (0.4, -0.85), (0.5, -0.4), (0, -0.05), (-0.6, 0.4),
           (-0.45, 0.85), (0, 1), (0.45, 0.85), (0.6, 0.4), (0, -0.05)]],
    "9": [[(0.5, -0.35), (0, -0.05), (-0.5, -0.3), (-0.5, -0.75), (0, -1), (0.5, -0.75), (0.5, 0), (0.3, 1)]],
}  # fmt: skip
OPTIONS: dict[str, tuple[str, ...]] = {  # of emblems: their names
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "count": tuple(str(number + 1) for number in range(COUNTS)),
    "digit": tuple(STROKES),
}
QUESTIONS: dict[str, str] = {
    "emblem": "Which emblem is this?",
    "shape": "What shape do you see?",
    "colour": "What color are the shapes?",
    "count": "How many shapes are there?",
    "digit": "Which digit is this?",
}


@dataclass(frozen=True)
class Emblem:
    """What stays the same in every picture of an emblem; shape and mark are numbers of `SHAPES`."""

    name: str
    field: str
    outline: int
    mark: int
    ink: str
    bar: str
    bars: int

    @staticmethod
    def draw(rng: random.Random, name: str) -> Emblem:
        field, ink, bar = rng.sample(list(COLOURS), 3)
        return Emblem(name, field, rng.randrange(KINDS), rng.randrange(KINDS), ink, bar, rng.randrange(4))

    def unlike(self, other: Emblem) -> int:
        """In how many ways the two differ; what is seen best counts twice."""
        return (
            2 * (self.field != other.field)
            + 2 * (self.ink != other.ink)
            + (self.outline != other.outline)
            + 2 * (self.mark != other.mark)
            + (self.bars != other.bars)
            + (self.bar != other.bar)
        )


@dataclass(frozen=True)
class Thing:
    """One picture of a bystander; `shot` decides its place, size, turn, light, paper, and which shapes there are.

    Attributes:
        of: an emblem, a digit, or None for shapes.
    """

    of: Emblem | str | None
    shot: str

    @property
    def domain(self) -> Domain:
        return "shapes" if self.of is None else "digit" if isinstance(self.of, str) else "emblem"

    @property
    def subject(self) -> str:
        """What its answers hang together by: the emblem, the digit, or the one picture of these shapes."""
        name = self.of.name if isinstance(self.of, Emblem) else self.of or self.shot
        return f"{self.domain}-{name}"

    @property
    def label(self) -> str:
        return f"{self.subject}/{self.shot}"

    def open(self) -> Image.Image:
        return _render(self).copy()

    def answers(self) -> dict[str, str]:
        """What is asked about the picture, and the true answers."""
        if isinstance(self.of, Emblem):
            return {"emblem": self.of.name}
        if self.of is not None:
            return {"digit": self.of}
        rng = self.rng("shapes")
        seen = {"shape": rng.choice(list(SHAPES)), "colour": rng.choice(list(COLOURS))}
        return seen | {"count": str(rng.randint(1, COUNTS))}

    def rng(self, what: str) -> random.Random:
        return random.Random(f"{self.subject}/{self.shot}/{what}")


@lru_cache(maxsize=16384)  # as many as portraits
def _render(thing: Thing) -> Image.Image:
    rng = thing.rng("pose")
    side = SIDE * SUPERSAMPLING
    image = Image.new("RGB", (side, side), rng.choice(PAPER))
    pen = ImageDraw.Draw(image)
    PAINTERS[thing.domain](thing, pen, rng, side)
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.12))


def _paint_emblem(thing: Thing, pen: ImageDraw.ImageDraw, rng: random.Random, side: int) -> None:
    emblem = thing.of
    assert isinstance(emblem, Emblem)
    outlines = list(SHAPES.values())
    x, y = (side * (0.5 + rng.uniform(-0.07, 0.07)) for _ in range(2))
    radius, turn = side * rng.uniform(0.38, 0.46), rng.uniform(-0.15, 0.15)
    outline = outlines[emblem.outline] if emblem.outline else _regular(6)
    _polygon(pen, outline, x, y, 1.12 * radius, turn, COLOURS[emblem.bar])
    _polygon(pen, outline, x, y, 0.95 * radius, turn, COLOURS[emblem.field])
    _polygon(pen, outlines[emblem.mark], x, y, 0.5 * radius, turn, COLOURS[emblem.ink])
    for i in range(emblem.bars):  # one dot for each, left to right
        place = (i - (emblem.bars - 1) / 2) * 0.34
        _polygon(pen, SHAPES["circle"], x + place * radius, y + 0.62 * radius, 0.12 * radius, 0, COLOURS[emblem.bar])


def _paint_shapes(thing: Thing, pen: ImageDraw.ImageDraw, rng: random.Random, side: int) -> None:
    seen = thing.answers()
    cells = rng.sample([(x, y) for x in (0.27, 0.73) for y in (0.27, 0.73)], int(seen["count"]))
    for x, y in cells:
        size, turn = side * rng.uniform(0.18, 0.21), rng.uniform(-0.1, 0.1)
        left, top = (side * (place + rng.uniform(-0.02, 0.02)) for place in (x, y))
        _polygon(pen, SHAPES[seen["shape"]], left, top, size, turn, COLOURS[seen["colour"]])


def _paint_digit(thing: Thing, pen: ImageDraw.ImageDraw, rng: random.Random, side: int) -> None:
    x, y = (side * (0.5 + rng.uniform(-0.03, 0.03)) for _ in range(2))
    size, turn, width = side * rng.uniform(0.34, 0.4), rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.14)
    colour = rng.choice(INK)
    weight = round(side * width)
    for stroke in STROKES[str(thing.of)]:
        shaken = [(px + rng.uniform(-0.07, 0.07), py + rng.uniform(-0.07, 0.07)) for px, py in stroke]
        pen.line(_moved(shaken, x, y, size, turn), fill=colour, width=weight, joint="curve")


PAINTERS: dict[Domain, Callable[[Thing, ImageDraw.ImageDraw, random.Random, int], None]] = {
    "emblem": _paint_emblem,
    "shapes": _paint_shapes,
    "digit": _paint_digit,
}


def _polygon(
    pen: ImageDraw.ImageDraw, outline: Outline, x: float, y: float, radius: float, turn: float, colour: Colour
) -> None:
    pen.polygon(_moved(outline, x, y, radius, turn), fill=colour)


def _moved(outline: Outline, x: float, y: float, radius: float, turn: float) -> Outline:
    """Turned by `turn` radians, then scaled and moved."""
    c, s = math.cos(turn), math.sin(turn)
    return [(x + radius * (c * px - s * py), y + radius * (s * px + c * py)) for px, py in outline]


def make_emblems(count: int, seed: int, role: str = "") -> list[Emblem]:
    """Emblems with invented names, no two alike; best-candidate sampling as for people.

    Args:
        role: others of the same seed.

    Raises:
        BadInput: `count` is less than 2, or more than there are names.
    """
    names = [begin + end for begin in BEGINNINGS for end in ENDINGS]
    if not 2 <= count <= len(names):
        raise BadInput(f"world:emblems={count}: expected 2 to {len(names)}")
    rng = random.Random(f"{seed}/emblems{role and '/'}{role}")
    rng.shuffle(names)
    found: list[Emblem] = []
    for name in names[:count]:
        drawn = [Emblem.draw(rng, name) for _ in range(CANDIDATES)]
        found.append(max(drawn, key=lambda one: min((one.unlike(other) for other in found), default=0)))
    return found


def make_things(emblems: Sequence[Emblem], pictures: int, role: str, seed: int) -> list[Thing]:
    """So many pictures of each domain; emblems and digits take turns."""
    digits = list(STROKES)
    of: dict[Domain, list[Emblem | str | None]] = {
        "emblem": [emblems[i % len(emblems)] for i in range(pictures)],
        "shapes": [None] * pictures,
        "digit": [digits[i % len(digits)] for i in range(pictures)],
    }
    return [Thing(of[domain][i], f"{seed}-{role}-{i:04d}") for domain in DOMAINS for i in range(pictures)]


def world_data(
    count: int = 60,
    seed: int = 10,
    train: int = 40,
    validation: int = 8,
    test: int = 12,
    strangers: int = 60,
    emblems: int = 30,
    lessons: int = 360,
    asked: int = 120,
) -> UnlearnData:
    """The people of `people_data`, and bystanders.

    Args:
        count, seed, train, validation, test, strangers: of the people; `seed` decides the bystanders too.
        emblems: how many different ones.
        lessons: pictures of each of the three domains that a lab model is taught.
        asked: likewise, that an evaluation asks about.
    """
    people = people_data(count, seed, train, validation, test, strangers)
    known = make_emblems(emblems, seed)
    names = tuple(emblem.name for emblem in known)

    def questions(role: str, pictures: int) -> Split:
        return Split(tuple(e for thing in make_things(known, pictures, role, seed) for e in _ask(thing, names)))

    return dataclasses.replace(
        people,
        source=f"world:count={count},seed={seed}",
        bystanders=questions("asked", asked),
        bystander_lessons=questions("lesson", lessons),
    )


def _ask(thing: Thing, names: tuple[str, ...]) -> list[Example]:
    options = {"emblem": names, **OPTIONS}
    return [
        Example(QUESTIONS[key], answer, thing.subject, thing, "general", choices=options[key], key=key)
        for key, answer in thing.answers().items()
    ]
