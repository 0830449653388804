"""How well a measure tells models apart: areas and intervals held against definitions, and what must not pass."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest

from unsee.evaluation.faithfulness import (
    NORMAL,
    SIGNS,
    Observation,
    Yardstick,
    correlation,
    faithfulness,
    interval,
    ranked,
    yardstick,
)
from unsee.evaluation.metrics import MEASURES


def seen(knowing: Sequence[float | None], not_knowing: Sequence[float | None], per_group: int = 1) -> list[Observation]:
    return [
        Observation(value, knows, f"people {i // per_group}")
        for knows, values in ((True, knowing), (False, not_knowing))
        for i, value in enumerate(values)
    ]


def test_the_area_is_the_share_of_pairs_that_lie_the_right_way_round() -> None:
    knowing, not_knowing = [0.9, 0.6, 0.5, 0.5], [0.5, 0.2, 0.7]
    pairs = list(itertools.product(knowing, not_knowing))
    wanted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    found = faithfulness(seen(knowing, not_knowing), "knows more")
    assert found["value"] == pytest.approx(wanted)
    assert (found["n"], found["knowing"]["n"], found["not_knowing"]["n"]) == (7, 4, 3)
    assert found["knowing"]["mean"] == pytest.approx(0.625)
    assert faithfulness(seen(knowing, not_knowing), "knows less")["value"] == pytest.approx(1 - wanted)


def test_every_direction_has_a_side_and_what_expects_nothing_says_so() -> None:
    assert {m.higher for m in MEASURES.values()} <= SIGNS.keys()
    assert not faithfulness(seen([1.0], [0.0]), "more broken")["directed"]
    assert faithfulness(seen([1.0], [0.0]), "stands out more")["directed"]
    assert faithfulness(seen([0.0], [1.0]), "more like gold")["value"] == 1.0


def test_models_without_a_value_are_counted_and_not_taken_for_zero() -> None:
    found = faithfulness(seen([0.9, None, 0.8], [None, -0.1]), "knows more")
    assert found["value"] == 1.0
    assert (found["knowing"]["unscored"], found["not_knowing"]["unscored"], found["n"]) == (1, 1, 3)
    one_side = faithfulness(seen([0.9, 0.8], [None, None]), "knows more")
    assert (one_side["value"], one_side["low"], one_side["high"], one_side["n"]) == (None, None, None, 0)
    assert one_side["not_knowing"]["unscored"] == 2


@pytest.mark.parametrize(("value", "m", "n"), [(0.93, 12, 9), (0.5, 5, 5), (0.61, 40.5, 7.25)])
def test_the_ends_of_the_interval_solve_its_equation(value: float, m: float, n: float) -> None:
    """Newcombe's method 5, with Hanley and McNeil's variance written out their way: Q1 = A/(2-A), Q2 = 2A²/(1+A).

    They take (m - 1) and (n - 1), which method 5 replaces by their mean.
    """
    low, high = interval(value, m, n)
    assert low < value < high
    for end in (low, high):
        mean = (m + n) / 2 - 1
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)
        variance = (end * (1 - end) + mean * (q1 - end**2) + mean * (q2 - end**2)) / (m * n)
        assert abs(value - end) == pytest.approx(NORMAL * math.sqrt(variance), rel=1e-6)


def test_the_interval_never_closes_and_narrows_with_models() -> None:
    lows = [interval(1.0, n, n)[0] for n in (1, 3, 5, 15, 200)]
    assert lows == sorted(lows)
    assert lows[0] < 0.5 < lows[2] < 0.7 < lows[3] < 0.9 < lows[4] < 1.0
    assert interval(1.0, 5, 5)[1] == 1.0
    assert interval(0.0, 5, 5) == pytest.approx((0.0, 1 - interval(1.0, 5, 5)[0]))


def test_models_of_one_group_count_as_one_where_they_are_alike_and_as_many_where_not() -> None:
    alike = [round(i / 10, 1) for i in range(1, 6) for _ in range(3)]
    draw = random.Random(3)
    unlike = [draw.random() for _ in range(15)]
    low = [x - 10 for x in alike]
    tight = faithfulness(seen(alike, low, per_group=3), "knows more")
    loose = faithfulness(seen(unlike, [x - 10 for x in unlike], per_group=3), "knows more")
    assert tight["value"] == loose["value"] == 1.0
    assert tight["knowing"]["effective"] == pytest.approx(5.0)
    assert loose["knowing"]["effective"] > 9
    assert tight["low"] < loose["low"], "the same area, of fewer models"
    assert faithfulness(seen(alike, low, per_group=99), "knows more")["knowing"]["effective"] == 1.0
    assert faithfulness(seen([0.5] * 6, [0.1] * 6, per_group=2), "knows more")["knowing"]["effective"] == 3.0


def test_the_correlation_within_groups_by_hand() -> None:
    # group means 2 and 6, centre 4: B = 2 * (4 + 4) / 1 = 16; W = 4 * 1 / (4 - 2) = 2; r = 14 / 18
    assert correlation([[1.0, 3.0], [5.0, 7.0]]) == pytest.approx(14 / 18)
    assert correlation([[1.0, 9.0], [1.0, 9.0]]) == 0.0


def test_intervals_hold_what_they_promise_and_those_that_ignore_groups_do_not() -> None:
    """Five groups of three on either side; a group moves all its three models by twice what else moves them."""
    draw = random.Random(11)
    held = ignored = 0
    true = 0.5 * (1 + math.erf(3.0 / math.sqrt(2 * 5.0) / math.sqrt(2)))  # P(a > b), a - b ~ N(3, 2 * (4 + 1))
    for _ in range(150):
        sides = [[shift + 2 * g + draw.gauss(0, 1) for g in draws for _ in range(3)] for shift, draws in (
            (3.0, [draw.gauss(0, 1) for _ in range(5)]), (0.0, [draw.gauss(0, 1) for _ in range(5)]))]  # fmt: skip
        found = faithfulness(seen(*sides, per_group=3), "knows more")
        held += found["low"] <= true <= found["high"]
        low, high = interval(found["value"], 15, 15)
        ignored += low <= true <= high
    assert held / 150 > 0.9
    assert ignored / 150 < 0.9


def test_ranking_is_by_area_then_by_distance_and_what_says_nothing_comes_last() -> None:
    def one(value: float | None, apart: float | None = 1.0, directed: bool = True) -> dict[str, object]:
        return {"value": value, "apart": apart, "directed": directed}

    found = {
        "weak": one(0.6),
        "none": one(None),
        "health": one(1.0, 99.0, directed=False),
        "near": one(1.0, 3.0),
        "far": one(1.0, 30.0),
    }
    assert ranked(found) == ["far", "near", "weak", "health", "none"]


def test_the_yardstick_pools_spreads_within_cases_and_not_between_them() -> None:
    stick = yardstick([[0.1, 0.2], [0.8, 0.9], [0.5]])
    assert stick == Yardstick(pytest.approx(math.sqrt(0.01 / 2)), 2)
    whole = yardstick([[0.1, 0.2, 0.8, 0.9]])
    assert whole is not None
    assert whole.spread > 4 * stick.spread
    assert yardstick([[0.4], [0.9]]) is None
    learned = Yardstick(0.3, 4)
    assert yardstick([[0.4]], learned) == Yardstick(pytest.approx(0.3), 4)
    assert yardstick([[0.1, 0.2]], learned) == Yardstick(pytest.approx(math.sqrt((0.005 + 4 * 0.09) / 5)), 5)


def test_the_reach_covers_the_next_model_as_often_as_it_says() -> None:
    draw = random.Random(5)
    inside = trials = 0
    for _ in range(2000):
        *golds, following = (draw.gauss(0.3, 0.05) for _ in range(4))
        stick = yardstick([golds])
        assert stick is not None
        inside += abs(following - sum(golds) / 3) <= stick.reach(0.1, 3)
        trials += 1
    assert 0.87 < inside / trials < 0.93
    assert Yardstick(0.0, 3).reach(0.1, 1, least=0.01) == pytest.approx(Yardstick(0.01, 3).reach(0.1, 1))
