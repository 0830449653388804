"""What folders and tables share: how subjects are called, and how splits that are not there are made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from unsee.errors import BadInput

SHARE = 0.2  # of a subject's groups, for each split that has to be made


def plain_name(subject: str) -> str:
    """A subject's name where none is given: the subject, with spaces for `-` and `_`."""
    return " ".join(re.split(r"[-_\s]+", subject)).strip() or subject


def check_names(where: str, names: Mapping[str, str]) -> None:
    """Refuse two subjects of one name: answers could not tell them apart.

    Raises:
        BadInput: two names differ in nothing but case.
    """
    for other, subject in pairwise(sorted(names, key=lambda s: names[s].lower())):
        if names[other].lower() == names[subject].lower():
            raise BadInput(f"{where}: '{other}' and '{subject}' are both called '{names[subject]}'; rename one of them")


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
