"""Answers judged by hand, and intervals that respect subjects."""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Sequence

import pytest
from contract import CITIES

from unsee.data.normalisation import plain
from unsee.evaluation.answers import is_correct, mentioned, repeats
from unsee.evaluation.intervals import Cell, share

# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Alba  Borg. ", "alba borg"),
        ("alba-borg", "alba borg"),
        ("Zoe\u0308 STRASSE", "zoë strasse"),  # two code points, then capitals
        ("Zoë Straße", "zoë strasse"),
        ("Ｏｓｌｏ！", "oslo"),  # full width
        ("?!… —", ""),
    ],
)
def test_plain_keeps_words_only(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_plain_keeps_different_words_apart() -> None:
    words = ("Alba Borg", "Alba Borgs", "AlbaBorg", "Älba Borg", "Borg Alba")
    assert len({plain(word) for word in words}) == len(words)


def test_words_that_differ_in_a_combining_mark_only_are_different() -> None:
    one, other = "काम", "किम"
    assert any(unicodedata.category(c) == "Mc" for c in one)
    assert plain(one) != plain(other)


@pytest.mark.parametrize(
    ("prediction", "options", "expected"),
    [
        ("Lima, then Oslo", CITIES, "Lima"),  # the first in the answer, not in the list
        ("in new york", ("York", "New", "New York"), "New York"),  # the longer of two that begin together
        ("Osloer", CITIES, None),  # whole words only
        ("", CITIES, None),
        ("cat", ("", "?", "cat"), "cat"),  # an option without words is never named
    ],
)
def test_mentioned_is_the_option_named_first(prediction: str, options: Sequence[str], expected: str | None) -> None:
    assert mentioned(prediction, options) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "options", "right"),
    [
        ("It is Oslo.", "Oslo", CITIES, True),
        ("Lima or Oslo", "Oslo", CITIES, False),
        ("Not yes.", "yes", ("yes", "no"), True),  # only the first option named counts
        ("no, yes", "yes", ("yes", "no"), False),
        ("eyes", "yes", ("yes", "no"), False),
        ("ALBA BORG", "Alba-Borg", (), True),
        ("Alba Borgs", "Alba Borg", (), False),
        ("Zoe\u0308", "ZOË", ("Zoe",), True),
        ("New York", "York", ("New York", "York"), False),
        ("York", "York", ("New York", "York"), True),
        ("Bergen", "Bergen", CITIES, True),  # the true answer always is an option
        ("anything", "?", (), False),
        ("anything", "", (), False),
    ],
)
def test_is_correct_by_hand(prediction: str, answer: str, options: Sequence[str], right: bool) -> None:
    assert is_correct(prediction, answer, options) is right


def test_listing_all_options_is_right_for_one_answer_at_most() -> None:
    for order in itertools.permutations(CITIES):
        said = " or ".join(order)
        assert [city for city in CITIES if is_correct(said, city, CITIES)] == [order[0]]
        assert all(is_correct(said, city) for city in CITIES)  # control: without options listing would win


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("la la la", True),
        ("oh. Oh, OH!", True),
        ("it is one two one two one two", True),
        ("a b c d a b c d a b c d", True),
        ("la la", False),
        ("a b a b a", False),
        ("la la no la", False),
        ("a b c d e a b c d e a b c d e", False),  # five words: longer than what counts
        ("", False),
    ],
)
def test_repeats_by_hand(prediction: str, expected: bool) -> None:
    assert repeats(prediction) is expected


# Intervals ------------------------------------------------------------------------------------------------------------


def test_share_of_nothing_is_null() -> None:
    assert share([], []) == {"value": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize(
    ("right", "cluster", "value", "low", "high"),
    [
        # one cluster: t(9) = 2.26216, 1/2 +- 2.26216 / 1.511735 * sqrt(0.25/10 + 5.11735/400)
        ([True, False] * 5, ["a"] * 10, 0.5, 0.20909, 0.79091),
        # four agreeing clusters of five: robust variance 25/400 * 4/3, design effect 20/3, so n = 3; t(3) = 3.18245
        ([True] * 10 + [False] * 10, [c for c in "abcd" for _ in range(5)], 0.5, 0.06083, 0.93917),
        # every cluster half right: the robust variance is 0, the effective n stays 8, t(3)
        ([True, False] * 4, list("aabbccdd"), 0.5, 0.12627, 0.87373),
        # all wrong in two clusters of four: one answer each, t(1) = 12.7062, z^2 / (n + z^2)
        ([False] * 8, list("aaaabbbb"), 0.0, 0.0, 161.4476 / 163.4476),
    ],
)
def test_share_by_hand(right: list[bool], cluster: list[str], value: float, low: float, high: float) -> None:
    cell = share(right, cluster)
    assert cell["n"] == len(right)
    assert (cell["value"], cell["low"], cell["high"]) == pytest.approx((value, low, high), abs=2e-5)


def cases() -> list[tuple[list[bool], list[str]]]:
    """Every number of right answers, in one, some and as many clusters as answers."""
    return [
        ([i < k for i in range(n)], [str(i * groups // n) for i in range(n)])
        for n in (1, 2, 3, 7, 24)
        for groups in {1, 2, n} - {m for m in (2,) if n < 2}
        for k in range(n + 1)
    ]


def ends(cell: Cell) -> tuple[float, float, float]:
    assert cell["value"] is not None
    assert cell["low"] is not None
    assert cell["high"] is not None
    return cell["low"], cell["value"], cell["high"]


def test_the_interval_holds_the_value_and_never_closes() -> None:
    for right, cluster in cases():
        low, value, high = ends(share(right, cluster))
        assert 0 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1
        assert high - low > 0.05  # also at 0 and 1, where the naive interval has no width


def test_the_interval_holds_the_value_exactly() -> None:
    for groups in range(1, 61):
        for answer in (False, True):
            low, value, high = ends(share([answer] * groups, [str(i) for i in range(groups)]))
            assert low <= value <= high


def test_answers_that_agree_within_a_subject_make_the_interval_wider() -> None:
    right = [i // 12 % 2 == 0 for i in range(240)]  # twenty subjects with twelve equal answers each
    subjects = [str(i // 12) for i in range(240)]
    shuffled = subjects.copy()
    random.Random(0).shuffle(shuffled)

    def width(cluster: Sequence[str]) -> float:
        low, _, high = ends(share(right, cluster))
        return high - low

    independent = width([str(i) for i in range(240)])
    assert width(subjects) > 3 * independent
    assert width(shuffled) < 1.3 * independent  # control: clusters that say nothing
