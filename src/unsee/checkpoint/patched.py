"""Carry out patches: from base to result or back, exactly; nothing is written unless every file comes out as recorded.

What a patch may be forced onto stands in `forced.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from unsee.checkpoint.coding import Difference, inflate
from unsee.checkpoint.folder import new_file, new_folder, sha256_of
from unsee.checkpoint.forced import force
from unsee.checkpoint.patch import Side, disk
from unsee.checkpoint.patchfile import PatchFile
from unsee.checkpoint.raw import RawCheckpoint, readable
from unsee.checkpoint.untouched import Untouched, check_room
from unsee.checkpoint.write import Opens
from unsee.errors import BadInput
from unsee.storage import alone


@dataclass(frozen=True)
class Step:
    """One patch, in one direction."""

    patch: PatchFile
    back: bool

    @property
    def start(self) -> Side:
        return "result" if self.back else "base"

    @property
    def end(self) -> Side:
        return "base" if self.back else "result"

    def files(self, side: Side) -> dict[str, str]:
        found: dict[str, str] = self.patch.about[side]["files"]
        return found

    def mismatch(self, hashes: Mapping[str, str]) -> str | None:
        """A file that is not as this step must find it, weights first; None if all are."""
        wanted, weights = self.files(self.start), self.patch.about[self.start]["weights"]
        for name in sorted(wanted.keys() & hashes.keys(), key=lambda name: (name not in weights, name)):
            if hashes[name] != wanted[name]:
                return f"'{name}' differs (SHA-256 {hashes[name][:12]}…, expected {wanted[name][:12]}…)"
        for name in sorted(wanted.keys() ^ hashes.keys()):
            return f"'{name}' is missing" if name in wanted else f"'{name}' is one file too many"
        return None

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
            found = Difference.from_bytes(self.patch.read(f"tensor/{key}"), tensor["dtype"], tuple(tensor["shape"]))
            return found.before(source.read(key)) if self.back else found.after(source.read(key))

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
    opens: Opens | None = None,
    link: bool = False,
) -> dict[str, Any]:
    """Apply patches to a checkpoint folder one after the other, or revert them; `model` is only read.

    Args:
        patches: in the order they were made; to revert them, that order or its reverse.
        back: revert.
        link: weight files in which nothing changes become hard links: who writes there in place reaches `model`.
        forced: where a checkpoint is not the one a patch was made for, add (or subtract) the patch's float difference.
        opens: asked about the checkpoint before and after a forced patch, see `write_edited`; an exact one gives files
            that were there before, byte for byte.

    Returns:
        per patch whether it was exact, and the drift report where it was forced; `untouched`: how weight files that
        stay came there, in bytes.

    Raises:
        BadInput: a patch is damaged or was made for another checkpoint; `out` cannot be written. Nothing is written.
        GateFailed: the result would not open as `model` does; nothing is written.
    """
    steps = [Step(PatchFile(path), back) for path in patches]
    if back and not _chain(steps):
        steps.reverse()
    if not (forced or _chain(steps)):
        raise BadInput("--patch: no one checkpoint is both a result and the next one's base; give them in order, all")
    with readable():
        source = RawCheckpoint(model)
        off = steps[0].mismatch(source.hashes())
    if off is not None and not forced:
        raise BadInput(_wrong(steps[0], source, off))
    check_room([model / name for name in source.headers], out, link)
    done = []
    with (
        disk(out),
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
                about |= {"differs": off, "drift": force(step.patch, source, target, back, untouched)}
                if opens is not None:
                    opens(source.path, target)
            done.append(about)
            source = RawCheckpoint(target)
            following = steps[number] if number < len(steps) else None
            off = following.mismatch(source.hashes()) if following else None
    direction = "revert" if back else "apply"
    return {"out": str(out), "direction": direction, "patches": done, "untouched": dict(untouched.bytes)}


def _chain(steps: Sequence[Step]) -> bool:
    return all(one.files(one.end) == other.files(other.start) for one, other in pairwise(steps))


def _wrong(step: Step, source: RawCheckpoint, off: str) -> str:
    if step.files(step.end) == source.hashes():
        state = "not applied to it" if step.back else "applied to it already"
        return f"--model {source.path}: {step.patch.path} is {state}; nothing to do"
    side = "result" if step.back else "base"
    return (
        f"--model {source.path}: not the {side} of {step.patch.path}: {off}; "
        "give the checkpoint it was made with, or --force for a fine-tuned descendant"
    )
