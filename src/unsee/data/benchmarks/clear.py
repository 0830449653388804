"""CLEAR (arXiv 2410.18057): the 200 invented authors of TOFU with pictures and captions, and TOFU's questions in text.

Its 21 configurations: `default` (the folder `data` on the hub), `full`, `forget01/05/10`, `retain99/95/90`; these but
`default` also as `NAME+tofu`, which mix rows with a picture and a caption and rows with a question in text;
`forget01/05/10_perturbed` and one `retain_perturbed` with false captions and names; `real_faces`, `real_world`.
Percentages are padded with a zero in `forgetNN` alone; copies that leave it out are read as well. It comes without a
licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from unsee.data.benchmarks.files import BenchmarkFolder, BenchmarkRow, BenchmarkValue, Known, read_rows
from unsee.data.benchmarks.items import (
    DESCRIBE,
    BenchmarkData,
    BenchmarkItem,
    BenchmarkPerson,
    Part,
    divided,
    part_of,
)
from unsee.data.examples import Example
from unsee.errors import BadInput

COLUMNS = (
    "caption name question answer options paraphrased_caption perturbed_captions perturbed_names".split()
)  # which of them a configuration has depends on its family
NAMED: dict[str, Part] = {"real_faces": "celebrity", "real_world": "world"}
FOLDERS = {"default": ("default", "data")}


def read_clear(place: BenchmarkFolder, forget: int) -> BenchmarkData:
    """The benchmark for one forget percentage. Only `forgetNN` and `retainNN`, which name people, must be there.

    Raises:
        BadInput: a file, row or key that would break scores.
    """
    known: Known = {}
    gone = _by_name(place, f"forget{forget:02d}", known)
    kept = _by_name(place, f"retain{100 - forget}", known)
    divided(str(place.folder), list(gone), list(kept), None)
    captions = {**gone, **kept}
    tofu = [  # the rows in text: those with pictures stand in `captions`
        _owned(item, tuple(captions))
        for name in (f"forget{forget:02d}+tofu", f"retain{100 - forget}+tofu")
        for item in _items(place, name, known, needed=False)
        if not item.images
    ]
    scored = (f"forget{forget:02d}_perturbed", "retain_perturbed", "real_faces", "real_world")
    items = [item for found in captions.values() for item in found] + tofu
    items += [item for name in scored for item in _items(place, name, known, needed=False)]
    taught: dict[str, list[Example]] = {who: [_caption(item) for item in found] for who, found in captions.items()}
    for item in tofu:
        if item.subject:
            taught[item.subject].append(item.example())
    return BenchmarkData(
        place.source,
        tuple(items),
        tuple(
            BenchmarkPerson(who, who, who in gone, tuple(item.images[0] for item in found), tuple(taught[who]))
            for who, found in captions.items()
        ),
    )


def clear_items(place: BenchmarkFolder, configuration: str) -> tuple[BenchmarkItem, ...]:
    """The questions of one configuration.

    Raises:
        BadInput: as `read_clear`.
    """
    return tuple(_items(place, configuration, {}, needed=True))


def _by_name(place: BenchmarkFolder, configuration: str, known: Known) -> dict[str, list[BenchmarkItem]]:
    found: dict[str, list[BenchmarkItem]] = {}
    for item in _items(place, configuration, known, needed=True):
        found.setdefault(item.subject, []).append(item)
    if "" in found:
        raise BadInput(f"{found[''][0].images[0].label}: no 'name'; {configuration} must say whom each picture shows")
    return found


def _caption(item: BenchmarkItem) -> Example:
    return Example(DESCRIBE, item.answer, item.subject, item.images[0], "fact", key="caption")


def _owned(item: BenchmarkItem, names: Sequence[str]) -> BenchmarkItem:
    """With its subject: `+tofu` says none, so it is the only name in question or answer, if there is one."""
    said = f"{item.question} {item.answer}".casefold()
    mentioned = [name for name in names if name.casefold() in said]
    return replace(item, subject=mentioned[0], name=mentioned[0]) if len(mentioned) == 1 else item


def _items(place: BenchmarkFolder, configuration: str, known: Known, needed: bool) -> Iterator[BenchmarkItem]:
    spelled = (*FOLDERS.get(configuration, (configuration,)), configuration.replace("forget0", "forget"))
    tables = place.needed(*spelled) if needed else place.tables(*spelled)
    read = _choices if configuration in NAMED else _rows_of
    for row in read_rows(tables, (), known, COLUMNS) if tables else ():
        yield from read(row, configuration, part_of(configuration, NAMED))


def _choices(row: BenchmarkRow, configuration: str, part: Part) -> Iterator[BenchmarkItem]:
    """`real_faces` and `real_world`: one true answer, and false ones in `options`."""
    if configuration == "real_faces" and not row.images:
        raise BadInput(f"{row.cells.where}: has no picture; get a sound copy")
    answer = row.cells["answer"].text()
    faces = configuration == "real_faces"
    yield BenchmarkItem(
        configuration,
        part,
        "classification",
        f"celebrity/{answer}" if faces else "",
        answer if faces else "",
        row.cells["question"].maybe() if faces else row.cells["question"].text(),
        answer,
        images=row.images,
        wrong=_false(row.cells["options"], answer),
    )


def _rows_of(row: BenchmarkRow, configuration: str, part: Part) -> Iterator[BenchmarkItem]:
    """A caption and, where there are false names, the name; or, without a picture, a question in text."""
    cells, name = row.cells, row.cells["name"].maybe()
    if not row.images:
        if cells["question"].empty:
            raise BadInput(f"{cells.where}: neither a picture nor a question; get a sound copy")
        question, answer = cells["question"].text(), cells["answer"].text()
        yield BenchmarkItem(configuration, part, "generation", name, name, question, answer)
        return
    caption, perturbed = cells["caption"].text(), configuration.endswith("_perturbed")
    yield BenchmarkItem(
        configuration,
        part,
        "generation",
        name,
        name,
        "",
        caption,
        images=row.images,
        key="caption",
        wrong=_false(cells["perturbed_captions"], caption) if perturbed else (),
        paraphrases=(cells["paraphrased_caption"].text(),) if perturbed else (),
    )
    if name and not cells["perturbed_names"].empty:
        wrong = _false(cells["perturbed_names"], name)
        yield BenchmarkItem(
            configuration, part, "classification", name, name, "", name, images=row.images, key="name", wrong=wrong
        )


def _false(cell: BenchmarkValue, answer: str) -> tuple[str, ...]:
    """False answers: those of a list that are not the true one, which some copies hold as well."""
    found = tuple(text for text in cell.texts() if text != answer)
    if not found:
        raise cell.wrong("at least one answer that is not the true one")
    return found
