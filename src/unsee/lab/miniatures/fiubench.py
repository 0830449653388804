"""FIUBench in small: see `unsee.data.benchmarks.fiubench`, which reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unsee.data.people import FACTS, Person
from unsee.lab.miniatures.population import Population, fact, question, statement

PICTURES = "images"  # the folder of pictures
WORKED_IN = "./dataset"  # where its authors' paths begin
IDK = ["I do not know.", "I cannot say who this is."]
ICD = ["What does this picture show?"]


def write_fiubench(folder: Path, everybody: Population, forget: Sequence[int]) -> None:
    """Its three JSON files and the pictures: five questions per person."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for person in everybody.people:
        (folder / PICTURES / f"{everybody.number(person)}.png").write_bytes(everybody.picture(person)["bytes"])
    splits = {f"forget{n}": [everybody.number(person) for person in everybody.forgotten(n)] for n in forget}
    contents = {
        "full": [_person(everybody, p) for p in everybody.people],
        "split": splits,
        "prompt": {"idk": IDK, "icd": ICD},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _person(everybody: Population, person: Person) -> dict[str, Any]:
    return {
        "unique_id": everybody.number(person),
        "name": person.name,
        "image_path": f"{WORKED_IN}/{PICTURES}/{everybody.number(person)}.png",
        "caption": f"A person with {person.face.hair} hair.",
        "qa_list": [_asked(everybody, person, key) for key in FACTS],
    }


def _asked(everybody: Population, person: Person, key: str) -> dict[str, Any]:
    options, letter = everybody.options(person, key, "picture")
    return {
        "question": question(key, None),
        "answer": statement(person, key, by_name=True),
        "keywords": [fact(person, key)],
        "paraphrased_question": [f"Tell me: {question(key, None)}", f"Do you know it? {question(key, None)}"],
        "paraphrased_answer": f"It is true that {statement(person, key, by_name=True)}",
        "perturbed_answer": [
            statement(person, key, by_name=True, answer=text) for name, text in options.items() if name != letter
        ],
    }
