"""UMU-Bench (NeurIPS 2025, Datasets and Benchmarks): the people of MLLMU-Bench, every piece of knowledge asked twice,
with the picture and in text.

The published data: `Full_Set`, `Real_Person_Set` (called `real_person` by its code), `forget_5/10/15`,
`retain_95/90/85`. The questions are texts that hold a Python literal, JSON in copies; `muitimodal` is spelled so in the
data, `multimodal` is read as well. It comes without a licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from unsee.data.benchmarks.files import BenchmarkFolder, BenchmarkRow, BenchmarkValue, Known, read_rows
from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem, BenchmarkPerson, Kind, Part, part_of
from unsee.data.benchmarks.profiles import Profile, ProfileQuestion, forget_and_retain, one_each
from unsee.data.normalisation import plain_name
from unsee.data.rows import Rows
from unsee.errors import BadInput

TASKS: tuple[tuple[str, Kind], ...] = (
    ("Classify", "classification"),
    ("Cloze", "cloze"),
    ("Generation", "generation"),
)
SIDES = (("muitimodal", "multimodal"), ("unimodal",))  # with the picture; in text
CELEBRITIES = ("Real_Person_Set", "real_person")

NAMED: dict[str, Part] = dict.fromkeys(CELEBRITIES, "celebrity")


def read_umu(place: BenchmarkFolder, forget: int) -> BenchmarkData:
    """The benchmark for one forget percentage. Only forget and retain set must be there.

    Raises:
        BadInput: a file, row or key that would break scores.
    """
    known: Known = {}
    gone, kept = forget_and_retain(place, forget, lambda tables, name: _profiles(tables, name, known))
    celebrities = place.tables(*CELEBRITIES)
    shown = _profiles(celebrities, CELEBRITIES[0], known) if celebrities else {}
    return BenchmarkData(
        place.source,
        tuple(item for found in (gone, kept, shown) for profile in found.values() for item in profile.items),
        tuple(
            BenchmarkPerson(who, profile.name, who in gone, profile.images, profile.lessons)
            for who, profile in {**gone, **kept}.items()
        ),
    )


def umu_items(place: BenchmarkFolder, configuration: str) -> tuple[BenchmarkItem, ...]:
    """The questions of one configuration.

    Raises:
        BadInput: as `read_umu`.
    """
    spelled = CELEBRITIES if configuration in CELEBRITIES else (configuration,)
    return tuple(
        item for profile in _profiles(place.needed(*spelled), configuration, {}).values() for item in profile.items
    )


def _profiles(tables: Sequence[Rows], configuration: str, known: Known) -> dict[str, Profile]:
    columns = ("ID", "MM_QA", "UM_QA", *(task for task, _ in TASKS))
    rows = read_rows(tables, columns, known, ("Biography",))
    return {who: _profile(who, row, configuration) for who, row in one_each(rows, "ID").items()}


def _profile(who: str, row: BenchmarkRow, configuration: str) -> Profile:
    part = part_of(configuration, NAMED)
    subject = f"celebrity/{who}" if part == "celebrity" else who
    questions = list(_questions(row.cells))
    name = _name(row.cells, questions) or (plain_name(who) if part == "celebrity" else "")
    profile = Profile(row.cells.where, subject, name, row.images).asked(configuration, part, questions)
    return replace(
        profile,
        items=tuple(replace(item, twin=f"{subject}/{item.kind}/{item.key}") for item in profile.items),
        lessons=tuple(
            profile.lesson(*pair, pictured)
            for column, pictured in (("MM_QA", True), ("UM_QA", False))
            for pair in _pairs(row.cells[column])
        ),
    )


def _questions(cells: BenchmarkValue) -> Iterator[ProfileQuestion]:
    for task, kind in TASKS:
        sides = [_side(cells[task].parsed(), spelled) for spelled in SIDES]
        if odd := sorted(sides[0].keys() ^ sides[1].keys()):
            raise BadInput(
                f"{cells.where}: '{task}' asks '{odd[0]}' with the picture or in text but not both; "
                "the joint scores need both, get a sound copy"
            )
        for pictured, side in zip((True, False), sides, strict=True):
            for key, entry in side.items():
                question, answer, letter = entry["question"].text(), entry["answer"].text(), ""
                options: dict[str, str] = {}
                if kind == "classification":
                    answer, options, letter = _choice(entry)
                yield ProfileQuestion(kind, key, pictured, question, answer, options, letter)


def _side(task: BenchmarkValue, spelled: Sequence[str]) -> dict[str, BenchmarkValue]:
    for name in spelled:
        if not (found := task[name]).empty:
            return found.fields()
    raise task.wrong(f"an object with '{spelled[0]}'")


def _choice(entry: BenchmarkValue) -> tuple[str, dict[str, str], str]:
    """The right option's text, all options by letter, the right letter: what stands before the first full stop."""
    options = {letter: option.text() for letter, option in entry["options"].fields().items()}
    letter, _, said = (part.strip() for part in entry["answer"].text().partition("."))
    if letter not in options:
        raise entry["answer"].wrong(f"'LETTER. text' with one of {', '.join(options)}")
    if said in options.values() and said != options[letter]:
        raise entry["answer"].wrong(f"after '{letter}.' the text of that option, '{options[letter]}'")
    return options[letter], options, letter


def _pairs(column: BenchmarkValue) -> Iterator[tuple[str, str, str]]:
    """Key, question and answer of what is taught."""
    held = column.parsed()
    questions, answers = held["question"].fields(), held["answer"].fields()
    if odd := sorted(questions.keys() ^ answers.keys()):
        raise column.wrong(f"a question and an answer for '{odd[0]}'")
    yield from ((key, question.text(), answers[key].text()) for key, question in questions.items())


def _name(cells: BenchmarkValue, questions: Sequence[ProfileQuestion]) -> str:
    """As the biography says, where it is an object; else the answer to the cloze, else to the choice, under 'Name'."""
    biography = cells["Biography"]
    if not biography.empty and str(biography.value).lstrip().startswith("{"):
        return biography.parsed()["Name"].maybe()
    for wanted in ("cloze", "classification"):
        for q in questions:
            if (q.kind, q.key) == (wanted, "Name"):
                return q.answer
    return ""
