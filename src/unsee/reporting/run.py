"""The page of one run: the verdict in plain words, scores, figures, and where everything comes from.

Nothing is judged here. The rule is that of `evaluation.verdict`, the same as of `unsee verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from unsee.errors import BadInput
from unsee.evaluation.metrics import LEADING
from unsee.evaluation.verdict import Word
from unsee.reporting.certificate import percent
from unsee.reporting.figures import colours, draw
from unsee.reporting.parts import UNSCORED, Drawing, Score, duration, memory, templates
from unsee.reporting.read import SPLITS, EvaluatedRun, Role, read_run
from unsee.storage import replace_text

Rows = tuple[tuple[str, tuple[str, ...]], ...]  # ((label, path into a role's scores), ...)
Group = tuple[str, str, list[tuple[str, list[Score]]]]  # group of rows, what is good, (label, a cell per role)


def _by_split(*path: str) -> Rows:
    return tuple((split, (*path, split)) for split in SPLITS)


# (group of rows, what is good, its rows)
TABLE: tuple[tuple[str, str, Rows], ...] = (
    ("Forget set, from pictures", "near gold", _by_split("forget")),
    ("Retain set, from pictures", "high", _by_split("retain")),
    (
        "Visible attributes, test pictures",
        "high",
        tuple((part, ("attributes", part)) for part in ("forget", "retain", "strangers")),
    ),
    ("Bystanders: quite other pictures, which no edit was given", "high", (("test", ("bystanders", "test")),)),
    ("Facts in text, no picture", "high", tuple((part, ("text", part)) for part in ("forget", "retain"))),
    ("Same wrong name, largest share", "near gold", (("forget", ("misattribution", "forget")),)),
    (
        "Output health",
        "low",
        (("empty", ("health", "empty")), ("repeated", ("health", "repeated")), ("off list", ("health", "off_list"))),
    ),
)
APART: tuple[tuple[str, str, Rows], ...] = (
    ("Names, forget set", "near gold", _by_split("names", "forget")),
    ("Facts, forget set", "near gold", _by_split("facts", "forget")),
    ("Names, retain set", "high", _by_split("names", "retain")),
    ("Facts, retain set", "high", _by_split("facts", "retain")),
)
PROVENANCE = ("command", "created", "data", "versions", "machine", "commit", "dirty", "seed")  # may all be absent
GROUPS = ("bars", "features", "history", "relearning", "certificate")  # sections that hold figures
ELSEWHERE = ("history", "certificate")  # parts of a manifest that have a section of their own
NAMED_MOST = 3  # subjects in the heading


def write_report(directory: Path) -> Path:
    """Write `report.html` and `figures/*.svg` into a run directory; returns the page's path.

    The page holds everything it shows and loads nothing. The same files give the same bytes.

    Raises:
        BadInput: a file is missing or broken, or the directory cannot be written to; no report is written.
    """
    directory = Path(directory)
    run = read_run(directory)
    drawings = draw(run)
    page = render(run, drawings)
    try:
        (directory / "figures").mkdir(exist_ok=True)
        for drawing in drawings:
            replace_text(directory / "figures" / f"{drawing.name}.svg", drawing.svg)
        return replace_text(directory / "report.html", page)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be written ({error.strerror}); check permissions and space"
        ) from error


def render(run: EvaluatedRun, drawings: tuple[Drawing, ...]) -> str:
    """The page as text."""
    environment = templates()
    environment.filters |= {"duration": duration, "memory": memory, "date": _date, "scalar": _scalar, "change": percent}
    claimed, refused = claims(run)
    return environment.get_template("template.html.j2").render(
        run=run,
        provenance=dict.fromkeys((*PROVENANCE, "warnings")) | dict(run.provenance),
        origin={r.name: {k: v for k, v in r.manifest.items() if k not in ELSEWHERE} for r in run.roles},
        heading=_heading(run),
        verdicts=[(role, overall(role), verdict(run, role)) for role in run.unlearned],
        certified=[(role, role.certificate) for role in run.unlearned if role.certificate],
        table=[*_leading(run), *_filled(run, TABLE)],
        apart=_filled(run, APART),
        figures={group: [d for d in drawings if d.group == group] for group in GROUPS},
        markup={drawing.name: Markup(drawing.inline) for drawing in drawings},
        colour=colours(run),
        misattribution={role.name: misattribution(run, role) for role in run.roles},
        claimed=claimed,
        refused=refused,
        unscored=UNSCORED,
    )


def _heading(run: EvaluatedRun) -> list[tuple[str, bool]]:
    """Who was to be forgotten, as pieces of text: (piece, whether it is a name)."""
    names = [run.display(str(subject)) for subject in run.provenance["forget"]]
    shown = names if len(names) <= NAMED_MOST else names[: NAMED_MOST - 1]
    pieces = [piece for name in shown for piece in ((name, True), (", ", False))][:-1]
    if len(shown) < len(names):
        return [*pieces, (f" and {len(names) - len(shown)} others", False)]
    if len(pieces) > 1:
        pieces[-2] = (" and ", False)
    return pieces or [(UNSCORED, False)]


def _leading(run: EvaluatedRun) -> list[Group]:
    """The measures that tell best whether a model knows, see docs/verdict.md; nothing if none were taken."""
    if not run.measured:
        return []
    cells = {name: [role.leading.get(name, Score()) for role in run.roles] for name in LEADING}
    return [("Forget set, what tells best", "near gold", [(n.replace("-", " "), row) for n, row in cells.items()])]


def _filled(run: EvaluatedRun, groups: tuple[tuple[str, str, Rows], ...]) -> list[Group]:
    """The rows of a table with one cell per role."""
    return [
        (group, aim, [(label, [role.cell(*path) for role in run.roles]) for label, path in rows])
        for group, aim, rows in groups
    ]


def _date(raw: object) -> str:
    """An ISO time for people; anything else as it is."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(str(raw).replace("Z", "+00:00"))
        return f"{moment.day} {moment:%B %Y, %H:%M} {moment:%Z}".strip()
    return str(raw or UNSCORED)


def _scalar(value: object) -> str:
    """A setting as text: lists of plain values in one line, an absent value as a dash."""
    if isinstance(value, list) and not any(isinstance(inner, Mapping | list) for inner in value):
        return ", ".join(map(_scalar, value)) or UNSCORED
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNSCORED if value in (None, "", {}) else str(value)


# What was forgotten, what was kept, what may be claimed ---------------------------------------------------------------

Tone = Literal["good", "bad", "unsure"]
TONES: dict[Word, Tone] = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "unsure"}
UNDECIDED = "Cannot be decided"
FORGETTING, KEEPING, SIDE_EFFECTS = "Forgetting", "Keeping the rest", "Side effects"
PASSED = {FORGETTING: "Like gold", KEEPING: "Kept", SIDE_EFFECTS: "No worse than gold and vanilla"}
FAILED = {KEEPING: "Clear losses", SIDE_EFFECTS: "Answers degraded"}  # forgetting: see `_unlike`
WORDS: dict[Word, str] = {"PASS": "Passed", "FAIL": "Failed", "INCONCLUSIVE": UNDECIDED}


@dataclass(frozen=True)
class VerdictLine:
    """One comparison of a criterion; `against` is the value that it was compared with."""

    label: str
    value: str
    against: str
    finding: str
    tone: Tone


@dataclass(frozen=True)
class VerdictCard:
    """One card of the verdict strip; `against` says what lines are compared with, nothing if it is not there."""

    topic: str
    title: str
    tone: Tone
    big: str
    small: str
    sentence: str
    against: str
    lines: tuple[VerdictLine, ...]


def overall(role: Role) -> tuple[str, Tone]:
    """The verdict on one unlearned model in a word."""
    word: Word = role.verdict["verdict"]
    return WORDS[word], TONES[word]


def verdict(run: EvaluatedRun, role: Role) -> tuple[VerdictCard, VerdictCard, VerdictCard]:
    """What may be said of one unlearned model: forgetting, keeping, side effects."""
    vanilla, gold = run.role("vanilla"), run.role("gold")
    forgetting, keeping, health = role.verdict["criteria"]
    before, after = (_cell(r, "forget", "test").percent for r in (vanilla, role))
    retained = [_cell(r, "retain", "test").percent for r in (vanilla, role)]
    reference = _cell(gold, "misattribution", "forget")
    named = misattribution(run, role)
    if reference.value is not None:
        named += f" For gold the largest such share is {reference.words}."
    of_gold = f"; gold {_cell(gold, 'forget', 'test').words}" if gold else ""
    left = f"{before} → {after}", f"forget set, unseen pictures, before → after{of_gold}"
    kept = " → ".join(retained), "retain set, unseen pictures, before → after"
    wrong = role.cell("misattribution", "forget").percent
    repeated = wrong, "largest share of one target’s pictures under one wrong name"
    return (
        _card(FORGETTING, forgetting, left, forgetting["sentence"], "gold" if gold else ""),
        _card(KEEPING, keeping, kept, keeping["sentence"], "vanilla" if vanilla else ""),
        _card(SIDE_EFFECTS, health, repeated, f"{named} {health['sentence']}", "most"),
    )


def _card(topic: str, found: Mapping[str, Any], shown: tuple[str, str], sentence: str, against: str) -> VerdictCard:
    """One criterion; `shown`: what is printed large, and what that is."""
    word: Word = found["verdict"]
    lines = tuple(
        VerdictLine(
            line["of"].replace("-", " ").replace("_", " "),
            Score(line["value"]).percent,
            Score(line.get(against)).percent,
            line["finding"],
            TONES[line["verdict"]],
        )
        for line in found["lines"]
    )
    heads = {"most": "others, at most"}
    failed = FAILED.get(topic) or _unlike(found["lines"])
    title = {"PASS": PASSED[topic], "FAIL": failed}.get(word, UNDECIDED)
    return VerdictCard(topic, title, TONES[word], *shown, sentence, heads.get(against, against), lines)


def _unlike(lines: Sequence[Mapping[str, Any]]) -> str:
    """On which side of gold a model that is not like it lies."""
    sides = {line["position"] > 0 for line in lines if line["verdict"] == "FAIL" and line["position"] is not None}
    return "Not forgotten" if sides == {True} else "Over-forgotten" if sides == {False} else "Not like gold"


def _cell(role: Role | None, *path: str) -> Score:
    return Score() if role is None else role.cell(*path)


def misattribution(run: EvaluatedRun, role: Role) -> str:
    """The most repeated wrong name in a sentence."""
    wrong = role.cell("misattribution", "forget")
    if wrong.value is None or role.subject is None:
        return "Repeated wrong names were not measured." if wrong.value is None else "No wrong name was repeated."
    named = role.named or UNSCORED
    return f"{run.display(role.subject)} is called “{run.display(named)}” on {wrong.words} of the test pictures."


def claims(run: EvaluatedRun) -> tuple[list[str], list[str]]:
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
