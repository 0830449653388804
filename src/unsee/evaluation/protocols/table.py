"""The table of a protocol: rows are cells and their numbers, columns are models. Pure functions of replies."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unsee.evaluation.intervals import Cell, nothing
from unsee.evaluation.protocols.base import (
    MARGIN,
    PARTS,
    SIDES,
    Goal,
    Protocol,
    ProtocolReply,
    Scored,
    Side,
    Wanted,
    wanted,
)
from unsee.evaluation.protocols.wording import Mode

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
