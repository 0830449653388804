"""Your own pictures: one folder per subject, and a table of facts if you have one."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from itertools import zip_longest

from unsee.data.examples import SPLITS, Example, Split, UnlearnData
from unsee.data.pictures import FileImage, check_pictures
from unsee.data.rules import check_names, check_questions, plain_name, share_out
from unsee.errors import BadInput

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IDENTITY = "Who or what is this?"

Pictures = dict[str, list[str]]  # subject -> paths of its pictures


def photos_data(folder: str, group: str | None = None) -> UnlearnData:
    """Questions about the pictures in a folder; every picture is decoded once, so a broken file fails here.

    Either one folder per subject, or `train/` with `validation/`, `test/` or both, one folder per subject inside.
    A split that is not there is made from `train`: about a fifth of each subject's groups, at least one.
    `facts.csv` beside the folders may add a `name` and any facts that no picture shows.

    Args:
        folder: where the pictures are.
        group: regular expression searched in file names; what it captures (without a capture group: matches) is the
            picture's group, and a subject's pictures of one group are never split. Default: each picture alone.

    Raises:
        BadInput: a folder, file, table row or `group` that cannot be used, fewer than two subjects, too few
            groups for the splits, or the same picture under two subjects or in two splits.
    """
    root = os.path.expanduser(folder)
    splits = _find_splits(root)
    subjects = tuple(splits["train"])
    facts = _read_facts(os.path.join(root, "facts.csv"), subjects)
    names = {subject: facts[subject].pop("name", plain_name(subject)) for subject in subjects}
    check_names(root, names)
    _complete(root, splits, _compile(group))

    def pictured(split: str) -> Iterator[Example]:
        for subject, paths in splits[split].items():
            for image in map(FileImage, paths):
                yield Example(IDENTITY, names[subject], subject, image, "identity", key="name")
                for fact, answer in facts[subject].items():
                    question = fact if fact.endswith("?") else f"What is the {fact} of this?"
                    yield Example(question, answer, subject, image, "fact", key=fact)

    def text_only() -> Iterator[Example]:
        for subject, name in names.items():
            for fact, answer in facts[subject].items():
                question = f"{name}: {fact}" if fact.endswith("?") else f"What is the {fact} of {name}?"
                yield Example(question, answer, subject, None, "fact", key=fact)

    data = UnlearnData(
        source=f"folder:{folder}" + (f",group={group}" if group is not None else ""),
        train=Split((*pictured("train"), *text_only())),
        validation=Split(tuple(pictured("validation"))),
        test=Split(tuple(pictured("test"))),
        names=names,
    )
    check_questions((root, e) for e in data.train)
    check_pictures(data)
    return data


def _find_splits(root: str) -> dict[str, Pictures]:
    """The splits that are there, `train` with every subject always among them."""
    folders, _ = _scan(root)
    if folders and set(folders) <= {"validation", "test"}:
        raise BadInput(f"{root}: has {'/, '.join(folders)}/ but no train/; add train/ with one folder per subject")
    if "train" in folders and len(folders.keys() & set(SPLITS)) > 1:
        if extra := folders.keys() - set(SPLITS):
            raise BadInput(f"{root}: unexpected folder '{min(extra)}' beside {', '.join(SPLITS)}; rename or remove it")
        splits = {split: _find_subjects(folders[split]) for split in SPLITS if split in folders}
    else:
        splits = {"train": _find_subjects(root)}
    for split, pictures in splits.items():
        if new := pictures.keys() - splits["train"].keys():
            raise BadInput(f"{root}: subject '{min(new)}' is in {split}/ but not in train/; add or remove its folder")
    if len(splits["train"]) < 2:
        raise BadInput(f"{root}: found {len(splits['train'])} subject folders; at least 2 are needed, one per subject")
    return splits


def _find_subjects(folder: str) -> Pictures:
    found = {}
    for subject, path in _scan(folder)[0].items():
        _, found[subject] = _scan(path)
        if not found[subject]:
            hint = "one folder per subject, or train/ with validation/ or test/ and such folders inside each"
            raise BadInput(f"{path}: no pictures ({' '.join(SUFFIXES)}) in this folder; expected {hint}")
    return found


def _scan(folder: str) -> tuple[dict[str, str], list[str]]:
    """Visible folders (name -> path) and paths of visible pictures directly inside, sorted by name."""
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read as a folder ({error.strerror}); check the path") from error
    folders = {unicodedata.normalize("NFC", entry.name): entry.path for entry in entries if entry.is_dir()}
    pictures = [entry.path for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()]
    return folders, pictures


def _read_facts(path: str, subjects: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """For every subject its non-empty cells: column -> text."""
    facts: dict[str, dict[str, str]] = {subject: {} for subject in subjects}
    rows: list[list[str]] = []
    if not os.path.lexists(path):
        return facts
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = unicodedata.normalize("NFC", file.read())
        for row in csv.reader(io.StringIO(text, ""), strict=True):
            rows.append([" ".join(cell.split()) for cell in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}, row {len(rows) + 1}: not a UTF-8 table with commas ({error}); save it so") from error
    header = [cell.lower() if cell.lower() in ("subject", "name") else cell for cell in (rows or [[]])[0]]
    if "subject" not in header:
        raise BadInput(f"{path}, row 1: no column 'subject' among '{','.join(header)}'; name it so, separate by commas")
    if doubles := [cell for cell in header if cell and header.count(cell) > 1]:
        raise BadInput(f"{path}, row 1: column '{doubles[0]}' appears twice; keep one")
    known: dict[str, int] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        record = {title: cell for title, cell in zip_longest(header, row, fillvalue="") if cell}
        if "" in record:
            raise BadInput(f"{path}, row {number}: '{record['']}' is under no header; quote cells that contain commas")
        subject = record.pop("subject", "")
        if subject not in facts:
            raise BadInput(f"{path}, row {number}: unknown subject '{subject}'; expected a folder, e.g. {subjects[0]}")
        if subject in known:
            raise BadInput(f"{path}, row {number}: subject '{subject}' is already in row {known[subject]}; keep one")
        known[subject] = number
        facts[subject] = record
    return facts


def _compile(group: str | None) -> re.Pattern[str]:
    try:
        pattern = re.compile(r"[\s\S]+" if group is None else group)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(f"group '{group}': not a regular expression ({error}); correct it") from error
    if pattern.groups > 1:
        raise BadInput(f"group '{group}': {pattern.groups} capture groups; expected one at most, write (?:...)")
    return pattern


def _complete(root: str, splits: dict[str, Pictures], pattern: re.Pattern[str]) -> None:
    """Fill the splits that are missing with whole groups of training pictures, in the order of the groups' hashes."""
    missing = [split for split in SPLITS if split not in splits]
    for subject, paths in splits["train"].items() if missing else ():
        groups = {}
        for path in paths:
            found = pattern.search(os.path.basename(path))
            if not found or not found[pattern.groups]:
                raise BadInput(f"{path}: group '{pattern.pattern}' finds nothing in this file name; correct it")
            groups[path] = found[pattern.groups]
        places = share_out(root, subject, groups.values(), missing)
        for split in (*missing, "train"):
            splits.setdefault(split, {})[subject] = [path for path in paths if places[groups[path]] == split]
