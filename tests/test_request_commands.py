"""`unsee request`: what is asked for is done once and recorded once, in its order, and can be shown."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from request_steps import Edits, added, book, edits_in_no_time, model_and_photos, request, run, tree

from unsee.checkpoint.folder import CheckpointFolder, read_manifest
from unsee.data.sources import load_data
from unsee.errors import BadInput, GateFailed
from unsee.requests import run as module
from unsee.requests.checks import verify
from unsee.requests.ledger import LEDGER, SALT, Ledger

SETTINGS = "--set steps=3 --set learning_rate=5e-4 --set forget_pictures=3 --set retain_pictures=6 --set threshold=0.05"

place = pytest.fixture(model_and_photos)
edits = pytest.fixture(edits_in_no_time)


def results(*, ledger: Path = Path("ledger"), **given: Any) -> dict[str, str]:
    return {one.check: one.result for one in verify(ledger, **given)}


# From request to request ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_year_of_requests(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, twice, then all of it anew from the first model, which is random: no gate could judge it."""
    monkeypatch.setattr("unsee.editing.gate.FeatureGate._recognised", lambda *_: 1.0)
    added(1)
    assert run("model", "first", SETTINGS) == 0
    added(2)
    assert run("first", "second", SETTINGS) == 0
    assert re.search(r"head: ([0-9a-f]{64})\nkeep it elsewhere", capsys.readouterr().out)
    added(3)
    assert run("model", "anew", f"--rebase {SETTINGS}") == 0
    statuses, runs = book()
    assert statuses == ["done"] * 3
    assert [one.requests for one in runs] == [("r1",), ("r2",), ("r1", "r2", "r3")]
    assert runs[1].before == runs[0].after != runs[0].before == runs[2].before
    manifest = read_manifest(Path("anew"))
    assert len(manifest["forget"]) == 3
    assert set(runs[2].drift) == {"mean", "worst"}
    head = Ledger.open(Path("ledger")).head
    assert request(f"verify --ledger ledger --head {head} --model anew --data photos") == 0
    found = results(head=head, model=Path("anew"), data=load_data("photos"))
    assert set(found.values()) == {"ok"}
    assert request(f"verify --ledger ledger --head {head} --model second --data photos") == 1
    written = Path("ledger", LEDGER).read_text()
    assert not [subject for subject in load_data("photos").subjects if subject in written]


def test_a_later_run_works_with_all_data(place: Path, edits: Edits) -> None:
    """Whom the model was made to forget before is in its manifest, and `unlearn` sees to that (test_sequence.py)."""
    first, second, *_ = load_data("photos").subjects
    added(1, 2)
    assert run("model", "one", "r1") == 0
    assert run("one", "two") == 0
    assert [forget for _, forget in edits.seen] == [(first,), (second,)]
    before, after = (data for data, _ in edits.seen)
    assert before.fingerprint == after.fingerprint == book()[1][1].data == load_data("photos").fingerprint
    assert request(f"add --ledger ledger --id again --data photos --forget {first}") == 0
    assert run("two", "three") == 0
    assert edits.seen[-1][1] == (first,), "the same person once more"


def test_open_requests_go_together_and_others_can_be_named(
    place: Path, edits: Edits, capsys: pytest.CaptureFixture[str]
) -> None:
    added(1, 2, 3)
    assert request("withdraw --ledger ledger --id r2") == 0
    assert run("model", "one") == 0
    assert run("one", "two") == 2
    assert "no request is open; nothing to do" in capsys.readouterr().err
    statuses, (only,) = book()
    assert statuses == ["done", "withdrawn", "done"]
    assert only.requests == ("r1", "r3")
    assert only.scores == {"recognised": 0.25}
    assert request("list --ledger ledger --json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["date"], one["status"], one["run"]) for one in listed] == [
        ("r1", "2026-01-01", "done", 1),
        ("r2", "2026-01-02", "withdrawn", None),
        ("r3", "2026-01-03", "done", 1),
    ]
    assert {(one["subjects"], one["pictures"]) for one in listed} == {(1, 7)}
    assert request("list --ledger ledger") == 0
    assert re.search(r"r2 +2026-01-02 +1 +7 +withdrawn +–", capsys.readouterr().out)


def test_the_model_must_be_the_one_that_comes_next(
    place: Path, edits: Edits, capsys: pytest.CaptureFixture[str]
) -> None:
    added(1, 2)
    assert run("model", "one", "r1") == 0
    capsys.readouterr()
    kept = tree()
    assert run("model", "two") == 2
    says = capsys.readouterr().err
    assert re.fullmatch(r"unsee: --model model: 'model.safetensors' has .*; expected what run 1 wrote, .*\n", says)
    assert run("one", "two", "--rebase") == 2
    assert re.fullmatch(
        r"unsee: --model one: 'model.safetensors' .*; expected the model that run 1 began with\n",
        capsys.readouterr().err,
    )
    assert tree() == kept
    assert run("one", "two") == 0
    assert run("model", "anew", "--rebase") == 0
    assert book()[1][2].requests == ("r1", "r2")
    assert results()["runs"] == "ok"


def test_a_rebase_needs_every_picture(place: Path, edits: Edits, capsys: pytest.CaptureFixture[str]) -> None:
    added(1, 2)
    assert run("model", "one", "--rebase") == 2
    assert "no request of ledger/ledger.jsonl is done" in capsys.readouterr().err
    assert run("model", "one", "r1") == 0
    assert run("model", "anew", "r2 --rebase") == 2
    assert "carries out all done requests anew, 'r1' too" in capsys.readouterr().err
    picture = Path("photos/test", load_data("photos").subjects[0], "0.png")
    picture.rename("elsewhere.png")
    assert run("model", "anew", "--rebase") == 2
    assert re.fullmatch(
        r"unsee: request r1 is no longer testable: .*6 pictures of it, not 7.*\n", capsys.readouterr().err
    )
    assert run("one", "two") == 0  # what is done need not be tested to go on
    Path("elsewhere.png").rename(picture)
    assert run("model", "anew", "--rebase") == 0


def test_a_run_that_fails_its_gate_is_recorded(place: Path, edits: Edits, capsys: pytest.CaptureFixture[str]) -> None:
    added(1)
    edits.ends = GateFailed("retained pictures fell")
    assert run("model", "one") == 1
    assert re.search(r"retained pictures fell; recorded as run 1, head [0-9a-f]{64}\n", capsys.readouterr().err)
    assert not Path("one").exists()
    statuses, (failed,) = book()
    assert (statuses, failed.outcome, failed.after) == (["failed"], "failed", {})
    assert run("model", "one", "--resume") == 1
    assert "run 1 was this one and failed" in capsys.readouterr().err
    assert run("model", "one") == 2
    assert "name those that failed to try them again: r1" in capsys.readouterr().err
    assert len(book()[1]) == 1
    edits.ends = None
    assert run("model", "one", "r1 --seed 11") == 0
    assert [one.outcome for one in book()[1]] == ["failed", "done"]
    assert results(model=Path("one"))["runs"] == "ok"


def test_stored_statistics_are_part_of_the_record(place: Path, edits: Edits) -> None:
    added(1)
    assert run("model", "one", "--moments nowhere") == 2
    Path("moments").write_text("sums")
    assert run("model", "one", "--moments moments") == 0
    (only,) = book()[1]
    assert only.moments == read_manifest(Path("one"))["moments"] is not None
    Path("moments").write_text("other sums")
    assert run("model", "one", "--moments moments --resume") == 2
    Path("moments").write_text("sums")
    assert run("model", "one", "--moments moments --resume") == 0


def test_nobody_else_may_write_meanwhile(place: Path, edits: Edits, monkeypatch: pytest.MonkeyPatch) -> None:
    added(1)
    tried = []

    def trying(*arguments: Any, **named: Any) -> dict[str, Any]:
        with pytest.raises(BadInput, match="already in use"), Ledger.open(Path("ledger")).locked(wait=False):
            pass
        tried.append(arguments)
        return edits(*arguments, **named)

    monkeypatch.setattr(module, "unlearn", trying)
    assert run("model", "one") == 0
    assert tried
    with Ledger.open(Path("ledger")).locked(wait=False):
        pass


def test_a_model_that_appeared_while_waiting_is_not_replaced(
    place: Path, edits: Edits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added(1)
    real = module.CheckpointFolder

    def appears(path: Path) -> CheckpointFolder:
        shutil.copytree("model", "one")
        return real(path)

    monkeypatch.setattr(module, "CheckpointFolder", appears)
    assert run("model", "one") == 2
    assert "--out one: exists" in capsys.readouterr().err
    assert tree(Path("one")) == tree(Path("model"))


# Verified -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def carried(place: Path, edits: Edits) -> str:
    """r1 is done, r2 open; the head."""
    added(1)
    assert run("model", "one") == 0
    added(2)
    return Ledger.open(Path("ledger")).head


def flipped(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    file.write_bytes(data)


def test_what_is_sound_verifies_and_what_is_not_given_is_not_checked(place: Path, carried: str) -> None:
    data = load_data("photos")
    everything = results(head=carried, model=Path("one"), data=data)
    assert set(everything.values()) == {"ok"}
    assert {"chain", "head", "records", "salt", "runs", "model", "certificate", "data"} < everything.keys()
    assert {"request r1", "request r2"} < everything.keys()
    bare = results()
    assert {check for check, result in bare.items() if result == "not checked"} == {
        "head",
        "model",
        "certificate",
        "data",
    }


def test_a_flipped_byte_in_any_file_of_the_model_is_found(place: Path, carried: str) -> None:
    chance = random.Random(0)
    for file in sorted(Path("one").iterdir()):
        sound = file.read_bytes()
        flipped(file, chance)
        (about,) = [one for one in verify(Path("ledger"), model=Path("one")) if one.check == "model"]
        assert about.result == "failed"
        assert f"'{file.name}' has SHA-256" in about.about
        file.write_bytes(sound)
        assert results(model=Path("one"))["model"] == "ok"
    Path("one/pytorch_model.bin").touch()
    assert results(model=Path("one")) == results() | {"model": "failed"}
    Path("one/pytorch_model.bin").unlink()
    Path("one/tokenizer.json").unlink()
    assert results(model=Path("one"))["model"] == "failed"


def test_a_flipped_byte_of_ledger_or_salt_is_found(place: Path, carried: str) -> None:
    chance = random.Random(1)
    for name, check in ((LEDGER, "chain"), (SALT, "salt")):
        file = Path("ledger", name)
        sound = file.read_bytes()
        for _ in range(10):
            flipped(file, chance)
            assert results()[check] == "failed"
            file.write_bytes(sound)
    assert results()["chain"] == results()["salt"] == "ok"
    Path("ledger", SALT).unlink()  # the way to make a ledger anonymous
    found = results(head=carried, model=Path("one"), data=load_data("photos"))
    assert "failed" not in found.values()
    assert found["salt"] == found["request r1"] == "not checked"
    assert found["model"] == found["data"] == "ok"


def test_lines_that_are_missing_need_a_head(place: Path, carried: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("ledger", LEDGER)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    assert request("verify --ledger ledger") == 0
    capsys.readouterr()
    assert request(f"verify --ledger ledger --head {carried}") == 1
    assert re.fullmatch(r"unsee: ledger: 1 of \d+ checks failed: head\n", capsys.readouterr().err)


def test_runs_that_do_not_follow_each_other_are_found(place: Path, carried: str) -> None:
    (only,) = book()[1]
    files = dict.fromkeys(only.after, "0" * 64)
    for before, result in ((only.after, "ok"), (only.before, "ok"), (files, "failed")):
        shutil.copytree("ledger", "copy")
        added_run = dataclasses.replace(only, requests=("r2",), before=before)
        module.add(Ledger.open(Path("copy")), added_run)
        assert results(ledger=Path("copy"))["runs"] == result
        shutil.rmtree("copy")


@pytest.mark.parametrize(("number", "result"), [(0, "not checked"), (1, "failed")])
def test_pictures_that_changed(place: Path, carried: str, number: int, result: str) -> None:
    """An open request that cannot be carried out any more is a promise broken; a done one may be meant so."""
    subject = load_data("photos").subjects[number]
    shutil.copyfile(f"photos/test/{subject}/0.png", f"photos/test/{subject}/9.png")
    found = results(model=Path("one"), data=load_data("photos"))
    assert found[f"request r{number + 1}"] == result
    assert found[f"request r{2 - number}"] == "ok"
    assert found["data"] == "not checked"


def test_another_certificate_is_found(place: Path, carried: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unsee.requests import checks

    assert results(model=Path("one"))["certificate"] == "ok"
    manifest = read_manifest(Path("one"))
    manifest["drift_so_far"]["upper"] = 0.0
    monkeypatch.setattr(checks, "read_manifest", lambda _: manifest)
    assert results(model=Path("one"))["certificate"] == "failed"


def test_verify_prints_a_table_and_json(place: Path, carried: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert request(f"verify --ledger ledger --head {carried} --model one --data photos") == 0
    assert re.search(r"request r2 +ok +open, testable", capsys.readouterr().out)
    assert request("verify --ledger ledger --json") == 0
    assert {frozenset(one) for one in json.loads(capsys.readouterr().out)} == {frozenset(("check", "result", "about"))}


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("add --ledger ledger --id r1 --data photos --forget first:1", "there is a request 'r1' already"),
        ("add --ledger ledger --id r/3 --data photos --forget first:1", "id: 'r/3'; expected at most 64 letters"),
        ("add --ledger ledger --id r3 --data photos --forget zoe", "unknown subject 'zoe'"),
        ("add --ledger ledger --id r3 --data nowhere --forget zoe", "no such data"),
        (
            "add --ledger ledger --id r3 --data photos --forget first:1 --date 1.2.2026",
            "--date 1.2.2026: expected a day",
        ),
        ("list --ledger photos", "photos: holds no ledger"),
        ("withdraw --ledger ledger --id r9", "no request 'r9'"),
        ("withdraw --ledger ledger --id r/9", "--id: 'r/9'; expected at most 64 letters"),
        ("verify --ledger photos", "photos: holds no ledger"),
        ("verify --ledger ledger --head abc", "--head abc: expected the 64 hexadecimal digits"),
        ("verify --ledger ledger --model nowhere", "--model nowhere: no such folder"),
        ("verify --ledger ledger --data nowhere", "no such data"),
        ("run --ledger photos --model one --data photos --out two", "photos: holds no ledger"),
        ("run --ledger ledger --model nowhere --data photos --out two", "nowhere: no such folder"),
        ("run --ledger ledger --model one --data photos --out two r9", "request 'r9': not in"),
        ("run --ledger ledger --model one --data photos --out two r1", "request 'r1': done already"),
        ("run --ledger ledger --model one --data photos --out model", "--out model: exists"),
        ("run --ledger ledger --model one --data photos --out ledger/two", "lies inside ledger"),
        ("run --ledger ledger --model one --data photos --out model --resume", "was not written by unsee"),
        ("run --ledger ledger --model one --data photos --out two --method magic", "--method magic: unknown"),
        ("run --ledger ledger --model one --data photos --out two --set speed=3", "--set speed: no such setting"),
        ("run --ledger ledger --model one --data photos --out two --seed -1", "see `unsee request run --help`"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    place: Path, carried: str, capsys: pytest.CaptureFixture[str], command: str, says: str
) -> None:
    capsys.readouterr()
    kept = tree()
    assert request(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unsee: ")
    assert err.count("\n") == 1
    assert says in err
    assert tree() == kept
