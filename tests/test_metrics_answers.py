"""Measures of free answers, against examples worked by hand."""

from __future__ import annotations

from math import exp, sqrt

import pytest

from unsee.evaluation.answers import is_correct
from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.metrics.free_answers import bleu
from unsee.evaluation.metrics.records import FreeAnswer, Pair
from unsee.evaluation.score import health
from unsee.journal import Line

TOWNS = ("Oslo", "Lima", "Cairo")
RIGHT = "The nurse lives in Oslo."


def said(given: str, right: str = "Oslo", options: tuple[str, ...] = TOWNS, subject: str = "ann") -> FreeAnswer:
    return FreeAnswer(subject, given, right, options)


def value(name: str, *records: FreeAnswer | Pair) -> float:
    found = MEASURES[name](records)["value"]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "accurate", "contained"),
    [
        ("It is OSLO.", 1, 1),
        ("Lima or Oslo", 0, 1),  # Lima is named first
        ("Lima", 0, 0),
        ("Osloer", 0, 0),  # no whole word, although it has the letters
        ("", 0, 0),
    ],
)
def test_accuracy_and_cloze_by_hand(given: str, accurate: int, contained: int) -> None:
    """Each answer by itself; all five together have 1/5 and 2/5."""
    assert value("accuracy", said(given)) == accurate
    assert value("cloze", said(given)) == contained


def test_shares_of_right_answers_by_hand() -> None:
    """Of five answers one names Oslo first, and two contain it; control: as letters, three contain it."""
    given = ["It is OSLO.", "Lima or Oslo", "Lima", "Osloer", ""]
    answers = [said(text) for text in given]
    assert value("accuracy", *answers) == pytest.approx(1 / 5)
    assert value("cloze", *answers) == pytest.approx(2 / 5)
    assert sum("oslo" in text.lower() for text in given) / 5 == pytest.approx(3 / 5)
    assert MEASURES["accuracy"](answers)["n"] == 5


@pytest.mark.parametrize(
    ("given", "one", "two", "longest"),
    [
        # the, nurse, in, oslo; of four pairs "the nurse" and "in oslo"; "the nurse in oslo" is in both
        ("the nurse is in Oslo", (4 / 5, 4 / 5), (2 / 4, 2 / 4), (4 / 5, 4 / 5)),
        # one word of one given, of five true ones: 2 * 1 / (1 + 5)
        ("Oslo!", (1 / 3, 1 / 5), (0, 0), (1 / 3, 1 / 5)),
        # all words, but backwards: no pair, and one word in the same order
        ("Oslo in lives nurse the", (1, 1), (0, 0), (1 / 5, 1 / 5)),
        # "the" counts once, as in the true answer: 2 * 1 / (3 + 5)
        ("the the the", (2 / 8, 1 / 5), (0, 0), (2 / 8, 1 / 5)),
        ("", (0, 0), (0, 0), (0, 0)),
    ],
)
def test_rouge_by_hand(
    given: str, one: tuple[float, float], two: tuple[float, float], longest: tuple[float, float]
) -> None:
    """F and recall against "the nurse lives in oslo": five words, four pairs.

    Control: recall alone is won by saying everything, F is not.
    """
    for order, expected in (("1", one), ("2", two), ("l", longest)):
        answer = said(given, RIGHT)
        found = value(f"rouge-{order}-f", answer), value(f"rouge-{order}-recall", answer)
        assert found == pytest.approx(expected)
    everything = said(f"{RIGHT} or the pilot lives in Lima", RIGHT)
    assert value("rouge-l-recall", everything) == 1
    assert value("rouge-l-f", everything) == pytest.approx(2 * 5 / (11 + 5))


def test_rouge_of_several_answers_is_their_mean() -> None:
    """F: 4/5, 1/3 and 1 have the mean 32/45; two subjects, so the ends are known."""
    answers = [
        said("the nurse is in Oslo", RIGHT, subject="ann"),
        said("Oslo", RIGHT, subject="bob"),
        said(RIGHT, RIGHT, subject="bob"),
    ]
    cell = MEASURES["rouge-1-f"](answers)
    assert cell["value"] == pytest.approx(32 / 45)
    assert cell["n"] == 3
    assert cell["low"] is not None


def test_what_has_no_pair_of_words_is_not_scored() -> None:
    """Public scripts give a perfect answer of one word ROUGE-2 = 0; with it the mean would be 1/2, without it is 1."""
    word, words = said("Oslo"), said("New York", "New York")
    assert MEASURES["rouge-2-f"]([word])["n"] == 0
    cell = MEASURES["rouge-2-f"]([word, words])
    assert (cell["value"], cell["n"]) == (1, 1)
    for name in ("rouge-1-f", "rouge-l-recall", "bleu"):
        assert MEASURES[name]([said("anything", "?!")])["value"] is None
        assert MEASURES[name]([said("", "Oslo")])["value"] == 0  # control: a wrong answer is scored


def test_words_are_those_of_every_script() -> None:
    """Public scorers keep a-z only: for them "Zoë" and "Zo" are the same word."""
    assert value("rouge-1-f", said("Zo", "Zoë")) == 0
    assert value("rouge-1-f", said("ZOË", "Zoë")) == 1
    assert value("rouge-1-f", said("Анна Ли", "Анна")) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("given", "right", "expected"),
    [
        # p = 4/5, 2/4, no triple of 3 (0.1 / 3), no quadruple of 2 (0.1 / 2); equally long
        ("the nurse is in Oslo", RIGHT, (4 / 5 * 2 / 4 * 0.1 / 3 * 0.1 / 2) ** 0.25),
        ("Oslo", "Oslo", 1),  # one word: N = 1
        ("Oslo", "in Oslo", sqrt(1 * 0.1) * exp(1 - 2)),  # p = 1, and 0.1 for the pair; half as long: exp(-1)
        ("in in Oslo", "in Oslo", sqrt(2 / 3 * 1 / 2)),  # "in" counts once; too long is not punished twice
        ("Lima", "Oslo", 0),
        ("", "Oslo", 0),
    ],
)
def test_bleu_by_hand(given: str, right: str, expected: float) -> None:
    assert value("bleu", said(given, right)) == pytest.approx(expected)


def test_a_perfect_answer_has_a_perfect_bleu() -> None:
    """With up to four words in a row whatever the true answer, one word has (1 * 0.1^3)^(1/4) = 0.18 at best."""
    for words in range(1, 7):
        text = " ".join("abcdef"[:words])
        assert bleu(said(text, text)) == pytest.approx(1)
        assert bleu(said(text + " g", text)) != pytest.approx(1)  # control


# Picture and text -------------------------------------------------------------------------------------------------


def pair(picture: str, text: str) -> Pair:
    return Pair(said(picture, "Alba Borg", ()), said(text, "Alba Borg", ()))


def test_joint_measures_by_hand() -> None:
    """Right with the picture and in text: yes yes, yes no, no yes, no no.

    ROUGE-L F of "Alba Borg": 1, of "Alba": 2 * 1 / (1 + 2) = 2/3, of "Cy": 0. With a, b the pairs have
    2ab / (a + b) = 1, 4/5 (2 * 2/3 / (5/3)), 0, 0 and (a^2 + b^2) / (a + b) = 1, 13/15 ((13/9) / (15/9)), 1, 0.
    """
    pairs = [pair("Alba Borg", "Alba Borg"), pair("Alba Borg", "Alba"), pair("Cy", "Alba Borg"), pair("Cy", "Cy")]
    assert value("joint-right", *pairs) == pytest.approx(1 / 4)
    assert value("joint-wrong", *pairs) == pytest.approx(1 / 4)
    assert value("joint-overlap-retain", *pairs) == pytest.approx((1 + 4 / 5) / 4)
    assert value("joint-overlap-forget", *pairs) == pytest.approx((1 + 13 / 15 + 1) / 4)


def test_joint_measures_see_what_means_of_either_side_do_not() -> None:
    """Two models with the same answers, paired otherwise: half is right in either kind, for both."""
    together = [pair("Alba Borg", "Alba Borg"), pair("Cy", "Cy")]
    apart = [pair("Alba Borg", "Cy"), pair("Cy", "Alba Borg")]
    for name, joined, split in (
        ("joint-right", 1 / 2, 0),
        ("joint-wrong", 1 / 2, 0),
        ("joint-overlap-retain", 1 / 2, 0),
        ("joint-overlap-forget", 1 / 2, 1),
    ):
        assert (value(name, *together), value(name, *apart)) == pytest.approx((joined, split))
    for pairs in (together, apart):  # control
        assert value("accuracy", *(p.picture for p in pairs)) == value("accuracy", *(p.text for p in pairs)) == 1 / 2


# Health -----------------------------------------------------------------------------------------------------------

SICK = [
    said("Oslo"),
    said(" ... "),  # empty, so it names no option either
    said("Lima Lima Lima"),  # repeated and wrong, but an option
    said("I cannot say."),  # a refusal names no option
    said("Rome", options=()),  # no list that it could miss
]


def test_health_by_hand() -> None:
    """Of five answers one is empty, one repeats itself, and two of the four with a list name nothing on it."""
    found = [MEASURES[f"health-{sign}"](SICK) for sign in ("empty", "repeated", "off-list")]
    assert [(cell["value"], cell["n"]) for cell in found] == [(1 / 5, 5), (1 / 5, 5), (2 / 5, 5)]
    well = [said("Oslo"), said("Lima")]  # control; wrong is not sick
    assert all(value(f"health-{sign}", *well) == 0 for sign in ("empty", "repeated", "off-list"))


def test_health_and_accuracy_are_those_of_an_evaluation() -> None:
    lines: list[Line] = [
        {
            "split": "test",
            "probe": "fact",
            "subject": a.subject,
            "image": a.subject,
            "question": f"with {len(a.options)}",
            "answer": a.right,
            "prediction": a.given,
            "correct": is_correct(a.given, a.right, a.options),
        }
        for a in SICK
    ]
    evaluated = health(lines, (), {"with 3": TOWNS})
    assert evaluated == {
        "empty": MEASURES["health-empty"](SICK),
        "repeated": MEASURES["health-repeated"](SICK),
        "off_list": MEASURES["health-off-list"](SICK),
    }
    assert evaluated["empty"] != evaluated["off_list"]  # control
