"""Questions, their pictures, and the three splits they live in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from PIL import Image

from unsee.data.folder_listing import some
from unsee.data.subject_choice import Choice
from unsee.errors import BadInput, readable

Probe = Literal["identity", "fact", "attribute", "general"]
PROBES: tuple[str, ...] = get_args(Probe)
SPLITS = ("train", "validation", "test")
PLACES = (*SPLITS, "strangers", "bystanders", "bystander_lessons")  # where a question may stand


@runtime_checkable
class ImageSource(Protocol):
    """One picture that can be opened again and again. Implementations are hashable and small."""

    @property
    def label(self) -> str:
        """How a person finds this picture again, e.g. its path."""

    def open(self) -> Image.Image:
        """The picture as 8-bit RGB.

        Raises:
            BadInput: the picture cannot be read.
        """


def shown_by(picture: Image.Image) -> bytes:
    """All that tells a picture from others: its size and its pixels, as bytes to be hashed."""
    return repr(picture.size).encode() + picture.tobytes()


@dataclass(frozen=True)
class Example:
    """One question with its true answer.

    Attributes:
        question: what is asked, without any chat formatting.
        answer: the true answer.
        subject: who or what the answer depends on.
        image: the picture the question is about; None for a text-only question.
        probe: what a right answer shows: `identity` (who is it), `fact` (something known about the
            subject, not visible), `attribute` (something visible), `general` (anything else).
        choices: the closed list of answers, if there is one.
        key: which question of its probe this is ("name", "city", "hair", ...); groups answers in reports.
        others: further pictures of the same prompt, shown after `image`. The answer is about `image`; feature-level
            methods look at it alone.
    """

    question: str
    answer: str
    subject: str
    image: ImageSource | None
    probe: Probe
    choices: tuple[str, ...] = ()
    key: str = ""
    others: tuple[ImageSource, ...] = ()

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """All pictures of the prompt, in the order shown."""
        return () if self.image is None else (self.image, *self.others)


@dataclass(frozen=True)
class Split:
    """An ordered set of examples with the selections every consumer needs."""

    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def of(self, subjects: Iterable[str]) -> Split:
        wanted = frozenset(subjects)
        return Split(tuple(e for e in self.examples if e.subject in wanted))

    def without(self, subjects: Iterable[str]) -> Split:
        unwanted = frozenset(subjects)
        return Split(tuple(e for e in self.examples if e.subject not in unwanted))

    def probing(self, *probes: Probe) -> Split:
        return Split(tuple(e for e in self.examples if e.probe in probes))

    @cached_property
    def pictured(self) -> Split:
        """Only the questions that come with a picture."""
        return Split(tuple(e for e in self.examples if e.image is not None))

    @cached_property
    def text_only(self) -> Split:
        return Split(tuple(e for e in self.examples if e.image is None))

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Subjects in order of first appearance."""
        return tuple(dict.fromkeys(e.subject for e in self.examples))

    @cached_property
    def pictures(self) -> dict[ImageSource, tuple[Example, ...]]:
        """Each picture, in order of first appearance, with the questions asked about it."""
        grouped: dict[ImageSource, list[Example]] = {}
        for example in self.examples:
            if example.image is not None:
                grouped.setdefault(example.image, []).append(example)
        return {image: tuple(group) for image, group in grouped.items()}

    def first_pictures(self, per_subject: int) -> Split:
        """Text-only questions, and those about the first `per_subject` pictures of every subject."""
        seen: dict[str, dict[ImageSource, None]] = {}
        kept = []
        for example in self.examples:
            if example.image is not None:
                pictures = seen.setdefault(example.subject, {})
                if example.image not in pictures and len(pictures) >= per_subject:
                    continue
                pictures[example.image] = None
            kept.append(example)
        return Split(tuple(kept))


@dataclass(frozen=True)
class Reading:
    """What came of the files of some DATA.

    Attributes:
        pictures: how many were read.
        files: among how many files, tables left out; None where pictures do not lie in a folder of their own.
        tables: names of the tables that were read.
        left: names of the files that were not read, sorted.
        notes: what else a user should know, one sentence each.
    """

    pictures: int
    files: int | None = None
    tables: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """`pictures`, and `files` where they are counted."""
        return {"pictures": self.pictures, **({} if self.files is None else {"files": self.files})}

    def __str__(self) -> str:
        """One line for people."""
        of = "" if self.files is None else f" of {self.files} file{'' if self.files == 1 else 's'}"
        said = f"read {self.pictures} picture{'' if self.pictures == 1 else 's'}{of}"
        if self.tables:
            said += f" and {some(self.tables)}"
        if self.left:
            said += f"; not read: {some(self.left)}"
        return " ".join(readable("; ".join([said, *self.notes])).split())


@dataclass(frozen=True)
class UnlearnData:
    """Everything a model is taught and asked: three splits of pictures that never share one.

    Text-only questions stand in `train`: what the model knows without seeing is not split.

    Attributes:
        source: the DATA argument this came from.
        strangers: pictures of subjects that are in no split, with questions about what is visible.
        bystanders: pictures of quite other things (signs, charts, animals), with any questions. No method is given
            them, neither to forget nor to retain: what an edit does to them is asked afterwards.
        bystander_lessons: the same of other pictures, for models of the lab, which learn them beside `train`.
        names: subject -> the name the model is expected to answer with.
        reading: what came of the files it was read from; None where there were none.
    """

    source: str
    train: Split
    validation: Split
    test: Split
    strangers: Split = Split()
    bystanders: Split = Split()
    bystander_lessons: Split = Split()
    names: dict[str, str] = field(default_factory=dict)
    reading: Reading | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.train.subjects

    def split(self, name: str) -> Split:
        """The questions that stand in one of `PLACES`."""
        if name not in PLACES:
            raise KeyError(name)
        found: Split = getattr(self, name)
        return found

    def choose(
        self, wanted: str | Sequence[str], seed: int = 0, option: str = "--forget", all_may_go: bool = False
    ) -> tuple[str, ...]:
        """Resolve SUBJECTS: one argument or several, each a comma list, `@file`, `first:N` or `random:N`.

        Args:
            wanted: the argument as given; of several, all subjects together in their order.
            seed: decides `random:N`.
            option: where the argument was given, for messages.
            all_may_go: nothing need be left to retain.

        Raises:
            BadInput: an unknown subject, an argument that means two things, an empty choice, or all subjects at once.
        """
        chosen = Choice(self.subjects, self.names, self.source, seed, option).of(wanted)
        if len(chosen) >= len(self.subjects) and not all_may_go:
            raise BadInput(
                f"{option} names all {len(chosen)} subjects of {self.source}; at least one must be left to retain"
            )
        return chosen

    def only(self, subjects: Sequence[str]) -> UnlearnData:
        """The same without any other subject, also without further pictures in questions about these."""

        def alone(split: Split) -> Split:
            return Split(tuple(replace(e, others=()) for e in split.of(subjects)))

        return replace(
            self,
            train=alone(self.train),
            validation=alone(self.validation),
            test=alone(self.test),
            strangers=Split(),
            bystanders=Split(),
            bystander_lessons=Split(),
            reading=None,
            names={subject: name for subject, name in self.names.items() if subject in subjects},
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every question, answer and pixel, split by split: changes whenever the data does."""
        digest = hashlib.sha256()
        pixels: dict[ImageSource, str] = {}
        for name in PLACES:
            for e in self.split(name):
                for image in e.images:
                    if image not in pixels:
                        picture = image.open()
                        pixels[image] = hashlib.sha256(shown_by(picture)).hexdigest()
                shown = " ".join(pixels[image] for image in e.images)
                row = (name, e.question, e.answer, e.subject, e.probe, shown, e.choices)
                digest.update(repr(row).encode())
        return digest.hexdigest()

    @property
    def record(self) -> dict[str, Any]:
        """What results say of their data: `source` and `fingerprint`; of files, how many `pictures` were read; of a
        folder of them, among how many `files`.
        """
        read = {} if self.reading is None else self.reading.counts
        return {"source": self.source, "fingerprint": self.fingerprint, **read}
