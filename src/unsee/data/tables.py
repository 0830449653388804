"""Datasets: where their tables lie, and what stands in them.

A table is a file, a folder of them, what `datasets` saves, a picture folder with metadata, or on the hub. One row is
one question, with its picture or pictures, or without.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from unsee.data.examples import PLACES, PROBES, SPLITS, Example, ImageSource, Probe, Reading, Split, UnlearnData
from unsee.data.folder_listing import SPLIT_WORDS, all_files
from unsee.data.normalisation import check_names, check_questions, plain_name
from unsee.data.pictures import FileImage, check_pictures, look_at
from unsee.data.rows import TABLES, ArrowRows, Rows, TableImage, open_table, pictures, short
from unsee.data.splits import Places, keep_together, share_all
from unsee.errors import BadInput, one_line
from unsee.progress import console, track

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

PICTURES = ("file_name", "image", "images")  # shown in this order; `file_name` is what `imagefolder` tables call it
PLAIN = ("question", "answer")
CONVERSATIONS = (("messages",), ("prompt", "completion"))  # as TRL's trainers read them
UNSEEN = ("video", "videos", "audio", "audios")  # what a question may be about and no model is shown
SAVED = ("dataset_dict.json", "state.json")  # written by DatasetDict.save_to_disk and Dataset.save_to_disk
OPTIONAL = ("probe", "split", "choices", "key", "name")


@dataclass(frozen=True)
class _Row:
    where: str  # for messages
    example: Example
    group: str  # of its picture, for splits that have to be made: by path or content
    split: str | None
    name: str | None


def table_data(
    tables: Iterable[tuple[Rows, str | None]], source: str, files: Mapping[str, str] | None = None
) -> UnlearnData:
    """Questions from tables, in the order of their rows; every picture is decoded once.

    Args:
        tables: each with the split its rows belong to where no column `split` says otherwise.
        source: the DATA argument, for messages and the record.
        files: name -> path of what lies beside the tables, of which all that is not read should be told.

    Raises:
        BadInput: a table, row or picture that cannot be used, as docs/data.md says.
    """
    rows: list[_Row] = []
    known: dict[str, ImageSource] = {}
    for table, split in tables:
        rows += _read(table, split, known)
    if not rows:
        raise BadInput(f"{source}: has no rows; expected one per question")
    check_questions((row.where, row.example) for row in rows)
    missing = _missing(rows, source)
    groups = _groups(rows) if missing else {}
    made = share_all(source, groups, missing)
    splits = _placed(rows, made)
    _check_subjects(splits, source)
    names = _names(rows, splits["train"].subjects)
    check_names(source, names)
    looks = look_at(row.example.image for row in rows if row.example.image is not None)
    made, notes = keep_together(source, groups, made, missing, looks)
    splits = _placed(rows, made)
    reading = _reading(rows, files or {}, notes)
    data = UnlearnData(source, **splits, names=names, reading=reading)
    check_pictures(data, looks)
    return data


def _reading(rows: Sequence[_Row], files: Mapping[str, str], notes: tuple[str, ...]) -> Reading:
    images = {image for row in rows for image in row.example.images}
    read = {os.path.realpath(image.path) for image in images if isinstance(image, FileImage)}
    left = tuple(name for name, path in files.items() if os.path.realpath(path) not in read)
    beside = len(files) - len(left) == len(images)  # all pictures are files that lie there
    return Reading(len(images), len(files) if beside else None, (f"{len(rows)} rows",), left, notes)


# Rows -----------------------------------------------------------------------------------------------------------------


def _read(table: Rows, split: str | None, known: dict[str, ImageSource]) -> list[_Row]:
    there = _columns(table)
    asked = next((kind for kind in CONVERSATIONS if set(kind) <= set(there)), PLAIN)
    for column in (*asked, "subject") if table.columns else ():
        if column not in there:
            instead = ", or messages, or prompt and completion" if column in PLAIN else ""
            raise BadInput(f"{table.name}: no column '{column}' among {', '.join(table.columns)}; add it{instead}")
    shown = [
        list(track(pictures(table, there[column], known), f"reading '{column}'"))
        for column in PICTURES
        if column in there
    ]
    wanted = [c for c in (*asked, "subject", *OPTIONAL, *UNSEEN) if c in there]
    found = []
    for row, record in enumerate(table.records([there[c] for c in wanted])):
        cells = {column: record[there[column]] for column in wanted}
        images = tuple(image for column in shown for image in column[row])
        where = f"{table.name}, row {table.number(row)}"
        if unseen := next((column for column in UNSEEN if cells.get(column)), None):
            raise BadInput(f"{where}: '{unseen}' holds {short(cells[unseen])}; only pictures are shown, remove the row")
        place = _one_of(where, "split", _text(where, cells, "split") or split, PLACES)
        if not images and place not in (None, *SPLITS):
            raise BadInput(f"{where}: in split '{place}' without a picture; add one, {place} are only seen")
        example = _example(where, cells, images, asked)
        found.append(
            _Row(where, example, _group(images[0], table) if images else "", place, _text(where, cells, "name"))
        )
    return found


def _columns(table: Rows) -> dict[str, str]:
    """Our columns that a table has -> what it calls them: capitals do not matter."""
    known = {*PICTURES, *UNSEEN, *PLAIN, "subject", *OPTIONAL, *(column for kind in CONVERSATIONS for column in kind)}
    found: dict[str, str] = {}
    for column in table.columns:
        name = column.strip().lower()
        if name in known and (first := found.setdefault(name, column)) != column:
            raise BadInput(f"{table.name}: columns '{first}' and '{column}' are both '{name}'; rename or remove one")
    return found


def _group(image: ImageSource, table: Rows) -> str:
    """What a picture falls by where splits are made: its content, or its file's name as every system would spell it."""
    if isinstance(image, TableImage):
        return image.digest
    return unicodedata.normalize("NFC", PurePath(os.path.relpath(image.label, table.folder)).as_posix())


def _example(where: str, cells: dict[str, Any], images: tuple[ImageSource, ...], asked: Sequence[str]) -> Example:
    if asked == PLAIN:
        question, answer = _required(where, cells, "question"), _required(where, cells, "answer")
    else:
        question, answer = _last_turns(where, [turn for c in asked for turn in _turns(where, cells, c)], len(images))
    probe = _one_of(where, "probe", _text(where, cells, "probe"), PROBES) or "identity"
    choices = cells.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise BadInput(f"{where}: 'choices' is {short(choices)}; expected a list of texts")
    choices = [_tidy(choice) for choice in choices]
    if choices and answer not in choices:
        raise BadInput(f"{where}: answer '{answer}' is not among its choices {short(choices)}; correct one of them")
    key = _text(where, cells, "key")
    return Example(
        question,
        answer,
        _required(where, cells, "subject"),
        images[0] if images else None,
        cast(Probe, probe),
        tuple(choices),
        key if key is not None else "name" if probe == "identity" else "",
        images[1:],
    )


def _turns(where: str, cells: dict[str, Any], column: str) -> list[tuple[str, str, int]]:
    """Role, text and number of pictures of each message."""
    turns = []
    messages = cells[column]
    try:
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                _check_part(where, part)
            text = " ".join(_tidy(part["text"]) for part in parts if part["type"] == "text")
            turns.append((message["role"], text, sum(part["type"] == "image" for part in parts)))
    except (TypeError, KeyError, AttributeError):
        expected = "a list of messages with role and content, a text or a list of parts of type text or image"
        raise BadInput(f"{where}: '{column}' is {short(messages)}; expected {expected}") from None
    return turns


def _check_part(where: str, part: Any) -> None:
    """Refuse what would not be seen: parts of other types, and pictures inside a message."""
    if part["type"] not in ("text", "image"):
        raise BadInput(
            f"{where}: a part of a message is of type {short(part['type'])}; expected text, or image with the picture "
            "in column 'images'"
        )
    inside = [key for key, value in part.items() if key not in ("type", "text", "index") and value is not None]
    if part["type"] == "image" and inside:
        raise BadInput(
            f"{where}: a part of type image has a picture of its own ('{inside[0]}'); put it into column 'images'"
        )


def _last_turns(where: str, turns: Sequence[tuple[str, str, int]], images: int) -> tuple[str, str]:
    """The user's last message and the assistant's answer to it."""
    if [role for role, _, _ in turns[-2:]] != ["user", "assistant"] or not all(text for _, text, _ in turns[-2:]):
        roles = ", ".join(str(role) for role, _, _ in turns) or "nobody"
        raise BadInput(
            f"{where}: messages by {roles}; expected a user's question and the assistant's answer at the end"
        )
    marked = sum(count for _, _, count in turns)
    if marked not in (0, images):
        raise BadInput(f"{where}: {marked} parts of type image, but {images} pictures in 'images'; make them agree")
    return turns[-2][1], turns[-1][1]


def _text(where: str, cells: dict[str, Any], column: str) -> str | None:
    value = cells.get(column)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{where}: '{column}' is {short(value)}; expected a text, write it in quotes")
    return None if value is None else _tidy(value)


def _required(where: str, cells: dict[str, Any], column: str) -> str:
    if not (value := _text(where, cells, column)):
        raise BadInput(f"{where}: '{column}' is empty; fill it in or remove the row")
    return value


def _one_of(where: str, column: str, value: str | None, known: Sequence[str]) -> str | None:
    if value and value not in known:
        raise BadInput(f"{where}: unknown {column} '{value}'; expected one of {', '.join(known)}")
    return value or None


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


# All rows together ----------------------------------------------------------------------------------------------------


def _missing(rows: Sequence[_Row], source: str) -> list[str]:
    """The splits that have to be made, from the pictures in train."""
    pictured = [row for row in rows if row.example.image is not None]
    named = {row.split for row in pictured if row.split}
    if named and (homeless := next((row for row in pictured if not row.split), None)):
        raise BadInput(f"{homeless.where}: no split, where other rows have one; expected one of {', '.join(PLACES)}")
    if named and "train" not in named:
        raise BadInput(f"{source}: no row with a picture is in split 'train'; there must be some for every subject")
    return [split for split in SPLITS if split not in (named or {"train"})]


def _groups(rows: Sequence[_Row]) -> dict[str, dict[ImageSource, str]]:
    groups: dict[str, dict[ImageSource, str]] = {}
    for row in rows:
        if row.example.image is not None and row.split in ("train", None):
            groups.setdefault(row.example.subject, {})[row.example.image] = row.group
    return groups


def _placed(rows: Sequence[_Row], made: Places) -> dict[str, Split]:
    """The splits: as the rows say, or as was made."""
    examples: dict[str, list[Example]] = {place: [] for place in PLACES}
    for row in rows:
        place = row.split or "train"
        if row.example.image is None:
            place = "train"  # what is known without seeing is not split
        elif place == "train" and made:
            place = made[row.example.subject][row.example.image]
        examples[place].append(row.example)
    return {place: Split(tuple(found)) for place, found in examples.items()}


def _check_subjects(splits: dict[str, Split], source: str) -> None:
    shown = set(splits["train"].pictured.subjects)
    for split in SPLITS:
        if unseen := next((s for s in splits[split].subjects if s not in shown), None):
            raise BadInput(
                f"{source}: subject '{unseen}' is in {split} but has no picture in train; add or remove rows"
            )
    for place in PLACES[len(SPLITS) :]:
        if both := next((s for s in splits[place].subjects if s in shown), None):
            raise BadInput(f"{source}: subject '{both}' is in train and among the {place}; rename one of them")
    if len(shown) < 2:
        raise BadInput(f"{source}: found {len(shown)} subject in column 'subject'; at least 2 are needed")


def _names(rows: Iterable[_Row], subjects: Iterable[str]) -> dict[str, str]:
    """As column `name` says; else the answer to "who is it" if it is always the same, else the subject itself."""
    given: dict[str, str] = {}
    answers: dict[str, set[str]] = {}
    for row in rows:
        subject = row.example.subject
        if row.name and given.setdefault(subject, row.name) != row.name:
            raise BadInput(f"{row.where}: '{subject}' is called '{row.name}', before '{given[subject]}'; keep one name")
        if row.example.probe == "identity":
            answers.setdefault(subject, set()).add(row.example.answer)
    only = {subject: min(said) for subject, said in answers.items() if len(said) == 1}
    return {subject: given.get(subject) or only.get(subject) or plain_name(subject) for subject in subjects}


# Where tables lie -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A dataset.

    Attributes:
        tables: each with the split its file or folder is named after, if any.
        files: name -> path of all other files in its folder; None where the dataset is no folder of tables.
    """

    tables: Sequence[tuple[Rows, str | None]]
    files: Mapping[str, str] | None = None


def open_store(place: str, name: str | None) -> Store:
    """Open a dataset.

    Args:
        place: a table's file, a folder, or a hub id.
        name: the configuration of a hub dataset.

    Raises:
        BadInput: nothing there, nothing that can be read, or tables of several kinds.
    """
    folder = Path(os.path.expanduser(place))
    if name and folder.exists():
        raise BadInput(
            f"--data dataset:{place},name={name}: only datasets of the hub have configurations; leave it out"
        )
    if folder.is_dir():
        return _folder(str(folder))
    if folder.is_file() or folder.suffix.lower() in TABLES:
        return Store([(open_table(str(folder)), None)])
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        return Store(list(_hub(place, name)))
    raise BadInput(f"--data dataset:{place}: no such file or folder, and no hub id 'owner/name'; check the path")


def _folder(folder: str) -> Store:
    saved = any(os.path.isfile(os.path.join(folder, mark)) for mark in SAVED)
    files = all_files(folder)
    kinds: dict[str, list[str]] = {"what `save_to_disk` wrote": []} if saved else {}
    for name, path in files.items():
        if _is_table(path):
            base, kind = os.path.splitext(os.path.basename(name).lower())
            kinds.setdefault(f"{'metadata' if base == 'metadata' else '*'}{kind}", []).append(name)
    if len(kinds) > 1:
        first, second = ((kind, found[0] if found else "") for kind, found in list(kinds.items())[:2])
        both = f"'{first[1] or first[0]}' and '{second[1]}'"
        raise BadInput(
            f"{folder}: {both} are tables of two kinds ({', '.join(kinds)}); keep one kind, or give one by its path"
        )
    if saved:
        return Store(list(_saved(folder)))
    if not kinds:
        raise BadInput(
            f"{folder}: no dataset in this folder; expected what `save_to_disk` writes, {', '.join(TABLES)} files, or "
            "pictures with a metadata.jsonl, .csv or .parquet"
        )
    (tables,) = kinds.values()
    others = {name: path for name, path in files.items() if name not in tables}
    return Store([(open_table(files[name]), _split_of(PurePosixPath(name))) for name in tables], others)


def _is_table(path: str) -> bool:
    """Whether a file of a folder is a table: as its name says, but `.json` only if it begins as a list of objects."""
    kind = os.path.splitext(path)[1].lower()
    if kind != ".json":
        return kind in TABLES
    try:
        with open(path, "rb") as file:
            return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", file.read(4096)) is not None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check permissions") from error


def _split_of(path: PurePosixPath) -> str | None:
    for part in reversed(path.with_suffix("").parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def _saved(folder: str) -> Iterator[tuple[Rows, str | None]]:
    from datasets import load_from_disk

    try:
        found = load_from_disk(folder)
    except Exception as error:  # of pyarrow, json, datasets, ...: whatever is damaged
        raise BadInput(f"{folder}: cannot be read as a saved dataset ({one_line(error)}); save it again") from error
    yield from _splits_of(found, folder, folder)


def _hub(place: str, name: str | None) -> Iterator[tuple[Rows, str | None]]:
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are no news, their end is told below
    if not console.is_terminal:
        datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(place, name)
    except Exception as error:  # of requests, huggingface_hub, datasets, pyarrow, ...
        raise BadInput(
            f"--data dataset:{place}: no such file or folder, and the hub did not give it ({one_line(error)}); "
            "check the id, the configuration after ',name=', and the connection"
        ) from error
    yield from _splits_of(found, place, "")


def _splits_of(found: Dataset | DatasetDict, name: str, folder: str) -> Iterator[tuple[Rows, str | None]]:
    for split, part in found.items() if isinstance(found, dict) else [(None, found)]:
        table = part.with_format("arrow")[:]  # mapped from the files, not read
        if split and split not in SPLIT_WORDS and "split" not in table.column_names:
            raise BadInput(f"{name}: unknown split '{split}'; expected {', '.join(PLACES)} or a column split")
        yield ArrowRows(f"{name}, split {split}" if split else name, folder, table), SPLIT_WORDS.get(str(split))
