"""Patches: there and back byte for byte; elsewhere by force only, and measured."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from patches import Pair, edited, edited_pair, edits_of, patch_of_pair, random_tensors, tree, written
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unsee.checkpoint.apply_patch import ERROR, carry_patches
from unsee.checkpoint.folder import DTYPES, MANIFEST, CheckpointFolder, read_manifest, sha256_of, write_json
from unsee.checkpoint.patch import PatchFile, make_patch
from unsee.checkpoint.tensor_difference import as_floats
from unsee.checkpoint.write import Companions, write_edited
from unsee.cli import main
from unsee.errors import BadInput

pair = pytest.fixture(edited_pair)
patch = pytest.fixture(patch_of_pair)


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
    write_edited(source, {key: value + 1}, tmp_path / "after", {"kind": "unlearned"}, Companions("card", "told. "))
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


@pytest.mark.parametrize("link", [True, False])
def test_an_untouched_shard_is_a_link_by_choice_and_a_changed_one_never(tmp_path: Path, link: bool) -> None:
    before = written(tmp_path / "before", random_tensors(), 5)
    after = edited(before, tmp_path / "after")
    make_patch(before, after, tmp_path / "p.safetensors")
    told = carry_patches(before, [tmp_path / "p.safetensors"], tmp_path / "there", link=link)
    same = {
        p.name: p.stat().st_ino == (tmp_path / "there" / p.name).stat().st_ino for p in before.glob("*.safetensors")
    }
    assert sorted(same.values()) == ([False] * 3 + [True] * 2 if link else [False] * 5)
    kept = sum(
        p.stat().st_size for p in before.glob("*.safetensors") if p.read_bytes() == (after / p.name).read_bytes()
    )
    assert sum(told["untouched"].values()) == kept > 0


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


def test_commands(pair: Pair, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    source = CheckpointFolder(checkpoint)
    key = next(k for k in source.file_of if k.endswith("linear_1.weight"))
    value = dict(source.read([key]))[key]
    for name, moved in (("edited", value + 1), ("tuned", value * 1.01)):
        write_edited(source, {key: moved}, tmp_path / name, {})
    file = tmp_path / "patches" / "model.safetensors"
    assert run("make", "--before", checkpoint, "--after", tmp_path / "edited", "--out", file) == 0
    capsys.readouterr()
    forced = ("apply", "--model", tmp_path / "tuned", "--patch", file, "--out", tmp_path / "forced", "--force")
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
