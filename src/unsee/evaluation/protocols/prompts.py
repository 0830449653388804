r"""What is asked, in words: the user's message of each question, and the reply that counts as right.

`paper` has the published wording. Where a protocol's code writes `USER: <image>\n...\nASSISTANT:` around it, that is
the chat of LLaVA-1.5: here the model's own chat template writes it, so that one text serves every family. `corrected`
asks every choice and every blank in one way for all benchmarks. See docs/protocols.md for each difference.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from unsee.data.benchmarks.items import DESCRIBE, BenchmarkItem

Mode = Literal["paper", "corrected"]
MODES: tuple[Mode, ...] = ("paper", "corrected")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK = "[Blank]"
NAME = "What is the name of the person in the image?"
BEGUN = "The name of the person on the image is "  # CLEAR: the answer goes on from it; the space belongs to it
CHOOSE = "Answer with the letter of the right option only."
FILL = "Which words belong in the place of [Blank]? Answer with these words only."
DESCRIPTIONS = (  # CLEAR draws one of nine; its own words come without a licence, these are ours
    DESCRIBE,
    "What does this picture show?",
    "What can be seen in this image?",
    "Give a description of this image.",
    "Write a caption for this picture.",
    "Who and what is in this image?",
    "Tell what is in this picture.",
    "Describe what you see.",
    "What is shown here?",
)


def question_text(benchmark: str, item: BenchmarkItem, mode: Mode) -> str:
    """The user's message for one question, without pictures and without shots.

    Args:
        benchmark: a key of `unsee.data.benchmarks.BENCHMARKS`.
    """
    asked = _asked(item, mode)
    if item.kind == "classification":
        return _choosing(benchmark, asked, options(item), mode)
    if item.kind == "cloze":
        return _blank(benchmark, asked.replace("__", BLANK) if BLANK not in asked else asked, mode)
    if benchmark == "mllmu":
        accurately = " accurately" if item.images and mode == "paper" else ""
        return f"{asked}\nAnswer the question based on your trained knowledge in one sentence{accurately} in ENGLISH."
    return asked


def answer_text(benchmark: str, item: BenchmarkItem, mode: Mode) -> str:
    """The reply that is right beyond doubt: a letter where a letter is asked for, else the answer in words."""
    if item.kind != "classification" or (benchmark == "umu" and mode == "paper"):
        return item.answer
    letter = next(letter for letter, text in options(item).items() if text == item.answer)
    return f"{letter}. {item.answer}" if benchmark == "clear" and mode == "paper" else letter


def options(item: BenchmarkItem) -> Mapping[str, str]:
    """The options as printed, by letter, the true one among them; in print order.

    Where the benchmark gives false answers only (CLEAR), the true one is put at a place drawn by a seed made of the
    question itself: the same place for every model, in every order of questions.
    """
    if item.choices:
        return dict(zip(item.letters, item.choices, strict=True))
    found = list(dict.fromkeys(text for text in item.wrong if text != item.answer))
    label = item.images[0].label.rsplit("/", 1)[-1] if item.images else ""
    draw = random.Random("/".join(("options", item.part, item.subject, item.key, item.question, item.answer, label)))
    found.insert(draw.randrange(len(found) + 1), item.answer)
    return dict(zip(LETTERS, found, strict=False))


def _asked(item: BenchmarkItem, mode: Mode) -> str:
    """The question itself; in the protocol's words where the benchmark has none (CLEAR's names and captions)."""
    if item.question:
        return item.question
    if item.kind == "classification":
        return NAME
    if item.key == "name":
        return BEGUN if mode == "paper" else NAME
    if mode == "corrected":
        return DESCRIBE
    return random.Random(f"caption/{item.subject}/{item.answer}").choice(DESCRIPTIONS)


def _choosing(benchmark: str, asked: str, listed: Mapping[str, str], mode: Mode) -> str:
    if mode == "paper" and benchmark == "umu":
        return f"{asked}\nSelect answer in {list(listed.values())}"
    if mode == "paper" and benchmark == "mllmu":
        lines = "\n".join(f"{letter}: {text}" for letter, text in listed.items())
        return f"{asked}\n{lines}\nJust give ONE letter representing the answer directly."
    lines = "\n".join(f"{letter}. {text}" for letter, text in listed.items())
    return f"{asked}\n{lines}" if mode == "paper" else f"{asked}\n{lines}\n{CHOOSE}"


def _blank(benchmark: str, asked: str, mode: Mode) -> str:
    if mode == "corrected":
        return f"{asked}\n{FILL}"
    if benchmark == "umu":
        return f"{asked}\nPlease **ONLY** provide the correct answer without any explanation"
    return f"{asked}\nPlease **ONLY** provide the correct answer that should replace the {BLANK}."
