"""Signs of collapse, the same as `health` in results.json: whether an answer is right plays no part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unsee.evaluation.answers import is_empty, mentioned, repeats
from unsee.evaluation.intervals import Cell, share
from unsee.evaluation.metrics.base import Measure, measure
from unsee.evaluation.metrics.records import Answer


def off_list(answer: Answer) -> bool:
    """Whether there is a list of answers, and none of it is named: refusals too, however polite."""
    return bool(answer.options) and mentioned(answer.given, (*answer.options, answer.right)) is None


def _sign(shows: Callable[[Answer], bool], what: str) -> Measure[Answer]:
    @measure(
        Answer,
        formula=f"share of answers {what}",
        higher="more broken",
        cost=("answers",),
        source="ours, see docs/evaluation.md",
    )
    def measured(answers: Sequence[Answer]) -> Cell:
        return share([shows(a) for a in answers], [a.subject for a in answers])

    return measured


empty = _sign(lambda a: is_empty(a.given), "without a word")
repeated = _sign(lambda a: repeats(a.given), "with the same one to four words three times in a row")
unlisted = _sign(off_list, "that name no option though there is a list")
