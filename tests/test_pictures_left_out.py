"""Folders of pictures: every file is read, refused by name, or counted; the same files are the same data anywhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from tables_written import refused_in_one_line

from unsee.data import pictures as pictures_module
from unsee.data.examples import SPLITS, UnlearnData
from unsee.data.export import export_data
from unsee.data.photos import photos_data
from unsee.data.pictures import decode
from unsee.data.sources import load_data
from unsee.data.splits import share_out
from unsee.errors import BadInput, readable

pytestmark = pytest.mark.usefixtures("readings")

NFC, NFD = "jos\u00e9", "jose\u0301"
UNDECODABLE = os.fsdecode(b"caf\xe9")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a file system that takes any bytes as a name")


def scene(seed: str, side: int = 24) -> Image.Image:
    noise = np.random.default_rng(list(seed.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def draw(path: Path, kind: str | None = None) -> Path:
    """A picture like no other, in the format its name says or in this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.register_heif_opener()
    scene(readable(str(path))).save(path, kind)
    return path


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for subject in ("anna", "bob"):
        for number in range(5):
            draw(tmp_path / "album" / subject / f"{number}.png")
    return tmp_path / "album"


def names(data: UnlearnData) -> list[str]:
    return sorted(os.path.basename(image.label) for split in SPLITS for image in data.split(split).pictures)


def said(folder: Path, capsys: pytest.CaptureFixture[str], more: str = "") -> str:
    capsys.readouterr()
    load_data(f"{folder}{more}")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


# Read -----------------------------------------------------------------------------------------------------------------

READ: dict[str, tuple[str, str | None]] = {
    "heic": ("new.heic", "HEIF"),
    "heif in capitals": ("NEW.HEIF", "HEIF"),
    "heic that is called jpg": ("new.jpg", "HEIF"),
    "avif": ("new.avif", "AVIF"),
    "jfif": ("new.jfif", "JPEG"),
    "jpe": ("new.jpe", "JPEG"),
    "apng": ("new.apng", "PNG"),
    "mpo": ("new.mpo", "MPO"),
    "jpeg without an ending": ("IMG_1234", "JPEG"),
    "png with another ending": ("photo.png_large", "PNG"),
    "webp with another ending": ("new.webp.1", "WEBP"),
    "in a sub-folder": ("2019/new.png", None),
    "two folders deep": ("a/b/new.jpg", None),
    "a name of its own twice, in sub-folders": ("2020/0.png", None),
}


@pytest.mark.parametrize("case", READ)
def test_pictures_of_any_name_and_depth_are_read(case: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, kind = READ[case]
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    draw(album / "anna" / name, kind)
    data = photos_data(str(album))
    assert os.path.basename(name) in names(data)
    assert len(names(data)) == 11
    assert "read 11 pictures of 11 files" in said(album, capsys)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_new_formats_are_upright_and_in_their_colours(kind: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    halves = Image.new("RGB", (64, 32), "white")
    halves.paste((200, 0, 0), (0, 0, 32, 32))
    turned = Image.Exif()
    turned[0x0112] = 6
    halves.save(tmp_path / "x", kind, exif=turned.tobytes())
    for read in (decode(str(tmp_path / "x"), "x"), decode((tmp_path / "x").read_bytes(), "x")):
        assert read.size == (32, 64)
        assert read.getpixel((16, 10))[1] < 40 < 200 < read.getpixel((16, 54))[1]  # type: ignore[index]
    content = (tmp_path / "x").read_bytes()
    with pytest.raises(BadInput, match="x: cannot be read as a picture"):
        decode(content[: len(content) * 2 // 3], "x")


@pytest.mark.parametrize("name", ["new.heic", "new.jpg", "IMG_1"])
def test_without_pillow_heif_one_line_says_what_to_install(
    name: str, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(album / "anna" / name, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadInput, match=rf"anna/{name}: is a HEIC picture, .*pip install 'unsee\[heif\]'"):
        photos_data(str(album))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_pillow_without_avif_is_told_what_to_install(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(album / "anna/new.avif")
    assert len(names(photos_data(str(album)))) == 11
    monkeypatch.setattr(pictures_module.features, "check", lambda feature: False)
    with pytest.raises(BadInput, match=r"new\.avif: is an AVIF picture, .*pip install -U 'pillow>=11\.3'"):
        photos_data(str(album))


def test_an_exported_heic_is_readable_without_any_package(album: Path, tmp_path: Path) -> None:
    draw(album / "anna/new.heic", "HEIF")
    data = photos_data(str(album))
    assert "new.heic" in names(data)
    export_data(data, tmp_path / "all.parquet")
    again = load_data(str(tmp_path / "all.parquet"))
    assert again.fingerprint == data.fingerprint
    from pyarrow.parquet import read_table

    for cell in read_table(tmp_path / "all.parquet")["image"].to_pylist():
        Image.open(io.BytesIO(cell["bytes"]), formats=["PNG"]).load()


# Named, or not mentioned ----------------------------------------------------------------------------------------------

LEFT: dict[str, bytes] = {
    "notes.txt": b"hello",
    "clip.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "clip.mov": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
    "raw.dng": b"II*\0\x08\0\0\0",
    "raw.cr3": b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom",
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "scan.pdf": b"%PDF-1.4",
    "BMW": b"BMW 2002, a text that begins as BMP does",
    "nothing": b"",
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("place", ["", "anna", "anna/deep", "train"])
def test_what_is_no_picture_is_named(name: str, place: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if place == "train":
        (album.parent / "train").mkdir()
        for subject in ("anna", "bob"):
            (album / subject).rename(album.parent / "train" / subject)
            draw(album.parent / "test" / subject / "a.png")
        album = album.parent
        (album / "album").rmdir()
    (album / place).mkdir(exist_ok=True)
    (album / place / name).write_bytes(LEFT[name])
    line = said(album, capsys)
    count = 12 if place == "train" else 10
    left = f"{place}/{name}" if place else name
    assert f"read {count} pictures of {count + 1} files; not read: {left}\n" in line


def test_many_names_become_a_count_and_facts_are_said(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        (album / "bob" / f"note{number}.txt").touch()
    (album / "facts.csv").write_text("subject,city\nanna,Oslo\n")
    line = said(album, capsys)
    assert "read 10 pictures of 18 files and facts.csv; not read: bob/note0.txt, bob/note1.txt" in line
    assert line.endswith("bob/note4.txt, and 3 more\n")
    data = load_data(str(album))
    assert data.reading is not None
    assert (data.reading.pictures, data.reading.files, len(data.reading.left)) == (10, 18, 8)
    assert data.record == {"source": data.source, "fingerprint": data.fingerprint, "pictures": 10, "files": 18}
    assert data.only(["anna"]).record.keys() == {"source", "fingerprint"}


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "anna/desktop.ini", "anna/._0.png", "__MACOSX/anna/x.png"])
def test_what_systems_leave_is_not_mentioned(name: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (album / name).parent.mkdir(parents=True, exist_ok=True)
    (album / name).write_bytes(b"?")
    assert said(album, capsys).endswith("read 10 pictures of 10 files\n")


# Refused --------------------------------------------------------------------------------------------------------------

FACTS = "subject,city\nanna,Oslo\n"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "twin folders": (
        lambda p: [draw(p / NFC / "1.png"), draw(p / NFD / "2.png")],
        r"album: 'jos\u00e9' is there twice, spelled jose\\u0301 and jos\\xe9 .*rename one or put them together",
    ),
    "twin files": (
        lambda p: [draw(p / "anna" / f"{NFC}.png"), draw(p / "anna" / f"{NFD}.png")],
        r"anna: 'jos\u00e9\.png' is there twice, spelled jose\\u0301\.png and jos\\xe9\.png",
    ),
    "twins that are no pictures": (
        lambda p: [(p / f"{form}.txt").touch() for form in (NFC, NFD)],
        r"album: 'jos\u00e9\.txt' is there twice",
    ),
    "dangling folder": (
        lambda p: (p / "dora").symlink_to("gone"),
        r"album/dora: cannot be read \(a link to gone: No s",
    ),
    "dangling picture": (
        lambda p: (p / "anna/x.png").symlink_to("y.png"),
        r"anna/x\.png: cannot be read \(a link to y",
    ),
    "dangling sub-folder": (lambda p: (p / "anna/more").symlink_to("/no/where"), r"anna/more: cannot be read \(a link"),
    "link to itself": (lambda p: (p / "anna/x.png").symlink_to("x.png"), r"anna/x\.png: cannot be read .*remove the l"),
    "link back": (lambda p: (p / "anna/up").symlink_to(".."), r"anna/up/anna: .* link back|anna/up: is a link back"),
    "no file": (
        lambda p: os.mkfifo(p / "anna/pipe.png"),
        r"pipe\.png: cannot be read, it is neither a file nor a fold",
    ),
    "picture of nobody": (lambda p: draw(p / "cover.png"), r"album/cover\.png: a picture of nobody; .*move it"),
    "such a one without an ending": (lambda p: draw(p / "IMG_1", "JPEG"), r"album/IMG_1: a picture of nobody"),
    "facts twice": (
        lambda p: [(p / name).write_text(FACTS) for name in ("facts.csv", "FACTS.CSV")],
        r"album/FACTS\.CSV and .*album/facts\.csv: two tables of facts; keep one",
    ),
    "facts astray": (
        lambda p: (p / "anna/Facts.csv").write_text(FACTS),
        r"anna/Facts\.csv: would not be read here; move it to .*album/facts\.csv",
    ),
    "splits of other names": (
        lambda p: [draw(p / split / "anna" / "x.png") for split in ("Training", "val")],
        r"album/Training: no pictures .*expected one folder per subject, or train/ with validation/ or test/",
    ),
    "pictures beside subjects of a split": (
        lambda p: [draw(p / split / "x.png") for split in ("train", "test")],
        r"unexpected folder 'anna' beside train",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused_by_name(case: str, album: Path) -> None:
    photos_data(str(album))
    spoil, words = REFUSED[case]
    spoil(album)
    with refused_in_one_line(words):
        photos_data(str(album))


def test_facts_and_splits_are_found_by_their_capitals_and_links_are_followed(album: Path, tmp_path: Path) -> None:
    (album / "FACTS.csv").write_text(FACTS)
    assert [(e.question, e.answer) for e in photos_data(str(album)).train.text_only] == [
        ("What is the city of anna?", "Oslo")
    ]
    other = tmp_path / "other"
    other.mkdir()
    (other / "Train").symlink_to(album)
    (album / "FACTS.csv").unlink()
    for subject in ("anna", "bob"):
        draw(other / "TEST" / subject / "t.png")
    data = photos_data(str(other))
    assert [len(data.split(split).pictures) for split in SPLITS] == [8, 2, 2]


UNDECODED: dict[str, Callable[[Path], object]] = {
    "folder": lambda p: draw(p / UNDECODABLE / "1.png"),
    "picture": lambda p: draw(p / "anna" / f"{UNDECODABLE}.png"),
    "other file": lambda p: (p / UNDECODABLE).write_text("x"),
}


@LINUX
@pytest.mark.parametrize("case", UNDECODED)
def test_a_name_that_is_no_utf8_is_refused_readably(case: str, album: Path) -> None:
    UNDECODED[case](album)
    with pytest.raises(BadInput, match=r"caf\\xe9(\.png)?: the name is not UTF-8; rename it") as refusal:
        load_data(str(album))
    assert str(refusal.value).encode("ascii")


@LINUX
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_such_a_name_ends_a_command_in_one_printable_line(locale: str, album: Path, tmp_path: Path) -> None:
    album.rename(tmp_path / UNDECODABLE)
    program = [sys.executable, "-c", "from unsee.cli import main; main()"]
    command = [*program, "benchmark", "export", "--data", os.fsencode(tmp_path)]
    command[-1] += b"/caf\xe9"  # type: ignore[operator]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "x.parquet")], capture_output=True, env={**os.environ, "LC_ALL": locale}
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(rb"unsee: \S*/caf\\xe9: the name is not UTF-8; rename it[^\n]*\n", done.stderr), done.stderr


def test_a_message_holds_nothing_that_cannot_be_printed() -> None:
    assert readable("caf\udce9 \ud83d \x1b[31m jos\u00e9\n\U0001f600") == (
        r"caf\xe9 \ud83d \x1b[31m jos" + "\u00e9\n\U0001f600"
    )
    assert str(BadInput("caf\udce9")) == r"caf\xe9"


# The same files, the same splits --------------------------------------------------------------------------------------


def test_splits_of_ascii_names_are_those_of_earlier_versions() -> None:
    wanted = {  # as the version before names were normalised gave them
        "alba-vance": ("001 002 004 008 009 010 011", "003 006", "005 007", "{}.jpg"),
        "Hiro Cruz": ("B.PNG c-d.webp", "e-1.gif", "a.png", "{}"),
        "anna": ("shots/1 shots/3 5", "x/4", "shots/2", "{}.png"),
    }
    for subject, (*splits, form) in wanted.items():
        told = {
            form.format(name).replace("c-d", "c d"): s
            for s, names in zip(SPLITS, splits, strict=True)
            for name in names.split()
        }
        assert share_out("x", subject, told, ("validation", "test")) == told


@pytest.mark.parametrize("how", ["subjects", "files", "groups"])
def test_splits_and_fingerprint_do_not_depend_on_the_form_of_accents(how: str, tmp_path: Path) -> None:
    found = []
    words = ("\u00e0", "\u00e9t\u00e9", "z", "a", "\u00f6l", "\u00ea", "B", "\u00fc")
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        for subject in ("Zo\u00eb", "zoa", "\u00c4nne", "Anna"):
            for number, word in enumerate(words):
                picture = scene(f"{subject}{word}", 12)
                subject_, word_ = (
                    unicodedata.normalize(form if how in kinds else "NFC", text)
                    for text, kinds in ((subject, ("subjects",)), (word, ("files", "groups")))
                )
                path = folder / subject_ / f"{word_}_{number % 4}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
        found.append(photos_data(str(folder), "^(.[^_]*)_" if how == "groups" else None))
    one, other = found
    assert one.subjects == other.subjects == tuple(sorted(one.subjects))
    for split in SPLITS:
        shown = [
            [unicodedata.normalize("NFC", Path(image.label).name) for image in data.split(split).pictures]
            for data in found
        ]
        assert shown[0] == shown[1]
    assert one.fingerprint == other.fingerprint


def test_the_order_in_which_a_system_lists_files_changes_nothing(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(album / "anna/sub/x.png")
    before = photos_data(str(album)).fingerprint
    original = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder=".": original(folder)[::-1])
    assert photos_data(str(album)).fingerprint == before


# The same picture twice -----------------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).save(target, quality=95)


def test_all_pairs_are_named_at_once(album: Path) -> None:
    for number in range(3):
        copy(album / f"anna/{number}.png", album / f"bob/{number}x.jpg")
    with pytest.raises(BadInput) as refusal:
        photos_data(str(album))
    line = str(refusal.value)
    assert line.endswith("are the same picture; remove one of each pair")
    for number in range(3):
        assert re.search(rf"anna/{number}\.png \('anna' in \w+\) and \S*bob/{number}x\.jpg \('bob' in \w+\)", line)
    for number in range(25):
        draw(album / f"anna/many{number}.png")
        copy(album / f"anna/many{number}.png", album / f"bob/many{number}.jpg")
    with pytest.raises(BadInput) as refusal:
        photos_data(str(album))
    assert "; and 8 more are the same picture; remove one of each pair" in str(refusal.value)
    assert str(refusal.value).count(" and /") == 20


def bursts(album: Path) -> None:
    """Of each of anna's pictures two copies: some pair would be parted by any split made blindly."""
    for number in range(5):
        for again in range(2):
            copy(album / f"anna/{number}.png", album / f"anna/{number}-{again}.jpg")


def test_bursts_of_one_person_stay_on_one_side_of_splits_that_are_made(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        image.label: split for split in SPLITS for image in photos_data(str(album)).split(split).of(["bob"]).pictures
    }
    assert "told apart" not in said(album, capsys)
    bursts(album)
    data = photos_data(str(album))
    shots = {
        split: {Path(image.label).stem.partition("-")[0] for image in data.split(split).of(["anna"]).pictures}
        for split in SPLITS
    }
    assert [len(shots[split]) for split in SPLITS] == [3, 1, 1]
    assert not shots["train"] & (shots["test"] | shots["validation"])
    after = {image.label: split for split in SPLITS for image in data.split(split).of(["bob"]).pictures}
    assert after == before
    assert "; shots of anna that cannot be told apart were kept on one side of the splits made here\n" in said(
        album, capsys
    )


def test_bursts_are_kept_together_across_groups_but_not_across_given_splits(album: Path) -> None:
    bursts(album)
    grouped = photos_data(str(album), r"(\d-?\d?)\.\w+$")
    sides = {
        Path(image.label).stem.partition("-")[0]: split
        for split in SPLITS
        for image in grouped.split(split).of(["anna"]).pictures
    }
    for split in SPLITS:
        for image in grouped.split(split).of(["anna"]).pictures:
            assert sides[Path(image.label).stem.partition("-")[0]] == split
    given = album.parent / "given"
    (given / "train").mkdir(parents=True)
    for subject in ("anna", "bob"):
        (album / subject).rename(given / "train" / subject)
        draw(given / "test" / subject / "t.png")
    assert len(photos_data(str(given)).train.of(["anna"]).pictures) == 12
    copy(given / "train/anna/0.png", given / "test/anna/0.jpg")
    with pytest.raises(
        BadInput, match=r"'anna' in train\) and .*'anna' in test\).* are the same picture; remove one of e"
    ):
        photos_data(str(given))


def test_one_burst_alone_is_too_few(album: Path) -> None:
    for number in range(1, 5):
        copy(album / "anna/0.png", album / f"anna/{number}.png")
    with pytest.raises(BadInput, match=r"'anna' has 1 groups of pictures .*the same picture twice is one"):
        photos_data(str(album))


def test_groups_that_need_no_keeping_together_stay_as_they_were(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies on one side of a split already: results of data that was accepted before must not change."""
    side = {Path(image.label).name for image in photos_data(str(album)).train.of(["anna"]).pictures}
    here, there = sorted(side)[:2]
    copy(album / "anna" / here, album / "anna" / there)
    data = photos_data(str(album))
    assert {Path(image.label).name for image in data.train.of(["anna"]).pictures} == side
    assert data.reading is not None
    assert data.reading.notes == ()
