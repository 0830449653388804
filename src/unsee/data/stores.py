"""Datasets as others store them: what `datasets` saves, folders of tables, picture folders with metadata, hub ids."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from unsee.data.listing import all_files
from unsee.data.rows import TABLES, ArrowRows, Rows, open_table
from unsee.errors import BadInput
from unsee.progress import console

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# What the words in file and folder names mean, as `datasets` reads them; strangers are ours.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    "strangers": "strangers",
}
SAVED = ("dataset_dict.json", "state.json")  # written by DatasetDict.save_to_disk and Dataset.save_to_disk


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
        raise BadInput(f"{folder}: cannot be read as a saved dataset ({_reason(error)}); save it again") from error
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
            f"--data dataset:{place}: no such file or folder, and the hub did not give it ({_reason(error)}); "
            "check the id, the configuration after ',name=', and the connection"
        ) from error
    yield from _splits_of(found, place, "")


def _splits_of(found: Dataset | DatasetDict, name: str, folder: str) -> Iterator[tuple[Rows, str | None]]:
    for split, part in found.items() if isinstance(found, dict) else [(None, found)]:
        table = part.with_format("arrow")[:]  # mapped from the files, not read
        if split and split not in SPLIT_WORDS and "split" not in table.column_names:
            raise BadInput(
                f"{name}: unknown split '{split}'; expected train, validation, test, strangers or a column split"
            )
        yield ArrowRows(f"{name}, split {split}" if split else name, folder, table), SPLIT_WORDS.get(str(split))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
