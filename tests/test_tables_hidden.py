"""Tables: nothing that stands in one is hidden by another, or by its like."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from tables_written import Row, answers, chat, csv, draw, jsonl, ten_rows, write

from unsee.data.benchmarks.files import BenchmarkFolder
from unsee.data.benchmarks.items import BenchmarkPerson
from unsee.data.benchmarks.unlearn_data import _splits
from unsee.data.examples import SPLITS, ImageSource
from unsee.data.pictures import FileImage
from unsee.data.sources import load_data
from unsee.data.tables import open_store
from unsee.errors import BadInput

pytestmark = pytest.mark.usefixtures("readings")
rows = pytest.fixture(ten_rows)


def part(row: Row, *parts: Row) -> Row:
    return chat(row, [*parts, {"type": "text", "text": "Who?"}])


COLUMNS: dict[str, tuple[str, Callable[[list[Row]], str], str]] = {
    "second column in csv": (
        "t.csv",
        lambda r: csv([{**row, "x": "zoe"} for row in r], ["image", "question", "answer", "subject", "answer"]),
        r"t\.csv, row 1: column 'answer' appears twice; keep one",
    ),
    "two columns by their capitals in csv": (
        "t.csv",
        lambda r: csv([{**row, "Answer": "zoe"} for row in r]),
        r"t\.csv: columns 'answer' and 'Answer' are both 'answer'; rename or remove one",
    ),
    "two columns by their capitals in lines": (
        "t.jsonl",
        lambda r: jsonl([{**row, "IMAGE": "x.png"} for row in r]),
        r"t\.jsonl: columns 'image' and 'IMAGE' are both 'image'",
    ),
    "second key in lines": (
        "t.jsonl",
        lambda r: jsonl(r[:3]) + '{"image": "a.png", "answer": "x", "answer": "y"}\n',
        r"t\.jsonl, row 4: 'answer' is there twice in one object; keep one",
    ),
    "second key inside": (
        "t.jsonl",
        lambda r: '{"messages": [{"role": "user", "content": "Who?", "content": "Where?"}]}',
        r"t\.jsonl, row 1: 'content' is there twice",
    ),
    "second key in a list": (
        "t.json",
        lambda r: '[{"a": 1},\n {"a": 1, "a": 2}]',
        r"t\.json, row 2 \(line 2\): 'a' is there twice",
    ),
    "image_url": (
        "t.jsonl",
        lambda r: jsonl([part(row, {"type": "image_url", "image_url": {"url": "x"}}) for row in r]),
        r"t\.jsonl, row 1: a part of a message is of type \"image_url\"; expected text, or image with the picture in",
    ),
    "video": (
        "t.jsonl",
        lambda r: jsonl([part(r[0]), *(part(row, {"type": "video", "video": "x.mp4"}) for row in r[1:])]),
        r"t\.jsonl, row 2: a part of a message is of type \"video\"",
    ),
    "input_audio": (
        "t.jsonl",
        lambda r: jsonl([part(row, {"type": "input_audio", "input_audio": {}}) for row in r]),
        r"row 1: a part of a message is of type \"input_audio\"",
    ),
    "picture of its own": (
        "t.jsonl",
        lambda r: jsonl([part(row, {"type": "image", "image": "x.png"}) for row in r]),
        r"row 1: a part of type image has a picture of its own \('image'\); put it into column 'images'",
    ),
    "url of its own": (
        "t.jsonl",
        lambda r: jsonl([part(row, {"type": "image", "url": "x.png"}) for row in r]),
        r"row 1: a part of type image has a picture of its own \('url'\)",
    ),
    "part that is no object": (
        "t.jsonl",
        lambda r: jsonl([chat(r[0], ["x"])]),
        r"row 1: 'messages' is .*; expected a l",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_what_would_be_hidden_inside_a_table_is_refused(case: str, rows: list[Row]) -> None:
    name, form, words = COLUMNS[case]
    write(name, form(rows))
    with pytest.raises(BadInput, match=words):
        load_data(name)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_the_second_of_two_equal_columns_is_refused(form: str, rows: list[Row]) -> None:
    columns = [*rows[0], "answer"]
    table = pa.table([pa.array([row[name] for row in rows]) for name in columns], names=columns)
    if form == "parquet":
        parquet.write_table(table, "t.parquet")
        with pytest.raises(BadInput, match=r"^t\.parquet: column 'answer' appears twice; keep one"):
            load_data("t.parquet")
    else:
        from unsee.data.rows import ArrowRows

        with pytest.raises(BadInput, match=r"^t: column 'answer' appears twice; keep one"):
            ArrowRows("t", "", table)


def test_parts_as_trl_and_parquet_store_them_are_read(rows: list[Row]) -> None:
    """Where other parts have more keys, parquet gives them to all parts, with nothing in them."""
    both = [{"type": "image", "text": None, "index": None}, {"type": "text", "text": "Who?", "index": None}]
    write("t.jsonl", jsonl([chat(row, both) for row in rows]))
    wanted = load_data(write("wanted.jsonl", jsonl(rows)))
    assert answers(load_data("t.jsonl")) == answers(wanted)


def saved(rows: list[Row]) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk("set")


FOLDERS: dict[str, tuple[Sequence[str], str]] = {
    "two kinds": (("a.jsonl", "b.parquet"), r"set: 'a\.jsonl' and 'b\.parquet' are tables of two kinds .*; keep one k"),
    "csv beside lines": (("a.csv", "deep/b.jsonl"), r"set: 'a\.csv' and 'deep/b\.jsonl' are tables of two kinds"),
    "metadata of two kinds": (("metadata.csv", "metadata.jsonl"), r"'metadata\.csv' and 'metadata\.jsonl' are tables"),
    "metadata hides another": (("metadata.jsonl", "more.jsonl"), r"'metadata\.jsonl' and 'more\.jsonl' are tables of"),
    "metadata hides parquet": (("train/metadata.csv", "x.parquet"), r"'train/metadata\.csv' and 'x\.parquet' are"),
    "list beside lines": (("a.json", "b.jsonl"), r"'a\.json' and 'b\.jsonl' are tables of two kinds"),
    "saved beside another": (("saved", "b.csv"), r"'what `save_to_disk` wrote' and 'b\.csv' are tables of two kinds"),
}


def fill(name: str, rows: list[Row]) -> None:
    """A table of these rows in set/, or the rows as `datasets` saves them."""
    if name == "saved":
        return saved(rows)
    rows = [{**row, "image": os.path.abspath(row["image"])} for row in rows]
    Path("set", name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), f"set/{name}")
    else:
        forms: dict[str, Callable[[list[Row]], str]] = {".csv": csv, ".json": json.dumps, ".jsonl": jsonl}
        write(f"set/{name}", forms[Path(name).suffix](rows))
    return None


@pytest.mark.parametrize("case", FOLDERS)
def test_one_of_two_tables_is_not_hidden_by_the_other(case: str, rows: list[Row]) -> None:
    names, words = FOLDERS[case]
    fill(names[0], rows[:8])
    assert open_store("set", None).tables
    fill(names[1], rows[8:])
    with pytest.raises(BadInput, match=words):
        load_data("dataset:set")


@pytest.mark.parametrize(
    "names", [["a.csv", "b.csv"], ["a.json", "deep/b.json"], ["a.jsonl", "b.JSONL"], ["x/a.parquet", "b.parquet"]]
)
def test_tables_of_one_kind_are_read_together(
    names: list[str], rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, half in zip(names, (rows[:5], rows[5:]), strict=True):
        if name.endswith("JSONL"):
            fill("b.jsonl", half)
            Path("set/b.jsonl").rename("set/b.JSONL")
        else:
            fill(name, half)
    write("set/README.md", "words")
    write("set/dataset_info.json", '{"features": {}}')
    data = load_data("dataset:set")
    assert answers(data) == answers(load_data(write("wanted.jsonl", jsonl(rows))))
    assert "read 10 pictures and 10 rows; not read: README.md, dataset_info.json\n" in capsys.readouterr().err


def test_pictures_that_no_row_names_are_told(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    Path("shots").rename("set")
    write("set/metadata.csv", csv([{**row, "image": Path(row["image"]).name} for row in rows[:-1]]))
    for spare in ("spare.png", "deep/x.heic"):
        draw("y.png")
        write(f"set/{spare}", Path("y.png").read_bytes())
    load_data("dataset:set")
    assert "dataset:set: read 9 pictures of 12 files and 9 rows; not read: bob4.png, deep/x.heic, spare.png\n" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_linked_folders_of_tables_are_read_and_broken_links_refused(rows: list[Row]) -> None:
    fill("a.jsonl", rows[:5])
    Path("set").rename("elsewhere")
    fill("b.jsonl", rows[5:])
    Path("set/more").symlink_to(Path("elsewhere").absolute())
    assert len(answers(load_data("dataset:set"))) == 10
    Path("elsewhere").rename("gone")
    with pytest.raises(BadInput, match=r"set/more: cannot be read \(a link to .*elsewhere: No such"):
        load_data("dataset:set")


BENCHMARK = (["NAME/x.parquet", "NAME.parquet"], ["NAME/x.parquet", "NAME-00000-of-00001.parquet"])


@pytest.mark.parametrize("names", BENCHMARK)
def test_a_configuration_of_a_benchmark_that_is_there_twice_is_refused(names: list[str], rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    place = BenchmarkFolder("mllmu:.", Path())
    for number, name in enumerate(names):
        Path(name).parent.mkdir(exist_ok=True)
        parquet.write_table(table, name)
        if number == 0:
            found = place.tables("NAME")
            assert found is not None
            assert len(found) == 1
    with pytest.raises(BadInput, match=rf"^{names[0]} and {names[1]} are both 'NAME'; keep one of them"):
        place.tables("NAME")


def test_splits_of_a_benchmark_do_not_depend_on_where_it_lies(rows: list[Row], tmp_path: Path) -> None:
    found = []
    for place in ("here", "somewhere/else"):
        shown: list[ImageSource] = []
        for row in rows[:5]:
            path = tmp_path / place / Path(row["image"]).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Path(row["image"]).read_bytes())
            shown.append(FileImage(str(path)))
        person = BenchmarkPerson("ada", "Ada", True, tuple(shown), ())
        splits = _splits("clear:x", person)
        found.append({split: [Path(image.label).name for image in splits[split]] for split in SPLITS})
    assert found[0] == found[1]
    assert [len(found[0][split]) for split in SPLITS] == [3, 1, 1]
