"""Rows that several protocols share: numbers of one cell, in both modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from unsee.evaluation.answers import is_correct
from unsee.evaluation.intervals import Cell, nothing, share
from unsee.evaluation.metrics import base
from unsee.evaluation.metrics.overlap import bleu, rouge
from unsee.evaluation.metrics.probability import probability, truth_above
from unsee.evaluation.metrics.records import Beside, Contrast, Pair, Recital
from unsee.evaluation.protocols.base import Reply, Scored, Whole
from unsee.evaluation.protocols.parsing import chosen
from unsee.evaluation.protocols.published import stemmed_rouge, whitespace_bleu

Read = Callable[[str, Mapping[str, str]], str | None]  # answer, options -> letter


def picked(read: Read) -> Callable[[Reply], bool]:
    """Whether the option that an answer picks is the right one."""
    return lambda reply: read(reply.given, dict(reply.options)) == reply.letter


def rate(right: Callable[[Reply], bool]) -> Callable[[Sequence[Reply]], Cell]:
    """Share of right answers, interval clustered by subject."""
    return lambda replies: share([right(r) for r in replies], [r.subject for r in replies])


def average(value: Callable[[Reply], float | None]) -> Callable[[Sequence[Reply]], Cell]:
    """Mean over answers, interval clustered by subject."""
    return lambda replies: base.average(replies, value) if replies else nothing()


def named(reply: Reply) -> bool:
    """Corrected: the true answer stands in the answer given, in whole words."""
    return is_correct(reply.given, reply.right)


ACCURACY = Scored("accuracy", rate(picked(chosen)), "options")
CLOZE = Scored("cloze", rate(named), "nothing")
OVERLAP = (
    Scored("ROUGE-1 F", average(lambda r: rouge(r.answer, 1, "f")), "stand-in"),
    Scored("ROUGE-2 F", average(lambda r: rouge(r.answer, 2, "f")), "stand-in"),
    Scored("ROUGE-L F", average(lambda r: rouge(r.answer, None, "f")), "stand-in"),
    Scored("BLEU", average(lambda r: bleu(r.answer)), "stand-in"),
)
PAPER_OVERLAP = (
    Scored("ROUGE-1 F", average(lambda r: stemmed_rouge(r, 1, "f")), "stand-in"),
    Scored("ROUGE-2 F", average(lambda r: stemmed_rouge(r, 2, "f")), "stand-in"),
    Scored("ROUGE-L F", average(lambda r: stemmed_rouge(r, None, "f")), "stand-in"),
    Scored("BLEU", average(whitespace_bleu), "stand-in"),
)
RECALL = Scored("ROUGE-L recall", average(lambda r: rouge(r.answer, None, "recall")), "stand-in")
PAPER_RECALL = Scored("ROUGE-L recall", average(lambda r: stemmed_rouge(r, None, "recall")), "stand-in")


# Likelihoods ----------------------------------------------------------------------------------------------------------


def recital(reply: Reply) -> Recital:
    return Recital(reply.subject, reply.log_probs, reply.hits)


def contrast(reply: Reply) -> Contrast:
    return Contrast(reply.subject, reply.paraphrase, reply.wrong)


def taken(replies: Sequence[Reply]) -> list[Reply]:
    """Those whose likelihoods were taken, and that have a false answer to compare with."""
    return [reply for reply in replies if reply.log_probs and reply.wrong]


PROBABILITY = Scored("probability", average(lambda r: probability(recital(r)) if r.log_probs else None), "nothing")
TRUTH = Scored("truth ratio", average(lambda r: truth_above(contrast(r)) if r.wrong else None), "nothing")


def beside(model: Sequence[Reply], gold: Sequence[Reply] | None) -> list[Beside]:
    """The same questions asked of a model and of gold."""

    def by_question(replies: Sequence[Reply]) -> dict[tuple[str, ...], Reply]:
        return {(r.subject, r.key, r.question, r.image, r.right): r for r in taken(replies)}

    theirs = by_question(gold or ())
    return [Beside(contrast(r), contrast(theirs[q])) for q, r in sorted(by_question(model).items()) if q in theirs]


# Picture and text -----------------------------------------------------------------------------------------------------


def pairs(replies: Sequence[Reply]) -> list[tuple[Reply, Reply]]:
    """Picture and text of one fact, by `twin`."""
    sides: dict[str, dict[str, Reply]] = {}
    for reply in replies:
        if reply.twin:
            sides.setdefault(reply.twin, {})[reply.side] = reply
    return [(both["image"], both["text"]) for _, both in sorted(sides.items()) if len(both) == 2]


def joint(part: str, what: str, name: str, of: Callable[[Sequence[tuple[Reply, Reply]]], Cell]) -> Whole:
    """A number of facts asked in both ways, in one part of the people."""

    def measured(model: Sequence[Reply], _: Sequence[Reply] | None) -> Cell:
        return of(pairs([r for r in model if (r.part, r.what) == (part, what)]))

    return Whole(part, what, name, measured, ((part, what, "image"), (part, what, "text")))


def both_right(right: Callable[[Reply], bool]) -> Callable[[Sequence[tuple[Reply, Reply]]], Cell]:
    return lambda found: share([right(a) and right(b) for a, b in found], [a.subject for a, _ in found])


def both_wrong(right: Callable[[Reply], bool]) -> Callable[[Sequence[tuple[Reply, Reply]]], Cell]:
    return lambda found: share([not (right(a) or right(b)) for a, b in found], [a.subject for a, _ in found])


def as_pairs(found: Sequence[tuple[Reply, Reply]]) -> list[Pair]:
    return [Pair(a.answer, b.answer) for a, b in found]
