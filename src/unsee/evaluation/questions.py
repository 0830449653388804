"""What is asked: the questions of an evaluation, other answers that are weighed beside, and whether they are the right
questions for a model.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Literal

from unsee.checkpoint.folder import forgotten_by, read_manifest
from unsee.data.examples import SPLITS, Example, UnlearnData
from unsee.data.normalisation import plain
from unsee.evaluation.answers import is_correct
from unsee.evaluation.engine import EngineRequest
from unsee.evaluation.verdict import is_role
from unsee.journal import Line
from unsee.models.loading import locate
from unsee.progress import warn

Part = Literal["forget", "retain", "strangers", "bystanders"]

RECOGNITION = ("identity", "fact")  # what a right answer takes recognition for
PICTURES = {"train": 4, "validation": 4, "test": 12}  # per subject; the headline numbers are those of test
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
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Question:
    """One example with the place its answer counts for."""

    example: Example
    split: str
    part: Part

    def line(self, role: str, prediction: str, names: Iterable[str]) -> Line:
        e = self.example
        options = tuple(names) if e.probe == "identity" and self.part != "bystanders" else e.choices
        return {
            "role": role,
            "split": self.split,
            "set": self.part,
            "subject": e.subject,
            "probe": e.probe,
            "key": e.key,
            "question": e.question,
            "answer": e.answer,
            "prediction": prediction,
            "correct": is_correct(prediction, e.answer, options),
            "image": e.image.label if e.image is not None else None,
        }


def questions(data: UnlearnData, forget: Sequence[str], pictures: dict[str, int]) -> list[Question]:
    """All questions an evaluation asks, in a fixed order.

    Args:
        pictures: how many pictures per subject count, per split ("train", "validation", "test").
    """
    forgotten = set(forget)

    def part(e: Example) -> Part:
        return "forget" if e.subject in forgotten else "retain"

    asked = [
        Question(e, name, part(e)) for name in SPLITS for e in data.split(name).pictured.first_pictures(pictures[name])
    ]
    asked += [Question(e, "text", part(e)) for e in data.train.text_only]
    asked += [Question(e, "strangers", "strangers") for e in data.strangers]
    return asked + [Question(e, "bystanders", "bystanders") for e in data.bystanders]


@dataclass(frozen=True)
class MeasuredQuestion:
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
    def request(self) -> EngineRequest:
        others = dict.fromkeys((*self.wrong, *self.names))
        others.pop(self.example.answer, None)
        return EngineRequest(self.example, tuple(others), self.spoken)


def everything(data: UnlearnData, forget: Sequence[str]) -> list[Question]:
    """All questions of an evaluation."""
    return questions(data, forget, PICTURES)


def asked_of(data: UnlearnData, forget: Sequence[str]) -> list[MeasuredQuestion]:
    """What measures are taken of, in a fixed order.

    `forget` and `retain` are questions that take recognition, about test pictures, `forget_attributes` and
    `retain_attributes` what anybody can see in them, `forget_text` and `retain_text` those without a picture; `members`
    are questions that take recognition, about training pictures of the forget set, and `strangers` the same questions
    with the same answers about the pictures of stand-ins.
    """
    names = tuple(dict.fromkeys(data.names.values()))
    said = said_by_kind(data)
    whole = everything(data, forget)
    members: list[MeasuredQuestion] = []
    found = []
    for number, q in enumerate(whole):
        e, part = q.example, _part(q)
        if part == "members":
            members.append(MeasuredQuestion(number, e, part, spoken=False))
        elif part is not None:
            candidates = tuple(dict.fromkeys((e.answer, *names))) if e.probe == "identity" and e.images else ()
            options = names if e.probe == "identity" else e.choices
            weighed = candidates if len(candidates) > 1 else ()
            found.append(MeasuredQuestion(number, e, part, wrong_answers(e, said), weighed, options))
    strangers = [
        MeasuredQuestion(len(whole) + i, e, "strangers", spoken=False)
        for i, e in enumerate(_stand_ins([a.example for a in members], data))
    ]
    return found + members + strangers if strangers else found  # members are compared with somebody or not asked


def answered_too(
    measured: Sequence[MeasuredQuestion], whole: Sequence[Question]
) -> tuple[list[MeasuredQuestion], list[MeasuredQuestion]]:
    """What else is asked where every question of an evaluation is to be answered.

    Args:
        measured: what `asked_of` gives.
        whole: what `everything` gives.

    Returns:
        `measured`, those with a question of the evaluation answered too; and the questions that are not among them.
    """
    known = {a.number for a in measured}
    spoken = [replace(a, spoken=a.number < len(whole)) for a in measured]
    return spoken, [MeasuredQuestion(n, q.example, UNMEASURED) for n, q in enumerate(whole) if n not in known]


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


def said_by_kind(data: UnlearnData) -> dict[tuple[str, str], dict[str, set[str]]]:
    """Kind of question -> subject -> its true answers."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for e in (*data.train, *data.test):
        found.setdefault(_kind(e), {}).setdefault(e.subject, set()).add(e.answer)
    return found


def wrong_answers(e: Example, said: dict[tuple[str, str], dict[str, set[str]]]) -> tuple[str, ...]:
    """The rest of the closed list; without one, some answers of other subjects, the same for all pictures of one."""
    if e.choices:
        return tuple(dict.fromkeys(choice for choice in e.choices if plain(choice) != plain(e.answer)))
    others = {a for subject, known in said[_kind(e)].items() if subject != e.subject for a in known}
    wrong = sorted(answer for answer in others if plain(answer) != plain(e.answer))
    chosen = random.Random("/".join((e.subject, *_kind(e))))
    return tuple(chosen.sample(wrong, min(WRONG, len(wrong))))


# The right question: is a model asked about those whom it was made to forget? -----------------------------------------


def warned(
    models: Mapping[str, str], source: str, forget: Sequence[str], fingerprint: str | None = None
) -> dict[str, list[str]]:
    """`misasked`, said on the screen too."""
    found = misasked(models, source, forget, fingerprint)
    for sentences in found.values():
        for sentence in sentences:
            warn(sentence)
    return found


def misasked(
    models: Mapping[str, str], source: str, forget: Sequence[str], fingerprint: str | None = None
) -> dict[str, list[str]]:
    """What is wrong with asking these models about `forget`, by role; roles with nothing wrong are left out.

    A model that was made to forget them and others is asked rightly. So is `vanilla` always: it is what an edit began
    with, which may have been made to forget others before. What no manifest tells is not warned about.

    Args:
        models: role -> folder or hub id.
        source, fingerprint: of the data that is asked about; the fingerprint where it is known.

    Raises:
        BadInput: a model or its manifest cannot be read.
    """
    found = {}
    for role, path in models.items():
        manifest = read_manifest(locate(path))
        if not is_role(role, "vanilla") and (sentences := list(_unfit(role, manifest, source, forget, fingerprint))):
            found[role] = sentences
    return found


def _unfit(
    role: str, manifest: Mapping[str, Any], source: str, forget: Sequence[str], fingerprint: str | None
) -> Iterable[str]:
    hidden = manifest.get("without_images_of")
    gone = forgotten_by(manifest) or hidden or ()
    known = {unicodedata.normalize("NFC", subject) for subject in gone}
    others = [subject for subject in forget if unicodedata.normalize("NFC", subject) not in known]
    if others and hidden is not None and (gone or is_role(role, "gold")):
        made = f"never shown pictures of {_some(gone)}" if gone else "shown everybody's pictures"
        yield f"{role}: was {made}, but is asked about {_some(others)}: this is no gold model of theirs"
    elif others and gone:
        yield f"{role}: was made to forget {_some(gone)}, but is asked about {_some(others)}, whom it was not"
    made_on = manifest.get("data") or {}
    moved = fingerprint is not None and made_on.get("fingerprint") not in (None, fingerprint)
    if gone and moved and made_on.get("source") != source:
        yield (
            f"{role}: was made with {made_on.get('source')}, but is asked about {source}: subjects of one name need "
            "not be the same"
        )


def _some(subjects: Sequence[str]) -> str:
    more = len(subjects) - SHOWN
    return ", ".join(subjects[:SHOWN]) + (f" and {more} more" if more > 0 else "")
