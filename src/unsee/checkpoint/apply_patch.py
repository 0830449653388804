"""Apply or revert patches: exactly, or by force on a checkpoint they were not made for.

Exactly: from base to result or back; nothing is written unless every file comes out as recorded.

By force, on a fine-tuned descendant with the same tensors and other values: the patch's float difference is added to
(or subtracted from) the descendant's weights. Nothing is promised of the result: what was measured of the edit, e.g.
its certificate, was measured on the base. The drift report says how far away from there the descendant stands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from unsee.checkpoint.folder import (
    DTYPES,
    MANIFEST,
    base_of,
    forgotten_by,
    mismatch,
    new_file,
    new_folder,
    read_manifest,
    sha256_of,
    write_json,
)
from unsee.checkpoint.patch import SIDES, PatchFile, RawCheckpoint, Side, readable
from unsee.checkpoint.tensor_difference import SKETCH, TensorDifference, as_bytes, as_floats, inflate, sketch
from unsee.checkpoint.write import Untouched, check_room
from unsee.errors import BadInput
from unsee.provenance import origin
from unsee.storage import alone

MEANING = {
    "distance": "|W - R| / |R| of the weight W before the patch and the R the patch was made for; estimated, see error",
    "change": "|P| / |R|: how much the patch moves the weight it was made for",
    "change_here": "|P| / |W|",
    "error": "relative standard deviation of the estimated distance",
}
ERROR = 0.5 * sqrt(2 / SKETCH)  # sqrt(2 / SKETCH) is that of its square


@dataclass(frozen=True)
class PatchStep:
    """One patch, from one of its sides to the other."""

    patch: PatchFile
    start: Side
    end: Side

    def files(self, side: Side) -> dict[str, str]:
        found: dict[str, str] = self.patch.about[side]["files"]
        return found

    def difference_of(self, key: str) -> TensorDifference:
        tensor = self.patch.about["tensors"][key]
        return TensorDifference.from_bytes(self.patch.read(f"tensor/{key}"), tensor["dtype"], tuple(tensor["shape"]))

    def off(self, source: RawCheckpoint) -> str | None:
        """A file that is not as this step must find it; None if all are."""
        return mismatch(source.hashes(), self.files(self.start))

    def carry_out(self, source: RawCheckpoint, target: Path, untouched: Untouched) -> None:
        """Write the other side into the empty folder `target`, one tensor in memory at a time, and read it again.

        Raises:
            BadInput: a file did not come out as recorded.
        """
        about, tensors = self.patch.about[self.end], self.patch.about["tensors"]
        stored, weights = about["stored"], about["weights"]

        def text_of(name: str) -> bytes:
            return inflate(self.patch.read(f"{self.end}-file/{name}"), stored[name])

        def tensor_of(key: str) -> bytes:
            tensor = tensors[key]
            if tensor["coding"] == "whole":
                return inflate(self.patch.read(f"{self.end}/{key}"), tensor[self.end]["bytes"])
            found, data = self.difference_of(key), source.read(key)
            return found.before(data) if self.end == "base" else found.after(data)

        headers = {name: text_of(name) if name in stored else source.headers[name] for name in weights}
        source.write_weights(target, headers, tensors, tensor_of, untouched)
        texts = about["files"].keys() - set(weights)
        source.copy_texts(target, texts - stored.keys())
        for name in texts & stored.keys():
            with new_file(target / name) as file:
                file.write(text_of(name))
        for name, digest in about["files"].items():
            if sha256_of(target / name) != digest:
                raise BadInput(f"{self.patch.path}: '{name}' did not come out as recorded; check disk and memory")


@alone
def carry_patches(
    model: Path,
    patches: Sequence[Path],
    out: Path,
    back: bool = False,
    forced: bool = False,
    opens: Callable[[Path, Path], None] | None = None,
    link: bool = False,
) -> dict[str, Any]:
    """Apply patches to a checkpoint folder one after the other, or revert them; `model` is only read.

    Args:
        patches: in the order they were made; to revert them, that order or its reverse.
        back: revert.
        link: weight files in which nothing changes become hard links: who writes there in place reaches `model`.
        forced: where a checkpoint is not the one a patch was made for, add (or subtract) the patch's float difference.
        opens: asked about the checkpoint before and after a forced patch, see `models.loading.opens_alike`; an exact
            one gives files that were there before, byte for byte.

    Returns:
        per patch whether it was exact, and the drift report where it was forced; `untouched`: how weight files that
        stay came there, in bytes.

    Raises:
        BadInput: a patch is damaged or was made for another checkpoint; `out` cannot be written. Nothing is written.
        GateFailed: the result would not open as `model` does; nothing is written.
    """
    start, end = SIDES[::-1] if back else SIDES
    steps = [PatchStep(PatchFile(path), start, end) for path in patches]
    if back and not _chain(steps):
        steps.reverse()
    if not (forced or _chain(steps)):
        raise BadInput("--patch: no one checkpoint is both a result and the next one's base; give them in order, all")
    with readable():
        source = RawCheckpoint(model)
        off = steps[0].off(source)
    if off is not None and not forced:
        raise BadInput(_wrong(steps[0], source, off))
    check_room([model / name for name in source.headers], out, link)
    done = []
    with (
        new_folder(out) as partial,
        tempfile.TemporaryDirectory(dir=partial.parent, prefix=f".{out.name}.", suffix=".partial") as scratch,
    ):
        for number, step in enumerate(steps, start=1):
            target = partial if step is steps[-1] else Path(scratch, str(number))
            target.mkdir(exist_ok=True)
            untouched = Untouched(link)
            about: dict[str, Any] = {"patch": str(step.patch.path), "sha256": step.patch.sha256, "exact": off is None}
            if off is None:
                step.carry_out(source, target, untouched)
            else:
                about |= {"differs": off, "drift": _force(step, source, target, untouched)}
                if opens is not None:
                    opens(source.path, target)
            done.append(about)
            source = RawCheckpoint(target)
            following = steps[number] if number < len(steps) else None
            off = following.off(source) if following else None
    direction = "revert" if back else "apply"
    return {"out": str(out), "direction": direction, "patches": done, "untouched": dict(untouched.bytes)}


def _chain(steps: Sequence[PatchStep]) -> bool:
    return all(one.files(one.end) == other.files(other.start) for one, other in pairwise(steps))


def _wrong(step: PatchStep, source: RawCheckpoint, off: str) -> str:
    if step.files(step.end) == source.hashes():
        state = "not applied to it" if step.end == "base" else "applied to it already"
        return f"--model {source.path}: {step.patch.path} is {state}; nothing to do"
    return (
        f"--model {source.path}: not the {step.start} of {step.patch.path}: {off}; "
        "give the checkpoint it was made with, or --force for a fine-tuned descendant"
    )


# By force -------------------------------------------------------------------------------------------------------------


def _force(step: PatchStep, source: RawCheckpoint, target: Path, untouched: Untouched) -> dict[str, Any]:
    """Write `source` with the patch's float difference added (on the way back: subtracted) into the empty `target`.

    Its other files stay as they are, except for the manifest.

    Returns:
        the drift report, which also stands in the manifest.

    Raises:
        BadInput: the patch changes no tensor, or one that `source` does not have in the same shape, as floats; or a
            sum is not finite.
    """
    patch, back, tensors = step.patch, step.end == "base", step.patch.about["tensors"]
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
        stored = step.difference_of(key)
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
