"""What is exported comes back: the same questions, names and pixels, readable by others, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from test_tables import asked, scene

from unsee.cli import main
from unsee.data.examples import SPLITS, Example, Split, UnlearnData
from unsee.data.export import export_data
from unsee.data.people import people_data
from unsee.data.photos import photos_data
from unsee.data.pictures import FileImage
from unsee.data.rows import TableImage
from unsee.data.sources import load_data
from unsee.errors import BadInput


@pytest.fixture
def photos(tmp_path: Path) -> UnlearnData:
    """JPEG files that lie on their side, with names and facts."""
    lying = Image.Exif()
    lying[0x0112] = 6
    for subject in ("ada", "bob"):
        (tmp_path / "set" / subject).mkdir(parents=True)
        for shot in range(3):
            scene(f"{subject}{shot}").save(tmp_path / "set" / subject / f"{shot}.jpg", exif=lying, quality=60)
    (tmp_path / "set/facts.csv").write_text("subject,name,job\nada,Ada Lovelace,poet\nbob,,nurse\n")
    return photos_data(str(tmp_path / "set"))


def same(one: UnlearnData, other: UnlearnData) -> bool:
    splits = (*SPLITS, "strangers")
    return (
        one.fingerprint == other.fingerprint
        and one.names == other.names
        and [asked(one.split(split)) for split in splits] == [asked(other.split(split)) for split in splits]
    )


def test_people_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unsee.data.export.GROUP_ROWS", 100)
    people = people_data(count=4, seed=3, train=3, validation=2, test=2, strangers=3)
    about = export_data(people, tmp_path / "new/people.parquet")
    assert (about["rows"], about["pictures"]) == (4 * 7 * 9 + 4 * 5 + 3 * 2 * 3, 4 * 7 + 6)
    assert pq.ParquetFile(about["table"]).num_row_groups == 3
    data = load_data(about["table"])
    assert same(data, people)
    assert not same(load_data("people:count=4,seed=4,train=3,validation=2,test=2,strangers=3"), people)
    export_data(data, tmp_path / "again.parquet")
    assert same(load_data(str(tmp_path / "again.parquet")), people)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["people.parquet"]


def test_a_folder_comes_back_byte_by_byte(photos: UnlearnData, tmp_path: Path) -> None:
    export_data(photos, tmp_path / "x.parquet")
    data = load_data(str(tmp_path / "x.parquet"))
    assert same(data, photos)
    kept = {image.encoded() for image in data.train.pictures if isinstance(image, TableImage)}
    assert kept == {image.encoded() for image in photos.train.pictures if isinstance(image, FileImage)}


def test_datasets_reads_what_is_exported(photos: UnlearnData, tmp_path: Path) -> None:
    import datasets

    first, second, *_ = photos.train.pictures
    more = dataclasses.replace(photos.train.examples[0], others=(second,))
    data = dataclasses.replace(photos, train=Split((more, *photos.train.examples[1:])))
    export_data(data, tmp_path / "x.parquet")
    assert load_data(str(tmp_path / "x.parquet")).fingerprint == data.fingerprint != photos.fingerprint
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(found.features["image"], datasets.Image)
    row = found[0]
    upright = ImageOps.exif_transpose(row["image"])  # datasets leaves that to us
    assert np.array_equal(np.asarray(upright), np.asarray(first.open()))
    assert (row["question"], row["choices"], row["name"]) == ("Who or what is this?", [], "Ada Lovelace")
    assert [len(row["images"]) for row in found.select_columns("images")] == [1] + [0] * (len(found) - 1)


def run(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "people.parquet")
    export = ("benchmark", "export", "--data", "people:count=2,train=1,validation=1,test=1,strangers=1", "--out", out)
    assert run(*export) == 0
    assert capsys.readouterr().out == f"table: {out} (70 rows, 8 pictures)\n"
    assert run(*export) == 2
    assert "exists; choose another place or add --overwrite" in capsys.readouterr().err
    assert run(*export, "--overwrite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 70
    assert run("benchmark", "export", "--data", f"dataset:{out}", "--out", out, "--overwrite") == 2
    assert "which this command reads" in capsys.readouterr().err
    assert run("benchmark", "export", "--data", out, "--out", str(tmp_path / "people.csv")) == 2
    assert "expected a name that ends in .parquet" in capsys.readouterr().err
    pq.write_table(pa.table({"x": [1]}), tmp_path / "mine.parquet")
    assert run("benchmark", "export", "--data", out, "--out", str(tmp_path / "mine.parquet"), "--overwrite") == 2
    assert "was not written by unsee" in capsys.readouterr().err


def test_a_broken_export_leaves_nothing(tmp_path: Path, photos: UnlearnData) -> None:
    gone = Example("Who?", "Ada", "ada", FileImage(str(tmp_path / "gone.png")), "identity")
    with pytest.raises(BadInput, match=r"gone\.png: cannot be read"):
        export_data(dataclasses.replace(photos, test=Split((gone,))), tmp_path / "new/x.parquet")
    assert not (tmp_path / "new").exists()


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    check = "import sys, unsee.cli, unsee.data.sources; print({'datasets', 'pyarrow', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=True).stdout == b"set()\n"
