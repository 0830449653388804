"""Datasets as others store them: what `datasets` saves, folders of tables, picture folders with metadata, hub ids."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unsee.data.rows import ArrowRows, Rows, open_table
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
KINDS = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "*.parquet", "*.jsonl")  # the first that is there


def open_store(place: str, name: str | None) -> Iterator[tuple[Rows, str | None]]:
    """The tables of a dataset, each with the split its file or folder is named after, if any.

    Args:
        place: a table's file, a folder, or a hub id.
        name: the configuration of a hub dataset.

    Raises:
        BadInput: nothing there, or nothing that can be read.
    """
    folder = Path(os.path.expanduser(place))
    if name and folder.exists():
        raise BadInput(
            f"--data dataset:{place},name={name}: only datasets of the hub have configurations; leave it out"
        )
    if folder.is_dir():
        if any((folder / mark).is_file() for mark in SAVED):
            yield from _saved(str(folder))
        else:
            yield from _tables(folder)
    elif folder.is_file() or folder.suffix.lower() in (".jsonl", ".csv", ".parquet"):
        yield open_table(str(folder)), None
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        yield from _hub(place, name)
    else:
        raise BadInput(f"--data dataset:{place}: no such file or folder, and no hub id 'owner/name'; check the path")


def _tables(folder: Path) -> Iterator[tuple[Rows, str | None]]:
    for kind in KINDS:
        found = sorted(path.relative_to(folder) for path in folder.rglob(kind))
        if visible := [path for path in found if not any(part.startswith(".") for part in path.parts)]:
            yield from ((open_table(str(folder / path)), _split_of(path)) for path in visible)
            return
    raise BadInput(
        f"{folder}: no dataset in this folder; expected what `save_to_disk` writes, .parquet or .jsonl files, or "
        "pictures with a metadata.jsonl, .csv or .parquet"
    )


def _split_of(path: Path) -> str | None:
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
