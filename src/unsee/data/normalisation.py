"""When two texts say the same: the one rule by which answers, options and names are told apart. No model, no file.

`plain` and what it calls hold all they need, so that `unsee benchmark tasks` can copy them into packs for other
tools.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

from unsee.data.examples import Example
from unsee.errors import BadInput


@lru_cache(maxsize=65536)
def plain(text: str) -> str:
    """What a text says, as words with one space between: "  Alba  Borg. " -> "alba borg".

    Folded: case, composition and width of letters (NFKC), spacing, punctuation, and what is invisible. Kept:

    - symbols, each a word of its own ("$ 5", "at & t"); an emoji of several parts is one word;
    - "+", "#" and their like behind a word, as part of it ("c++", "c#", "a+"), "-" and "*" behind a single letter or
      digit ("a-", "5*"; behind longer words they end lines, and stars around words are markup);
    - a minus sign before a number ("-5"), a point inside one ("3.5").

    In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every letter is a word, so that a name is
    found in the middle of a sentence; katakana, which spells foreign names, stays together. Spaces that word-level
    tokenizers put before signs at the end ("C + +"), behind the minus of a bare number, or around the point inside a
    number ("3 . 5") are no difference.
    """
    folded = unicodedata.normalize("NFKC", text.replace("\u266f", "#")).casefold()
    kinds = [(kind, c) for c in folded if (kind := _kind(c)) != "0"]
    shape = "".join(kind for kind, _ in kinds)
    if re.search(r"(?<![wdm])\*+(?=[wdku])", shape):  # markup: *so* or **so**
        shape = shape.replace("*", " ")
    last = "(?=[^wdkucs]*$)"  # no word follows
    words = (
        rf"(?:(?<![wdmku+*-])-(?=c?d)c?|^ *- *(?=d+{last}))?"  # a minus sign
        rf"(?:(?<![wdmj])[wd]m*(?:-(?![wdku-])|\*+(?![wdku])| [-*]{last})"  # one letter with its sign
        rf"|[wdm](?:[wdmj]|(?<=d)(?:\.| \. )(?=d))*(?:\++(?![wdku])|(?: ?\++)+{last})?)"
        r"|k[kmj]*|u[mj]*|r ?r|[sr]m*(?: ?t)*(?: ?j ?sm*(?: ?t)*)*|\++|c+"
    )
    found = []
    for word in re.finditer(words, shape):
        said = zip(word[0], (c for _, c in kinds[word.start() : word.end()]), strict=True)
        found.append("".join("-" if kind == "-" else c for kind, c in said if kind not in " j"))
    return " ".join(found)


@lru_cache(maxsize=4096)
def _kind(c: str) -> str:
    """The part that a character can play in a word.

    d digit, w other letter, k katakana, u letter of a script without spaces, m mark, s picture, c other symbol, r half
    of a flag, t tone or tag of an emoji, j joiner, 0 invisible, . + - * signs; a space for what only separates.
    """
    group = unicodedata.category(c)
    if c in "\u00ad\u2060" or "\ufe00" <= c <= "\ufe0f":
        return "0"
    if c == "\u200d":
        return "j"
    if c in "+#\u266d":
        return "+"
    if c in "-\u2010\u2011\u2013\u2212":
        return "-"
    if c == "*":
        return "*"
    if c == ".":
        return "."
    if "\U0001f3fb" <= c <= "\U0001f3ff" or "\U000e0020" <= c <= "\U000e007f":
        return "t"
    if "\U0001f1e6" <= c <= "\U0001f1ff":
        return "r"
    if group[0] == "M":
        return "m"
    if c.isalnum():
        if re.fullmatch("[\u30a1-\u30ff\u31f0-\u31ff]", c):
            return "k"
        unspaced = (
            "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u309f\u3105-\u312f\u3400-\u4dbf\u4e00-\u9fff"
            "\uf900-\ufaff\U00020000-\U000323af\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f"
            "\u1780-\u17d3]"
        )
        if re.fullmatch(unspaced, c):
            return "u"
        return "d" if c.isdecimal() else "w"
    if group == "So" and c not in "\u00a9\u00ae\ufffd":
        return "s"
    return "c" if c in "%&@\u2030\u2031\u066a" or (group in ("Sm", "Sc") and c not in "|~\u2044") else " "


# Names and choices that no answer could tell apart --------------------------------------------------------------------


def plain_name(subject: str) -> str:
    """A subject's name where none is given: the subject, with spaces for `-` and `_`."""
    return " ".join(re.split(r"[-_\s]+", subject)).strip() or subject


def check_names(where: str, names: Mapping[str, str]) -> None:
    """Refuse names that no answer could tell apart, or that no answer could give.

    Raises:
        BadInput: names all subjects of one name, as `plain` compares them, and names of punctuation alone.
    """
    called: dict[str, list[str]] = {}
    for subject in sorted(names):
        called.setdefault(plain(names[subject]), []).append(subject)
    nameless = called.pop("", [])
    found = [
        f"{_listed(group)} are {'both' if len(group) == 2 else 'all'} called "
        f"{_listed(dict.fromkeys(names[subject] for subject in group), 'or')}"
        for group in called.values()
        if len(group) > 1
    ]
    if found:
        raise BadInput(f"{where}: {'; '.join(found)}; rename one of them, by more than case, spacing and punctuation")
    if nameless:
        said = f"{_listed(nameless)}: called {_listed(dict.fromkeys(names[subject] for subject in nameless))}"
        raise BadInput(f"{where}: {said}, without a letter, digit or symbol: no answer could be right; rename")


def check_questions(asked: Iterable[tuple[str, Example]]) -> None:
    """Refuse choices that no answer could tell apart, and answers that could never be right.

    Args:
        asked: questions, each with what to call it in messages.

    Raises:
        BadInput: names them all, each text with the first question that has it.
    """
    found: dict[str, str] = {}
    for where, e in asked:
        alike: dict[str, dict[str, None]] = {}
        for text in (e.answer, *e.choices):
            alike.setdefault(plain(text), {})[text] = None
        for text in alike.pop("", {}):
            found.setdefault(f"'{text}' has no letter, digit or symbol: no answer could be right", where)
        for group in alike.values():
            if len(group) > 1:
                found.setdefault(f"choices {_listed(group)} differ in case, spacing or punctuation alone", where)
    if found:
        said = "; ".join(f"{where}: {problem}" for problem, where in found.items())
        raise BadInput(f"{said}; write them so that they can be told apart, or leave the question out")


def _listed(texts: Iterable[str], word: str = "and") -> str:
    *first, last = (f"'{text}'" for text in texts)
    return f"{', '.join(first)} {word} {last}" if first else last
