"""Ask a model every question and write down what it says, one line per answer, as it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any, TypeVar

import torch

from unsee.data.examples import Example
from unsee.evaluation.engine import SPARE, answers, greedy
from unsee.evaluation.questions import Question
from unsee.journal import Journal, Line
from unsee.models.loading import Loaded
from unsee.progress import track

T = TypeVar("T")


def predict(
    loaded: Loaded,
    role: str,
    asked: Sequence[Question],
    names: Sequence[str],
    journal: Journal,
    resume: bool,
    batch: int = 256,
) -> list[Line]:
    """Answer all questions greedily, a line each in the journal; returns all lines.

    Args:
        names: every name an identity question could be answered with.

    Raises:
        BadInput: see `Journal`.
    """
    longest = longest_answer(loaded, [q.example for q in asked])

    def ask(chunk: Sequence[Question]) -> list[Line]:
        said = answered(loaded, [q.example for q in chunk], longest)
        return [q.line(role, text, names) for q, text in zip(chunk, said, strict=True)]

    chunks = neighbours(asked, batch, lambda q: q.example.image is None)
    return in_chunks(chunks, ask, f"asking {role}", journal, resume)


def neighbours(asked: Sequence[T], size: int, kind: Callable[[T], object]) -> list[list[T]]:
    """Parts of neighbours of one kind, at most so many."""
    alike = [list(group) for _, group in groupby(asked, kind)]
    return [group[at : at + size] for group in alike for at in range(0, len(group), size)]


def in_chunks(
    chunks: Sequence[Sequence[T]],
    ask: Callable[[Sequence[T]], list[Line]],
    label: str,
    journal: Journal,
    resume: bool,
) -> list[Line]:
    """Ask in parts, going on where a broken run ended; returns all lines.

    Args:
        ask: the lines of a part, one for each question.

    Raises:
        BadInput: see `Journal`.
    """
    done = journal.left(resume)[: sum(map(len, chunks))]
    journal.begin(done)
    starts = accumulate(map(len, chunks), initial=0)
    rests = [chunk[max(0, len(done) - start) :] for chunk, start in zip(chunks, starts, strict=False)]
    left = [rest for rest in rests if rest]
    for chunk in track(left, label, len(left)):
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
