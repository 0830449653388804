"""One unlearning run, from a checkpoint and a request to an edited checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unsee.checkpoint.card import model_card
from unsee.checkpoint.folder import CheckpointFolder, base_of, forgotten_by, read_manifest
from unsee.checkpoint.write import Companions, check_room, write_edited
from unsee.editing.answers import edit_outputs, edit_prompt
from unsee.editing.features import edit_features
from unsee.editing.remembered import REMEMBERED
from unsee.editing.remembered import check as check_remembered
from unsee.editing.request import EditRequest, EditSets
from unsee.errors import BadInput
from unsee.methods import FeatureMethod, InContextUnlearning, OutputMethod
from unsee.models.loading import load_model, load_visual, locate, opens_alike
from unsee.progress import warn
from unsee.provenance import origin, peak_memory
from unsee.storage import alone, scratch_folder, true_path


@alone
def unlearn(model: str, request: EditRequest, out: Path) -> dict[str, Any]:
    """Carry out a request and write the edited checkpoint to `out`; the input is only read.

    Args:
        model: folder or hub id.

    Returns:
        the manifest written beside the weights.

    Raises:
        BadInput: something given does not fit. GateFailed: the edit did too much damage; nothing is written.
    """
    method, data = request.method, request.seen
    torch.manual_seed(request.seed)
    record = data.record  # decodes every picture once, before the clock starts
    folder = locate(model)
    base = read_manifest(folder)  # a damaged one is refused before the edit, not after it
    sets = EditSets.of(request, forgotten_by(base))
    place = true_path(folder)
    if true_path(out) in (place, *place.parents):
        raise BadInput(f"--out {out}: would replace the model it is made from; choose another place")
    check_room([folder / name for name in CheckpointFolder(folder).files], out, request.link)
    check_remembered(folder, method, request.remember)
    prelude = ""
    if isinstance(method, FeatureMethod):
        loaded = load_visual(str(folder))
        edit = edit_features(loaded, method, request, sets)
    elif isinstance(method, OutputMethod):
        loaded = load_model(str(folder), torch.float32)
        edit = edit_outputs(loaded, method, request, sets)
    elif isinstance(method, InContextUnlearning):
        loaded = load_model(str(folder), torch.float32)
        edit, prelude = edit_prompt(loaded, method, request, sets)
    else:
        raise TypeError(f"{method.name}: neither on features, nor on outputs, nor on the prompt")
    now = dict(loaded.model.named_parameters())
    changed = {name: now[name] for name, old in edit.before.items() if not torch.equal(old, now[name])}
    edits = loaded.stored(changed)
    for warning in edit.warnings:
        warn(warning)
    manifest = {
        "kind": "unlearned",
        "method": method.name,
        "paper": method.paper,
        "level": method.level,
        "seed": request.seed,
        "settings": dataclasses.asdict(method),  # type: ignore[arg-type]
        "data": record,
        "forget": list(request.forget),
        "forgotten": [*sets.gone, *request.forget],
        "retain_free": request.retain_free,
        "first": CheckpointFolder(locate(request.first)).hashes() if request.first is not None else None,
        "base": base_of(model, loaded.folder),
        "changed": sorted(edits),
        "certificate": edit.certificate,
        "drift_so_far": _drift_so_far(base, edit.certificate),
        "recognised": edit.recognised,
        "warnings": edit.warnings,
        "image_backend": loaded.batcher.image_backend,
        "seconds": edit.seconds,
        "peak_memory_bytes": peak_memory(),
        "history": {method.name: edit.history},
        **request.about,
        **origin(),
    }
    with scratch_folder() as scratch:
        companions = Companions(model_card(manifest, loaded.folder.path), prelude, scratch / REMEMBERED)
        if edit.forgotten is not None:
            edit.forgotten.save(scratch / REMEMBERED)
        alike = partial(opens_alike, loaded)
        return write_edited(loaded.folder, edits, out, manifest, companions, alike, request.link)


def _drift_so_far(base: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[str, float] | None:
    """What retained features drifted in each layer, at most, since the first of a line of edits; None if unknown.

    The sum of what each edit certifies of itself: by the triangle inequality the drift of all of them together is no
    larger, as long as statistics and the layer's own output stay what they were.
    """
    if certificate is None or (base.get("kind") in ("unlearned", "patched") and base.get("drift_so_far") is None):
        return None
    sofar = dict(base.get("drift_so_far") or {})
    for layer, about in certificate["layers"].items():
        sofar[layer] = sofar.get(layer, 0.0) + about["drift_after_cast"]
    return sofar
