"""The right question: is a model asked about those whom it was made to forget?"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unsee.checkpoint.folder import forgotten_by, read_manifest
from unsee.evaluation.verdict import is_role
from unsee.models.loading import locate
from unsee.progress import warn

SHOWN = 3  # names in a message


def warned(
    models: Mapping[str, str], source: str, forget: Sequence[str], fingerprint: str | None = None
) -> dict[str, list[str]]:
    """`misasked`, said on the screen too."""
    found = misasked(models, source, forget, fingerprint)
    for sentences in found.values():
        for sentence in sentences:
            warn(sentence)
    return found


def misasked(
    models: Mapping[str, str], source: str, forget: Sequence[str], fingerprint: str | None = None
) -> dict[str, list[str]]:
    """What is wrong with asking these models about `forget`, by role; roles with nothing wrong are left out.

    A model that was made to forget them and others is asked rightly. So is `vanilla` always: it is what an edit began
    with, which may have been made to forget others before. What no manifest tells is not warned about.

    Args:
        models: role -> folder or hub id.
        source, fingerprint: of the data that is asked about; the fingerprint where it is known.

    Raises:
        BadInput: a model or its manifest cannot be read.
    """
    found = {}
    for role, path in models.items():
        manifest = read_manifest(locate(path))
        if not is_role(role, "vanilla") and (sentences := list(_wrong(role, manifest, source, forget, fingerprint))):
            found[role] = sentences
    return found


def _wrong(
    role: str, manifest: Mapping[str, Any], source: str, forget: Sequence[str], fingerprint: str | None
) -> Iterable[str]:
    hidden = manifest.get("without_images_of")
    gone = forgotten_by(manifest) or hidden or ()
    known = {unicodedata.normalize("NFC", subject) for subject in gone}
    others = [subject for subject in forget if unicodedata.normalize("NFC", subject) not in known]
    if others and hidden is not None and (gone or is_role(role, "gold")):
        made = f"never shown pictures of {_some(gone)}" if gone else "shown everybody's pictures"
        yield f"{role}: was {made}, but is asked about {_some(others)}: this is no gold model of theirs"
    elif others and gone:
        yield f"{role}: was made to forget {_some(gone)}, but is asked about {_some(others)}, whom it was not"
    made_on = manifest.get("data") or {}
    moved = fingerprint is not None and made_on.get("fingerprint") not in (None, fingerprint)
    if gone and moved and made_on.get("source") != source:
        yield (
            f"{role}: was made with {made_on.get('source')}, but is asked about {source}: subjects of one name need "
            "not be the same"
        )


def _some(subjects: Sequence[str]) -> str:
    more = len(subjects) - SHOWN
    return ", ".join(subjects[:SHOWN]) + (f" and {more} more" if more > 0 else "")
