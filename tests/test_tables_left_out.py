"""Tables: every row, column and picture is read or refused by its line; none is hidden by another."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tables_written import NFC, NFD, Row, chat, csv, draw, jsonl, refused_in_one_line, ten_rows, write

from unsee.data.benchmarks.files import BenchmarkFolder, BenchmarkValue
from unsee.data.benchmarks.fiubench import _json, _picture
from unsee.data.examples import SPLITS
from unsee.data.sources import load_data
from unsee.errors import BadInput

pytestmark = pytest.mark.usefixtures("readings")
rows = pytest.fixture(ten_rows)

# What DATA may be -----------------------------------------------------------------------------------------------------

TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "csv": ("t.csv", csv),
    "csv of Windows": ("T.CSV", lambda rows: "\ufeff" + csv(rows, end="\r\n")),
    "csv after a blank line": ("t.csv", lambda rows: "\n" + csv(rows)),
    "list of objects": ("t.json", json.dumps),
    "list over many lines": ("t.json", lambda rows: "\ufeff " + json.dumps(rows, indent=2) + "\n"),
    "lines in a .json": ("t.json", jsonl),
    "columns by their capitals": ("t.csv", lambda rows: csv(rows, ["Image", "QUESTION", "Answer ", "Subject"])),
    "lines, columns by their capitals": (
        "t.jsonl",
        lambda rows: jsonl([{key.title(): value for key, value in row.items()} for row in rows]),
    ),
    "file_name by its capitals": ("t.csv", lambda rows: csv(rows, ["File_Name", "question", "answer", "subject"])),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_every_kind_say_the_same(case: str, rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = load_data(write("wanted.jsonl", jsonl(rows)))
    assert len(wanted.test.pictures) == 2
    name, form = TABLES[case]
    write(name, form(rows))
    capsys.readouterr()
    for spec in (name, f"dataset:{name}"):
        data = load_data(spec)
        assert data.fingerprint == wanted.fingerprint
        assert f"{data.source}: read 10 pictures and 10 rows\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["t.tsv", "t.xlsx", "t.jsonl.gz", "t", "letter.txt"])
def test_other_files_are_told_what_is_read(name: str, rows: list[Row]) -> None:
    write(name, csv(rows))
    for spec in (name, f"dataset:{name}"):
        with pytest.raises(
            BadInput, match=rf"^{name}: not a table; expected .*\.jsonl, .*\.json, .*\.csv, .*\.parquet.*save"
        ):
            load_data(spec)


# Lines as an editor shows them ----------------------------------------------------------------------------------------


def spoilt(rows: list[Row], **cells: Any) -> list[Row]:
    return [*rows[:2], {**rows[2], **cells}, *rows[3:]]


LINES: dict[str, tuple[str, Callable[[list[Row]], str], str]] = {
    "csv": ("t.csv", lambda r: csv(spoilt(r, answer="")), r"t\.csv, row 4: 'answer' is empty"),
    "csv after blank lines": (
        "t.csv",
        lambda r: csv(spoilt(r, answer="")).replace('"shots/ada1', '\n\n"shots/ada1'),
        r"t\.csv, row 6: 'answer' is empty",
    ),
    "csv after a quoted line break": (
        "t.csv",
        lambda r: csv(spoilt([{**r[0], "question": "Who\nis\nthis?"}, *r[1:]], answer="")),
        r"t\.csv, row 6: 'answer' is empty",
    ),
    "csv of Windows after both": (
        "t.csv",
        lambda r: "\r\n" + csv(spoilt([{**r[0], "question": "Who\r\nis this?"}, *r[1:]], answer=""), end="\r\n"),
        r"t\.csv, row 6: 'answer' is empty",
    ),
    "csv with too many cells": (
        "t.csv",
        lambda r: csv([{**r[0], "question": "Who\nis it?"}]) + "a,b,c,d,e\n",
        r"t\.csv, row 4: more cells than headers",
    ),
    "csv with an open quote": (
        "t.csv",
        lambda r: csv([{**r[0], "question": "Who\nis it?"}]) + '\n"a,b\n',
        r"t\.csv, row 5: not a UTF-8 table with commas",
    ),
    "picture that a csv names": (
        "t.csv",
        lambda r: csv(spoilt([{**r[0], "question": "Who\nis it?"}, *r[1:]], image="gone.png")),
        r"t\.csv, row 5: 'image' names gone\.png, which is no file",
    ),
    "lines after blank ones": (
        "t.jsonl",
        lambda r: jsonl(r[:1]) + "\n \n" + jsonl(spoilt(r, answer="")[1:]),
        r"t\.jsonl, row 5: 'answer' is empty",
    ),
    "lines with an odd separator inside": (
        "t.jsonl",
        lambda r: "".join(
            json.dumps(row, ensure_ascii=False) + "\n"
            for row in spoilt([{**r[0], "question": "Who\u2028is\x85this?"}, *r[1:]], answer="")
        ),
        r"t\.jsonl, row 3: 'answer' is empty",
    ),
    "line that is no JSON": (
        "t.jsonl",
        lambda r: "\n" + jsonl(r[:1]) + '{"a": 1,}\n',
        r"t\.jsonl, row 3: not JSON \(.*, column 9\); write one object per line",
    ),
    "two objects in a line": (
        "t.jsonl",
        lambda r: jsonl(r[:1]).strip() + "{}\n",
        r"t\.jsonl, row 1: not JSON \(\"\{\}\" follows the object\)",
    ),
    "list in one line": (
        "t.json",
        lambda r: json.dumps(spoilt(r, answer="")),
        r"t\.json, row 3 \(line 1\): 'answer' is",
    ),
    "list over many lines": (
        "t.json",
        lambda r: json.dumps(spoilt(r, answer=""), indent=1),
        r"t\.json, row 3 \(line 14\): 'answer' is empty",
    ),
    "list with a number": (
        "t.json",
        lambda r: json.dumps([r[0], 7]),
        r"t\.json, row 2 \(line 1\): 7 is no JSON object",
    ),
    "list that does not end": (
        "t.json",
        lambda r: json.dumps(r, indent=1)[:-2],
        r"t\.json, row 10 \(line 56\): not JSON \(a comma or the end of the list is missing",
    ),
    "list with a broken object": (
        "t.json",
        lambda r: '[\n{"a": 1},\n{"a": 2,\n "b" 3}]',
        r"t\.json, row 2 \(line 3\): not JSON \(.*, line 4, column 6\)",
    ),
    "list and more": ("t.json", lambda r: json.dumps(r) + "[]", r"t\.json: not JSON \(\"\[\]\" follows the list\)"),
    "no UTF-8 in lines": (
        "t.jsonl",
        lambda r: jsonl(r) + "\udce9\n",
        r"t\.jsonl, row 11: cannot be read as UTF-8 text",
    ),
    "no UTF-8 in csv": ("t.csv", lambda r: csv(r) + "\n\udce9\n", r"t\.csv, row 13: cannot be read as UTF-8 text"),
    "no UTF-8 in a list": ("t.json", lambda r: "\ufeff[\n\n\udce9", r"t\.json, row 3: cannot be read as UTF-8 text"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_row_is_called_by_its_line(case: str, rows: list[Row]) -> None:
    name, form, words = LINES[case]
    Path(name).write_bytes(form(rows).encode(errors="surrogateescape"))
    with refused_in_one_line(words):
        load_data(f"dataset:{name}")


# Halves of characters -------------------------------------------------------------------------------------------------

HALF = "\ud83d"


SURROGATES: dict[str, Callable[[list[Row]], str]] = {
    "question": lambda r: jsonl(spoilt(r, question=f"Who {HALF}?")),
    "answer": lambda r: jsonl(spoilt(r, answer=f"{HALF}\ud83d")),
    "subject": lambda r: jsonl(spoilt(r, subject=HALF)),
    "path": lambda r: jsonl(spoilt(r, image=f"{HALF}.png")),
    "choices": lambda r: jsonl(spoilt(r, choices=["ada", HALF])),
    "key": lambda r: jsonl(spoilt(r, **{HALF: "x"})),
    "second half first": lambda r: jsonl(spoilt(r, question="\ude00\ud83d")),
    "chat": lambda r: jsonl([*(chat(row, "Who?") for row in r[:2]), chat(r[2], f"Who {HALF}?")]),
    "chat in parts": lambda r: jsonl(
        [*(chat(row, "Who?") for row in r[:2]), chat(r[2], [{"type": "text", "text": HALF}])]
    ),
}


@pytest.mark.parametrize("case", SURROGATES)
def test_half_of_a_character_is_refused_by_its_row(case: str, rows: list[Row]) -> None:
    write("t.jsonl", SURROGATES[case](rows))
    with pytest.raises(BadInput, match=r'^t\.jsonl, row 3: "\\u(d83d|de00)" is half of a character; write') as refusal:
        load_data("t.jsonl")
    assert str(refusal.value).encode("ascii")
    write("t.json", json.dumps([json.loads(line) for line in SURROGATES[case](rows).splitlines()]))
    with pytest.raises(BadInput, match=r'^t\.json, row 3 \(line 1\): "\\u(d83d|de00)" is half of a character'):
        load_data("t.json")


def test_both_halves_are_a_character(rows: list[Row]) -> None:
    write("t.jsonl", jsonl(spoilt(rows, question="Who \U0001f600?")))
    assert "\\ud83d\\ude00" in Path("t.jsonl").read_text()
    data = load_data("t.jsonl")
    assert "Who \U0001f600?" in {e.question for split in SPLITS for e in data.split(split)}


def bad_text(rows: list[Row], column: str) -> pa.Table:
    """The rows, where the third text of a column is no UTF-8: Arrow does not look."""
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    texts = [row[column].encode() for row in rows]
    texts[2] = b"caf\xe9"
    columns[column] = pa.array(texts, pa.binary()).view(pa.string())
    return pa.table(columns)


@pytest.mark.parametrize("column", ["question", "subject", "image"])
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_text_in_parquet_and_arrow_that_is_no_utf8_is_refused_by_its_row(
    form: str, column: str, rows: list[Row]
) -> None:
    table = bad_text([{**row, "image": os.path.abspath(row["image"])} for row in rows], column)
    if form == "parquet":
        parquet.write_table(table, "t.parquet")
    else:
        from datasets import Dataset

        Dataset(table).save_to_disk("t.parquet")
    with pytest.raises(BadInput, match=r"^t\.parquet, row 3: a text is not UTF-8"):
        load_data("dataset:t.parquet")


def test_halves_in_files_of_benchmarks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x, row 1: 'name' is \"\\ud83d\"; expected whole characters"):
        BenchmarkValue("x, row 1", "name", HALF).text()
    assert BenchmarkValue("x, row 1", "name", "\U0001f600").text() == "\U0001f600"


# Names of pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("named", "stored"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "absolute", "folder"])
def test_a_picture_is_found_whatever_the_form_of_its_accents(
    named: str, stored: str, form: str, rows: list[Row]
) -> None:
    inside = "{}/x.png" if form == "folder" else "x/{}.png"
    rows[0]["image"], there = inside.format(named), inside.format(stored)
    draw(there)
    assert not Path(rows[0]["image"]).exists()
    if form == "absolute":
        rows[0]["image"] = os.path.abspath(rows[0]["image"])
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), "t.parquet")
    else:
        write(f"t.{'csv' if form == 'csv' else 'jsonl'}", csv(rows) if form == "csv" else jsonl(rows))
    data = load_data(f"t.{form if form in ('csv', 'parquet') else 'jsonl'}")
    assert any(there in image.label for split in SPLITS for image in data.split(split).pictures)


def test_splits_do_not_depend_on_the_form_of_accents_in_a_table(rows: list[Row]) -> None:
    found = []
    for form in (NFC, NFD):
        for number, row in enumerate(rows):
            row["image"] = f"{form}/{number}.png"
            draw(f"y{number}.png")
            write(row["image"], Path(f"y{number}.png").read_bytes())
        found.append(load_data(write("t.jsonl", jsonl(rows))).fingerprint)
        for row in rows:
            Path(row["image"]).unlink()
    assert found[0] == found[1]


def test_the_spelling_on_disk_comes_first_and_a_choice_is_refused(rows: list[Row]) -> None:
    other = "jo\u0301se\u0301"  # J-o-s-e with two accents, in three forms
    mixed, composed = "j\u00f3se\u0301", "j\u00f3s\u00e9"
    for name in (other, mixed):
        draw(f"x/{name}.png")
    rows[0]["image"] = f"x/{mixed}.png"
    data = load_data(write("t.jsonl", jsonl(rows)))
    assert any(mixed in image.label for split in SPLITS for image in data.split(split).pictures)
    rows[0]["image"] = f"x/{composed}.png"
    with pytest.raises(BadInput, match=r"could be x/jo\\u0301se\\u0301\.png and x/j\\xf3se\\u0301\.png \(accents"):
        load_data(write("t.jsonl", jsonl(rows)))
    rows[0]["image"] = "x/\u00e9.png"
    with pytest.raises(BadInput, match=r"names x/\u00e9\.png, which is no file"):
        load_data(write("t.jsonl", jsonl(rows)))


@pytest.mark.parametrize(("named", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_fiubench_finds_its_pictures_too(named: str, stored: str, tmp_path: Path, rows: list[Row]) -> None:
    draw(f"faces/{stored}.png")
    found = _picture(
        BenchmarkFolder("fiubench:.", tmp_path),
        BenchmarkValue("full.json", "image_path", f"/home/them/faces/{named}.png"),
    )
    assert found.label == str(tmp_path / "faces" / f"{stored}.png")
    write("full.json", '{"a": 1, "a": 2}')
    with pytest.raises(BadInput, match=r"full\.json: cannot be read as JSON \(a"):
        _json(Path("full.json"))


# The same picture twice -----------------------------------------------------------------------------------------------


def test_bursts_in_tables_stay_on_one_side_and_all_pairs_are_named(
    rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_data(write("t.jsonl", jsonl(rows)))
    assert "told apart" not in capsys.readouterr().err
    more = []
    for row in rows[:5]:
        for again in range(2):
            copied = row["image"].replace(".png", f"-{again}.jpg")
            Image.open(row["image"]).save(copied, quality=95)
            more.append({**row, "image": copied})
    data = load_data(write("t.jsonl", jsonl([*rows, *more])))
    assert "; shots of ada that cannot be told apart were kept on one side of the splits made here\n" in (
        capsys.readouterr().err
    )
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        assert data.split(split).of(["bob"]).pictures.keys() == before.split(split).of(["bob"]).pictures.keys()
        for image in data.split(split).of(["ada"]).pictures:
            sides.setdefault(re.split(r"[-.]", Path(image.label).name)[0], set()).add(split)
    assert [len(side) for side in sides.values()] == [1] * 5
    for row in (*rows, *more):
        row["split"] = "train"
    for row in (rows[0], rows[1], rows[9]):
        row["split"] = "test"
    with pytest.raises(BadInput) as refusal:
        load_data(write("t.jsonl", jsonl([*rows, *more])))
    assert str(refusal.value).count("'ada' in test") == 4
    assert "remove one of each pair" in str(refusal.value)
