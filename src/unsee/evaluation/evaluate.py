"""Ask several models the same questions and score them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.asked import warned
from unsee.evaluation.gallery import FeatureMap, write_pictures
from unsee.evaluation.measure import REFERENCE, Measuring, ask, check_attacks, lines_of, work
from unsee.evaluation.predict import PICTURES, Question, questions
from unsee.evaluation.results import ModelResult, Results
from unsee.evaluation.score import score
from unsee.evaluation.tensors import difference
from unsee.journal import Journal, Line
from unsee.models.loading import Loaded, load_model, open_checkpoint
from unsee.provenance import origin
from unsee.storage import alone

BASE = "vanilla"  # the role whose tensors later ones are compared with


@alone
def evaluate(
    models: Mapping[str, str],
    data: UnlearnData,
    forget: Sequence[str],
    out: Path,
    resume: bool = False,
    jobs: int = 1,
    gradients: bool = False,
    reference: str | None = None,
) -> dict[str, Any]:
    """Write `predictions/`, `results.json`, `pictures/`, `features.json`, and what `Measuring` writes, into `out`.

    Every model is asked once: `measures/ROLE.jsonl` has a line for everything that it was asked, written as it comes,
    and all else follows from these lines.

    Args:
        models: role -> folder or hub id; answers come from these checkpoints as saved.
        forget: subjects that were to be forgotten.
        resume: continue where a broken run of the same evaluation stopped.
        jobs: among how many processes every model's requests are shared. The files do not depend on it, as long as
            each process has as many threads.
        gradients, reference: further attacks of membership inference, see `Measuring`.

    Returns:
        the content of `results.json`.

    Raises:
        BadInput: a model that does not load, a data set without test pictures, or see `check_attacks`.
    """
    check_attacks(models, data, forget, gradients, reference)
    for path in models.values():
        folder, _, _ = open_checkpoint(path)
        read_manifest(folder.path)
    if not data.test.of(forget).pictured:
        raise BadInput(f"{data.source}: no test pictures of the forget set; evaluation needs pictures not trained on")
    asked = questions(data, forget, PICTURES)
    names = tuple(dict.fromkeys(data.names.values()))
    choices = {q.example.question: q.example.choices for q in asked if q.example.choices}
    warnings = warned(models, data.source, forget, data.fingerprint)
    feature_map, measuring = FeatureMap(data, forget), Measuring(models, data, forget, out, True, gradients, reference)
    first, *others = models.values()
    for path in others:  # refused before anything is written
        _ready(path, asked)
    opened: Loaded | None = _ready(first, asked)
    if not resume:
        _clear(out)  # as late as this: if a model does not load, older results stay
    study = {"data": data.fingerprint, "forget": list(forget), "questions": len(asked)}
    answers = {
        role: Journal(out / "predictions" / f"{role}.jsonl", {"model": measuring.hashes[role], **study})
        for role in models
    }
    for journal in answers.values():  # says whose answers these will be, and refuses those of others
        journal.begin(journal.left(resume))
    requests = measuring.begin(resume)
    if jobs > 1:  # all answers first
        opened = None
        ask(requests, jobs)
    scores: dict[str, Any] = {}
    about: dict[str, dict[str, Any]] = {}
    records: dict[str, list[Line]] = {}
    base: Loaded | None = None
    manifests = {}
    for role, path in models.items():
        loaded, opened = opened or _ready(path, asked), None
        if jobs == 1:
            work(requests, role, loaded=loaded)
        records[role] = lines_of(requests.parts[role])
        said = {x["request"]: x["given"] for x in records[role] if "given" in x}
        lines = [q.line(role, said[number], names) for number, q in enumerate(asked)]
        answers[role].begin(lines)
        scores[role] = score(lines, names, choices)
        manifest = read_manifest(loaded.folder.path) or {"kind": "external"}
        backend = loaded.batcher.image_backend
        manifests[role] = {**manifest, "path": path, "sha256": measuring.hashes[role], "image_backend": backend}
        about[role] = {"cost": {key: manifest.get(key) for key in ("seconds", "peak_memory_bytes")}}
        if manifest.get("certificate"):
            about[role]["certificate"] = manifest["certificate"]
        if role == BASE:
            base = loaded
        elif base is not None:
            about[role]["tensors"] = difference(base, loaded)
        feature_map.add(role, loaded)
    if reference is not None:
        if jobs == 1:
            work(requests, REFERENCE)
        records[REFERENCE] = lines_of(requests.parts[REFERENCE])
    feature_map.write(out)
    write_pictures(data, forget, out)
    measured = measuring.write(records, jobs, scores)["models"]
    found = {role: ModelResult(scores[role], about[role], measured[role]) for role in models}
    provenance = {
        **origin(),
        "jobs": jobs,
        "data": data.record,
        "forget": list(forget),
        "names": data.names,
        "pictures_per_subject": PICTURES,
        "models": manifests,
        "warnings": warnings,
    }
    results = Results(found, provenance).judged().to_json()
    write_json(out / "results.json", results)
    return results


def _ready(path: str, asked: Sequence[Question]) -> Loaded:
    """The whole model, if its visual side is known and every question can be put to it.

    Raises:
        BadInput: see `load_model`, `Loaded.visual` and `Batcher.check`.
    """
    loaded = load_model(path)
    loaded.visual.named_parameters()
    loaded.batcher.check([q.example for q in asked])
    return loaded


def _clear(out: Path) -> None:
    """Remove what an earlier evaluation wrote, so that nothing of it stands beside the new answers."""
    files = ("results.json", "features.json", "report.html", "measures.json", "measures.csv")
    for stale in [*(out / "predictions").glob("*"), *(out / "measures").glob("*"), *(out / name for name in files)]:
        stale.unlink(missing_ok=True)
