"""Tables of questions: one row is one question, with its picture or pictures, or without."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from unsee.data.examples import PROBES, SPLITS, Example, ImageSource, Probe, Split, UnlearnData
from unsee.data.pictures import check_pictures
from unsee.data.rows import Rows, TableImage, pictures, short
from unsee.data.rules import check_names, check_questions, plain_name, share_out
from unsee.errors import BadInput
from unsee.progress import track

PLACES = (*SPLITS, "strangers")
PICTURES = ("file_name", "image", "images")  # shown in this order; `file_name` is what `imagefolder` tables call it
PLAIN = ("question", "answer")
CONVERSATIONS = (("messages",), ("prompt", "completion"))  # as TRL's trainers read them
OPTIONAL = ("probe", "split", "choices", "key", "name")


@dataclass(frozen=True)
class _Row:
    where: str  # for messages
    example: Example
    group: str  # of its picture, for splits that have to be made: by path or content
    split: str | None
    name: str | None


def table_data(tables: Iterable[tuple[Rows, str | None]], source: str) -> UnlearnData:
    """Questions from tables, in the order of their rows; every picture is decoded once.

    Args:
        tables: each with the split its rows belong to where no column `split` says otherwise.
        source: the DATA argument, for messages and the record.

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
    splits = _placed(rows, source)
    _check_subjects(splits, source)
    names = _names(rows, splits["train"].subjects)
    check_names(source, names)
    data = UnlearnData(source, splits["train"], splits["validation"], splits["test"], splits["strangers"], names)
    check_pictures(data)
    return data


# Rows -----------------------------------------------------------------------------------------------------------------


def _read(table: Rows, split: str | None, known: dict[str, ImageSource]) -> list[_Row]:
    there = table.columns
    asked = next((kind for kind in CONVERSATIONS if set(kind) <= set(there)), PLAIN)
    for column in (*asked, "subject") if there else ():
        if column not in there:
            instead = ", or messages, or prompt and completion" if column in PLAIN else ""
            raise BadInput(f"{table.name}: no column '{column}' among {', '.join(there)}; add it{instead}")
    shown = [
        list(track(pictures(table, column, known), f"reading '{column}'")) for column in PICTURES if column in there
    ]
    found = []
    for row, cells in enumerate(table.records([c for c in (*asked, "subject", *OPTIONAL) if c in there])):
        images = tuple(image for column in shown for image in column[row])
        where = f"{table.name}, row {table.number(row)}"
        place = _one_of(where, "split", _text(where, cells, "split") or split, PLACES)
        if not images and place == "strangers":
            raise BadInput(f"{where}: in split 'strangers' without a picture; add one, strangers are only seen")
        group = ""
        if images:
            group = (
                images[0].digest
                if isinstance(images[0], TableImage)
                else os.path.relpath(images[0].label, table.folder)
            )
        example = _example(where, cells, images, asked)
        found.append(_Row(where, example, group, place, _text(where, cells, "name")))
    return found


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
            text = " ".join(_tidy(part["text"]) for part in parts if part["type"] == "text")
            turns.append((message["role"], text, sum(part["type"] == "image" for part in parts)))
    except (TypeError, KeyError):
        expected = "a list of messages with role and content, a text or a list of parts of type text or image"
        raise BadInput(f"{where}: '{column}' is {short(messages)}; expected {expected}") from None
    return turns


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


def _placed(rows: Sequence[_Row], source: str) -> dict[str, Split]:
    """The splits; where one of `SPLITS` is not there, it is made from the pictures in train."""
    pictured = [row for row in rows if row.example.image is not None]
    named = {row.split for row in pictured if row.split}
    if named and (homeless := next((row for row in pictured if not row.split), None)):
        raise BadInput(f"{homeless.where}: no split, where other rows have one; expected one of {', '.join(PLACES)}")
    if named and "train" not in named:
        raise BadInput(f"{source}: no row with a picture is in split 'train'; there must be some for every subject")
    missing = [split for split in SPLITS if split not in (named or {"train"})]
    groups: dict[str, list[str]] = {}
    for row in pictured:
        if row.split in ("train", None):
            groups.setdefault(row.example.subject, []).append(row.group)
    made = {subject: share_out(source, subject, found, missing) for subject, found in groups.items() if missing}
    examples: dict[str, list[Example]] = {place: [] for place in PLACES}
    for row in rows:
        place = row.split or "train"
        if row.example.image is None:
            place = "train"  # what is known without seeing is not split
        elif place == "train" and missing:
            place = made[row.example.subject][row.group]
        examples[place].append(row.example)
    return {place: Split(tuple(found)) for place, found in examples.items()}


def _check_subjects(splits: dict[str, Split], source: str) -> None:
    shown = set(splits["train"].pictured.subjects)
    for split in SPLITS:
        if unseen := next((s for s in splits[split].subjects if s not in shown), None):
            raise BadInput(
                f"{source}: subject '{unseen}' is in {split} but has no picture in train; add or remove rows"
            )
    if both := next((s for s in splits["strangers"].subjects if s in shown), None):
        raise BadInput(f"{source}: subject '{both}' is in train and among the strangers; rename one of them")
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
