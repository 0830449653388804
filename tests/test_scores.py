"""Scores: each answer counts where it belongs; misattribution and health by hand."""

from __future__ import annotations

import pytest
from contract import CITIES, CONTRACT, NAMES, at

from unsee.evaluation.answers import is_correct
from unsee.evaluation.score import health, misattribution, score
from unsee.journal import Line

CHOICES = {"Where?": CITIES, "Glasses?": ("yes", "no")}


def line(
    prediction: str = "Ann Lee",
    answer: str = "Ann Lee",
    *,
    probe: str = "identity",
    part: str = "forget",
    split: str = "test",
    subject: str = "ann",
    question: str = "Who?",
) -> Line:
    options = NAMES if probe == "identity" else CHOICES.get(question, ())
    return {
        "role": "vanilla",
        "split": split,
        "set": part,
        "subject": subject,
        "image": f"{subject}/{split}.png",
        "probe": probe,
        "question": question,
        "answer": answer,
        "prediction": prediction,
        "correct": is_correct(prediction, answer, options),
    }


def test_nothing_asked_is_null_everywhere() -> None:
    scores = score([], NAMES, CHOICES)
    for path in CONTRACT:
        cell = at(scores, path)
        assert (cell["value"], cell["low"], cell["high"], cell["n"]) == (None, None, None, 0), path


@pytest.mark.parametrize(
    ("asked", "counted"),
    [
        (line(), {("forget", "test"), ("names", "forget", "test")}),
        (line(part="retain", split="train"), {("retain", "train"), ("names", "retain", "train")}),
        (line(probe="fact", split="validation"), {("forget", "validation"), ("facts", "forget", "validation")}),
        (line(probe="fact", split="text", part="retain"), {("text", "retain")}),
        (line(probe="attribute"), {("attributes", "forget")}),
        (line(probe="attribute", split="train"), set()),
        (line(probe="attribute", split="strangers", part="strangers"), {("attributes", "strangers")}),
        (line(probe="general"), set()),
    ],
)
def test_an_answer_counts_where_it_belongs_and_nowhere_else(asked: Line, counted: set[tuple[str, ...]]) -> None:
    scores = score([asked], NAMES, CHOICES)
    plain_paths = [path for path in CONTRACT if path[0] not in ("health", "misattribution")]
    assert {path for path in plain_paths if at(scores, path)["n"]} == counted
    assert all(at(scores, path)["value"] == 1 for path in counted)


def test_shares_by_hand() -> None:
    lines = [
        line("Ann Lee"),
        line("Bob Ray"),
        line("Oslo", "Oslo", probe="fact", question="Where?"),
        line("Oslo", "Lima", probe="fact", question="Where?"),
        line("Lima Oslo", "Oslo", probe="fact", question="Where?"),
        line("yes", "yes", probe="attribute", question="Glasses?"),
    ]
    scores = score(lines, NAMES, CHOICES)
    found = {path: at(scores, path)["value"] for path in CONTRACT if path[-1] in ("test", "forget")}
    assert found["forget", "test"] == pytest.approx(2 / 5)
    assert found["names", "forget", "test"] == pytest.approx(1 / 2)
    assert found["facts", "forget", "test"] == pytest.approx(1 / 3)
    assert found["attributes", "forget"] == 1
    assert found["retain", "test"] is None


def called(subject: str, answer: str, *said: str, **rest: str) -> list[Line]:
    return [line(text, answer, subject=subject, **rest) for text in said]  # type: ignore[arg-type]


ANN = called("ann", "Ann Lee", "Bob Ray", "bob ray!", "Cy Moss", "Ann Lee")  # same wrong name: 2 of 4
CY = called("cy", "Cy Moss", "Bob Ray", "Di Fox", "no idea")  # 1 of 3


@pytest.mark.parametrize(
    ("lines", "value", "n", "subject", "named"),
    [
        (ANN, 0.5, 4, "ann", "Bob Ray"),
        (CY, 1 / 3, 3, "cy", "Bob Ray"),
        (CY + ANN, 0.5, 4, "ann", "Bob Ray"),  # the worst target, not the mean
        (ANN + called("di", "Di Fox", "Cy Moss", "Cy Moss"), 1.0, 2, "di", "Cy Moss"),
        (called("ann", "Ann Lee", "Ann Lee", "Ann Lee"), 0.0, 2, "ann", None),  # right answers are no misattribution
        (called("ann", "Ann Lee", "who knows", ""), 0.0, 2, "ann", None),
        (called("ann", "Ann Lee", "Bob Ray", split="train"), None, 0, None, None),
        (called("ann", "Ann Lee", "Bob Ray", part="retain"), None, 0, None, None),
        (called("ann", "Ann Lee", "Bob Ray", probe="fact"), None, 0, None, None),
        ([], None, 0, None, None),
    ],
)
def test_misattribution_by_hand(
    lines: list[Line], value: float | None, n: int, subject: str | None, named: str | None
) -> None:
    found = misattribution(lines, NAMES)
    assert (found["n"], found["subject"], found["named"]) == (n, subject, named)
    assert found["value"] == (None if value is None else pytest.approx(value))


def test_health_by_hand() -> None:
    lines = [
        line("Ann Lee"),
        line(" ... "),  # empty, and therefore off the list
        line("Bob Ray Bob Ray Bob Ray"),  # wrong and repeated, but on the list
        line("someone", split="strangers", part="strangers"),  # off the list
        line("Rome", "Oslo", probe="fact", question="Where?", split="text"),  # off the list
        line("Rome", "Oslo", probe="fact", question="Which town?"),  # no list, so never off it
        line("", "Oslo", probe="fact", split="train"),  # training pictures do not count
        line("", "Oslo", probe="fact", split="validation"),
    ]
    found = {sign: (cell["value"], cell["n"]) for sign, cell in health(lines, NAMES, CHOICES).items()}
    assert found == {"empty": (1 / 6, 6), "repeated": (1 / 6, 6), "off_list": (3 / 6, 6)}
    forget = score(lines, NAMES, CHOICES)["health"]["forget"]["off_list"]
    assert (forget["value"], forget["n"]) == (2 / 5, 5)


def test_health_of_sound_answers_is_zero() -> None:
    sound = [line(name) for name in NAMES]
    assert {sign: cell["value"] for sign, cell in health(sound, NAMES, CHOICES).items()} == {
        "empty": 0,
        "repeated": 0,
        "off_list": 0,
    }
