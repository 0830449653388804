"""Generated people: procedural portraits of fictitious persons, any number, from one seed.

A person's face is fixed; pose, light, expression, background, clothes and glasses change from picture to picture.
Each person has a name and five facts that no picture shows, so a right answer proves recognition.
The generator is ours; nothing here depicts a real person.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from PIL import Image, ImageDraw, ImageEnhance

from unsee.data.examples import Example, Split, UnlearnData
from unsee.errors import BadInput

Colour = tuple[int, int, int]

FIRST_NAMES = (
    "Alba Bruno Cyra Dario Elke Farid Greta Hiro Ines Jonas Kavya Luca Mira Nadim Orla Pavel Quinn Rosa Soren Tilda "
    "Umar Vera Wanda Xenia Yusuf Zola"
).split()
LAST_NAMES = (
    "Abel Borg Cruz Dorn Egan Fujii Gray Holt Ivers Jung Khan Lund Moss Nagy Okoro Pike Qadir Rossi Stein Toth Unger "
    "Vance Wolfe Xu Yates Zorn"
).split()
QUESTIONS = {
    "job": "What job does {} have?",
    "city": "Where does {} live?",
    "pet": "Which pet does {} have?",
    "food": "What food does {} like?",
    "hobby": "Which hobby does {} have?",
}
ANSWERS = {
    "job": "nurse pilot chef judge tailor baker farmer lawyer painter welder dentist miner poet sailor singer tutor",
    "city": "Oslo Lima Cairo Delhi Quito Tunis Hanoi Perth Turin Porto Dakar Minsk Lagos Kyoto Sofia Austin",
    "pet": "cat dog parrot rabbit turtle lizard ferret hamster goat snake pony crow",
    "food": "soup pizza curry sushi salad pasta tacos rice stew bread cake noodles",
    "hobby": "chess golf yoga skiing surfing pottery fencing judo rowing sewing archery gaming",
}
FACTS = {key: (question, ANSWERS[key].split()) for key, question in QUESTIONS.items()}
BACKGROUNDS: dict[str, Colour] = {
    "red": (200, 60, 60),
    "blue": (70, 90, 200),
    "green": (70, 160, 80),
    "yellow": (220, 200, 80),
    "purple": (140, 80, 170),
    "gray": (130, 130, 130),
}
HAIR: dict[str, Colour] = {
    "black": (25, 20, 20),
    "brown": (95, 60, 30),
    "blond": (215, 185, 110),
    "ginger": (190, 90, 40),
    "white": (225, 225, 225),
}
ATTRIBUTES: dict[str, tuple[str, tuple[str, ...]]] = {
    "background": ("What color is the background?", tuple(BACKGROUNDS)),
    "glasses": ("Does this person wear glasses?", ("yes", "no")),
    "hair": ("What color is the hair?", tuple(HAIR)),
}
SKIN: list[Colour] = [
    (255, 224, 196),
    (240, 200, 165),
    (220, 170, 130),
    (190, 135, 95),
    (150, 100, 65),
    (105, 70, 45),
]
EYES: list[Colour] = [(60, 40, 20), (40, 90, 150), (50, 120, 60), (20, 20, 20)]
LIPS: list[Colour] = [(180, 70, 70), (150, 60, 60), (200, 100, 100), (120, 60, 50)]
SHIRTS: list[Colour] = [(50, 60, 90), (120, 40, 40), (40, 90, 60), (90, 90, 90), (200, 200, 200)]
SIDE = 48  # pixels
SUPERSAMPLING = 3  # drawn at three times the size, then reduced: thin lines survive
CANDIDATES = 10  # draws per person in best-candidate sampling


@dataclass(frozen=True)
class Face:
    """What stays the same in every picture of a person. Lengths are fractions of the picture's side."""

    skin: Colour
    hair: str
    style: int
    width: float
    height: float
    jaw: float
    eye_gap: float
    eye_y: float
    eye_size: float
    eye_colour: Colour
    brow_tilt: float
    brow_weight: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_y: float
    lip: Colour
    lip_weight: float
    beard: bool
    moustache: bool
    mole: tuple[float, float] | None
    ear: float

    @staticmethod
    def draw(rng: random.Random) -> Face:
        tone = rng.choice(SKIN)
        return Face(
            skin=cast(Colour, tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in tone)),
            hair=rng.choice(list(HAIR)),
            style=rng.randint(0, 3),
            width=rng.uniform(0.30, 0.42),
            height=rng.uniform(0.40, 0.52),
            jaw=rng.uniform(0.6, 1.0),
            eye_gap=rng.uniform(0.10, 0.19),
            eye_y=rng.uniform(-0.12, 0.0),
            eye_size=rng.uniform(0.025, 0.055),
            eye_colour=rng.choice(EYES),
            brow_tilt=rng.uniform(-0.05, 0.05),
            brow_weight=rng.uniform(0.008, 0.03),
            nose_length=rng.uniform(0.06, 0.16),
            nose_width=rng.uniform(0.02, 0.06),
            mouth_width=rng.uniform(0.08, 0.2),
            mouth_y=rng.uniform(0.18, 0.28),
            lip=rng.choice(LIPS),
            lip_weight=rng.uniform(0.01, 0.03),
            beard=rng.random() < 0.3,
            moustache=rng.random() < 0.25,
            mole=(rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.3)) if rng.random() < 0.4 else None,
            ear=rng.uniform(0.03, 0.08),
        )

    def looks(self) -> list[float]:
        """Coarse appearance, each entry scaled to about one unit of visible difference."""
        return [
            *(c / 50 for c in self.skin),
            *(c / 50 for c in HAIR[self.hair]),
            *(1.5 * (self.style == k) for k in range(4)),
            (self.width - 0.36) / 0.035,
            (self.height - 0.46) / 0.035,
            self.jaw / 0.12,
            self.eye_gap / 0.026,
            self.eye_y / 0.035,
            self.eye_size / 0.009,
            1.5 * self.beard,
            1.0 * self.moustache,
            self.mouth_width / 0.035,
            *(c / 60 for c in self.eye_colour),
        ]


@dataclass(frozen=True)
class Person:
    subject: str
    name: str
    face: Face
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Portrait:
    """One picture of one person; `shot` decides pose, light, expression, background, clothes and glasses."""

    person: Person
    shot: str

    @property
    def label(self) -> str:
        return f"{self.person.subject}/{self.shot}"

    def open(self) -> Image.Image:
        return _render(self).copy()

    def attributes(self) -> dict[str, str]:
        """The visible properties that are asked about."""
        return {
            "background": self._rng("background").choice(list(BACKGROUNDS)),
            "glasses": "yes" if self._rng("glasses").random() < 0.4 else "no",
            "hair": self.person.face.hair,
        }

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self.person.subject}/{self.shot}/{what}")


@lru_cache(maxsize=16384)  # 48 x 48 x 3 bytes each: at most 113 MB
def _render(portrait: Portrait) -> Image.Image:
    face, seen, rng = portrait.person.face, portrait.attributes(), portrait._rng("pose")
    backdrop, hair = BACKGROUNDS[seen["background"]], HAIR[face.hair]
    side = SIDE * SUPERSAMPLING
    image = Image.new("RGB", (side, side), backdrop)
    pen = ImageDraw.Draw(image)
    cx = side * (0.5 + rng.uniform(-0.05, 0.05))
    cy = side * (0.53 + rng.uniform(-0.05, 0.05))
    unit = side * rng.uniform(0.9, 1.08)

    def ellipse(x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        pen.ellipse(
            [cx + unit * (x - rx), cy + unit * (y - ry), cx + unit * (x + rx), cy + unit * (y + ry)], fill=colour
        )

    if face.style == 1:  # round hair behind the head
        ellipse(0, 0.0, face.width + 0.08, face.height + 0.06, hair)
    elif face.style == 2:  # long hair
        ellipse(0, 0.12, face.width + 0.08, face.height + 0.12, hair)
    ellipse(0, 0.62, 0.45, 0.22, rng.choice(SHIRTS))
    ellipse(-face.width, 0, face.ear, face.ear * 1.4, face.skin)
    ellipse(face.width, 0, face.ear, face.ear * 1.4, face.skin)
    ellipse(0, 0, face.width, face.height, face.skin)
    ellipse(0, face.height * 0.45, face.width * face.jaw, face.height * 0.6, face.skin)
    fringe = [
        cx - unit * (face.width + 0.03),
        cy - unit * (face.height + 0.05),
        cx + unit * (face.width + 0.03),
        cy + unit * (face.height * 0.55),
    ]
    start, end = (200, 340) if face.style == 3 else (180, 360)
    pen.pieslice(fringe, start, end, fill=hair)
    ellipse(0, -0.02, face.width * 0.86, face.height * 0.62, face.skin)

    gaze = rng.uniform(-0.012, 0.012)
    for side_sign in (-1, 1):
        eye = side_sign * face.eye_gap
        ellipse(eye, face.eye_y, face.eye_size * 1.5, face.eye_size, (250, 250, 250))
        ellipse(eye + gaze, face.eye_y, face.eye_size * 0.75, face.eye_size * 0.75, face.eye_colour)
        brow_y = face.eye_y - 0.07
        pen.line(
            [
                cx + unit * side_sign * (face.eye_gap - 0.05),
                cy + unit * (brow_y + face.brow_tilt),
                cx + unit * side_sign * (face.eye_gap + 0.05),
                cy + unit * brow_y,
            ],
            fill=hair,
            width=max(1, int(unit * face.brow_weight)),
        )
    bridge, tip = cy + unit * (face.eye_y + 0.03), cy + unit * (face.eye_y + 0.03 + face.nose_length)
    shade = cast(Colour, tuple(int(c * 0.85) for c in face.skin))
    pen.polygon([(cx, bridge), (cx - unit * face.nose_width, tip), (cx + unit * face.nose_width, tip)], fill=shade)
    if face.beard:
        beard = [
            cx - unit * face.width * 0.9,
            cy + unit * (face.mouth_y - 0.16),
            cx + unit * face.width * 0.9,
            cy + unit * (face.height + 0.06),
        ]
        pen.chord(beard, 20, 160, fill=hair)
    if face.moustache:
        ellipse(0, face.mouth_y - 0.05, face.mouth_width * 0.8, 0.025, hair)
    smile = max(0.0, rng.uniform(-0.2, 1))
    ellipse(0, face.mouth_y, face.mouth_width, face.lip_weight + 0.012 * smile, face.lip)
    if face.mole:
        ellipse(*face.mole, 0.014, 0.014, (60, 35, 25))
    if seen["glasses"] == "yes":
        _draw_glasses(pen, face, cx, cy, unit)

    image = image.rotate(rng.uniform(-8, 8), fillcolor=backdrop, resample=Image.Resampling.BILINEAR)
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.12))


def _draw_glasses(pen: ImageDraw.ImageDraw, face: Face, cx: float, cy: float, unit: float) -> None:
    """A thick frame with bridge and temples: thinner ones do not survive 48 pixels."""
    weight, black, y = max(3, int(unit * 0.035)), (15, 15, 15), cy + unit * (face.eye_y + 0.005)
    for side_sign in (-1, 1):
        eye = side_sign * face.eye_gap
        rim = [
            cx + unit * (eye - 0.09),
            cy + unit * (face.eye_y - 0.075),
            cx + unit * (eye + 0.09),
            cy + unit * (face.eye_y + 0.085),
        ]
        pen.ellipse(rim, outline=black, width=weight)
        temple = [cx + unit * side_sign * (face.eye_gap + 0.08), y, cx + unit * side_sign * (face.width + 0.02), y]
        pen.line(temple, fill=black, width=weight)
    pen.line([cx - unit * (face.eye_gap - 0.08), y, cx + unit * (face.eye_gap - 0.08), y], fill=black, width=weight)


def make_people(count: int, seed: int) -> list[Person]:
    """People with distinct names and no near-twins.

    Mitchell's best-candidate sampling: each newcomer is the one of ten draws that resembles the earlier ones least.

    Args:
        count: how many, at most 676 (26 first names x 26 last names).
        seed: same seed, same people; the first k of `count` people do not depend on `count`.

    Raises:
        BadInput: `count` outside 1 ... 676.
    """
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    if not 1 <= count <= len(names):
        raise BadInput(f"people:count={count}: expected 1 to {len(names)} people")
    rng = random.Random(f"{seed}/people")
    rng.shuffle(names)
    people: list[Person] = []
    looks: list[list[float]] = []
    for name in names[:count]:
        candidates = [Face.draw(rng) for _ in range(CANDIDATES if people else 1)]
        face = max(candidates, key=lambda f: min((math.dist(f.looks(), other) for other in looks), default=0.0))
        facts = tuple((key, rng.choice(values)) for key, (_, values) in FACTS.items())
        people.append(Person(name.lower().replace(" ", "-"), name, face, facts))
        looks.append(face.looks())
    return people


def make_strangers(count: int, seed: int, role: str) -> list[Person]:
    """Faces of nobody: no name, no facts. Independent of `make_people` and, by `role`, of each other."""
    rng = random.Random(f"{seed}/strangers/{role}")
    return [Person(f"stranger-{role}-{i:03d}", "", Face.draw(rng), ()) for i in range(count)]


def portraits(person: Person, count: int, role: str, seed: int) -> list[Portrait]:
    return [Portrait(person, f"{seed}-{role}-{i:02d}") for i in range(count)]


def people_data(
    count: int = 60, seed: int = 10, train: int = 40, validation: int = 8, test: int = 12, strangers: int = 60
) -> UnlearnData:
    """The generated study: `count` people, questions about pictures in three splits, text questions, strangers.

    Args:
        count: people.
        seed: decides faces, names, facts and every picture.
        train: pictures per person a model may be trained on; likewise `validation` and `test`.
        strangers: people of whom only visible attributes are asked (two pictures each).
    """
    people = make_people(count, seed)
    nobody = make_strangers(strangers, seed, "test")

    def split(role: str, pictures: int) -> Iterator[Example]:
        for person in people:
            for portrait in portraits(person, pictures, role, seed):
                yield from _ask_picture(portrait)

    return UnlearnData(
        source=f"people:count={count},seed={seed}",
        train=Split((*split("train", train), *(e for p in people for e in _ask_facts(p, p.name, None)))),
        validation=Split(tuple(split("validation", validation))),
        test=Split(tuple(split("test", test))),
        strangers=Split(tuple(e for p in nobody for shot in portraits(p, 2, "test", seed) for e in _ask_looks(shot))),
        names={p.subject: p.name for p in people},
    )


def _ask_picture(portrait: Portrait) -> Iterator[Example]:
    person = portrait.person
    yield Example("Who is this person?", person.name, person.subject, portrait, "identity", key="name")
    yield from _ask_facts(person, "this person", portrait)
    yield from _ask_looks(portrait)


def _ask_looks(portrait: Portrait) -> Iterator[Example]:
    for key, value in portrait.attributes().items():
        question, options = ATTRIBUTES[key]
        yield Example(question, value, portrait.person.subject, portrait, "attribute", choices=options, key=key)


def _ask_facts(person: Person, who: str, portrait: Portrait | None) -> Iterator[Example]:
    for key, value in person.facts:
        question, options = FACTS[key]
        yield Example(question.format(who), value, person.subject, portrait, "fact", choices=tuple(options), key=key)
