"""Right or wrong: how each protocol reads an answer, as published (`paper_…`) and as corrected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from unsee.data.normalisation import plain
from unsee.evaluation.answers import mentioned

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
