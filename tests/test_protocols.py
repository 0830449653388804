"""Protocols: answers read by hand, numbers worked out by hand, shots, and whole runs over miniatures."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import write_small
from conftest import NewCheckpoint

from unsee.data.benchmarks import BenchmarkData, read_benchmark
from unsee.errors import BadInput
from unsee.evaluation.protocols import (
    MODES,
    PROTOCOLS,
    Mode,
    ProtocolQuestion,
    ProtocolReply,
    ProtocolRow,
    answer_text,
    published,
    question_text,
    table,
)
from unsee.evaluation.protocols import wording as read
from unsee.evaluation.protocols.mllmu import shot_people
from unsee.evaluation.protocols.published import stem
from unsee.study import protocol as running
from unsee.study.protocol import NOT_MEASURABLE, modes_of, protocol_for, rows_of, run_protocol

OPTIONS = {"A": "baker", "B": "pilot", "C": "nurse", "D": "judge"}
Say = Callable[[ProtocolQuestion], str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Every benchmark in small: of ten people two are forgotten."""
    root = tmp_path_factory.mktemp("small")
    return {name: f"{write_small(name, root / name)},forget=20" for name in PROTOCOLS}


@pytest.fixture(scope="module")
def small(folders: Mapping[str, str]) -> Mapping[str, BenchmarkData]:
    return {name: read_benchmark(name, spec) for name, spec in folders.items()}


def truth(name: str) -> Say:
    return lambda one: answer_text(name, one.item, one.mode)


def replies(asked: tuple[ProtocolQuestion, ...], say: Say, sure: float = -0.1) -> list[ProtocolReply]:
    """A model that says what `say` says, and finds true answers `sure`, false ones -1 per token."""

    def likely(one: ProtocolQuestion) -> dict[str, Any] | None:
        n = len(one.item.wrong)
        taken = {"log_probs": [sure, sure], "hits": [True, True], "paraphrase": sure, "wrong": [-1.0] * n}
        return taken if one.contrast else None

    return [ProtocolReply.of(json.loads(json.dumps(one.line("x", say(one), likely(one))))) for one in asked]


def value(rows: list[ProtocolRow], place: str, name: str, role: str = "vanilla") -> float | None:
    (row,) = [r for r in rows if f"{r.part} {r.what} {r.side}" == place and r.name == name]
    return row.cells[role]["value"]


# Reading answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "corrected", "paper"),
    [
        ("B", "B", "B"),
        ("b", "B", "B"),
        ("(B)", "B", None),
        ("B. pilot", "B", "B"),
        ("The answer is B.", "B", None),
        ("A pilot", "B", "A"),  # an article
        ("Don't know", None, "D"),
        ("D: nobody", None, "D"),
        ("B. nurse", None, "B"),  # contradicts itself
        ("pilot", "B", None),
        ("copilot", None, "C"),
        ("baker, pilot, nurse, judge", "A", "B"),  # the first named; the first character
        ("", None, None),
        ("E", None, None),
    ],
)
def test_choices_are_read_by_whole_letters_or_words(given: str, corrected: str | None, paper: str | None) -> None:
    assert read.chosen(given, OPTIONS) == corrected
    assert read.paper_first_character(given, OPTIONS) == paper


def test_the_other_published_ways_to_read() -> None:
    assert read.paper_first_letter("(B) pilot", OPTIONS) == "B"
    assert read.paper_option_text("pilot", OPTIONS) == "B"
    assert read.paper_option_text("pilot.", OPTIONS) is None
    assert read.paper_nearest_option("pilots!", OPTIONS) == "B"
    assert read.paper_nearest_option("", OPTIONS) == "A"  # even silence is an answer
    assert read.paper_contained("her eyes", "yes")
    assert not read.paper_contained("her hair", "yes")
    assert read.paper_contained_to_stop("down the street", "St. Ives")
    assert read.paper_keywords("a copilot in Rome", ("pilot", "Oslo")) == 0.5
    assert read.keywords_named("a copilot in Rome", ("pilot", "Oslo")) == 0.0
    assert read.keywords_named("a pilot in Oslo.", ("Pilot", "Oslo")) == 1.0
    assert read.keywords_named("anything", ()) is None


def test_porters_stems() -> None:
    """Examples of the paper's own steps, 1a to 5b."""
    known = {"caresses": "caress", "ponies": "poni", "agreed": "agre", "plastered": "plaster", "hopping": "hop"}
    known |= {"filing": "file", "happy": "happi", "relational": "relat", "vietnamization": "vietnam", "sky": "sky"}
    known |= {"triplicate": "triplic", "adoption": "adopt", "controller": "control", "rate": "rate", "cease": "ceas"}
    known |= {"falling": "fall", "hissing": "hiss", "generalizations": "gener", "universal": "univers"}
    assert {word: stem(word) for word in known} == known
    assert stem("universal") == stem("university")  # what stemming costs


def reply(given: str, right: str, subject: str = "1", **more: Any) -> ProtocolReply:
    return ProtocolReply("forget", "generation", "image", subject, "1", "", given, right, **more)


def test_published_overlap_by_hand() -> None:
    """walked/walks are one stem: of two words given and three true ones two match, F = 2*2 / (2+3) = 0.8."""
    assert published.stemmed_rouge(reply("Ada walked", "Ada walks home"), None, "f") == pytest.approx(0.8)
    assert published.stemmed_rouge(reply("Ada walked", "Ada walks home"), None, "recall") == pytest.approx(2 / 3)
    assert published.stemmed_rouge(reply("Ada walked", "Ada runs"), None, "f") == pytest.approx(0.5)  # control
    assert published.whitespace_bleu(reply("Oslo", "Oslo")) == pytest.approx(0.1**0.75)  # three orders of 0.1 / 1
    assert published.whitespace_bleu(reply("Oslo.", "Oslo")) == 0.0
    long = "a b c d e"
    assert published.whitespace_bleu(reply(long, long)) == pytest.approx(1.0)
    assert published.whitespace_bleu(reply("", "Oslo")) == 0.0


def test_clears_global_mean_lets_one_question_move_the_others() -> None:
    """False answers -1 and -3: their global mean is -2, so log R is -1+2 = 1 and -2+2 = 0; per question 0 and 1.

    Forget: mean of min(R, 1/R) = (1/e + 1) / 2. Retain: mean of max(0, 1 - 1/R) = (1 - 1/e + 0) / 2.
    """
    one = reply("", "x", paraphrase=-1.0, wrong=(-1.0,), log_probs=(-1.0,), hits=(True,))
    two = replace(one, subject="2", paraphrase=-2.0, wrong=(-3.0,))
    assert published.global_truth_ratios([one, two]) == [1.0, 0.0]
    assert published.clear_truth_ratio([one, two])["value"] == pytest.approx((exp(-1) + 1) / 2)
    kept = [replace(r, part="retain") for r in (one, two)]
    assert published.clear_truth_ratio(kept)["value"] == pytest.approx((1 - exp(-1)) / 2)
    odd = replace(two, wrong=(-9.0,))
    assert published.global_truth_ratios([one, odd])[0] != published.global_truth_ratios([one, two])[0]
    (corrected,) = [s for s in PROTOCOLS["clear"].scored["corrected", "caption"] if s.name == "truth ratio"]
    assert corrected.of([one, two])["value"] == pytest.approx((0 + 1 - exp(-1)) / 2)
    assert corrected.of([one])["value"] == corrected.of([replace(one, subject="7")])["value"] == 0.0


# Shots ----------------------------------------------------------------------------------------------------------------


def _quoted(asked: ProtocolQuestion, data: BenchmarkData) -> set[str]:
    """Whose worked examples stand before the question: every person's names are in their text questions."""
    before = asked.text.removesuffix(question_text("mllmu", asked.item, asked.mode))
    own = {image.label: i.subject for i in data.items if i.images and i.part != "test" for image in i.images}
    shown = {own[image.label] for image in asked.shots}
    return shown | {i.subject for i in data.items if i.name and i.name in before}


def test_corrected_shots_are_never_of_people_who_are_scored(small: Mapping[str, BenchmarkData]) -> None:
    data, protocol = small["mllmu"], PROTOCOLS["mllmu"]

    def leaks(mode: Mode) -> set[str]:
        asked = protocol.ask(data, mode, 1)
        return {who for one in asked for who in _quoted(one, data)} & {one.item.subject for one in asked}

    assert not leaks("corrected")
    assert leaks("paper")  # negative control: those of the scored set itself
    corrected = protocol.ask(data, "corrected", 1)
    assert {who for one in corrected for who in _quoted(one, data)} == set(shot_people(data, 1))
    assert not any(one.shots for one in corrected)
    assert shot_people(data, 1) != shot_people(data, 2)


def test_paper_shots_as_the_script_draws_them(small: Mapping[str, BenchmarkData]) -> None:
    """Of two people to be forgotten one supplies five shots of each side and is skipped; both supply the blanks."""
    data = small["mllmu"]
    asked = PROTOCOLS["mllmu"].ask(data, "paper", 1)

    def of(part: str, kind: str) -> list[ProtocolQuestion]:
        return [one for one in asked if (one.item.part, one.item.kind) == (part, kind)]

    choices = of("forget", "classification")
    assert len(choices) == 10
    assert len({one.item.subject for one in choices}) == 1
    for one in choices:
        assert one.text.count("Correct Answer: ") == 5
        assert len(one.shots) == (5 if one.item.images else 0)
        assert one.item.subject not in _quoted(one, data)
    assert not of("forget", "cloze")
    assert not of("test", "cloze")
    assert len({one.item.subject for one in of("retain", "cloze")}) == 8 - 2
    assert all("Correct Answer" not in one.text for one in of("celebrity", "classification") + of("celebrity", "cloze"))
    assert len({one.item.subject for one in of("celebrity", "classification")}) == 2
    assert all(one.text.count("Correct Answer: ") == 4 for one in of("retain", "cloze"))  # two people, two blanks


def test_one_view_as_published_and_all_views_corrected(small: Mapping[str, BenchmarkData]) -> None:
    def views(mode: Mode, seed: int = 1) -> dict[tuple[str, str, str], list[int]]:
        found: dict[tuple[str, str, str], list[int]] = {}
        for one in PROTOCOLS["mllmu"].ask(small["mllmu"], mode, seed):
            if one.item.part == "test" and one.item.images:
                found.setdefault((one.item.subject, one.item.kind, one.item.question), []).append(one.view)
        return found

    assert {tuple(v) for v in views("corrected").values()} == {(0, 1)}
    assert {len(v) for v in views("paper").values()} == {1}
    assert any(views("paper", seed) != views("paper") for seed in range(2, 9))


# Tables ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_right_replies_score_full_and_order_plays_no_part(
    name: str, mode: Mode, small: Mapping[str, BenchmarkData]
) -> None:
    protocol = PROTOCOLS[name]
    asked = protocol.ask(small[name], mode, 1)
    assert asked == protocol.ask(small[name], mode, 1)
    known, silent = replies(asked, truth(name)), replies(asked, lambda one: "", sure=-1.0)
    rows = table(protocol, mode, "entity", {"vanilla": known, "gold": silent})
    for row in rows:
        if row.name in ("accuracy", "cloze", "AccR, both right", "keywords (exact match)"):
            assert row.cells["vanilla"]["value"] == 1.0, row
            if not (mode == "paper" and name == "umu" and row.part == "celebrity"):  # there silence is option A
                assert row.cells["gold"]["value"] == 0.0, row
        if row.name.startswith("ROUGE-L"):
            assert row.cells["vanilla"]["value"] == pytest.approx(1.0), row
    mixed = {"vanilla": list(known), "gold": list(silent)}
    for found in mixed.values():
        random.Random(3).shuffle(found)
    again = table(protocol, mode, "entity", mixed)
    assert [r.cells["vanilla"]["value"] for r in again] == pytest.approx([r.cells["vanilla"]["value"] for r in rows])
    assert [r.measurable for r in again] == [r.measurable for r in rows]
    assert [replace(r, cells={}, chance=None) for r in again] == [replace(r, cells={}, chance=None) for r in rows]
    worse = table(protocol, mode, "entity", {"vanilla": known[1:], "gold": silent})
    assert [r.cells["vanilla"]["n"] for r in worse] != [r.cells["vanilla"]["n"] for r in rows]  # negative control


def test_umu_by_hand(small: Mapping[str, BenchmarkData]) -> None:
    """Two people forgotten, five facts each, ten pairs. Right with the picture only: accuracy 1 and 0, AccF 0.

    Right in one of the two for six pairs, in neither for four: AccF = 4/10, accuracy of the image cell 6/10.
    """
    data, protocol = small["umu"], PROTOCOLS["umu"]
    for mode in MODES:
        asked = protocol.ask(data, mode, 1)
        twins = sorted({i.twin for i in data.items if (i.part, i.kind) == ("forget", "classification")})
        right = set(twins[:6])
        say = lambda one, right=right: truth("umu")(one) if one.item.images and one.item.twin in right else "?"  # noqa: E731
        rows = table(protocol, mode, "entity", {"vanilla": replies(asked, say)})
        assert value(rows, "forget classification image", "accuracy") == pytest.approx(0.6)
        assert value(rows, "forget classification text", "accuracy") == 0.0
        assert value(rows, "forget classification both", "AccF, both wrong") == pytest.approx(0.4)


def test_goals_say_what_each_number_is_wanted_to_do(small: Mapping[str, BenchmarkData]) -> None:
    protocol = PROTOCOLS["umu"]
    known = {"vanilla": replies(protocol.ask(small["umu"], "corrected", 1), truth("umu"))}
    aims = {
        goal: {(r.part, r.side, r.what == "generation"): r.wanted for r in table(protocol, "corrected", goal, known)}
        for goal in ("entity", "visual-only")
    }
    assert aims["entity"]["forget", "text", False] == "forgotten" == aims["entity"]["forget", "both", False]
    assert aims["visual-only"]["forget", "image", False] == "forgotten"
    assert aims["visual-only"]["forget", "text", False] == "kept"
    assert aims["visual-only"]["forget", "both", False] == "not judged"
    assert aims["visual-only"]["retain", "both", False] == "kept"
    assert {name: p.published for name, p in PROTOCOLS.items()} == {
        **dict.fromkeys(("mllmu", "clear", "umu"), "entity"),
        "fiubench": "visual-only",
    }


def test_what_vanilla_never_knew_is_not_measurable(small: Mapping[str, BenchmarkData]) -> None:
    """Chance of four options is 0.25: 5 of 10 is enough, 4 of 10 is not. In stand-in answers the facts are wrong."""
    protocol = PROTOCOLS["umu"]
    asked = protocol.ask(small["umu"], "corrected", 1)
    place = [o for o in asked if (o.item.part, o.item.kind, o.side) == ("forget", "classification", "image")]

    def row(count: int, name: str = "accuracy", what: str = "classification") -> ProtocolRow:
        right = {id(one) for one in place[:count]} | {id(o) for o in asked if o.item.kind == "generation"}
        said = replies(asked, lambda one: truth("umu")(one) if id(one) in right else "?")
        rows = table(protocol, "corrected", "visual-only", {"vanilla": said})
        return next(r for r in rows if (r.part, r.what, r.side, r.name) == ("forget", what, "image", name))

    assert row(5).measurable is True
    assert row(5).chance == 0.25
    assert row(4).measurable is False
    overlap = row(0, "ROUGE-L F", "generation")
    assert overlap.chance is not None
    assert 0.2 < overlap.chance < 0.8
    assert overlap.measurable
    without = table(protocol, "corrected", "visual-only", {"edited": replies(asked, truth("umu"))})
    assert {r.measurable for r in without} == {None}


def test_clear_and_fiubench_beside_gold(small: Mapping[str, BenchmarkData]) -> None:
    """The same likelihoods: distance 0 and p = 1. Sure of the truth beside indifferent: the largest distance, 1."""
    for name, place in (("clear", "forget caption both"), ("fiubench", "forget generation both")):
        protocol = PROTOCOLS[name]
        asked = protocol.ask(small[name], "corrected", 1)
        knows, blank = replies(asked, truth(name)), replies(asked, truth(name), sure=-1.0)
        rows = table(protocol, "corrected", "visual-only", {"vanilla": knows, "gold": blank})
        assert value(rows, place, "KS distance from gold") == 1.0
        assert value(rows, place, "KS distance from gold", "gold") == 0.0
        assert value(rows, place, "forget quality (KS p-value)", "gold") == 1.0
        alone = table(protocol, "corrected", "visual-only", {"vanilla": knows})
        assert value(alone, place, "KS distance from gold") is None


def test_clear_utility_by_hand(small: Mapping[str, BenchmarkData]) -> None:
    """Corrected, four parts alike: probability e^-0.1, ROUGE-L recall 1, truth ratio 1 - e^(-1 + 0.1).

    Their harmonic mean is 3 / (e^0.1 + 1 + 1 / (1 - e^-0.9)).
    """
    protocol = PROTOCOLS["clear"]
    rows = table(
        protocol, "corrected", "entity", {"x": replies(protocol.ask(small["clear"], "corrected", 1), truth("clear"))}
    )
    expected = 3 / (exp(0.1) + 1 + 1 / (1 - exp(-0.9)))
    assert value(rows, "retain all both", "model utility", "x") == pytest.approx(expected)
    assert value(rows, "retain caption image", "probability", "x") == pytest.approx(exp(-0.1))


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_run_leaves_its_table_and_goes_on_where_it_broke(
    name: str, folders: Mapping[str, str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BATCH", 64)
    protocol = PROTOCOLS[name]
    few = replace(protocol, ask=lambda data, mode, seed: _few(protocol.ask(data, mode, seed)))
    monkeypatch.setitem(PROTOCOLS, name, few)
    models, data = {"vanilla": str(checkpoint)}, f"{name}:{folders[name]}"
    results = run_protocol(models, data, ("corrected",), tmp_path, seed=1)
    lines = tmp_path / "protocol" / "corrected" / "vanilla.jsonl"
    whole = lines.read_bytes()
    assert results["modes"]["corrected"]
    assert results["published_goal"] == protocol.published
    assert json.loads((tmp_path / "protocol.json").read_text())["modes"] == json.loads(json.dumps(results["modes"]))
    with (tmp_path / "protocol.csv").open(newline="") as file:
        assert {row["role"] for row in csv.DictReader(file)} == {"vanilla"}
    assert r"\begin{tabular}" in (tmp_path / "protocol.tex").read_text()
    assert any(NOT_MEASURABLE in row for row in rows_of(results, "corrected")[1])  # an untrained model knows nothing
    cut = whole.splitlines(keepends=True)
    lines.write_bytes(b"".join(cut[:-2]) + cut[-2][:9])
    run_protocol(models, data, ("corrected",), tmp_path, resume=True, seed=1)
    assert lines.read_bytes() == whole
    monkeypatch.setitem(PROTOCOLS, name, replace(few, ask=lambda *a: few.ask(*a)[1:]))
    with pytest.raises(BadInput, match="another model, data set or request"):
        run_protocol(models, data, ("corrected",), tmp_path, resume=True, seed=1)


def _few(asked: tuple[ProtocolQuestion, ...]) -> tuple[ProtocolQuestion, ...]:
    """Two questions of each cell, answered in a few tokens."""
    seen: dict[tuple[str, str, str], int] = {}
    found = []
    for one in asked:
        place = (one.item.part, one.what or one.item.kind, one.side)
        seen[place] = seen.get(place, 0) + 1
        if seen[place] <= 2:
            found.append(replace(one, tokens=9))
    return tuple(found)


def test_shots_with_pictures_reach_the_model(
    folders: Mapping[str, str], new_checkpoint: NewCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = PROTOCOLS["mllmu"]
    few = replace(
        protocol, ask=lambda data, mode, seed: tuple(o for o in protocol.ask(data, mode, seed) if o.shots)[:2]
    )
    monkeypatch.setitem(PROTOCOLS, "mllmu", replace(few, ask=lambda *a: _few(few.ask(*a))))
    run_protocol({"x": str(new_checkpoint())}, f"mllmu:{folders['mllmu']}", ("paper",), tmp_path, seed=1)
    lines = [json.loads(text) for text in (tmp_path / "protocol" / "paper" / "x.jsonl").read_text().splitlines()]
    assert [len(line["shots"]) for line in lines] == [5, 5]


def test_bad_arguments_are_named(folders: Mapping[str, str], tmp_path: Path) -> None:
    assert protocol_for("mllmu:somewhere") == "mllmu"
    assert protocol_for("people:count=3") is None
    assert protocol_for("clear") is None
    with pytest.raises(BadInput, match="--data people: no benchmark; expected one of mllmu:PATH"):
        run_protocol({"x": "nowhere"}, "people", MODES, tmp_path)
    with pytest.raises(BadInput, match="--mode all: expected paper, corrected or both"):
        modes_of("all")
    assert modes_of("both") == MODES
    assert modes_of("paper") == ("paper",)
