r"""What is asked, in words, and how answers in words are read: as published (`paper_…`) and as corrected.

`paper` has the published wording. Where a protocol's code writes `USER: <image>\n...\nASSISTANT:` around it, that is
the chat of LLaVA-1.5: here the model's own chat template writes it, so that one text serves every family. `corrected`
asks every choice and every blank in one way for all benchmarks. See docs/protocols.md for each difference.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Mapping
from typing import Literal

from unsee.data.benchmarks.items import DESCRIBE, BenchmarkItem
from unsee.data.normalisation import plain
from unsee.evaluation.answers import mentioned

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


# The user's message, and the reply that counts as right --------------------------------------------------------------


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


# Right or wrong -------------------------------------------------------------------------------------------------------

LETTER = re.compile(  # "B", "(B)", "B.", "Option B", "The answer is B: text", but neither "A baker" nor "Don't know"
    r"\W*(?:(?:the\s+)?(?:(?:right|correct)\s+)?(?:answer|option)(?:\s+is)?\s*:?\s*)?\(?(?P<letter>[A-Z])(?:[).:,\]]+|\s*$)"
    r"(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)


def chosen(given: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer picks; None if it picks none.

    A letter that stands alone, or with a bracket, stop, colon or comma behind it, is a choice; text behind it must be
    the text of that option ("D: nobody" chooses nothing, "B. baker" with another B contradicts itself). Else the first
    option named in whole words counts. Our choice: "A baker" begins with an article, and "Don't know" is not D.
    """
    found = LETTER.fullmatch(given.strip())
    letter = found["letter"].upper() if found else ""
    if found and letter in options:
        rest = found["rest"]
        return letter if not plain(rest) or mentioned(rest, options.values()) == options[letter] else None
    named = mentioned(given, options.values())
    return next((letter for letter, text in options.items() if text == named), None)


def paper_first_character(given: str, options: Mapping[str, str]) -> str | None:
    """MLLMU-Bench: the first character, in upper case, if it is an option's letter. "Don't know" is D."""
    said = given.strip()[:1].upper()
    return said if said in options else None


def paper_first_letter(given: str, options: Mapping[str, str]) -> str | None:
    """MMUnlearner on CLEAR: the same after everything but a-z, A-Z and 0-9 is dropped."""
    return paper_first_character(re.sub("[^A-Za-z0-9]", "", given), options)


def paper_option_text(given: str, options: Mapping[str, str]) -> str | None:
    """UMU-Bench, invented people: an option's text to the letter; a full stop behind it makes it wrong."""
    return next((letter for letter, text in options.items() if text == given.strip()), None)


def paper_nearest_option(given: str, options: Mapping[str, str]) -> str | None:
    """UMU-Bench, celebrities: the option with the greatest difflib ratio. Any answer, an empty one too, picks one."""

    def likeness(letter: str) -> float:
        return difflib.SequenceMatcher(None, given.strip(), options[letter]).ratio()

    return max(options, key=likeness, default=None)


def paper_contained(given: str, right: str) -> bool:
    """MLLMU-Bench, blanks: the letters of the true answer occur somewhere; "eyes" contains "yes"."""
    return right.lower() in given.lower()


def paper_contained_to_stop(given: str, right: str) -> bool:
    """UMU-Bench, blanks: the same up to the first full stop of the true answer; "St. Ives" is found in "street"."""
    return paper_contained(given, right.split(".")[0])


def paper_keywords(given: str, keywords: tuple[str, ...]) -> float | None:
    """FIUBench, "exact match": share of the keywords whose letters occur somewhere; None without keywords."""
    return _share([word.lower() in given.lower() for word in keywords])


def keywords_named(given: str, keywords: tuple[str, ...]) -> float | None:
    """Share of the keywords that occur as whole words; those of punctuation alone do not count."""
    said = f" {plain(given)} "
    return _share([f" {plain(word)} " in said for word in keywords if plain(word)])


def _share(found: list[bool]) -> float | None:
    return sum(found) / len(found) if found else None
