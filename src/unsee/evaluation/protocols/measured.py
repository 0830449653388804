"""Rows that several protocols share: numbers of one cell, in both modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from unsee.evaluation.answers import is_correct
from unsee.evaluation.intervals import Cell, nothing, share
from unsee.evaluation.metrics import base
from unsee.evaluation.metrics.base import Measure
from unsee.evaluation.metrics.free_answers import bleu, rouge
from unsee.evaluation.metrics.likelihoods import forget_quality, jensen_shannon, ks_distance, probability, truth_above
from unsee.evaluation.metrics.records import Beside, Contrast, Pair, Recital
from unsee.evaluation.protocols.base import ProtocolReply, Scored, Whole
from unsee.evaluation.protocols.published import stemmed_rouge, whitespace_bleu
from unsee.evaluation.protocols.wording import chosen

BothSides = tuple[ProtocolReply, ProtocolReply]  # one fact asked with the picture, and in text
OfBothSides = Callable[[Sequence[BothSides]], Cell]
Read = Callable[[str, Mapping[str, str]], str | None]  # answer, options -> letter


def picked(read: Read) -> Callable[[ProtocolReply], bool]:
    """Whether the option that an answer picks is the right one."""
    return lambda reply: read(reply.given, dict(reply.options)) == reply.letter


def rate(right: Callable[[ProtocolReply], bool]) -> Callable[[Sequence[ProtocolReply]], Cell]:
    """Share of right answers, interval clustered by subject."""
    return lambda replies: share([right(r) for r in replies], [r.subject for r in replies])


def average(value: Callable[[ProtocolReply], float | None]) -> Callable[[Sequence[ProtocolReply]], Cell]:
    """Mean over answers, interval clustered by subject."""
    return lambda replies: base.average(replies, value) if replies else nothing()


def named(reply: ProtocolReply) -> bool:
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


def recital(reply: ProtocolReply) -> Recital:
    return Recital(reply.subject, reply.log_probs, reply.hits)


def contrast(reply: ProtocolReply) -> Contrast:
    return Contrast(reply.subject, reply.paraphrase, reply.wrong)


def taken(replies: Sequence[ProtocolReply]) -> list[ProtocolReply]:
    """Those whose likelihoods were taken, and that have a false answer to compare with."""
    return [reply for reply in replies if reply.log_probs and reply.wrong]


PROBABILITY = Scored("probability", average(lambda r: probability(recital(r)) if r.log_probs else None), "nothing")
TRUTH = Scored("truth ratio", average(lambda r: truth_above(contrast(r)) if r.wrong else None), "nothing")


def beside(model: Sequence[ProtocolReply], gold: Sequence[ProtocolReply] | None) -> list[Beside]:
    """The same questions asked of a model and of gold."""

    def by_question(replies: Sequence[ProtocolReply]) -> dict[tuple[str, ...], ProtocolReply]:
        return {(r.subject, r.key, r.question, r.image, r.right): r for r in taken(replies)}

    theirs = by_question(gold or ())
    return [Beside(contrast(r), contrast(theirs[q])) for q, r in sorted(by_question(model).items()) if q in theirs]


BESIDE_GOLD: dict[str, Measure[Beside]] = {
    "forget quality (KS p-value)": forget_quality,
    "KS distance from gold": ks_distance,
    "JS from gold, per question": jensen_shannon,
}


def beside_gold(what: str) -> tuple[Whole, ...]:
    """How far a model is from gold, on one kind of questions about the forget set."""

    def whole(name: str, measure: Measure[Beside]) -> Whole:
        def of(model: Sequence[ProtocolReply], gold: Sequence[ProtocolReply] | None) -> Cell:
            here = ([r for r in replies or () if (r.part, r.what) == ("forget", what)] for replies in (model, gold))
            return measure(beside(*here))

        return Whole("forget", what, name, of)

    return tuple(whole(name, measure) for name, measure in BESIDE_GOLD.items())


# Picture and text -----------------------------------------------------------------------------------------------------


def pairs(replies: Sequence[ProtocolReply]) -> list[BothSides]:
    """Picture and text of one fact, by `twin`."""
    sides: dict[str, dict[str, ProtocolReply]] = {}
    for reply in replies:
        if reply.twin:
            sides.setdefault(reply.twin, {})[reply.side] = reply
    return [(both["image"], both["text"]) for _, both in sorted(sides.items()) if len(both) == 2]


def joint(part: str, what: str, name: str, of: OfBothSides) -> Whole:
    """A number of facts asked in both ways, in one part of the people."""

    def measured(model: Sequence[ProtocolReply], _: Sequence[ProtocolReply] | None) -> Cell:
        return of(pairs([r for r in model if (r.part, r.what) == (part, what)]))

    return Whole(part, what, name, measured, ((part, what, "image"), (part, what, "text")))


def both_right(right: Callable[[ProtocolReply], bool]) -> OfBothSides:
    return lambda found: share([right(a) and right(b) for a, b in found], [a.subject for a, _ in found])


def both_wrong(right: Callable[[ProtocolReply], bool]) -> OfBothSides:
    return lambda found: share([not (right(a) or right(b)) for a, b in found], [a.subject for a, _ in found])


def as_pairs(found: Sequence[BothSides]) -> list[Pair]:
    return [Pair(a.answer, b.answer) for a, b in found]
