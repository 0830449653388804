"""Your own pictures: one folder per subject, and a table of facts if you have one."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from itertools import zip_longest

from unsee.data.examples import SPLITS, Example, ImageSource, Reading, Split, UnlearnData
from unsee.data.folder_listing import SPLIT_WORDS, Listing, all_files, doubles, listed
from unsee.data.normalisation import check_names, check_questions, plain_name
from unsee.data.pictures import FileImage, Looks, check_pictures, is_picture, look_at
from unsee.data.rows import TABLES, csv_rows
from unsee.data.splits import keep_together, share_all
from unsee.errors import BadInput

IDENTITY = "Who or what is this?"
FACTS = "facts.csv"

Pictures = dict[str, dict[str, str]]  # subject -> name of a picture inside its folder -> path


def photos_data(folder: str, group: str | None = None) -> UnlearnData:
    """Questions about the pictures in a folder; every picture is decoded once, so a broken file fails here.

    Either one folder per subject, or `train/` with `validation/`, `test/` or both, one folder per subject inside.
    A split that is not there is made from `train`: about a fifth of each subject's groups, at least one.
    Pictures in sub-folders of a subject's folder count too. `facts.csv` beside the folders may add a `name` and any
    facts that no picture shows.

    Args:
        folder: where the pictures are.
        group: regular expression searched in file names; what it captures (without a capture group: matches) is the
            picture's group, and a subject's pictures of one group are never split. Default: each picture alone.

    Raises:
        BadInput: a folder, file, table row or `group` that cannot be used, fewer than two subjects, too few
            groups for the splits, or the same picture under two subjects or in two splits.
    """
    root = os.path.expanduser(folder)
    splits, table, left = _find_splits(root)
    subjects = tuple(splits["train"])
    facts = _read_facts(table, subjects)
    names = {subject: facts[subject].pop("name", plain_name(subject)) for subject in subjects}
    check_names(root, names)
    count = sum(len(paths) for pictures in splits.values() for paths in pictures.values())
    places, notes, looks = _placed(root, splits, _compile(group))

    def pictured(split: str) -> Iterator[Example]:
        for subject, images in places[split].items():
            for image in images:
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
        reading=Reading(count, count + len(left), (FACTS,) if table else (), left, notes),
    )
    check_questions((root, e) for e in data.train)
    check_pictures(data, looks)
    return data


def unlabelled_pictures(folder: str, option: str) -> tuple[FileImage, ...]:
    """All pictures in a folder and its sub-folders, of whatever they are; other files are left alone.

    Args:
        option: what a message says before the folder.

    Raises:
        BadInput: no such folder, or one without pictures.
    """
    root = os.path.expanduser(folder)
    if not os.path.isdir(root):
        raise BadInput(f"{option}{folder}: no such folder; expected one with pictures in it or in its sub-folders")
    found = tuple(FileImage(path) for path in all_files(root).values() if is_picture(path))
    if not found:
        raise BadInput(f"{option}{folder}: holds no picture, nor do its sub-folders; expected some")
    return found


def _find_splits(root: str) -> tuple[dict[str, Pictures], str | None, tuple[str, ...]]:
    """The splits that are there, `train` with every subject always among them; the table of facts; other files."""
    inside = listed(root)
    tables = [path for name, path in inside.files.items() if name.lower() == FACTS]
    if len(tables) > 1:
        raise BadInput(f"{' and '.join(tables)}: two tables of facts; keep one")
    left: list[str] = [name for name, path in inside.files.items() if path not in tables]
    _refuse_pictures(inside, "a folder per subject")
    named = {name: name.lower() for name in inside.folders if name.lower() in SPLITS}
    if twice := doubles(named.values()):
        raise BadInput(f"{root}: has two folders '{twice[0]}', by its capitals; put them together")
    folders = {named.get(name, name): path for name, path in inside.folders.items()}
    if folders and set(folders) <= {"validation", "test"}:
        raise BadInput(f"{root}: has {'/, '.join(folders)}/ but no train/; add train/ with one folder per subject")
    if "train" in folders and len(named) > 1:
        if extra := folders.keys() - set(SPLITS):
            raise BadInput(f"{root}: unexpected folder '{min(extra)}' beside {', '.join(SPLITS)}; rename or remove it")
        splits = {}
        for split in (split for split in SPLITS if split in folders):
            within = listed(folders[split])
            _refuse_pictures(within, "a folder per subject")
            left += [f"{split}/{name}" for name in within.files]
            splits[split] = _find_subjects(within.folders, left, f"{split}/")
    else:
        splits = {"train": _find_subjects(inside.folders, left, "")}
    for split, pictures in splits.items():
        if new := pictures.keys() - splits["train"].keys():
            raise BadInput(f"{root}: subject '{min(new)}' is in {split}/ but not in train/; add or remove its folder")
    if len(splits["train"]) < 2:
        table = next((name for name in left if name.lower().endswith(tuple(TABLES))), None)
        hint = f"; or write dataset:{root} if {table} is the data" if table else ""
        raise BadInput(
            f"{root}: found {len(splits['train'])} subject folders; at least 2 are needed, one per subject{hint}"
        )
    if astray := next((name for name in left if os.path.basename(name).lower() == FACTS), None):
        raise BadInput(f"{os.path.join(root, astray)}: would not be read here; move it to {os.path.join(root, FACTS)}")
    return splits, tables[0] if tables else None, tuple(left)


def _refuse_pictures(inside: Listing, expected: str) -> None:
    if stray := next((path for path in inside.files.values() if is_picture(path)), None):
        raise BadInput(f"{stray}: a picture of nobody; expected {expected}, move it into one or out of the data")


def _find_subjects(folders: dict[str, str], left: list[str], place: str) -> Pictures:
    """The pictures of every subject; adds all other files to `left`."""
    found: Pictures = {}
    for subject, folder in folders.items():
        files = all_files(folder)
        found[subject] = {name: path for name, path in files.items() if is_picture(path)}
        deeper = all("/" in name for name in found[subject])
        if not found[subject] or (deeper and subject.lower() in SPLIT_WORDS):
            hint = "one folder per subject, or train/ with validation/ or test/ and such folders inside each"
            raise BadInput(f"{folder}: no pictures (.png, .jpg, .heic, ...) in this folder; expected {hint}")
        left += [f"{place}{subject}/{name}" for name in files if name not in found[subject]]
    return found


def _read_facts(path: str | None, subjects: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """For every subject its non-empty cells: column -> text."""
    facts: dict[str, dict[str, str]] = {subject: {} for subject in subjects}
    if path is None:
        return facts
    rows = [(line, [_plain(cell) for cell in row]) for line, row in csv_rows(path)]
    first, header = rows[0] if rows else (1, [])
    header = [cell.lower() if cell.lower() in ("subject", "name") else cell for cell in header]
    if "subject" not in header:
        raise BadInput(
            f"{path}, row {first}: no column 'subject' among '{','.join(header)}'; name it so, separate by commas"
        )
    if twice := doubles(cell for cell in header if cell):
        raise BadInput(f"{path}, row {first}: column '{twice[0]}' appears twice; keep one")
    if alike := doubles(cell.casefold() for cell in header if cell):
        both = " and ".join(f"'{cell}'" for cell in header if cell.casefold() == alike[0])
        raise BadInput(f"{path}, row {first}: columns {both} differ in capitals alone; rename or remove one")
    known: dict[str, int] = {}
    for number, row in rows[1:]:
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


def _plain(cell: str) -> str:
    return " ".join(unicodedata.normalize("NFC", cell).split())


def _compile(group: str | None) -> re.Pattern[str] | None:
    if group is None:
        return None
    try:
        pattern = re.compile(unicodedata.normalize("NFC", group))  # as the names it is searched in
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(f"group '{group}': not a regular expression ({error}); correct it") from error
    if pattern.groups > 1:
        raise BadInput(f"group '{group}': {pattern.groups} capture groups; expected one at most, write (?:...)")
    return pattern


def _placed(
    root: str, splits: dict[str, Pictures], pattern: re.Pattern[str] | None
) -> tuple[dict[str, dict[str, list[ImageSource]]], tuple[str, ...], Looks]:
    """Split -> subject -> its pictures; missing splits are made of whole groups of training pictures."""
    missing = [split for split in SPLITS if split not in splits]
    groups: dict[str, dict[ImageSource, str]] = {}
    for subject, paths in splits["train"].items() if missing else ():
        groups[subject] = {FileImage(path): _group(pattern, name, path) for name, path in paths.items()}
    made = share_all(root, groups, missing)
    looks = look_at(FileImage(path) for found in splits.values() for paths in found.values() for path in paths.values())
    made, notes = keep_together(root, groups, made, missing, looks)
    placed: dict[str, dict[str, list[ImageSource]]] = {split: {} for split in SPLITS}
    for split, found in splits.items():
        for subject, paths in found.items():
            for image in map(FileImage, paths.values()):
                place = made[subject][image] if split == "train" and missing else split
                placed[place].setdefault(subject, []).append(image)
    return placed, notes, looks


def _group(pattern: re.Pattern[str] | None, name: str, path: str) -> str:
    """What the picture's group is called: by default its own name, with the sub-folders it lies in."""
    if pattern is None:
        return name
    found = pattern.search(os.path.basename(name))
    if not found or not found[pattern.groups]:
        raise BadInput(f"{path}: group '{pattern.pattern}' finds nothing in this file name; correct it")
    return found[pattern.groups]
