"""Moments gathered by several processes, each on its part of the data, become one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unsee.errors import BadInput
from unsee.subspace.gradients import AVERAGED
from unsee.subspace.moments import StoredMoments, load_extra, load_moments, save_moments

OWN = ("data", "pictures", "format")  # of an origin: what parts of the same statistics differ in


def merge_files(paths: Sequence[Path], out: Path) -> dict[str, str]:
    """Add up the moments of several files, each of other data through the same model; the result does not depend on
    how the data were split (tested over processes). `out` appears whole or not at all.

    Memory: the sums of all layers once, and one layer of one file.

    Returns:
        the origin written into `out`: what all parts say, `data` the hashes of all data and `pictures` their number.

    Raises:
        BadInput: a file is no moments file, does not say where it is from, is of another model, of other layers or
            made with other settings than the first, or of data another file has counted already.
    """
    if not paths:
        raise BadInput("moments to merge: no files given; expected at least one")
    parts = {path: load_moments(path, label="") for path in paths}
    first, *others = parts
    stored, about = parts[first]
    counted: dict[str, Path] = {}
    for path, (moments, origin) in parts.items():
        _check(path, moments, origin, first, stored, about)
        for data in origin["data"].split():
            if data in counted:
                raise BadInput(f"{path}: 'data' {data[:12]} is in {counted[data]} too; merge each part once")
            counted[data] = path
    total = {}
    for name in stored:
        total[name] = stored[name]
        for path in others:
            moment = parts[path][0][name]
            if len(moment.sum) != len(total[name].sum):
                raise BadInput(
                    f"{path}: layer '{name}' has {len(moment.sum)} inputs, in {first} {len(total[name].sum)}"
                )
            total[name].merge(moment)
    merged = {key: value for key, value in about.items() if key not in OWN}
    merged["data"] = " ".join(sorted(counted))
    if "pictures" in about:
        merged["pictures"] = str(sum(_pictures(path, origin) for path, (_, origin) in parts.items()))
    save_moments(total, out, merged)
    return merged


def _check(
    path: Path,
    moments: StoredMoments,
    origin: Mapping[str, str],
    first: Path,
    expected: StoredMoments,
    about: Mapping[str, str],
) -> None:
    """One part against the first."""
    for key in ("weights", "data"):
        if not origin.get(key):
            raise BadInput(f"{path}: '{key}' is missing, so what it is of is not known; fit it again")
    if origin.get("basis") == AVERAGED:
        raise BadInput(f"{path}: 'basis' is {AVERAGED}; means of parts do not add up, fit all data in one process")
    if extra := load_extra(path, label=""):
        raise BadInput(f"{path}: '{min(extra)}' cannot be merged; fit the parts without it, and it on all data")
    if unlike := set(moments) ^ set(expected):
        raise BadInput(f"{path}: layer '{min(unlike)}' is in only one of it and {first}; fit both alike")
    for key in sorted((origin.keys() | about.keys()) - set(OWN)):
        if origin.get(key) != about.get(key):
            raise BadInput(f"{path}: '{key}' is not that of {first}; fit all parts with the same model and settings")


def _pictures(path: Path, origin: Mapping[str, str]) -> int:
    count = origin.get("pictures", "")
    if not count.isdecimal():
        raise BadInput(f"{path}: 'pictures' is '{count}', expected a number; fit it again")
    return int(count)
