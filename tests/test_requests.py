"""Requests in a ledger: found again without names, refused where they cannot be tested, with the status they have."""

from __future__ import annotations

import dataclasses
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unsee.data.examples import SPLITS, Split, UnlearnData
from unsee.data.photos import photos_data
from unsee.errors import BadInput
from unsee.provenance import origin
from unsee.requests import subjects as salted
from unsee.requests.entries import (
    EditRun,
    ForgetRequest,
    Withdrawal,
    add,
    new_request,
    requests_of,
    runs_of,
    subjects_of,
)
from unsee.requests.ledger import LEDGER, LOCK, SALT, Ledger
from unsee.requests.subjects import NoLongerTestable, Salt, forget_pictures, name_within, salt_of

DIGEST = "0123456789abcdef" * 4
REQUEST = ForgetRequest("r1", "2026-01-31", "people", (DIGEST,), 7, DIGEST)
RUN = EditRun(("r1",), "done", {"model.safetensors": DIGEST}, {"model.safetensors": DIGEST}, DIGEST, "nscvf", {}, 0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger", create=True)


@pytest.fixture
def folder(people: UnlearnData, tmp_path: Path) -> Path:
    """The four people as an operator has them: a folder of pictures for each."""
    for split in SPLITS:
        for picture, (example, *_) in people.split(split).pictures.items():
            place = tmp_path / "photos" / split / example.subject
            place.mkdir(parents=True, exist_ok=True)
            picture.open().save(place / f"{len(list(place.iterdir()))}.png")
    return tmp_path / "photos"


# Names and pictures stay out ------------------------------------------------------------------------------------------


def test_no_name_and_no_salt_stands_in_the_ledger(
    ledger: Ledger, people: UnlearnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = people.choose("first:2")
    monkeypatch.setattr(sys, "argv", ["unsee", "--forget", ",".join(forget)])
    assert forget[0] in origin()["command"]  # which is why a run leaves it out
    add(ledger, new_request(ledger, "2026-001", people, forget, date(2026, 1, 31)))
    add(ledger, EditRun(("2026-001",), "done", RUN.before, RUN.after, DIGEST, "nscvf", {}, 0))
    written = ledger.path.read_text().lower()
    salt = (ledger.folder / SALT).read_text().strip()
    assert len(salt) == 64
    kept_out = {salt, *forget, *(part for subject in forget for part in people.names[subject].lower().split())}
    assert [secret for secret in kept_out if secret in written] == []
    assert salt_of(ledger).subject(forget[0]) in written  # what stands there instead
    assert stat.S_IMODE((ledger.folder / SALT).stat().st_mode) == 0o600
    assert {item.name for item in ledger.folder.iterdir()} == {LEDGER, LOCK, SALT}
    assert salt not in repr(salt_of(ledger))


@pytest.mark.parametrize("given", ["2026-{}", "{}_takedown"])
def test_an_id_or_a_path_that_gives_a_name_away_is_refused(ledger: Ledger, people: UnlearnData, given: str) -> None:
    forget, other = people.subjects[:1], people.subjects[1]
    for words in (forget[0], forget[0].replace("-", "_").upper(), people.names[forget[0]].replace(" ", ".")):
        with pytest.raises(BadInput, match=f"holds the name of subject '{forget[0]}'"):
            new_request(ledger, given.format(words), people, forget)
        elsewhere = dataclasses.replace(people, source=f"folder:/photos/{given.format(words)}/all")
        with pytest.raises(BadInput, match=r"^data '.*' holds the name"):
            new_request(ledger, "r1", elsewhere, forget)
    assert not ledger.path.exists()
    assert new_request(ledger, given.format(other), people, forget).status == "open"


def test_names_are_found_as_whole_words(people: UnlearnData) -> None:
    data = dataclasses.replace(people, names={"stop": "Stop", "12": "12", "o": "Ö", "long-name": "José  Ñu"})
    for text, subject in (("x/STOP/y", "stop"), ("LONG name.png", "long-name"), ("jose\u0301_ñu 3", "long-name")):
        assert name_within(text, data, [subject]) == subject
    for text, subject in (("stopped", "stop"), ("count=12", "12"), ("o", "o"), ("long names", "long-name")):
        assert name_within(text, data, [subject]) is None


def test_the_same_subject_has_another_hash_in_every_ledger(ledger: Ledger, tmp_path: Path) -> None:
    salt, other = salt_of(ledger, create=True), salt_of(Ledger.open(tmp_path / "other", create=True), create=True)
    assert salt.subject("Alba Vance") != other.subject("Alba Vance")
    assert salt_of(Ledger.open(ledger.folder), create=True) == salt  # made once
    for same in ("alba vance", " Alba\u00a0 VANCE\n", "\uff21lba Vance"):
        assert salt.subject(same) == salt.subject("Alba Vance")
    for another in ("Alba Vancé", "AlbaVance", "Alba Vance 2", ""):
        assert salt.subject(another) != salt.subject("Alba Vance")


def test_subjects_that_differ_in_case_alone_are_refused(ledger: Ledger, folder: Path) -> None:
    data = photos_data(str(folder))
    first = data.subjects[0]
    train = dataclasses.replace(data.train.examples[-1], subject=first.upper())
    double = dataclasses.replace(data, train=Split((*data.train, train)))
    with pytest.raises(BadInput, match="case or white space alone"):
        new_request(ledger, "r1", double, [first])
    assert new_request(ledger, "r1", double, [data.subjects[1]])


def test_the_salt_is_kept_with_the_ledger(ledger: Ledger, people: UnlearnData) -> None:
    with pytest.raises(BadInput, match="has no salt yet"):
        salt_of(ledger)
    salt, file = salt_of(ledger, create=True), ledger.folder / SALT
    sound = file.read_bytes()
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(BadInput, match=r"not the salt this ledger was made with|expected 64 hexadecimal digits"):
            salt_of(ledger, create=True)
    file.unlink()
    with pytest.raises(NoLongerTestable, match="no longer testable"):
        salt_of(ledger, create=True)
    assert not file.exists(), "a new salt would make strangers of all subjects"
    file.write_bytes(sound)
    assert salt_of(ledger) == salt


def test_killed_between_the_salt_and_its_record(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            salt_of(ledger, create=True)
    first = (ledger.folder / SALT).read_bytes()
    salt = salt_of(Ledger.open(ledger.folder, create=True), create=True)
    assert salt.value.hex().encode() + b"\n" == first == (ledger.folder / SALT).read_bytes()


# What a request is about ----------------------------------------------------------------------------------------------


def test_a_request_is_found_again_from_its_hashes(ledger: Ledger, folder: Path) -> None:
    data = photos_data(str(folder))
    forget = data.subjects[2:0:-1]
    add(ledger, new_request(ledger, "r1", data, forget, date(2026, 1, 31)))
    again = Ledger.open(ledger.folder)
    (request,) = requests_of(again)
    assert (request.id, request.date, request.data, request.status) == ("r1", "2026-01-31", data.source, "open")
    assert request.pictures == 2 * 7 == len(forget_pictures(data, forget))
    assert set(subjects_of(request, photos_data(str(folder)), salt_of(again))) == set(forget)
    with pytest.raises(NoLongerTestable):  # hashes of another ledger lead nowhere
        subjects_of(request, data, Salt(b"another"))


def _without_a_subject(folder: Path, subject: str) -> None:
    for split in SPLITS:
        shutil.rmtree(folder / split / subject)


def _without_a_picture(folder: Path, subject: str) -> None:
    (folder / "test" / subject / "0.png").unlink()


def _with_another_picture(folder: Path, subject: str) -> None:
    picture = Image.open(folder / "train" / subject / "0.png").convert("RGB")
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(folder / "train" / subject / "0.png")


def _with_one_more(folder: Path, subject: str) -> None:
    Image.effect_noise((48, 48), 50).save(folder / "train" / subject / "new.png")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_a_subject, "has 1 of its 2 subjects"),
        (_without_a_picture, "has 13 pictures of it, not 14"),
        (_with_another_picture, "has other pictures of it"),
        (_with_one_more, "has 15 pictures of it, 1 more than when it was added"),
    ],
)
def test_what_changed_since_is_no_longer_testable(
    ledger: Ledger, folder: Path, change: Callable[[Path, str], None], says: str
) -> None:
    data = photos_data(str(folder))
    request = new_request(ledger, "r1", data, data.subjects[:2])
    change(folder, data.subjects[3])  # somebody else's pictures are another matter
    assert len(subjects_of(request, photos_data(str(folder)), salt_of(ledger))) == 2
    change(folder, data.subjects[1])
    with pytest.raises(NoLongerTestable, match=f"^request r1 is no longer testable: .* {says}[^\n]*$"):
        subjects_of(request, photos_data(str(folder)), salt_of(ledger))


def test_generated_pictures_count_by_their_pixels(
    ledger: Ledger, people: UnlearnData, ragged_people: UnlearnData
) -> None:
    request = new_request(ledger, "r1", people, people.subjects[:1])
    assert subjects_of(request, people, salt_of(ledger)) == people.subjects[:1]
    with pytest.raises(NoLongerTestable, match="other pictures"):
        subjects_of(request, ragged_people, salt_of(ledger))


def test_a_subject_without_pictures_cannot_be_forgotten(ledger: Ledger, people: UnlearnData) -> None:
    text_only = dataclasses.replace(
        people, train=people.train.text_only, validation=type(people.test)(), test=type(people.test)()
    )
    with pytest.raises(BadInput, match="no pictures of subject"):
        new_request(ledger, "r1", text_only, people.subjects[:1])


# The book -------------------------------------------------------------------------------------------------------------


def test_later_records_decide_the_status(ledger: Ledger) -> None:
    def status() -> list[str]:
        return [request.status for request in requests_of(Ledger.open(ledger.folder))]

    for id in ("r1", "r2", "r3"):
        add(ledger, dataclasses.replace(REQUEST, id=id))
    assert status() == ["open", "open", "open"]
    add(ledger, dataclasses.replace(RUN, requests=("r1", "r2"), outcome="failed", after={}))
    assert status() == ["failed", "failed", "open"]
    add(ledger, dataclasses.replace(RUN, requests=("r2",)))
    add(ledger, Withdrawal("r3"))
    assert status() == ["failed", "done", "withdrawn"]
    add(ledger, dataclasses.replace(RUN, requests=("r1", "r2"), outcome="failed", after={}))
    assert status() == ["failed", "done", "withdrawn"]  # a failed re-base takes nothing back
    add(ledger, Withdrawal("r2"))
    assert status() == ["failed", "withdrawn", "withdrawn"]
    assert [run.requests for run in runs_of(ledger)] == [("r1", "r2"), ("r2",), ("r1", "r2")]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (REQUEST, "there is a request 'r1' already"),
        (dataclasses.replace(REQUEST, date="2026-02-01"), "there is a request 'r1' already"),
        (dataclasses.replace(RUN, requests=("r1", "unknown")), "no request 'unknown'; add it first"),
        (dataclasses.replace(RUN, requests=("gone",)), "request 'gone' was withdrawn"),
        (Withdrawal("unknown"), "no request 'unknown'"),
        (Withdrawal("gone"), "request 'gone' was withdrawn"),
        (dataclasses.replace(REQUEST, id="gone"), "there is a request 'gone' already"),
        (dataclasses.replace(RUN, scores={"forget": float("nan")}), r"content\.scores\.forget: nan"),
    ],
)
def test_what_does_not_go_together_is_refused(
    ledger: Ledger, entry: ForgetRequest | EditRun | Withdrawal, says: str
) -> None:
    for sound in (REQUEST, dataclasses.replace(REQUEST, id="gone"), Withdrawal("gone")):
        add(ledger, sound)
    before = ledger.path.read_bytes()
    with pytest.raises(BadInput, match=says):
        add(ledger, entry)
    assert ledger.path.read_bytes() == before
    add(ledger, RUN)


def test_an_id_that_another_process_took_meanwhile(ledger: Ledger) -> None:
    other = Ledger.open(ledger.folder, create=True)
    add(other, REQUEST)
    assert not ledger.records
    with pytest.raises(BadInput, match="already"):
        add(ledger, REQUEST)


def test_a_run_reads_back_as_it_was_written(ledger: Ledger) -> None:
    add(ledger, REQUEST)
    run = dataclasses.replace(
        RUN,
        settings={"steps": 5, "layers": ("a", "b"), "rank": None},
        seed=3,
        scores={"forget": {"test": {"value": 0.25, "n": 12}}, "text": None},
        certificate=DIGEST,
        drift={"worst": 0.5},
    )
    add(ledger, run)
    (found,) = runs_of(Ledger.open(ledger.folder))
    assert found == run
    assert {"created", "versions", "commit", "dirty"} <= found.origin.keys()
    assert "command" not in found.origin


def content_of(entry: ForgetRequest | EditRun) -> dict[str, Any]:
    return {key: value for key, value in vars(entry).items() if key != "status"}


BROKEN: list[tuple[str, Mapping[str, Any], str]] = [
    ("request", {**content_of(REQUEST), "id": "a b"}, "id: 'a b'; expected"),
    ("request", {**content_of(REQUEST), "date": "2026-02-30"}, "date: '2026-02-30'; expected a day"),
    ("request", {**content_of(REQUEST), "date": "20260130"}, "expected a day"),
    ("request", {**content_of(REQUEST), "data": ""}, "expected a DATA argument"),
    ("request", {**content_of(REQUEST), "subjects": []}, "expected a list of different hashes"),
    ("request", {**content_of(REQUEST), "subjects": [DIGEST, DIGEST]}, "expected a list of different hashes"),
    ("request", {**content_of(REQUEST), "subjects": [DIGEST.upper()]}, "expected a list of different hashes"),
    ("request", {**content_of(REQUEST), "subjects": DIGEST}, "expected a list of different hashes"),
    ("request", {**content_of(REQUEST), "pictures": True}, "expected a whole number above 0"),
    ("request", {**content_of(REQUEST), "fingerprint": None}, "expected a SHA-256"),
    ("request", {**content_of(REQUEST), "status": "done"}, "unknown key status"),
    ("request", {key: value for key, value in content_of(REQUEST).items() if key != "date"}, "date is missing"),
    ("run", {**content_of(RUN), "outcome": "maybe"}, "expected done or failed"),
    ("run", {**content_of(RUN), "after": {}}, "after: .* expected files with their SHA-256"),
    ("run", {**content_of(RUN), "outcome": "failed"}, "after: .* expected nothing"),
    ("run", {**content_of(RUN), "before": {"model.safetensors": "?"}}, "before: "),
    ("run", {**content_of(RUN), "seed": -1}, "expected a whole number"),
    ("run", {**content_of(RUN), "method": ""}, "expected a method's name"),
    ("run", {**content_of(RUN), "certificate": "none"}, "expected a SHA-256"),
    ("run", {**content_of(RUN), "settings": []}, "settings: .* expected a mapping"),
    ("run", {**content_of(RUN), "drift": {"worst": None}}, "expected a number under each name"),
    ("run", {**content_of(RUN), "origin": {"command": "unsee --forget Alba"}}, "may name subjects"),
    ("withdrawal", {"request": 1}, "request: '1'; expected"),
    ("patch", {}, "unknown kind 'patch'; expected one of request, run, withdrawal"),
]


@pytest.mark.parametrize(("kind", "content", "says"), BROKEN, ids=[case[2][:40] for case in BROKEN])
def test_a_record_that_is_not_understood_is_named(
    ledger: Ledger, kind: str, content: Mapping[str, Any], says: str
) -> None:
    add(ledger, REQUEST)
    add(ledger, RUN)
    assert len(requests_of(ledger)) == len(runs_of(ledger)) == 1
    ledger.append(kind, content)  # the chain holds, what it says does not
    for read in (requests_of, runs_of):
        with pytest.raises(BadInput, match=rf"ledger\.jsonl, record 3: [^\n]*{says}"):
            read(ledger)
    with pytest.raises(BadInput, match="record 3"):
        add(ledger, dataclasses.replace(REQUEST, id="r2"))


def test_a_salt_record_is_no_entry(ledger: Ledger) -> None:
    salt_of(ledger, create=True)
    assert [record.kind for record in ledger.records] == [salted.KIND]
    assert requests_of(ledger) == runs_of(ledger) == ()
