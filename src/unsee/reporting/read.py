"""Read and check the files of a run directory. Nothing here knows how they will look."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unsee.errors import BadInput
from unsee.evaluation.metrics import LEADING
from unsee.evaluation.results import AGAIN, ModelResult, Results, read_measures
from unsee.reporting.certificate import Certificate
from unsee.reporting.certificate import parse as parse_certificate
from unsee.reporting.parts import Score, finite
from unsee.reporting.relearning import Relearned
from unsee.reporting.relearning import parse as parse_relearned

SPLITS = ("train", "validation", "test")
SETS = ("forget", "retain")
PATHS: tuple[tuple[str, ...], ...] = (
    *((part, split) for part in SETS for split in SPLITS),
    *((probe, part, split) for probe in ("names", "facts") for part in SETS for split in SPLITS),
    *(("attributes", part) for part in (*SETS, "strangers")),
    ("bystanders", "test"),
    *(("text", part) for part in SETS),
    ("misattribution", "forget"),
    *(("health", what) for what in ("empty", "repeated", "off_list")),
)
FIRST = ("vanilla", "gold")  # roles in the order of the report
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class Role:
    """One evaluated model: its scores and where it came from.

    Attributes:
        cells: every path of `PATHS` to its score.
        leading: the measures that tell best whether a model knows, on the forget set; empty if none were taken.
        subject: whose pictures share a wrong name most often, None if unscored.
        named: that wrong name.
        certificate: of the drift of retained features; None if the model carries none.
        tensors: how many stored tensors differ from vanilla's, in all and of the language model; empty if unknown.
        manifest: the model's own record: kind, method, settings, hashes, history.
        verdict: what `evaluation.verdict.assess` says of it; empty of gold and vanilla models.
    """

    name: str
    cells: Mapping[tuple[str, ...], Score]
    leading: Mapping[str, Score]
    seconds: float | None
    peak_memory_bytes: float | None
    subject: str | None
    named: str | None
    certificate: Certificate | None
    tensors: Mapping[str, Any]
    manifest: Mapping[str, Any]
    verdict: Mapping[str, Any]

    def cell(self, *path: str) -> Score:
        return self.cells[path]

    @property
    def history(self) -> Mapping[str, list[Mapping[str, Any]]]:
        """Training phase -> its records, one per logged step."""
        found: Mapping[str, list[Mapping[str, Any]]] = self.manifest.get("history") or {}
        return found


@dataclass(frozen=True)
class RoleAnswer:
    text: str
    correct: bool | None


@dataclass(frozen=True)
class PictureQuestion:
    """One question about one picture with the true answer and what each role said."""

    question: str
    truth: str
    answers: dict[str, RoleAnswer]


@dataclass(frozen=True)
class Picture:
    uri: str  # the picture itself as a data URI
    label: str
    subject: str
    part: str  # forget, retain or strangers
    asked: tuple[PictureQuestion, ...]


@dataclass(frozen=True)
class Features:
    """Visual features of the same pictures under each role, in one common plane."""

    places: Mapping[str, list[tuple[float, float]]]
    subjects: list[str]
    parts: list[str]


@dataclass(frozen=True)
class EvaluatedRun:
    """Everything a report shows."""

    roles: tuple[Role, ...]
    provenance: Mapping[str, Any]
    pictures: tuple[Picture, ...]
    features: Features | None
    relearned: bool  # relearn.json lies beside the results
    relearning: Relearned | None = None  # what it holds

    def role(self, name: str) -> Role | None:
        return next((role for role in self.roles if role.name == name), None)

    @property
    def measured(self) -> bool:
        """Whether measures were taken, see `Role.leading`."""
        return any(role.leading for role in self.roles)

    @cached_property
    def unlearned(self) -> tuple[Role, ...]:
        return tuple(role for role in self.roles if role.verdict)

    def display(self, subject: str) -> str:
        """The name of a subject, or the subject itself where it has none."""
        return str((self.provenance.get("names") or {}).get(subject) or subject)


def read_run(directory: Path) -> EvaluatedRun:
    """Read a run directory.

    Raises:
        BadInput: a file is missing or does not hold what it should.
    """
    path = directory / "results.json"
    if not path.is_file():
        raise BadInput(f"{path}: not found; run `unsee evaluate --out {directory}` first")
    results = _json(path, dict)
    file = directory / "measures.json"
    taken = read_measures(file, str(file)).models if file.is_file() else {}
    found = Results.from_json(results, taken, str(path)).judged()
    provenance = found.provenance
    for key in ("names", "data", "versions", "machine", "models", "warnings"):
        _mapping(provenance.get(key), f"{path}: provenance.{key}")
    for role, sentences in (provenance.get("warnings") or {}).items():
        if not isinstance(sentences, list):
            raise BadInput(f"{path}: provenance.warnings.{role}: expected a list of sentences; {AGAIN}")
    manifests = provenance.get("models") or {}
    order = sorted(found.models, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    roles = tuple(_role(name, found.models[name], manifests.get(name), path) for name in order)
    attacks, relearning = directory / "relearn.json", None
    if attacks.is_file():
        hashes = {role.name: role.manifest.get("sha256") or {} for role in roles}
        relearning = parse_relearned(_json(attacks, dict), hashes, str(attacks))
    pictures, features = _pictures(directory, order), _features(directory / "features.json")
    return EvaluatedRun(roles, provenance, pictures, features, attacks.is_file(), relearning)


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({' '.join(str(error).split())}); {AGAIN}") from error
    if not isinstance(content, kind):
        raise BadInput(f"{path}: expected a JSON {'object' if kind is dict else 'list'}; {AGAIN}")
    return content


def _mapping(raw: object, where: str) -> Mapping[str, Any]:
    """An object of a JSON file; an absent one is empty."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise BadInput(f"{where}: expected an object, found {type(raw).__name__}; {AGAIN}")
    return raw


def _role(name: str, one: ModelResult, manifest: object, path: Path) -> Role:
    raw = {**one.scores, **one.about}

    def inside(*keys: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = raw
        for depth, key in enumerate(keys, 1):
            found = _mapping(found.get(key), f"{path}: {'.'.join((name, *keys[:depth]))}")
        return found

    cost, wrong = inside("cost"), inside("misattribution", "forget")
    return Role(
        name,
        {keys: Score.parse(inside(*keys[:-1]).get(keys[-1]), f"{path}: {'.'.join((name, *keys))}") for keys in PATHS},
        _leading(one, f"{path.parent / 'measures.json'}: {name}"),
        _number(cost.get("seconds"), f"{path}: {name}.cost.seconds"),
        _number(cost.get("peak_memory_bytes"), f"{path}: {name}.cost.peak_memory_bytes"),
        wrong.get("subject"),
        wrong.get("named"),
        parse_certificate(inside("certificate"), f"{path}: {name}.certificate"),
        inside("tensors"),
        _manifest(manifest, f"{path}: provenance.models.{name}"),
        one.verdict or {},
    )


def _leading(one: ModelResult, where: str) -> Mapping[str, Score]:
    if not one.measures:
        return {}
    return {m: Score.parse(one.measures.get(m, {}).get("forget"), f"{where}.{m}.forget") for m in LEADING}


def _number(raw: object, where: str) -> float | None:
    return None if raw is None else finite(raw, where, "a number or null")


def _manifest(raw: object, where: str) -> Mapping[str, Any]:
    manifest = _mapping(raw, where)
    _mapping(manifest.get("sha256"), f"{where}.sha256")
    _number(manifest.get("seconds"), f"{where}.seconds")
    for phase, records in _mapping(manifest.get("history"), f"{where}.history").items():
        if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
            raise BadInput(f"{where}.history.{phase}: expected a list of objects, one per logged step; {AGAIN}")
        for record in records:
            _number(record.get("step"), f"{where}.history.{phase}: step")
    return manifest


def _pictures(directory: Path, roles: Iterable[str]) -> tuple[Picture, ...]:
    index = directory / "pictures" / "index.json"
    if not index.is_file():
        return ()
    listed = _json(index, list)
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("file", "label", "subject")):
            raise BadInput(f"{index}: entry {number}: expected file, label, subject and set; {AGAIN}")
    asked = _asked(directory / "predictions", list(roles), {entry["label"] for entry in listed})
    return tuple(
        Picture(
            _data_uri(index, entry["file"]),
            entry["label"],
            entry["subject"],
            str(entry.get("set") or ""),
            tuple(asked.get(entry["label"], {}).values()),
        )
        for entry in listed
    )


def _data_uri(index: Path, name: str) -> str:
    path = index.parent / name
    kind = KINDS.get(path.suffix.lower())
    if Path(name).name != name or kind is None:
        raise BadInput(f"{index}: '{name}': expected the plain name of a {', '.join(KINDS)} file beside it; {AGAIN}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: named in {index.name} but cannot be read ({error.strerror}); {AGAIN}") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _asked(folder: Path, roles: list[str], labels: set[str]) -> dict[str, dict[tuple[str, str], PictureQuestion]]:
    """Picture label -> (key, question) -> what was asked and answered, for the pictures wanted only."""
    found: dict[str, dict[tuple[str, str], PictureQuestion]] = {}
    for role in roles:
        for row in _rows(folder / f"{role}.jsonl"):
            if row.get("image") in labels:
                question = str(row["question"])
                entry = found.setdefault(row["image"], {}).setdefault(
                    (str(row.get("key")), question), PictureQuestion(question, str(row["answer"]), {})
                )
                correct = row.get("correct")
                entry.answers[role] = RoleAnswer(
                    str(row["prediction"]).strip(), None if correct is None else bool(correct)
                )
    return found


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise BadInput(f"{path}: not found, though results.json holds this model; {AGAIN}")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise BadInput(f"{path}: row {number}: not JSON ({reason}); {AGAIN}") from error
            if not isinstance(row, dict) or not {"question", "answer", "prediction"} <= row.keys():
                raise BadInput(f"{path}: row {number}: expected question, answer and prediction; {AGAIN}")
            yield row


def _features(path: Path) -> Features | None:
    if not path.is_file():
        return None
    raw = _json(path, dict)
    try:
        points = [(str(point["subject"]), str(point["set"])) for point in raw["points"]]
        places = {str(role): [(float(x), float(y)) for x, y in rows] for role, rows in raw["roles"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: expected 'points' with subject and set, 'roles' with [x, y]; {AGAIN}") from error
    for role, rows in places.items():
        if len(rows) != len(points):
            raise BadInput(f"{path}: role '{role}' has {len(rows)} places for {len(points)} points; {AGAIN}")
    return Features(places, [subject for subject, _ in points], [part for _, part in points])
