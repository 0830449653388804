"""Numbers as the benchmarks' own scripts compute them, where that is not what `evaluation.metrics` does.

For comparison with printed tables; each says what is wrong with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import exp, fsum, log
from statistics import harmonic_mean

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from unsee.evaluation.intervals import Cell, nothing, with_error
from unsee.evaluation.metrics.free_answers import rouge
from unsee.evaluation.metrics.records import FreeAnswer
from unsee.evaluation.protocols.base import ProtocolReply

STEMMED_FROM = 4  # letters: shorter words stay, as in the package rouge-score
ORDERS, EPSILON = 4, 0.1  # n-grams of BLEU; what no match counts as ("method 1" of Chen & Cherry, 2014)


def stemmed_rouge(reply: ProtocolReply, order: int | None, part: str) -> float:
    """ROUGE as rouge-score with `use_stemmer=True`: words are runs of a-z and 0-9, longer ones are stemmed.

    "Zoë" is "zo" and "universal" is "universe". A true answer without an n-gram of this order scores 0, a perfect
    answer too.
    """
    given, right = (" ".join(_words(text)) for text in (reply.given, reply.right))
    return rouge(FreeAnswer(reply.subject, given, right), order, "recall" if part == "recall" else "f") or 0.0


def _words(text: str) -> list[str]:
    words = re.sub("[^a-z0-9]+", " ", text.lower()).split()
    return [stem(word) if len(word) >= STEMMED_FROM else word for word in words]


def whitespace_bleu(reply: ProtocolReply) -> float:
    """NLTK's sentence BLEU with smoothing 1 on words between spaces: "Oslo." is not "Oslo", and a perfect answer of
    one word has 0.18, since all four orders count.
    """
    given, right = reply.given.split(), reply.right.split()
    shares = []
    for order in range(1, ORDERS + 1):
        grams = [
            Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1)) for words in (given, right)
        ]
        matches = sum((grams[0] & grams[1]).values())
        if order == 1 and not matches:
            return 0.0
        shares.append((matches or EPSILON) / max(1, len(given) - order + 1))
    return exp(min(0.0, 1 - len(right) / len(given)) + fsum(map(log, shares)) / ORDERS)


# CLEAR ----------------------------------------------------------------------------------------------------------------


def _per_token(reply: ProtocolReply) -> float:
    return fsum(reply.log_probs) / len(reply.log_probs)


def global_truth_ratios(replies: Sequence[ProtocolReply]) -> list[float]:
    """log R of each question, R = p(true, in other words) / exp(mean over *all questions* of the false answers' log p).

    The mean is over the whole set (`.mean()` without an axis), so one odd question moves the ratio of every other, and
    the order of R is that of the paraphrases' likelihoods alone. R here is 1 / R of TOFU.
    """
    everything = [value for reply in replies for value in reply.wrong]
    average = fsum(everything) / len(everything)
    return [reply.paraphrase - average for reply in replies]


def clear_truth_ratio(replies: Sequence[ProtocolReply]) -> Cell:
    """mean of min(R, 1 / R) for the forget set, of max(0, 1 - 1 / R) elsewhere; no interval: replies hang together."""
    taken = [reply for reply in replies if reply.wrong]
    if not taken:
        return nothing()
    logs = global_truth_ratios(taken)
    forget = taken[0].part == "forget"
    values = [exp(-abs(x)) if forget else max(0.0, 1 - exp(-max(0.0, x))) for x in logs]
    return with_error(fsum(values) / len(values), None, 1, len(values))


def clear_probability(reply: ProtocolReply) -> float | None:
    """p per token of a caption; elsewhere p / (p + p of the false answers)."""
    if not reply.log_probs:
        return None
    p = exp(_per_token(reply))
    return p if reply.what == "caption" else p / (p + fsum(map(exp, reply.wrong)))


def clear_utility(cells: Sequence[Sequence[ProtocolReply]]) -> Cell:
    """Harmonic mean of three means for each of four tasks: probability, stemmed ROUGE-L recall, truth ratio.

    One of them at 0 makes it 0. No interval, as published.
    """
    values: list[float] = []
    for replies in cells:
        taken = [reply for reply in replies if reply.wrong]
        if not taken:
            return nothing()
        probabilities = [p for reply in taken if (p := clear_probability(reply)) is not None]
        values.append(fsum(probabilities) / len(taken))
        values.append(fsum(stemmed_rouge(reply, None, "recall") for reply in taken) / len(taken))
        values.append(clear_truth_ratio(taken)["value"] or 0.0)
    return with_error(harmonic_mean(values), None, 1, sum(map(len, cells))) if values else nothing()


def clear_forget_quality(model: Sequence[ProtocolReply], gold: Sequence[ProtocolReply] | None) -> Cell:
    """p-value of the two-sample Kolmogorov-Smirnov test of R, with the global mean of `global_truth_ratios`."""
    if not (model and gold):
        return nothing()
    test = ks_2samp(global_truth_ratios(model), global_truth_ratios(gold))  # of logarithms: the order is the same
    return with_error(float(test.pvalue), None, 1, len(model))


def clear_likeness(model: Sequence[ProtocolReply], gold: Sequence[ProtocolReply] | None) -> Cell:
    """1 - JS of the two raw vectors of R, which `jensenshannon` takes for distributions *over questions*.

    Questions count by the size of their ratio, and two models that differ by a factor are equal. It is the distance
    (a square root) with natural logarithms.
    """
    if not gold or len(model) != len(gold):
        return nothing()
    vectors = []
    for replies in (model, gold):
        logs = np.array(global_truth_ratios(sorted(replies, key=lambda r: (r.subject, r.image, r.right))))
        vectors.append(np.exp(logs - logs.max()))  # the function scales to sum 1 itself
    return with_error(1 - float(jensenshannon(*vectors)), None, 1, len(model))


# Porter's stemmer -----------------------------------------------------------------------------------------------------
# The package rouge-score applies it before it compares words ("walks" and "walked" are one). M. F. Porter, "An
# algorithm for suffix stripping", Program 14(3), 1980. NLTK, which rouge-score calls, adds a dozen irregular words and
# small departures of its own; they are not here, so a score can differ in the third digit.

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
