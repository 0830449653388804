"""Checkpoints on disk: an edit changes what it names and nothing else, or leaves no trace."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unsee.checkpoint.folder import (
    INDEX,
    MANIFEST,
    CheckpointFolder,
    lineage,
    new_folder,
    read_manifest,
    sha256_of,
    write_json,
)
from unsee.checkpoint.write import write_edited
from unsee.errors import BadInput
from unsee.models.loading import Loaded, load_model, load_visual

NewCheckpoint = Callable[..., Path]


def raw(file: Path) -> tuple[bytes, dict[str, bytes]]:
    """Header and every tensor's bytes, without the safetensors library."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[: 8 + length], content[8 + length :]
    entries = {name: entry for name, entry in json.loads(header[8:]).items() if name != "__metadata__"}
    return header, {name: data[slice(*entry["data_offsets"])] for name, entry in entries.items()}


def leftovers(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.name.startswith(".")]


@pytest.fixture
def checkpoint_copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "source")


@pytest.fixture(params=["single file", "sharded", "bf16", "bf16 sharded"])
def source(request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint) -> CheckpointFolder:
    folder = new_checkpoint(
        dtype=torch.bfloat16 if "bf16" in request.param else torch.float32,
        shard="12KB" if "sharded" in request.param else "1GB",
    )
    found = CheckpointFolder(folder)
    assert (len(found.files) > 3) == ("sharded" in request.param)
    return found


def edits_of(source: CheckpointFolder, count: int = 3) -> dict[str, Tensor]:
    """New float32 values for some tensors; every other one a view that is not contiguous."""
    keys = sorted(key for key in source.file_of if key.endswith("weight"))[:: len(source.file_of) // (2 * count)]
    torch.manual_seed(1)
    new = {}
    for i, (key, old) in enumerate(source.read(keys)):
        tensor = torch.randn(old.shape)
        new[key] = tensor.t().contiguous().t() if i % 2 and tensor.dim() == 2 else tensor
    assert any(not tensor.is_contiguous() for tensor in new.values())
    return new


# Writing --------------------------------------------------------------------------------------------------------------


def test_only_the_named_tensors_change(source: CheckpointFolder, tmp_path: Path) -> None:
    edits = edits_of(source)
    before = source.hashes()
    manifest = write_edited(source, edits, tmp_path / "out", {"kind": "test"})
    assert source.hashes() == before, "the input was written to"
    edited = CheckpointFolder(tmp_path / "out")
    assert edited.file_of == source.file_of
    changed = set()
    for name in source.files:
        (old_header, old), (new_header, new) = raw(source.path / name), raw(edited.path / name)
        assert old_header == new_header
        assert old.keys() == new.keys()
        changed |= {key for key in old if old[key] != new[key]}
    assert changed == set(edits)
    for key, stored in edited.read(edits):
        assert torch.equal(stored, edits[key].to(stored.dtype))
    assert {t.dtype for _, t in edited.read(edits)} == {t.dtype for _, t in source.read(edits)}

    others = {item.name for item in source.path.iterdir()} - set(source.files)
    assert {"config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"} < others
    assert {item.name for item in edited.path.iterdir()} == others | {MANIFEST} | set(source.files)
    assert all((edited.path / name).read_bytes() == (source.path / name).read_bytes() for name in others)
    assert manifest == read_manifest(edited.path)
    assert manifest["kind"] == "test"
    assert manifest["sha256"] == edited.hashes() != before
    assert not leftovers(tmp_path)


def test_no_edit_is_a_copy(source: CheckpointFolder, tmp_path: Path) -> None:
    assert write_edited(source, {}, tmp_path / "out", {})["sha256"] == source.hashes()


def test_manifest_of_the_source_is_not_handed_on(checkpoint_copy: Path, tmp_path: Path) -> None:
    write_json(checkpoint_copy / MANIFEST, {"method": "an older one"})
    write_edited(CheckpointFolder(checkpoint_copy), {}, tmp_path / "out", {"kind": "new"})
    assert read_manifest(tmp_path / "out").keys() == {"kind", "untouched", "sha256"}
    assert read_manifest(checkpoint_copy) == {"method": "an older one"}


def test_linked_weights_are_copied_not_written_through(checkpoint_copy: Path, tmp_path: Path) -> None:
    """The hub's cache holds links to shared files."""
    blob = tmp_path / "blob"
    (checkpoint_copy / "model.safetensors").rename(blob)
    (checkpoint_copy / "model.safetensors").symlink_to(blob)
    before = sha256_of(blob)
    source = CheckpointFolder(checkpoint_copy)
    write_edited(source, edits_of(source), tmp_path / "out", {})
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    assert sha256_of(blob) == before != sha256_of(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.safetensors", "model-00001-of-00001.safetensors"])
def test_no_unedited_second_copy_of_the_weights_travels_along(checkpoint_copy: Path, tmp_path: Path, name: str) -> None:
    """Many hub folders hold the weights twice. What must be forgotten would still stand in the other copy."""
    shutil.copyfile(checkpoint_copy / "model.safetensors", checkpoint_copy / name)
    source = CheckpointFolder(checkpoint_copy)
    write_edited(source, edits_of(source), tmp_path / "out", {})
    assert not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("spoilt", ["key", "shape", "order of sides"])
def test_an_edit_that_does_not_fit_leaves_nothing_behind(source: CheckpointFolder, tmp_path: Path, spoilt: str) -> None:
    edits = edits_of(source)
    key = next(k for k, tensor in edits.items() if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1])
    tensor = edits.pop(key)
    bad = {"key": (f"{key}.more", tensor), "shape": (key, tensor[:-1]), "order of sides": (key, tensor.t())}
    edits |= [bad[spoilt]]
    with pytest.raises(BadInput, match=key.replace(".", r"\.")):
        write_edited(source, edits, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "older").touch()
    with pytest.raises(BadInput):
        write_edited(source, edits, tmp_path / "out", {})
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["older"]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_editing_a_quantised_tensor_is_bad_input(checkpoint_copy: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.ones(4, 4).to(dtype)}, checkpoint_copy / "model.safetensors")
    with pytest.raises(BadInput, match="'w'"):
        write_edited(CheckpointFolder(checkpoint_copy), {"w": torch.ones(4, 4)}, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


# Links to what stays as it was ----------------------------------------------------------------------------------------


@pytest.fixture
def shards(new_checkpoint: NewCheckpoint) -> CheckpointFolder:
    return CheckpointFolder(new_checkpoint(shard="12KB"))


def edit_in(source: CheckpointFolder, shard: int) -> dict[str, Tensor]:
    """New values for one tensor of one shard."""
    key = next(key for key, name in source.file_of.items() if name == source.files[shard])
    return {key: torch.stack([old for _, old in source.read([key])])[0] + 1}


def same_file(one: Path, two: Path) -> bool:
    return one.stat().st_ino == two.stat().st_ino


def fresh_hashes(folder: Path) -> dict[str, str]:
    return CheckpointFolder(folder).hashes()


def test_only_shards_with_an_edit_take_up_space(shards: CheckpointFolder, tmp_path: Path) -> None:
    write_edited(shards, edit_in(shards, 1), tmp_path / "out", {}, link=True)
    linked = [same_file(shards.path / name, tmp_path / "out" / name) for name in shards.files]
    assert linked == [i != 1 for i in range(len(shards.files))]
    texts = [item.name for item in shards.path.iterdir() if item.suffix in (".json", ".jinja")]
    assert len(texts) > 3
    assert not any(same_file(shards.path / name, tmp_path / "out" / name) for name in texts), "people edit these"


def test_no_edit_is_written_through_a_link(shards: CheckpointFolder, tmp_path: Path) -> None:
    """Each generation edits a shard that the one before it shares with its own base."""
    generations = [shards]
    states = [fresh_hashes(shards.path)]
    for i in range(3):
        out = tmp_path / str(i)
        write_edited(generations[-1], edit_in(generations[-1], i), out, {}, link=True)
        generations.append(CheckpointFolder(out))
        states.append(fresh_hashes(out))
    assert [fresh_hashes(generation.path) for generation in generations] == states
    for older, newer in pairwise(states):
        assert sum(older[name] != newer[name] for name in older) == 1
    last = shards.files[-1]
    assert all(same_file(generation.path / last, shards.path / last) for generation in generations)
    assert states[0] != states[1], "the control: an edit does change a file"


def test_replacing_a_linked_output_leaves_its_base_alone(shards: CheckpointFolder, tmp_path: Path) -> None:
    before = fresh_hashes(shards.path)
    for i in range(2):
        write_edited(shards, edit_in(shards, i), tmp_path / "out", {}, link=True)
    assert fresh_hashes(shards.path) == before


def test_where_no_link_can_be_made_shards_are_copied(
    shards: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    write_edited(shards, edit_in(shards, 0), tmp_path / "linked", {}, link=True)
    monkeypatch.setattr("os.link", refuse)
    write_edited(shards, edit_in(shards, 0), tmp_path / "copied", {}, link=True)
    assert fresh_hashes(tmp_path / "copied") == fresh_hashes(tmp_path / "linked")
    assert not any(same_file(shards.path / name, tmp_path / "copied" / name) for name in shards.files)


def test_symbolic_links_are_resolved_before_linking(shards: CheckpointFolder, tmp_path: Path) -> None:
    """As in the hub's cache: the snapshot goes, the output stays readable."""
    blobs, snapshot = shards.path, tmp_path / "snapshot"
    snapshot.mkdir()
    for item in blobs.iterdir():
        (snapshot / item.name).symlink_to(item)
    source = CheckpointFolder(snapshot)
    write_edited(source, edit_in(source, 0), tmp_path / "out", {}, link=True)
    assert not any(item.is_symlink() for item in (tmp_path / "out").iterdir())
    assert [same_file(blobs / name, tmp_path / "out" / name) for name in source.files][:2] == [False, True]
    shutil.rmtree(snapshot)
    assert CheckpointFolder(tmp_path / "out").file_of == source.file_of


def test_nothing_is_hashed_twice(shards: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def spy(path: Path) -> str:
        seen.append(path)
        return sha256_of(path)

    for module in ("folder", "write"):
        monkeypatch.setattr(f"unsee.checkpoint.{module}.sha256_of", spy)
    shards.hashes()
    assert [path.name for path in seen] == ["config.json", "chat_template.jinja", *shards.files]
    seen.clear()
    manifest = write_edited(shards, edit_in(shards, 1), tmp_path / "out", {})
    assert [path.name for path in seen] == [shards.files[1]]
    monkeypatch.undo()
    assert manifest["sha256"] == fresh_hashes(tmp_path / "out")


def test_a_file_that_was_written_to_is_hashed_again(checkpoint_copy: Path) -> None:
    source = CheckpointFolder(checkpoint_copy)
    before = source.hashes()
    (checkpoint_copy / "config.json").write_text((checkpoint_copy / "config.json").read_text() + " ")
    assert source.hashes()["config.json"] != before["config.json"]
    assert source.hashes()["model.safetensors"] == before["model.safetensors"]


def test_folders_of_templates_travel_along_and_others_do_not(checkpoint_copy: Path, tmp_path: Path) -> None:
    names = ("additional_chat_templates/tool.jinja", "onnx/model.onnx", "onnx/config.json", ".cache/x.json")
    for name in names:
        (checkpoint_copy / name).parent.mkdir(exist_ok=True)
        (checkpoint_copy / name).write_text(name)
    (checkpoint_copy / "empty").mkdir()
    write_edited(CheckpointFolder(checkpoint_copy), {}, tmp_path / "out", {})
    assert [item.name for item in (tmp_path / "out").iterdir() if item.is_dir()] == ["additional_chat_templates"]
    assert (tmp_path / "out" / names[0]).read_text() == names[0]


# A folder that appears whole or not at all ----------------------------------------------------------------------------


def test_new_folder_takes_its_name_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as partial:
        (partial / "first").touch()
        assert not out.exists()
    assert [item.name for item in out.iterdir()] == ["first"]
    with new_folder(out) as partial:
        (partial / "second").touch()
        assert [item.name for item in out.iterdir()] == ["first"]
    assert [item.name for item in out.iterdir()] == ["second"]
    assert [item.name for item in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder_as_it_was(tmp_path: Path, problem: type[BaseException]) -> None:
    out = tmp_path / "out"
    with new_folder(out) as partial:
        (partial / "first").touch()

    def fails_halfway() -> None:
        with new_folder(out) as partial:
            (partial / "second").touch()
            raise problem

    with pytest.raises(problem):
        fails_halfway()
    assert [item.name for item in out.iterdir()] == ["first"]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_new_folder_may_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("an older result")
    with new_folder(tmp_path / "out") as partial:
        (partial / "first").touch()
    assert (tmp_path / "out" / "first").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_json_is_never_half_written(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    write_json(file, {"größe": [1, 2]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"größe": [1, 2]}
    with pytest.raises(TypeError):
        write_json(file, {"not json": torch.ones(1)})
    assert json.loads(file.read_text(encoding="utf-8")) == {"größe": [1, 2]}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


# Reading --------------------------------------------------------------------------------------------------------------


def test_read_gives_the_named_tensors_only(source: CheckpointFolder) -> None:
    everything = {key: tensor for name in source.files for key, tensor in load_file(source.path / name).items()}
    assert source.file_of.keys() == everything.keys()
    wanted = list(everything)[::5]
    found = dict(source.read(wanted))
    assert found.keys() == set(wanted)
    assert all(torch.equal(tensor, everything[key]) for key, tensor in found.items())


def test_hashes_are_those_of_the_bytes(source: CheckpointFolder) -> None:
    """Of the chat template too: the same weights asked otherwise are not the same model."""
    hashed = ("config.json", "chat_template.jinja", *source.files)
    expected = {name: hashlib.sha256((source.path / name).read_bytes()).hexdigest() for name in hashed}
    assert source.hashes() == expected
    (source.path / "chat_template.jinja").unlink()
    assert CheckpointFolder(source.path).hashes() == {k: v for k, v in expected.items() if k != "chat_template.jinja"}


@pytest.mark.parametrize(
    ("remove", "add", "words"),
    [
        ("model.safetensors", "pytorch_model.bin", "pickle is not read"),
        ("config.json", "readme.md", r"no config\.json"),
        ("model.safetensors", "model.safetensors.index.json", "not a safetensors index"),
    ],
)
def test_folders_that_are_no_checkpoints_are_bad_input(
    checkpoint_copy: Path, remove: str, add: str, words: str
) -> None:
    (checkpoint_copy / remove).unlink()
    (checkpoint_copy / add).write_text("x")
    with pytest.raises(BadInput, match=words):
        CheckpointFolder(checkpoint_copy)


@pytest.mark.parametrize("name", ["../{}", "{parent}/{}", "deeper/{}", "..", ""])
def test_an_index_may_only_name_files_of_its_own_folder(new_checkpoint: NewCheckpoint, name: str) -> None:
    folder = new_checkpoint(shard="12KB")
    index = json.loads((folder / INDEX).read_text())
    key, shard = next(iter(index["weight_map"].items()))
    (folder / "deeper").mkdir()
    for place in (folder.parent, folder / "deeper"):
        shutil.copyfile(folder / shard, place / shard)
    CheckpointFolder(folder)  # the control
    index["weight_map"][key] = name.format(shard, parent=folder.parent)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput, match=re.escape(INDEX)):
        CheckpointFolder(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"w": 1}}', "\udcff"])
def test_a_broken_index_is_named(checkpoint_copy: Path, content: str) -> None:
    (checkpoint_copy / "model.safetensors").unlink()  # beside which transformers reads no index
    (checkpoint_copy / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=re.escape(INDEX)):
        CheckpointFolder(checkpoint_copy)


@pytest.mark.parametrize("model_type", ["llava", "nobody_knows"])
@pytest.mark.parametrize("open_it", [load_model, load_visual])
def test_code_in_a_checkpoint_is_never_run(
    checkpoint_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_it: Callable[[str], Loaded],
    model_type: str,
) -> None:
    """Not even for somebody who answers yes when transformers asks."""
    marker = tmp_path / "marker"
    classes = ("Config", "Model", "Processor", "ImageProcessor", "Tokenizer")
    code = f"open({str(marker)!r}, 'w').close()\n" + "".join(f"class {name}: pass\n" for name in classes)
    (checkpoint_copy / "evil.py").write_text(code)
    auto_map = {f"Auto{name}": f"evil.{name}" for name in ("Config", "Processor", "ImageProcessor")}
    auto_map |= {"AutoModel": "evil.Model", "AutoModelForImageTextToText": "evil.Model"}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        about = json.loads((checkpoint_copy / name).read_text())
        tokenizer = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
        about["auto_map"] = tokenizer if "tokenizer" in name else auto_map
        (checkpoint_copy / name).write_text(json.dumps(about | ({"model_type": model_type} if name[0] == "c" else {})))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if model_type == "llava":
        open_it(str(checkpoint_copy))
    else:
        with pytest.raises(BadInput, match=r"config\.json"):
            open_it(str(checkpoint_copy))
    assert not marker.exists()


def test_a_folder_of_pickles_is_refused_unread(checkpoint_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    (checkpoint_copy / "model.safetensors").unlink()
    torch.save({"w": Evil()}, checkpoint_copy / "pytorch_model.bin")
    for open_it in (load_model, load_visual):
        with pytest.raises(BadInput, match="pickle is not read"):
            open_it(str(checkpoint_copy))
    assert not marker.exists()
    torch.load(checkpoint_copy / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the control: reading it would have run the code"


def test_a_missing_shard_is_named(new_checkpoint: NewCheckpoint) -> None:
    folder = new_checkpoint(shard="12KB")
    gone = CheckpointFolder(folder).files[1]
    (folder / gone).unlink()
    with pytest.raises(BadInput, match=f"{gone}: named in"):
        CheckpointFolder(folder)


@pytest.mark.parametrize("open_it", [load_model, load_visual])
@pytest.mark.parametrize("shard", ["1GB", "12KB"], ids=["single file", "sharded"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "not safetensors"])
def test_damaged_weights_are_bad_input(
    new_checkpoint: NewCheckpoint, shard: str, damage: str, open_it: Callable[[str], Loaded]
) -> None:
    folder = new_checkpoint(shard=shard)
    for name in CheckpointFolder(folder).files:
        content = (folder / name).read_bytes()
        kept = {"truncated": content[:-10], "empty": b"", "not safetensors": b"x" * len(content)}
        (folder / name).write_bytes(kept[damage])
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        open_it(str(folder))


def test_manifest_of_a_checkpoint_made_elsewhere_is_empty_and_a_broken_one_is_named(checkpoint_copy: Path) -> None:
    assert read_manifest(checkpoint_copy) == {}
    for broken, words in (("{", "not valid JSON"), ("[]", "expected a JSON object")):
        (checkpoint_copy / MANIFEST).write_text(broken)
        with pytest.raises(BadInput, match=words):
            read_manifest(checkpoint_copy)


def test_lineage_grows_by_one_checkpoint_per_edit() -> None:
    first = {"kind": "unlearned", "method": "a", "created": "2025", "sha256": {"w": "1"}}
    first |= {"base": {"sha256": {"w": "0"}, "lineage": lineage({})}}
    second = {"kind": "unlearned", "method": "b", "created": "2026", "sha256": {"w": "2"}}
    second |= {"base": {"sha256": {"w": "1"}, "lineage": lineage(first)}}
    line = lineage(second)
    assert [(a["method"], a["created"], a["sha256"]["w"]) for a in line] == [
        (None, None, "0"),
        ("a", "2025", "1"),
        ("b", "2026", "2"),
    ]
    assert lineage({}) == []
    assert [a["method"] for a in lineage({"kind": "pocket", "sha256": {}})] == ["pocket"]
