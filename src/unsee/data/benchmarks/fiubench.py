"""FIUBench (arXiv 2411.03554): 400 invented people, one synthetic face and 20 questions each.

The data: `full.json`, a list of people, of whom only the first 400 count; `split.json`, lists of ids under `forget1`,
`forget5`, `forget10`; `prompt.json`, refusals; pictures beside them. Whoever is in no forget list is retained, whatever
the percentage. The questions that are taught are also those that are scored. Its README shows an MIT badge; the data
set's card decides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unsee.data.benchmarks.files import POINTER, BenchmarkFolder, BenchmarkValue
from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem, BenchmarkPerson, Part, part_of
from unsee.data.examples import ImageSource
from unsee.data.folder_listing import find_file
from unsee.data.pictures import FileImage
from unsee.data.rows import once
from unsee.errors import BadInput

COUNTED = 400  # people; what follows them in `full.json` is not part of the benchmark


def read_fiubench(place: BenchmarkFolder, forget: int) -> BenchmarkData:
    """The benchmark for one forget percentage.

    Raises:
        BadInput: a file, person or key that would break scores.
    """
    people, splits = _people(place), _splits(place)
    wanted = f"forget{forget}"
    if wanted not in splits:
        raise BadInput(f"{place.folder}/split.json: no '{wanted}', but {', '.join(splits)}; give ,forget=N with one")
    for name, subjects in splits.items():
        if odd := next((subject for subject in subjects if subject not in people), None):
            raise BadInput(f"{place.folder}/split.json: '{odd}' of {name} is not in full.json; get sound copies")
    named = set().union(*splits.values())
    gone = [who for who in people if who in splits[wanted]]
    kept = [who for who in people if who not in named]
    if not (gone and kept):
        raise BadInput(f"{place.folder}/split.json: nobody to {'retain' if gone else 'forget'}; get a sound copy")
    items = {who: _items(place, who, people[who], wanted if who in gone else "retain") for who in (*gone, *kept)}
    return BenchmarkData(
        place.source,
        tuple(item for found in items.values() for item in found),
        tuple(
            BenchmarkPerson(who, found[0].name, who in gone, found[0].images, tuple(item.example() for item in found))
            for who, found in items.items()
        ),
    )


def fiubench_items(place: BenchmarkFolder, configuration: str) -> tuple[BenchmarkItem, ...]:
    """The questions about everybody (`full`), one forget list, or those in none (`retain`).

    Raises:
        BadInput: as `read_fiubench`.
    """
    people, splits = _people(place), _splits(place)
    splits["full"] = list(people)
    splits["retain"] = [who for who in people if not any(who in s for name, s in splits.items() if name != "full")]
    if configuration not in splits:
        raise BadInput(f"{place.folder}/split.json: no '{configuration}', but {', '.join(splits)}; give one of them")
    wanted = [who for who in people if who in splits[configuration]]
    return tuple(item for who in wanted for item in _items(place, who, people[who], configuration))


def _json(path: Path) -> BenchmarkValue:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        pointer = path.is_file() and path.read_bytes().startswith(POINTER)
        reason = "it is a Git LFS pointer, run `git lfs pull`" if pointer else " ".join(str(error).split())
        raise BadInput(f"{path}: cannot be read as JSON ({reason}); get a sound copy") from error
    return BenchmarkValue(str(path), "", content)


def _people(place: BenchmarkFolder) -> dict[str, BenchmarkValue]:
    found: dict[str, BenchmarkValue] = {}
    for person in _json(place.folder / "full.json").items()[:COUNTED]:
        named = BenchmarkValue(f"{person.where}, row {person.key.lstrip('.')}", "", person.value)
        who = named["unique_id"].identifier()
        if who in found:
            raise BadInput(f"{named.where}: '{who}' is also in {found[who].where}; get a sound copy")
        found[who] = named
    if not found:
        raise BadInput(f"{place.folder}/full.json: has nobody; get a sound copy")
    return found


def _splits(place: BenchmarkFolder) -> dict[str, list[str]]:
    fields = _json(place.folder / "split.json").fields()
    return {name: [entry.identifier() for entry in cell.items()] for name, cell in fields.items() if "forget" in name}


def _picture(place: BenchmarkFolder, cell: BenchmarkValue) -> ImageSource:
    """The picture of a person. Paths begin where its authors worked: the longest end that is a file here counts."""
    parts = PurePosixPath(cell.text().replace("\\", "/")).parts
    for start in range(len(parts)):
        end = [part for part in parts[start:] if part not in ("/", ".", "..")]
        if path := find_file(str(place.folder), os.path.join(*end)) if end else None:
            return FileImage(path)
    raise cell.wrong(f"a picture under {place.folder}; unpack the pictures there")


def _items(place: BenchmarkFolder, who: str, person: BenchmarkValue, configuration: str) -> list[BenchmarkItem]:
    part: Part = part_of(configuration, {})
    found = list(_asked(person, who, configuration, part, _picture(place, person["image_path"])))
    if not found:
        raise BadInput(f"{person.where}: no question in 'qa_list'; get a sound copy")
    return found


def _asked(
    person: BenchmarkValue, who: str, configuration: str, part: Part, picture: ImageSource
) -> Iterator[BenchmarkItem]:
    name = person["name"].text()
    for number, entry in enumerate(person["qa_list"].items(), start=1):
        answer = entry["answer"].text()
        yield BenchmarkItem(
            configuration,
            part,
            "generation",
            who,
            name,
            entry["question"].text(),
            answer,
            images=(picture,),
            key=str(number),
            wrong=tuple(text for text in entry["perturbed_answer"].texts() if text != answer),
            paraphrases=entry["paraphrased_answer"].texts(),
            rephrased=entry["paraphrased_question"].texts(),
            keywords=entry["keywords"].texts(),
        )
