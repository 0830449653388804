"""Patches on another checkpoint, damaged, or on a full disk: refused, and nothing is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patches import Pair, edited_pair, patch_of_pair, random_tensors, tree
from safetensors.torch import save_file

from unsee.checkpoint import tensor_difference
from unsee.checkpoint.apply_patch import carry_patches
from unsee.checkpoint.patch import BLANK, PatchFile, make_patch
from unsee.errors import BadInput

pair = pytest.fixture(edited_pair)
patch = pytest.fixture(patch_of_pair)


def resealed(content: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A patch with something changed and a checksum that fits: what its writer could have written."""
    (length,) = struct.unpack("<Q", content[:8])
    digest = json.loads(content[8 : 8 + length])["__metadata__"]["sha256"].encode()
    data = bytearray(content.replace(digest, BLANK.encode(), 1))
    change(data)
    return bytes(data).replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "chat_template.jinja"])
def test_another_base_is_refused_by_name(pair: Pair, patch: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((pair[0] / name).read_bytes())
    data[-1] ^= 1
    (pair[0] / name).write_bytes(data)
    kept = tree(tmp_path)
    with pytest.raises(BadInput, match=rf"not the base of .*'{name}' has SHA-256 .*--force") as problem:
        carry_patches(pair[0], [patch], tmp_path / "out")
    assert "\n" not in str(problem.value)
    assert tree(tmp_path) == kept
    data[-1] ^= 1
    (pair[0] / name).write_bytes(data)
    carry_patches(pair[0], [patch], tmp_path / "out")


def test_a_file_too_many_or_too_few_is_another_base(pair: Pair, patch: Path, tmp_path: Path) -> None:
    (pair[0] / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"'notes.txt' is one file too many"):
        carry_patches(pair[0], [patch], tmp_path / "out")
    (pair[0] / "notes.txt").unlink()
    (pair[0] / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match=r"'chat_template.jinja' is missing"):
        carry_patches(pair[0], [patch], tmp_path / "out")


def test_flipped_bits_and_lost_tails_are_found(pair: Pair, patch: Path, tmp_path: Path) -> None:
    content, draw = patch.read_bytes(), np.random.default_rng(0)
    (length,) = struct.unpack("<Q", content[:8])
    places = {*range(8), *draw.integers(8, 8 + length, 200), *draw.integers(8, len(content), 300)}
    at = content.index(PatchFile(patch).sha256.encode())
    broken = tmp_path / "broken.safetensors"
    for place in places | {*range(at - 12, at + 66)}:
        data = bytearray(content)
        data[place] ^= 1 << int(draw.integers(8))
        broken.write_bytes(data)
        with pytest.raises(BadInput) as problem:
            PatchFile(broken)
        assert "\n" not in str(problem.value)
    for size in [0, 7, 8, 9, *draw.integers(10, len(content), 50)]:
        broken.write_bytes(content[:size])
        with pytest.raises(BadInput):
            PatchFile(broken)
    broken.write_bytes(content + b"\0")
    with pytest.raises(BadInput):
        PatchFile(broken)
    with pytest.raises(BadInput, match="damaged"):
        carry_patches(pair[0], [patch, broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    broken.write_bytes(content)
    PatchFile(broken)


def test_a_model_is_written_only_if_it_is_the_recorded_one(pair: Pair, patch: Path, tmp_path: Path) -> None:
    """A patch whose checksum is right and whose content is not: its last plane holds another byte."""
    (length,) = struct.unpack("<Q", patch.read_bytes()[:8])
    start, _ = json.loads(patch.read_bytes()[8 : 8 + length])["tensor/a.weight"]["data_offsets"]
    framed = tensor_difference._unframed(PatchFile(patch).read("tensor/a.weight"))
    other = np.ones(48 * 64, np.uint32)

    def spoil(data: bytearray) -> None:
        at = bytes(data).index(framed[2], 8 + length + start)
        planes = tensor_difference._unframed(framed[2])
        lowest = planes[0]
        stored = bytearray(tensor_difference.inflate(lowest, other.size))
        stored[0] ^= 1
        packed = tensor_difference._shortest(bytes(stored))
        assert len(packed) == len(lowest), "the spoiled plane must take the old one's place"
        data[at + 8 : at + 8 + len(lowest)] = packed

    patch.write_bytes(resealed(patch.read_bytes(), spoil))
    PatchFile(patch)
    with pytest.raises(BadInput, match="did not come out as recorded"):
        carry_patches(pair[0], [patch], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../", "/etc/", "..\\\\\\\\"])
def test_a_patch_cannot_write_outside_its_folder(patch: Path, name: str) -> None:
    def outside(data: bytearray) -> None:
        old = b"README.md"
        new = (name + "x" * len(old)).encode()[: len(old)]
        data[:] = bytes(data).replace(old, new)

    patch.write_bytes(resealed(patch.read_bytes(), outside))
    with pytest.raises(BadInput, match="expected one inside the checkpoint"):
        PatchFile(patch)


@pytest.mark.parametrize("what", ["missing", "text", "a model", "newer"])
def test_what_is_no_patch_is_refused(pair: Pair, patch: Path, tmp_path: Path, what: str) -> None:
    file = tmp_path / "x.safetensors"
    if what == "text":
        file.write_text("a letter")
    elif what == "a model":
        save_file(random_tensors(), file, {"format": "pt"})
    elif what == "newer":
        newer = resealed(patch.read_bytes(), lambda d: d.__setitem__(slice(None), d.replace(b"patch-1", b"patch-9")))
        file.write_bytes(newer)
    says = {"missing": "no such file", "text": "not a patch", "a model": "not a patch", "newer": "unsee-patch-9"}
    with pytest.raises(BadInput, match=says[what]):
        carry_patches(pair[0], [file], tmp_path / "out")


def test_nothing_differs_is_refused(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair[0], tmp_path / "copy")
    with pytest.raises(BadInput, match="nothing to store"):
        make_patch(pair[0], tmp_path / "copy", tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_state(
    pair: Pair, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    carry_patches(pair[0], [patch], tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("older")
    kept = tree(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, fails, full)
        for call in (
            lambda: carry_patches(pair[0], [patch], tmp_path / "out"),
            lambda: make_patch(*pair, patch),
        ):
            with pytest.raises(BadInput, match="No space left on device"):
                call()
    assert tree(tmp_path) == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["after", "before", "out", "p.safetensors"]
    carry_patches(pair[0], [patch], tmp_path / "out")
    assert tree(tmp_path / "out") == tree(pair[1])
