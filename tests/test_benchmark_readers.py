"""Benchmarks: what is written in a benchmark's own format is read back equal, however it lies on disk.

No picture is opened before somebody looks.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmark_files import CELEBRITIES, COUNT, FIRST, PERCENT, Rows, inside, rewrite, rows, said, table, write_small

from unsee.data import pictures as pictures_module
from unsee.data import rows as rows_module
from unsee.data.benchmarks import (
    BENCHMARKS,
    BenchmarkData,
    BenchmarkItem,
    read_benchmark,
    read_configuration,
    unlearn_data,
)
from unsee.data.benchmarks.unlearn_data import View
from unsee.data.examples import SPLITS
from unsee.data.export import export_data
from unsee.data.people import make_people
from unsee.data.sources import load_data
from unsee.errors import BadInput
from unsee.lab.miniatures import MINIATURES

PEOPLE = make_people(COUNT + CELEBRITIES, seed=3)
FORGET, RETAIN = 2, 8
ADA = PEOPLE[0]
JOB, CITY, PET, FOOD, HOBBY = (value for _, value in ADA.facts)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one miniature per benchmark; tests do not change it."""
    folder: Path = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        write_small(name, folder / name)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of pictures as they are decoded."""
    found: list[str] = []
    decode = pictures_module.decode

    def counted(picture: str | bytes, label: str) -> Any:
        found.append(label)
        return decode(picture, label)

    monkeypatch.setattr(pictures_module, "decode", counted)
    monkeypatch.setattr(rows_module, "decode", counted)
    return found


def read(name: str, folder: Path) -> BenchmarkData:
    return read_benchmark(name, f"{folder},forget={PERCENT}")


def counted(data: BenchmarkData) -> dict[tuple[str, str, bool], int]:
    return dict(Counter((item.part, item.kind, bool(item.images)) for item in data.items))


def one(items: tuple[BenchmarkItem, ...], **wanted: Any) -> BenchmarkItem:
    (found,) = [item for item in items if all(getattr(item, name) == value for name, value in wanted.items())]
    return found


def both(part: str, kind: str, number: int) -> dict[tuple[str, str, bool], int]:
    return {(part, kind, True): number, (part, kind, False): number}


# What is written is read ----------------------------------------------------------------------------------------------


def test_mllmu_is_read_as_written(small: Path) -> None:
    data = read("mllmu", small / "mllmu")
    per_person = {"classification": 5, "generation": 2, "cloze": 2}
    people = {"forget": FORGET, "test": FORGET, "retain": RETAIN, "celebrity": CELEBRITIES}
    expected = [both(part, kind, n * m) for part, n in people.items() for kind, m in per_person.items()]
    assert counted(data) == {key: number for cells in expected for key, number in cells.items()}
    assert data.forget == ("001", "002")
    assert [(p.subject, p.name, len(p.pictures), len(p.views), len(p.lessons)) for p in data.people] == [
        (f"{n:03d}", person.name, 1, 2, 6) for n, person in enumerate(PEOPLE[:COUNT], start=1)
    ]
    item = data.select("forget", "classification", pictured=True)[0]
    assert (item.configuration, item.subject, item.name, item.key) == ("forget_20", "001", ADA.name, "1")
    assert (item.question, item.answer) == ("What job does this person have?", JOB)
    assert item.letters == ("A", "B", "C", "D")
    assert item.choices[item.letters.index(item.letter)] == JOB
    test = data.select("test", "cloze", pictured=True)[0]
    assert (test.question, test.answer, test.name) == ("This person lives in __.", CITY, ADA.name)
    assert len(test.images) == 2
    assert data.select("celebrity", "cloze", pictured=False)[0].name == PEOPLE[COUNT].name
    assert data.people[0].lessons[0].answer == ADA.name
    assert not any(item.twin for item in data.items)  # the format pairs nothing


def test_clear_is_read_as_written(small: Path) -> None:
    data = read("clear", small / "clear")
    assert counted(data) == {
        ("forget", "generation", True): 2 * FORGET * 5,  # captions as they are, and with false ones
        ("forget", "generation", False): FORGET * 5,
        ("forget", "classification", True): FORGET * 5,
        ("retain", "generation", True): RETAIN * 5 + 3 * 5,
        ("retain", "generation", False): RETAIN * 5,
        ("retain", "classification", True): 3 * 5,
        ("celebrity", "classification", True): CELEBRITIES,
        ("world", "classification", True): CELEBRITIES,
    }
    assert len(data.select("forget", "generation", True, "forget20_perturbed")) == FORGET * 5
    assert data.forget == (PEOPLE[0].name, PEOPLE[1].name)
    assert [len(person.pictures) for person in data.people] == [5] * COUNT
    assert all(len([e for e in person.lessons if e.image is None]) == 5 for person in data.people)
    name = data.select("forget", "classification", True)[0]
    assert (name.answer, len(name.wrong), name.answer in name.wrong) == (ADA.name, 3, False)
    assert name.example().choices == (ADA.name, *name.wrong)
    caption = data.select("forget", "generation", True, "forget20_perturbed")[0]
    assert caption.paraphrases == (f"A picture that shows {caption.answer}",)
    assert len(caption.wrong) == 3
    assert caption.answer.startswith(ADA.name)
    world = data.select("world", "classification", True)[0]
    assert (world.question, world.answer, world.wrong) == ("What is 4 plus 2?", "6", ("7", "8"))
    assert world.example().probe == "general"


def test_umu_is_read_as_written(small: Path) -> None:
    data = read("umu", small / "umu")
    people = {"forget": FORGET, "retain": RETAIN, "celebrity": CELEBRITIES}
    kinds = ("classification", "cloze", "generation")
    expected = [both(part, kind, 5 * n) for part, n in people.items() for kind in kinds]
    assert counted(data) == {key: number for cells in expected for key, number in cells.items()}
    pairs = Counter(item.twin for item in data.items)
    assert set(pairs.values()) == {2}
    asked = {"subject": "001", "kind": "cloze", "key": "Residence"}
    seen, known = (one(data.items, images=images, **asked) for images in (data.people[0].pictures, ()))
    assert seen.twin == known.twin == "001/cloze/Residence"
    assert (seen.question, known.question) == ("This person lives in [Blank].", f"{ADA.name} lives in [Blank].")
    assert seen.answer == known.answer == CITY
    assert (seen.name, data.people[0].name) == (ADA.name, ADA.name)
    assert [(len(p.pictures), len(p.lessons)) for p in data.people] == [(1, 10)] * COUNT
    choice = one(data.items, subject="001", kind="classification", key="Interest", images=())
    assert (choice.answer, choice.choices["ABCD".index(choice.letter)]) == (HOBBY, HOBBY)


def test_fiubench_is_read_as_written(small: Path) -> None:
    data = read("fiubench", small / "fiubench")
    assert counted(data) == {("forget", "generation", True): FORGET * 5, ("retain", "generation", True): RETAIN * 5}
    item = data.items[0]
    assert (item.subject, item.name, item.question) == ("001", ADA.name, "What job does this person have?")
    assert item.answer == f"{ADA.name} works as a {JOB}."
    assert (item.keywords, len(item.rephrased), len(item.paraphrases), len(item.wrong)) == ((JOB,), 2, 1, 3)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_published_configuration_is_written_and_read(name: str, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"pictures": 1} if name == "clear" else {}
    MINIATURES[name](tmp_path, count=20, seed=3, **extra)
    if name != "fiubench":
        folders = {path.name for path in tmp_path.iterdir()}
        assert folders == {"data" if c == "default" else c for c in BENCHMARKS[name].configurations}
    assert len(BENCHMARKS["clear"].configurations) == 21
    for configuration in BENCHMARKS[name].configurations:
        if configuration != "ft_Data":  # what is taught, not asked
            items = read_configuration(name, str(tmp_path), configuration)
            assert items
            assert {item.configuration for item in items} == {configuration}
    with pytest.raises(BadInput, match="no 'forget7'"):
        read_configuration(name, str(tmp_path), "forget7")


# The same in other spellings ------------------------------------------------------------------------------------------


def as_list(found: Rows) -> Rows:
    return [{**{k: v for k, v in row.items() if k != "image"}, "images": [row["image"]]} for row in found]


def test_both_schemas_of_mllmu_give_equal_items(small: Path, tmp_path: Path) -> None:
    wanted = said(read("mllmu", small / "mllmu").items)
    shutil.copytree(small / "mllmu", tmp_path / "b")
    for configuration in ("forget_20", "retain_80", "Retain_Set"):
        rewrite(table(tmp_path / "b", configuration), as_list, typed=False)
    assert said(read("mllmu", tmp_path / "b").items) == wanted
    rewrite(table(tmp_path / "b", "forget_20"), lambda found: found[0]["images"].append(found[1]["images"][0]))
    with pytest.raises(BadInput, match="the same picture stands for '001' and '002'"):
        read("mllmu", tmp_path / "b")


def variants(found: Rows) -> Rows:
    """What is known to differ between copies: numbers for ids, options as a list, no `Directory`, loose letters."""
    for row in found:
        row["ID"] = int(row["ID"])
        del row["Directory"]
        for questions in row["Classification_Task"].values():
            for question in questions:
                question["Options"] = list(question["Options"].values())
                question["Correct_Answer"] = f" {question['Correct_Answer'].lower()} "
    return found


def test_what_is_known_to_vary_in_mllmu_changes_nothing(small: Path, tmp_path: Path) -> None:
    wanted = said(read("mllmu", small / "mllmu").items)
    shutil.copytree(small / "mllmu", tmp_path / "a")
    rewrite(table(tmp_path / "a", "forget_20"), variants, typed=False)
    assert said(read("mllmu", tmp_path / "a").items) == wanted
    for row in pq.read_table(table(tmp_path / "a", "retain_80")).to_pylist():
        (tmp_path / "a/retain_80" / row["image"]["path"]).write_bytes(row["image"]["bytes"])
    rewrite(table(tmp_path / "a", "retain_80"), lambda found: [r["image"].update(bytes=None) for r in found] and found)
    assert said(read("mllmu", tmp_path / "a").items) == wanted


@pytest.mark.parametrize("told", ["ID", "metadata", "picture"])
def test_lessons_find_their_person(told: str, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "mllmu", tmp_path / "a")

    def changed(found: Rows) -> Rows:
        found.reverse()
        for row in found:
            pairs = json.loads(row["metadata"])
            row["metadata"] = json.dumps(
                [{k: v for k, v in p.items() if told == "metadata" or k != "ID"} for p in pairs]
            )
        return found if told == "ID" else [{k: v for k, v in row.items() if k != "ID"} for row in found]

    rewrite(table(tmp_path / "a", "ft_Data"), changed, typed=False)
    people = read("mllmu", tmp_path / "a").people
    assert [[(e.question, e.answer, e.subject) for e in p.lessons] for p in people] == [
        [(e.question, e.answer, e.subject) for e in p.lessons] for p in read("mllmu", small / "mllmu").people
    ]
    assert people[1].lessons[0].answer == PEOPLE[1].name


def test_literals_json_and_the_other_spelling_give_equal_items(small: Path, tmp_path: Path) -> None:
    wanted = said(read("umu", small / "umu").items)
    folder = write_small("umu", tmp_path / "json", spelled=json.dumps)
    written = [pq.read_table(table(place, "forget_20"))["Cloze"] for place in (folder, small / "umu")]
    assert written[0] != written[1]
    assert said(read("umu", folder).items) == wanted
    for column in ("Classify", "Cloze", "Generation"):
        inside("forget_20", column, lambda held: held.update(multimodal=held.pop("muitimodal")), json.loads)(folder)
    assert said(read("umu", folder).items) == wanted
    inside("forget_20", "Cloze", lambda held: held["unimodal"]["Pet"].update(answer="a dragon"), json.loads)(folder)
    assert said(read("umu", folder).items) != wanted


def test_umu_names_without_a_biography_come_from_the_answers(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "umu", tmp_path / "a")
    named = {"question": "The name of this person is [Blank].", "answer": ADA.name}
    add = inside(
        "forget_20", "Cloze", lambda held: [side.update(Name=named) for side in held.values()], ast.literal_eval
    )
    rows("forget_20", lambda found: [row.update(Biography="A life.") for row in found] and found)(tmp_path / "a")
    assert [person.name for person in read("umu", tmp_path / "a").people[:2]] == ["", ""]
    add(tmp_path / "a")
    assert [person.name for person in read("umu", tmp_path / "a").people[:2]] == [ADA.name, ""]
    data = unlearn_data(read("umu", tmp_path / "a"))
    assert (data.names["001"], data.names["002"]) == (ADA.name, "002")
    assert {e.subject for e in data.train.of(["001", "002"]).probing("identity")} == {"001"}


def test_clear_reads_unpadded_names_and_true_answers_among_the_options(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "clear", tmp_path / "a")
    rows("real_faces", lambda found: [row["options"].append(row["answer"]) for row in found] and found)(tmp_path / "a")
    assert said(read("clear", tmp_path / "a").items) == said(read("clear", small / "clear").items)
    folder = write_small("clear", tmp_path / "five", forget=(5,))
    wanted = said(read_benchmark("clear", str(folder)).items)
    (folder / "forget05").rename(folder / "forget5")
    assert said(read_benchmark("clear", str(folder)).items) == wanted
    rows("forget05+tofu", lambda found: found[-1].update(question="What next?", answer="A book."))(folder)
    (nobody,) = [i for i in read_benchmark("clear", str(folder)).items if i.part == "forget" and not i.subject]
    assert (nobody.question, nobody.images) == ("What next?", ())


# Where it lies --------------------------------------------------------------------------------------------------------


def flat(folder: Path, to: Path) -> None:
    """All configurations as files of one folder."""
    to.mkdir()
    for path in folder.rglob("*.parquet"):
        single = path.name == FIRST
        shutil.copy(path, to / (f"{path.parent.name}.parquet" if single else f"{path.parent.name}-{path.name[6:]}"))


def saved(folder: Path, to: Path) -> None:
    """All configurations as `save_to_disk` writes them."""
    from datasets import Dataset, concatenate_datasets

    for path in folder.iterdir():
        parts = [Dataset.from_parquet(str(f), cache_dir=str(to / ".cache")) for f in sorted(path.glob("*.parquet"))]
        concatenate_datasets(parts).save_to_disk(str(to / path.name))


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "fiubench"])
@pytest.mark.parametrize("laid", [flat, saved])
def test_other_folders_say_the_same(laid: Any, name: str, small: Path, tmp_path: Path) -> None:
    laid(small / name, tmp_path / "other")
    wanted = read(name, small / name)
    data = read(name, tmp_path / "other")
    assert said(data.items) == said(wanted.items)
    assert [len(p.views) for p in data.people] == [len(p.views) for p in wanted.people]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_hub_id_is_fetched_file_by_file(
    name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetch(place: str, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((place, repo_type, allow_patterns))
        for pattern in allow_patterns:
            for path in (small / name).glob(pattern):
                (tmp_path / path.relative_to(small / name)).parent.mkdir(exist_ok=True, parents=True)
                shutil.copy(path, tmp_path / path.relative_to(small / name))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    hub = BENCHMARKS[name].hub
    data = read_benchmark(name, f"{hub},forget={PERCENT}")
    assert said(data.items) == said(read(name, small / name).items)
    assert data.source == f"{name}:{hub},forget={PERCENT}"
    assert asked[0][:2] == (hub, "dataset")
    assert not any("90" in pattern or "full+tofu" in pattern for pattern in asked[0][2])  # no more than is needed


@pytest.mark.parametrize("lost", ["Full_Set", "Test_Set", "Retain_Set", "ft_Data"])
def test_mllmu_is_read_without_what_nobody_needs(lost: str, small: Path, tmp_path: Path) -> None:
    wanted = read("mllmu", small / "mllmu")
    shutil.copytree(small / "mllmu", tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / lost)
    data = read("mllmu", tmp_path / "a")
    part = {"Test_Set": "test", "Retain_Set": "celebrity"}.get(lost)
    assert said(data.items) == said([item for item in wanted.items if item.part != part])
    assert len(data.people[0].lessons) == (1 if lost == "ft_Data" else 6)
    assert len(unlearn_data(data).test.pictures) == (COUNT if lost == "Test_Set" else 2 * COUNT)


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_pictures_are_opened_when_looked_at(name: str, small: Path, opened: list[str]) -> None:
    data = read(name, small / name)
    assert not opened
    sources = {image for item in data.items for image in item.images}
    assert len(set(map(id, (i for item in data.items for i in item.images)))) == len(sources)  # one source per picture
    assert len([i for item in data.items if item.images for i in item.images]) > len(sources)  # asked about repeatedly
    first = data.people[0].pictures[0]
    picture = first.open()
    assert len(opened) == 1
    assert not any(isinstance(value, type(picture) | bytes) for value in vars(first).values())
    assert np.array_equal(np.asarray(picture), np.asarray(first.open()))
    del opened[:]
    splits = unlearn_data(data)
    assert len(opened) == sum(len(splits.split(split).pictures) for split in SPLITS)  # each once


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("mllmu", (10, 10, 20)), ("clear", (30, 10, 10)), ("umu", (10, 10, 10)), ("fiubench", (10, 10, 10))],
)
def test_a_benchmark_is_data(name: str, pictures: tuple[int, ...], small: Path, tmp_path: Path) -> None:
    data = load_data(f"{name}:{small / name},forget={PERCENT}")
    assert tuple(len(data.split(split).pictures) for split in SPLITS) == pictures
    shown = [{image.open().tobytes() for image in data.split(split).pictures} for split in SPLITS]
    assert len(set.union(*shown)) == sum(pictures)
    assert data.choose("first:2") == read(name, small / name).forget
    assert list(data.names.values()) == [person.name for person in PEOPLE[:COUNT]]
    for split in SPLITS:
        assert set(data.split(split).pictured.subjects) == set(data.subjects)
        assert len(data.split(split).probing("identity").pictures) == len(data.split(split).pictures)
    scored = {(i.question, i.answer) for i in read(name, small / name).items if i.kind != "generation"}
    assert not scored & {(e.question, e.answer) for split in SPLITS for e in data.split(split)}
    export_data(data, tmp_path / "all.parquet")
    assert load_data(f"dataset:{tmp_path / 'all.parquet'}").fingerprint == data.fingerprint


def test_views_show_the_picture_otherwise(small: Path) -> None:
    picture = read("umu", small / "umu").people[0].pictures[0]
    shown = [image.open() for image in (picture, View(picture, "mirrored"), View(picture, "turned"))]
    assert len({image.size for image in shown}) == 1
    looks = [pictures_module._look(image)[0] for image in shown]
    for one_look, other in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(looks[one_look] - looks[other]) > pictures_module.SAME
    assert np.linalg.norm(looks[0] - pictures_module._look(picture.open())[0]) == 0
    assert View(picture, "turned") == View(picture, "turned") != View(picture, "mirrored")
