"""The verdict put into plain words: what was forgotten, what was kept, what may be claimed.

Nothing is judged here. The rule is that of `evaluation.verdict`, the same as of `unsee verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unsee.evaluation.verdict import Word
from unsee.reporting.cells import UNSCORED, Cell
from unsee.reporting.read import Role, Run

Tone = Literal["good", "bad", "unsure"]
TONES: dict[Word, Tone] = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "unsure"}
UNDECIDED = "Cannot be decided"
WORDS: dict[Word, str] = {"PASS": "Passed", "FAIL": "Failed", "INCONCLUSIVE": UNDECIDED}


@dataclass(frozen=True)
class Line:
    """One comparison of a criterion; `against` is the value that it was compared with."""

    label: str
    value: str
    against: str
    finding: str
    tone: Tone


@dataclass(frozen=True)
class Finding:
    """One card of the verdict strip; `against` says what lines are compared with, nothing if it is not there."""

    topic: str
    title: str
    tone: Tone
    big: str
    small: str
    sentence: str
    against: str
    lines: tuple[Line, ...]


def overall(role: Role) -> tuple[str, Tone]:
    """The verdict on one unlearned model in a word."""
    word: Word = role.verdict["verdict"]
    return WORDS[word], TONES[word]


def verdict(run: Run, role: Role) -> tuple[Finding, Finding, Finding]:
    """What may be said of one unlearned model: forgetting, keeping, side effects."""
    vanilla, gold = run.role("vanilla"), run.role("gold")
    forgetting, keeping, health = role.verdict["criteria"]
    before, after = (_cell(r, "forget", "test").percent for r in (vanilla, role))
    retained = [_cell(r, "retain", "test").percent for r in (vanilla, role)]
    reference = _cell(gold, "misattribution", "forget")
    named = misattribution(run, role)
    if reference.value is not None:
        named += f" For gold the largest such share is {reference.words}."
    return (
        _finding(
            "Forgetting",
            forgetting,
            {"PASS": "Like gold", "FAIL": _unlike(forgetting["lines"])},
            f"{before} → {after}",
            "forget set, unseen pictures, before → after"
            + (f"; gold {_cell(gold, 'forget', 'test').words}" if gold else ""),
            forgetting["sentence"],
            "gold" if gold else "",
        ),
        _finding(
            "Keeping the rest",
            keeping,
            {"PASS": "Kept", "FAIL": "Clear losses"},
            " → ".join(retained),
            "retain set, unseen pictures, before → after",
            keeping["sentence"],
            "vanilla" if vanilla else "",
        ),
        _finding(
            "Side effects",
            health,
            {"PASS": "No worse than gold and vanilla", "FAIL": "Answers degraded"},
            role.cell("misattribution", "forget").percent,
            "largest share of one target’s pictures under one wrong name",
            f"{named} {health['sentence']}",
            "most",
        ),
    )


def _finding(
    topic: str, found: Mapping[str, Any], titles: Mapping[Word, str], big: str, small: str, sentence: str, against: str
) -> Finding:
    word: Word = found["verdict"]
    lines = tuple(
        Line(
            line["of"].replace("-", " ").replace("_", " "),
            Cell(line["value"]).percent,
            Cell(line.get(against)).percent,
            line["finding"],
            TONES[line["verdict"]],
        )
        for line in found["lines"]
    )
    heads = {"most": "others, at most"}
    title = titles.get(word, UNDECIDED)
    return Finding(topic, title, TONES[word], big, small, sentence, heads.get(against, against), lines)


def _unlike(lines: Sequence[Mapping[str, Any]]) -> str:
    """On which side of gold a model that is not like it lies."""
    sides = {line["position"] > 0 for line in lines if line["verdict"] == "FAIL" and line["position"] is not None}
    return "Not forgotten" if sides == {True} else "Over-forgotten" if sides == {False} else "Not like gold"


def _cell(role: Role | None, *path: str) -> Cell:
    return Cell() if role is None else role.cell(*path)


def misattribution(run: Run, role: Role) -> str:
    """The most repeated wrong name in a sentence."""
    wrong = role.cell("misattribution", "forget")
    if wrong.value is None or role.subject is None:
        return "Repeated wrong names were not measured." if wrong.value is None else "No wrong name was repeated."
    named = role.named or UNSCORED
    return f"{run.display(role.subject)} is called “{run.display(named)}” on {wrong.words} of the test pictures."


def claims(run: Run) -> tuple[list[str], list[str]]:
    """(claimed, not claimed), as sentences."""
    claimed = [
        "The answers counted here were given by these models, identified by the hashes below, to these questions "
        "about these pictures. Scores and intervals follow from the recorded answers."
    ]
    for role in run.unlearned:
        if role.tensors and role.tensors.get("language_changed") == 0:
            claimed.append(
                f"{role.name}: all {role.tensors.get('language_tensors')} tensors of the language model are bit for "
                f"bit those of vanilla; {role.tensors.get('changed')} tensors of the visual module differ."
            )
    refused = [
        "Removal from the language model’s text knowledge. Names and facts asked in text are kept on purpose.",
        "That the information is gone from the weights. What is shown is that these questions no longer bring it out.",
        "Robustness against other attacks: quantisation and pruning, membership inference, linear probes, altered or "
        "adversarial pictures, rephrased prompts, putting original parts back.",
        "Pictures of a kind that is not in this data.",
        "Equality with gold. A model that passes lies where another gold model might, by these measures.",
        "A legal statement. Whether a duty is fulfilled is not for a measurement to say.",
    ]
    if run.relearned:
        claimed.append("A relearning attack was run; relearn.json beside this report holds what it brought back.")
    else:
        refused.insert(2, "Robustness against relearning. No relearning attack was run; see unsee attack relearn.")
    if run.role("gold") is None:
        refused.insert(0, "That forgetting equals retraining. There is no gold model, so there is no reference.")
    return claimed, refused
