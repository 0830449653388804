"""Pocket models of benchmarks: taught the protocols' own forms, and nothing that would make their scores worthless."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_files import COUNT, PERCENT, write_small
from conftest import NewModel
from tiny import TINY
from transformers import AutoProcessor

from unsee.data.benchmarks import BENCHMARKS, BenchmarkData, BenchmarkItem, benchmark_data, read_benchmark
from unsee.data.examples import Example, ImageSource, UnlearnData
from unsee.evaluation.protocols import MODES, PROTOCOLS
from unsee.lab import benchmark_lessons as lessons_module
from unsee.lab import build
from unsee.lab.base import BaseRecipe
from unsee.lab.benchmark_lessons import Lessons, benchmark_lessons, lessons_of
from unsee.lab.build import BENCHMARK, BenchmarkRecipe, build_pocket, recipe_for
from unsee.lab.pocket import make_tokenizer
from unsee.lab.teach import FewShotRecipe, TeachRecipe, teach_few_shot
from unsee.models.batching import Batcher, answer_loss
from unsee.models.families import FAMILIES

SETTINGS: dict[str, dict[str, Any]] = {"mllmu": {"pictures": 3}, "clear": {"perturbed": 8}, "umu": {}, "fiubench": {}}
QUICK = BenchmarkRecipe(
    shape=TINY,
    base=BaseRecipe(steps=2, pairs=4, strangers=5, pictures_per_stranger=2),
    teach=TeachRecipe(steps=2, pictures=4, questions=2, text_steps=2, text_rows=4),
    augment=True,
    few_shot=FewShotRecipe(steps=2, rows=2),
)

Small = dict[str, tuple[str, BenchmarkData, UnlearnData, Lessons]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Each benchmark in small: its DATA argument, its content, as data to unlearn, its lessons."""
    folder: Path = tmp_path_factory.mktemp("benchmarks")
    found: Small = {}
    for name in BENCHMARKS:
        spec = f"{write_small(name, folder / name, **SETTINGS[name])},forget={PERCENT}"
        benchmark, data = read_benchmark(name, spec), benchmark_data(name, spec)
        found[name] = (spec, benchmark, data, lessons_of(name, benchmark, data))
    return found


def pictures_of(examples: Iterable[Example]) -> set[ImageSource]:
    return {image for e in examples for image in e.images}


# What is taught -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_lessons_show_training_pictures_of_people_and_nothing_else(small: Small, name: str) -> None:
    _, benchmark, data, lessons = small[name]
    trained = set(data.train.pictures)
    later = {*data.validation.pictures, *data.test.pictures}
    others = {item.subject for item in benchmark.items} - set(data.subjects)
    for taught in (lessons.plain, lessons.asked):
        assert pictures_of(taught) <= trained - later
        assert set(taught.subjects) <= set(data.subjects)
        assert pictures_of(taught.of(data.subjects)) == pictures_of(taught)
    assert set(lessons.plain.pictured.subjects) == set(data.subjects), "everybody is taught"
    if name == "mllmu":  # the control: what is scored shows test pictures and celebrities
        assert pictures_of(lessons.scored) & later
    if name != "fiubench":
        assert others & set(lessons.scored.subjects)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_form_of_the_protocol_is_taught_in_both_modes(small: Small, name: str) -> None:
    _, benchmark, data, lessons = small[name]

    said = {
        word
        for item in benchmark.items
        for text in (item.name, item.answer, *item.choices, *item.wrong)
        for word in text.split()
    }

    def forms(examples: Iterable[Example]) -> set[tuple[str, bool]]:
        """The last line of each question without the words that differ from person to person."""
        lines = [(e.question.splitlines()[-1], bool(e.image)) for e in examples]
        return {(" ".join(w for w in line.split() if w.strip("'[],?.") not in said), shown) for line, shown in lines}

    items = tuple(i for i in benchmark.items if i.part in ("forget", "retain"))
    for mode in MODES:
        asked = [a.example(name) for a in PROTOCOLS[name].ask(dataclasses.replace(benchmark, items=items), mode, 3)]
        assert forms(asked) <= forms(lessons.asked)
    assert not forms(asked) <= forms(data.train)  # the control


@pytest.mark.parametrize("name", ["mllmu", "umu"])
def test_neither_the_letter_nor_the_set_of_options_tells_the_answer(small: Small, name: str) -> None:
    _, benchmark, data, _ = small[name]
    again: dict[Any, list[BenchmarkItem]] = {}
    for number in range(4):
        for item in lessons_module._redrawn(benchmark, data, number):
            if item.kind == "classification":
                again.setdefault((item.subject, item.key, bool(item.images)), []).append(item)
    true: dict[Any, set[str]] = {}
    for (_, key, shown), items in again.items():
        true.setdefault((key, shown), set()).add(items[0].answer)
    changing = []
    for (_, key, shown), items in again.items():
        assert sorted(item.letter for item in items) == list("ABCD")
        assert all(item.choices["ABCD".index(item.letter)] == item.answer for item in items)
        assert all(len(set(item.choices)) == 4 for item in items)
        if len(true[key, shown]) > 4:
            changing.append(len({frozenset(item.choices) for item in items}) > 1)
            assert {text for item in items for text in item.choices} <= true[key, shown]
    assert sum(changing) > 0.7 * len(changing) > 0
    published = [i for i in benchmark.items if i.kind == "classification" and i.subject in data.subjects]
    assert any(set(i.choices) - true[i.key, bool(i.images)] for i in published)  # the control


def test_names_to_choose_from_change_with_every_round(small: Small) -> None:
    _, benchmark, data, _ = small["clear"]
    rounds = [
        [i for i in lessons_module._redrawn(benchmark, data, number) if i.kind == "classification"]
        for number in range(4)
    ]
    assert {i.subject for i in rounds[0]} == set(data.subjects)
    for several in zip(*rounds, strict=True):
        assert sorted(item.letter for item in several) == list("ABCD")
        assert len({frozenset(item.choices) for item in several}) > 1
        assert {text for item in several for text in item.choices} <= set(data.names.values())


def test_data_of_another_kind_has_no_lessons(people: UnlearnData, small: Small) -> None:
    assert benchmark_lessons(people) is None
    assert recipe_for("llava", people) != BENCHMARK
    _, _, data, lessons = small["umu"]
    assert recipe_for("llava", data) is BENCHMARK
    assert benchmark_lessons(data) == lessons
    assert not lessons.few_shot
    assert small["mllmu"][3].few_shot


# Building -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Example, ...]]]:
    """What the second and the third stage were given."""
    seen: list[tuple[str, tuple[Example, ...]]] = []
    teach, few_shot = build.teach, build.teach_few_shot
    monkeypatch.setattr(build, "teach", lambda *a: seen.append(("teach", tuple(a[1]))) or teach(*a))
    monkeypatch.setattr(build, "teach_few_shot", lambda *a: seen.append(("few_shot", tuple(a[2]))) or few_shot(*a))
    return seen


def test_gold_sees_no_forgotten_picture_in_any_stage_and_reads_every_text(
    small: Small, cache: Path, taught: list[tuple[str, tuple[Example, ...]]], tmp_path: Path
) -> None:
    _, benchmark, data, lessons = small["mllmu"]
    hidden = {image for p in benchmark.people if p.forgotten for image in (*p.pictures, *p.views)}
    build_pocket("llava", data, 0, tmp_path / "gold", benchmark.forget, QUICK)
    assert [stage for stage, _ in taught] == ["teach", "few_shot"]
    for _, examples in taught:
        assert not pictures_of(examples) & hidden
        assert len(pictures_of(examples)) == 3 * (COUNT - len(benchmark.forget))
    texts = [{e for e in split if e.image is None} for split in (lessons.plain, lessons.asked)]
    assert all(text <= set(examples) for text, (_, examples) in zip(texts, taught, strict=True))
    assert all({e.subject for e in text} == set(data.subjects) for text in texts)

    build_pocket("llava", data, 0, tmp_path / "vanilla", (), QUICK)  # the control
    assert all(pictures_of(examples) & hidden for _, examples in taught[2:])


def test_a_vocabulary_holds_every_word_that_is_asked(small: Small, cache: Path, tmp_path: Path) -> None:
    _, _, data, lessons = small["umu"]
    build_pocket("llava", data, 0, tmp_path / "model", (), QUICK)
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "model").tokenizer

    def unknown(tokenizer: Any) -> int:
        texts = {text for e in (*lessons.plain, *lessons.scored) for text in (e.question, e.answer)}
        return sum(ids.count(tokenizer.unk_token_id) for ids in tokenizer(sorted(texts))["input_ids"])

    assert unknown(tokenizer) == 0
    assert unknown(make_tokenizer(data, ["<image>"])) > 0  # the control


def test_other_lessons_make_another_model(
    small: Small,
    cache: Path,
    taught: list[tuple[str, tuple[Example, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, _, data, lessons = small["umu"]
    for place in ("first", "again"):
        build_pocket("llava", data, 0, tmp_path / place, (), QUICK)
    assert len(taught) == 1, "the second comes from the cache"
    monkeypatch.setattr(lessons_module, "ROUNDS", 4)
    assert benchmark_lessons(data) != lessons
    build_pocket("llava", data, 0, tmp_path / "other", (), QUICK)
    assert len(taught) == 2


def test_few_shot_prompts_are_learned_with_any_number_of_pictures(small: Small, new_model: NewModel) -> None:
    torch.manual_seed(0)
    model, processor = new_model("llava")
    batcher = Batcher(processor, FAMILIES["llava"])
    asked = [e for e in small["mllmu"][3].asked if len(e.images) in (0, 1, 5)][:60]
    assert {len(e.images) for e in asked} == {0, 5} or len({len(e.images) for e in asked}) > 1

    def loss() -> float:
        with torch.no_grad():
            groups = [[e for e in asked if bool(e.images) == shown] for shown in (True, False)]
            return sum(float(answer_loss(model, batcher.for_training(group))) for group in groups)

    before = loss()
    still = teach_few_shot(model, batcher, asked, FewShotRecipe(steps=8, rows=8, learning_rate=0.0), "control")
    assert loss() == before
    log = teach_few_shot(model, batcher, asked, FewShotRecipe(steps=30, rows=8, learning_rate=1e-2), "test")
    assert loss() < before - 1
    assert {line["pictures"] for line in still + log} <= set(Counter(len(e.images) for e in asked))


def test_a_miniature_with_more_pictures_is_tested_on_others(small: Small, tmp_path: Path) -> None:
    _, benchmark, data, _ = small["mllmu"]
    assert {len(person.pictures) for person in benchmark.people} == {3}
    assert len(data.train.pictures) == 3 * COUNT
    assert not set(data.train.pictures) & set(data.test.pictures)
    single = read_benchmark("mllmu", f"{write_small('mllmu', tmp_path)},forget={PERCENT}")  # as published
    assert {len(person.pictures) for person in single.people} == {1}
