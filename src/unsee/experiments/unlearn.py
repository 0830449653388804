"""One unlearning run, from a checkpoint and a request to an edited checkpoint."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unsee.checkpoint.card import model_card
from unsee.checkpoint.folder import lineage, read_manifest
from unsee.checkpoint.write import write_edited
from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput, GateFailed
from unsee.experiments.gate import AnswerGate, FeatureGate
from unsee.methods import FeatureMethod, FeatureStudy, Method, OutputMethod, Plan
from unsee.methods.features import POSITIONS, look
from unsee.models.loading import Loaded, load_model, load_visual, locate
from unsee.progress import track
from unsee.provenance import origin, peak_memory
from unsee.subspace.moments import SecondMoment, StoredMoments, load_moments, save_moments, watching
from unsee.subspace.nullspace import relative_drift
from unsee.training.loop import History


def unlearn(
    model: str,
    data: UnlearnData,
    forget: Sequence[str],
    method: Method,
    seed: int,
    out: Path,
    moments: Path | None = None,
    gate: bool = True,
) -> dict[str, Any]:
    """Carry out `method` and write the edited checkpoint to `out`; the input is only read.

    Args:
        model: folder or hub id.
        forget: subjects whose pictures must no longer be recognised.
        moments: stored statistics of what must stay; without it they are taken from the retained training pictures.
        gate: refuse to write a model that lost what it had to keep.

    Returns:
        the manifest written beside the weights.

    Raises:
        BadInput: something given does not fit. GateFailed: the edit did too much damage; nothing is written.
    """
    torch.manual_seed(seed)
    if moments is not None and not getattr(method, "needs_moments", False):
        raise BadInput(f"--moments {moments}: method {method.name} does not use stored statistics; leave it out")
    fingerprint = data.fingerprint  # decodes every picture once, before the clock starts
    study = data.train.of(forget), data.train.without(forget), data.validation
    for what, split in (("forget", study[0]), ("retain", study[1])):
        if not split.pictured:
            raise BadInput(f"{data.source}: the {what} set has no training pictures")
    place = Path(model).resolve()
    if place.exists() and out.resolve() in (place, *place.parents):
        raise BadInput(f"--out {out}: would replace the model it is made from; choose another place")
    ancestors = lineage(read_manifest(locate(model)))  # a damaged one is refused before the edit, not after it
    if isinstance(method, FeatureMethod):
        loaded = load_visual(model)
        start, before, history, certificate = _edit_features(loaded, method, *study, forget, moments, gate)
    elif isinstance(method, OutputMethod):
        loaded = load_model(model, torch.float32)
        start, before, history, certificate = _edit_outputs(loaded, method, *study, gate)
    else:
        raise TypeError(f"{method.name}: neither a feature nor an output method")
    seconds = time.perf_counter() - start
    now = dict(loaded.model.named_parameters())
    changed = {name: now[name] for name, old in before.items() if not torch.equal(old, now[name])}
    keys = loaded.checkpoint_keys(before)
    manifest = {
        "kind": "unlearned",
        "method": method.name,
        "paper": method.paper,
        "level": method.level,
        "seed": seed,
        "settings": dataclasses.asdict(method),  # type: ignore[call-overload]
        "data": {"source": data.source, "fingerprint": fingerprint},
        "forget": list(forget),
        "base": {
            "model": model,
            "path": str(loaded.folder.path),
            "sha256": loaded.folder.hashes(),
            "lineage": ancestors,
        },
        "changed": sorted(keys[name] for name in changed),
        "certificate": certificate,
        "image_backend": loaded.batcher.image_backend,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "history": {method.name: history},
        **origin(),
    }
    edits = {keys[name]: tensor for name, tensor in changed.items()}
    return write_edited(loaded.folder, edits, out, manifest, model_card(manifest, loaded.folder.path))


def _carry_out(plan: Plan, loaded: Loaded, label: str) -> History:
    history = plan.carry_out(label)
    _as_written(plan.edited, loaded, label)
    return history


@torch.no_grad()
def _as_written(edited: Mapping[str, nn.Parameter], loaded: Loaded, label: str) -> None:
    """Round edited weights to the precision they are stored in: gates and certificates speak of what is written.

    Raises:
        GateFailed: a weight is not finite; the loop looks at losses before a step, not at weights after it.
    """
    keys = loaded.checkpoint_keys(edited)
    dtypes = loaded.folder.dtypes(keys.values())
    for name, parameter in edited.items():
        parameter.copy_(parameter.to(dtypes[keys[name]]))
        if not parameter.isfinite().all():
            raise GateFailed(f"{label}: '{name}' is no longer finite; nothing was written. Lower learning_rate")


Edit = tuple[float, dict[str, Tensor], History, dict[str, Any] | None]


def _edit_features(
    loaded: Loaded,
    method: FeatureMethod,
    forget: Split,
    retain: Split,
    validation: Split,
    subjects: Sequence[str],
    moments: Path | None,
    gate: bool,
) -> Edit:
    visual, batcher = loaded.visual, loaded.batcher
    start = time.perf_counter()
    study = FeatureStudy.of(visual, batcher, forget, retain, validation.of(subjects), method.last_blocks)
    batcher.release()  # the study holds all that pictures and lower blocks had to say
    visual.release(method.last_blocks)
    statistics = None
    with tempfile.TemporaryDirectory(prefix="unsee-") as scratch:
        if method.needs_moments:
            layers = visual.editable(method.last_blocks)
            if moments is None:
                file = Path(scratch) / "moments.safetensors"
                save_moments(fit_from_study(study, layers), file, {})
                statistics, _ = load_moments(file, layers)
            else:
                statistics = _given_moments(moments, layers, loaded)
        keeps = FeatureGate(study) if gate else None
        plan = method.plan(study, statistics)
        originals = dict(study.reference.model.named_parameters())
        before: dict[str, Tensor] = {name: originals[name] for name in plan.edited}
        history = _carry_out(plan, loaded, method.name)
        if keeps is not None:
            keeps.check()
        return start, before, history, _certificate(plan.edited, before, statistics) if statistics else None


def _edit_outputs(
    loaded: Loaded, method: OutputMethod, forget: Split, retain: Split, validation: Split, gate: bool
) -> Edit:
    start = time.perf_counter()
    keeps = AnswerGate(loaded, validation.without(forget.subjects)) if gate else None
    plan = method.plan(loaded, forget, retain)
    loaded.model.train()
    before = {name: p.detach().clone() for name, p in plan.edited.items()}
    history = _carry_out(plan, loaded, method.name)
    loaded.model.eval()
    if keeps is not None:
        keeps.check()
    return start, before, history, None


def fit_moments(model: str, data: UnlearnData, out: Path, last_blocks: int | None = None) -> dict[str, str]:
    """Statistics of what must stay: second moments of every visual layer's inputs over all training pictures of `data`.

    The pictures are not needed afterwards; the file holds no picture and no feature of a single one.

    Args:
        data: only what must be kept.
        last_blocks: how many blocks from the feature layer down; all of them by default.

    Returns:
        the origin written into the file.
    """
    loaded = load_visual(model)
    images = list(data.train.pictures)
    if not images:
        raise BadInput(f"{data.source}: no training pictures to take statistics from")
    layers = loaded.visual.editable(len(loaded.visual.blocks) if last_blocks is None else last_blocks)
    with watching(layers) as moments:
        look(loaded.visual, loaded.batcher, images, 0, "statistics of retained pictures")
    about = {"weights": _weights_id(loaded), "data": data.fingerprint, "pictures": str(len(images))}
    about["image_backend"] = loaded.batcher.image_backend
    save_moments(moments, out, about)
    return about


def fit_from_study(study: FeatureStudy, layers: Mapping[str, nn.Linear]) -> dict[str, SecondMoment]:
    """The same statistics from hidden states that were already computed."""
    with torch.no_grad(), watching(layers) as moments:
        for chunk in track(study.retain.hidden.split(POSITIONS), "statistics of retained pictures"):
            study.tail(chunk)
    return moments


def _given_moments(path: Path, layers: Mapping[str, nn.Linear], loaded: Loaded) -> StoredMoments:
    moments, about = load_moments(path, layers)
    if about.get("weights") != _weights_id(loaded):
        raise BadInput(f"--moments {path}: taken from another model than {loaded.folder.path}; fit them again")
    return moments


def _weights_id(loaded: Loaded) -> str:
    hashes = loaded.folder.hashes()
    return " ".join(f"{name}:{value}" for name, value in sorted(hashes.items()))


def _certificate(
    edited: Mapping[str, Tensor], before: Mapping[str, Tensor], moments: Mapping[str, SecondMoment]
) -> dict[str, Any]:
    """Exact relative drift of every edited layer's outputs on the retained statistics."""
    layers = {}
    for name, weight in edited.items():
        moment = moments[name.removesuffix(".weight")].mean
        delta = weight.detach() - before[name]
        layers[name] = {"drift": relative_drift(delta, before[name], moment)}
    return {"layers": layers, "meaning": "sqrt(tr(dW C dW^T) / tr(W C W^T)) on the retained second moments C"}
