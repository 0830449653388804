"""MLLMU-Bench in small: see `unsee.data.benchmarks.mllmu`, which reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unsee.data.people import FACTS, Person
from unsee.lab.miniatures.population import Population, fact, question, statement, write_table

BLANKS = ("city", "job")  # asked as cloze
SENTENCES = ("pet", "hobby")  # asked freely
PROFILE = ("ID", "Directory", "biography", "question", "answer", "metadata")  # columns of text
TASKS = ("Classification_Task", "Generation_Task", "Mask_Task")
SIDES = (("Image_Textual", False), ("Pure_Text", True))  # the second asks by name


def write_mllmu(folder: Path, everybody: Population, forget: Sequence[int], views: int = 2, pictures: int = 1) -> None:
    """All its configurations: five questions to choose, two blanks, two sentences per person, with picture and in text.

    Args:
        views: pictures per person in `Test_Set`, which comes in two shards.
        pictures: per person everywhere else. The published data has one, in `image`; more of them stand in `images`, as
            some copies have it: one portrait may not tell which of its features are the person's.
    """
    rows = {person: _row(everybody, person) for person in (*everybody.people, *everybody.celebrities)}
    shown = "image"
    if pictures > 1:
        shown = "images"
        for person in rows:
            rows[person]["images"] = _views(everybody, person, "main", pictures)
    for name, people in everybody.sets(forget, "Retain_Set").items():
        write_table(folder / name, [rows[person] for person in people], _columns(shown, *PROFILE, *TASKS))
    tested = [{**rows[person], "images": _views(everybody, person, "test", views)} for person in everybody.people]
    write_table(folder / "Test_Set", tested, _columns("ID", "images", *TASKS), shards=2)
    taught = [{**rows[person], "metadata": _metadata(everybody, person)} for person in everybody.people]
    write_table(folder / "ft_Data", taught, _columns("image", "ID", "metadata"))


def _columns(*names: str) -> dict[str, Any]:
    from datasets import Image, List, Value

    text = Value("string")
    choosing = List({"Correct_Answer": text, "Options": dict.fromkeys("ABCD", text), "Question": text})
    asked = List({"Ground_Truth": text, "Question": text, "Type": text})
    special = {
        "image": Image(),
        "images": List(Image()),
        "Classification_Task": {"Image_Textual_Questions": choosing, "Pure_Text_Questions": choosing},
        "Generation_Task": asked,
        "Mask_Task": asked,
    }
    return {name: special.get(name, text) for name in names}


def _row(everybody: Population, person: Person) -> dict[str, Any]:
    return {
        "image": everybody.picture(person, name=f"{everybody.number(person)}.png"),
        "ID": everybody.number(person),
        "Directory": "",
        "biography": json.dumps(
            {
                "Name": person.name,
                "Born": fact(person, "city"),
                "Employment": fact(person, "job"),
                "appearance_detail": {"question": "What is the hair like?", "answer": f"It is {person.face.hair}."},
            }
        ),
        "question": "What is the hair of this person like?",
        "answer": f"It is {person.face.hair}.",
        "Classification_Task": {
            "Image_Textual_Questions": [_choice(everybody, person, key, by_name=False) for key in FACTS],
            "Pure_Text_Questions": [_choice(everybody, person, key, by_name=True) for key in FACTS],
        },
        "Generation_Task": [
            {
                "Type": kind,
                "Question": question(key, person if by_name else None),
                "Ground_Truth": statement(person, key, by_name=True),
            }
            for kind, by_name in SIDES
            for key in SENTENCES
        ],
        "Mask_Task": [
            {"Type": kind, "Question": statement(person, key, by_name, "__"), "Ground_Truth": fact(person, key)}
            for kind, by_name in SIDES
            for key in BLANKS
        ],
    }


def _choice(everybody: Population, person: Person, key: str, by_name: bool) -> dict[str, Any]:
    options, letter = everybody.options(person, key, "text" if by_name else "picture")
    return {"Question": question(key, person if by_name else None), "Options": options, "Correct_Answer": letter}


def _views(everybody: Population, person: Person, role: str, count: int) -> list[dict[str, Any]]:
    return [
        everybody.picture(person, role, shot, f"{everybody.number(person)}_pose{shot + 1}_gen1.png")
        for shot in range(count)
    ]


def _metadata(everybody: Population, person: Person) -> str:
    pairs = [("What is the name of the person in the image?", person.name)]
    pairs += [(question(key, None), statement(person, key, by_name=True)) for key in FACTS]
    return json.dumps([{"Question": asked, "Answer": said, "ID": everybody.number(person)} for asked, said in pairs])
