"""What a protocol is: what it asks, how an answer is read, which numbers it gives, and what each is wanted to do.

Also its table: rows are cells and their numbers, columns are models. All are pure functions of replies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem
from unsee.data.examples import Example, ImageSource
from unsee.evaluation.intervals import Cell, nothing
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


# The table ------------------------------------------------------------------------------------------------------------

VANILLA, GOLD = "vanilla", "gold"
CellKey = tuple[str, str, Side]  # part, what, side


@dataclass(frozen=True)
class ProtocolRow:
    """One number for every model.

    Attributes:
        part, what, side: the cell of the protocol; side is `both` for numbers of several.
        name: of the number.
        wanted: what unlearning is to do to it under the goal.
        chance: what somebody scores who does not know the person; None where no such level is defined.
        measurable: whether vanilla is at least `MARGIN` above chance, so that there was something to forget; None
            without a vanilla model, or where no level is defined.
        cells: role -> value with interval.
    """

    part: str
    what: str
    side: Side
    name: str
    wanted: Wanted
    chance: float | None
    measurable: bool | None
    cells: Mapping[str, Cell]


def table(
    protocol: Protocol, mode: Mode, goal: Goal, replies: Mapping[str, Sequence[ProtocolReply]]
) -> list[ProtocolRow]:
    """All rows of one mode.

    Args:
        replies: role -> all its answers, in any order; the role `vanilla` says what can be measured, `gold` is what
            models are read against.
    """
    everything = [reply for found in replies.values() for reply in found]
    places = {(r.part, r.what, r.side): None for r in everything}
    parts, whats = list(PARTS), [what for scored_mode, what in protocol.scored if scored_mode == mode]

    def order(place: tuple[str, str, str]) -> tuple[int, int, int]:
        return parts.index(place[0]), whats.index(place[1]), list(SIDES).index(place[2])  # type: ignore[arg-type]

    known: dict[CellKey, bool | None] = {}
    rows: list[ProtocolRow] = []
    for part, what, side in sorted(places, key=order):
        here = {
            role: [r for r in found if (r.part, r.what, r.side) == (part, what, side)]
            for role, found in replies.items()
        }
        at: CellKey = (part, what, side)  # type: ignore[assignment]
        for scored in protocol.scored[mode, what]:
            level = chance(scored, here.get(VANILLA, ()), [r for r in everything if (r.what, r.side) == (what, side)])
            cells = {role: scored.of(found) if found else nothing() for role, found in here.items()}
            ready = _measurable(cells.get(VANILLA), level)
            known.setdefault(at, ready)  # the first number of a cell speaks for it in joint numbers
            rows.append(ProtocolRow(part, what, at[2], scored.name, wanted(part, at[2], goal), level, ready, cells))
    for whole in protocol.wholes.get(mode, ()):
        cells = {role: whole.of(found, replies.get(GOLD)) for role, found in replies.items()}
        states = [known.get(place) for place in whole.rests_on]
        ready = None if not states or None in states else all(states)
        aim = wanted(whole.part, "both", goal) if whole.rests_on else wanted(whole.part, "image", goal)
        rows.append(ProtocolRow(whole.part, whole.what, "both", whole.name, aim, None, ready, cells))
    return rows


def chance(scored: Scored, replies: Sequence[ProtocolReply], others: Sequence[ProtocolReply]) -> float | None:
    """What somebody scores who does not know the people of a cell, on the same questions.

    Of an overlap with the true answer: the score of the true answer about *somebody else* to the same question, the
    next person in alphabetical order. It has the right form and the wrong facts. Our definition: nobody publishes one.

    Args:
        replies: of vanilla in this cell; without them no level is known.
        others: of the same kind of question about everybody.
    """
    if not replies or scored.chance == "ungated":
        return None
    if scored.chance == "nothing":
        return 0.0
    if scored.chance == "options":
        return sum(1 / (len(r.options) or 1 + len(r.wrong)) for r in replies) / len(replies)
    said = _answers(others)
    return scored.of([replace(r, given=_about_another(r, said)) for r in replies])["value"]


def _answers(replies: Sequence[ProtocolReply]) -> dict[str, list[tuple[str, str]]]:
    """Which question ("": any) -> whom it is about and the true answer, in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for who, key, right in sorted({(r.subject, r.key, r.right) for r in replies}):
        for place in {key, ""}:
            found.setdefault(place, []).append((who, right))
    return found


def _about_another(reply: ProtocolReply, said: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The true answer about the next person, to the same question if somebody else has it; empty if nobody else is."""
    for key in (reply.key, ""):
        ring = said.get(key, ())
        start = bisect_right(ring, (reply.subject, "\U0010ffff"))
        who, right = ring[start % len(ring)] if ring else ("", "")
        if who and who != reply.subject:
            return right
    return ""


def _measurable(cell: Cell | None, level: float | None) -> bool | None:
    if cell is None or cell["value"] is None or level is None:
        return None
    return cell["value"] >= level + MARGIN
