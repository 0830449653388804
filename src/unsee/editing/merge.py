"""Independent edits of one model become one: their sum, inside the null space of what all of them must keep."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from unsee.checkpoint.folder import CheckpointFolder, base_of, forgotten_by, read_manifest
from unsee.checkpoint.write import check_room, write_edited
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.methods import FeatureMethod, FeatureStudy
from unsee.models.loading import load_visual, locate, opens_alike
from unsee.provenance import origin, peak_memory
from unsee.storage import alone
from unsee.subspace.nullspace import relative_drift


@alone
def merge(
    vanilla: str, edited: Sequence[str], data: UnlearnData, method: FeatureMethod, out: Path, link: bool = False
) -> dict[str, Any]:
    """Write `vanilla` with the changes of all `edited` models added up.

    With dW_i what the i-th edit changed in a layer, and P the projector onto the null space of the pictures of
    everybody whom none of the edits forgets,

        W = W_0 + (dW_1 + ... + dW_n) P

    Each dW_i lies in the null space of its own request, in which the other targets were to be kept; hence P, which
    changes little. A soft null space is no projector and has held back every step already: there P is left out. Our
    choice; edits added up without a null space are task arithmetic (2212.04089).

    Args:
        vanilla: the model that every edit began with.
        data: with the pictures of those to be kept.
        method: what made the edits; its rule cuts the null space.
        link: as for `unlearn`.

    Returns:
        the manifest written beside the weights; its `drift_so_far` is that of the sum, exact.

    Raises:
        BadInput: a method without a null space, or an edit that did not begin with `vanilla`.
    """
    if not method.needs_moments:
        raise BadInput(f"method {method.name}: its edits are not in a null space and cannot be merged; take nscvf")
    loaded = load_visual(vanilla)
    check_room([loaded.folder.path / name for name in loaded.folder.files], out, link)
    own, forgotten = loaded.folder.hashes(), dict[str, None]()
    for model in edited:
        about = read_manifest(locate(model))
        if about.get("base", {}).get("sha256") != own:
            raise BadInput(f"{model}: was not made from {vanilla}; merge edits of one model")
        forgotten |= dict.fromkeys(forgotten_by(about))
    start = time.perf_counter()
    layers = loaded.visual.editable(method.last_blocks)
    study = FeatureStudy.of(
        loaded.visual,
        loaded.batcher,
        data.train.of(forgotten),
        data.train.without(forgotten),
        data.validation.of(forgotten),
        method.last_blocks,
    )
    moments = method.moments(study) or {}
    keys = loaded.checkpoint_keys({f"{name}.weight": layer for name, layer in layers.items()})
    changes = _changes([CheckpointFolder(locate(model)) for model in edited], loaded.folder, list(keys.values()))
    edits: dict[str, Tensor] = {}
    drift: dict[str, float] = {}
    for name, moment in moments.items():
        weight = f"{name}.weight"
        key, before = keys[weight], layers[name].get_parameter("weight").detach().cpu().double()
        space = method.space(moment)
        change = changes[key]
        if space is not None and not space.each_step:  # what was held back at every step is not held back again
            change = space.project(change)
        edits[key], drift[weight] = (before + change).float(), relative_drift(change, before, moment.mean)
    manifest = {
        "kind": "merged",
        "method": method.name,
        "paper": method.paper,
        "settings": dataclasses.asdict(method),  # type: ignore[call-overload]
        "data": data.record,
        "forgotten": list(forgotten),
        "merged": [CheckpointFolder(locate(model)).hashes() for model in edited],
        "base": base_of(vanilla, loaded.folder),
        "changed": sorted(edits),
        "drift_so_far": drift,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory(),
        **origin(),
    }
    return write_edited(loaded.folder, edits, out, manifest, opens=partial(opens_alike, loaded), link=link)


def _changes(edited: Sequence[CheckpointFolder], base: CheckpointFolder, keys: Sequence[str]) -> dict[str, Tensor]:
    """Sums of what the edits changed, by checkpoint key, float64."""
    total = {key: -len(edited) * tensor.double() for key, tensor in base.read(keys)}
    for folder in edited:
        for key, tensor in folder.read(keys):
            total[key] += tensor.double()
    return total
