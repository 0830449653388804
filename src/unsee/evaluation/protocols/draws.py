"""Everything a protocol draws, by seeds made of what is drawn for: the order of questions plays no part."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from unsee.data.benchmarks.items import BenchmarkItem

T = TypeVar("T")


def draw(seed: int, what: str, among: Iterable[str], count: int) -> tuple[str, ...]:
    """`count` of the given names, or all if there are fewer."""
    names = sorted(set(among))
    return tuple(random.Random(f"{seed}/{what}").sample(names, min(count, len(names))))


def sampled(seed: int, what: str, items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, in their order."""
    if len(items) <= count:
        return list(items)
    places = sorted(random.Random(f"{seed}/{what}").sample(range(len(items)), count))
    return [items[place] for place in places]


def one_view(seed: int, item: BenchmarkItem) -> int:
    """Which picture a person's questions of one kind are asked about."""
    if len(item.images) < 2:
        return 0
    return random.Random(f"{seed}/view/{item.subject}/{item.kind}").randrange(len(item.images))
