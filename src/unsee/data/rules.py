"""What folders and tables share: how subjects are called, and how splits that are not there are made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from unsee.data.examples import Example
from unsee.data.words import plain
from unsee.errors import BadInput

SHARE = 0.2  # of a subject's groups, for each split that has to be made


def plain_name(subject: str) -> str:
    """A subject's name where none is given: the subject, with spaces for `-` and `_`."""
    return " ".join(re.split(r"[-_\s]+", subject)).strip() or subject


def check_names(where: str, names: Mapping[str, str]) -> None:
    """Refuse names that no answer could tell apart, or that no answer could give.

    Raises:
        BadInput: names all subjects of one name, as `plain` compares them, and names of punctuation alone.
    """
    called: dict[str, list[str]] = {}
    for subject in sorted(names):
        called.setdefault(plain(names[subject]), []).append(subject)
    nameless = called.pop("", [])
    found = [
        f"{_listed(group)} are {'both' if len(group) == 2 else 'all'} called "
        f"{_listed(dict.fromkeys(names[subject] for subject in group), 'or')}"
        for group in called.values()
        if len(group) > 1
    ]
    if found:
        raise BadInput(f"{where}: {'; '.join(found)}; rename one of them, by more than case, spacing and punctuation")
    if nameless:
        said = f"{_listed(nameless)}: called {_listed(dict.fromkeys(names[subject] for subject in nameless))}"
        raise BadInput(f"{where}: {said}, without a letter, digit or symbol: no answer could be right; rename")


def check_questions(asked: Iterable[tuple[str, Example]]) -> None:
    """Refuse choices that no answer could tell apart, and answers that could never be right.

    Args:
        asked: questions, each with what to call it in messages.

    Raises:
        BadInput: names them all, each text with the first question that has it.
    """
    found: dict[str, str] = {}
    for where, e in asked:
        alike: dict[str, dict[str, None]] = {}
        for text in (e.answer, *e.choices):
            alike.setdefault(plain(text), {})[text] = None
        for text in alike.pop("", {}):
            found.setdefault(f"'{text}' has no letter, digit or symbol: no answer could be right", where)
        for group in alike.values():
            if len(group) > 1:
                found.setdefault(f"choices {_listed(group)} differ in case, spacing or punctuation alone", where)
    if found:
        said = "; ".join(f"{where}: {problem}" for problem, where in found.items())
        raise BadInput(f"{said}; write them so that they can be told apart, or leave the question out")


def _listed(texts: Iterable[str], word: str = "and") -> str:
    *first, last = (f"'{text}'" for text in texts)
    return f"{', '.join(first)} {word} {last}" if first else last


def share_out(where: str, subject: str, groups: Iterable[str], missing: Sequence[str]) -> dict[str, str]:
    """The split of each group of one subject's pictures: `SHARE` of them for each missing split, the rest for train.

    The order is that of hashes of subject and group, so the same groups always fall the same way.

    Args:
        where: what to name in messages.
        missing: the splits to make.

    Raises:
        BadInput: too few groups.
    """

    def digest(group: str) -> bytes:
        return hashlib.sha256(f"{subject}/{group}".encode(errors="surrogateescape")).digest()

    order = sorted(set(groups), key=digest)
    if len(order) <= len(missing):
        raise BadInput(
            f"{where}: subject '{subject}' has {len(order)} groups of pictures (each alone, or as `group` says), "
            f"needs at least {len(missing) + 1} for {' and '.join(('train', *missing))}; add pictures"
        )
    share = max(1, round(SHARE * len(order)))
    return {
        group: missing[position // share] if position < share * len(missing) else "train"
        for position, group in enumerate(order)
    }
