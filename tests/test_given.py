"""What methods say they were given is what they look at: all else may be taken away, and nothing of it may."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import NewCheckpoint
from PIL import Image, ImageOps

from unsee.data.examples import Example, ImageSource, Split, UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.lab.build import POCKETS
from unsee.methods import METHODS, Method
from unsee.methods.parts.base import Given
from unsee.table import markdown_table

SMALL: dict[str, Any] = {"steps": 6, "batch": 6, "last_blocks": 1, "forget_pictures": 2, "retain_pictures": 4}
SMALL |= {"adapt_every": 2, "variation": "never", "vision_layers": 2, "language_layers": 1}
FAMILY = {name: list(POCKETS)[number % len(POCKETS)] for number, name in enumerate(METHODS)}
every_method = pytest.mark.parametrize("name", list(METHODS))


def small(name: str) -> Method:
    known = {field.name for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    return METHODS[name](**{key: value for key, value in SMALL.items() if key in known})


@dataclass(frozen=True)
class Mirrored:
    """Another picture of the same size."""

    source: ImageSource

    @property
    def label(self) -> str:
        return f"{self.source.label}, mirrored"

    def open(self) -> Image.Image:
        return ImageOps.mirror(self.source.open())


def other_answer(e: Example) -> Example:
    """The same question about a fact with a wrong answer, everything else as it was."""
    if e.probe != "fact" or e.image is None:
        return e
    return dataclasses.replace(e, answer=e.choices[(e.choices.index(e.answer) + 1) % len(e.choices)])


def mirrored(e: Example) -> Example:
    return e if e.image is None else dataclasses.replace(e, image=Mirrored(e.image))


def deprived(data: UnlearnData, forget: Collection[str], parts: Collection[Given]) -> UnlearnData:
    """Without these parts. What an edit cannot do without is replaced by what is not true."""

    def changed(e: Example) -> Example:
        if e.subject in forget:
            return other_answer(e) if "facts" in parts else e
        e = other_answer(e) if "retained answers" in parts else e
        return mirrored(e) if "retained pictures" in parts else e

    def stays(e: Example) -> bool:
        return not (("text" in parts and e.image is None) or ("attributes" in parts and e.probe == "attribute"))

    train = Split(tuple(changed(e) for e in data.train if stays(e)))
    held_back = data.validation.without(forget) if "held-back pictures" in parts else data.validation
    return dataclasses.replace(data, train=train, validation=Split(tuple(filter(stays, held_back))))


Edited = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def edited(people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Edited:
    """Hashes of the files of an edit by a method that lacks some parts, less those that say how it was made."""

    forget = people.train.subjects[::2]  # whose stand-ins among the two others depend on visible attributes

    @cache
    def source(family: str) -> Path:
        return new_checkpoint(family=family)

    @cache
    def make(name: str, *parts: Given) -> dict[str, str]:
        out = tmp_path_factory.mktemp("given") / "out"
        request = EditRequest(deprived(people, forget, parts), forget, small(name), 0, gate=False)
        unlearn(str(source(FAMILY[name])), request, out)
        written = (file for file in out.iterdir() if file.name not in ("unsee.json", "README.md"))
        return {file.name: sha256(file.read_bytes()).hexdigest() for file in written}

    return make


@every_method
def test_what_a_method_was_not_given_changes_no_byte(edited: Edited, name: str) -> None:
    others = [part for part in get_args(Given) if part not in METHODS[name].given]
    assert edited(name, *others) == edited(name)


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name, kind in METHODS.items() for part in kind.given], ids=str
)
def test_what_it_was_given_it_looks_at(edited: Edited, name: str, part: Given) -> None:
    """The control: without it the result is another."""
    assert edited(name, part) != edited(name)


def test_the_page_says_what_the_classes_say() -> None:
    """A table of docs/methods.md, to be copied from here if a method is added."""
    parts = get_args(Given)
    rows = [
        (
            f"[`{name}`](methods/{name}.md)",
            *("yes" if part in kind.given else "" for part in parts),
            kind().language_model,
        )
        for name, kind in METHODS.items()
    ]
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    assert markdown_table(("method", *parts, "language model"), rows) in page
    described = re.findall(r"^\| ([a-z -]+) \| (?!facts)", page, re.MULTILINE)
    assert described == ["column", *parts, "language model"]
