"""Data: same spec, same data; splits share nothing; bad input is named."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image
from tables_written import refused_in_one_line

from unsee.data.examples import SPLITS, UnlearnData
from unsee.data.people import make_people, people_data
from unsee.data.photos import photos_data
from unsee.data.sources import load_data
from unsee.errors import BadInput

SIGNS = os.environ.get("UNSEE_TEST_SIGNS", "")
TRACK = r"^(\d+)_"
T = TypeVar("T")


def draw(path: Path, seed: str) -> Path:
    """Noise, another one for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(seed.encode())).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def fill(folder: Path, tracks: int, frames: int = 1, subjects: str = "anna bob-dylan cleo_m") -> Path:
    for subject in subjects.split():
        for track in range(tracks):
            for frame in range(frames):
                draw(folder / subject / f"{track:02d}_{frame}.png", f"{folder.name}/{subject}/{track}/{frame}")
    return folder


def shown(data: UnlearnData, split: str) -> set[str]:
    """Pictures of a split by what they show."""
    return {repr(np.asarray(image.open()).tolist()) for image in data.split(split).pictures}


def tracks(data: UnlearnData, split: str) -> set[tuple[str, str]]:
    examples = data.split(split).pictured
    return {(e.subject, os.path.basename(e.image.label).split("_")[0]) for e in examples if e.image}


def shared(data: UnlearnData, what: Callable[[UnlearnData, str], set[T]]) -> int:
    """How much two splits have in common, summed over the pairs."""
    train, validation, test = (what(data, split) for split in SPLITS)
    return len(train & validation) + len(train & test) + len(validation & test)


@pytest.fixture
def small_people() -> UnlearnData:
    return people_data(count=12, seed=3, train=2, validation=1, test=1, strangers=4)


# People ---------------------------------------------------------------------------------------------------------------


def test_same_seed_same_people_and_another_seed_other_people(small_people: UnlearnData) -> None:
    again = people_data(count=12, seed=3, train=2, validation=1, test=1, strangers=4)
    other = people_data(count=12, seed=4, train=2, validation=1, test=1, strangers=4)
    assert again.fingerprint == small_people.fingerprint != other.fingerprint


def test_first_people_do_not_depend_on_how_many_there_are() -> None:
    assert make_people(20, seed=3)[:5] == make_people(5, seed=3)
    assert make_people(20, seed=4)[:5] != make_people(5, seed=3)


def test_people_splits_share_no_picture(small_people: UnlearnData) -> None:
    assert shared(small_people, shown) == 0
    leaky = UnlearnData("leaky", small_people.train, small_people.train, small_people.test)
    assert shared(leaky, shown) == 24


def test_strangers_are_in_no_split_and_are_asked_only_what_is_visible(small_people: UnlearnData) -> None:
    strangers = set(small_people.strangers.subjects)
    assert len(strangers) == 4
    assert {e.probe for e in small_people.strangers} == {"attribute"}
    assert {e.probe for e in small_people.test} > {"attribute"}
    for split in SPLITS:
        assert not strangers & set(small_people.split(split).subjects)
        assert not shown(small_people, split) & shown(small_people, "strangers")


# Choosing whom to forget ----------------------------------------------------------------------------------------------


def test_choose_by_subject_name_file_and_number(small_people: UnlearnData, tmp_path: Path) -> None:
    first, second, third = small_people.subjects[:3]
    (tmp_path / "list.txt").write_text(f"{second}\n\n{first}\n")
    assert small_people.choose(f"{first}, {small_people.names[second].upper()},{first}") == (first, second)
    assert small_people.choose(f"@{tmp_path / 'list.txt'}") == (second, first)
    assert small_people.choose("first:3") == (first, second, third)
    assert small_people.choose("random:4", seed=1) == small_people.choose("random:4", seed=1)
    assert small_people.choose("random:4", seed=1) != small_people.choose("random:4", seed=2)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("nobody", "unknown subject 'nobody'"),
        (" , ", "no subject given"),
        ("@gone.txt", "cannot read the file"),
        ("first:0", "from 1 to 11"),
        ("random:12", "from 1 to 11"),
        ("random:x", "from 1 to 11"),
    ],
)
def test_choose_refuses(small_people: UnlearnData, wanted: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        small_people.choose(wanted)


def test_someone_must_be_left(small_people: UnlearnData) -> None:
    assert len(small_people.choose(",".join(small_people.subjects[1:]))) == 11
    with pytest.raises(BadInput, match="names all 12 subjects"):
        small_people.choose(",".join(small_people.subjects))


# Folders of pictures --------------------------------------------------------------------------------------------------


def test_groups_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    folder = str(fill(tmp_path / "set", tracks=6, frames=4))
    kept, naive = photos_data(folder, TRACK), photos_data(folder)
    assert shared(kept, shown) == shared(naive, shown) == 0
    assert shared(kept, tracks) == 0
    assert shared(naive, tracks) > 0
    for data in (kept, naive):
        assert sum(len(data.split(split).pictures) for split in SPLITS) == 3 * 6 * 4
    assert [len(tracks(kept, split)) for split in SPLITS] == [3 * 4, 3, 3]


def test_group_without_a_capture_is_the_whole_match(tmp_path: Path) -> None:
    folder = str(fill(tmp_path / "set", tracks=6, frames=4))
    assert photos_data(folder, r"^\d+").fingerprint == photos_data(folder, TRACK).fingerprint
    assert photos_data(folder, r"\d\.png$").fingerprint != photos_data(folder, TRACK).fingerprint


def test_splits_depend_on_names_only_and_not_on_their_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", tracks=10)
    data = photos_data(str(folder))
    assert photos_data(str(shutil.copytree(folder, tmp_path / "elsewhere"))).fingerprint == data.fingerprint
    tests = {subject: min(t for s, t in tracks(data, "test") if s == subject) for subject in data.subjects}
    assert len(set(tests.values())) > 1  # by the alphabet, every subject would give the same pictures away


def test_only_missing_splits_are_made(tmp_path: Path) -> None:
    fill(tmp_path / "train", tracks=5, frames=2)
    fill(tmp_path / "test", tracks=1)
    for picture in (tmp_path / "test").rglob("*.png"):
        picture.rename(picture.with_name("single.png"))  # in no group, and needs none
    data = photos_data(str(tmp_path), TRACK)
    assert {split: len(data.split(split).pictures) for split in SPLITS} == {"train": 24, "validation": 6, "test": 3}
    assert all(image.label.endswith("single.png") for image in data.test.pictures)
    assert shared(data, tracks) == 0
    fill(tmp_path / "validation", tracks=2)
    data = photos_data(str(tmp_path), TRACK)
    assert {split: len(data.split(split).pictures) for split in SPLITS} == {"train": 30, "validation": 6, "test": 3}


def test_what_is_no_picture_is_ignored(tmp_path: Path) -> None:
    before = photos_data(str(fill(tmp_path / "set", tracks=3))).fingerprint
    for name in (".hidden/x.png", "anna/.x.png", "anna/notes.txt", "LICENSE", "bob-dylan/nested/x.txt"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_text("?")
    assert photos_data(str(tmp_path / "set")).fingerprint == before
    draw(tmp_path / "set/anna/NEW.PNG", "new")
    assert photos_data(str(tmp_path / "set")).fingerprint != before


def test_facts_become_questions(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", tracks=3)
    table = '\ufeffsubject,name,job,Which {pet}?\nbob-dylan,"Dylan, Bob",singer,\n\ncleo_m,,,a  crow\n'
    (folder / "facts.csv").write_text(table, encoding="utf-8")
    data = photos_data(str(folder))
    assert data.names == {"anna": "anna", "bob-dylan": "Dylan, Bob", "cleo_m": "cleo m"}
    asked = [(e.question, e.answer, e.subject, e.probe, e.key) for e in data.test]
    assert asked == [
        ("Who or what is this?", "anna", "anna", "identity", "name"),
        ("Who or what is this?", "Dylan, Bob", "bob-dylan", "identity", "name"),
        ("What is the job of this?", "singer", "bob-dylan", "fact", "job"),
        ("Who or what is this?", "cleo m", "cleo_m", "identity", "name"),
        ("Which {pet}?", "a crow", "cleo_m", "fact", "Which {pet}?"),
    ]
    told = [(e.question, e.answer) for e in data.train.text_only]
    assert told == [("What is the job of Dylan, Bob?", "singer"), ("cleo m: Which {pet}?", "a crow")]
    assert not data.validation.text_only.examples
    assert not data.test.text_only.examples


def test_accents_may_be_composed_or_not(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", tracks=3, subjects="jose\u0301 anna")
    (folder / "facts.csv").write_text("subject,job\njos\u00e9,poet\n", encoding="utf-8")
    assert photos_data(str(folder)).test.of(["jos\u00e9"]).probing("fact").examples[0].answer == "poet"


# Bad folders ----------------------------------------------------------------------------------------------------------

FACTS = {
    "no subject column": ("name;job\n", r"facts\.csv, row 1: no column 'subject' among 'name;job'"),
    "empty table": ("", r"facts\.csv, row 1: no column 'subject'"),
    "no column below": ("\n\nname,city\n", r"facts\.csv, row 3: no column 'subject'"),
    "column twice": ("subject,job,job\n", r"facts\.csv, row 1: column 'job' appears twice"),
    "columns alike": (
        "subject,City,job,city\nanna,Oslo,cook,Lima\n",
        r"facts\.csv, row 1: columns 'City' and 'city' differ in capitals alone; rename or remove one$",
    ),
    "unknown subject": ("subject,job\nanna,cook\nzoe,cook\n", r"facts\.csv, row 3: unknown subject 'zoe'"),
    "blank lines": ("\n\nsubject,city\n\nanna,Oslo\n\nzoe,Lima\n", r"facts\.csv, row 7: unknown subject 'zoe'"),
    "quoted break": ('subject,city\nanna,"Os\nlo"\nzoe,Lima\n', r"facts\.csv, row 4: unknown subject 'zoe'"),
    "windows": ('subject,city\r\nanna,"Os\r\nlo"\r\nzoe,x\r\n', r"facts\.csv, row 4: unknown subject 'zoe'"),
    "subject twice": (
        "subject,job\nanna,cook\n\nanna,poet\n",
        r"facts\.csv, row 4: subject 'anna' is already in row 2",
    ),
    "quoted break in the header": (
        'subject,"ci\nty"\nanna,Oslo\nanna,Lima\n',
        r"facts\.csv, row 4: subject 'anna' is already in row 3",
    ),
    "too many cells": ("subject,job\nanna,cook, poet\n", r"facts\.csv, row 2: 'poet' is under no header"),
    "quote left open": ('subject,job\nanna,"cook\n', r"facts\.csv, row 2: not a UTF-8 table"),
    "not UTF-8": ("subject,job\nanna,\udce9\n", r"facts\.csv, row 2: cannot be read as UTF-8"),
    "not UTF-8 below": ("subject,city\nanna,Oslo\n\nbob,\udce9\n", r"facts\.csv, row 4: cannot be read as UTF-8"),
    "same name": ("subject,name\nanna,Bob Dylan\n", r"'anna' and 'bob-dylan' are both called"),
}
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"set: cannot be read as a folder"),
    "no subjects": (lambda p: strip(p), r"set: found 0 subject folders; at least 2"),
    "one subject": (lambda p: strip(p, "anna cleo_m"), r"set: found 1 subject folders"),
    "no pictures": (lambda p: (p / "dora").mkdir(), r"dora: no pictures"),
    "two pictures": (lambda p: (p / "anna/01_0.png").unlink(), r"subject 'anna' has 2 groups .* needs at least 3"),
    "empty file": (lambda p: (p / "anna/x.jpg").touch(), r"x\.jpg: cannot be read as a picture \(the file is empty\)"),
    "no picture at all": (lambda p: (p / "anna/x.gif").write_text("hello"), r"x\.gif: cannot be read .*not one of PNG"),
    "dead link": (lambda p: (p / "anna/x.png").symlink_to("gone"), r"x\.png: cannot be read .*No such file"),
    "two subjects": (lambda p: draw(p / "anna/x.png", "set/cleo_m/1/0"), r"anna/x\.png .*cleo_m/01_0\.png .*the same"),
    "only test": (lambda p: strip(p) and fill(p / "test", 1), r"set: has test/ but no train/"),
    "a fourth split": (lambda p: divide(p) and fill(p / "val", 1), r"unexpected folder 'val'"),
    "new in test": (
        lambda p: divide(p) and fill(p / "test", 1, subjects="dora"),
        r"subject 'dora' is in test/ but not",
    ),
    "one picture left": (lambda p: divide(p) and fill(p / "train", 1, subjects="dora"), r"'dora' has 1 .* at least 2 "),
    "two splits": (lambda p: divide(p) and draw(p / "train/anna/x.png", "test/anna/0/0"), r"anna' in t.* are the same"),
}


def strip(folder: Path, subjects: str = "anna bob-dylan cleo_m") -> Path:
    for subject in subjects.split():
        shutil.rmtree(folder / subject)
    return folder


def divide(folder: Path) -> Path:
    fill(strip(folder) / "train", 3)
    fill(folder / "test", 1)
    return folder


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folder_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", tracks=3)
    photos_data(str(folder))
    spoil, words = FOLDERS[case]
    spoil(folder)
    with refused_in_one_line(words):
        photos_data(str(folder))


@pytest.mark.parametrize("case", FACTS)
def test_bad_facts_are_refused_with_their_row(case: str, tmp_path: Path) -> None:
    table, words = FACTS[case]
    (fill(tmp_path / "set", tracks=3) / "facts.csv").write_bytes(table.encode(errors="surrogateescape"))
    with refused_in_one_line(words):
        photos_data(str(tmp_path / "set"))


def test_a_cell_of_facts_may_hold_line_breaks(tmp_path: Path) -> None:
    (fill(tmp_path / "set", tracks=3) / "facts.csv").write_text('\nsubject,city\n\nanna,"Os\nlo"\n')
    assert [e.answer for e in photos_data(str(tmp_path / "set")).train.text_only] == ["Os lo"]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("(", r"group '\(': not a regular expression"),
        (r"(\d)(\d)", "2 capture groups; expected one at most"),
        ("^x", r"anna/00_0\.png: group '\^x' finds nothing"),
        ("(x)?", r"anna/00_0\.png: group .* finds nothing"),
        (r"_(\d)", "subject 'anna' has 1 groups"),
    ],
)
def test_bad_group_is_refused(group: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        photos_data(str(fill(tmp_path / "set", tracks=3)), group)


def test_a_copy_within_one_split_of_one_subject_is_allowed(tmp_path: Path) -> None:
    divide(fill(tmp_path / "set", tracks=1))
    draw(tmp_path / "set/test/anna/copy.png", "test/anna/0/0")
    assert len(photos_data(str(tmp_path / "set")).test.pictures) == 4


# What DATA may say ----------------------------------------------------------------------------------------------------


def test_people_by_spec() -> None:
    data = load_data("people:count=5,seed=3,train=2,validation=1,test=1,strangers=0")
    assert len(data.subjects) == 5
    assert data.fingerprint == people_data(5, 3, 2, 1, 1, 0).fingerprint == load_data(data.source).fingerprint
    assert load_data("people").source == "people:count=60,seed=10"


def test_folder_by_spec(tmp_path: Path) -> None:
    folder = fill(tmp_path / "my, set", tracks=6, frames=4)
    alone, grouped = photos_data(str(folder)), photos_data(str(folder), r"^(\d{1,2})_")
    assert load_data(f"folder:{folder}").fingerprint == load_data(str(folder)).fingerprint == alone.fingerprint
    assert alone.fingerprint != grouped.fingerprint
    for spec in (rf"folder:{folder},group=^(\d{{1,2}})_", rf"{folder},group=^(\d{{1,2}})_", grouped.source):
        assert load_data(spec).fingerprint == grouped.fingerprint


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "expected the path of an existing folder or of a table (.jsonl, .json, .csv, .parquet), or people, "),
        ("flickr:x", "'flickr:x': no such data; expected"),
        (__file__, "not a table; expected one of *.jsonl, *.json, *.csv, *.parquet"),
        ("people:size=3", "unknown key 'size'; expected KEY=NUMBER with each of count, seed, train"),
        ("people:count=3,", "unknown key ''"),
        ("people:count=3,count=4", "given twice 'count'"),
        ("people:count", "count=''; expected a whole number, 1 or more"),
        ("people:count=many", "count='many'; expected a whole number"),
        ("people:train=-1", "train='-1'; expected a whole number"),
        ("people:test=0", "test='0'; expected a whole number, 1 or more"),
        ("people:count=677", "expected 1 to 676 people"),
        ("folder:", "expected folder:PATH or"),
        ("folder:x,group=", "expected folder:PATH or"),
        ("folder:not-here", "not-here: cannot be read as a folder"),
    ],
)
def test_bad_spec_is_refused_in_one_line(spec: str, words: str) -> None:
    with refused_in_one_line(re.escape(words)):
        load_data(spec)


@pytest.mark.skipif(not SIGNS, reason="UNSEE_TEST_SIGNS names no folder of traffic signs")
def test_traffic_signs_share_no_track() -> None:
    data, naive = load_data(f"folder:{SIGNS},group={TRACK}"), load_data(f"folder:{SIGNS}")
    assert len(data.subjects) == len(data.validation.subjects) == len(data.test.subjects) == 43
    assert not tracks(data, "train") & tracks(data, "validation")
    assert tracks(naive, "train") & tracks(naive, "validation")
