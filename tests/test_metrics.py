"""The table of measures: what holds for every one of them, their intervals, and where they are listed."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import pytest

from unsee.attacks.probe import outcome as probed
from unsee.attacks.relearn_run import outcome
from unsee.cli import main
from unsee.evaluation import sequence
from unsee.evaluation.intervals import Cell, share
from unsee.evaluation.metrics import MEASURES, OTHER_COMMANDS, Measure
from unsee.evaluation.metrics.base import average, jackknife, mean
from unsee.evaluation.metrics.records import (
    Beside,
    Contrast,
    FreeAnswer,
    Kept,
    MembershipRecord,
    Pair,
    Ranking,
    Recital,
)

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
NAMES = ("Ann Lee", "Bob Ray", "Cy Moss", "Di Fox")
NULL: Cell = {"value": None, "low": None, "high": None, "n": 0}


# Records of models between knowing nothing (0) and everything (1) -------------------------------------------------


def answer(draw: random.Random, subject: str, knows: float) -> FreeAnswer:
    right = draw.choice(NAMES)
    given = right if draw.random() < knows else draw.choice(("somebody", "", "Bob Bob Bob", *NAMES))
    return FreeAnswer(subject, given, right, NAMES)


def recital(draw: random.Random, subject: str, knows: float) -> Recital:
    hits = tuple(draw.random() < 0.1 + 0.8 * knows for _ in range(draw.randint(1, 12)))
    return Recital(subject, tuple(log(draw.uniform(0.5, 1) if hit else draw.uniform(0.01, 0.5)) for hit in hits), hits)


def contrast(draw: random.Random, subject: str, knows: float) -> Contrast:
    return Contrast(subject, draw.uniform(-4, -3) + 2.5 * knows, tuple(draw.uniform(-4, -2) for _ in range(3)))


def beside(draw: random.Random, subject: str, knows: float) -> Beside:
    return Beside(contrast(draw, subject, knows), contrast(draw, subject, 0))


def ranking(draw: random.Random, subject: str, knows: float) -> Ranking:
    right = draw.choice(NAMES)
    return Ranking(subject, right, {name: draw.uniform(-6, -4) + 3 * knows * (name == right) for name in NAMES})


def pair(draw: random.Random, subject: str, knows: float) -> Pair:
    return Pair(answer(draw, subject, knows), answer(draw, subject, knows))


def kept(draw: random.Random, subject: str, knows: float) -> Kept:
    parts = answer(draw, subject, knows), recital(draw, subject, knows), contrast(draw, subject, knows)
    return Kept(draw.choice(("retain", "world")), *parts)


def membership(draw: random.Random, subject: str, knows: float) -> MembershipRecord:
    member = int(subject) % 2 == 0
    said = recital(draw, subject, knows * member).log_probs
    expected, spread = tuple(draw.uniform(-2, -1) for _ in said), tuple(draw.uniform(0.5, 2) for _ in said)
    norm = draw.uniform(2, 4) - 1.8 * knows * member
    return MembershipRecord(
        subject, member, "x" * draw.randint(1, 30), said, expected, spread, draw.uniform(-3, -2), norm
    )


MAKE: dict[type, Callable[[random.Random, str, float], Any]] = {
    FreeAnswer: answer,
    Recital: recital,
    Contrast: contrast,
    Beside: beside,
    Ranking: ranking,
    Pair: pair,
    Kept: kept,
    MembershipRecord: membership,
}


def records(measure: Measure[Any], seed: int, knows: float, count: int = 60, subjects: int = 8) -> list[Any]:
    draw = random.Random(seed)
    return [MAKE[measure.reads](draw, str(number % subjects), knows) for number in range(count)]


def same(one: Cell, other: Cell) -> bool:
    return all(one[key] == pytest.approx(other[key], abs=1e-12) for key in ("value", "low", "high", "n"))  # type: ignore[literal-required]


every = pytest.mark.parametrize("name", MEASURES)


# What holds for every measure -------------------------------------------------------------------------------------


@every
def test_nothing_asked_is_null(name: str) -> None:
    measure = MEASURES[name]
    assert measure([]) == NULL
    assert measure(records(measure, 0, 0.5)) != NULL  # control


def shuffled_alike(measure: Measure[Any]) -> bool:
    some = records(measure, 0, 0.2)
    return same(measure(random.Random(1).sample(some, len(some))), measure(some))


@every
def test_order_does_not_matter(name: str) -> None:
    measure = MEASURES[name]
    assert shuffled_alike(measure)
    assert not same(measure(records(measure, 2, 0.2)), measure(records(measure, 0, 0.2)))  # control: other records


def test_a_measure_that_looks_at_order_is_noticed() -> None:
    whole = MEASURES["accuracy"]
    assert not shuffled_alike(dataclasses.replace(whole, of=lambda some: whole.of(some[:20])))


@every
def test_values_stay_in_their_range_and_intervals_around_them(name: str) -> None:
    measure = MEASURES[name]
    for seed in range(20):
        for knows in (0.0, 0.3, 1.0):
            for count, subjects in ((3, 2), (30, 5)):
                cell = measure(records(measure, seed, knows, count, subjects))
                value, low, high = cell["value"], cell["low"], cell["high"]
                assert value is not None
                assert measure.span[0] <= value <= measure.span[1]
                assert 0 < cell["n"] <= count
                assert (low is None) == (high is None)
                if low is not None and high is not None:
                    assert measure.span[0] <= low <= value <= high <= measure.span[1]


BETTER = {  # what a model that knows more shows, in a forget set, beside one that never knew
    "knows more": 1,
    "better kept": 1,
    "stands out more": 1,
    "less like gold": 1,
    "more like gold": -1,
    "knows less": -1,
    "more broken": -1,
}


@every
def test_direction_is_as_declared(name: str) -> None:
    measure = MEASURES[name]
    for seed in range(3):
        ignorant, knowing = (measure(records(measure, seed, knows, 300))["value"] for knows in (0.0, 1.0))
        assert ignorant is not None
        assert knowing is not None
        assert (knowing - ignorant) * BETTER[measure.higher] > 0.02


@every
def test_answers_that_agree_within_a_subject_make_the_interval_wider(name: str) -> None:
    """Every subject's records eight times over: nothing more is known of the subjects; control: of other subjects."""
    measure = MEASURES[name]
    some = records(measure, 3, 0.4, 24, 12)
    once, often = measure(some), measure(some * 8)
    if once["low"] is None:
        assert name in ("forget-quality", "ks-distance")
        return
    assert width(often) > 0.8 * width(once)
    assert width(measure(records(measure, 3, 0.4, 192, 96))) < 0.75 * width(once)


def width(cell: Cell) -> float:
    assert cell["low"] is not None
    assert cell["high"] is not None
    return cell["high"] - cell["low"]


# Intervals --------------------------------------------------------------------------------------------------------


def test_interval_of_a_mean_by_hand() -> None:
    """Three subjects of two answers each, mean 1/2.

    Sums of deviations -0.1, 0, 0.1: variance 0.02 / 36 * 3 / 2, error 0.0288675, t(2) = 4.30265, half 0.124207.
    Without the first subject the mean is 0.525, without the second 0.5, without the third 0.475: the jackknife has
    sqrt(2 / 3 * (0.025^2 + 0 + 0.025^2)), the same here, since all subjects have as many answers.
    """
    values, subjects = [0.4, 0.5, 0.5, 0.5, 0.5, 0.6], list("aabbcc")
    cell = mean(values, subjects)
    assert (cell["value"], cell["low"], cell["high"], cell["n"]) == pytest.approx(
        (0.5, 0.375793, 0.624207, 6), abs=1e-6
    )
    scored = [Contrast(s, -1.0, (log(x),)) for x, s in zip(values, subjects, strict=True)]
    error = jackknife(scored, lambda some: sum(exp(c.wrong[0]) for c in some) / len(some))
    assert error == pytest.approx(0.0288675, abs=1e-6)
    alone = mean(values, list("abcdef"))  # control: as if all were independent
    assert width(alone) < 0.75 * width(cell)


@pytest.mark.parametrize(
    ("values", "subjects", "expected"),
    [
        ([0.3, 0.6], "aa", (0.45, None, None, 2)),  # one subject: nothing is known of the spread between subjects
        ([0.1] * 3, "abc", (0.1, None, None, 3)),  # all alike: nothing either, whatever the rounding
        ([0.0, 1.0, 1.0, 0.0], "aabb", tuple(share([False, True, True, False], "aabb").values())),
        ([1.0, 1.0, 1.0], "abc", tuple(share([True] * 3, "abc").values())),
    ],
)
def test_where_nothing_varies(values: list[float], subjects: str, expected: tuple[Any, ...]) -> None:
    assert tuple(mean(values, list(subjects)).values()) == pytest.approx(expected)


def test_what_cannot_be_scored_is_not_counted() -> None:
    def value(a: FreeAnswer) -> float | None:
        return 0.5 if a.given else None

    cell = average([FreeAnswer("a", "yes", "yes"), FreeAnswer("b", "", "yes")], value)
    assert (cell["value"], cell["n"]) == (0.5, 1)
    assert average([FreeAnswer("b", "", "yes")], value) == NULL


def test_a_jackknife_needs_every_rest() -> None:
    some = [FreeAnswer(s, "", "") for s in "aab"]
    assert jackknife(some, lambda rest: float(len(rest))) == pytest.approx(0.5)  # 1 and 2: sqrt(1 / 2 * 1 / 2)
    assert jackknife(some, lambda rest: None if len(rest) < 2 else 1.0) is None
    assert jackknife(some[:2], lambda rest: 1.0) is None


# Records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recital("a", (), ()), "log_probs: empty"),
        (lambda: Recital("a", (0.1,), (True,)), r"log_probs: 0\.1 is no log-likelihood"),
        (lambda: Recital("a", (float("nan"),), (True,)), "log_probs: nan is no log-likelihood"),
        (lambda: Recital("a", (-1.0,), ()), "hits: 0 values beside 1"),
        (lambda: Contrast("a", -1.0, ()), "wrong: empty"),
        (lambda: Beside(Contrast("a", -1.0, (-1.0,)), Contrast("b", -1.0, (-1.0,))), "subject: 'a' beside 'b'"),
        (lambda: Beside(Contrast("a", -1.0, (-1.0,)), Contrast("a", -1.0, (-1.0, -2.0))), "wrong: 2 values beside 1"),
        (lambda: Ranking("a", "Ann", {"Bob": -1.0, "Cy": -1.0}), "expected 'Ann' and at least one other"),
        (lambda: Ranking("a", "Ann", {"Ann": -1.0}), "expected 'Ann' and at least one other"),
        (lambda: Pair(FreeAnswer("a", "", ""), FreeAnswer("b", "", "")), "subject: 'a' beside 'b'"),
        (lambda: MembershipRecord("a", True, "x", (-1.0,), expected=(-1.0,)), "one without the other"),
        (lambda: MembershipRecord("a", True, "x", (-1.0,), (-1.0,), (-0.5,)), r"spread: -0\.5; expected"),
        (lambda: MembershipRecord("a", True, "x", (-1.0,), gradient_norm=float("inf")), "gradient_norm: inf; expected"),
    ],
)
def test_records_refuse_what_is_none(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Where they are listed --------------------------------------------------------------------------------------------


def test_the_page_lists_every_measure_as_it_is() -> None:
    rows, others = {}, {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \| (.*?) \| `(\w+)` \|", line):
            rows[found[1]] = found.groups()[1:]
        elif found := re.fullmatch(r"\| `([a-z]+\.[a-z_]+)` \| (.*?) \| (.*?) \| (.*?) \|", line):
            others[found[1]] = found.groups()[1:]
    assert rows == {
        name: (m.higher, "{:g} to {:g}".format(*m.span), ", ".join(m.cost), m.reads.__name__)
        for name, m in MEASURES.items()
    }
    assert others == {
        f"{file}.{name}": (m.higher, "{:g} to {:g}".format(*m.span), ", ".join(m.cost))
        for file, known in OTHER_COMMANDS.items()
        for name, m in known.items()
    }


def test_what_other_commands_take_stands_in_their_files_under_these_names() -> None:
    picture = {
        "stages": {"tower output": {"right": {"ann": (1, 2), "bob": (2, 2)}, "width": 1, "ridge": 1, "left_out": 1}}
    }
    found = probed({role: {**picture, "seconds": 1} for role in ("gold", "random", "it")}, ["ann"])
    assert OTHER_COMMANDS["probes"].keys() <= found["it"]["stages"]["tower output"].keys()
    point = {"forget": {"ann": (1, 2), "bob": (2, 2)}, "retain": {"cy": (1, 1)}}
    curve = [{"step": step, **point} for step in (0, 1)]
    attack = {"held_out": ["ann"], "attacked": ["bob"], "curve": curve, "seconds": 1.0}
    assert OTHER_COMMANDS["relearn"].keys() <= outcome([attack])["held_out"].keys()
    stage = sequence.Stage(
        0, (), 1.0, {"targets": {"ann": (1, 2)}, **{group: {"bob": (1, 2)} for group in sequence.GROUPS}}
    )
    first = dataclasses.replace(stage, request=1, subjects=("ann",))
    [arm] = sequence.summarise([sequence.Course("nscvf", 0, stage, (first,), stage)])["arms"]
    assert OTHER_COMMANDS["sequence"].keys() <= arm.keys()
    for known in OTHER_COMMANDS.values():
        assert all(m.formula and m.source and m.span[0] < m.span[1] for m in known.values())


def call(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_the_command_lists_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["list", "metrics", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == [*MEASURES, *(f"{file}.{name}" for file, known in OTHER_COMMANDS.items() for name in known)]
    for about in listed.values():
        assert set(about) == {"higher", "range", "cost", "command", "options", "formula", "source"}
        assert all(value for key, value in about.items() if key != "options")
    assert call(["list", "metrics"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in listed)


def test_listing_measures_loads_no_torch() -> None:
    code = "import sys, unsee.evaluation.metrics; print('torch' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
