"""Ask several models the same questions and score them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.gallery import FeatureMap, write_pictures
from unsee.evaluation.predict import PICTURES, Question, predict, questions
from unsee.evaluation.relative import VerdictSettings, verdicts
from unsee.evaluation.score import score
from unsee.evaluation.tensors import difference
from unsee.experiments.measure import check_attacks, measure
from unsee.experiments.workers import side_by_side
from unsee.models.loading import Loaded, load_model, open_checkpoint
from unsee.provenance import origin

BASE = "vanilla"  # the role whose tensors later ones are compared with


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
    """Write `predictions/`, `results.json`, `pictures/`, `features.json`, and what `measure` writes, into `out`.

    Args:
        models: role -> folder or hub id; answers come from these checkpoints as saved.
        forget: subjects that were to be forgotten.
        resume: continue where a broken run of the same evaluation stopped.
        jobs: models that are asked side by side, see `workers.side_by_side`; measures of each are shared among so many
            processes.
        gradients, reference: further attacks of membership inference, see `measure`.

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
    feature_map = FeatureMap(data, forget)
    study = {"data": data.fingerprint, "forget": list(forget), "questions": len(asked)}
    for path in [*models.values()][1 if jobs == 1 else 0 :]:  # refused before anything is written
        _ready(path, asked)
    going_on = resume
    if jobs > 1:  # all answers first; below, where with one job the first model is opened, they are only read
        if not resume:
            _clear(out)
        ask = partial(_ask, asked, names, out / "predictions", study)
        for _ in side_by_side("asking models", ask, {role: (role, path) for role, path in models.items()}, jobs):
            pass
        resume = True
    results: dict[str, Any] = {}
    base: Loaded | None = None
    manifests = {}
    for role, path in models.items():
        loaded = _ready(path, asked)
        manifest = read_manifest(loaded.folder.path) or {"kind": "external"}
        hashes = loaded.folder.hashes()
        backend = loaded.batcher.image_backend
        manifests[role] = {**manifest, "path": path, "sha256": hashes, "image_backend": backend}
        if not (resume or results):
            _clear(out)  # as late as this: if the first model does not load, older results stay
        about, file = {"model": hashes, **study}, out / "predictions" / f"{role}.jsonl"
        lines = predict(loaded, role, asked, names, file, about, resume)
        results[role] = score(lines, names, choices)
        results[role]["cost"] = {
            "seconds": manifest.get("seconds"),
            "peak_memory_bytes": manifest.get("peak_memory_bytes"),
        }
        if manifest.get("certificate"):
            results[role]["certificate"] = manifest["certificate"]
        if role == BASE:
            base = loaded
        elif base is not None:
            results[role]["tensors"] = difference(base, loaded)
        feature_map.add(role, loaded)
    feature_map.write(out)
    write_pictures(data, forget, out)
    measured = measure(models, data, forget, out, going_on, jobs, gradients, reference, results)
    for role, said in verdicts(measured["models"], VerdictSettings()).items():
        results[role]["verdict"] = said
    results["provenance"] = {
        **origin(),
        "jobs": jobs,
        "data": {"source": data.source, "fingerprint": data.fingerprint},
        "forget": list(forget),
        "names": data.names,
        "pictures_per_subject": PICTURES,
        "models": manifests,
    }
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


def _ask(
    asked: Sequence[Question], names: Sequence[str], folder: Path, study: Mapping[str, Any], role: str, path: str
) -> tuple[()]:
    """Let one model answer into its file, going on where that ends."""
    loaded = _ready(path, asked)
    about = {"model": loaded.folder.hashes(), **study}
    predict(loaded, role, asked, names, folder / f"{role}.jsonl", about, resume=True)
    return ()


def _clear(out: Path) -> None:
    """Remove what an earlier evaluation wrote, so that nothing of it stands beside the new answers."""
    files = ("results.json", "features.json", "report.html", "measures.json", "measures.csv")
    for stale in [*(out / "predictions").glob("*"), *(out / "measures").glob("*"), *(out / name for name in files)]:
        stale.unlink(missing_ok=True)
