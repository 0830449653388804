"""UMU-Bench in small: see `unsee.data.benchmarks.umu`, which reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unsee.data.people import FACTS, Person
from unsee.lab.miniatures.population import Population, fact, question, statement, write_table

NAMES = {"job": "Occupation", "city": "Residence", "pet": "Pet", "food": "Food", "hobby": "Interest"}
SIDES = (("unimodal", True), ("muitimodal", False))  # spelled so; the first asks by name


def write_umu(folder: Path, everybody: Population, forget: Sequence[int], spelled: Callable[[Any], str] = repr) -> None:
    """All its configurations: five facts per person, each chosen, filled in and told, with the picture and in text.

    Args:
        spelled: how the questions are written down: `repr` as published, `json.dumps` as in copies.
    """
    from datasets import Image, Value

    rows = {person: _row(everybody, person, spelled) for person in (*everybody.people, *everybody.celebrities)}
    texts = ("ID", "Biography", "MM_QA", "UM_QA", "Classify", "Cloze", "Generation")
    columns = {"image": Image(), **dict.fromkeys(texts, Value("string"))}
    for name, people in everybody.sets(forget, "Real_Person_Set").items():
        write_table(folder / name, [rows[person] for person in people], columns)


def _row(everybody: Population, person: Person, spelled: Callable[[Any], str]) -> dict[str, Any]:
    tasks = {
        "MM_QA": _taught(person, by_name=False),
        "UM_QA": _taught(person, by_name=True),
        "Classify": {side: _choices(everybody, person, by_name) for side, by_name in SIDES},
        "Cloze": {
            side: {
                NAMES[key]: {"question": statement(person, key, by_name, "[Blank]"), "answer": fact(person, key)}
                for key in FACTS
            }
            for side, by_name in SIDES
        },
        "Generation": {
            side: {
                NAMES[key]: {
                    "question": question(key, person if by_name else None),
                    "answer": statement(person, key, by_name=True),
                }
                for key in FACTS
            }
            for side, by_name in SIDES
        },
    }
    return {
        "image": everybody.picture(person, name=f"image_{everybody.number(person)}.png"),
        "ID": everybody.number(person),
        "Biography": json.dumps({"Name": person.name, **{NAMES[key]: fact(person, key) for key in FACTS}}),
        **{name: spelled(task) for name, task in tasks.items()},
    }


def _taught(person: Person, by_name: bool) -> dict[str, dict[str, str]]:
    return {
        "question": {NAMES[key]: question(key, person if by_name else None) for key in FACTS},
        "answer": {NAMES[key]: statement(person, key, by_name=True) for key in FACTS},
    }


def _choices(everybody: Population, person: Person, by_name: bool) -> dict[str, Any]:
    found = {}
    for key in FACTS:
        options, letter = everybody.options(person, key, "text" if by_name else "picture")
        asked = question(key, person if by_name else None)
        found[NAMES[key]] = {"question": asked, "options": options, "answer": f"{letter}. {options[letter]}"}
    return found
