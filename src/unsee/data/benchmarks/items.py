"""What is read from a benchmark: its questions as its protocols ask them, and its people as models are taught them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unsee.data.examples import Example, ImageSource
from unsee.errors import BadInput

Part = Literal["forget", "retain", "test", "celebrity", "world", "full"]
Kind = Literal["classification", "cloze", "generation"]

DESCRIBE = "Describe this picture."  # asked where a benchmark has captions and no question; the words are ours
RECOGNISE = "Who is this person?"  # ours too, asked about every picture, see `unlearn_data`


@dataclass(frozen=True)
class BenchmarkItem:
    """One question of a benchmark with all that its protocols need; texts stand as in its files.

    Attributes:
        configuration: the configuration of the benchmark the question was read from, as published ("forget_5").
        part: whom it is about: people to be forgotten or retained, `test` (the forgotten in other pictures),
            `celebrity` (real faces), `world` (general knowledge), `full` (a configuration that is not divided).
        kind: `classification` (pick one of several), `cloze` (fill the blank) or `generation` (answer freely).
        subject: key of a `BenchmarkPerson`; empty where the benchmark does not say whom a text question is about.
        name: the subject's name; empty where the configuration does not say it.
        question: empty where the protocol brings the words: CLEAR's captions and names.
        answer: the true answer; of a classification the text of the right option.
        images: pictures that this may be asked about, one at a time; empty for a question in text alone.
        key: which question this is among those of its kind about this subject.
        letters, choices: the options as printed, in order.
        letter: the right option's.
        wrong: false answers, where the protocol itself puts the true one among them or compares their likelihoods.
        paraphrases: the true answer in other words.
        rephrased: the question in other words.
        keywords: what a right answer must mention.
        twin: the same for two items that ask the same, one with a picture and one without; empty without a twin.
    """

    configuration: str
    part: Part
    kind: Kind
    subject: str
    name: str
    question: str
    answer: str
    images: tuple[ImageSource, ...] = ()
    key: str = ""
    letters: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    letter: str = ""
    wrong: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    rephrased: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    twin: str = ""

    def example(self, view: int = 0) -> Example:
        """The question about one of its pictures, or in text, with the options as a closed list of answers."""
        named = bool(self.name) and self.answer == self.name
        choices = self.choices or ((self.answer, *self.wrong) if self.kind == "classification" else ())
        return Example(
            self.question or (RECOGNISE if named else DESCRIBE),
            self.answer,
            self.subject,
            self.images[view] if self.images else None,
            "general" if self.part == "world" else "identity" if named else "fact",
            tuple(dict.fromkeys(choices)),
            self.key,
        )


@dataclass(frozen=True)
class BenchmarkPerson:
    """Somebody a benchmark's models are taught.

    Attributes:
        subject: how the benchmark identifies the person.
        name: what the person is called; empty if the benchmark does not say.
        forgotten: whether the person belongs to the forget set.
        pictures: those models are trained on.
        lessons: what is taught about these pictures and in text, as the benchmark's own training data has it.
        views: the benchmark's further pictures of the person, which no model is trained on.
    """

    subject: str
    name: str
    forgotten: bool
    pictures: tuple[ImageSource, ...]
    lessons: tuple[Example, ...]
    views: tuple[ImageSource, ...] = ()


@dataclass(frozen=True)
class BenchmarkData:
    """A benchmark for one forget set.

    Attributes:
        source: the DATA argument it came from.
        items: all questions that are scored, in the order of the files.
        people: those to be forgotten first, then the retained.
    """

    source: str
    items: tuple[BenchmarkItem, ...]
    people: tuple[BenchmarkPerson, ...]

    def __post_init__(self) -> None:
        """Refuse one picture of two people, one of whom is to be forgotten: no score could be right.

        Raises:
            BadInput: it names both.
        """
        owners: dict[ImageSource, str] = {}
        for person in self.people:
            for image in (*person.pictures, *person.views):
                if (owner := owners.setdefault(image, person.subject)) != person.subject:
                    raise BadInput(
                        f"{image.label}: the same picture stands for '{owner}' and '{person.subject}'; "
                        "get a sound copy of the benchmark"
                    )

    @property
    def forget(self) -> tuple[str, ...]:
        """The subjects to be forgotten."""
        return tuple(person.subject for person in self.people if person.forgotten)

    def select(self, part: Part, kind: Kind, pictured: bool, configuration: str = "") -> tuple[BenchmarkItem, ...]:
        """The questions of one cell of a protocol's table, of one configuration where several ask them (CLEAR)."""
        found = (i for i in self.items if (i.part, i.kind, bool(i.images)) == (part, kind, pictured))
        return tuple(item for item in found if not configuration or item.configuration == configuration)


def part_of(configuration: str, named: Mapping[str, Part]) -> Part:
    """Whom a configuration is about: as `named` says, else as it begins, else everybody."""
    if configuration in named:
        return named[configuration]
    begins: tuple[Part, ...] = ("forget", "retain")
    return next((part for part in begins if configuration.startswith(part)), "full")


def divided(source: str, forget: Sequence[str], retain: Sequence[str], everybody: Sequence[str] | None) -> None:
    """Check that forget and retain set share nobody and, where the full set is known, make it up.

    Raises:
        BadInput: it names the first who is in both or in neither.
    """
    if both := sorted(set(forget) & set(retain)):
        raise BadInput(f"{source}: '{both[0]}' is in the forget set and in the retain set; get a sound copy of both")
    if everybody is not None and (odd := sorted(set(everybody) ^ {*forget, *retain})):
        raise BadInput(
            f"{source}: '{odd[0]}' is {'not ' if odd[0] in everybody else ''}in forget and retain set, "
            f"but {'' if odd[0] in everybody else 'not '}in the full set; get a sound copy of all three"
        )
