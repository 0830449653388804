"""Patches: there and back byte for byte, on the right checkpoint only, or nothing at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unsee.checkpoint import coding
from unsee.checkpoint.coding import SKETCH, Difference, as_bytes, as_floats, difference, sketch
from unsee.checkpoint.folder import DTYPES, INDEX, MANIFEST, CheckpointFolder, read_manifest, sha256_of, write_json
from unsee.checkpoint.forced import ERROR
from unsee.checkpoint.patch import make_patch
from unsee.checkpoint.patched import carry_patches
from unsee.checkpoint.patchfile import BLANK, PatchFile
from unsee.checkpoint.write import write_edited
from unsee.cli import main
from unsee.errors import BadInput

SHAPES = {"a.weight": (48, 64), "b.weight": (64, 48), "b.bias": (64,), "c.weight": (4, 3, 5, 5), "d.weight": (32, 48)}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(folder: Path, tensors: dict[str, Tensor], shards: int = 1, **texts: str) -> Path:
    """A checkpoint folder without a model: what patches need to know."""
    folder.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(tensors)
        parts = [names[i::shards] for i in range(shards)]
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        for part, name in zip(parts, files, strict=True):
            save_file({key: tensors[key] for key in part}, folder / name, {"format": "pt"})
        mapped = {key: name for part, name in zip(parts, files, strict=True) for key in part}
        write_json(folder / INDEX, {"metadata": {}, "weight_map": mapped})
    for name, text in {"config.json": "{}", **texts}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def random_tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    new = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=new).mul(0.1).to(dtype) for key, shape in SHAPES.items()}


def edits_of(tensors: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """A dense edit, one of rank 2, one of a bias; `c` and `d` stay."""
    new = torch.Generator().manual_seed(seed)
    factors = torch.randn(64, 2, generator=new) @ torch.randn(2, 48, generator=new) * 1e-3
    return {
        "a.weight": tensors["a.weight"].float() + torch.randn(48, 64, generator=new) * 0.05,
        "b.weight": tensors["b.weight"].float() + factors,
        "b.bias": -tensors["b.bias"].float(),
    }


Pair = tuple[Path, Path]


def edited(before: Path, out: Path, seed: int = 1) -> Path:
    source = CheckpointFolder(before)
    manifest = {"kind": "unlearned", "method": "cvf", "paper": "ours", "seed": seed, "forget": ["anna"]}
    write_edited(source, edits_of(dict(source.read(source.file_of)), seed), out, manifest, "# Edited\n")
    return out


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A checkpoint and one edited from it; two shards."""
    before = written(tmp_path / "before", random_tensors(), shards=2, **{"chat_template.jinja": "{{ messages }}"})
    return before, edited(before, tmp_path / "after")


@pytest.fixture
def patch(pair: Pair, tmp_path: Path) -> Path:
    make_patch(*pair, tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def resealed(content: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A patch with something changed and a checksum that fits: what its writer could have written."""
    (length,) = struct.unpack("<Q", content[:8])
    digest = json.loads(content[8 : 8 + length])["__metadata__"]["sha256"].encode()
    data = bytearray(content.replace(digest, BLANK.encode(), 1))
    change(data)
    return bytes(data).replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_there_and_back_is_byte_identical(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    before = written(tmp_path / "before", random_tensors(dtype=dtype), shards, **{"chat_template.jinja": "x"})
    after = edited(before, tmp_path / "after")
    kept = tree(before), tree(after)
    assert kept[0] != kept[1]
    about = make_patch(before, after, tmp_path / "p.safetensors")
    assert about["tensors"].keys() == {"a.weight", "b.weight", "b.bias"}
    carry_patches(before, [tmp_path / "p.safetensors"], tmp_path / "there")
    carry_patches(after, [tmp_path / "p.safetensors"], tmp_path / "back", back=True)
    assert tree(tmp_path / "there") == kept[1]
    assert tree(tmp_path / "back") == kept[0]
    assert (tree(before), tree(after)) == kept, "an input was written to"


def test_what_unlearn_writes_comes_back(new_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A tiny model's whole folder, tokenizer and all, and its edit of a chat template."""
    before = new_checkpoint(shard="12KB")
    source = CheckpointFolder(before)
    key = next(k for k in source.file_of if k.endswith("linear_1.weight"))
    value = dict(source.read([key]))[key]
    write_edited(source, {key: value + 1}, tmp_path / "after", {"kind": "unlearned"}, "card", "told. ")
    about = make_patch(before, tmp_path / "after", tmp_path / "p.safetensors")
    assert "tokenizer.json" in about["base"]["files"]
    assert "chat_template.jinja" in about["result"]["stored"]
    carry_patches(before, [tmp_path / "p.safetensors"], tmp_path / "there")
    carry_patches(tmp_path / "there", [tmp_path / "p.safetensors"], tmp_path / "back", back=True)
    assert tree(tmp_path / "there") == tree(tmp_path / "after")
    assert tree(tmp_path / "back") == tree(before)


def test_other_layouts_tensors_and_files(tmp_path: Path) -> None:
    """Another sharding, a tensor less and one more, another dtype, integers; files that came, went and changed."""
    old = random_tensors() | {"steps": torch.arange(9), "gone": torch.ones(3)}
    new = {**old, "a.weight": old["a.weight"].bfloat16(), "steps": torch.arange(9) * 7, "more": torch.ones(2)}
    new["d.weight"] = old["d.weight"] * 1.25
    del new["gone"]
    before = written(tmp_path / "before", old, 2, **{"letter.txt": "old", "gone.txt": "", "sub/x.jinja": "1"})
    after = written(tmp_path / "after", new, 3, **{"letter.txt": "new", "sub/x.jinja": "2", "sub/y.jinja": "3"})
    (before / ".hidden").write_text("not part of a checkpoint")
    (before / "pytorch_model.bin").write_text("nor is a second copy of the weights")
    about = make_patch(before, after, tmp_path / "p.safetensors")
    assert {k: t["coding"] for k, t in about["tensors"].items()} == {
        "a.weight": "whole",
        "d.weight": "difference",
        "gone": "whole",
        "more": "whole",
        "steps": "whole",
    }
    assert about["base"]["left_out"] == [".hidden", "pytorch_model.bin"]
    carry_patches(before, [tmp_path / "p.safetensors"], tmp_path / "there")
    carry_patches(after, [tmp_path / "p.safetensors"], tmp_path / "back", back=True)
    assert tree(tmp_path / "there") == tree(after)
    assert tree(tmp_path / "back") == {k: v for k, v in tree(before).items() if k not in about["base"]["left_out"]}
    with pytest.raises(BadInput, match=r"has no float difference to add"):
        carry_patches(after, [tmp_path / "p.safetensors"], tmp_path / "forced", forced=True)


def test_same_checkpoints_same_patch(pair: Pair, patch: Path, tmp_path: Path) -> None:
    make_patch(*pair, tmp_path / "again.safetensors")
    assert patch.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    make_patch(*reversed(pair), tmp_path / "back.safetensors")
    assert patch.read_bytes() != (tmp_path / "back.safetensors").read_bytes()


def test_a_patch_is_plain_safetensors_that_says_what_it_is(pair: Pair, patch: Path) -> None:
    with safe_open(patch, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        assert file.metadata()["format"] == "unsee-patch-1"
        assert "tensor/a.weight" in file.keys()  # noqa: SIM118
    assert about["request"]["method"] == "cvf"
    assert about["request"]["forget"] == ["anna"]
    for side, folder in zip(("base", "result"), pair, strict=True):
        assert about[side]["files"] == {p.name: sha256_of(p) for p in folder.iterdir()}


def test_several_patches_follow_each_other(pair: Pair, patch: Path, tmp_path: Path) -> None:
    before, after = pair
    last, second = edited(after, tmp_path / "last", seed=2), tmp_path / "p2.safetensors"
    make_patch(after, last, second)
    carry_patches(before, [patch, second], tmp_path / "there")
    assert tree(tmp_path / "there") == tree(last)
    for order in ([patch, second], [second, patch]):
        carry_patches(last, order, tmp_path / "back", back=True)
        assert tree(tmp_path / "back") == tree(before)
    with pytest.raises(BadInput, match="in order"):
        carry_patches(before, [second, patch], tmp_path / "other")
    with pytest.raises(BadInput, match="applied to it already"):
        carry_patches(after, [patch], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_untouched_shard_is_a_link_and_a_changed_one_is_not(tmp_path: Path) -> None:
    before = written(tmp_path / "before", random_tensors(), 5)
    after = edited(before, tmp_path / "after")
    make_patch(before, after, tmp_path / "p.safetensors")
    carry_patches(before, [tmp_path / "p.safetensors"], tmp_path / "there")
    same = {
        p.name: p.stat().st_ino == (tmp_path / "there" / p.name).stat().st_ino for p in before.glob("*.safetensors")
    }
    assert sorted(same.values()) == [False] * 3 + [True] * 2


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    def peak(call: Callable[[], object]) -> int:
        tracemalloc.start()
        call()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    tensors = {f"{i:03}": torch.randn(128, 128) for i in range(128)}
    before = written(tmp_path / "before", tensors, 2)
    after = written(tmp_path / "after", {k: t + 0.01 * torch.randn_like(t) for k, t in tensors.items()}, 2)
    patch, total = tmp_path / "p.safetensors", 128 * 128 * 128 * 4
    enough = (2 << 20) + total / 8  # hashing alone takes the first of them, two pieces at once
    assert peak(lambda: make_patch(before, after, patch)) < enough
    assert peak(lambda: carry_patches(before, [patch], tmp_path / "there")) < enough
    assert peak(lambda: tree(before)) > enough


# Coding ---------------------------------------------------------------------------------------------------------------


def strange(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs of every two special values: signs of zero, subnormals, neighbours, the largest, infinities, NaNs."""
    about = torch.finfo(dtype)
    one = [0.0, -0.0, about.smallest_normal / 4, 1.0, 1.0 + about.eps, -1.0, about.max, about.min, about.tiny]
    values = torch.tensor([*one, float("inf"), -float("inf"), float("nan")], dtype=torch.float64).to(dtype)
    return values.repeat_interleave(len(values)), values.repeat(len(values))


@pytest.mark.parametrize("name", DTYPES)
def test_every_pair_of_values_is_exact_both_ways(name: str) -> None:
    old, new = strange(DTYPES[name])
    before, after = as_bytes(old), as_bytes(new)
    stored = Difference.from_bytes(difference(before, after, name, (len(old),)).to_bytes(), name, (len(old),))
    assert stored.after(before) == after
    assert stored.before(after) == before
    naive = as_bytes((old + (new - old)).to(old.dtype))
    assert naive != after, "these values would not need what is stored beside the difference"


@pytest.mark.parametrize("name", DTYPES)
def test_the_float_difference_is_at_hand(name: str) -> None:
    torch.manual_seed(0)
    old = torch.randn(40, 30).to(DTYPES[name])
    for moved in (torch.randn(40, 30), torch.randn(40, 1) @ torch.randn(1, 30) * 0.01):
        new = (old.double() + moved).to(old.dtype)
        found = difference(as_bytes(old), as_bytes(new), name, (40, 30)).float_difference().double()
        exact, step = new.double() - old.double(), torch.finfo(old.dtype).eps * old.double().norm()
        assert (found - exact).norm() <= step
        assert not (found.flip(0) - exact).norm() <= step


def test_factors_are_taken_where_the_difference_is_of_low_rank() -> None:
    torch.manual_seed(0)
    old = torch.randn(128, 96)
    low, noise = torch.randn(128, 4) @ torch.randn(4, 96) * 0.01, torch.randn(128, 96) * 0.02
    sizes = {}
    for name, moved in (("low", low), ("full", noise), ("both", low + 1e-4 * noise)):
        stored = difference(as_bytes(old), as_bytes(old + moved), "F32", (128, 96))
        sizes[name] = stored.rank, len(stored.to_bytes())
    assert [rank for rank, _ in sizes.values()] == [4, 0, 0]
    assert sizes["low"][1] < 0.4 * sizes["full"][1]


def test_a_product_of_factors_is_the_same_in_every_order() -> None:
    """A patch is made on one machine and applied on another, which may sum in another order."""
    torch.manual_seed(0)
    low = torch.randn(200, 7) @ torch.randn(7, 100)
    factors = coding._factors(low.double().flatten(), torch.zeros(20000), low.flatten(), (200, 100))
    assert factors is not None
    left, right, exponent = factors
    order = torch.randperm(left.shape[1]).numpy()

    def product(a: Any, b: Any) -> Tensor:
        return coding._product(a, b, exponent, torch.float64)

    assert np.abs(left.astype(float)).max() ** 2 * left.shape[1] < 2**53
    assert torch.equal(product(left, right), product(left[:, order], right[order]))
    rough = left * 1.1, right * 1.1  # not integers
    assert not torch.equal(product(*rough), product(rough[0][:, order], rough[1][order]))


def test_distance_is_known_without_the_other_tensor() -> None:
    torch.manual_seed(0)
    ratios = []
    for _ in range(200):
        one, sparse = torch.randn(50, 40), torch.zeros(50, 40)
        sparse[3] = torch.randn(40)
        for moved in (torch.randn(50, 40) * 0.01, sparse):
            ratios.append(np.linalg.norm(sketch(one + moved) - sketch(one)) / float(moved.norm()))
    assert np.std(ratios) < 1.3 * ERROR
    assert abs(np.mean(ratios) - 1) < ERROR
    first = [float((moved.flatten()[:SKETCH]).norm() / moved.norm()) * (2000 / SKETCH) ** 0.5 for moved in (sparse,)]
    assert abs(first[0] - 1) > 1.3 * ERROR, "the first few entries would have told as much"


# Wrong, damaged -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "chat_template.jinja"])
def test_another_base_is_refused_by_name(pair: Pair, patch: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((pair[0] / name).read_bytes())
    data[-1] ^= 1
    (pair[0] / name).write_bytes(data)
    kept = tree(tmp_path)
    with pytest.raises(BadInput, match=rf"not the base of .*'{name}' differs .*--force") as problem:
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
    framed = coding._unframed(PatchFile(patch).read("tensor/a.weight"))
    other = np.ones(48 * 64, np.uint32)

    def spoil(data: bytearray) -> None:
        at = bytes(data).index(framed[2], 8 + length + start)
        planes = coding._unframed(framed[2])
        lowest = planes[0]
        stored = bytearray(coding.inflate(lowest, other.size))
        stored[0] ^= 1
        packed = coding._shortest(bytes(stored))
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


# Forced ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def descendant(pair: Pair, tmp_path: Path) -> Path:
    """The base, tuned a little: every weight is another one, and the files are its own."""
    torch.manual_seed(3)
    tuned = {key: t + 0.01 * torch.randn_like(t) for key, t in random_tensors().items()}
    folder = written(tmp_path / "tuned", tuned, 1, **{"README.md": "mine", "chat_template.jinja": "mine"})
    write_json(folder / MANIFEST, {"kind": "tuned elsewhere", "created": "yesterday"})
    return folder


def test_a_descendant_takes_the_float_difference(pair: Pair, patch: Path, descendant: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--force"):
        carry_patches(descendant, [patch], tmp_path / "out")
    kept = tree(descendant)
    about = carry_patches(descendant, [patch], tmp_path / "out", forced=True)
    assert tree(descendant) == kept
    old, new = random_tensors(), edits_of(random_tensors())
    tuned, found = (load_file(folder / "model.safetensors") for folder in (descendant, tmp_path / "out"))
    assert found.keys() == tuned.keys()
    for key in tuned:
        if key not in new:
            assert torch.equal(found[key], tuned[key])
            continue
        assert torch.allclose(found[key], tuned[key] + (new[key] - old[key]), atol=1e-7)
        assert not torch.allclose(found[key], new[key], atol=1e-3), "that would be the patch's own result"
    others = {name for name in kept if name not in ("model.safetensors", MANIFEST)}
    assert {name: (tmp_path / "out" / name).read_bytes() for name in others} == {name: kept[name] for name in others}

    manifest = read_manifest(tmp_path / "out")
    assert (manifest["kind"], manifest["forced"], manifest["direction"]) == ("patched", True, "apply")
    assert manifest["patch"]["sha256"] == PatchFile(patch).sha256
    assert manifest["patch"]["base"] == {p.name: sha256_of(p) for p in pair[0].iterdir()}
    assert manifest["sha256"] == CheckpointFolder(tmp_path / "out").hashes()
    assert manifest["base"]["sha256"] == CheckpointFolder(descendant).hashes()
    assert [a["method"] for a in manifest["base"]["lineage"]] == ["tuned elsewhere"]
    assert manifest["drift"] == about["patches"][0]["drift"]

    drift = about["patches"][0]["drift"]["tensors"]
    assert drift.keys() == new.keys()
    for key, layer in drift.items():
        distance = float((tuned[key] - old[key]).norm() / old[key].norm())
        assert layer["distance"] == pytest.approx(distance, rel=4 * ERROR)
        assert layer["change"] == pytest.approx(float((new[key] - old[key]).norm() / old[key].norm()), rel=1e-5)
        assert layer["change_here"] == pytest.approx(float((new[key] - old[key]).norm() / tuned[key].norm()), rel=1e-5)


def test_a_forced_patch_can_be_taken_back_nearly(patch: Path, descendant: Path, tmp_path: Path) -> None:
    carry_patches(descendant, [patch], tmp_path / "out", forced=True)
    about = carry_patches(tmp_path / "out", [patch], tmp_path / "back", back=True, forced=True)
    tuned, there, back = (load_file(f / "model.safetensors") for f in (descendant, tmp_path / "out", tmp_path / "back"))
    assert all(torch.allclose(back[key], tuned[key], atol=1e-7) for key in tuned)
    assert not all(torch.allclose(there[key], tuned[key], atol=1e-7) for key in tuned)
    new = edits_of(random_tensors())
    for key, layer in about["patches"][0]["drift"]["tensors"].items():  # now from the patch's result
        distance = float((there[key] - new[key]).norm() / new[key].norm())
        assert layer["distance"] == pytest.approx(distance, rel=4 * ERROR)
    assert read_manifest(tmp_path / "back")["direction"] == "revert"
    assert [a["method"] for a in read_manifest(tmp_path / "back")["base"]["lineage"]] == ["tuned elsewhere", "cvf"]


def test_force_does_not_stand_in_the_way_of_an_exact_patch(pair: Pair, patch: Path, tmp_path: Path) -> None:
    about = carry_patches(pair[0], [patch], tmp_path / "out", forced=True)
    assert about["patches"][0]["exact"]
    assert tree(tmp_path / "out") == tree(pair[1])


@pytest.mark.parametrize("spoilt", ["shape", "name", "integers"])
def test_no_force_onto_what_is_not_related(patch: Path, descendant: Path, tmp_path: Path, spoilt: str) -> None:
    tensors = load_file(descendant / "model.safetensors")
    weight = tensors.pop("a.weight")
    named = {"shape": "a.weight", "name": "x.weight", "integers": "a.weight"}
    values = {"shape": weight[1:].clone(), "name": weight, "integers": weight.int()}
    save_file(tensors | {named[spoilt]: values[spoilt]}, descendant / "model.safetensors", {"format": "pt"})
    kept = tree(tmp_path)
    with pytest.raises(BadInput, match=r"'a.weight'"):
        carry_patches(descendant, [patch], tmp_path / "out", forced=True)
    assert tree(tmp_path) == kept
    save_file(tensors | {"a.weight": weight.half()}, descendant / "model.safetensors", {"format": "pt"})
    carry_patches(descendant, [patch], tmp_path / "out", forced=True)  # another float dtype is none the less one
    assert load_file(tmp_path / "out" / "model.safetensors")["a.weight"].dtype == torch.float16


def test_a_sum_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    before = written(tmp_path / "before", {"w": torch.zeros(4, 4)})
    after = written(tmp_path / "after", {"w": torch.full((4, 4), 1e4)})
    other = written(tmp_path / "other", {"w": torch.full((4, 4), 6e4).half()})
    make_patch(before, after, tmp_path / "p.safetensors")
    with pytest.raises(BadInput, match="no longer finite"):
        carry_patches(other, [tmp_path / "p.safetensors"], tmp_path / "out", forced=True)
    carry_patches(other, [tmp_path / "p.safetensors"], tmp_path / "out", back=True, forced=True)
    assert as_floats((tmp_path / "out" / "model.safetensors").read_bytes()[-32:], "F16").eq(5e4).all()


# The command line -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ending:
        main([str(a) for a in ("patch", *arguments)])
    return int(ending.value.code or 0)


def test_commands(pair: Pair, tmp_path: Path, descendant: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "patches" / "p.safetensors"
    assert run("make", "--before", pair[0], "--after", pair[1], "--out", file) == 0
    assert "3 tensors" in capsys.readouterr().out
    assert run("show", file) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("cvf", "anna", "a.weight", "factors of rank 2", "README.md"))
    assert run("show", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == file.stat().st_size
    assert run("apply", "--model", pair[0], "--patch", file, "--out", tmp_path / "there") == 0
    assert tree(tmp_path / "there") == tree(pair[1])
    assert run("revert", "--model", tmp_path / "there", "--patch", file, "--out", tmp_path / "back") == 0
    assert tree(tmp_path / "back") == tree(pair[0])
    capsys.readouterr()
    forced = ("apply", "--model", descendant, "--patch", file, "--out", tmp_path / "forced", "--force")
    assert run(*forced) == 0
    assert "nothing measured of it holds here" in " ".join(capsys.readouterr().out.split())
    assert run(*forced, "--overwrite", "--json") == 0
    report = json.loads(capsys.readouterr().out)["patches"][0]
    assert not report["exact"]
    assert report["drift"]["summary"]["distance"]["worst"] > 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("make --before before --after gone --out new", "gone: no such folder"),
        ("make --before before --after after --out p.safetensors", "exists"),
        ("make --before before --after after --out after/new", "lies inside after"),
        ("make --before before --after after --out before/config.json --overwrite", "left alone"),
        ("apply --model before --patch gone.safetensors --out new", "no such file"),
        ("apply --model gone --patch p.safetensors --out new", "gone: no such folder"),
        ("apply --model after --patch p.safetensors --out new", "applied to it already"),
        ("revert --model before --patch p.safetensors --out new", "not applied to it"),
        ("apply --model before --patch p.safetensors --out after", "exists"),
        ("apply --model before --patch p.safetensors --out before --overwrite", "before"),
        ("apply --model before --patch before --out new", "Is a directory"),
        ("show before/config.json", "not a patch"),
    ],
)
def test_bad_input_is_one_line(
    pair: Pair,
    patch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tree(tmp_path)
    assert run(*command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unsee: ")
    assert err.count("\n") == 1
    assert says in err
    assert tree(tmp_path) == kept
