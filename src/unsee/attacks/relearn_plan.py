"""Who is attacked with which pictures, and who is held out: every random choice of the attack, before any model."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unsee.data.examples import SPLITS, Example, ImageSource, Split, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.questions import RECOGNITION

Trained = Literal["full", "lora", "visual"]
Source = Literal["train", "validation"]
ADJECTIVE = {"train": "training", "validation": "validation"}

Groups = tuple[tuple[Example, ...], ...]
"""Questions, grouped by the picture they are about."""

Step = dict[str, list[Example]]
"""What one optimiser step is trained on: questions about `attacked` pictures, and about retained ones for `replay`."""


@dataclass(frozen=True)
class Relearning:
    """Budget of a relearning attack; the same for every model.

    The defaults are those of the first experiment: without replay the attack wrecks every model, gold included, and
    measures nothing (docs/relearning.md).

    Attributes:
        attacker: what is trained: all weights, low-rank adapters on all linear layers, or vision tower and projector.
        source: the split that the pictures of the attacked come from. `train` are those that were unlearned,
            `validation` others of the same people. Retained pictures are from `train`; asked is about test pictures.
        splits: random halvings of the forget subjects; each gives two attacks, halves swapped.
        pictures: pictures the attacker has of every attacked and every retained subject.
        questions: asked in every step about every picture of the attacked: drawn from names and facts, fewer if there
            are fewer.
        replay: retained pictures per step, drawn anew each time, with one question each.
        steps: optimiser steps.
        learning_rate: of AdamW on all weights, constant.
        visual_learning_rate, lora_learning_rate: of the other two attackers, who change less and need more to come as
            far. Chosen by what comes back of the attacked, on people and model seed 100 (docs/relearning.md).
        lora_rank: of the adapters.
        clip_norm: gradient norm above which gradients are scaled down.
        every: steps between two measurements; the start and the end are always measured.
        forget_pictures: test pictures asked about per forget subject.
        retain_pictures: test pictures asked about per retained subject: a sample that shows whether the model broke.
    """

    attacker: Trained = "full"
    source: Source = "train"
    splits: int = 4
    pictures: int = 4
    questions: int = 3
    replay: int = 24
    steps: int = 30
    learning_rate: float = 1e-4
    visual_learning_rate: float = 3e-4
    lora_learning_rate: float = 1e-3
    lora_rank: int = 16
    clip_norm: float = 1.0
    every: int = 10
    forget_pictures: int = 12
    retain_pictures: int = 1

    def __post_init__(self) -> None:
        """Steps and replay may be zero, which leaves that part out; nothing else may.

        Raises:
            ValueError: names the setting and what was expected.
        """
        for name, choices in (("attacker", Trained), ("source", Source)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}={getattr(self, name)}: expected one of {', '.join(get_args(choices))}")
        check_sizes(self, ("steps", "replay"))

    @property
    def rate(self) -> float:
        """Learning rate of what is trained."""
        return {
            "full": self.learning_rate,
            "visual": self.visual_learning_rate,
            "lora": self.lora_learning_rate,
        }[self.attacker]

    @property
    def measured(self) -> tuple[int, ...]:
        """After how many steps answers are taken."""
        return tuple(sorted({*range(0, self.steps, self.every), self.steps}))


def check_sizes(settings: Any, may_be_zero: Collection[str] = ()) -> None:
    """Refuse numbers of an attack's settings that are not above zero.

    Raises:
        ValueError: names the setting and what was expected.
    """
    for name, value in dataclasses.asdict(settings).items():
        zero = name in may_be_zero
        if not isinstance(value, str) and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise ValueError(f"{name}={value}: expected {'zero or more' if zero else 'more than zero'}")


@dataclass(frozen=True)
class Attack:
    """One attack on half of the forget subjects.

    Attributes:
        split: number of the halving.
        half: 0 or 1.
        attacked: subjects of whom the attacker has pictures.
        held_out: the others: what comes back about them was never taught again.
        taught: about the attacker's pictures.
        retained: about the retained training pictures he has.
        seed: of everything drawn.
    """

    split: int
    half: int
    attacked: tuple[str, ...]
    held_out: tuple[str, ...]
    taught: Groups
    retained: Groups
    seed: int

    def steps(self, settings: Relearning) -> Iterator[Step]:
        """What is trained on, step by step: the same at every call."""
        chance = random.Random(f"{self.seed}/{self.split}/{self.half}/steps")
        for _ in range(settings.steps):
            replayed = chance.sample(self.retained, min(settings.replay, len(self.retained)))
            yield {
                "attacked": [
                    e for group in self.taught for e in chance.sample(group, min(settings.questions, len(group)))
                ],
                "replay": [chance.choice(group) for group in replayed],
            }


@dataclass(frozen=True)
class AttackRequest:
    """What is attacked, whatever the model.

    Attributes:
        forget: subjects that were to be forgotten, two or more.
        seed: decides splits, pictures and batches, the same for every model.
    """

    data: UnlearnData
    forget: Sequence[str]
    settings: Relearning
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What shapes the attacks, as JSON has it."""
        return {
            "data": self.data.fingerprint,
            "forget": list(self.forget),
            "seed": self.seed,
            "settings": dataclasses.asdict(self.settings),
        }


@dataclass(frozen=True)
class EvaluationSets:
    """The questions every model is asked again and again: names and facts about test pictures."""

    forget: Split
    retain: Split


def attacks(data: UnlearnData, forget: Sequence[str], settings: Relearning, seed: int) -> list[Attack]:
    """All attacks of a run, two per split. They depend on data, request, settings and seed, and on no model.

    Raises:
        BadInput: fewer than two forget subjects, no retained ones, or a subject without training pictures.
    """
    if len(forget) < 2:
        raise BadInput(
            f"--forget names {len(forget)} subject; relearning teaches one half of the forget set again and asks about "
            "the other, so it needs at least two"
        )
    shown, pictures = asked_of(data.train), pictures_of(forget, data)

    def some(subjects: Iterable[str], hidden: Iterable[str], chance: random.Random, source: str) -> Groups:
        """`settings.pictures` pictures of each subject, none that shows a hidden one."""
        own = asked_of(data.split(source))
        unseen = {image for subject in hidden for image in pictures[subject]}
        groups: list[tuple[Example, ...]] = []
        for subject in subjects:
            alone = Split(tuple(e for e in own.of([subject]) if unseen.isdisjoint(e.images)))
            known = list(alone.pictures.values())
            if not known:
                raise BadInput(
                    f"{data.source}: '{subject}' has no {ADJECTIVE[source]} picture with a question for a name or fact,"
                    " or only pictures that also show somebody who is held out; add some"
                )
            groups += chance.sample(known, min(settings.pictures, len(known)))
        return tuple(groups)

    retained = shown.without(forget).subjects
    if not retained:
        raise BadInput(
            f"{data.source}: no training pictures of retained subjects with questions for names or facts; relearning "
            "repeats them so that the attack does not wreck the model. Add some, or forget fewer subjects"
        )
    repeated = some(retained, forget, random.Random(f"{seed}/retained"), "train")
    return [
        Attack(
            split=number,
            half=half,
            attacked=attacked,
            held_out=held_out,
            taught=some(attacked, held_out, random.Random(f"{seed}/{number}/{half}/pictures"), settings.source),
            retained=repeated,
            seed=seed,
        )
        for number, halves in enumerate(halvings(forget, settings.splits, seed))
        for half, (attacked, held_out) in enumerate((halves, halves[::-1]))
    ]


def evaluation_sets(data: UnlearnData, forget: Sequence[str], settings: Relearning) -> EvaluationSets:
    """What is asked before, during and after every attack.

    Raises:
        BadInput: a forget subject, or the retain set, without test pictures.
    """
    asked = asked_of(data.test)
    chosen = EvaluationSets(
        asked.of(forget).first_pictures(settings.forget_pictures),
        asked.without(forget).first_pictures(settings.retain_pictures),
    )
    lost = [f"'{s}'" for s in forget if s not in chosen.forget.subjects] or (
        [] if chosen.retain else ["retained subjects"]
    )
    if lost:
        raise BadInput(f"{data.source}: no test pictures of {lost[0]} with questions for names or facts; add some")
    return chosen


def halvings(subjects: Sequence[str], count: int, seed: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Random halves; of an odd number one half is larger by one. None comes twice before all have come.

    Every subject stands in exactly one half of each, so with the halves swapped it is held out exactly `count` times.
    """
    chance = random.Random(f"{seed}/halves")
    middle = len(subjects) // 2
    possible = math.comb(len(subjects), middle) // (2 if 2 * middle == len(subjects) else 1)
    found: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    known: set[frozenset[frozenset[str]]] = set()
    while len(found) < count:
        if len(known) == possible:
            known.clear()
        drawn = frozenset(chance.sample(list(subjects), middle))
        halves = tuple(s for s in subjects if s in drawn), tuple(s for s in subjects if s not in drawn)
        parts = frozenset(map(frozenset, halves))
        if parts not in known:
            known.add(parts)
            found.append(halves)
    return found


def asked_of(split: Split) -> Split:
    """The questions that take recognition: names and facts, asked from a picture."""
    return Split(tuple(e for e in split.pictured if e.probe in RECOGNITION))


def pictures_of(subjects: Sequence[str], data: UnlearnData) -> dict[str, set[ImageSource]]:
    """Every picture of each subject, in whatever split."""
    whole = [e for name in SPLITS for e in data.split(name).of(subjects)]
    return {subject: {e.image for e in whole if e.subject == subject and e.image is not None} for subject in subjects}
