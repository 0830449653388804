"""What lies in a folder: every file under one spelling of its name, none lost; what cannot be told is refused.

Names are compared in Unicode's composed form (NFC): a Mac may store an é as two characters where Linux has one, and the
same files must be the same data, in the same order, on both.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from unsee.errors import BadInput
from unsee.storage import check_utf8

SHOWN = 5  # names in a message; more are counted
HIDDEN = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # what systems and storage boxes leave; any case
# What the words in file and folder names mean, as `datasets` reads them; the last three are ours.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **{place: place for place in ("strangers", "bystanders", "bystander_lessons")},
}


@dataclass(frozen=True)
class Listing:
    """What is directly inside a folder, without hidden entries, sorted by name.

    Attributes:
        folders, files: name in composed form -> path as the disk spells it.
    """

    folders: dict[str, str]
    files: dict[str, str]


def hidden(name: str) -> bool:
    """Whether a file or folder is left out without a word: its name begins with a dot, or is one of `HIDDEN`."""
    return name.startswith(".") or name.lower() in HIDDEN


def listed(folder: str) -> Listing:
    """What is directly inside a folder.

    Raises:
        BadInput: it cannot be read as a folder; a name that is not UTF-8; two names that differ in the form of their
            accents alone; a link to nothing; an entry that is neither file nor folder.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if not hidden(name))
        names.sort(key=_composed)  # twins stay in one order, however the system lists them
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{folder}: cannot be read as a folder ({reason}); check the path") from error
    found = Listing({}, {})
    for one, other in pairwise(names):
        if _composed(one) == _composed(other):
            forms = " and ".join(name.encode("unicode_escape").decode() for name in (one, other))
            raise BadInput(
                f"{folder}: '{_composed(one)}' is there twice, spelled {forms} (accents composed or not); "
                "rename one or put them together"
            )
    for name in names:
        path = os.path.join(folder, name)
        check_utf8(path)
        kind = _mode(path)
        if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            raise BadInput(f"{path}: cannot be read, it is neither a file nor a folder; remove it")
        (found.folders if stat.S_ISDIR(kind) else found.files)[_composed(name)] = path
    return found


def all_files(folder: str) -> dict[str, str]:
    """Every file in a folder and its sub-folders, without hidden ones: relative name -> path.

    Names are in composed form, with `/` on every system, and sorted part by part. Links are followed.

    Raises:
        BadInput: see `listed`, or a link that leads back to a folder around it.
    """
    found: dict[tuple[str, ...], str] = {}
    todo: list[tuple[tuple[str, ...], str, frozenset[str]]] = [((), folder, frozenset())]
    while todo:
        parts, path, around = todo.pop()
        place = os.path.realpath(path)
        if place in around:
            raise BadInput(f"{path}: is a link back to {place}, which it lies in; remove the link")
        inside = listed(path)
        found.update({(*parts, name): file for name, file in inside.files.items()})
        todo += [((*parts, name), inner, around | {place}) for name, inner in inside.folders.items()]
    return {"/".join(parts): found[parts] for parts in sorted(found)}


def find_file(folder: str, path: str) -> str | None:
    """The file that `path`, relative to a folder or absolute, names: as it is spelled, else with other accents' form.

    Raises:
        BadInput: several files fit, none of them as it is spelled.
    """
    wanted = os.path.normpath(os.path.join(folder, path))
    if os.path.isfile(wanted):
        return wanted
    if wanted.isascii() or "\0" in wanted:
        return None
    begin = Path(wanted).anchor
    fitting = [begin]
    for part in Path(wanted).parts[1 if begin else 0 :]:
        fitting = [inner for outer in fitting for inner in _spellings(outer, part)]
    files = [file for file in fitting if os.path.isfile(file)]
    if len(files) > 1:
        forms = " and ".join(file.encode("unicode_escape").decode() for file in files)
        raise BadInput(f"{wanted}: could be {forms} (accents composed or not); rename one or put them together")
    return files[0] if files else None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        link = f"a link to {os.readlink(path)}: " if os.path.islink(path) else ""
        fix = "mend or remove the link" if link else "check permissions"
        raise BadInput(f"{path}: cannot be read ({link}{error.strerror}); {fix}") from error


def _spellings(folder: str, name: str) -> Iterator[str]:
    """The entries of a folder that are called so, whatever the form of their accents; exactly so comes alone."""
    exact = os.path.join(folder, name)
    if os.path.lexists(exact) or name in (os.curdir, os.pardir):
        yield exact
        return
    try:
        entries = os.listdir(folder or os.curdir)
    except OSError:
        return  # no such folder, so no such file: the caller says which
    yield from (os.path.join(folder, entry) for entry in sorted(entries) if _composed(entry) == _composed(name))


def some(names: Sequence[str], most: int = SHOWN, mark: str = ", ") -> str:
    """The first names, then how many there are more."""
    more = len(names) - most
    return mark.join(names[:most]) + (f"{mark}and {more} more" if more > 0 else "")


def doubles(names: Iterable[str]) -> list[str]:
    """What is there more than once, in order."""
    return [name for name, count in Counter(names).items() if count > 1]
