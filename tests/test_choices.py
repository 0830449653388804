"""Stage 3 of pockets of benchmarks: rows of choices, of which every letter is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmark_files import PERCENT, write_small
from tiny import TINY
from transformers import PreTrainedModel

from unsee.data.benchmarks import BenchmarkItem, benchmark_data, read_benchmark
from unsee.data.examples import UnlearnData
from unsee.evaluation.protocols import PROTOCOLS, answer_text, question_text
from unsee.lab.benchmark_lessons import Lessons, lessons_of
from unsee.lab.choices import (
    ChoiceRecipe,
    ChoiceRows,
    RowsRecipe,
    Spoken,
    draw_seen,
    pictured,
    teach_choices,
    teach_rows,
)
from unsee.lab.pocket_llava import PocketLlava
from unsee.lab.teach import rows_loss
from unsee.models.batching import IGNORED, Batcher
from unsee.models.families import FAMILIES

LETTERED = {"mllmu": ("paper", "corrected"), "clear": ("paper", "corrected"), "umu": ("corrected",), "fiubench": ()}


class School:
    """A benchmark in small, its lessons, and an untaught model that knows its words."""

    def __init__(self, name: str, folder: Path) -> None:
        settings = {"clear": {"perturbed": 8}}.get(name, {})
        spec = f"{write_small(name, folder, **settings)},forget={PERCENT}"
        self.name = name
        self.data: UnlearnData = benchmark_data(name, spec)
        self.lessons: Lessons = lessons_of(name, read_benchmark(name, spec), self.data)
        torch.manual_seed(0)
        self.model: PreTrainedModel
        self.model, processor = PocketLlava(TINY).make(self.lessons.worded(self.data))
        self.batcher = Batcher(processor, FAMILIES["llava"])

    def rows(self, items: tuple[BenchmarkItem, ...]) -> ChoiceRows:
        return ChoiceRows(self.name, items, self.batcher)


@pytest.fixture(scope="module")
def schools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, School]:
    folder = tmp_path_factory.mktemp("schools")
    return {name: School(name, folder / name) for name in LETTERED}


@pytest.mark.parametrize("name", LETTERED)
def test_a_row_is_what_the_protocol_asks(schools: dict[str, School], name: str) -> None:
    school = schools[name]
    items = school.lessons.choices.read[:6]
    rows = school.rows(items)
    assert len(rows) == len(items) * len(LETTERED[name])
    for spoken, mode in zip(rows.modes, LETTERED[name], strict=True):
        for chosen in ([0], [3, 1], [5, 4, 2, 0]):
            *shots, last = (items[i] for i in chosen)
            worked = PROTOCOLS[name].worked
            if shots and worked is None:
                continue
            front = "".join("".join(worked(shot, mode)) for shot in shots) if worked else ""
            question, answer = front + question_text(name, last, mode), answer_text(name, last, mode)
            ids, said = school.batcher.answer_length(question, answer, 0)
            found, labels = rows.row([spoken[i] for i in chosen])
            assert found == ids
            assert labels[-said:] == ids[-said:], "the reply and the end, as everywhere"
            learned = [token for token in labels if token != IGNORED][:-1]
            assert school.batcher.decode([learned]) == [" ".join(answer_text(name, items[i], mode) for i in chosen)]
            assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))


def test_a_choice_to_read_names_its_right_option_and_says_nothing_of_anybody(schools: dict[str, School]) -> None:
    for name in ("mllmu", "umu", "clear"):
        read = schools[name].lessons.choices.read
        assert all(i.question == i.answer == dict(zip(i.letters, i.choices, strict=True))[i.letter] for i in read)
        assert not any(i.images for i in read)
        drawn = {letter: sum(i.letter == letter for i in read) / len(read) for letter in "ABCD"}
        assert all(abs(share - 0.25) < 0.02 for share in drawn.values())
        asked = {(i.question, i.choices) for i in read}
        assert len(asked) > 0.9 * len(read)  # hardly any comes back, so none can be known by heart
    assert not schools["fiubench"].lessons.choices.read


def test_what_is_told_is_text_about_those_who_are_taught(schools: dict[str, School]) -> None:
    for name in ("mllmu", "umu"):
        told = schools[name].lessons.choices.told
        assert {i.subject for i in told} == set(schools[name].data.subjects)
        assert not any(i.images for i in told)
        assert not any(i.question == i.answer for i in told)  # the control: these must be known
    assert not schools["clear"].lessons.choices.told  # its names are asked of pictures only


@pytest.mark.parametrize("name", ["mllmu", "clear"])
def test_letters_come_from_the_language_model_alone(schools: dict[str, School], name: str) -> None:
    school = schools[name]
    choices, plain = school.lessons.choices, school.lessons.plain.examples
    held = school.rows(choices.read[-64:]).draw(64, 1)
    visual = {key: weight.clone() for key, weight in FAMILIES["llava"].visual(school.model).named_parameters().items()}

    def lesson(rate: float) -> tuple[float, list[dict[str, float]]]:
        recipe = ChoiceRecipe(25, 10, rows=24, side_rows=8, learning_rate=rate)
        log = teach_choices(school.model, school.batcher, choices, plain, recipe, "test")
        with torch.no_grad():
            return float(rows_loss(school.model, *held)), log

    before = lesson(0.0)[0]  # the control
    after, log = lesson(1e-2)
    assert after < before - 0.5
    now = FAMILIES["llava"].visual(school.model).named_parameters()
    assert all(torch.equal(now[key], weight) for key, weight in visual.items())
    assert ("tell" in log[-1]) == (name == "mllmu")
    assert "tell" not in log[0]


def test_a_row_behind_a_picture_asks_about_whom_it_shows(schools: dict[str, School]) -> None:
    school = schools["mllmu"]
    choices = school.lessons.choices
    told, shown = school.rows(choices.told), school.rows(choices.shown)
    about: list[dict[str, list[Spoken]]] = [{}, {}]
    for number, mode in enumerate(shown.modes):
        for choice in mode:
            about[number].setdefault(choice.item.subject, []).append(choice)
    torch.manual_seed(0)
    rows = [draw_seen(told, about, 5) for _ in range(12)]
    for row in rows:
        assert row[-1].item.images
        assert {c.item.subject for c in row if c.item.images} == {row[-1].item.subject}
    assert any(
        c.item.subject != row[-1].item.subject for row in rows for c in row
    )  # the control: text is about anybody
    batch, labels = pictured(school.batcher, rows)
    assert len(batch["pixel_values"]) == len(rows)
    for row, ids, learned in zip(rows, batch["input_ids"], labels, strict=True):
        kept = learned != IGNORED
        assert torch.equal(ids[kept], learned[kept])
        assert school.batcher.decode([ids[kept]]) == [" ".join(choice.letter for choice in row)]


def test_rows_are_learned_in_text_and_behind_pictures(schools: dict[str, School]) -> None:
    school = schools["mllmu"]
    still = teach_rows(school.model, school.batcher, school.lessons.choices, RowsRecipe(3, 6, 2, 0.0), "control")
    log = teach_rows(school.model, school.batcher, school.lessons.choices, RowsRecipe(40, 8, 2, 5e-3), "test")
    assert still[0].keys() == {"step", "in_a_row", "seen", "tell"}
    for kind in ("seen", "tell"):
        assert log[-1][kind] < still[-1][kind] - 0.5


def test_gold_is_shown_nobody_it_must_not_see(schools: dict[str, School]) -> None:
    choices = schools["mllmu"].lessons.choices
    hidden = choices.shown[0].subject
    left = choices.without_pictures_of({hidden})
    assert {i.subject for i in left.shown} == {i.subject for i in choices.shown} - {hidden}
    assert (left.read, left.told) == (choices.read, choices.told)
