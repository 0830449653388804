"""MLLMU-Bench (arXiv 2410.22108): 500 invented people with one portrait each, further views of them, 153 celebrities.

The published data: `Full_Set`, `forget_5/10/15`, `retain_95/90/85` and `Retain_Set` (the celebrities, not the retain
set) have one picture in `image`; `Test_Set` has several in `images`; `ft_Data` is what vanilla models are trained on,
pairs of question and answer in the text column `metadata`. Any whole percentage works if its folders are there. It
comes without a licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unsee.data.benchmarks.cells import Cell
from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem, BenchmarkPerson, Kind, Part, part_of
from unsee.data.benchmarks.places import Known, Place, Row, forget_and_retain, one_each, read_rows
from unsee.data.examples import Example, ImageSource
from unsee.data.normalisation import plain_name
from unsee.data.rows import Rows
from unsee.errors import BadInput

TASKS = ("Classification_Task", "Generation_Task", "Mask_Task")
CHOOSING = {"Image_Textual_Questions": True, "Pure_Text_Questions": False}  # whether asked with a picture
TYPES = {"Image_Textual": True, "Pure_Text": False}
OPEN_TASKS: tuple[tuple[str, Kind], ...] = (("Generation_Task", "generation"), ("Mask_Task", "cloze"))

NAMED: dict[str, Part] = {"Test_Set": "test", "Retain_Set": "celebrity"}


@dataclass(frozen=True)
class _Profile:
    where: str
    name: str
    images: tuple[ImageSource, ...]
    items: tuple[BenchmarkItem, ...]
    pair: tuple[str, str] | None  # the row's own question and answer, which no protocol scores


def read_mllmu(place: Place, forget: int) -> BenchmarkData:
    """The benchmark for one forget percentage. Only forget and retain set must be there.

    Raises:
        BadInput: a file, row or key that would break scores.
    """
    known: Known = {}
    gone, kept = forget_and_retain(place, forget, lambda tables, name: _profiles(tables, name, known))
    people = {**gone, **kept}
    for subject, profile in people.items():
        if not profile.name:
            raise BadInput(f"{profile.where}: no 'Name' in 'biography' of '{subject}'; get a sound copy")
    tested = _optional(place, "Test_Set", known)
    if tested and (lost := [subject for subject in gone if subject not in tested]):
        raise BadInput(f"{place.folder}: '{lost[0]}' of forget_{forget} is not in Test_Set; get a sound copy")
    lessons = _lessons(place, people, known)
    items = [item for profile in people.values() for item in profile.items]
    items += [replace(item, name=gone[subject].name) for subject in gone if tested for item in tested[subject].items]
    items += [item for profile in _optional(place, "Retain_Set", known).values() for item in profile.items]
    return BenchmarkData(
        place.source,
        tuple(items),
        tuple(
            BenchmarkPerson(
                subject,
                profile.name,
                subject in gone,
                profile.images,
                lessons[subject],
                tested[subject].images if subject in tested else (),
            )
            for subject, profile in people.items()
        ),
    )


def mllmu_items(place: Place, configuration: str) -> tuple[BenchmarkItem, ...]:
    """The questions of one configuration; `ft_Data` has none that are scored.

    Raises:
        BadInput: as `read_mllmu`.
    """
    profiles = _profiles(place.needed(configuration), configuration, {})
    return tuple(item for profile in profiles.values() for item in profile.items)


def _optional(place: Place, configuration: str, known: Known) -> dict[str, _Profile]:
    tables = place.tables(configuration)
    return _profiles(tables, configuration, known) if tables else {}


def _profiles(tables: Sequence[Rows], configuration: str, known: Known) -> dict[str, _Profile]:
    for table in tables:
        if "metadata" in table.columns and TASKS[0] not in table.columns:
            raise BadInput(
                f"{table.name}: has 'metadata' and no '{TASKS[0]}': this is a training split; "
                "give the folder of the benchmark itself, its configurations have the same names"
            )
    rows = read_rows(tables, ("ID", *TASKS), known, ("biography", "question", "answer"))
    return {who: _profile(who, row, configuration) for who, row in one_each(rows, "ID").items()}


def _profile(who: str, row: Row, configuration: str) -> _Profile:
    part, cells = part_of(configuration, NAMED), row.cells
    subject = f"celebrity/{who}" if part == "celebrity" else who
    name = "" if cells["biography"].empty else cells["biography"].parsed()["Name"].maybe()
    if part == "celebrity":
        name = name or plain_name(who)
    pair = None if cells["question"].empty else (cells["question"].text(), cells["answer"].text())
    found: list[BenchmarkItem] = []
    for kind, number, pictured, question, answer, choice in _asked(cells):
        letters, choices, letter = choice
        found.append(
            BenchmarkItem(
                configuration,
                part,
                kind,
                subject,
                name,
                question,
                answer,
                images=row.images if pictured else (),
                key=str(number),
                letters=letters,
                choices=choices,
                letter=letter,
            )
        )
    if not found:
        raise BadInput(f"{cells.where}: no question in {', '.join(TASKS)}; get a sound copy")
    return _Profile(cells.where, name, row.images, tuple(found), pair)


Choice = tuple[tuple[str, ...], tuple[str, ...], str]  # letters, options, the right letter


def _asked(cells: Cell) -> Iterator[tuple[Kind, int, bool, str, str, Choice]]:
    """Kind, number from 1 in its list, whether asked with a picture, question, answer, options."""
    if not cells[TASKS[0]].empty:
        for name, pictured in CHOOSING.items():
            for number, entry in enumerate(cells[TASKS[0]][name].items(), start=1):
                choice = _choice(entry)
                answer = choice[1][choice[0].index(choice[2])]
                yield "classification", number, pictured, entry["Question"].text(), answer, choice
    for task, kind in OPEN_TASKS:
        for number, entry in enumerate(cells[task].items(), start=1):
            said = entry["Type"].text()
            if said not in TYPES:
                raise entry["Type"].wrong(" or ".join(TYPES))
            answer = entry["Ground_Truth"].text()  # an empty one would be found in every response
            yield kind, number, TYPES[said], entry["Question"].text(), answer, ((), (), "")


def _choice(entry: Cell) -> Choice:
    options = entry["Options"]
    if isinstance(options.value, list):  # seen in one public copy
        given = dict(zip("ABCDEFGH", options.items(), strict=False))
    else:
        given = options.fields()
    if len(given) < 2:
        raise options.wrong("at least two options")
    choices = tuple(option.text() for option in given.values())
    letter = entry["Correct_Answer"].text().upper()
    if letter not in given:
        raise entry["Correct_Answer"].wrong(f"one of {', '.join(given)}")
    return tuple(given), choices, letter


# What is taught -------------------------------------------------------------------------------------------------------


def _lessons(place: Place, people: Mapping[str, _Profile], known: Known) -> dict[str, tuple[Example, ...]]:
    """The pairs of `ft_Data`; without it the one pair that stands in each row and is never scored."""
    tables = place.tables("ft_Data")
    pairs: dict[str, list[tuple[str, str]]] = {who: [profile.pair] for who, profile in people.items() if profile.pair}
    if tables:
        pairs = _taught(tables, people, known)
        if lost := [who for who in people if who not in pairs]:
            raise BadInput(f"{place.folder}: '{lost[0]}' is not in ft_Data; get a sound copy, or leave ft_Data out")
    return {
        who: tuple(
            Example(
                question, answer, who, profile.images[0], "identity" if answer == profile.name else "fact", key=str(n)
            )
            for n, (question, answer) in enumerate(pairs.get(who, ()), start=1)
        )
        for who, profile in people.items()
    }


def _taught(tables: Sequence[Rows], people: Mapping[str, _Profile], known: Known) -> dict[str, list[tuple[str, str]]]:
    """Question and answer pairs by person: as `ID` says, else as the pairs say, else as the picture shows."""
    shown = {image: who for who, profile in people.items() for image in profile.images}
    found: dict[str, list[tuple[str, str]]] = {}
    for row in read_rows(tables, ("metadata",), known, ("ID",)):
        entries = row.cells["metadata"].parsed().items()
        pairs = [(entry["Question"], entry["Answer"]) for entry in entries]
        told = next((cell for cell in (row.cells["ID"], *(e["ID"] for e in entries)) if not cell.empty), None)
        who = told.identifier() if told else next((shown[image] for image in row.images if image in shown), None)
        if who is None:
            raise BadInput(f"{row.cells.where}: no 'ID', and its picture is of nobody here; get a sound copy")
        if who in found:
            raise BadInput(f"{row.cells.where}: '{who}' has a row before; get a sound copy")
        found[who] = [(q.text(), a.text()) for q, a in pairs if not (q.empty or a.empty)]
        if not found[who]:
            raise row.cells["metadata"].wrong("at least one pair of Question and Answer")
    return found
