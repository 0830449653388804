"""What scores are made of: names and cities to choose from, and the keys that scripts depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unsee.data.examples import SPLITS

NAMES = ("Ann Lee", "Bob Ray", "Cy Moss", "Di Fox")
CITIES = ("Oslo", "Lima", "Cairo")
CONTRACT = (  # docs/evaluation.md; scripts depend on these keys
    *((part, split) for part in ("forget", "retain") for split in SPLITS),
    *((what, part, split) for what in ("names", "facts") for part in ("forget", "retain") for split in SPLITS),
    *(("attributes", part) for part in ("forget", "retain", "strangers")),
    *(("text", part) for part in ("forget", "retain")),
    ("misattribution", "forget"),
    *(("health", sign) for sign in ("empty", "repeated", "off_list")),
)


def at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key]
    return value
