"""Scores put into plain words: what was forgotten, what was kept, what may be claimed.

One rule everywhere: two 95% intervals that overlap are called level. It is coarse and errs towards "no difference
visible", so it never proves equality; the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unsee.reporting.cells import UNSCORED, Cell, Relation
from unsee.reporting.read import SPLITS, Role, Run

Tone = Literal["good", "bad", "unsure"]
SIGNS: dict[Relation, str] = {"above": "▲", "below": "▼", "level": "=", "unknown": "?"}
KEPT: dict[tuple[str, ...], str] = {
    ("retain", "test"): "retain set on unseen pictures",
    ("attributes", "forget"): "visible attributes of the forget set",
    ("attributes", "retain"): "visible attributes of the retain set",
    ("attributes", "strangers"): "visible attributes of strangers",
    ("text", "forget"): "text facts of the forget set",
    ("text", "retain"): "text facts of the retain set",
}
HEALTH: dict[tuple[str, ...], str] = {
    ("health", "empty"): "empty answers",
    ("health", "repeated"): "repeating answers",
    ("health", "off_list"): "answers off the list",
}


@dataclass(frozen=True)
class Comparison:
    label: str
    cell: Cell
    reference: Cell
    relation: Relation

    @property
    def sign(self) -> str:
        return SIGNS[self.relation]


@dataclass(frozen=True)
class Finding:
    """One card of the verdict strip; `lines` compare with the role named `against`; empty: there is none."""

    topic: str
    title: str
    tone: Tone
    big: str
    small: str
    sentence: str
    against: str
    lines: tuple[Comparison, ...]


def verdict(run: Run, role: Role) -> tuple[Finding, Finding, Finding]:
    """What may be said of one unlearned model: forgetting, keeping, side effects."""
    vanilla, gold = run.role("vanilla"), run.role("gold")
    return _forgetting(role, vanilla, gold), _keeping(role, vanilla), _side_effects(run, role, vanilla, gold)


def _cell(role: Role | None, *path: str) -> Cell:
    return Cell() if role is None else role.cell(*path)


def _compare(role: Role, other: Role | None, named: Mapping[tuple[str, ...], str]) -> tuple[Comparison, ...]:
    """One line per score this role has."""
    return tuple(
        Comparison(label, role.cell(*path), _cell(other, *path), role.cell(*path).against(_cell(other, *path)))
        for path, label in named.items()
        if role.cell(*path).value is not None
    )


def _forgetting(role: Role, vanilla: Role | None, gold: Role | None) -> Finding:
    test, before, reference = (_cell(r, "forget", "test") for r in (role, vanilla, gold))
    lines = _compare(role, gold, {("forget", split): split for split in SPLITS})

    def finding(title: str, tone: Tone, sentence: str) -> Finding:
        small = "forget set, unseen pictures, before → after" + (f"; gold {reference.words}" if gold else "")
        big = f"{before.percent} → {test.percent}"
        return Finding("Forgetting", title, tone, big, small, sentence, gold.name if gold else "", lines)

    if test.value is None:
        return finding("Not measured", "unsure", "No answer about unseen pictures of the forget set was scored.")
    if gold is None:
        return finding(
            "No reference",
            "unsure",
            "There is no gold model, so forgetting cannot be judged against retraining: the numbers show a change, "
            "not whether it is the right one.",
        )
    relations = {line.label: line.relation for line in lines}
    if test.against(before) in ("level", "above") and test.against(reference) == "above":
        return finding("Not forgotten", "bad", "No drop from vanilla beyond the intervals, while gold lies lower.")
    for relation, sentence in (
        ("above", "The pictures are still recognised more often than by gold, the model retrained without them: "
                  "forgetting is not complete."),
        ("below", "Below gold is over-forgetting, not success: a model that never saw these pictures would still "
                  "guess right more often."),
    ):  # fmt: skip
        where = [split for split, found in relations.items() if found == relation]
        if where:
            return finding(f"{relation.capitalize()} gold on {_listed(where)}", "bad", sentence)
    if "unknown" in relations.values():
        return finding("No interval", "unsure", "An interval is missing here or in gold: read the values with care.")
    if test.against(before) in ("level", "above"):
        return finding("Inconclusive", "unsure", "The intervals overlap with gold’s and with vanilla’s alike.")
    return finding(
        "Level with gold",
        "good",
        "The intervals overlap: on these pictures the model cannot be told from gold, which was retrained without "
        "them. Below gold would be over-forgetting, not success.",
    )


def _keeping(role: Role, vanilla: Role | None) -> Finding:
    lines = _compare(role, vanilla, KEPT)
    before, after = _cell(vanilla, "retain", "test"), role.cell("retain", "test")
    lost = [line.label for line in lines if line.relation == "below"]
    unknown = [line.label for line in lines if line.relation == "unknown"]
    title: str
    tone: Tone
    if not lines or vanilla is None:
        title, tone, sentence = "Not measured", "unsure", "No vanilla model or no score to compare with."
    elif lost:
        title, tone = f"Below vanilla in {len(lost)} of {len(lines)}", "bad"
        sentence = f"Lower than vanilla beyond the intervals: {_listed(lost)}."
    elif unknown:
        title, tone, sentence = "No interval", "unsure", f"Without an interval: {_listed(unknown)}."
    else:
        title, tone = "Kept", "good"
        sentence = "No drop from vanilla beyond the intervals in anything measured."
    big = f"{before.percent} → {after.percent}"
    small, against = "retain set, unseen pictures, before → after", vanilla.name if vanilla else ""
    return Finding("Keeping the rest", title, tone, big, small, sentence, against, lines)


def _side_effects(run: Run, role: Role, vanilla: Role | None, gold: Role | None) -> Finding:
    wrong, reference = role.cell("misattribution", "forget"), _cell(gold, "misattribution", "forget")
    lines = _compare(role, vanilla, HEALTH)
    worse = [line.label for line in lines if line.relation == "above"]
    relation = wrong.against(reference)
    title: str
    tone: Tone
    if worse:
        title, tone = "Answers degraded", "bad"
    elif relation == "above":
        title, tone = "A wrong name stands out", "bad"
    elif not lines or any(line.relation == "unknown" for line in lines) or relation == "unknown":
        title, tone = "Not judged in full", "unsure"  # the numbers stand; no rule can be applied to them
    else:
        title, tone = "No worse than gold and vanilla", "good"
    sentence = misattribution(run, role)
    if reference.value is not None:
        sentence += f" For gold the largest such share is {reference.words}."
    if worse:
        sentence += f" More than vanilla: {_listed(worse)}."
    small = "largest share of one target’s pictures under one wrong name"
    return Finding("Side effects", title, tone, wrong.percent, small, sentence, vanilla.name if vanilla else "", lines)


def misattribution(run: Run, role: Role) -> str:
    """The most repeated wrong name in a sentence."""
    wrong = role.cell("misattribution", "forget")
    if wrong.value is None or role.subject is None:
        return "Repeated wrong names were not measured." if wrong.value is None else "No wrong name was repeated."
    named = role.named or UNSCORED
    return f"{run.display(role.subject)} is called “{run.display(named)}” on {wrong.words} of the test pictures."


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


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
        "Equality with gold. Overlapping intervals mean that no difference is visible at this sample size.",
        "A legal statement. Whether a duty is fulfilled is not for a measurement to say.",
    ]
    if run.relearned:
        claimed.append("A relearning attack was run; relearn.json beside this report holds what it brought back.")
    else:
        refused.insert(2, "Robustness against relearning. No relearning attack was run; see the command unsee relearn.")
    if run.role("gold") is None:
        refused.insert(0, "That forgetting equals retraining. There is no gold model, so there is no reference.")
    return claimed, refused
