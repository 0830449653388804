"""Words that an answer shares with the true one: ROUGE and BLEU.

Words are what `data.words.plain` leaves: case and punctuation gone, symbols and letters of every script kept, each
letter a word where a script has no spaces. The package rouge-score keeps a-z and 0-9 only ("Zoë" becomes "zo") and
stems ("universal" and "university" are one word); on plain English words without stemming the values agree. What cannot
be scored, because the true answer has no such n-gram, is null; there it is 0, so that a perfect answer of one word has
ROUGE-2 = 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, fsum, log
from typing import Literal

from unsee.data.normalisation import plain
from unsee.evaluation.intervals import Cell
from unsee.evaluation.metrics.base import Measure, average, measure
from unsee.evaluation.metrics.records import Answer

ORDERS = 4  # longest n-gram of BLEU
SMALL = 0.1  # what no match counts as, in matches


def rouge(answer: Answer, order: int | None, part: Literal["f", "recall"]) -> float | None:
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


def bleu(answer: Answer) -> float | None:
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


def _rouge(order: int | None, part: Literal["f", "recall"]) -> Measure[Answer]:
    what = f"{order}-grams" if order else "words of the longest common subsequence"
    whole = what if order else "words"
    formula = {
        "f": f"mean of 2 * shared {what} / ({whole} given + true {whole})",
        "recall": f"mean of shared {what} / true {whole}",
    }

    @measure(
        Answer,
        formula=formula[part],
        higher="knows more",
        cost=("answers",),
        source=f"ROUGE-{order or 'L'} (Lin, 2004); no stemming",
    )
    def measured(answers: Sequence[Answer]) -> Cell:
        return average(answers, lambda answer: rouge(answer, order, part))

    return measured


rouge_1_f, rouge_1_recall = _rouge(1, "f"), _rouge(1, "recall")
rouge_2_f, rouge_2_recall = _rouge(2, "f"), _rouge(2, "recall")
rouge_l_f, rouge_l_recall = _rouge(None, "f"), _rouge(None, "recall")


@measure(
    Answer,
    formula="mean over answers of exp(min(0, 1 - r / c)) * (p_1 ... p_N)^(1 / N), N = min(4, true words)",
    higher="knows more",
    cost=("answers",),
    source="Papineni et al., 2002; smoothing 1 of Chen & Cherry, 2014; N is ours",
)
def mean_bleu(answers: Sequence[Answer]) -> Cell:
    """Of each answer by itself, as unlearning papers have it; not of the corpus, as translation has it."""
    return average(answers, bleu)
