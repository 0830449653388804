"""How the splits are made that a folder or table does not bring: whole groups of pictures, the same on every system."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unsee.data.examples import ImageSource
from unsee.data.folder_listing import some
from unsee.data.pictures import Looks, same_pictures
from unsee.errors import BadInput

SHARE = 0.2  # of a subject's groups, for each split that has to be made


def share_out(where: str, subject: str, groups: Iterable[str], missing: Sequence[str]) -> dict[str, str]:
    """The split of each group of one subject's pictures: `SHARE` of them for each missing split, the rest for train.

    The order is that of hashes of subject and group in Unicode's composed form, so the same groups always fall the same
    way, on every system.

    Args:
        where: what to name in messages.
        missing: the splits to make.

    Raises:
        BadInput: too few groups.
    """

    def digest(group: str) -> bytes:
        return hashlib.sha256(unicodedata.normalize("NFC", f"{subject}/{group}").encode()).digest()

    order = sorted(set(groups), key=digest)
    if len(order) <= len(missing):
        raise BadInput(
            f"{where}: subject '{subject}' has {len(order)} groups of pictures (each alone, or as `group` says; "
            f"the same picture twice is one), needs at least {len(missing) + 1} for "
            f"{' and '.join(('train', *missing))}; add pictures"
        )
    share = max(1, round(SHARE * len(order)))
    return {
        group: missing[position // share] if position < share * len(missing) else "train"
        for position, group in enumerate(order)
    }


Groups = Mapping[str, Mapping[ImageSource, str]]  # subject -> picture -> group
Places = dict[str, dict[ImageSource, str]]  # subject -> picture -> split


def share_all(where: str, groups: Groups, missing: Sequence[str]) -> Places:
    """The split of every picture, subject by subject, as `share_out` says.

    Raises:
        BadInput: too few groups.
    """
    made = {}
    for subject, named in groups.items():
        places = share_out(where, subject, named.values(), missing)
        made[subject] = {image: places[group] for image, group in named.items()}
    return made


def keep_together(
    where: str, groups: Groups, made: Places, missing: Sequence[str], looks: Looks
) -> tuple[Places, tuple[str, ...]]:
    """`share_all` once more for whoever has one picture twice on two sides of a split: shots of one burst, copies.

    What cannot be told apart counts as one group then. Nothing changes for anybody else.

    Args:
        made: what `share_all` made of `groups`.
        looks: of these pictures, and of any others.

    Returns:
        The splits, and if they were changed a sentence that says whose.

    Raises:
        BadInput: too few groups are left.
    """
    owner = {image: subject for subject, named in groups.items() for image in named}
    if not owner:
        return made, ()

    def own() -> Iterator[tuple[str, ImageSource, ImageSource]]:
        for one, other in same_pictures(looks):
            if one in owner and owner[one] == owner.get(other):
                yield owner[one], one, other

    parted = {subject for subject, one, other in own() if made[subject][one] != made[subject][other]}
    if not parted:
        return made, ()
    leads = {subject: {group: group for group in groups[subject].values()} for subject in parted}

    def lead(subject: str, group: str) -> str:
        while leads[subject][group] != group:
            group = leads[subject][group]
        return group

    for subject, one, other in own():
        if subject in parted:
            first, second = sorted(lead(subject, groups[subject][image]) for image in (one, other))
            leads[subject][second] = first
    merged = {subject: {image: lead(subject, group) for image, group in groups[subject].items()} for subject in parted}
    whose = some(sorted(parted))
    return {**made, **share_all(where, merged, missing)}, (
        f"shots of {whose} that cannot be told apart were kept on one side of the splits made here",
    )
