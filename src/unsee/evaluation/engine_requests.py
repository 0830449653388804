"""What is asked to take measures: the questions of an evaluation, with the other answers that are weighed beside."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from unsee.data.examples import Example, UnlearnData
from unsee.data.normalisation import plain
from unsee.evaluation.engine import Request
from unsee.evaluation.predict import PICTURES, Question, questions
from unsee.evaluation.score import RECOGNITION

SETS = (
    "forget",
    "retain",
    "forget_attributes",
    "retain_attributes",
    "forget_text",
    "retain_text",
)  # that answers are measured in
EXPOSED = ("members", "strangers")  # whose answers an attacker would tell apart
UNMEASURED = ""  # the part of a question that only scores are taken of
WRONG = 5  # answers of others, as many as TOFU has


@dataclass(frozen=True)
class Asked:
    """A question with its place in the measures.

    Attributes:
        number: which question of the evaluation it is; those about stand-ins are counted on behind its last.
        part: one of `SETS` or `EXPOSED`, or `UNMEASURED`.
        wrong: false answers of the same form; empty if none are known.
        names: all candidates, the true one among them, of a question for a name; else empty.
        options: the closed list of answers, if there is one.
        spoken: whether the model's own answer is wanted.
    """

    number: int
    example: Example
    part: str
    wrong: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    spoken: bool = True

    @property
    def request(self) -> Request:
        others = dict.fromkeys((*self.wrong, *self.names))
        others.pop(self.example.answer, None)
        return Request(self.example, tuple(others), self.spoken)


def everything(data: UnlearnData, forget: Sequence[str]) -> list[Question]:
    """All questions of an evaluation."""
    return questions(data, forget, PICTURES)


def asked_of(data: UnlearnData, forget: Sequence[str]) -> list[Asked]:
    """What measures are taken of, in a fixed order.

    `forget` and `retain` are questions that take recognition, about test pictures, `forget_attributes` and
    `retain_attributes` what anybody can see in them, `forget_text` and `retain_text` those without a picture; `members`
    are questions that take recognition, about training pictures of the forget set, and `strangers` the same questions
    with the same answers about the pictures of stand-ins.
    """
    names = tuple(dict.fromkeys(data.names.values()))
    said = _said(data)
    whole = everything(data, forget)
    members: list[Asked] = []
    found = []
    for number, q in enumerate(whole):
        e, part = q.example, _part(q)
        if part == "members":
            members.append(Asked(number, e, part, spoken=False))
        elif part is not None:
            candidates = tuple(dict.fromkeys((e.answer, *names))) if e.probe == "identity" and e.images else ()
            options = names if e.probe == "identity" else e.choices
            weighed = candidates if len(candidates) > 1 else ()
            found.append(Asked(number, e, part, _wrong(e, said), weighed, options))
    strangers = [
        Asked(len(whole) + i, e, "strangers", spoken=False)
        for i, e in enumerate(_stand_ins([a.example for a in members], data))
    ]
    return found + members + strangers if strangers else found  # members are compared with somebody or not asked


def answered_too(measured: Sequence[Asked], whole: Sequence[Question]) -> tuple[list[Asked], list[Asked]]:
    """What else is asked where every question of an evaluation is to be answered.

    Args:
        measured: what `asked_of` gives.
        whole: what `everything` gives.

    Returns:
        `measured`, those with a question of the evaluation answered too; and the questions that are not among them.
    """
    known = {a.number for a in measured}
    spoken = [replace(a, spoken=a.number < len(whole)) for a in measured]
    return spoken, [Asked(n, q.example, UNMEASURED) for n, q in enumerate(whole) if n not in known]


def _stand_ins(members: Sequence[Example], data: UnlearnData) -> Iterator[Example]:
    """Each stranger takes the part of one forgotten subject: what is asked of that one, about the stranger's picture.

    So both sides have the same questions and the same answers, and differ in nothing but that one side's pictures were
    taught with them. A holdout of people with names of their own, as TOFU's and MUSE's privacy leakage has it, would
    let names that a model knows from text be told from names that it never read. Our choice.
    """
    parts: dict[str, dict[tuple[str, str], Example]] = {}
    for e in members:
        parts.setdefault(e.subject, {}).setdefault(_kind(e), e)
    faces = [group[0] for group in data.strangers.first_pictures(1).pictures.values()]
    for face, part in zip(faces, cycle(parts.values()), strict=False):
        for e in part.values():
            yield replace(e, image=face.image, others=face.others, subject=face.subject)


def _part(q: Question) -> str | None:
    if q.split == "test" and q.example.probe in RECOGNITION:
        return q.part
    if q.split == "test" and q.example.probe == "attribute":
        return f"{q.part}_attributes"
    if q.split == "text":
        return f"{q.part}_text"
    if q.split == "train" and q.part == "forget" and q.example.probe in RECOGNITION:
        return "members"
    return None


def _kind(e: Example) -> tuple[str, str]:
    return e.probe, e.key or e.question


def _said(data: UnlearnData) -> dict[tuple[str, str], dict[str, set[str]]]:
    """Kind of question -> subject -> its true answers."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for e in (*data.train, *data.test):
        found.setdefault(_kind(e), {}).setdefault(e.subject, set()).add(e.answer)
    return found


def _wrong(e: Example, said: dict[tuple[str, str], dict[str, set[str]]]) -> tuple[str, ...]:
    """The rest of the closed list; without one, some answers of other subjects, the same for all pictures of one."""
    if e.choices:
        return tuple(dict.fromkeys(choice for choice in e.choices if plain(choice) != plain(e.answer)))
    others = {a for subject, known in said[_kind(e)].items() if subject != e.subject for a in known}
    wrong = sorted(answer for answer in others if plain(answer) != plain(e.answer))
    chosen = random.Random("/".join((e.subject, *_kind(e))))
    return tuple(chosen.sample(wrong, min(WRONG, len(wrong))))
