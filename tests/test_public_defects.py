"""Defects of public unlearning code that no other test shows to be absent here; all of them: docs/defects.md.

Each test holds an invariant, and shows that the public way breaks it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint, NewModel
from torch import Tensor, nn
from torch.optim import SGD
from transformers import GenerationMixin

from unsee.data.examples import Example, Split, UnlearnData
from unsee.data.normalisation import plain
from unsee.editing import unlearn as experiment
from unsee.evaluation import predict as evaluation
from unsee.evaluation.answers import is_correct
from unsee.evaluation.predict import generate, predict
from unsee.evaluation.questions import Question, questions
from unsee.journal import Journal
from unsee.methods import METHODS, Method, ascent
from unsee.methods.ascent import GradientAscent
from unsee.methods.parts.tuned import Tuned
from unsee.methods.vgid import VisualNoiseGuidedDistillation
from unsee.models.batching import IGNORED, Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model
from unsee.training.loop import Phase, run

ROOT = Path(__file__).parent.parent
PICTURES = {"train": 1, "validation": 1, "test": 2}


# What is asked --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(people: UnlearnData, forget: tuple[str, ...]) -> list[Question]:
    return questions(people, forget, PICTURES)


Change = Callable[[Question], Question]


@pytest.fixture
def shown(
    student: Loaded, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """What a model is shown during an evaluation: the words of every prompt and a fingerprint of every picture."""

    def show(seed: int, change: Change = lambda q: q) -> list[str]:
        random.seed(seed)
        torch.manual_seed(seed)
        found: list[str] = []

        def read(_: Loaded, inputs: Mapping[str, Tensor], longest: int) -> list[str]:
            found.extend(student.batcher.tokenizer.batch_decode(inputs["input_ids"]))
            if "pixel_values" in inputs:
                found.append(str(inputs["pixel_values"].double().sum(-1).tolist()))
            return [""] * len(inputs["input_ids"])

        monkeypatch.setattr(evaluation, "greedy", lambda _: False)
        monkeypatch.setattr(evaluation, "generate_from", read)
        everything = [change(q) for q in questions(people, forget, PICTURES)]
        predict(
            student,
            "vanilla",
            everything,
            tuple(people.names.values()),
            Journal(tmp_path / "x.jsonl", {}),
            resume=False,
        )
        return found

    return show


def test_an_evaluation_shows_no_examples_and_no_pictures_at_random(
    shown: Callable[..., list[str]], people: UnlearnData, forget: tuple[str, ...]
) -> None:
    """Public: an unseeded person of the tested set, with all answers, before each question; an unseeded picture."""
    named = people.train.of(forget).pictured

    def shot(q: Question) -> Question:
        e = random.choice(named.examples)
        return dataclasses.replace(
            q, example=dataclasses.replace(q.example, question=f"{e.question} {e.answer} {q.example.question}")
        )

    def view(q: Question) -> Question:
        if q.example.image is None:
            return q
        picture = random.choice(list(people.test.pictures))
        return dataclasses.replace(q, example=dataclasses.replace(q.example, image=picture))

    def tells(prompts: list[str]) -> bool:
        """Whether somebody is named although a picture is shown."""
        return any(name in text for text in prompts for name in people.names.values() if "image" in text)

    assert shown(0) == shown(1)
    assert not tells(shown(0))
    assert shown(0, shot) != shown(1, shot)
    assert tells(shown(0, shot))
    assert shown(0, view) != shown(1, view)


@torch.no_grad()
def test_answers_are_given_with_the_picture_in_sight(student: Loaded, people: UnlearnData) -> None:
    """Public: prompts are decoded, tokenised again and given to `generate` without pixels."""
    example = people.test.pictured.examples[0]
    pictures = list(people.test.pictures)
    asked = [dataclasses.replace(example, image=picture) for picture in pictures]

    def blind(examples: Sequence[Example]) -> list[str]:
        tokenizer = student.batcher.tokenizer
        ids = student.batcher.for_generation(examples)["input_ids"]
        again = tokenizer(tokenizer.batch_decode(ids, skip_special_tokens=True), return_tensors="pt", padding=True)
        return evaluation.generate_from(student, {k: again[k] for k in ("input_ids", "attention_mask")}, 4)

    assert len(set(generate(student, asked, 4))) > 1
    assert len(set(blind(asked))) == 1


# How answers are scored -----------------------------------------------------------------------------------------------


def test_every_answer_is_scored_with_its_own_question(
    student: Loaded, asked: list[Question], people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public: all text questions are scored with what was said to the last picture; one kind with the other's gold."""
    last_said: list[str] = []

    def own(_: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
        return [e.answer for e in examples]

    def of_the_last_picture(_: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
        said = [e.answer for e in examples]
        last_said[:] = said[-1:] if examples[0].image else last_said
        return said if examples[0].image else last_said * len(said)

    def verdicts(answering: Callable[..., list[str]]) -> list[bool]:
        monkeypatch.setattr(evaluation, "greedy", lambda _: False)
        monkeypatch.setattr(evaluation, "generate", answering)
        path, names = tmp_path / "x.jsonl", tuple(people.names.values())
        lines = predict(student, "vanilla", asked, names, Journal(path, {}), resume=False, batch=7)
        assert [(line["question"], line["answer"]) for line in lines] == [
            (q.example.question, q.example.answer) for q in asked
        ]
        return [line["correct"] for line in lines]

    assert all(verdicts(own))
    assert not all(verdicts(of_the_last_picture))


def test_one_rule_scores_every_set(asked: list[Question], people: UnlearnData) -> None:
    """Public: forget and retain answers by one rule, those about real people by another; names as they are written."""
    names = tuple(people.names.values())
    example = next(q.example for q in asked if q.example.probe == "identity")

    def public(prediction: str, part: str) -> bool:
        if part == "strangers":
            return example.answer in prediction.lower().replace(" ", "")  # never
        return example.answer.lower() in prediction.lower()

    for said, right in ((f"It is {example.answer}.", True), ("nobody", False)):
        lines = [Question(example, "test", part).line("x", said, names) for part in ("forget", "retain", "strangers")]  # type: ignore[arg-type]
        assert [line["correct"] for line in lines] == [right] * 3
    said = f"It is {example.answer}."
    assert [public(said, part) for part in ("forget", "retain", "strangers")] == [True, True, False]
    assert is_correct(plain(said).replace(" ", "  "), example.answer, names)


# What is learnt -------------------------------------------------------------------------------------------------------


def test_an_answer_that_stands_in_its_question_is_learnt_where_it_is_answered(
    student: Loaded, people: UnlearnData
) -> None:
    """Public: labels begin at the first match of the answer's tokens, without its first one."""
    batcher, e = student.batcher, people.train.pictured.examples[0]
    word = e.question.rstrip("?").split()[-1]
    twice = dataclasses.replace(e, question=f"{word} {e.question}", answer=word)
    batch = batcher.for_training([twice])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    answer = [*batcher.tokenizer(word, add_special_tokens=False)["input_ids"], batcher.tokenizer.eos_token_id]
    places = (labels != IGNORED).nonzero()[:, 0].tolist()
    assert labels[labels != IGNORED].tolist() == answer
    assert places == list(range(len(ids) - len(answer), len(ids)))
    first_match = (ids == answer[0]).nonzero()[0, 0].item()
    assert ids.tolist().count(answer[0]) == 3
    assert first_match < places[0], "what the public way would take"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_end_is_learnt_where_it_is_the_padding_too(new_model: NewModel, people: UnlearnData, family: str) -> None:
    """Public: padding is whatever looks like it, so the end of a sequence is neither seen nor learnt."""
    _, processor = new_model(family)
    end = processor.tokenizer.eos_token_id
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    batch = Batcher(processor, FAMILIES[family]).for_training(people.train.pictured.examples[:6])
    public = batch["input_ids"].ne(end)
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    for row, length in enumerate(lengths.tolist()):
        assert batch["labels"][row, length - 1] == end
        assert (batch["labels"][row, length:] == IGNORED).all()
        assert public[row].sum() == length - 1, "the control"


# How steps are taken --------------------------------------------------------------------------------------------------


def test_an_error_in_a_step_ends_the_run(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public: `except Exception: pass` around a step, which hides that memory, or data, came to an end."""

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ascent, "answer_loss", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        experiment.unlearn(
            str(checkpoint),
            experiment.EditRequest(people, forget, GradientAscent(steps=2), 0, gate=False),
            tmp_path / "out",
        )
    assert not list(tmp_path.iterdir())

    weight = nn.Parameter(torch.zeros(2))
    broken = Phase("forget", lambda: None, lambda _: {"forget": fails()})
    with pytest.raises(RuntimeError):
        run([broken], SGD([weight], lr=1.0), 2, "test")

    def public() -> int:
        steps = 0
        for _ in range(2):
            with suppress(Exception):
                broken.loss(broken.draw())
            steps += 1
        return steps

    assert public() == 2, "as if nothing had happened"


TRAINED = [name for name, kind in METHODS.items() if issubclass(kind, Tuned)]


@pytest.fixture(scope="module")
def written(new_checkpoint: NewCheckpoint) -> Path:
    return new_checkpoint()


@pytest.mark.parametrize("name", [*TRAINED, "vgid along its teacher's answers"])
def test_training_generates_nothing(
    written: Path, people: UnlearnData, forget: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public: a greedy answer at every step, only to print it. Here where it is asked for, the control."""
    calls: list[int] = []
    answer = GenerationMixin.generate
    monkeypatch.setattr(GenerationMixin, "generate", lambda *a, **k: calls.append(1) or answer(*a, **k))
    small: dict[str, Any] = {"steps": 2, "batch": 3}
    if name in METHODS:
        method = METHODS[name](**small)
    else:
        method = VisualNoiseGuidedDistillation(**small, along="teacher_answer")
    assert isinstance(method, Tuned)
    student = load_model(str(written), torch.float32)
    few = (Split(split.examples[:30]) for split in (people.train.of(forget), people.train.without(forget)))
    method.plan(student, *few).carry_out("test")
    assert bool(calls) == (name not in METHODS)


# Settings -------------------------------------------------------------------------------------------------------------


def unread(kind: type[Any]) -> set[str]:
    """Settings that no line of the modules which make up a method reads."""
    modules = {parent.__module__ for parent in kind.__mro__ if parent.__module__.startswith(("unsee", __name__))}
    trees = [ast.parse(inspect.getsource(sys.modules[module])) for module in modules]
    read = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    return {field.name for field in dataclasses.fields(kind)} - read


@dataclasses.dataclass(frozen=True)
class Deaf(GradientAscent):
    """Has a setting, and does not read it."""

    longest_text: int = 384


@pytest.mark.parametrize("kind", METHODS.values())
def test_no_setting_is_without_effect(kind: type[Method]) -> None:
    """Public: `--max_length` is accepted and used nowhere."""
    assert unread(kind) == set()
    assert unread(Deaf) == {"longest_text"}


# The table ------------------------------------------------------------------------------------------------------------


def missing(page: str) -> list[str]:
    """Tests that a page names and that do not exist."""
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)
    assert named
    return [
        f"{file}::{test}"
        for file, test in named
        if not (path := ROOT / "tests" / f"{file}.py").exists() or f"\ndef {test}(" not in path.read_text()
    ]


def test_every_test_named_in_the_table_exists() -> None:
    page = (ROOT / "docs" / "defects.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| What ")]
    assert len(rows) > 20
    assert all(re.search(r"`test_\w+::test_\w+`", row) for row in rows)
    assert missing(page) == []
    assert missing("`test_methods::test_of_nothing` and `test_nowhere::test_padding`") == [
        "test_methods::test_of_nothing",
        "test_nowhere::test_padding",
    ]
    own = set(re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(), re.MULTILINE))
    shown = {test for file, test in re.findall(r"`(test_\w+)::(test_\w+)`", page) if file == "test_public_defects"}
    assert shown == own - {"test_every_test_named_in_the_table_exists"}
