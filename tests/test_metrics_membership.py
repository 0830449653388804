"""Membership inference, against examples worked by hand."""

from __future__ import annotations

import random
import zlib

import pytest

from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.metrics import membership as attacks
from unsee.evaluation.metrics.membership import Guess, area, two_sided
from unsee.evaluation.metrics.records import MembershipRecord

NAMES = [name for name in MEASURES if name.startswith("member-")]


def guesses(members: list[float], strangers: list[float]) -> list[Guess]:
    """Each about a subject of its own."""
    sides = [(score, True) for score in members] + [(score, False) for score in strangers]
    return [Guess(str(i), member, score) for i, (score, member) in enumerate(sides)]


@pytest.mark.parametrize(
    ("members", "strangers", "one_sided"),
    [
        ([-1, -2], [-2, -3], 3.5 / 4),  # of four pairs three above and one equal
        ([-2, -3], [-1, -2], 0.5 / 4),
        ([-1, -4], [-2, -3], 2 / 4),
        ([-1], [-2, -3, -4], 1),
        ([5, 5], [5], 1 / 2),  # all equal
    ],
)
def test_area_by_hand(members: list[float], strangers: list[float], one_sided: float) -> None:
    """Pairs of a member and a stranger in which the member's score is above, equal ones one half; then folded."""
    some = guesses(members, strangers)
    assert area(some) == pytest.approx(one_sided)
    assert two_sided(some)["value"] == pytest.approx(max(one_sided, 1 - one_sided))


def test_avoiding_shows_as_much_as_knowing() -> None:
    """Control: one-sided, the model that avoids its targets looks twice as good as one that cannot tell them."""
    known, avoided = guesses([-1, -1.5], [-3, -4]), guesses([-5, -6], [-3, -4])
    assert two_sided(known)["value"] == two_sided(avoided)["value"] == 1
    assert (area(known), area(avoided)) == (1, 0)


def test_one_side_alone_is_null() -> None:
    for some in (guesses([-1, -2], []), guesses([], [-1])):
        assert two_sided(some) == {"value": None, "low": None, "high": None, "n": 0}


def test_intervals_of_areas() -> None:
    """3.5 / 4 of two against two subjects; without one of them 3/4, 1, 1 and 3/4.

    Jackknife over four: sqrt(3 / 4 * 4 * (1 / 8)^2) = 0.216506; t(1) = 12.7062 goes beyond both ends. An interval
    that has 1/2 inside begins there. Apart, without overlap: two subjects all right, t(1), from 2 / (2 + z^2) = 0.012
    to 1, which has 1/2 inside as well; of twenty, t(19) = 2.09302, from 20 / (20 + 4.38075) = 0.820319.
    """
    few = two_sided(guesses([-1, -2], [-2, -3]))
    assert (few["low"], few["high"], few["n"]) == (0.5, 1, 4)
    assert two_sided(guesses([-1, -2], [-3, -4]))["low"] == 0.5
    apart = two_sided(guesses([-1.0] * 20, [-2.0] * 25))
    assert (apart["low"], apart["high"]) == (pytest.approx(0.820319, abs=1e-5), 1)
    below = two_sided(guesses([-2.0] * 20, [-1.0] * 25))
    assert below == apart
    alone = [Guess("ann", True, score) for score in (-1, -2.5)] + guesses([], [-2, -3])
    assert two_sided(alone) == {"value": 3 / 4, "low": None, "high": None, "n": 4}  # one subject on one side


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Normal scores a shift of 2 apart, eight answers of each of 10 + 10 subjects, which vary as much as answers do.

    Subject and answer together have variance 2, so the difference of two has 4: the area is Phi(2 / 2) = 0.841345.
    Control: answers taken for independent cover far less.
    """
    draw, truth, hits, naive, runs = random.Random(0), 0.841345, 0, 0, 50
    for _ in range(runs):
        some = []
        for subject in range(20):
            member, own = subject < 10, draw.gauss(0, 1)
            some += [Guess(str(subject), member, own + 2 * member + draw.gauss(0, 1)) for _ in range(8)]
        alone = [Guess(str(i), g.member, g.score) for i, g in enumerate(some)]
        for cell, clustered in ((two_sided(some), True), (two_sided(alone), False)):
            assert cell["low"] is not None
            assert cell["high"] is not None
            covered = cell["low"] <= truth <= cell["high"]
            hits, naive = hits + (covered and clustered), naive + (covered and not clustered)
    assert hits / runs > 0.9
    assert naive / runs < 0.75


# Scores -----------------------------------------------------------------------------------------------------------


def told(*log_probs: float, member: bool = True, text: str = "a", **rest: object) -> MembershipRecord:
    return MembershipRecord(f"{member}", member, text, log_probs, **rest)  # type: ignore[arg-type]


def test_scores_by_hand() -> None:
    """What each attack makes of one answer.

    LOSS: (-5 - 3 - 8 * 1) / 10. zlib: "a" takes 9 bytes (2 of header, 3 of block, 4 of checksum). Min-K: of ten
    tokens the two lowest, -5 and -3; of four tokens one. Min-K++: (-3 + 2) / 0.5 = -2 and (-1 + 1) / 0.5 = 0, the
    lower one; a spread of 0 counts as 0.001: (-0.5 + 0.499) / 0.001 = -1.
    """
    ten = told(-5, -3, *[-1] * 8)
    assert attacks.mean_log_prob(ten) == pytest.approx(-1.6)
    assert attacks.per_byte(told(-9)) == pytest.approx(-1)
    assert attacks.least_likely(ten) == pytest.approx(-4)
    assert attacks.least_likely(told(-1, -2, -4, -3)) == -4
    assert attacks.least_likely_scaled(told(-3, -1, expected=(-2, -1), spread=(0.5, 0.5))) == pytest.approx(-2)
    assert attacks.least_likely_scaled(told(-0.5, expected=(-0.499,), spread=(0,))) == pytest.approx(-1)
    assert attacks.least_likely_scaled(told(-1)) is None


def test_attacks_order_answers_by_their_scores() -> None:
    """A member and a stranger: each attack sees what it looks at, and that alone.

    zlib: -9 / 9 bytes is below -9.5 / 10 bytes, while LOSS has them the other way round. Min-K: of five tokens the
    lowest, -2 against -3, though the mean is -2 against -1.4. Reference: -2 + 4 against -1 + 1. Gradients: 1 against 2.
    """

    def one_sided(score: object, member: MembershipRecord, stranger: MembershipRecord) -> float:
        found = area([Guess("m", True, score(member)), Guess("s", False, score(stranger))])  # type: ignore[operator]
        assert found is not None
        return found

    assert len(zlib.compress(b"ab")) == 10
    short, long = told(-9), told(-9.5, member=False, text="ab")
    assert (one_sided(attacks.mean_log_prob, short, long), one_sided(attacks.per_byte, short, long)) == (1, 0)
    flat, steep = told(*[-2] * 5), told(-1, -1, -1, -1, -3, member=False)
    assert (one_sided(attacks.mean_log_prob, flat, steep), one_sided(attacks.least_likely, flat, steep)) == (0, 1)


def crowd(member: bool, log_prob: float, **rest: float) -> list[MembershipRecord]:
    return [
        MembershipRecord(f"{member}{i}", member, "a", (log_prob - i / 64,), (-2.0,), (1.0,), **rest)  # type: ignore[arg-type]
        for i in range(5)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_attacks_find_what_stands_out_and_nothing_else(name: str) -> None:
    """Likelier members, with a smaller gradient, on the same reference: every attack has 1; all alike: 1/2."""
    found = crowd(True, -1, reference=-2, gradient_norm=1) + crowd(False, -3, reference=-2, gradient_norm=2)
    assert MEASURES[name](found)["value"] == 1
    lost = crowd(True, -3, reference=-2, gradient_norm=2) + crowd(False, -3, reference=-2, gradient_norm=2)
    assert MEASURES[name](lost)["value"] == pytest.approx(1 / 2)


def test_a_reference_takes_out_what_is_easy_anyhow() -> None:
    """Members are short names, likely to any model: LOSS calls that memory, the reference attack does not."""
    easy = crowd(True, -1, reference=-1) + crowd(False, -3, reference=-3)
    assert MEASURES["member-reference"](easy)["value"] == pytest.approx(1 / 2)
    assert MEASURES["member-loss"](easy)["value"] == 1  # control


def test_what_was_not_taken_is_not_scored() -> None:
    some = [told(-1), told(-2, member=False)]
    for name in ("member-reference", "member-gradient-norm", "member-min-k-plus-plus"):
        assert MEASURES[name](some) == {"value": None, "low": None, "high": None, "n": 0}
    assert MEASURES["member-loss"](some)["value"] == 1
