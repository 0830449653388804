"""Put the page together and write it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from unsee.durable import replace_text
from unsee.errors import BadInput
from unsee.evaluation.metrics import LEADING
from unsee.reporting.certificate import percent
from unsee.reporting.figures import colours, draw
from unsee.reporting.parts import UNSCORED, Drawing, Score, duration, memory, templates
from unsee.reporting.read import SPLITS, EvaluatedRun, read_run
from unsee.reporting.verdict import claims, misattribution, overall, verdict

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
