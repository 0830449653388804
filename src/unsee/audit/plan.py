"""Who is asked what in an audit: the forgotten, the strangers who stand in for them, and everybody else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal

from unsee.data.examples import SPLITS, Example, ImageSource, Probe, Split, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.questions import (
    RECOGNITION,
    UNMEASURED,
    MeasuredQuestion,
    Question,
    said_by_kind,
    wrong_answers,
)

PICTURES = {"train": 12, "test": 12}  # of every forgotten person; of every stranger as many as of test pictures
RETAINED = 8  # test pictures of everybody else
TAUGHT = 8  # names, and facts, of one person that others stand in for
FEWEST = 3  # strangers; with fewer there is no band to stand in
STOOD_IN = "stood_in"  # the set of questions whose candidates are weighed

Yardstick = Literal["strangers", "known"]


@dataclass(frozen=True)
class Taught:
    """Something that was taught about a person, and what would be wrong in its place.

    Attributes:
        wrong: other answers of the same form, without the true one.
        choices: the closed list of answers, if there is one.
    """

    probe: Probe
    question: str
    answer: str
    wrong: tuple[str, ...]
    choices: tuple[str, ...]


@dataclass(frozen=True)
class AuditQuestion:
    """A question with its place: of the evaluation, whose scores are reused, and among what is weighed.

    Attributes:
        scored: split and set as an evaluation has them; `strangers` for everybody who stands in.
        measured: number and candidates.
    """

    scored: Question
    measured: MeasuredQuestion


@dataclass(frozen=True)
class AuditPlan:
    """All that is asked of every model.

    Attributes:
        forget: the people who were to be forgotten.
        names: every name a question for a name could be answered with.
        taught: by forgotten person, what was taught of them and is asked.
        stand_ins: the people who stand in for the forgotten.
        yardstick: `strangers`, whom no model saw; or `known`, retained people, where there are too few strangers.
        asked: the questions.
        own: person -> answers that are right about them, which is why a model may say them of their pictures.
    """

    forget: tuple[str, ...]
    names: tuple[str, ...]
    taught: Mapping[str, tuple[Taught, ...]]
    stand_ins: tuple[str, ...]
    yardstick: Yardstick
    asked: tuple[AuditQuestion, ...]
    own: Mapping[str, frozenset[tuple[str, str]]]

    @cached_property
    def measured(self) -> tuple[MeasuredQuestion, ...]:
        return tuple(q.measured for q in self.asked)

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Question -> its closed list of answers, where there is one."""
        examples = [q.scored.example for q in self.asked]
        return {e.question: e.choices for e in examples if e.choices}


Seen = tuple[ImageSource, tuple[ImageSource, ...]]
"""A picture, and further ones of the same prompt."""


def audit_plan(data: UnlearnData, forget: Sequence[str], strangers: UnlearnData | None) -> AuditPlan:
    """What is asked; it depends on the data and the request, and on no model.

    Strangers are those of `strangers`, else those of the data. Where there are fewer than `FEWEST`, retained people
    stand in under the forgotten's names: a model that still knows the forgotten likes their names better on their
    pictures than on those of people it knows to be others. The reverse proves nothing, since a model may treat people
    it knows otherwise than people it does not, so with them nothing passes (see `claims`). Our choice.

    Raises:
        BadInput: no test pictures of a forgotten person, nothing that takes recognition is asked, or strangers who are
            none.
    """
    pictured = {s: data.test.of([s]).pictured for s in forget}
    for subject, split in pictured.items():
        if not split:
            raise BadInput(f"{data.source}: no test pictures of '{subject}'; an audit asks about pictures never taught")
    taught = {subject: tuple(_taught(data, subject)) for subject in forget}
    for subject, some in taught.items():
        if not some:
            raise BadInput(
                f"{data.source}: nothing is asked about pictures of '{subject}' that takes recognition; an audit needs "
                "questions for a name or facts"
            )
    unseen = _strangers(data, strangers)
    yardstick: Yardstick = "strangers" if len(unseen) >= FEWEST else "known"
    looks = _attributes(data if strangers is None else strangers, unseen)
    if yardstick == "known":
        known = data.test.without(forget)
        unseen = {s: _seen(known.of([s]), RETAINED) for s in known.pictured.subjects}
    whole = list(_target_questions(data, forget))
    stood_in = [
        (Question(_about(subject, seen, one), "strangers", "strangers"), one)
        for subject, pictures in unseen.items()
        for seen in pictures
        for one in _all(taught)
    ]
    about_targets = [
        (Question(_about(subject, seen, one), split, "forget"), one)
        for subject in forget
        for split, pictures in PICTURES.items()
        for seen in _seen(data.split(split).of([subject]), pictures)
        for one in _all(taught)
    ]
    others = [Question(e, "test", "retain") for e in data.test.without(forget).pictured.first_pictures(RETAINED)]
    text = [Question(e, "text", "forget" if e.subject in forget else "retain") for e in data.train.text_only]
    weighed = _merged([*about_targets, *stood_in])
    plain = [*whole, *others, *(Question(e, "strangers", "strangers") for e in looks), *text]
    asked = [*weighed, *((q, ()) for q in plain)]
    asked.sort(key=lambda item: item[0].example.image is None)  # engine batches keep pictures together
    return AuditPlan(
        forget=tuple(forget),
        names=tuple(dict.fromkeys(data.names.values())),
        taught=taught,
        stand_ins=tuple(unseen),
        yardstick=yardstick,
        asked=tuple(_numbered(asked)),
        own=_own(data),
    )


def _numbered(asked: Iterable[tuple[Question, tuple[str, ...]]]) -> Iterator[AuditQuestion]:
    for number, (q, candidates) in enumerate(asked):
        part = STOOD_IN if candidates else UNMEASURED
        yield AuditQuestion(q, MeasuredQuestion(number, q.example, part, names=candidates))


def _all(taught: Mapping[str, Sequence[Taught]]) -> Iterator[Taught]:
    return chain.from_iterable(taught.values())


def _about(subject: str, seen: Seen, one: Taught) -> Example:
    image, others = seen
    return Example(one.question, one.answer, subject, image, one.probe, one.choices, others=others)


def _merged(stood_in: Sequence[tuple[Question, Taught]]) -> list[tuple[Question, tuple[str, ...]]]:
    """One request for a question about a picture, whoever it is asked for: all candidates are weighed together."""
    first: dict[tuple[object, ...], Question] = {}
    candidates: dict[tuple[object, ...], dict[str, None]] = {}
    for q, one in stood_in:
        key = (q.part, q.split, q.example.subject, q.example.images, one.question)
        first.setdefault(key, q)
        candidates.setdefault(key, {}).update(dict.fromkeys((one.answer, *one.wrong)))
    return [(q, tuple(candidates[key])) for key, q in first.items()]


def _taught(data: UnlearnData, subject: str) -> Iterator[Taught]:
    """Names and facts that are asked from a person's pictures, each once; of each kind at most `TAUGHT`."""
    said = said_by_kind(data)
    names = tuple(dict.fromkeys(data.names.values()))
    own = [e for split in SPLITS for e in data.split(split).of([subject]).pictured if e.probe in RECOGNITION]
    known: dict[tuple[str, str, str], Example] = {}
    for e in own:
        known.setdefault((e.probe, e.question, e.answer), e)
    for probe in RECOGNITION:
        for e in [e for (kind, _, _), e in known.items() if kind == probe][:TAUGHT]:
            others = tuple(n for n in names if n not in (e.answer, data.names.get(subject)))
            wrong = others if probe == "identity" else wrong_answers(e, said)
            if wrong:
                yield Taught(e.probe, e.question, e.answer, wrong, e.choices)


def _strangers(data: UnlearnData, given: UnlearnData | None) -> dict[str, list[Seen]]:
    """Pictures of people whom no model saw.

    Raises:
        BadInput: people of the data among those given.
    """
    if given is None:
        split = data.strangers
        return {s: _seen(split.of([s]), PICTURES["test"]) for s in split.pictured.subjects}
    splits = [given.test, given.validation, given.train, given.strangers]
    whole = Split(tuple(e for split in splits for e in split.pictured))
    known = {image for split in (data.train, data.validation, data.test) for image in split.pictures}
    for e in whole:
        if e.image in known:
            raise BadInput(
                f"--strangers {given.source}: '{e.subject}' is no stranger, a picture of them is in --data "
                f"{data.source}; give pictures of people whom neither model was ever shown"
            )
    return {f"stranger {s}": _seen(whole.of([s]), PICTURES["test"]) for s in whole.subjects}


def _attributes(source: UnlearnData, unseen: Mapping[str, Sequence[Seen]]) -> list[Example]:
    """What anybody can see in the strangers' pictures that are shown."""
    shown = {image: subject for subject, pictures in unseen.items() for image, _ in pictures}
    splits = [source.test, source.validation, source.train, source.strangers]
    asked = [e for split in splits for e in split.probing("attribute") if e.image in shown]
    return [replace(e, subject=shown[e.image]) for e in asked if e.image is not None]


def _seen(split: Split, pictures: int) -> list[Seen]:
    return [(image, group[0].others) for image, group in split.first_pictures(pictures).pictures.items()]


def _target_questions(data: UnlearnData, forget: Sequence[str]) -> Iterator[Question]:
    """What anybody can see in the forgotten's pictures."""
    for split, pictures in PICTURES.items():
        shown = data.split(split).of(forget).pictured.first_pictures(pictures)
        yield from (Question(e, split, "forget") for e in shown if e.probe == "attribute")


def _own(data: UnlearnData) -> dict[str, frozenset[tuple[str, str]]]:
    """Person -> question and answer of all that is true of them."""
    found: dict[str, set[tuple[str, str]]] = {}
    for split in SPLITS:
        for e in data.split(split).pictured:
            if e.probe in RECOGNITION:
                found.setdefault(e.subject, set()).add((e.question, e.answer))
    return {subject: frozenset(pairs) for subject, pairs in found.items()}
