"""When two texts say the same: the one rule by which answers, options and names are told apart. No model, no file.

Functions hold all they need, so that `unsee benchmark tasks` can copy them into packs for other tools.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


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
