"""Ask a model every question and write down what it says, one line per answer, as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from unsee.data.examples import SPLITS, Example, UnlearnData
from unsee.evaluation.answers import is_correct
from unsee.evaluation.engine import SPARE, answers, greedy
from unsee.journal import Journal, Line
from unsee.models.loading import Loaded
from unsee.progress import track

Part = Literal["forget", "retain", "strangers"]
T = TypeVar("T")

PICTURES = {"train": 4, "validation": 4, "test": 12}  # per subject; the headline numbers are those of test


@dataclass(frozen=True)
class Question:
    """One example with the place its answer counts for."""

    example: Example
    split: str
    part: Part

    def line(self, role: str, prediction: str, names: Iterable[str]) -> Line:
        e = self.example
        options = tuple(names) if e.probe == "identity" else e.choices
        return {
            "role": role,
            "split": self.split,
            "set": self.part,
            "subject": e.subject,
            "probe": e.probe,
            "key": e.key,
            "question": e.question,
            "answer": e.answer,
            "prediction": prediction,
            "correct": is_correct(prediction, e.answer, options),
            "image": e.image.label if e.image is not None else None,
        }


def questions(data: UnlearnData, forget: Sequence[str], pictures: dict[str, int]) -> list[Question]:
    """All questions an evaluation asks, in a fixed order.

    Args:
        pictures: how many pictures per subject count, per split ("train", "validation", "test").
    """
    forgotten = set(forget)

    def part(e: Example) -> Part:
        return "forget" if e.subject in forgotten else "retain"

    asked = [
        Question(e, name, part(e)) for name in SPLITS for e in data.split(name).pictured.first_pictures(pictures[name])
    ]
    asked += [Question(e, "text", part(e)) for e in data.train.text_only]
    return asked + [Question(e, "strangers", "strangers") for e in data.strangers]


def predict(
    loaded: Loaded,
    role: str,
    asked: Sequence[Question],
    names: Sequence[str],
    path: Path,
    identity: dict[str, Any],
    resume: bool,
    batch: int = 256,
) -> list[Line]:
    """Answer all questions greedily, appending to `path`; returns all lines.

    Args:
        names: every name an identity question could be answered with.
        identity: hashes of model, data and request; kept beside the answers so that `resume` continues only the same
            evaluation.

    Raises:
        BadInput: answers of another evaluation stand at `path` and `resume` is set.
    """
    longest = longest_answer(loaded, [q.example for q in asked])

    def ask(chunk: Sequence[Question]) -> list[Line]:
        said = answered(loaded, [q.example for q in chunk], longest)
        return [q.line(role, text, names) for q, text in zip(chunk, said, strict=True)]

    return in_chunks(asked, batch, lambda q: q.example.image is None, ask, f"asking {role}", path, identity, resume)


def in_chunks(
    asked: Sequence[T],
    size: int,
    kind: Callable[[T], object],
    ask: Callable[[Sequence[T]], list[Line]],
    label: str,
    path: Path,
    identity: Mapping[str, Any],
    resume: bool,
) -> list[Line]:
    """Ask in parts and append the lines of each to `path`, going on where a broken run ended; returns all lines.

    Args:
        size, kind: a part holds neighbours of one kind, at most so many; their order is kept.
        ask: the lines of a part, one for each question.
        identity, resume: see `Journal`.

    Raises:
        BadInput: see `Journal`.
    """
    journal = Journal(path, identity)
    done = journal.left(resume)[: len(asked)]
    journal.begin(done)
    alike = [list(group) for _, group in groupby(asked[len(done) :], kind)]
    chunks = [group[at : at + size] for group in alike for at in range(0, len(group), size)]
    for chunk in track(chunks, label, len(chunks)):
        lines = ask(chunk)
        journal.append(lines)
        done += lines
    return done


def longest_answer(loaded: Loaded, examples: Sequence[Example]) -> int:
    """Tokens of the longest true answer: one bound for all, so that no answer depends on its batch."""
    texts = {(e.question, e.answer, len(e.images)) for e in examples}
    return max((loaded.batcher.answer_length(*text)[1] for text in texts), default=1)


def answered(loaded: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
    """What `generate` says, the quick way where a checkpoint's own settings allow it."""
    return (answers if greedy(loaded.model) else generate)(loaded, examples, longest)


@torch.no_grad()
def generate(loaded: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
    """Greedy answers of at most `longest` tokens and a few more, in order. All with a picture, or all without.

    The plain way, which knows every setting of a checkpoint; `engine.answers` says the same sooner.
    """
    return generate_from(loaded, loaded.batcher.for_generation(examples), longest)


@torch.no_grad()
def generate_from(loaded: Loaded, inputs: Mapping[str, Any], longest: int) -> list[str]:
    """The same for model inputs that are prepared already, with `input_ids` among them."""
    ids = loaded.model.generate(  # type: ignore[operator]
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=longest + SPARE,
        pad_token_id=loaded.batcher.tokenizer.pad_token_id,
    )
    return loaded.batcher.decode(ids[:, inputs["input_ids"].shape[1] :])
