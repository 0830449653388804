"""One table writer and one Student's interval: by hand, with what has nothing to say."""

from __future__ import annotations

import math

import pytest

from unsee.attacks.relearn_run import gain
from unsee.evaluation.intervals import around, nothing, student, with_error
from unsee.table import latex_table, markdown_table


@pytest.mark.parametrize(("degrees", "alpha", "expected"), [(1, 0.05, 12.7062), (4, 0.05, 2.7764), (4, 0.1, 2.1318)])
def test_student_is_the_table_of_the_textbook(degrees: int, alpha: float, expected: float) -> None:
    assert student(degrees, alpha) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("error", [None, 0.0, 1e-17, math.nan])
def test_without_a_spread_there_is_no_interval(error: float | None) -> None:
    assert with_error(0.5, error, 5, 9) == around(0.5, None, 9) == {"value": 0.5, "low": None, "high": None, "n": 9}
    assert with_error(0.5, 0.01, 5, 9)["low"] == pytest.approx(0.5 - 0.027764, abs=1e-6), "control"


def test_ends_are_cut_off_at_the_limits() -> None:
    assert around(0.9, 0.3, 2) == {"value": 0.9, "low": pytest.approx(0.6), "high": 1.0, "n": 2}
    assert around(-0.9, 0.3, 2, (-1.0, 1.0))["low"] == -1.0
    assert nothing() == {"value": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("before", [(1, 3, 5), (0, 1, 6), (2, 3, 7)])
def test_equal_gains_have_no_interval_though_their_fractions_round(before: tuple[int, ...]) -> None:
    """0.3 - 0.1 and 0.5 - 0.3 differ in the last digit: that is no spread."""
    sides = [{f"s{i}": (right + more, 10) for i, right in enumerate(before)} for more in (0, 2)]
    found = gain(*sides)
    assert (found["low"], found["high"]) == (None, None)
    assert gain(sides[0], sides[1] | {"s0": (before[0] + 1, 10)})["low"] is not None, "control"


def test_a_table_in_latex() -> None:
    rows = [("a", "1"), ("b", "2")]
    plain = latex_table(("x", "y"), rows)
    assert plain.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"x & y \\",
        r"\midrule",
        r"a & 1 \\",
        r"b & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert latex_table(("x", "y"), [], rows) == plain, "no rule for a group without rows"
    assert latex_table(("x", "y"), rows[:1], rows[1:]).count("\\midrule") == 2
    assert latex_table(("x", "y")).count("\\midrule") == 1
    floating = latex_table(("x", "y"), rows, columns="cc", caption="C")
    assert floating.startswith("\\begin{table}\n\\centering\n\\caption{C}\n\\begin{tabular}{cc}\n")
    assert floating.endswith("\\end{tabular}\n\\end{table}\n")


def test_a_table_in_markdown() -> None:
    assert markdown_table(("x", "y"), [("a", "1")]) == "| x | y |\n|---|---|\n| a | 1 |\n"
    assert markdown_table(("x", "y"), [], numbers=True) == "| x | y |\n|---|--:|\n"
