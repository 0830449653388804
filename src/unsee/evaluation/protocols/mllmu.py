"""MLLMU-Bench (arXiv 2410.22108): forget, test, retain and celebrities; choice, blank, sentence; picture and text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem
from unsee.data.examples import ImageSource
from unsee.evaluation.protocols.base import Protocol, ProtocolQuestion, Scored
from unsee.evaluation.protocols.measured import ACCURACY, CLOZE, OVERLAP, PAPER_OVERLAP, picked, rate
from unsee.evaluation.protocols.wording import (
    Mode,
    answer_text,
    options,
    paper_contained,
    paper_first_character,
    question_text,
)

NAME = "mllmu"
TOKENS = 50
SHOT_PEOPLE = {"classification": 1, "cloze": 2}  # who supply the shots of a kind; all their questions of it are shots
PARTS = ("forget", "test", "retain", "celebrity")


def ask(data: BenchmarkData, mode: Mode, seed: int) -> tuple[ProtocolQuestion, ...]:
    """All questions.

    paper: shots come from people of the scored set itself, drawn anew for each part and kind, whose questions of that
    kind are then skipped; one view of each person per kind. corrected: shots come from retained people who are scored
    nowhere, the same for all; every view.
    """
    items = [item for item in data.items if item.part in PARTS]
    if mode == "corrected":
        return tuple(_corrected(items, seed))
    return tuple(asked for part in PARTS for asked in _published(items, part, seed))


def shot_people(data: BenchmarkData, seed: int) -> tuple[str, ...]:
    """corrected: the retained people who are scored nowhere. One stays to be scored, however few there are."""
    kept = {item.subject for item in data.items if item.part == "retain"}
    return _draw(seed, "shots", kept, min(max(SHOT_PEOPLE.values()), len(kept) - 1))


def _corrected(items: Sequence[BenchmarkItem], seed: int) -> Iterator[ProtocolQuestion]:
    people = shot_people(BenchmarkData("", tuple(items), ()), seed)
    shots = {
        kind: _shots([i for i in items if i.subject in people[:count] and (i.part, i.kind) == ("retain", kind)], False)
        for kind, count in SHOT_PEOPLE.items()
    }
    for item in items:
        if item.subject in people and item.part == "retain":
            continue
        worked = [
            f"{question_text(NAME, shot, 'corrected')}\n{answer_text(NAME, shot, 'corrected')}\n\n"
            for shot in shots.get(item.kind, ())
        ]
        text = "".join(worked) + question_text(NAME, item, "corrected")
        for view in range(max(1, len(item.images))):
            yield ProtocolQuestion(item, "corrected", text, TOKENS, view)


def _published(items: Sequence[BenchmarkItem], part: str, seed: int) -> Iterator[ProtocolQuestion]:
    here = [item for item in items if item.part == part]
    # The script looks shots up in Full_Set: those of the test part show the portrait, and celebrities are not in it.
    source = {"test": "forget", "celebrity": ""}.get(part, part)
    drawn = {
        kind: _draw(seed, f"{part}/{kind}", [item.subject for item in here], count)
        for kind, count in SHOT_PEOPLE.items()
        if not (part == "celebrity" and kind == "classification")
    }
    for item in here:
        people = drawn.get(item.kind, ())
        if item.subject in people:
            continue
        pictured = bool(item.images)
        known = [i for i in items if i.part == source and i.kind == item.kind and i.subject in people]
        shots = _shots(known, pictured)
        text = "".join(map(_block, shots)) + question_text(NAME, item, "paper")
        pictures: tuple[ImageSource, ...] = tuple(shot.images[0] for shot in shots if pictured)
        yield ProtocolQuestion(item, "paper", text, TOKENS, _one_view(seed, item), pictures)


def _draw(seed: int, what: str, among: Iterable[str], count: int) -> tuple[str, ...]:
    """`count` of the given names, or all if there are fewer; the order of questions plays no part."""
    names = sorted(set(among))
    return tuple(random.Random(f"{seed}/{what}").sample(names, min(count, len(names))))


def _one_view(seed: int, item: BenchmarkItem) -> int:
    """Which picture a person's questions of one kind are asked about."""
    if len(item.images) < 2:
        return 0
    return random.Random(f"{seed}/view/{item.subject}/{item.kind}").randrange(len(item.images))


def _shots(items: Sequence[BenchmarkItem], pictured: bool) -> list[BenchmarkItem]:
    return [item for item in items if bool(item.images) == pictured]


def _block(shot: BenchmarkItem) -> str:
    """A worked example as the script has it; the picture's place is before the whole text, see docs/protocols.md."""
    if shot.kind == "classification":
        listed = "".join(f"{letter}: {text}\n" for letter, text in options(shot).items())
        return f"Question: {shot.question}\n{listed}Correct Answer: {shot.letter}\nUSER:\n"
    asked = question_text(NAME, shot, "paper")
    return f"Question: {asked}\nCorrect Answer: {shot.answer}\nUSER:\n"


SCORED: dict[tuple[Mode, str], tuple[Scored, ...]] = {
    ("paper", "classification"): (Scored("accuracy", rate(picked(paper_first_character)), "options"),),
    ("paper", "cloze"): (Scored("cloze", rate(lambda r: paper_contained(r.given, r.right)), "nothing"),),
    ("paper", "generation"): PAPER_OVERLAP,
    ("corrected", "classification"): (ACCURACY,),
    ("corrected", "cloze"): (CLOZE,),
    ("corrected", "generation"): OVERLAP,
}

PROTOCOL = Protocol(benchmark=NAME, published="entity", ask=ask, scored=SCORED)
