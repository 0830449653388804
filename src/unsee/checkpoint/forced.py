"""A patch on a checkpoint it was not made for: a fine-tuned descendant, with the same tensors and other values.

The patch's float difference is added to (or subtracted from) the descendant's weights. Nothing is promised of the
result: what was measured of the edit, e.g. its certificate, was measured on the base. The drift report says how far
away from there the descendant stands.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from unsee.checkpoint.coding import SKETCH, Difference, as_bytes, as_floats, sketch
from unsee.checkpoint.folder import DTYPES, MANIFEST, base_of, forgotten_by, read_manifest, sha256_of, write_json
from unsee.checkpoint.patchfile import PatchFile
from unsee.checkpoint.raw import RawCheckpoint
from unsee.checkpoint.untouched import Untouched
from unsee.errors import BadInput
from unsee.provenance import origin

MEANING = {
    "distance": "|W - R| / |R| of the weight W before the patch and the R the patch was made for; estimated, see error",
    "change": "|P| / |R|: how much the patch moves the weight it was made for",
    "change_here": "|P| / |W|",
    "error": "relative standard deviation of the estimated distance",
}
ERROR = 0.5 * sqrt(2 / SKETCH)  # sqrt(2 / SKETCH) is that of its square


def force(patch: PatchFile, source: RawCheckpoint, target: Path, back: bool, untouched: Untouched) -> dict[str, Any]:
    """Write `source` with the patch's float difference added into the empty folder `target`; `back` subtracts it.

    Its other files stay as they are, except for the manifest.

    Returns:
        the drift report, which also stands in the manifest.

    Raises:
        BadInput: the patch changes no tensor, or one that `source` does not have in the same shape, as floats; or a
            sum is not finite.
    """
    tensors = patch.about["tensors"]
    if not tensors:
        raise BadInput(f"{patch.path}: changes no tensor, so there is nothing to force; apply it to its own base")
    for key, tensor in tensors.items():
        if tensor["coding"] != "difference":
            raise BadInput(f"{patch.path}: '{key}' has no float difference to add; apply it to its own base")
        entry = source.places[key][1] if key in source.places else None
        if entry is None or entry.dtype not in DTYPES or entry.shape != tuple(tensor["shape"]):
            found = f"{entry.dtype} {list(entry.shape)}" if entry else "no such tensor"
            raise BadInput(
                f"{source.path}: '{key}' is {found}, the patch expects floats {tensor['shape']}; not related"
            )
    layers: dict[str, dict[str, float | None]] = {}

    def bytes_of(key: str) -> bytes:
        stored = Difference.from_bytes(patch.read(f"tensor/{key}"), tensors[key]["dtype"], tuple(tensors[key]["shape"]))
        own = as_floats(source.read(key), source.places[key][1].dtype)
        P = stored.float_difference().flatten()
        moved = torch.where(P == 0, own, (own.to(P.dtype) + (-P if back else P)).to(own.dtype))
        if own.isfinite().all() and not moved.isfinite().all():
            raise BadInput(f"{source.path}: '{key}' is no longer finite with the patch; nothing was written")
        there = stored.sketch + sketch(P) if back else stored.sketch
        size, reference = float(own.double().norm()), stored.norms[1 if back else 0]
        layers[key] = {
            "distance": float(np.linalg.norm(sketch(own) - there)) / reference if reference else None,
            "change": stored.norms[2] / reference if reference else None,
            "change_here": stored.norms[2] / size if size else None,
        }
        return as_bytes(moved)

    source.write_weights(target, source.headers, tensors, bytes_of, untouched)
    source.copy_texts(target, (name for name in source.texts if name != MANIFEST))
    report = {"tensors": layers, "summary": _summary(layers), "error": ERROR, "meaning": MEANING}
    about = read_manifest(source.path)
    hashes = source.folder.hashes()
    asked = patch.about["request"]["forget"] or []
    others = [subject for subject in forgotten_by(about) if subject not in asked]
    manifest = {
        "kind": "patched",
        "method": patch.about["request"]["method"],
        "forgotten": others if back else [*others, *asked],
        "forced": True,
        "direction": "revert" if back else "apply",
        "patch": {
            "name": patch.path.name,
            "sha256": patch.sha256,
            "request": patch.about["request"],
            "base": patch.about["base"]["files"],
            "result": patch.about["result"]["files"],
        },
        "base": base_of(str(source.path), source.folder),
        "changed": sorted(tensors),
        "drift": report,
        "untouched": dict(untouched.bytes),
        **origin(),
    }
    changed = {source.places[key][0] for key in tensors}
    written = {name: sha256_of(target / name) if name in changed else digest for name, digest in hashes.items()}
    write_json(target / MANIFEST, {**manifest, "sha256": written})
    return report


def _summary(layers: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    summary: dict[str, dict[str, float | None]] = {}
    for what in ("distance", "change", "change_here"):
        known = [value for layer in layers.values() if (value := layer[what]) is not None]
        summary[what] = {"mean": mean(known) if known else None, "worst": max(known, default=None)}
    return summary
