"""A benchmark as data to unlearn and evaluate on: what its models are taught, in three splits of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from unsee.data.benchmarks.items import RECOGNISE, BenchmarkData, BenchmarkPerson
from unsee.data.benchmarks.views import View
from unsee.data.examples import SPLITS, Example, ImageSource, Split, UnlearnData
from unsee.data.pictures import FileImage
from unsee.data.rows import TableImage
from unsee.data.splits import share_out
from unsee.progress import track

ENOUGH = 3  # pictures of a person, from which all three splits can be made

Pictures = dict[str, Sequence[ImageSource]]  # split -> pictures


def study(data: BenchmarkData) -> UnlearnData:
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
