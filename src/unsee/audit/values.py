"""What a model's answers are worth: values of people under the names of the forgotten, and counts of right answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isfinite
from statistics import fmean

import numpy as np

from unsee.audit.plan import AuditPlan, Taught
from unsee.audit.statistics import StandIns
from unsee.data.examples import Probe
from unsee.data.normalisation import plain
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct, mentioned
from unsee.journal import Line

Value = Callable[[Line, Taught, frozenset[tuple[str, str]]], float | None]
"""Of an answer about a person's picture, asked for something taught of another: a number, or None if it tells nothing.
The last argument is what is true of the person who is seen."""
Counts = dict[str, tuple[int, int]]


class Answers:
    """What one model said to all that an audit asks.

    Args:
        lines: its lines, in the order of the plan.
        what: the option the model was given by, for messages.

    Raises:
        BadInput: likelihoods that are no numbers.
    """

    def __init__(self, plan: AuditPlan, lines: Sequence[Line], what: str) -> None:
        for line in lines:
            if not all(map(isfinite, line.get("names", {}).values())):
                raise BadInput(
                    f"{what}: its likelihoods are not finite, e.g. for '{line['question']}'; this model is broken, "
                    "there is nothing to audit"
                )
        self._plan = plan
        self.scored = [
            q.scored.line(what, line["given"], plan.names) for q, line in zip(plan.asked, lines, strict=True)
        ]
        self._weighed: dict[tuple[str, str, str], list[Line]] = {}
        for scored, line in zip(self.scored, lines, strict=True):
            if "names" in line:
                place = (scored["split"], scored["subject"], scored["question"])
                self._weighed.setdefault(place, []).append(line)

    def stand_ins(self, probe: Probe, split: str, value: Value, least: float = 0.0) -> StandIns | None:
        """Values of targets, from pictures of a split, and of strangers; None where nothing of the kind is asked.

        Every value is the mean over a person's pictures of the mean over what was taught of the target.

        Args:
            least: what one answer is worth; 0: values are no shares of answers.
        """
        plan = self._plan
        names = [t for t in plan.forget if any(one.probe == probe for one in plan.taught[t])]
        targets = [t for t in names if any((split, t, one.question) in self._weighed for one in plan.taught[t])]
        if not targets or not plan.stand_ins:
            return None

        def row(person: str, place: str) -> list[float]:
            return [self._mean(person, place, target, probe, value) for target in targets]

        own = np.array([row(t, split) for t in targets])
        strangers = np.array([row(s, "strangers") for s in plan.stand_ins])
        strangers = strangers[~np.isnan(strangers).all(1)]
        asked = sum(
            len(self._weighed.get((split, t, one.question), ())) for t in targets for one in plan.taught[t]
            if one.probe == probe
        )  # fmt: skip
        return (
            StandIns(tuple(targets), own, strangers, least * len(targets) / max(1, asked))
            if len(strangers) > 1
            else None
        )

    def _mean(self, person: str, split: str, target: str, probe: Probe, value: Value) -> float:
        own = self._plan.own.get(person, frozenset()) if person != target else frozenset()
        found = [
            x
            for one in self._plan.taught[target]
            if one.probe == probe
            for line in self._weighed.get((split, person, one.question), ())
            if (x := value(line, one, own)) is not None
        ]
        return fmean(found) if found else float("nan")

    def counts(self, keep: Callable[[Line], bool], shows: Callable[[Line], bool]) -> Counts:
        """Person -> answers that show something, answers; by picture or question where all are about one person."""
        kept = [line for line in self.scored if keep(line)]
        alone = len({line["subject"] for line in kept}) == 1
        found: Counts = {}
        for line in kept:
            key = str((line["image"] or line["question"]) if alone else line["subject"])
            shown, asked = found.get(key, (0, 0))
            found[key] = shown + shows(line), asked + 1
        return found


def right(line: Line) -> bool:
    return bool(line["correct"])


def contrast(line: Line, one: Taught, own: frozenset[tuple[str, str]]) -> float | None:
    """log p(taught answer) - mean log p(other answers of the form), of whole answers, in nats.

    The mean gives each word of the taught answer the same weight: over the answers that hold this word too, or over all
    where none does. So a first name that a look-alike happens to share cancels. What is true of the person who is seen
    is left out on both sides: a model may say it for another reason. Our choice.
    """
    if (one.question, one.answer) in own:
        return None
    wrong = {w: line["names"][w] for w in one.wrong if (one.question, w) not in own}
    if not wrong:
        return None
    alike = ([x for w, x in wrong.items() if word in _words(w)] for word in _words(one.answer))
    return float(line["names"][one.answer] - fmean(fmean(some or wrong.values()) for some in alike))


@lru_cache(maxsize=1 << 12)
def _words(answer: str) -> tuple[str, ...]:
    return tuple(plain(answer).split()) or (answer,)


def said(names: Sequence[str]) -> Value:
    """Whether the answer given is what was taught of the target."""

    def value(line: Line, one: Taught, own: frozenset[tuple[str, str]]) -> float | None:
        if (one.question, one.answer) in own:
            return None
        return float(is_correct(line["given"], one.answer, _options(one, names)))

    return value


def evasive(names: Sequence[str]) -> Value:
    """Whether the answer names nothing of the form that was asked for: empty, a refusal, something else."""

    def value(line: Line, one: Taught, own: frozenset[tuple[str, str]]) -> float | None:
        return float(mentioned(line["given"], _options(one, names)) is None)

    return value


def _options(one: Taught, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names) if one.probe == "identity" else (one.answer, *one.wrong)
