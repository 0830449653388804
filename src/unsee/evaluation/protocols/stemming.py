"""Porter's stemmer, which the package rouge-score applies before it compares words ("walks" and "walked" are one).

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980. NLTK, which rouge-score calls, adds a dozen
irregular words and small departures of its own; they are not here, so a score can differ in the third digit.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

VOWELS = "aeiou"
STEP_2 = {
    **{"ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "abli": "able"},
    **{"alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate"},
    **{"alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive"},
    "biliti": "ble",
}
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
STEP_4 = (
    "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize".split()
)  # "ion" only after s or t


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A lower-case word without its suffixes; words of one or two letters stay."""
    if len(word) < 3:
        return word
    for suffix, short in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(suffix):
            word = word.removesuffix(suffix) + short
            break
    word = _participle(word)
    if word.endswith("y") and _vowel(word[:-1]):
        word = word[:-1] + "i"
    for table in (STEP_2, STEP_3):
        word = _longest(word, table)
    suffix = max((s for s in STEP_4 if word.endswith(s)), key=len, default="")
    rest = word.removesuffix(suffix)
    if suffix and _measure(rest) > 1 and (suffix != "ion" or rest.endswith(("s", "t"))):
        word = rest
    if word.endswith("e"):
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _participle(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        rest = word.removesuffix(suffix)
        if rest != word and _vowel(rest):
            if rest.endswith(("at", "bl", "iz")):
                return rest + "e"
            if len(rest) > 1 and rest[-1] == rest[-2] and _consonant(rest, len(rest) - 1) and rest[-1] not in "lsz":
                return rest[:-1]
            return rest + "e" if _measure(rest) == 1 and _short(rest) else rest
    return word


def _longest(word: str, table: dict[str, str]) -> str:
    suffix = max((s for s in table if word.endswith(s)), key=len, default="")
    rest = word.removesuffix(suffix)
    return rest + table[suffix] if suffix and _measure(rest) > 0 else word


def _consonant(word: str, at: int) -> bool:
    return word[at] not in VOWELS and not (word[at] == "y" and at > 0 and _consonant(word, at - 1))


def _vowel(word: str) -> bool:
    return any(not _consonant(word, at) for at in range(len(word)))


def _measure(word: str) -> int:
    """How often a vowel is followed by a consonant: m of [C](VC)^m[V]."""
    kinds = [_consonant(word, at) for at in range(len(word))]
    return sum(after and not before for before, after in pairwise(kinds))


def _short(word: str) -> bool:
    """Consonant, vowel, consonant at the end, the last of them not w, x or y."""
    n = len(word)
    shape = [_consonant(word, at) for at in range(max(0, n - 3), n)]
    return shape == [True, False, True] and word[-1] not in "wxy"
