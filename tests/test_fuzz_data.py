"""Random folders of pictures and of tables: every file in them is read, or named in a refusal or in a count.

A sound folder gets one to four odd additions, at most one of which must be refused. Without that the folder must load,
and all its files be accounted for; with it, one printable line must say what is wrong.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, features
from pyarrow import parquet

from unsee.data.examples import UnlearnData
from unsee.data.sources import load_data
from unsee.errors import BadInput

pytestmark = [
    pytest.mark.usefixtures("readings"),
    pytest.mark.skipif(sys.platform != "linux", reason="names and links as only Linux has them all"),
]

SEEDS = 60  # of each kind of folder; some seconds in all
HIDDEN = {b"thumbs.db", b"desktop.ini", b"__macosx", b"@eadir"}
WORDS = [
    "a",
    "Anna",
    "jos\u00e9",
    "jose\u0301",
    "\u65e5\u672c",
    "\U0001f600",
    "two words",
    "x,y",
    "-dash",
    "a\nb",
    "%s",
    "[b]",
]
ENDS = ["", ".txt", ".mp4", ".svg", ".PDF", ".xyz", ".1"]  # of files that need not be pictures
FORMATS = {".png": "PNG", ".JPG": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".TIF": "TIFF", "": "JPEG"}
if features.check("avif"):
    FORMATS[".avif"] = "AVIF"
try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()
    FORMATS |= {".heic": "HEIF", ".jpeg": "HEIF"}


@cache
def picture(number: int, kind: str = "PNG") -> bytes:
    """The content of a picture that resembles no other number's."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((24, 24), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


class World:
    """A folder that is being filled: no two of its pictures are alike, no two of its names the same."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw, self.count = root, random.Random(seed), 0

    def new(self) -> int:
        self.count += 1
        return self.count

    def name(self, end: str) -> str:
        return f"{self.draw.choice(WORDS)}{self.new()}{end}"

    def write(self, path: Path, content: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists()
        path.write_bytes(content)
        return path

    def inside(self) -> Path:
        """A folder in which a person's pictures may lie."""
        deeper = [self.name("") for _ in range(self.draw.randrange(3))]
        return self.root.joinpath(self.draw.choice(["anna", "bob"]), *deeper)

    def anywhere(self) -> Path:
        return self.draw.choice([self.root, self.inside()])

    def shown(self, folder: Path) -> Path:
        end = self.draw.choice(list(FORMATS))
        return self.write(folder / self.name(end), picture(self.new(), FORMATS[end]))


def twins(w: World, folder: Path) -> None:
    end = w.draw.choice([".png", ".txt", ""])
    for form in ("NFC", "NFD"):
        w.write(folder / unicodedata.normalize(form, f"\u00e9\u00e0{w.count}{end}"), picture(1000 + ord(form[2])))


def dangling(w: World, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / w.name(w.draw.choice([".png", "", ".txt"]))).symlink_to(w.draw.choice(["gone", "/gone/far", "../gone"]))


def loop(w: World, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / w.name("")
    link.symlink_to(w.draw.choice([folder, link]).absolute())


def undecodable(w: World, folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9%d" % w.new())
    w.write(folder / name / "x" if w.draw.random() < 0.5 else folder / f"{name}.png", picture(w.new()))


def hidden(w: World, folder: Path) -> None:
    name = w.draw.choice([f".{w.name('.png')}", ".caf\udce9", "Thumbs.db", "DESKTOP.INI", "__MACOSX/x.png", ".git/x"])
    if not os.path.lexists(folder / name):
        w.write(folder / name, b"?")


def linked(w: World, folder: Path) -> None:
    """Another name for a picture of the same person."""
    folder = w.root / "anna"
    (folder / w.name(".png")).symlink_to("0.png")


def linked_folder(w: World, folder: Path) -> None:
    outside = w.root.parent / f"outside{w.new()}"
    w.shown(outside)
    (w.root / "bob" / w.name("")).symlink_to(outside)


def person(w: World) -> None:
    folder = w.root / w.name("")
    for _ in range(4):
        w.shown(folder)


ACCEPTED: dict[str, Callable[[World], object]] = {
    "picture": lambda w: w.shown(w.inside()),
    "new person": person,
    "other file": lambda w: w.write(w.anywhere() / w.name(w.draw.choice(ENDS)), b"BM or MM or words"),
    "empty file": lambda w: w.write(w.anywhere() / w.name(w.draw.choice(ENDS)), b""),
    "empty folder": lambda w: (w.inside() / w.name("")).mkdir(parents=True),
    "hidden": lambda w: hidden(w, w.anywhere()),
    "linked picture": lambda w: linked(w, w.root),
    "linked folder": lambda w: linked_folder(w, w.root),
}
REFUSED: dict[str, Callable[[World], object]] = {
    "twins": lambda w: twins(w, w.anywhere()),
    "dangling link": lambda w: dangling(w, w.anywhere()),
    "loop": lambda w: loop(w, w.anywhere()),
    "undecodable": lambda w: undecodable(w, w.anywhere()),
    "no picture": lambda w: w.write(w.inside() / w.name(".JPEG"), b"words"),
    "picture of nobody": lambda w: w.shown(w.root),
    "of two people": lambda w: [w.write(w.root / who / w.name(".png"), picture(999)) for who in ("anna", "bob")],
    "folder without pictures": lambda w: w.write(w.root / w.name("") / "notes.txt", b"words"),
    "pipe": lambda w: os.mkfifo(w.root / "anna" / w.name(".png")),
    "facts astray": lambda w: w.write(w.root / "bob" / w.name("") / "FACTS.csv", b"subject\n"),
}


def chosen(
    seed: int, accepted: dict[str, Callable[[World], object]], refused: dict[str, Callable[[World], object]]
) -> list[str]:
    """Additions of one seed, each at most once; every other seed has nothing that must be refused."""
    draw = random.Random(f"additions {seed}")
    names = draw.sample(sorted(accepted), draw.randint(1, 3))
    return names + ([sorted(refused)[seed // 2 % len(refused)]] if seed % 2 else [])


def visible(root: Path) -> set[bytes]:
    """Files below a folder that are not hidden, found without unsee."""
    found = set()
    for folder, folders, files in os.walk(os.fsencode(root), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(b".") and name.lower() not in HIDDEN]
        found |= {os.path.join(folder, f) for f in files if not f.startswith(b".") and f.lower() not in HIDDEN}
    return found


def told(names: set[bytes] | set[str]) -> Counter[str]:
    return Counter(unicodedata.normalize("NFC", os.fsdecode(name)) for name in names)


def accounted(data: UnlearnData, root: Path, tables: set[str], line: str) -> None:
    """All files of a folder are read, are tables, or are among what was left; and the line on the screen says so."""
    reading = data.reading
    assert reading is not None
    labels = {image.label for split in ("train", "validation", "test") for image in data.split(split).pictures}
    left = {os.path.join(root, name) for name in reading.left}
    assert told(labels) + told(left) + told({os.path.join(root, name) for name in tables}) == told(visible(root))
    assert reading.pictures == len(labels)
    assert line.count("\n") == 1
    counted = re.search(r": read (\d+) pictures(?: of (\d+) files)?", line)
    assert counted is not None
    assert int(counted[1]) == len(labels)
    if counted[2]:
        assert int(counted[2]) == len(labels) + len(left)
    for name in sorted(reading.left)[:5]:
        assert not name.isprintable() or len(left) > 5 or name in line
    assert len(left) <= 5 or f", and {len(left) - 5} more" in line


def check(spec: str, root: Path, must_load: bool, tables: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    if must_load:
        accounted(load_data(spec), root, tables, capsys.readouterr().err)
        return
    with pytest.raises(BadInput, match=re.escape(str(root))) as refusal:
        load_data(spec)
    assert str(refusal.value).encode()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_file_of_a_folder_of_pictures_is_accounted_for(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path / "set", seed)
    for subject in ("anna", "bob"):
        for number in range(4):
            world.write(world.root / subject / f"{number}.png", picture(world.new()))
    names = chosen(seed, ACCEPTED, REFUSED)
    for name in names:
        (ACCEPTED | REFUSED)[name](world)
    facts = world.draw.choice(["", "facts.csv", "FACTS.CSV"])
    if facts:
        world.write(world.root / facts, b"subject,city\nanna,Oslo\n")
    check(str(world.root), world.root, not set(names) & set(REFUSED), {facts} - {""}, capsys)


# Tables ---------------------------------------------------------------------------------------------------------------

KINDS = [".jsonl", ".csv", ".parquet", ".json"]


class Tables(World):
    """A folder of tables of one kind, and their pictures."""

    def __init__(self, root: Path, seed: int) -> None:
        super().__init__(root, seed)
        self.kind = self.draw.choice(KINDS)
        self.tables: set[str] = set()

    def table(self, name: str, form: str = "", more: Callable[[Path], str] = lambda path: path.name) -> None:
        """A table of four pictures of each subject, that lie beside it."""
        path = self.root / f"{name}{form or self.kind}"
        rows = []
        for subject in ("anna", "bob"):
            for _ in range(4):
                shown = self.shown(path.parent)
                rows.append({"image": more(shown), "question": "Who?", "answer": subject, "subject": subject})
        self.tables.add(f"{name}{form or self.kind}")
        if path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            quoted = [[f'"{cell}"' for cell in row.values()] for row in rows]
            self.write(path, "\n".join(map(",".join, [list(rows[0]), *quoted])).encode())
        else:
            lines = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
            self.write(path, lines.encode())

    def other(self) -> str:
        return self.draw.choice([kind for kind in KINDS if kind != self.kind])

    def inside(self) -> Path:
        return self.root.joinpath(*(self.name("") for _ in range(self.draw.randrange(3))))


def other_form(path: Path) -> str:
    forms = {unicodedata.normalize(form, path.name) for form in ("NFC", "NFD")} - {path.name}
    return min(forms, default=path.name)


TABLES_ACCEPTED: dict[str, Callable[[Tables], object]] = {
    "another table": lambda w: w.table(f"more{w.new()}"),
    "a table deeper": lambda w: w.table(f"deep{w.new()}/x"),
    "names in the other form": lambda w: w.table(f"form{w.new()}/x", more=other_form),
    "picture of no row": lambda w: w.shown(w.anywhere()),
    "other file": lambda w: w.write(w.anywhere() / w.name(w.draw.choice(ENDS)), b"words"),
    "description": lambda w: w.write(w.anywhere() / w.name(".json"), b'{"features": []}'),
    "hidden": lambda w: hidden(w, w.anywhere()),
}
TABLES_REFUSED: dict[str, Callable[[Tables], object]] = {
    "twins": lambda w: twins(w, w.anywhere()),
    "dangling link": lambda w: dangling(w, w.anywhere()),
    "loop": lambda w: loop(w, w.anywhere()),
    "undecodable": lambda w: undecodable(w, w.anywhere()),
    "table of another kind": lambda w: w.table(f"kind{w.new()}", w.other()),
    "metadata beside it": lambda w: w.table(f"meta{w.new()}/metadata", w.draw.choice(KINDS[:3])),
    "table that is none": lambda w: w.write(w.anywhere() / w.name(".parquet"), b"PAR1"),
    "lost picture": lambda w: w.table(f"lost{w.new()}/x", more=lambda path: f"gone{path.name}"),
}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_file_of_a_folder_of_tables_is_accounted_for(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Tables(tmp_path / "set", seed)
    world.root.mkdir()
    world.table("table")
    names = chosen(seed, TABLES_ACCEPTED, TABLES_REFUSED)  # type: ignore[arg-type]
    for name in names:
        (TABLES_ACCEPTED | TABLES_REFUSED)[name](world)
    check(f"dataset:{world.root}", world.root, not set(names) & set(TABLES_REFUSED), world.tables, capsys)


def test_every_addition_is_tried() -> None:
    for accepted, refused in ((ACCEPTED, REFUSED), (TABLES_ACCEPTED, TABLES_REFUSED)):
        tried = Counter(name for seed in range(SEEDS) for name in chosen(seed, accepted, refused))  # type: ignore[arg-type]
        assert tried.keys() == {*accepted, *refused}
        assert min(tried.values()) >= 2
