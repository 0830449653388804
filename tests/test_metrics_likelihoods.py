"""Measures of likelihoods, against examples worked by hand."""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.metrics.records import Beside, Contrast, FreeAnswer, Kept, Ranking, Recital


def value(name: str, records: list[Any]) -> float:
    found = MEASURES[name](records)["value"]
    assert found is not None
    return found


def recital(*probabilities: float, hits: str | None = None) -> Recital:
    """Probabilities of the tokens, and a letter for each: T for a hit, F for a miss."""
    marks = hits or "T" * len(probabilities)
    return Recital("ann", tuple(log(p) for p in probabilities), tuple(mark == "T" for mark in marks))


def contrast(right: float, *wrong: float) -> Contrast:
    return Contrast("ann", log(right), tuple(log(p) for p in wrong))


def odds(of_model: float, of_gold: float) -> Beside:
    """One question with these log-odds of the truth against one false answer."""
    return Beside(Contrast("ann", -20.0 + of_model, (-20.0,)), Contrast("ann", -20.0 + of_gold, (-20.0,)))


# The true answer --------------------------------------------------------------------------------------------------


def test_answer_probability_by_hand() -> None:
    """Per token sqrt(1/2 * 1/2) = 1/2, sqrt(1/4 * 1) = 1/2, 1/10 and cbrt(1/8 * 1 * 1) = 1/2: mean 0.4.

    Control: of whole answers 1/4, 1/4, 1/10 and 1/8: the longest one would weigh the least.
    """
    recitals = [recital(1 / 2, 1 / 2), recital(1 / 4, 1), recital(1 / 10), recital(1 / 8, 1, 1)]
    assert value("answer-probability", recitals) == pytest.approx(0.4)
    whole = [exp(sum(r.log_probs)) for r in recitals]
    assert whole == pytest.approx([1 / 4, 1 / 4, 1 / 10, 1 / 8])


@pytest.mark.parametrize(
    ("hits", "extracted", "exact"),
    [
        ("TTTT", 1, 1),
        ("FTTT", 3 / 4, 3 / 4),  # one token given, all others follow
        ("TFTT", 2 / 4, 3 / 4),
        ("TTTF", 0, 3 / 4),  # the last one never follows
        ("F", 0, 0),
        ("T", 1, 1),
    ],
)
def test_memory_by_hand(hits: str, extracted: float, exact: float) -> None:
    """Extraction strength is the run of hits at the end, exact memorisation all hits, both as a share."""
    recitals = [recital(*([0.5] * len(hits)), hits=hits)]
    assert value("extraction-strength", recitals) == pytest.approx(extracted)
    assert value("exact-memorisation", recitals) == pytest.approx(exact)


def test_nothing_extracted_is_nothing() -> None:
    """Control: a loop over starts that stops at the last one without asking whether it matched has 1 / T and 1."""

    def looped(hits: tuple[bool, ...]) -> float:
        for k in range(len(hits)):
            if all(hits[k:]):
                break
        return 1 - k / len(hits)

    for hits in ("TTTF", "F"):
        answer = recital(*([0.5] * len(hits)), hits=hits)
        assert value("extraction-strength", [answer]) == 0
        assert looped(answer.hits) == 1 / len(hits)


# Against false answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "ours", "forget", "retain"),
    [
        (contrast(0.4, 0.1, 0.1), 4 / 5, 1 / 4, 3 / 4),  # R = 1/4
        (contrast(0.1, 0.4, 0.1), 1 / 3, 1 / 2, 0),  # geometric mean of the false ones 0.2, R = 2
        (contrast(0.2, 0.2), 1 / 2, 1, 0),  # R = 1: does not know
        (contrast(0.1, 0.4), 1 / 5, 1 / 4, 0),  # R = 4: avoids the truth
    ],
)
def test_truth_ratio_by_hand(asked: Contrast, ours: float, forget: float, retain: float) -> None:
    """1 / (1 + R), min(R, 1 / R) and max(0, 1 - R).

    The first and the last are a model that knows and one that avoids: the second form cannot tell them apart.
    """
    assert value("truth-ratio", [asked]) == pytest.approx(ours)
    assert value("truth-ratio-forget", [asked]) == pytest.approx(forget)
    assert value("truth-ratio-retain", [asked]) == pytest.approx(retain)


def test_truth_ratios_are_taken_per_question() -> None:
    """R = 1/4 and 2: mean of 1 / (1 + R) is (4/5 + 1/3) / 2. Asked beside others, a question keeps its ratio.

    Control: with the false answers averaged over the whole set first, the other question changes it.
    """
    one, other = contrast(0.4, 0.1), contrast(0.01, 0.02)
    assert value("truth-ratio", [one, other]) == pytest.approx(17 / 30)

    def pooled(some: list[Contrast]) -> float:
        false = np.mean([c.wrong for c in some])
        return float(np.mean([1 / (1 + exp(false - c.right)) for c in some]))

    alone = [value("truth-ratio", [c]) for c in (one, other)]
    assert value("truth-ratio", [one, other]) == pytest.approx(np.mean(alone))
    assert pooled([one, other]) != pytest.approx(np.mean([pooled([one]), pooled([other])]))


def test_a_sure_model_does_not_leave_the_range_of_floats() -> None:
    sure = [Contrast("ann", -0.001, (-2000.0,)), Contrast("ann", -2000.0, (-0.001,))]
    assert [value("truth-ratio", [c]) for c in sure] == [1, 0]
    assert value("truth-ratio-forget", sure) == 0
    assert value("truth-ratio-retain", sure) == pytest.approx(1 / 2)
    with pytest.raises(OverflowError):  # control: the ratio itself
        exp(2000 - 0.001)


# Against gold -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_model", "of_gold", "distance", "p"),
    [
        ((1, 2, 3, 4), (4, 3, 2, 1), 0, 1),  # the same distribution, other questions
        ((1, 2, 3, 4), (5, 6, 7, 8), 1, 2 / 70),  # 2 of the 8! / 4! 4! = 70 orders are as far apart
        ((1, 2, 3, 4), (2.5, 3.5, 4.5, 5.5), 1 / 2, 54 / 70),  # at 2: 2/4 of one and 0 of the other; 70 - 2^4 orders
        ((1, 2), (3, 4), 1, 2 / 6),
    ],
)
def test_forget_quality_by_hand(
    of_model: tuple[float, ...], of_gold: tuple[float, ...], distance: float, p: float
) -> None:
    """Largest distance of the distribution functions, and the share of orders of all values that reach it."""
    beside = [odds(m, g) for m, g in zip(of_model, of_gold, strict=True)]
    assert value("ks-distance", beside) == pytest.approx(distance)
    assert value("forget-quality", beside) == pytest.approx(p)


def test_the_p_value_follows_the_number_of_questions_the_distance_does_not() -> None:
    few = [odds(m, m + 1.5) for m in (1, 2, 3, 4)]
    many = few * 100
    assert value("ks-distance", many) == pytest.approx(value("ks-distance", few)) == pytest.approx(1 / 2)
    assert value("forget-quality", few) > 0.7  # "indistinguishable"
    assert value("forget-quality", many) < 1e-40  # of the same two models


def test_jensen_shannon_by_hand() -> None:
    """Choices (p, 1 - p) of model and gold, in bits.

    Alike: 0. (1, 0) and (0, 1): 1. (3/4, 1/4) and (1/4, 3/4): H(1/2) - H(1/4) = 1 - 0.811278 = 0.188722. (1, 0) and
    (1/2, 1/2): H(3/4) - (0 + 1) / 2 = 0.311278. Mean 0.375.
    """
    never = 1e-300
    beside = [
        Beside(contrast(0.4, 0.6), contrast(0.04, 0.06)),
        Beside(contrast(1, never), contrast(never, 1)),
        Beside(contrast(0.75, 0.25), contrast(0.25, 0.75)),
        Beside(contrast(1, never), contrast(0.5, 0.5)),
    ]
    for one, expected in zip(beside, (0, 1, 0.188722, 0.311278), strict=True):
        assert value("jensen-shannon", [one]) == pytest.approx(expected, abs=1e-6)
    assert value("jensen-shannon", beside) == pytest.approx(0.375, abs=1e-6)


def test_jensen_shannon_sees_that_all_ratios_have_changed() -> None:
    """Control: of the two vectors of ratios, each taken for a distribution over questions, it is 0."""
    beside = [Beside(contrast(r, 0.1), contrast(r / 8, 0.1)) for r in (0.8, 0.4, 0.2)]
    assert value("jensen-shannon", beside) > 0.1
    ratios = [[exp(c.right - c.wrong[0]) for c in (b.model, b.gold)] for b in beside]
    assert jensenshannon(*zip(*ratios, strict=True)) == pytest.approx(0, abs=1e-7)


# Candidates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "p", "first", "rank", "share"),
    [
        ("Ann", {"Ann": 0.2, "Bob": 0.1, "Cy": 0.1}, 1, 1, 1 / 2),
        ("Bob", {"Ann": 0.2, "Bob": 0.1, "Cy": 0.1}, 0, 1 / 4, 1 / 4),  # of two others none is below, one equal
        ("Cy", {"Ann": 0.1, "Bob": 0.1, "Cy": 0.1}, 1 / 3, 1 / 2, 1 / 3),  # all alike: chance
        ("Di", {"Ann": 0.3, "Di": 0.1}, 0, 0, 1 / 4),
    ],
)
def test_candidates_by_hand(right: str, p: dict[str, float], first: float, rank: float, share: float) -> None:
    ranked = [Ranking("ann", right, {name: log(likelihood) for name, likelihood in p.items()})]
    found = [value(f"candidate-{what}", ranked) for what in ("first", "rank", "probability")]
    assert found == pytest.approx([first, rank, share])


def test_a_model_that_tells_no_candidate_apart_is_at_chance() -> None:
    """Control: if the first of the best counted, it would always be right where the true name comes first."""
    names = ("Ann", "Bob", "Cy", "Di")
    blank = [Ranking("ann", name, dict.fromkeys(names, -3.0)) for name in names]
    assert value("candidate-first", blank) == pytest.approx(1 / 4)
    assert value("candidate-rank", blank) == pytest.approx(1 / 2)
    true_first = [Ranking("ann", "Ann", dict.fromkeys(names, -3.0))]
    assert value("candidate-first", true_first) == pytest.approx(1 / 4)
    assert max(names, key=true_first[0].log_likelihoods.__getitem__) == "Ann"


# Model utility ----------------------------------------------------------------------------------------------------


def kept(part: str, p: float, given: str, right: str, odds: float, subject: str = "ann") -> Kept:
    """Probability p, an answer, and R = 1 - truth."""
    answer = FreeAnswer(subject, given, right)
    truth = Contrast(subject, log(0.5), (log(0.5 * (1 - odds)),))
    return Kept(part, answer, Recital(subject, (log(p),), (True,)), truth)


def test_model_utility_by_hand() -> None:
    """Means 1/2, 1, 1/2 of one part and 1/2, 1/2, 1/4 of the other: 6 / (2 + 1 + 2 + 2 + 2 + 4) = 6/13.

    One of them at 0 makes it 0. Control: the plain mean of the six is 13/24.
    """
    one, other = kept("retain", 1 / 2, "New York", "New York", 1 / 2), kept("world", 1 / 2, "New", "New York", 1 / 4)
    cell = MEASURES["model-utility"]([one, other])
    assert cell["value"] == pytest.approx(6 / 13)
    assert (cell["n"], cell["low"]) == (2, None)  # one subject: nothing is known of their spread
    assert value("model-utility", [one, kept("world", 1 / 2, "Lima", "New York", 1 / 4)]) == 0


def test_every_part_weighs_the_same() -> None:
    one, other = kept("retain", 1 / 2, "New York", "New York", 1 / 2), kept("world", 1 / 2, "New", "New York", 1 / 4)
    assert value("model-utility", [one] * 9 + [other]) == pytest.approx(6 / 13)
    mixed = [kept("world", 1 / 2, "New York", "New York", 1 / 2)] * 9 + [other]  # control: all in one part
    assert value("model-utility", mixed) > 0.5


def test_model_utility_has_an_interval_over_subjects() -> None:
    """Subjects with p = 1/2 and 1/4, all else 1: of the four-subject means each weighs the same."""
    some = [kept("retain", p, "Oslo", "Oslo", 1 - 1e-12, str(i)) for i, p in enumerate((0.5, 0.25, 0.5, 0.25))]
    cell = MEASURES["model-utility"](some)
    assert cell["value"] == pytest.approx(3 / (1 / 0.375 + 1 + 1))
    assert cell["low"] is not None
    assert cell["low"] < 3 / (1 / 0.375 + 2)
    unscored = kept("retain", 0.5, "Oslo", "?", 0.5, "new")  # a true answer without a word
    assert MEASURES["model-utility"]([*some, unscored]) == cell
    assert MEASURES["model-utility"]([unscored])["value"] is None
