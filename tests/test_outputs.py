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
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from command_line import EVALUATE, UNLEARN, copied, photos_and_model, run, tree
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unsee.checkpoint import write
from unsee.checkpoint.apply_patch import carry_patches
from unsee.checkpoint.folder import CheckpointFolder, sha256_of
from unsee.checkpoint.patch import make_patch
from unsee.checkpoint.write import Untouched, check_room, said, write_edited
from unsee.cli.options import at_home
from unsee.errors import BadInput
from unsee.models.loading import locate

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
    monkeypatch.setattr(write, "_shares", lambda item, target: way == "shared" and bool(shutil.copy(item, target)))
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
    monkeypatch.setattr(write, "_shares", lambda *_: False)
    brought.bring(tmp_path / "a", tmp_path / "b")
    assert (dict(brought.bytes), (tmp_path / "b").read_bytes()) == ({"copied": 5}, b"12345")
    assert said({}) == "weight files as they were: none"
    assert said({"copied": 14_100_000_000}) == "weight files as they were: 14.1 GB copied"


@pytest.mark.parametrize("command", ["unlearn", "study merge", "patch apply"])
def test_a_copy_that_will_not_fit_is_refused_before_the_edit(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    sharded("model")
    made = UNLEARN.replace("cvf", "nscvf").replace("--out out", "--out edited")
    assert run(made) == 0
    make_patch(Path("model"), Path("edited"), Path("p.safetensors"))
    commands = {
        "unlearn": UNLEARN,
        "study merge": "study merge --model model --edited edited --data photos --out out",
        "patch apply": "patch apply --model model --patch p.safetensors --out out",
    }
    before = tree(place)
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(write, "_shares", lambda *_: False)
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
    monkeypatch.setattr(write, "_shares", lambda *_: True)
    check_room([tmp_path / "a"], tmp_path / "deep" / "out", link=False)
    monkeypatch.setattr(write, "_shares", lambda *_: False)
    with pytest.raises(BadInput, match="takes 5 bytes, and 4 bytes are free"):
        check_room([tmp_path / "a"], tmp_path / "deep" / "out", link=False)
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


# Where it was asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["there", "not yet", "relative"])
def test_an_output_that_is_a_link_is_written_through_and_stays_a_link(place: Path, target: str) -> None:
    """A link to a bigger disk: what is temporary stands there too."""
    disk = place.parent / "disk"
    disk.mkdir()
    if target == "there":
        (disk / "model").mkdir()
    link = Path("out")
    link.symlink_to("../disk/model" if target == "relative" else disk / "model")
    seen: list[Path] = []
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        seen.extend((Path(old), Path(new)))
        real(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert run(UNLEARN + " --overwrite") == 0
    assert link.is_symlink()
    assert CheckpointFolder(disk / "model").files
    assert {path.parent for path in seen if path.name.endswith(".partial") and "model" in path.name} == {disk}
    assert [item.name for item in disk.iterdir()] == ["model"]
    assert run(UNLEARN.replace("--out out", "--out plain")) == 0  # the control
    assert not Path("plain").is_symlink()


FILES = {
    "moments fit": "moments fit --model model --data photos --out out",
    "export": "benchmark export --data photos --out out.parquet",
    "patch make": "patch make --before model --after other --out out",
}


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_is_a_link_is_written_through_too(place: Path, command: str) -> None:
    shutil.copytree("model", "other")
    tensors = load_file("other/model.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, "other/model.safetensors", {"format": "pt"})
    disk = place.parent / "disk"
    disk.mkdir()
    link = Path(FILES[command].split()[-1])
    link.symlink_to(disk / "file")
    assert run(FILES[command]) == 0
    assert link.is_symlink()
    assert [item.name for item in disk.iterdir()] == ["file"]


def loop() -> None:
    Path("out").symlink_to("back")
    Path("back").symlink_to("out")


NOWHERE: dict[str, tuple[Callable[[], object], str, str]] = {  # what --out is -> preparation, command, what is said
    "a link into no folder": (
        lambda: Path("out").symlink_to("../gone/model"),
        UNLEARN,
        r"--out out: .*out is a link to \.\./gone/model, where no folder is to hold it",
    ),
    "a folder below such a link": (
        lambda: Path("out").symlink_to("../gone/disk"),
        EVALUATE.replace("--out out", "--out out/deep/er"),
        r"--out out/deep/er: .*out is a link to \.\./gone/disk",
    ),
    "a link to itself": (loop, UNLEARN, "--out out: .* a link that leads to itself"),
    "a device": (
        lambda: None,
        "benchmark export --data photos --out /dev/full",
        "--out /dev/full: is a device or a pipe",
    ),
    "a device in a folder's place": (lambda: None, EVALUATE.replace("--out out", "--out /dev/null"), "is a device"),
    "a pipe": (lambda: os.mkfifo("out"), FILES["moments fit"] + " --overwrite", "--out out: is a device or a pipe"),
    "a mounted disk": (lambda: None, UNLEARN.replace("--out out", "--out / --overwrite"), "a disk is mounted there"),
}


@pytest.mark.parametrize("what", NOWHERE)
def test_an_output_that_leads_nowhere_is_refused_before_the_work(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    make, command, says = NOWHERE[what]
    make()
    monkeypatch.setattr("unsee.data.sources.load_data", lambda _: pytest.fail("the work began"))
    names = sorted(path.name for path in place.iterdir())
    assert run(command) == 2
    assert re.fullmatch(rf"unsee: .*{says}[^\n]*\n", capsys.readouterr().err)
    assert sorted(path.name for path in place.iterdir()) == names


HOME = {  # argument -> what a command sees
    "--out=~/x": "--out=HOME/x",
    "~/x": "HOME/x",
    "~": "HOME",
    "vanilla=~/x": "vanilla=HOME/x",
    "--model=gold-2=~/x": "--model=gold-2=HOME/x",
    "@~/names.txt": "@HOME/names.txt",
    "mask_file=~/m": "mask_file=HOME/m",
    "people:count=3": "people:count=3",
    "~nobody-of-that-name/x": "~nobody-of-that-name/x",
    "a~/x": "a~/x",
    "x/~/y": "x/~/y",
    "--forget": "--forget",
}


@pytest.mark.parametrize("argument", HOME)
def test_home_is_meant_where_a_path_begins(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    assert at_home(argument) == HOME[argument].replace("HOME", "/home/of")


@pytest.mark.parametrize(
    "command",
    [
        UNLEARN.replace("--model model", "--model=~/model").replace("--out out", "--out=~/out"),
        UNLEARN.replace("nscvf", "cvf").replace("anna", "@~/names.txt").replace("--data photos", "--data=~/photos"),
        EVALUATE.replace("=model", "=~/model"),
        "moments fit --model model --data photos --out=~/out",
        "request add --ledger=~/out --id r1 --data photos --forget anna",
    ],
)
def test_commands_find_what_is_in_the_home_folder(place: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("HOME", str(place))
    Path("names.txt").write_text("anna\n")
    assert run(command) == 0
    assert Path("out").exists()
    assert not Path("~").exists()


def test_models_of_a_grid_may_be_in_the_home_folder_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert locate("~/model") == place / "model"
    with pytest.raises(BadInput, match="no such folder"):
        locate("~/gone")


# Requests -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def book(place: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run("request add --ledger book --id r1 --data photos --forget anna") == 0
    capsys.readouterr()
    return place


def more(number: int) -> None:
    for i in range(number):
        Image.effect_noise((12, 12), 40 + i).save(f"photos/anna/new-{i}.png")


def fewer(number: int) -> None:
    for i in range(number):
        Path(f"photos/anna/{i}.png").unlink()


def others() -> None:
    Image.effect_noise((12, 12), 50).save("photos/anna/0.png")


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "one more": (
        lambda: more(1),
        "has 7 pictures of it, 1 more than when it was added; to forget the new ones too, with",
    ),
    "two more": (lambda: more(2), "has 8 pictures of it, 2 more .*add it anew under another id, else take them out"),
    "fewer": (lambda: fewer(1), "has 5 pictures of it, not 6; bring the others back"),
    "others": (others, "has other pictures of it than there were; bring those back"),
    "a subject less": (lambda: shutil.rmtree("photos/anna"), "has 0 of its 1 subjects; bring them back"),
}
REQUEST = "request run --ledger book --model model --data photos --method cvf --set steps=1 --out out"


@pytest.mark.parametrize("change", CHANGES)
def test_pictures_that_came_or_went_are_said_as_they_are(
    book: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    make, says = CHANGES[change]
    make()
    before = tree(book)
    assert run(REQUEST) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"unsee: request r1 is no longer testable: \S+ {says}.*\n", said)
    assert ("bring" in said) is ("more" not in change), "what came cannot be brought back"
    assert tree(book) | {"book/lock": ""} == before | {"book/lock": ""}
    assert run("request verify --ledger book --data photos") == 1
    assert re.search(says.split(";")[0].split(" .*")[0], " ".join(capsys.readouterr().out.split()))


def test_the_way_on_with_more_pictures_works(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more(2)
    for command in ("withdraw --ledger book --id r1", "add --ledger book --id r2 --data photos --forget anna"):
        assert run(f"request {command}") == 0
    assert "8 pictures" in capsys.readouterr().out
    assert run("request verify --ledger book --data photos") == 0  # r1 is withdrawn: not checked
    assert "request r2 ok" in " ".join(capsys.readouterr().out.split())


def day(offset: int) -> str:
    return (datetime.now(timezone.utc).date() + timedelta(days=offset)).isoformat()


DATES: dict[str, str | None] = {  # what --date is -> what is said; None: taken
    "2099-01-01": "date 2099-01-01: is in the future, by this machine's clock it is TODAY",
    "+2": "is in the future, by this machine's clock it is TODAY",
    "1969-12-31": "date 1969-12-31: is before 1970-01-01",
    "0001-01-01": "date 0001-01-01: is before 1970-01-01",
    "2026-W05-6": "--date 2026-W05-6: expected a day as YYYY-MM-DD",
    "２０２６-01-31": "expected a day as YYYY-MM-DD",
    "20260131": "expected a day as YYYY-MM-DD",
    "31.01.2026": "expected a day as YYYY-MM-DD",
    "2026-02-30": "expected a day as YYYY-MM-DD",
    "2026-01-31T09:00": "expected a day as YYYY-MM-DD",
    "+1": None,  # it is tomorrow already, somewhere
    "+0": None,
    "1970-01-01": None,
    "2024-02-29": None,
}


@pytest.mark.parametrize("date", DATES)
def test_dates_that_cannot_be_are_refused(place: Path, capsys: pytest.CaptureFixture[str], date: str) -> None:
    given, says = day(int(date)) if date.startswith("+") else date, DATES[date]
    code = run(f"request add --ledger book --id r1 --data photos --forget anna --date {given}")
    assert code == (0 if says is None else 2)
    if says is not None:
        assert says.replace("TODAY", day(0)) in capsys.readouterr().err
        assert not Path("book/ledger.jsonl").exists()
    else:
        assert f'"date":"{given}"' in Path("book/ledger.jsonl").read_text()
