"""What a protocol is: what it asks, how an answer is read, which numbers it gives, and what each is wanted to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem
from unsee.data.examples import Example, ImageSource
from unsee.evaluation.intervals import Cell
from unsee.evaluation.metrics.records import FreeAnswer
from unsee.evaluation.protocols.wording import Mode, answer_text, options

Goal = Literal["entity", "visual-only"]  # forget the person altogether, or only what the person looks like
GOALS: tuple[Goal, ...] = get_args(Goal)
Side = Literal["image", "text", "both"]
Wanted = Literal["forgotten", "kept", "not judged"]
Chance = Literal["options", "nothing", "stand-in", "ungated"]

PARTS = ("forget", "test", "retain", "celebrity", "world")  # in the order of the table
SIDES: tuple[Side, ...] = get_args(Side)
MARGIN = 0.2  # above chance: what vanilla must know before a number says anything about forgetting


@dataclass(frozen=True)
class ProtocolQuestion:
    """One question as it is put to a model.

    Attributes:
        item: what is asked.
        mode: in whose way.
        text: the user's message, shots included.
        tokens: at most so many new ones.
        view: which of the item's pictures.
        shots: pictures of the shots, shown before that one.
        what: the column of questions it belongs to: its kind, or the protocol's own name for it.
        contrast: whether the likelihoods of true and false answers are taken too.
    """

    item: BenchmarkItem
    mode: Mode
    text: str
    tokens: int
    view: int = 0
    shots: tuple[ImageSource, ...] = ()
    what: str = ""
    contrast: bool = False

    @property
    def side(self) -> Side:
        return "image" if self.item.images else "text"

    @property
    def pictures(self) -> tuple[ImageSource, ...]:
        return (*self.shots, self.item.images[self.view]) if self.item.images else ()

    def example(self, benchmark: str, answer: str | None = None) -> Example:
        """As `models.batching` takes it, with the right reply or with another answer."""
        said = answer_text(benchmark, self.item, self.mode) if answer is None else answer
        first, *rest = self.pictures or (None,)
        others = tuple(image for image in rest if image is not None)
        return Example(self.text, said, self.item.subject, first, "fact", key=self.item.key, others=others)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Answers whose likelihoods are taken: the true one, the true one in other words, the false ones."""
        if not self.contrast:
            return ()
        return (self.item.answer, (self.item.paraphrases or (self.item.answer,))[0], *self.item.wrong)

    def line(self, role: str, prediction: str, likelihoods: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is written down: all that scores need, so they need nothing else."""
        item = self.item
        return {
            "role": role,
            "mode": self.mode,
            "part": item.part,
            "what": self.what or item.kind,
            "side": self.side,
            "subject": item.subject or f"{item.part}/{item.question}",
            "key": item.key,
            "twin": item.twin,
            "question": self.text,
            "answer": item.answer,
            "options": dict(options(item)) if item.kind == "classification" else {},
            "keywords": list(item.keywords),
            "prediction": prediction,
            "likelihoods": likelihoods,
            "image": item.images[self.view].label if item.images else None,
            "shots": [image.label for image in self.shots],
        }


@dataclass(frozen=True)
class ProtocolReply:
    """One answer as scores see it: a record with a subject, see `metrics.base`.

    Attributes:
        part, what, side: its place in the table.
        subject: whom it is about; intervals are clustered by it.
        given, right: what was said, and the true answer.
        options: letter -> text, of a choice.
        log_probs, hits: of the true answer's tokens, as in `records.Recital`; empty where not taken.
        paraphrase, wrong: mean log-likelihood per token of the true answer in other words and of each false one.
    """

    part: str
    what: str
    side: str
    subject: str
    key: str
    twin: str
    given: str
    right: str
    options: tuple[tuple[str, str], ...] = ()
    keywords: tuple[str, ...] = ()
    log_probs: tuple[float, ...] = ()
    hits: tuple[bool, ...] = ()
    paraphrase: float = 0.0
    wrong: tuple[float, ...] = ()
    question: str = ""
    image: str = ""

    @staticmethod
    def of(line: Mapping[str, Any]) -> ProtocolReply:
        """From a line that `ProtocolQuestion.line` wrote."""
        taken = line["likelihoods"] or {}
        return ProtocolReply(
            line["part"],
            line["what"],
            line["side"],
            line["subject"],
            line["key"],
            line["twin"],
            line["prediction"],
            line["answer"],
            tuple(line["options"].items()),
            tuple(line["keywords"]),
            tuple(taken.get("log_probs", ())),
            tuple(taken.get("hits", ())),
            taken.get("paraphrase", 0.0),
            tuple(taken.get("wrong", ())),
            line["question"],
            line["image"] or "",
        )

    @property
    def answer(self) -> FreeAnswer:
        """For measures of free answers."""
        return FreeAnswer(self.subject, self.given, self.right)

    @property
    def letter(self) -> str:
        """The right option's."""
        return next((letter for letter, text in self.options if text == self.right), "")


@dataclass(frozen=True)
class Scored:
    """A number of one cell of the table.

    Attributes:
        name: of the row.
        of: replies of the cell, in any order -> value with interval.
        chance: what somebody scores who does not know the person: `options` (1 / options), `nothing` (0), `stand-in`
            (the same number for the true answers about somebody else), `half` (1 / 2), or `ungated`: no such level,
            so the number is printed whatever vanilla scores.
    """

    name: str
    of: Callable[[Sequence[ProtocolReply]], Cell]
    chance: Chance


@dataclass(frozen=True)
class Whole:
    """A number of several cells, or of a model beside the gold model.

    Attributes:
        part, what, name: of the row; its side is `both`.
        of: all replies of a model, and all of gold (None without a gold model) -> value with interval.
        rests_on: cells (part, what, side) each of which must be measurable.
    """

    part: str
    what: str
    name: str
    of: Callable[[Sequence[ProtocolReply], Sequence[ProtocolReply] | None], Cell]
    rests_on: tuple[tuple[str, str, Side], ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How one benchmark is asked and scored.

    Attributes:
        benchmark: key of `BENCHMARKS`.
        published: the goal its authors score.
        ask: questions of one mode, in a fixed order; the same seed gives the same.
        scored: (mode, what) -> numbers of each cell.
        wholes: mode -> numbers of several cells.
    """

    benchmark: str
    published: Goal
    ask: Callable[[BenchmarkData, Mode, int], tuple[ProtocolQuestion, ...]]
    scored: Mapping[tuple[Mode, str], tuple[Scored, ...]]
    wholes: Mapping[Mode, tuple[Whole, ...]] = field(default_factory=dict)


def wanted(part: str, side: Side, goal: Goal) -> Wanted:
    """What unlearning is to do to the answers of a cell.

    Visual-only forgetting takes the pictures of the people to be forgotten and nothing else: what text says about them
    is to stay, and numbers that want picture and text forgotten together are not judged.
    """
    if part not in ("forget", "test"):
        return "kept"
    if goal == "entity" or side == "image":
        return "forgotten"
    return "kept" if side == "text" else "not judged"
