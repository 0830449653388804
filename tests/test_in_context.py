"""Unlearning by instruction: no weight moves, prompts carry the instruction wherever the checkpoint is opened."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint, NewModel
from test_batching import Chat, chatting, every_chat
from transformers import AutoProcessor, AutoTokenizer

from unsee.checkpoint.folder import CheckpointFolder, sha256_of
from unsee.checkpoint.write import Companions, write_edited
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.methods.in_context import InContextUnlearning, behind, filled, prelude
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model

AWKWARD = "Say \"no\", {{ never }} {% if %} \\ %} }} 'Ångström' 😀\nand {subject} {#"
METHOD = InContextUnlearning()


@pytest.fixture(scope="module")
def source(new_checkpoint: NewCheckpoint) -> Callable[[str], Path]:
    """A tiny checkpoint of a family, in several weight files. Read only."""
    return cache(lambda family: new_checkpoint(family=family, shard="12KB"))


def written(method: InContextUnlearning, source: Path, data: UnlearnData, forget: tuple[str, ...], out: Path) -> Loaded:
    """As the experiment does it."""
    loaded = load_model(str(source))
    method.instructed(loaded, data.train.of(forget))
    write_edited(loaded.folder, {}, out, {}, Companions(prelude=method.prelude(data.train.of(forget))))
    return load_model(str(out))


# What is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_weight_is_the_sources_own_and_only_templates_change(
    source: Callable[[str], Path], ragged_people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, family: str
) -> None:
    base, out = source(family), tmp_path / "out"
    before = {item.name: sha256_of(item) for item in base.iterdir()}
    written(METHOD, base, ragged_people, forget, out)
    after = {item.name: sha256_of(item) for item in out.iterdir()}
    assert {item.name: sha256_of(item) for item in base.iterdir()} == before, "the source was written to"
    files = CheckpointFolder(base).files
    assert len(files) > 1
    assert not any((out / name).samefile(base / name) for name in files), (
        "a writer into the output would reach the source"
    )
    assert {name for name in after if after[name] != before.get(name)} == {"chat_template.jinja", "unsee.json"}
    assert not [item for item in out.iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("family", ["llava", "llava_next"])  # Qwen's plain AutoProcessor needs torchvision
def test_plain_transformers_puts_the_instruction_before_the_question(
    source: Callable[[str], Path], people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, family: str
) -> None:
    base, out = source(family), tmp_path / "out"
    written(METHOD, base, people, forget, out)
    plain, told = (AutoProcessor.from_pretrained(folder) for folder in (base, out))
    (name,) = (people.names[subject] for subject in forget)
    instruction = f"If this picture shows {name}, answer as somebody who has never seen or heard of them."
    for processor_of in (lambda p: p, lambda p: p.tokenizer):
        for example in (people.train.pictured.examples[0], people.train.text_only.examples[0]):

            def ask(processor: Any, question: str, example: Example = example) -> str:
                picture = [{"type": "image"}] * len(example.images)
                turn = {"role": "user", "content": [*picture, {"type": "text", "text": question}]}
                return str(processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))

            said = ask(processor_of(told), example.question)
            if example.images:
                assert said == ask(processor_of(plain), f"{instruction} {example.question}")
                assert said.count(instruction) == 1
                assert instruction not in ask(processor_of(plain), example.question), "the control"
            else:
                assert said == ask(processor_of(plain), example.question)


@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_answers_change_through_nothing_but_the_prompt(
    source: Callable[[str], Path], ragged_people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, family: str
) -> None:
    """The written model asked plainly says what the source says when the instruction is typed before the question."""
    out = written(METHOD, source(family), ragged_people, forget, tmp_path / "out")
    base = load_model(str(source(family)))
    told = filled(METHOD.instruction, ragged_people.train.of(forget))
    for split, changes in ((ragged_people.test.pictured, True), (ragged_people.train.text_only, False)):
        examples = split.examples[:6]
        typed = [dataclasses.replace(e, question=behind(told, e.question)) if changes else e for e in examples]
        for kind in ("for_generation", "for_training"):
            mine, theirs, plain = (
                getattr(which.batcher, kind)(asked)
                for which, asked in ((out, examples), (base, typed), (base, examples))
            )
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
            assert torch.equal(out.model(**mine).logits, base.model(**theirs).logits)
            assert (mine["input_ids"].shape == plain["input_ids"].shape) == (not changes)
            last = (mine["input_ids"].shape[1] - 1, plain["input_ids"].shape[1] - 1)
            said, before = out.model(**mine).logits[:, last[0]], base.model(**plain).logits[:, last[1]]
            assert torch.equal(said, before) == (not changes), "the control"


def test_a_second_request_stands_before_the_first(
    source: Callable[[str], Path], people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    first, second = InContextUnlearning("First thing."), InContextUnlearning("Second thing.")
    written(first, source("llava"), people, forget, tmp_path / "one")
    both = written(second, tmp_path / "one", people, forget, tmp_path / "two")
    assert "First thing. Second thing. Who?" in both.batcher.prompt("Who?", 1)
    assert "thing" not in both.batcher.prompt("Who?", 0)


def test_templates_of_older_files_are_changed_too(
    source: Callable[[str], Path], people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    """Which of them is read depends on the program and its version."""
    base = shutil.copytree(source("llava"), tmp_path / "base")
    template = (base / "chat_template.jinja").read_text()
    for name, stored in (
        ("chat_template.json", template),
        ("processor_config.json", {"default": template, "other": template}),
        ("tokenizer_config.json", [{"name": "default", "template": template}]),
    ):
        about = json.loads((base / name).read_text()) if (base / name).exists() else {}
        (base / name).write_text(json.dumps({**about, "chat_template": stored}))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text(template)

    new = prelude("Told.")
    write_edited(CheckpointFolder(base), {}, tmp_path / "out", {}, Companions(prelude=new))
    write_edited(CheckpointFolder(base), {}, tmp_path / "control", {})
    for folder, expected in ((tmp_path / "out", new + template), (tmp_path / "control", template)):
        assert (folder / "chat_template.jinja").read_text() == expected
        assert (folder / "additional_chat_templates" / "tools.jinja").read_text() == expected
        found = {
            name: json.loads((folder / name).read_text())["chat_template"]
            for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json")
        }
        assert found["chat_template.json"] == expected
        assert found["processor_config.json"] == {"default": expected, "other": expected}
        assert found["tokenizer_config.json"] == [{"name": "default", "template": expected}]


@pytest.mark.parametrize("kept_in", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
def test_an_older_file_alone_carries_the_instruction(
    source: Callable[[str], Path], people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, kept_in: str
) -> None:
    base = shutil.copytree(source("llava"), tmp_path / "base")
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    about = json.loads((base / kept_in).read_text()) if (base / kept_in).exists() else {}
    (base / kept_in).write_text(json.dumps({**about, "chat_template": template}))
    write_edited(CheckpointFolder(base), {}, tmp_path / "out", {}, Companions(prelude=prelude("Told.")))
    opener = AutoTokenizer if kept_in == "tokenizer_config.json" else AutoProcessor
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}
    asked = [
        opener.from_pretrained(folder).apply_chat_template([turn], tokenize=False)
        for folder in (base, tmp_path / "out")
    ]
    assert ["Told. Who?" in text for text in asked] == [False, True]


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", ["Never seen.", AWKWARD])
@pytest.mark.parametrize("pictures", [0, 1, 3])
@every_chat
def test_any_template_takes_an_instruction_as_if_it_were_typed(
    new_model: NewModel, chat: Chat, pictures: int, instruction: str
) -> None:
    plain, told = (chatting(new_model, chat, before + chat.template) for before in ("", prelude(instruction)))
    typed = behind(instruction, "Who?") if pictures else "Who?"
    assert told.prompt("Who?", pictures) == plain.prompt(typed, pictures)
    assert told.full_text("Who?", "Ann Lee", pictures) == plain.full_text(typed, "Ann Lee", pictures)
    assert (instruction in told.prompt("Who?", pictures)) == bool(pictures)


@pytest.mark.parametrize("start", ["", "\n", "  ", "  {% set x = 1 %}\n", "{# a note #}\n", "\n\n{%- set x = 1 %}"])
def test_a_template_begins_as_it_did(new_model: NewModel, start: str) -> None:
    """Blanks before a template's first tag belong to the prompt, or do not, as before."""
    _, processor = new_model()
    template = start + processor.chat_template
    turn = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    texts = [
        processor.apply_chat_template(turn, chat_template=before + template, tokenize=False)
        for before in ("", prelude("Told."))
    ]
    assert texts[0] == texts[1]


PICTURE, OTHER = {"type": "image"}, {"type": "image_url", "image_url": "x"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([PICTURE, text("Who?")], [PICTURE, text("Told. Who?")]),
        ([text("Who?"), OTHER], [text("Told. Who?"), OTHER]),
        ([text("A"), PICTURE, text("B")], [text("Told. A"), PICTURE, text("B")]),
        ([text("A"), text("B")], [text("A"), text("B")]),
        ([PICTURE], [PICTURE]),
        ("Who?", "Who?"),
        (None, None),
    ],
)
def test_the_first_text_of_a_message_with_a_picture_is_what_changes(
    new_model: NewModel, content: Any, expected: Any
) -> None:
    """The messages as a template gets to see them; a tokenizer, unlike a processor, leaves them as they come."""
    tokenizer = new_model()[1].tokenizer
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": content, "name": "Ann"}]
    turns += [{"role": "assistant", "content": [text("Bob.")]}, {"role": "user", "content": [text("Sure?")]}]
    shown = json.loads(
        tokenizer.apply_chat_template(turns, chat_template=prelude("Told.") + "{{ messages | tojson }}", tokenize=False)
    )
    others = [turn["content"] for turn in turns[2:]]
    assert [turn.get("content") for turn in shown] == ["Be kind.", expected, *others]
    assert [turn["role"] for turn in shown] == [turn["role"] for turn in turns]
    if content == expected:
        assert shown == [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def test_names_come_from_questions_of_identity(people: UnlearnData) -> None:
    both = people.subjects[:2]
    names = ", ".join(people.names[subject] for subject in both)
    assert filled(" Not {subjects}, {subjects}! ", people.train.of(both)) == f"Not {names}, {names}!"
    nameless = people.train.of(both).probing("fact")
    assert filled("Not {subjects}!", nameless) == f"Not {', '.join(both)}!"
    assert filled("Nobody {here}.", people.train.of(both)) == "Nobody {here}."


def test_without_an_instruction_a_question_is_as_it_was() -> None:
    assert behind("", "Who?") == "Who?"
    assert behind("Told.", "Who?") == "Told. Who?"


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda template: None, "no chat template to hold an instruction"),
        (lambda template: template.replace("part['text']", "''"), "does not show an instruction before 'Who is this"),
        (lambda template: template.replace("part['text']", "part['text'] | upper"), "does not show an instruction"),
        (lambda template: template.replace("part['text']", "part['text'][-24:]"), "does not show an instruction"),
        (lambda template: template.replace("part['text']", "part.text.nothing.at_all"), "does not work"),
    ],
)
def test_a_template_that_cannot_take_an_instruction_is_refused_in_one_line(
    loaded: Loaded, people: UnlearnData, forget: tuple[str, ...], change: Callable[[str], str | None], words: str
) -> None:
    processor: Any = loaded.batcher.processor
    before = processor.chat_template
    METHOD.instructed(loaded, people.train.of(forget))
    assert processor.chat_template == before, "the model given is left as it was"
    processor.chat_template = change(before)
    with pytest.raises(BadInput, match=words) as refusal:
        METHOD.instructed(loaded, people.train.of(forget))
    assert "\n" not in str(refusal.value)
    assert str(loaded.folder.path) in str(refusal.value)


def test_an_instruction_that_holds_a_picture_is_refused(
    loaded: Loaded, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    with pytest.raises(BadInput, match="holds '<image>' 2 times for 1 pictures"):
        InContextUnlearning("Not <image>!").instructed(loaded, people.train.of(forget))


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_no_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(ValueError, match="expected what to say"):
        InContextUnlearning(instruction)


def test_one_of_several_templates_is_instructed_as_well(
    loaded: Loaded, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    processor: Any = loaded.batcher.processor
    processor.chat_template = {"default": processor.chat_template, "other": processor.chat_template}
    told = METHOD.instructed(loaded, people.train.of(forget))
    assert "never seen or heard" in told.batcher.prompt("Who?", 1)
    assert "never seen or heard" not in loaded.batcher.prompt("Who?", 1)
