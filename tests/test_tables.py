"""Tables: every spelling gives the same questions; what is exported comes back; a bad row is named."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tables_written import refused_in_one_line

from unsee.data import rows as rows_module
from unsee.data import tables as tables_module
from unsee.data.examples import SPLITS, Split, UnlearnData
from unsee.data.rows import TableImage
from unsee.data.sources import load_data
from unsee.errors import BadInput

Table = list[dict[str, Any]]
SHOTS = {"train": 3, "validation": 1, "test": 2}
NAMES = {"ada": "Ada Lovelace", "bob-dylan": "Bob Dylan"}


@pytest.fixture(autouse=True)
def _no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def scene(seed: str) -> Image.Image:
    noise = np.random.default_rng(list(seed.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC)


def png(seed: str) -> bytes:
    buffer = io.BytesIO()
    scene(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Two questions about each picture of two people, and one without a picture; the pictures are written."""
    found: Table = []
    (tmp_path / "shots").mkdir()
    for subject, name in NAMES.items():
        for split, count in SHOTS.items():
            for shot in range(count):
                path = f"shots/{subject}-{split}-{shot}.png"
                scene(path).save(tmp_path / path)
                row = {"image": path, "subject": subject, "split": split}
                found.append({**row, "question": "Who is this?", "answer": name, "probe": "identity"})
                options = {"probe": "fact", "key": "job", "choices": ["poet", "nurse"]}
                found.append({**row, "question": "What job?", "answer": "poet", **options})
        text = {"subject": subject, "split": "train", "probe": "fact", "key": "job"}
        found.append({**text, "question": f"What is the job of {name}?", "answer": "poet"})
    return found


def write(path: Path, table: Table) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), encoding="utf-8")
    return str(path)


def embedded(table: Table, folder: Path, form: Callable[[bytes, str], Any]) -> Table:
    """The same rows with pictures inside."""

    def inside(row: dict[str, Any]) -> Any:
        return form((folder / row["image"]).read_bytes(), row["image"]) if row.get("image") else None

    return [{**row, "image": inside(row)} for row in table]


def without(table: Table, *columns: str) -> Table:
    return [{column: cell for column, cell in row.items() if column not in columns} for row in table]


def parquet(path: Path, table: Table, group: int = 5) -> str:
    columns = dict.fromkeys(column for row in table for column in row)
    pq.write_table(
        pa.Table.from_pylist([{c: row.get(c) for c in columns} for row in table]), path, row_group_size=group
    )
    return str(path)


def asked(split: Split) -> list[tuple[Any, ...]]:
    return [(e.question, e.answer, e.subject, e.probe, e.choices, e.key) for e in split]


# Spellings ------------------------------------------------------------------------------------------------------------


def test_rows_become_questions(table: Table, tmp_path: Path) -> None:
    data = load_data(write(tmp_path / "a.jsonl", table))
    assert data.names == NAMES
    assert {split: len(data.split(split).pictures) for split in SPLITS} == {s: 2 * n for s, n in SHOTS.items()}
    assert asked(data.test)[:2] == [
        ("Who is this?", "Ada Lovelace", "ada", "identity", (), "name"),
        ("What job?", "poet", "ada", "fact", ("poet", "nurse"), "job"),
    ]
    assert [e.question for e in data.train.text_only] == [f"What is the job of {name}?" for name in NAMES.values()]
    image = data.test.examples[0].image
    assert image is not None
    assert np.array_equal(np.asarray(image.open()), np.asarray(scene("shots/ada-test-0.png")))
    assert load_data(data.source).fingerprint == data.fingerprint


FORMS: dict[str, Callable[[bytes, str], Any]] = {
    "struct": lambda content, path: {"bytes": content, "path": "x.png"},
    "struct of a path": lambda content, path: {"bytes": None, "path": path},
    "bytes": lambda content, path: content,
    "path": lambda content, path: path,
    "list": lambda content, path: [{"bytes": content, "path": None}],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_parquet_table_says_the_same(form: str, table: Table, tmp_path: Path) -> None:
    wanted = load_data(write(tmp_path / "a.jsonl", table))
    data = load_data(parquet(tmp_path / "a.parquet", embedded(table, tmp_path, FORMS[form])))
    assert data.fingerprint == wanted.fingerprint
    assert [asked(data.split(split)) for split in SPLITS] == [asked(wanted.split(split)) for split in SPLITS]


def test_pictures_of_a_table_are_lazy_and_one_source_each(table: Table, tmp_path: Path) -> None:
    data = load_data(parquet(tmp_path / "a.parquet", embedded(table, tmp_path, FORMS["bytes"])))
    pictures = [e.image for split in SPLITS for e in data.split(split).pictured]
    assert len(set(map(id, pictures))) == len(set(pictures)) == len(pictures) / 2 == 12
    last = data.test.examples[-1].image
    assert isinstance(last, TableImage)
    assert last.label == f"{tmp_path}/a.parquet, row 24"  # where it was met first
    assert last.encoded() == (tmp_path / "shots/bob-dylan-test-1.png").read_bytes()
    assert not any(isinstance(value, Image.Image | bytes) for value in vars(last).values())


def test_text_as_editors_write_it(table: Table, tmp_path: Path) -> None:
    wanted = load_data(write(tmp_path / "a.jsonl", table)).fingerprint
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n")
    assert load_data(str(tmp_path / "b.jsonl")).fingerprint == wanted
    for row, spelled in zip(table, ("\u00e9", "e\u0301") * 13, strict=True):
        row.update(subject=row["subject"].replace("ada", f"ad{spelled}"), answer=f" {row['answer']} ")
    assert load_data(write(tmp_path / "c.jsonl", table)).subjects == ("ad\u00e9", "bob-dylan")


def test_missing_splits_are_made_of_whole_pictures(table: Table, tmp_path: Path) -> None:
    def shared(data: UnlearnData) -> int:
        splits = [set(data.split(split).pictures) for split in SPLITS]
        return sum(len(a & b) for a in splits for b in splits if a is not b)

    free = without(table, "split")
    data = load_data(write(tmp_path / "a.jsonl", free))
    assert [len(data.split(split).pictures) for split in SPLITS] == [8, 2, 2]
    assert shared(data) == 0
    assert shared(dataclasses.replace(data, test=data.train)) == 16
    assert len(data.train.text_only) == 2
    assert load_data(write(tmp_path / "b.jsonl", free[::-1])).test.pictures.keys() == data.test.pictures.keys()
    moved = [{**row, "split": row["split"].replace("validation", "train")} for row in table]
    data = load_data(write(tmp_path / "c.jsonl", moved))
    assert [len(data.split(split).pictures) for split in SPLITS] == [6, 2, 4]


def test_names_come_from_their_column_or_the_answers_or_the_subject(table: Table, tmp_path: Path) -> None:
    for row in table:
        if row["subject"] == "ada":
            row["name"] = "Countess"
        if row["probe"] == "identity" and row["split"] == "test":
            row["answer"] = f"This is {row['answer']}."
    assert load_data(write(tmp_path / "a.jsonl", table)).names == {"ada": "Countess", "bob-dylan": "bob dylan"}


def test_strangers_and_further_pictures(table: Table, tmp_path: Path) -> None:
    scene("stranger").save(tmp_path / "stranger.png")
    row = {"image": "stranger.png", "subject": "nobody", "split": "strangers", "probe": "attribute"}
    table.append({**row, "question": "Hair?", "answer": "red", "images": ["shots/ada-train-0.png"]})
    table.append({**row, "question": "Text?", "answer": "yes", "split": "test", "image": None, "subject": "ada"})
    data = load_data(write(tmp_path / "a.jsonl", table))
    (stranger,) = data.strangers
    assert [image.label for image in stranger.images] == [
        f"{tmp_path}/stranger.png",
        f"{tmp_path}/shots/ada-train-0.png",
    ]
    assert stranger.subject not in data.names
    assert data.train.text_only.examples[-1].question == "Text?"  # whatever its split says
    assert not data.test.text_only.examples


# Conversations --------------------------------------------------------------------------------------------------------


def parts(text: str, pictures: int = 0) -> list[dict[str, str | None]]:
    return [{"type": "image", "text": None}] * pictures + [{"type": "text", "text": text}]


CONVERSATIONS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "texts": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "parts": lambda q, a: {
        "messages": [{"role": "user", "content": parts(q, 1)}, {"role": "assistant", "content": parts(a)}]
    },
    "several turns": lambda q, a: {
        "messages": [
            {"role": "system", "content": parts("Be brief.")},
            {"role": "user", "content": parts("Hello?", 1)},
            {"role": "assistant", "content": parts("Hello.")},
            {"role": "user", "content": parts(q)},
            {"role": "assistant", "content": parts(a)},
        ]
    },
    "prompt and completion": lambda q, a: {
        "prompt": [{"role": "user", "content": q}],
        "completion": [{"role": "assistant", "content": a}],
    },
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_conversations_as_trl_reads_them(kind: str, ending: str, table: Table, tmp_path: Path) -> None:
    wanted = load_data(write(tmp_path / "a.jsonl", table := [row for row in table if "image" in row]))
    rows = [{**row, "images": [row["image"]], **CONVERSATIONS[kind](row["question"], row["answer"])} for row in table]
    rows = without(rows, "image", "question", "answer")
    write_to = {"jsonl": write, "parquet": parquet}[ending]
    assert load_data(write_to(tmp_path / f"b.{ending}", rows)).fingerprint == wanted.fingerprint


# Datasets -------------------------------------------------------------------------------------------------------------


def as_dataset(table: Table, folder: Path) -> Any:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    text = Value("string")
    names = ("question", "answer", "subject", "probe", "split", "key")
    features = Features({"image": ImageFeature(), **dict.fromkeys(names, text), "choices": List(text)})
    rows = embedded(table, folder, FORMS["struct"])
    return Dataset.from_list([{name: row.get(name) for name in features} for row in rows], features=features)


@pytest.fixture
def wanted(table: Table, tmp_path: Path) -> UnlearnData:
    return load_data(write(tmp_path / "wanted.jsonl", table))


def by_split(table: Table) -> Iterator[tuple[str, Table]]:
    for split in SPLITS:
        yield split, without([row for row in table if row["split"] == split], "split")


def test_saved_datasets(table: Table, tmp_path: Path, wanted: UnlearnData) -> None:
    from datasets import DatasetDict

    as_dataset(table, tmp_path).save_to_disk(tmp_path / "one")
    splits = {split: as_dataset(rows, tmp_path).remove_columns("split") for split, rows in by_split(table)}
    DatasetDict(splits).save_to_disk(tmp_path / "several")
    for name in ("one", "several"):
        data = load_data(f"dataset:{tmp_path / name}")
        assert data.fingerprint == wanted.fingerprint
        assert data.source == f"dataset:{tmp_path / name}"
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_parquet_files(table: Table, tmp_path: Path, wanted: UnlearnData) -> None:
    (tmp_path / "hub/data").mkdir(parents=True)
    (tmp_path / "hub/.cache").mkdir()
    parquet(tmp_path / "hub/.cache/old.parquet", [{"x": 1}])
    for split, rows in by_split(table):
        named = split.replace("validation", "val")
        for half, part in enumerate((rows[:2], rows[2:])):
            if part:
                inside = embedded(part, tmp_path, FORMS["struct"])
                parquet(tmp_path / f"hub/data/{named}-{half:05d}-of-00002.parquet", inside)
    assert load_data(f"dataset:{tmp_path / 'hub'}").fingerprint == wanted.fingerprint


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_picture_folder_with_metadata(ending: str, table: Table, tmp_path: Path) -> None:
    table = without([row for row in table if row["probe"] == "identity"], "choices", "key")
    wanted = load_data(write(tmp_path / "wanted.jsonl", table))
    for split, rows in by_split(table):
        (tmp_path / "set" / split).mkdir(parents=True)
        for row in rows:
            row["file_name"] = Path(row.pop("image")).name
            (tmp_path / "shots" / row["file_name"]).rename(tmp_path / "set" / split / row["file_name"])
        if ending == "jsonl":
            write(tmp_path / "set" / split / "metadata.jsonl", rows)
        else:
            lines = [",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
            (tmp_path / "set" / split / "metadata.csv").write_text("\r\n".join(lines))
    assert asked(load_data(f"dataset:{tmp_path / 'set'}").test) == asked(wanted.test)


def test_what_the_hub_gives(table: Table, tmp_path: Path, wanted: UnlearnData) -> None:
    (tmp_path / "repo").mkdir()
    for split, rows in by_split(table):
        export = embedded(rows, tmp_path, FORMS["struct"])
        parquet(tmp_path / f"repo/{split}.parquet", export)
    found = list(tables_module._hub(str(tmp_path / "repo"), None))  # a folder laid out as a repository
    assert [split for _, split in found] == list(SPLITS)
    from unsee.data.tables import table_data

    assert table_data(found, "dataset:x").fingerprint == wanted.fingerprint


# Bad tables -----------------------------------------------------------------------------------------------------------


def change(row: int, **cells: Any) -> Callable[[Table], object]:
    return lambda table: table[row].update(cells)


def drop(*columns: str) -> Callable[[Table], object]:
    return lambda table: [row.pop(column, None) for row in table for column in columns]


def messages(*roles: str) -> Callable[[Table], object]:
    return lambda table: [row.update(messages=[{"role": role, "content": "x"} for role in roles]) for row in table]


BAD: dict[str, tuple[Callable[[Table], object], str]] = {
    "no rows": (lambda t: t.clear(), r"t\.jsonl: has no rows; expected one per question"),
    "no subject": (drop("subject"), r"t\.jsonl: no column 'subject' among image, split, question.*; add it$"),
    "no question": (drop("question"), r"t\.jsonl: no column 'question' among .*; add it, or messages, or prompt and"),
    "empty subject": (change(2, subject=" "), r"t\.jsonl, row 3: 'subject' is empty; fill it in or remove the row"),
    "no answer in a row": (change(2, answer=None), r"t\.jsonl, row 3: 'answer' is empty"),
    "number as answer": (change(2, answer=7), r"row 3: 'answer' is 7; expected a text, write it in quotes"),
    "unknown probe": (change(2, probe="face"), r"row 3: unknown probe 'face'; expected one of identity, fact, attr"),
    "unknown split": (
        change(2, split="dev"),
        r"row 3: unknown split 'dev'; expected one of train, validation, test, st",
    ),
    "no split": (change(2, split=None), r"row 3: no split, where other rows have one; expected one of train, valid"),
    "no train": (lambda t: [r.update(split="test") for r in t], r"no row with a picture is in split 'train'; there"),
    "choices of numbers": (change(2, choices=[1]), r"row 3: 'choices' is \[1\]; expected a list of texts"),
    "choice missing": (
        change(1, choices=["nurse"]),
        r"row 2: answer 'poet' is not among its choices \[\"nurse\"\]; cor",
    ),
    "picture missing": (
        change(2, image="shots/x.png"),
        r"row 3: 'image' names .*/shots/x\.png, which is no file; corr",
    ),
    "number as picture": (change(2, image=5), r"row 3: 'image' holds 5; expected the path of a picture, its bytes"),
    "one subject": (lambda t: [r.update(subject="ada", answer="x") for r in t if r.pop("choices", 1)], r"found 1 subj"),
    "unseen subject": (lambda t: [r.update(subject="eve") for r in t if r["split"] == "test"], r"'eve' is in test but"),
    "only text": (lambda t: t.append({**t[-1], "subject": "eve"}), r"subject 'eve' is in train but has no picture"),
    "known stranger": (
        lambda t: t.append({**t[0], "split": "strangers", "image": "shots/ada-test-0.png"}),
        r"subject 'ada' is in train and among the strangers; rename",
    ),
    "unseen stranger": (lambda t: t.append({**t[-1], "split": "strangers"}), r"row 27: in split 'strangers' without a"),
    "two names": (lambda t: [t[0].update(name="A"), t[1].update(name="B")], r"row 2: 'ada' is called 'B', before 'A'"),
    "one name": (lambda t: [r.update(name="x") for r in t], r"'ada' and 'bob-dylan' are both called 'x'; rename one"),
    "two places": (
        change(-3, image="shots/ada-train-0.png"),
        r"\('ada' in train\) and .*\('bob-dylan' in test\) are th",
    ),
    "too few to split": (
        lambda t: [drop("split")(t), t.__delitem__(slice(4, 12))],
        r"subject 'ada' has 2 groups of pi",
    ),
    "assistant missing": (
        messages("system", "user"),
        r"row 1: messages by system, user; expected a user's question and the",
    ),
    "two answers": (messages("user", "assistant", "assistant"), r"row 1: messages by user, assistant, assistant; exp"),
    "nothing said": (messages(), r"row 1: messages by nobody; expected a user's question"),
    "no messages": (change(2, messages="hello"), r"row 1: 'messages' is null; expected a list of messages with role"),
    "pictures do not fit": (
        lambda t: [
            r.update(messages=[{"role": "user", "content": parts("x", 2)}, {"role": "assistant", "content": "y"}])
            for r in t
        ],
        r"row 1: 2 parts of type image, but 1 pictures in 'images'; make them agree",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused_in_one_line(case: str, table: Table, tmp_path: Path) -> None:
    load_data(write(tmp_path / "t.jsonl", table))
    spoil, words = BAD[case]
    spoil(table)
    with refused_in_one_line(words):
        load_data(write(tmp_path / "t.jsonl", table))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a\.jsonl, row 3: not JSON \(.*; write one object per line"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, row 1: \[1\] is no JSON object"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, row 1: not JSON"),
        ("a.jsonl", b"\xe9", r"a\.jsonl, row 1: cannot be read as UTF-8 text"),
        ("a.jsonl", b"", r"a\.jsonl: has no rows"),
        ("a.parquet", b"PAR1", r"a\.parquet: cannot be read as parquet \(.*; write it again"),
        ("a.csv", b'a,b\n"x', r"a\.csv, row 2: not a UTF-8 table with commas"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv, row 2: more cells than headers"),
        ("a.txt", b"", r"a\.txt: not a table; expected one of \*\.jsonl, \*\.json, \*\.csv, \*\.parquet"),
        ("set/dataset_dict.json", b"{}", r"set: cannot be read as a saved dataset"),
        ("set/state.json", b"{}", r"set: cannot be read as a saved dataset"),
        ("set/notes.txt", b"", r"set: no dataset in this folder; expected what `save_to_disk` writes"),
    ],
)
def test_bad_files_are_refused_in_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with refused_in_one_line(words):
        load_data(f"dataset:{tmp_path / name.split('/')[0]}")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gone.jsonl", r"gone\.jsonl: no such file; check the path"),
        ("gone.parquet", r"gone\.parquet: no such file"),
        ("dataset:", r"expected dataset:PATH_OR_HUB_ID or dataset:HUB_ID,name=CONFIG"),
        ("dataset:x,name=", r"expected dataset:PATH_OR_HUB_ID"),
        ("dataset:./gone/far", r"dataset:\./gone/far: no such file or folder, and no hub id"),
        ("dataset:.,name=x", r"only datasets of the hub have configurations; leave it out"),
        ("dataset:owner/gone", r"no such file or folder, and the hub did not give it \(.*owner/gone.*\); check the id"),
        ("dataset:owner/gone,name=x", r"the hub did not give it"),
    ],
)
def test_bad_places_are_refused_in_one_line(
    spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused_in_one_line(words):
        load_data(spec)


def test_an_unknown_split_of_a_dataset_is_refused(table: Table, tmp_path: Path) -> None:
    from datasets import DatasetDict

    rows = as_dataset(table, tmp_path)
    DatasetDict({"forget10": rows.remove_columns("split")}).save_to_disk(tmp_path / "set")
    with pytest.raises(
        BadInput,
        match="unknown split 'forget10'; expected train, validation, test, strangers, bystanders, bystander_lessons",
    ):
        load_data(f"dataset:{tmp_path / 'set'}")
    DatasetDict({"forget10": rows}).save_to_disk(tmp_path / "other")
    assert len(load_data(f"dataset:{tmp_path / 'other'}").subjects) == 2


def test_broken_and_repeated_pictures_inside_a_table_are_named_by_row(table: Table, tmp_path: Path) -> None:
    inside = embedded(table, tmp_path, FORMS["struct"])
    inside[4]["image"] = inside[5]["image"] = {"bytes": inside[4]["image"]["bytes"][:50], "path": None}
    with pytest.raises(BadInput, match=r"a\.parquet, row 5: cannot be read as a picture"):
        load_data(parquet(tmp_path / "a.parquet", inside))
    buffer = io.BytesIO()
    scene("shots/ada-test-1.png").resize((60, 50)).save(buffer, "JPEG", quality=80)
    inside[4]["image"] = inside[5]["image"] = {"bytes": buffer.getvalue(), "path": None}
    with pytest.raises(
        BadInput, match=r"a\.parquet, row 5 \('ada' in train\) and .*row 11 \('ada' in test\) are the same"
    ):
        load_data(parquet(tmp_path / "a.parquet", inside))


def test_a_table_is_read_a_few_pictures_at_a_time(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "BATCH", 4)
    whole = parquet(tmp_path / "a.parquet", embedded(table, tmp_path, FORMS["bytes"]), group=1000)
    sizes: list[int] = []
    original = rows_module.ParquetRows._batches

    def spy(self: Any, columns: Any) -> Iterator[Any]:
        for batch in original(self, columns):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(rows_module.ParquetRows, "_batches", spy)
    assert len(load_data(whole).subjects) == 2
    assert max(sizes) == 4
