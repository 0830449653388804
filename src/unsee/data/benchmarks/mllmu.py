"""MLLMU-Bench (arXiv 2410.22108): 500 invented people with one portrait each, further views of them, 153 celebrities.

The published data: `Full_Set`, `forget_5/10/15`, `retain_95/90/85` and `Retain_Set` (the celebrities, not the retain
set) have one picture in `image`; `Test_Set` has several in `images`; `ft_Data` is what vanilla models are trained on,
pairs of question and answer in the text column `metadata`. Any whole percentage works if its folders are there. It
comes without a licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from unsee.data.benchmarks.files import BenchmarkFolder, BenchmarkRow, BenchmarkValue, Known, read_rows
from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem, BenchmarkPerson, Kind, Part, part_of
from unsee.data.benchmarks.profiles import Profile, ProfileQuestion, forget_and_retain, one_each
from unsee.data.examples import Example
from unsee.data.normalisation import plain_name
from unsee.data.rows import Rows
from unsee.errors import BadInput

TASKS = ("Classification_Task", "Generation_Task", "Mask_Task")
CHOOSING = {"Image_Textual_Questions": True, "Pure_Text_Questions": False}  # whether asked with a picture
TYPES = {"Image_Textual": True, "Pure_Text": False}
OPEN_TASKS: tuple[tuple[str, Kind], ...] = (("Generation_Task", "generation"), ("Mask_Task", "cloze"))

NAMED: dict[str, Part] = {"Test_Set": "test", "Retain_Set": "celebrity"}


def read_mllmu(place: BenchmarkFolder, forget: int) -> BenchmarkData:
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


def mllmu_items(place: BenchmarkFolder, configuration: str) -> tuple[BenchmarkItem, ...]:
    """The questions of one configuration; `ft_Data` has none that are scored.

    Raises:
        BadInput: as `read_mllmu`.
    """
    profiles = _profiles(place.needed(configuration), configuration, {})
    return tuple(item for profile in profiles.values() for item in profile.items)


def _optional(place: BenchmarkFolder, configuration: str, known: Known) -> dict[str, Profile]:
    tables = place.tables(configuration)
    return _profiles(tables, configuration, known) if tables else {}


def _profiles(tables: Sequence[Rows], configuration: str, known: Known) -> dict[str, Profile]:
    for table in tables:
        if "metadata" in table.columns and TASKS[0] not in table.columns:
            raise BadInput(
                f"{table.name}: has 'metadata' and no '{TASKS[0]}': this is a training split; "
                "give the folder of the benchmark itself, its configurations have the same names"
            )
    rows = read_rows(tables, ("ID", *TASKS), known, ("biography", "question", "answer"))
    return {who: _profile(who, row, configuration) for who, row in one_each(rows, "ID").items()}


def _profile(who: str, row: BenchmarkRow, configuration: str) -> Profile:
    part, cells = part_of(configuration, NAMED), row.cells
    celebrity = part == "celebrity"
    name = "" if cells["biography"].empty else cells["biography"].parsed()["Name"].maybe()
    name = name or (plain_name(who) if celebrity else "")
    profile = Profile(cells.where, f"celebrity/{who}" if celebrity else who, name, row.images)
    if not cells["question"].empty:  # the row's own question and answer, which no protocol scores
        lesson = profile.lesson("1", cells["question"].text(), cells["answer"].text())
        profile = replace(profile, lessons=(lesson,))
    profile = profile.asked(configuration, part, _questions(cells))
    if not profile.items:
        raise BadInput(f"{cells.where}: no question in {', '.join(TASKS)}; get a sound copy")
    return profile


def _questions(cells: BenchmarkValue) -> Iterator[ProfileQuestion]:
    if not cells[TASKS[0]].empty:
        for name, pictured in CHOOSING.items():
            for number, entry in enumerate(cells[TASKS[0]][name].items(), start=1):
                options, letter = _choice(entry)
                question = entry["Question"].text()
                yield ProfileQuestion(
                    "classification", str(number), pictured, question, options[letter], options, letter
                )
    for task, kind in OPEN_TASKS:
        for number, entry in enumerate(cells[task].items(), start=1):
            said = entry["Type"].text()
            if said not in TYPES:
                raise entry["Type"].wrong(" or ".join(TYPES))
            answer = entry["Ground_Truth"].text()  # an empty one would be found in every response
            yield ProfileQuestion(kind, str(number), TYPES[said], entry["Question"].text(), answer)


def _choice(entry: BenchmarkValue) -> tuple[dict[str, str], str]:
    """Options by letter, and the letter of the right one."""
    options = entry["Options"]
    if isinstance(options.value, list):  # seen in one public copy
        given = dict(zip("ABCDEFGH", options.items(), strict=False))
    else:
        given = options.fields()
    if len(given) < 2:
        raise options.wrong("at least two options")
    choices = {letter: option.text() for letter, option in given.items()}
    letter = entry["Correct_Answer"].text().upper()
    if letter not in choices:
        raise entry["Correct_Answer"].wrong(f"one of {', '.join(given)}")
    return choices, letter


# What is taught -------------------------------------------------------------------------------------------------------


def _lessons(folder: BenchmarkFolder, people: Mapping[str, Profile], known: Known) -> dict[str, tuple[Example, ...]]:
    """The pairs of `ft_Data`; without it the one pair that stands in each row and is never scored."""
    tables = folder.tables("ft_Data")
    if not tables:
        return {who: profile.lessons for who, profile in people.items()}
    pairs = _taught(tables, people, known)
    if lost := [who for who in people if who not in pairs]:
        raise BadInput(f"{folder.folder}: '{lost[0]}' is not in ft_Data; get a sound copy, or leave ft_Data out")
    return {
        who: tuple(profile.lesson(str(n), *pair) for n, pair in enumerate(pairs[who], start=1))
        for who, profile in people.items()
    }


def _taught(tables: Sequence[Rows], people: Mapping[str, Profile], known: Known) -> dict[str, list[tuple[str, str]]]:
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
