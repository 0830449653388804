"""A benchmark as data to unlearn and evaluate on: what its models are taught, in three splits of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageEnhance, ImageOps

from unsee.data.benchmarks.items import RECOGNISE, BenchmarkData, BenchmarkPerson
from unsee.data.examples import SPLITS, Example, ImageSource, Split, UnlearnData
from unsee.data.pictures import FileImage
from unsee.data.rows import TableImage
from unsee.data.splits import share_out
from unsee.progress import track

CLOSER = 0.92  # of each side, what the mirrored view keeps
TURN = 8.0  # degrees
INSIDE = 0.8  # of each side, what the turned view keeps: no corner that the turn left empty
DARKER = 0.85

ENOUGH = 3  # pictures of a person, from which all three splits can be made

Pictures = dict[str, Sequence[ImageSource]]  # split -> pictures


def unlearn_data(data: BenchmarkData) -> UnlearnData:
    """The people of a benchmark, those to be forgotten first; every picture is decoded once.

    It holds what the benchmark's models are trained on; items that are only scored are not in it. Every picture is also
    asked who it shows, in our words. The splits of a person's pictures: the benchmark's own further views, if any
    (MLLMU-Bench), are the test; three pictures or more (CLEAR) are shared out as in a folder; else the test is a turned
    `View`. Where there is no other picture, validation is a mirrored `View`.

    Raises:
        BadInput: a picture that cannot be read.
    """
    asked: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for person in data.people:
        for split, pictures in _splits(data.source, person).items():
            asked[split] += [example for picture in pictures for example in _questions(person, picture)]
        asked["train"] += [lesson for lesson in person.lessons if lesson.image is None]
    splits: Mapping[str, Split] = {split: Split(tuple(found)) for split, found in asked.items()}
    for image in track([image for split in splits.values() for image in split.pictures], "checking pictures"):
        image.open()
    return UnlearnData(
        data.source,
        splits["train"],
        splits["validation"],
        splits["test"],
        names={person.subject: person.name or person.subject for person in data.people},
    )


def _splits(source: str, person: BenchmarkPerson) -> Pictures:
    mirrored = tuple(View(picture, "mirrored") for picture in person.pictures)
    if person.views:
        return {"train": person.pictures, "validation": mirrored, "test": person.views}
    if len(person.pictures) < ENOUGH:
        turned = tuple(View(picture, "turned") for picture in person.pictures)
        return {"train": person.pictures, "validation": mirrored, "test": turned}
    groups = {picture: _content(picture) for picture in person.pictures}
    places = share_out(source, person.subject, groups.values(), ("validation", "test"))
    return {split: [picture for picture in groups if places[groups[picture]] == split] for split in SPLITS}


def _content(picture: ImageSource) -> str:
    """What a picture falls by: its content, for where its file lies is another matter on every machine."""
    if isinstance(picture, TableImage):
        return picture.digest
    if isinstance(picture, FileImage):
        return hashlib.sha256(picture.encoded()).hexdigest()
    return picture.label


def _questions(person: BenchmarkPerson, picture: ImageSource) -> Iterator[Example]:
    """Who it shows, and what is taught about it; of a picture nothing is taught about, what is about the first one."""
    if person.name:
        yield Example(RECOGNISE, person.name, person.subject, picture, "identity", key="name")
    own = [lesson for lesson in person.lessons if lesson.image == picture]
    for lesson in own or [lesson for lesson in person.lessons if lesson.image == person.pictures[0]]:
        yield replace(lesson, image=picture)


# Further views of a picture, where a benchmark has one picture of each person -----------------------------------------


@dataclass(frozen=True)
class View:
    """A picture mirrored and seen a little closer, or turned and darker. Our choice: faces stay easy to recognise.

    It is a view of a picture that was trained on, so right answers about it say nothing about new photographs.
    """

    picture: ImageSource
    kind: Literal["mirrored", "turned"]

    @property
    def label(self) -> str:
        return f"{self.picture.label}, {self.kind}"

    def open(self) -> Image.Image:
        """The view, as large as the picture.

        Raises:
            BadInput: the picture cannot be read.
        """
        picture = self.picture.open()
        if self.kind == "mirrored":
            return _middle(ImageOps.mirror(picture), CLOSER)
        turned = _middle(picture.rotate(TURN, resample=Image.Resampling.BICUBIC), INSIDE)
        return ImageEnhance.Brightness(turned).enhance(DARKER)


def _middle(picture: Image.Image, share: float) -> Image.Image:
    width, height = picture.size
    left, top = width * (1 - share) / 2, height * (1 - share) / 2
    box = (left, top, width - left, height - top)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)
