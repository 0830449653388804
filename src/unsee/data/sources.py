"""What a DATA argument may say, and where it leads."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from functools import partial

from unsee.data import OPTIONS
from unsee.data.benchmarks import BENCHMARKS, benchmark_data
from unsee.data.examples import UnlearnData
from unsee.data.people import people_data
from unsee.data.photos import photos_data
from unsee.data.rows import TABLES
from unsee.data.tables import open_store, table_data
from unsee.data.world import world_data
from unsee.errors import BadInput, readable
from unsee.progress import say
from unsee.storage import check_utf8


def load_data(spec: str) -> UnlearnData:
    """Load what a DATA argument names, and tell people how many of its files were read.

    Args:
        spec: `people`, `people:count=60,seed=10` (any parameter of `people_data`), `world` (any of `world_data`),
            `folder:PATH[,group=REGEX]`,
            `dataset:PATH_OR_HUB_ID[,name=CONFIG]`, a benchmark such as `mllmu:PATH_OR_HUB_ID[,forget=PERCENT]`, or just
            the path of a folder, with or without `,group=REGEX`, or of a table.

    Raises:
        BadInput: anything else, an argument that means two things (both are spelled out), or data that cannot be used.
    """
    check_utf8(spec)
    data = _load(spec)
    _tell(data)
    return data


def _tell(data: UnlearnData) -> None:
    if data.reading is not None:
        say(f"{readable(data.source)}: {data.reading}")


def _load(spec: str) -> UnlearnData:
    kind, _, rest = spec.partition(":")
    found = _lies_at(spec)
    if kind in SOURCES and not found:
        return SOURCES[kind](rest)
    if kind in SOURCES and (other := _other(spec)):
        raise BadInput(f"--data {spec}: means two things: write ./{spec} for the {found} of that name, or {other}")
    if found == "folder":
        return SOURCES["folder"](spec)
    if spec.lower().endswith(tuple(TABLES)) or os.path.isfile(os.path.expanduser(spec)):
        return SOURCES["dataset"](spec)
    forms = [
        *GENERATED,
        *(f"{name}:count=60,seed=10" for name in GENERATED),
        "folder:PATH[,group=REGEX]",
        "dataset:PATH_OR_HUB_ID[,name=CONFIG]",
    ]
    forms += [f"{name}:PATH" for name in SOURCES if name not in (*GENERATED, "folder", "dataset")]
    either = f"the path of an existing folder or of a table ({', '.join(TABLES)})"
    raise BadInput(f"--data '{spec}': no such data; expected {either}, or {', '.join(forms)}")


def _lies_at(spec: str) -> str | None:
    """What a DATA argument is if it is read as a path: `folder`, `table` or nothing."""
    if os.path.isdir(os.path.expanduser(spec)) or _grouped(spec):
        return "folder"
    return "table" if spec.lower().endswith(tuple(TABLES)) and os.path.isfile(os.path.expanduser(spec)) else None


def _other(spec: str) -> str | None:
    """How to write what a DATA argument means beside the path of that name; None if it means nothing else."""
    kind, _, rest = spec.partition(":")
    about = {"folder": "a folder", "dataset": "a dataset"}.get(kind, "the benchmark")
    if kind in GENERATED:
        form = f"{kind}: {rest}" if rest else f"{kind}:count=60"
        return f"{form} for generated people" if not isinstance(_settings(kind, rest), str) else None
    if not rest:
        return f"{kind}:PATH for {about}"
    if os.path.exists(os.path.expanduser(OPTIONS.sub("", rest))):
        return f"{kind}:./{rest} for {about}"
    return None if kind == "folder" else f"rename the first, so that {spec} is {about} of the hub"


def _generated(kind: str, rest: str) -> UnlearnData:
    given = _settings(kind, rest)
    if isinstance(given, str):
        raise BadInput(f"--data {kind}: {given}")
    data = GENERATED[kind](**given)
    rarer = [f"{key}={value}" for key, value in given.items() if key not in ("count", "seed")]
    return dataclasses.replace(data, source=",".join([data.source, *rarer]))


def _settings(kind: str, rest: str) -> dict[str, int] | str:
    """The parameters of generated people, or what is wrong with them."""
    keys = tuple(inspect.signature(GENERATED[kind]).parameters)
    given: dict[str, int] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in keys or key in given:
            problem = "given twice" if key in given else "unknown key"
            return f"{problem} '{key}'; expected KEY=NUMBER with each of {', '.join(keys)} once"
        least = 0 if key in ("seed", "strangers", "lessons", "asked") else 1
        if not re.fullmatch("[0-9]{1,18}", value) or int(value) < least:
            return f"{key}='{value}'; expected a whole number, {least} or more"
        given[key] = int(value)
    return given


def _grouped(rest: str) -> list[tuple[str, str]]:
    """The folders that are there, each with the regular expression behind it. None holds a `/`: file names do not."""
    parts = [(rest[: at.start()], rest[at.end() :]) for at in re.finditer(",group=", rest)]
    return [(path, group) for path, group in parts if "/" not in group and os.path.isdir(os.path.expanduser(path))]


def _folder(rest: str) -> UnlearnData:
    found: list[tuple[str, str | None]] = [(rest, None)] if os.path.isdir(os.path.expanduser(rest)) else []
    found += _grouped(rest)
    if len(found) > 1:
        ways = [f"{path.rstrip('/')}/,group={group}" if group is not None else f"{path}/" for path, group in found]
        raise BadInput(f"--data folder:{rest}: means two things: write folder:{', or folder:'.join(ways)}")
    path, marker, group = rest.partition(",group=")
    if not path or (marker and not group):
        raise BadInput(f"--data folder:{rest}: expected folder:PATH or folder:PATH,group=REGEX")
    return photos_data(*found[0]) if found else photos_data(path, group if marker else None)


def _dataset(rest: str) -> UnlearnData:
    whole = os.path.exists(os.path.expanduser(rest))  # then its name holds what looks like an option
    place, marker, name = (rest, "", "") if whole else rest.partition(",name=")
    if not place or (marker and not name):
        raise BadInput(f"--data dataset:{rest}: expected dataset:PATH_OR_HUB_ID or dataset:HUB_ID,name=CONFIG")
    store = open_store(place, name or None)
    return table_data(store.tables, f"dataset:{rest}", store.files)


GENERATED: dict[str, Callable[..., UnlearnData]] = {"people": people_data, "world": world_data}
SOURCES: dict[str, Callable[[str], UnlearnData]] = {
    **{name: partial(_generated, name) for name in GENERATED},
    "folder": _folder,
    "dataset": _dataset,
    **{name: partial(benchmark_data, name) for name in BENCHMARKS},
}
