"""Answers that are not words, options and names that no answer tells apart, roles that do not fit a line."""

from __future__ import annotations

import io
import json
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from unsee.cli.terminal import ROWS, plain_table, results_table
from unsee.data.normalisation import plain
from unsee.data.sources import load_data
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct, is_empty, repeats
from unsee.evaluation.metrics.free_answers import rouge
from unsee.evaluation.metrics.records import FreeAnswer
from unsee.evaluation.results import ModelResult, Results

# Right and wrong ------------------------------------------------------------------------------------------------------

GRADES = ("A+", "A", "A-", "A*", "B")


@pytest.mark.parametrize(
    ("answer", "options", "right", "wrong"),
    [
        ("A+", (), ["A+", "It is A+.", "(a+)", "**A+**", "Ａ＋", "A +"], ["A-", "A", "He is a doctor.", "a a a", "+"]),
        ("A+", GRADES, ["A+", "A+, not A-", "A +"], ["A", "A-", "A*", "B", "a"]),
        ("A-", GRADES, ["A-", "a-.", "'A-'", "A\N{MINUS SIGN}", "**A-**"], ["A", "A+", "A*", "A - or so", "B-"]),
        ("A", GRADES, ["A", "a.", "*A*", "**FreeAnswer: A**"], ["A-", "A+", "A*"]),
        ("C++", (), ["C++", "It was C++, I think", "c ++", "C + +"], ["C#", "C", "C+"]),
        ("C#", ("C", "C++", "C#", "F#"), ["C#.", "`C#`", "C♯"], ["C", "C++", "F#"]),
        ("-5", (), ["-5", "−5 °C", "it is –5.", "(-5)", "- 5"], ["5", "1-5", "+5"]),
        ("5", (), ["5", "5.", "= 5", "2-5", "$5"], ["-5", "−5", "15"]),
        ("$5", ("$5", "€5", "5"), ["$5", "It costs $5."], ["€5", "5"]),
        ("50 %", (), ["50%", "50 %"], ["50", "50 €"]),
        ("AT&T", (), ["AT&T", "at & t"], ["AT T", "AT"]),
        ("<5", (), ["<5", "< 5"], [">5", "5"]),
        ("B♭", (), ["b♭", "B♭ major"], ["B", "B♯"]),
        ("😀", ("😀", "😢", "👩‍🚀"), ["😀", "It is 😀!", "😀😀"], ["😢", "👩‍🚀", "a smile"]),
        ("👩‍🚀", (), ["👩‍🚀", "👩 \u200d 🚀"], ["👩", "🚀", "👩 🚀"]),
        ("👍🏽", (), ["👍🏽.", "👍 🏽"], ["👍", "👍🏿"]),
        ("❤️", (), ["❤", "❤\ufe0f"], ["💔"]),
        ("🇩🇪", (), ["🇩🇪", "🇫🇷🇩🇪"], ["🇫🇷", "🇩", "🇪🇩"]),
        ("●", ("●", "■"), ["●", "● "], ["■", ""]),
        ("东京", (), ["她住在东京。", "东京", "东 京", "Tokyo（东京）"], ["她住在北京。", "京东", ""]),
        ("京都", ("東京", "京都"), ["京都です", "彼は京都に住む"], ["東京都"]),
        ("Tokyo", (), ["她住在Tokyo。", "Tokyoに住む"], ["Tokyoites", "東京"]),
        ("アンナ", (), ["アンナさんです。", "ｱﾝﾅ", "それはアンナだ"], ["アンナベル", "アン"]),
        ("アン", (), ["アンは"], ["アンナは"]),
        ("さくら", (), ["彼女はさくらです"], ["くらさ"]),
        ("กรุงเทพ", (), ["เธออยู่กรุงเทพค่ะ"], ["เธออยู่เชียงใหม่"]),
        ("น้ำ", (), ["น\u0e49\u0e4d\u0e32", "ดื่มน้ำ"], ["นำ", "นา"]),
        ("ปา", (), ["ปา"], ["ป่า"]),  # a tone mark makes another word
        ("Zoë", (), ["Zoe\u0308", "ZOË!"], ["Zoe", "Zoé"]),
        ("Alba", (), ["Al\u00adba", "\u200fAlba\u200f", "\ufeffAlba"], ["Al ba", "Albas"]),
    ],
)
def test_symbols_and_scripts_can_be_right_and_wrong(
    answer: str, options: Sequence[str], right: Sequence[str], wrong: Sequence[str]
) -> None:
    assert {said: is_correct(said, answer, options) for said in right} == dict.fromkeys(right, True)
    assert {said: is_correct(said, answer, options) for said in wrong} == dict.fromkeys(wrong, False)


@pytest.mark.parametrize(
    "said",
    [
        *("Anna.", "anna", '"Anna"', "It is Anna.", "**Anna**", "ANNA!", "Anna - a doctor", "<s>Anna</s>", "- Anna"),
        *("# Anna", "Anna-", "`Anna`", "_Anna_", "Anna + Bob", "Anna's", "1. Anna", "Anna (Borg)", "Anna | Bob"),
    ],
)
def test_punctuation_around_an_ordinary_name_is_still_no_difference(said: str) -> None:
    assert is_correct(said, "Anna")
    assert is_correct(said, "Anna", ("Bob Borg", "Anna", "Anne"))
    assert not is_correct(said, "Ann")


@pytest.mark.parametrize(("said", "truth"), [("3.5", "5"), ("3.5 kg", "3"), ("It is 1.25.", "25"), ("v2.0", "2")])
def test_a_part_of_a_number_is_not_that_number(said: str, truth: str) -> None:
    assert not is_correct(said, truth)
    assert is_correct(f"{truth}.", truth)  # controls: the point at the end of a sentence, and between two
    assert is_correct(f"In room {truth}. 7 came.", truth)


def test_a_tokenizer_may_part_a_number() -> None:
    assert is_correct("3 . 5 kg", "3.5 kg")
    assert not is_correct("3 . 5", "5")


def test_ordinary_texts_are_compared_as_they_always_were() -> None:
    """The rule before symbols counted, on texts of letters, digits, spaces and punctuation."""

    def before(text: str) -> str:
        letters = unicodedata.normalize("NFKC", text).casefold()
        kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in letters)
        return " ".join("".join(kept).split())

    drawn = random.Random(0)
    alphabet = "abcXYZ 019 éßñ жק عह한 \N{DEVANAGARI VOWEL SIGN I}.,;:!?'\"()/_[] — …"
    for _ in range(5000):
        text = "".join(drawn.choice(alphabet) for _ in range(drawn.randint(0, 14)))
        if not re.search(r"\d(\.| \. )\d", text):  # a point inside a number is part of it by now
            assert plain(text) == before(text)
    people = load_data("people:count=8,seed=10,train=1,validation=1,test=1,strangers=2")
    texts = {text for e in (*people.train, *people.strangers) for text in (e.question, e.answer, *e.choices)}
    assert len(texts) > 50
    assert {text: plain(text) for text in texts} == {text: before(text) for text in texts}


@pytest.mark.parametrize("said", ["", "...", "###", "$ $", "| | |", "�", "+"])
def test_an_answer_without_word_or_picture_is_empty(said: str) -> None:
    assert is_empty(said)


@pytest.mark.parametrize("said", ["a", "5", "东", "😀", "C++"])
def test_an_answer_of_one_sign_that_says_something_is_not_empty(said: str) -> None:
    assert not is_empty(said)


def test_words_of_scripts_without_spaces_are_counted_one_by_one() -> None:
    assert repeats("😀😀😀")
    assert repeats("好好好")
    assert not repeats("### Anna")
    assert rouge(FreeAnswer("s", "她住在北京", "她住在东京"), None, "f") == pytest.approx(0.8)
    assert rouge(FreeAnswer("s", "C#", "C++"), 1, "f") == 0


# What cannot be told apart is refused ---------------------------------------------------------------------------------


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise((32, 32), 60 + number).convert("RGB")
    image.save(path)


def folder(root: Path, names: dict[str, str]) -> Path:
    for i, subject in enumerate(names):
        for shot in range(4):
            picture(root / subject / f"{shot}.png", 10 * i + shot)
    rows = [f'{subject},"{name}"' for subject, name in names.items() if name]
    (root / "facts.csv").write_text("\n".join(["subject,name", *rows]), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"a": "J. Smith", "b": "J Smith", "c": "Bob"}, ["'a' and 'b' are both called 'J. Smith' or 'J Smith'"]),
        ({"a": "Anna", "b": "ANNA!", "c": "Bob", "d": "bob"}, ["'a' and 'b'", "'Anna' or 'ANNA!'", "'c' and 'd'"]),
        ({"a": "X", "b": "x", "c": "(X)"}, ["'a', 'b' and 'c' are all called 'X', 'x' or '(X)'"]),
        ({"a": "Ｏslo", "b": "Oslo"}, ["'Ｏslo' or 'Oslo'"]),
        ({"a": "东 京", "b": "东京"}, ["'东 京' or '东京'"]),
        ({"a": "???", "b": "Bob", "c": "…"}, ["'a' and 'c': called '???' and '…'", "no answer could be right"]),
    ],
)
def test_names_that_no_answer_tells_apart_are_refused_all_at_once(
    tmp_path: Path, names: dict[str, str], expected: Sequence[str]
) -> None:
    with pytest.raises(BadInput) as refused:
        load_data(str(folder(tmp_path / "photos", names)))
    for part in expected:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "names",
    [
        {"a": "A+", "b": "A-", "c": "A"},
        {"a": "😀", "b": "😢"},
        {"a": "Anna", "b": "Anna Borg", "c": "Borg"},  # one within the other: the longer one said is the one meant
        {"a": "-5", "b": "5"},
        {"a": "东京", "b": "東京", "c": "京"},
    ],
)
def test_names_that_symbols_tell_apart_are_read_and_told_apart(tmp_path: Path, names: dict[str, str]) -> None:
    data = load_data(str(folder(tmp_path / "photos", names)))
    known = tuple(data.names.values())
    told = {(said, name): is_correct(said, name, known) for said in known for name in known}
    assert told == {(said, name): said == name for said in known for name in known}


def table(root: Path, **changes: object) -> str:
    rows = []
    for i, subject in enumerate(("ada", "bob")):
        for shot in range(4):
            picture(root / f"{subject}{shot}.png", 10 * i + shot)
            about: dict[str, object] = {"image": f"{subject}{shot}.png", "subject": subject, "name": subject}
            rows.append({**about, "question": "Who is it?", "answer": subject})
            rows.append({**about, "question": "Which?", "answer": "C++", "probe": "fact", **changes})
    path = root / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"choices": ["C++", "J. Smith", "J Smith", "x", "X"]},
            ["row 2: choices 'J. Smith' and 'J Smith'", "choices 'x' and 'X'"],
        ),
        ({"choices": ["C++", "c++"]}, ["choices 'C++' and 'c++'"]),
        ({"choices": ["C++", "?"]}, ["'?' has no letter, digit or symbol"]),
        ({"answer": "…"}, ["row 2: '…' has no letter, digit or symbol"]),
    ],
)
def test_choices_and_answers_that_cannot_be_judged_are_refused(
    tmp_path: Path, changes: dict[str, object], expected: Sequence[str]
) -> None:
    with pytest.raises(BadInput) as refused:
        load_data(table(tmp_path, **changes))
    assert "\n" not in str(refused.value)
    for part in expected:
        assert part in str(refused.value)


def test_choices_that_symbols_tell_apart_are_read(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, choices=["C++", "C#", "C", "C+", "-5", "5"]))
    assert {e.choices for e in data.test if e.probe == "fact"} == {("C++", "C#", "C", "C+", "-5", "5")}


# Roles that do not fit a line -----------------------------------------------------------------------------------------

ROLES = ("vanilla", "gold", "unlearned-with-nscvf-threshold-0-9-seed-3", "without_rehearsal_of_the_retained")
CELL = {"value": 0.512, "low": 0.41, "high": 0.62, "n": 3}


def results_of(roles: Sequence[str]) -> Results:
    scores: dict[str, Any] = {}
    for _, path in ROWS:
        place = scores
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = CELL
    return Results({role: ModelResult(scores, {"cost": {"seconds": 3.2}}) for role in roles}, {})


def printed(table: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def pieces_of(text: str, lines: Sequence[str]) -> int:
    """In how many pieces a text can be read, each as long as it stands in one line."""
    count = 0
    while text:
        found = [end for end in range(1, len(text) + 1) if any(text[:end] in line for line in lines)]
        text, count = text[max(found) :], count + 1
    return count


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    ("table", "texts"),
    [
        (results_table(results_of(ROLES)), ROLES),
        (plain_table(("stage", *ROLES), [("tower output", *["51.2 [41–62]"] * 4)]), ROLES),
        (plain_table(("model", "held out", "attacks"), [(role, "51.2 (41 to 62)", "8") for role in ROLES]), ROLES),
        (plain_table(("cell", "number", "", *ROLES), [("forget", "accuracy", "↓", *["51.2"] * 4)], keys=3), ROLES),
    ],
)
def test_no_role_is_cut(table: Any, texts: Sequence[str], width: int) -> None:
    lines = printed(table, width)
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= width
    assert {role: pieces_of(role, lines) for role in texts if len(role) < 20} == dict.fromkeys(("vanilla", "gold"), 1)
    assert all(pieces_of(role, lines) <= 3 for role in texts)


@pytest.mark.parametrize("width", [60, 80])
def test_values_stand_in_one_line_beside_what_they_are_of(width: int) -> None:
    lines = printed(results_table(results_of(ROLES)), width)
    assert sum(line.count("51.2 (41–62)") for line in lines) == len(ROWS) * len(ROLES)
    assert all(line.strip().startswith(("validation", "51.2")) for line in lines if "validation" in line)


def test_roles_that_fit_stand_in_one_table() -> None:
    lines = printed(results_table(results_of(("vanilla", "gold", "mine"))), 120)
    assert sum("─" in line for line in lines) == 1
    assert sum("right answers in %" in line for line in lines) == 1


def test_nothing_in_a_cell_is_markup() -> None:
    lines = printed(plain_table(("model", "about"), [("[bold]x[/bold]", "a [red] b")]), 60)
    assert any("[bold]x[/bold]" in line and "a [red] b" in line for line in lines)
