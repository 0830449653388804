"""What a DATA argument may say, and where it leads."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from functools import partial

from unsee.data.benchmarks import BENCHMARKS, benchmark_data
from unsee.data.examples import UnlearnData
from unsee.data.listing import check_utf8
from unsee.data.people import people_data
from unsee.data.photos import photos_data
from unsee.data.rows import TABLES
from unsee.data.stores import open_store
from unsee.data.tables import table_data
from unsee.errors import BadInput, readable
from unsee.progress import console


def load_data(spec: str) -> UnlearnData:
    """Load what a DATA argument names, and tell people how many of its files were read.

    Args:
        spec: `people`, `people:count=60,seed=10` (any parameter of `people_data`), `folder:PATH[,group=REGEX]`,
            `dataset:PATH_OR_HUB_ID[,name=CONFIG]`, a benchmark such as `mllmu:PATH_OR_HUB_ID[,forget=PERCENT]`, or just
            the path of a folder, with or without `,group=REGEX`, or of a table.

    Raises:
        BadInput: anything else, or data that cannot be used.
    """
    check_utf8(spec)
    data = _load(spec)
    _tell(data)
    return data


def _tell(data: UnlearnData) -> None:
    if data.reading is not None:
        line = f"{readable(data.source)}: {data.reading}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _load(spec: str) -> UnlearnData:
    kind, _, rest = spec.partition(":")
    if kind in SOURCES:
        return SOURCES[kind](rest)
    if os.path.isdir(os.path.expanduser(spec.partition(",group=")[0])):
        return SOURCES["folder"](spec)
    if spec.lower().endswith(tuple(TABLES)) or os.path.isfile(os.path.expanduser(spec)):
        return SOURCES["dataset"](spec)
    forms = ["people", "people:count=60,seed=10", "folder:PATH[,group=REGEX]", "dataset:PATH_OR_HUB_ID[,name=CONFIG]"]
    forms += [f"{name}:PATH" for name in SOURCES if name not in ("people", "folder", "dataset")]
    either = f"the path of an existing folder or of a table ({', '.join(TABLES)})"
    raise BadInput(f"--data '{spec}': no such data; expected {either}, or {', '.join(forms)}")


def _people(rest: str) -> UnlearnData:
    keys = tuple(inspect.signature(people_data).parameters)
    given: dict[str, int] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in keys or key in given:
            problem = "given twice" if key in given else "unknown key"
            raise BadInput(f"--data people: {problem} '{key}'; expected KEY=NUMBER with each of {', '.join(keys)} once")
        least = 0 if key in ("seed", "strangers") else 1
        if not re.fullmatch("[0-9]{1,18}", value) or int(value) < least:
            raise BadInput(f"--data people: {key}='{value}'; expected a whole number, {least} or more")
        given[key] = int(value)
    data = people_data(**given)
    rarer = [f"{key}={value}" for key, value in given.items() if key not in ("count", "seed")]
    return dataclasses.replace(data, source=",".join([data.source, *rarer]))


def _folder(rest: str) -> UnlearnData:
    path, marker, group = rest.partition(",group=")
    if not path or (marker and not group):
        raise BadInput(f"--data folder:{rest}: expected folder:PATH or folder:PATH,group=REGEX")
    return photos_data(path, group if marker else None)


def _dataset(rest: str) -> UnlearnData:
    place, marker, name = rest.partition(",name=")
    if not place or (marker and not name):
        raise BadInput(f"--data dataset:{rest}: expected dataset:PATH_OR_HUB_ID or dataset:HUB_ID,name=CONFIG")
    store = open_store(place, name or None)
    return table_data(store.tables, f"dataset:{rest}", store.files)


SOURCES: dict[str, Callable[[str], UnlearnData]] = {
    "people": _people,
    "folder": _folder,
    "dataset": _dataset,
    **{name: partial(benchmark_data, name) for name in BENCHMARKS},
}
