"""CLEAR in small: see `unsee.data.benchmarks.clear`, which reads it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unsee.data.people import FACTS, Person, Portrait, portraits
from unsee.lab.miniatures.population import Population, question, statement, write_table

FALSE = 3  # captions, names or answers beside the true one
Row = dict[str, Any]


def write_clear(
    folder: Path, everybody: Population, forget: Sequence[int], pictures: int = 5, perturbed: int = 3
) -> None:
    """All its configurations; with the published percentages there are 21.

    Celebrities are the real faces; general knowledge is asked as often.

    Args:
        pictures: of each author, with a caption; five questions in text are asked beside them.
        perturbed: retained authors in `retain_perturbed`: of them names and captions are asked.
    """
    captions = {person: _captions(everybody, person, pictures) for person in everybody.people}
    _mixed(folder, "full", everybody.people, captions)
    write_table(folder / "data", [row for rows in captions.values() for row in rows], _columns("caption", "name"))
    for percent in forget:
        _mixed(folder, f"forget{percent:02d}", everybody.forgotten(percent), captions)
        _mixed(folder, f"retain{100 - percent}", everybody.retained(percent), captions)
        _perturbed(folder, f"forget{percent:02d}_perturbed", everybody, everybody.forgotten(percent), captions)
    _perturbed(folder, "retain_perturbed", everybody, everybody.retained(max(forget))[:perturbed], captions)
    faces = [
        {"image": everybody.picture(p), "answer": p.name, "options": _names(everybody, p)}
        for p in everybody.celebrities
    ]
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


def _captions(everybody: Population, person: Person, pictures: int) -> list[Row]:
    shots = portraits(person, pictures, "main", everybody.seed)
    return [
        {"image": everybody.picture(person, shot=n), "caption": _caption(person.name, shot), "name": person.name}
        for n, shot in enumerate(shots)
    ]


def _caption(name: str, shot: Portrait) -> str:
    seen = shot.attributes()
    glasses = "glasses" if seen["glasses"] == "yes" else "no glasses"
    return f"{name} with {seen['hair']} hair and {glasses} before a {seen['background']} background."


def _names(everybody: Population, person: Person) -> list[str]:
    others = [other.name for other in (*everybody.people, *everybody.celebrities) if other != person]
    return random.Random(f"{everybody.seed}/{person.subject}/names").sample(others, FALSE)


def _perturbed(
    folder: Path, name: str, everybody: Population, people: Sequence[Person], captions: dict[Person, list[Row]]
) -> None:
    rows = [
        {
            **row,
            "paraphrased_caption": f"A picture that shows {row['caption']}",
            "perturbed_captions": [row["caption"].replace(person.name, other) for other in _names(everybody, person)],
            "perturbed_names": _names(everybody, person),
        }
        for person in people
        for row in captions[person]
    ]
    more = ("caption", "name", "paraphrased_caption", "perturbed_captions", "perturbed_names")
    write_table(folder / name, rows, _columns(*more))
