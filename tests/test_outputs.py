"""Outputs and requests that broke us: what is written reaches nothing else, goes where it was asked for, and no failure
on the way loses what stands there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import UNLEARN, copied, photos_and_model, run, tree
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unsee.checkpoint import untouched
from unsee.checkpoint.folder import CheckpointFolder, sha256_of
from unsee.checkpoint.patch import make_patch
from unsee.checkpoint.patched import carry_patches
from unsee.checkpoint.untouched import Untouched, check_room, said
from unsee.checkpoint.write import write_edited
from unsee.errors import BadInput

original = pytest.fixture(scope="module")(photos_and_model)
place = pytest.fixture(copied)


# No writer reaches the base -------------------------------------------------------------------------------------------


def sharded(folder: str, shards: int = 12) -> dict[str, str]:
    """The model in several files, as large ones are; returns their hashes."""
    tensors, names = load_file(f"{folder}/model.safetensors"), {}
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        about = file.metadata()
    Path(folder, "model.safetensors").unlink()
    for i in range(shards):
        part = {
            key: tensor for n, (key, tensor) in enumerate(sorted(tensors.items())) if n * shards // len(tensors) == i
        }
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, f"{folder}/{name}", about)
        names |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": names}
    Path(folder, "model.safetensors.index.json").write_text(json.dumps(index))
    return weights_of(folder)


def weights_of(folder: str) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in Path(folder).glob("*.safetensors")}


def spoil(folder: str) -> None:
    """As safetensors before 0.8 saves a file that is there: its bytes are replaced in place."""
    for path in Path(folder).glob("*.safetensors"):
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\x12\x34\x56\x78")


def patched(base: str, out: str, link: bool, back: bool) -> None:
    source = CheckpointFolder(Path(base))
    key = min(source.file_of)
    edits = {key: torch.stack([old for _, old in source.read([key])])[0] + 1}
    write_edited(source, edits, Path("after"), {})
    make_patch(Path(base), Path("after"), Path("p.safetensors"))
    carry_patches(Path("after" if back else base), [Path("p.safetensors")], Path(out), back=back, link=link)


WRITERS: dict[str, Callable[[str, str, bool], object]] = {
    "unlearn": lambda base, out, link: run(
        UNLEARN.replace("--model model", f"--model {base}").replace("--out out", f"--out {out}") + " --link" * link
    ),
    "write_edited": lambda base, out, link: write_edited(CheckpointFolder(Path(base)), {}, Path(out), {}, link=link),
    "patch apply": lambda base, out, link: patched(base, out, link, back=False),
    "patch revert": lambda base, out, link: patched(base, out, link, back=True),
}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_writing_into_an_output_in_place_leaves_the_base_alone(place: Path, writer: str, link: bool) -> None:
    """The control: a hard link, by choice, does reach it."""
    before = sharded("model")
    WRITERS[writer]("model", "out", link)
    read = "after" if writer == "patch revert" else "model"
    before = weights_of(read)
    assert Path("out").is_dir()
    spoil("out")
    changed = {name for name, digest in weights_of(read).items() if digest != before[name]}
    assert bool(changed) is link


def test_a_blob_of_the_hubs_cache_is_not_reached(place: Path) -> None:
    """A snapshot there is a folder of links into the blobs."""
    before = sharded("model")
    Path("snapshot").mkdir()
    for item in Path("model").iterdir():
        Path("snapshot", item.name).symlink_to(item.resolve())
    write_edited(CheckpointFolder(Path("snapshot")), {}, Path("out"), {})
    assert not any(item.is_symlink() for item in Path("out").iterdir())
    spoil("out")
    assert weights_of("model") == before


@pytest.mark.parametrize("way", ["copied", "shared", "linked"])
def test_manifest_and_screen_say_how_weights_came_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    sharded("model")
    monkeypatch.setattr(untouched, "_shares", lambda item, target: way == "shared" and bool(shutil.copy(item, target)))
    assert run(UNLEARN + " --link" * (way == "linked")) == 0
    line = re.search("weight files as they were: (.*)", capsys.readouterr().out)
    manifest = json.loads(Path("out/unsee.json").read_text())
    before, after = weights_of("model"), weights_of("out")
    same = sum(Path("out", name).stat().st_size for name in after if after[name] == before[name])
    assert manifest["untouched"] == {way: same}
    assert line is not None
    assert line[1] == said({way: same}).removeprefix("weight files as they were: ")
    assert way in line[1]


def test_where_nothing_can_be_shared_or_linked_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(os, "link", refuse)
    brought = Untouched(link=True)
    monkeypatch.setattr(untouched, "_shares", lambda *_: False)
    brought.bring(tmp_path / "a", tmp_path / "b")
    assert (dict(brought.bytes), (tmp_path / "b").read_bytes()) == ({"copied": 5}, b"12345")
    assert said({}) == "weight files as they were: none"
    assert said({"copied": 14_100_000_000}) == "weight files as they were: 14.1 GB copied"


@pytest.mark.parametrize("command", ["unlearn", "merge", "patch apply"])
def test_a_copy_that_will_not_fit_is_refused_before_the_edit(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    sharded("model")
    made = UNLEARN.replace("cvf", "nscvf").replace("--out out", "--out edited")
    assert run(made) == 0
    make_patch(Path("model"), Path("edited"), Path("p.safetensors"))
    commands = {
        "unlearn": UNLEARN,
        "merge": "merge --model model --edited edited --data photos --out out",
        "patch apply": "patch apply --model model --patch p.safetensors --out out",
    }
    before = tree(place)
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(untouched, "_shares", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    capsys.readouterr()
    assert run(commands[command]) == 2
    assert re.fullmatch(
        r"unsee: --out out: a copy of the weights takes [\d.]+ kB, and 1.0 kB are free in .*, or add --link\n",
        capsys.readouterr().err,
    )
    assert tree(place) == before
    assert run(commands[command] + " --link") == 0  # nothing is copied but what changes


def test_room_is_not_needed_where_bytes_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4))
    monkeypatch.setattr(untouched, "_shares", lambda *_: True)
    check_room([tmp_path / "a"], tmp_path / "deep" / "out", link=False)
    monkeypatch.setattr(untouched, "_shares", lambda *_: False)
    with pytest.raises(BadInput, match="takes 5 bytes, and 4 bytes are free"):
        check_room([tmp_path / "a"], tmp_path / "deep" / "out", link=False)
    assert [item.name for item in tmp_path.iterdir()] == ["a"]
