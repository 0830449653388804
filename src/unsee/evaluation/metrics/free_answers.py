"""What free answers show: right or wrong, words shared with the true one, text beside picture, signs of collapse.

Right or wrong is what most papers lead with, and the least faithful of all: see docs/metrics.md.

Words are what `data.normalisation.plain` leaves: case and punctuation gone, symbols and letters of every script kept,
each letter a word where a script has no spaces. The package rouge-score keeps a-z and 0-9 only ("Zoë" becomes "zo")
and stems ("universal" and "university" are one word); on plain English words without stemming the values agree. What
cannot be scored, because the true answer has no such n-gram, is null; there it is 0, so that a perfect answer of one
word has ROUGE-2 = 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import exp, fsum, log
from typing import Literal

from unsee.data.normalisation import plain
from unsee.evaluation.answers import is_correct, is_empty, mentioned, repeats
from unsee.evaluation.metrics.base import Measure, measure_each
from unsee.evaluation.metrics.records import FreeAnswer, Pair

ORDERS = 4  # longest n-gram of BLEU
SMALL = 0.1  # what no match counts as, in matches


def _right(answer: FreeAnswer) -> bool:
    return is_correct(answer.given, answer.right, answer.options)


@measure_each(FreeAnswer, "knows more", "MLLMU-Bench (arXiv 2410.22108), multiple choice; matching is ours")
def accuracy(answer: FreeAnswer) -> bool:
    """Share of answers that name the true option first.

    As in results.json: whole words, without case and punctuation; without options, wherever the answer stands.
    The first option named counts, so listing every option wins nothing.
    Public scripts take the first letter of the answer ("D: nobody" and "Don't know" are both D).
    """
    return _right(answer)


@measure_each(FreeAnswer, "knows more", "MLLMU-Bench (arXiv 2410.22108), fill in the blank; matching is ours")
def cloze(answer: FreeAnswer) -> bool:
    """Share of answers that contain the true one.

    Options play no part, so an answer that lists them all is right: read it beside `health-repeated`.
    Public scripts look for the letters of the answer, so that "eyes" contains "yes". Ours are whole words.
    """
    return is_correct(answer.given, answer.right)


# Words shared with the true answer ------------------------------------------------------------------------------------


def rouge(answer: FreeAnswer, order: int | None, part: Literal["f", "recall"]) -> float | None:
    """ROUGE of one answer; None if the true answer has no n-gram of this order.

    Args:
        order: words per n-gram; None: longest common subsequence (ROUGE-L).
        part: recall, matches / n-grams of the true answer, or F, its harmonic mean with precision, matches / n-grams
            of the answer given.
    """
    given, right = plain(answer.given).split(), plain(answer.right).split()
    wanted = len(right) - (order or 1) + 1
    if wanted < 1:
        return None
    shared = _matches(given, right, order) if order else _subsequence(given, right)
    if part == "recall" or not shared:
        return shared / wanted
    return 2 * shared / (wanted + len(given) - (order or 1) + 1)  # = 2PR / (P + R)


def bleu(answer: FreeAnswer) -> float | None:
    """BLEU of one answer; None if the true answer has no word.

    exp(min(0, 1 - r / c)) * (product over n of p_n)^(1 / N), c and r: words of the answer given and of the true one,
    p_n: share of the given n-grams that match, with 0.1 matches in the place of none, N = min(4, r). With N = 4
    throughout, as public scripts have it, a perfect answer of one word has 0.18.
    """
    given, right = plain(answer.given).split(), plain(answer.right).split()
    if not right:
        return None
    if not set(given) & set(right):
        return 0.0
    orders = range(1, min(ORDERS, len(right)) + 1)
    logs = [log((_matches(given, right, n) or SMALL) / max(1, len(given) - n + 1)) for n in orders]
    return exp(min(0.0, 1 - len(right) / len(given)) + fsum(logs) / len(logs))


def _matches(one: Sequence[str], other: Sequence[str], order: int) -> int:
    """n-grams that occur in both, each as often as where it is rarer."""
    return sum((_grams(one, order) & _grams(other, order)).values())


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def _subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Words of the longest common subsequence."""
    best = [0] * (len(other) + 1)
    for word in one:
        before = best.copy()
        for j, against in enumerate(other, 1):
            best[j] = before[j - 1] + 1 if word == against else max(before[j], best[j - 1])
    return best[-1]


def _rouge(order: int | None, part: Literal["f", "recall"]) -> Measure[FreeAnswer]:
    what = f"{order}-grams" if order else "words of the longest common subsequence"
    whole = what if order else "words"
    formula = {
        "f": f"mean of 2 * shared {what} / ({whole} given + true {whole})",
        "recall": f"mean of shared {what} / true {whole}",
    }
    source = f"ROUGE-{order or 'L'} (Lin, 2004); no stemming"
    return measure_each(FreeAnswer, "knows more", source, formula[part])(lambda answer: rouge(answer, order, part))


rouge_1_f, rouge_1_recall = _rouge(1, "f"), _rouge(1, "recall")
rouge_2_f, rouge_2_recall = _rouge(2, "f"), _rouge(2, "recall")
rouge_l_f, rouge_l_recall = _rouge(None, "f"), _rouge(None, "recall")
mean_bleu = measure_each(  # of each answer by itself, as unlearning papers have it; translation has it of the corpus
    FreeAnswer,
    "knows more",
    "Papineni et al., 2002; smoothing 1 of Chen & Cherry, 2014; N is ours",
    "mean over answers of exp(min(0, 1 - r / c)) * (p_1 ... p_N)^(1 / N), N = min(4, true words)",
)(bleu)


# One fact asked with the picture and in text alone: are both known, or neither? ---------------------------------------
# UMU-Bench wants text and picture forgotten together. Where only the picture is to be forgotten and text stays, which
# is what unsee is for, a low value is not the aim: read them beside gold's.

UMU = "UMU-Bench (NeurIPS 2025 D&B)"


@measure_each(Pair, "knows more", f"{UMU}, AccR; matching is ours")
def joint_right(pair: Pair) -> bool:
    """Share of facts that are right both with the picture and in text."""
    return _right(pair.picture) and _right(pair.text)


@measure_each(Pair, "knows less", f"{UMU}, AccF; matching is ours")
def joint_wrong(pair: Pair) -> bool:
    """Share of facts that are wrong both with the picture and in text.

    Not 1 - `joint-right`: facts that are right in one of the two count in neither.
    """
    return not (_right(pair.picture) or _right(pair.text))


@measure_each(Pair, "knows more", f"{UMU}, RLR; no stemming")
def joint_overlap_retain(pair: Pair) -> float | None:
    """Mean of 2ab / (a + b); a, b: ROUGE-L F with the picture and in text; 0 if both are 0.

    Near the smaller of the two: high only if both are.
    """
    return _of_overlaps(pair, lambda a, b: 2 * a * b)


@measure_each(Pair, "knows more", f"{UMU}, RLF; no stemming")
def joint_overlap_forget(pair: Pair) -> float | None:
    """Mean of (a^2 + b^2) / (a + b); a, b: ROUGE-L F with the picture and in text; 0 if both are 0.

    Near the larger of the two: low only if both are. Undefined at 0 and 0 as published; its limit is 0.
    """
    return _of_overlaps(pair, lambda a, b: a * a + b * b)


def _of_overlaps(pair: Pair, above: Callable[[float, float], float]) -> float | None:
    """above(a, b) / (a + b), a and b: ROUGE-L F; 0 if both are 0; None if a true answer has no word."""
    a, b = rouge(pair.picture, None, "f"), rouge(pair.text, None, "f")
    if a is None or b is None:
        return None
    return above(a, b) / (a + b) if a + b else 0.0


# Signs of collapse, the same as `health` in results.json: whether an answer is right plays no part --------------------


def off_list(answer: FreeAnswer) -> bool:
    """Whether there is a list of answers, and none of it is named: refusals too, however polite."""
    return bool(answer.options) and mentioned(answer.given, (*answer.options, answer.right)) is None


def _sign(shows: Callable[[FreeAnswer], bool], what: str) -> Measure[FreeAnswer]:
    source = "ours, see docs/evaluation.md"
    return measure_each(FreeAnswer, "more broken", source, f"share of answers {what}")(shows)


empty = _sign(lambda a: is_empty(a.given), "without a word")
repeated = _sign(lambda a: repeats(a.given), "with the same one to four words three times in a row")
unlisted = _sign(off_list, "that name no option though there is a list")
