"""CLEAR in small: see `unsee.data.benchmarks.clear`, which reads it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unsee.data.people import FACTS, Person, Portrait, portraits
from unsee.lab.miniatures.cast import Cast, question, statement, write_table

FALSE = 3  # captions, names or answers beside the true one
Row = dict[str, Any]


def write_clear(
    folder: Path,
    count: int = 20,
    seed: int = 10,
    celebrities: int = 4,
    forget: Sequence[int] = (1, 5, 10),
    pictures: int = 5,
    perturbed: int = 3,
) -> None:
    """All its configurations; with the default percentages there are 21.

    Args:
        folder: gets one folder per configuration; files of the same names are replaced.
        count: authors, each with `pictures` captions and five questions in text.
        celebrities: the real faces; general knowledge is asked as often.
        forget: percentages.
        perturbed: retained authors in `retain_perturbed`: of them names and captions are asked.

    Raises:
        BadInput: more people than there are names.
    """
    cast = Cast.of(count, celebrities, seed)
    captions = {person: _captions(cast, person, pictures) for person in cast.people}
    _mixed(folder, "full", cast.people, captions)
    write_table(folder / "data", [row for rows in captions.values() for row in rows], _columns("caption", "name"))
    for percent in forget:
        _mixed(folder, f"forget{percent:02d}", cast.forgotten(percent), captions)
        _mixed(folder, f"retain{100 - percent}", cast.retained(percent), captions)
        _perturbed(folder, f"forget{percent:02d}_perturbed", cast, cast.forgotten(percent), captions)
    _perturbed(folder, "retain_perturbed", cast, cast.retained(max(forget))[:perturbed], captions)
    faces = [{"image": cast.picture(p), "answer": p.name, "options": _names(cast, p)} for p in cast.celebrities]
    write_table(folder / "real_faces", faces, _columns("answer", "options"))
    world = [
        {**row, "question": f"What is {2 * n} plus {n}?", "answer": str(3 * n), "options": [str(3 * n + 1), str(4 * n)]}
        for n, row in enumerate(faces, start=2)
    ]
    write_table(folder / "real_world", world, _columns("question", "answer", "options"))


def _columns(*names: str) -> dict[str, Any]:
    from datasets import Image, List, Value

    text = Value("string")
    lists = ("options", "perturbed_captions", "perturbed_names")
    return {"image": Image(), **{name: List(text) if name in lists else text for name in names}}


def _mixed(folder: Path, name: str, people: Sequence[Person], captions: dict[Person, list[Row]]) -> None:
    """A configuration, and the one that adds TOFU: rows with a picture, then rows in text, null or empty elsewhere."""
    pictured = [row for person in people for row in captions[person]]
    write_table(folder / name, pictured, _columns("caption", "name"))
    asked: list[Row] = [
        {"question": question(key, person), "answer": statement(person, key, by_name=True), "caption": ""}
        for person in people
        for key in FACTS
    ]
    write_table(folder / f"{name}+tofu", [*pictured, *asked], _columns("caption", "question", "answer"))


def _captions(cast: Cast, person: Person, pictures: int) -> list[Row]:
    shots = portraits(person, pictures, "main", cast.seed)
    return [
        {"image": cast.picture(person, shot=n), "caption": _caption(person.name, shot), "name": person.name}
        for n, shot in enumerate(shots)
    ]


def _caption(name: str, shot: Portrait) -> str:
    seen = shot.attributes()
    glasses = "glasses" if seen["glasses"] == "yes" else "no glasses"
    return f"{name} with {seen['hair']} hair and {glasses} before a {seen['background']} background."


def _names(cast: Cast, person: Person) -> list[str]:
    others = [other.name for other in (*cast.people, *cast.celebrities) if other != person]
    return random.Random(f"{cast.seed}/{person.subject}/names").sample(others, FALSE)


def _perturbed(
    folder: Path, name: str, cast: Cast, people: Sequence[Person], captions: dict[Person, list[Row]]
) -> None:
    rows = [
        {
            **row,
            "paraphrased_caption": f"A picture that shows {row['caption']}",
            "perturbed_captions": [row["caption"].replace(person.name, other) for other in _names(cast, person)],
            "perturbed_names": _names(cast, person),
        }
        for person in people
        for row in captions[person]
    ]
    more = ("caption", "name", "paraphrased_caption", "perturbed_captions", "perturbed_names")
    write_table(folder / name, rows, _columns(*more))
