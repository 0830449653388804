"""The ledger: what is written reads back as it was given, and no byte of it changes unnoticed."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledgers import CONTENT, filled, names_in

from unsee.errors import BadInput
from unsee.requests.ledger import DEPTH, EMPTY, LEDGER, LOCK, WHOLE, Damaged, Ledger, line_of, plain

# What is written ------------------------------------------------------------------------------------------------------


def test_records_read_back_as_they_were_given(tmp_path: Path) -> None:
    assert Ledger.open(tmp_path / "new", create=True).head == EMPTY
    written = filled(tmp_path / "new")
    found = Ledger.open(tmp_path / "new")
    assert found.records == written.records
    assert found.head == written.head == found.records[-1].hash
    assert [record.number for record in found.records] == list(range(1, 9))
    assert found.records[0].previous == EMPTY
    assert found.records[3].content == {
        "text": "Zoë\u2028",
        "numbers": (0, -1.5e-7, 0.1, True, None),
        "nested": {"a": (), "b": {}},
        "i": 3,
    }
    with pytest.raises(TypeError):
        found.records[3].content["nested"]["a"] = 1  # type: ignore[index]
    assert names_in(tmp_path / "new") == {LEDGER, LOCK}


def test_hashes_can_be_checked_without_unsee(tmp_path: Path) -> None:
    """The recipe of docs/ledger.md, by hand."""
    filled(tmp_path)
    previous = hashlib.sha256(b"unsee ledger, format 1\n").hexdigest()
    for line in (tmp_path / LEDGER).read_text().splitlines():
        bare = re.sub(r',"hash":"[0-9a-f]*"}$', "}", line)
        assert json.loads(line)["hash"] == hashlib.sha256(bare.encode()).hexdigest()
        assert json.loads(line)["previous"] == previous
        previous = json.loads(line)["hash"]


def test_a_folder_without_a_ledger_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no ledger"):
        Ledger.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file/below: cannot be made as a folder"):
        Ledger.open(tmp_path / "file" / "below", create=True)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        -math.inf,
        np.float32(0.1),
        np.int64(1),
        WHOLE + 1,
        b"bytes",
        {"a set"},
        {1: "number as key"},
        "\ud83d",
        "\ud83d\ude00",
        Path("path"),
    ],
    ids=repr,
)
def test_what_would_not_read_back_is_refused(tmp_path: Path, value: Any) -> None:
    ledger = filled(tmp_path)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(BadInput, match=r"new record of kind note: content\.deep\[0\].*; [^\n]+$"):
        ledger.append("note", {"deep": [value]})
    assert (tmp_path / LEDGER).read_bytes() == before
    ledger.append("note", {"deep": [np.float64(0.1), float("1e-320"), WHOLE, "😀", (1, 2)]})  # these do read back
    assert Ledger.open(tmp_path).records[-1].content == {"deep": (0.1, float("1e-320"), WHOLE, "😀", (1, 2))}


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(DEPTH - 1):
        deep = [deep]
    Ledger.open(tmp_path, create=True).append("note", {"deep": deep})
    with pytest.raises(BadInput, match="nested more than"):
        Ledger.open(tmp_path).append("note", {"deep": [deep]})
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadInput, match="nested more than"):
        Ledger.open(tmp_path).append("note", {"deep": deep})


def test_kinds_are_words(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="kind 'A note'"):
        Ledger.open(tmp_path, create=True).append("A note", {})


# What is noticed ------------------------------------------------------------------------------------------------------


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = filled(tmp_path).path
    sound = file.read_bytes()
    chance = random.Random(0)
    places = [chance.randrange(len(sound)) for _ in range(990)]
    places += [len(sound) - 1, len(sound) - 2, 0, *(i for i, byte in enumerate(sound) if byte == ord("\n"))][:10]
    for place in places:
        flipped = bytearray(sound)
        flipped[place] ^= chance.randrange(1, 256)
        file.write_bytes(flipped)
        with pytest.raises(Damaged, match=r"ledger\.jsonl, line [1-9]: [^\n]+$"):
            Ledger.open(tmp_path)
    file.write_bytes(sound)
    Ledger.open(tmp_path).verify()  # not everything is refused


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a space": (lambda raw: raw.replace(b'"kind":', b'"kind": ', 1), "not in canonical form"),
    "capital digits": (
        lambda raw: re.sub(rb'(?<="hash":")[^"]*', lambda m: m[0].upper(), raw, count=1),
        "its own hash",
    ),
    "an escape": (lambda raw: raw.replace(b'"note"', b'"\\u006eote"', 1), "not in canonical form"),
    "a key twice": (lambda raw: raw.replace(b'"kind":"note"', b'"kind":"note","kind":"note"', 1), "canonical form"),
    "a number as text": (lambda raw: raw.replace(b'"number":1,', b'"number":true,', 1), "is not a record"),
    "another content": (lambda raw: raw.replace(b'"i":0', b'"i":5', 1), "does not fit its own hash"),
    "a line ending": (lambda raw: raw.replace(b"\n", b"\r\n", 1), "not in canonical form"),
    "an empty line": (lambda raw: raw + b"\n", "is not a record"),
    "no last newline": (lambda raw: raw[:-1], "ends before its newline"),
    "a torn line": (lambda raw: raw + b'{"number":9', "ends before its newline"),
    "a line gone": (lambda raw: raw[raw.index(b"\n") + 1 :], "does not follow the line before"),
    "a line twice": (lambda raw: raw + raw.splitlines(keepends=True)[-1], "does not follow the line before"),
    "lines swapped": (lambda raw: b"".join(sorted(raw.splitlines(keepends=True), reverse=True)), "does not follow"),
    "no number": (lambda raw: b"[" * 10**5 + raw, "is not a record"),
    "infinity": (lambda raw: raw.replace(b'"i":0', b'"i":1e999', 1), "is not a record"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_said(tmp_path: Path, change: str) -> None:
    ledger, (edit, reason) = filled(tmp_path), CHANGES[change]
    sound = ledger.path.read_bytes()
    assert edit(sound) != sound
    ledger.path.write_bytes(edit(sound))
    with pytest.raises(Damaged, match=reason):
        Ledger.open(tmp_path)
    with pytest.raises(Damaged):
        ledger.append("note", {})
    assert ledger.path.read_bytes() == edit(sound), "a damaged ledger was written to"


def test_a_kept_head_shows_every_truncation(tmp_path: Path) -> None:
    ledger = filled(tmp_path, 12)
    sound, kept = ledger.path.read_bytes(), ledger.head
    ledger.verify(kept)
    chance = random.Random(1)
    ends = [i + 1 for i, byte in enumerate(sound) if byte == ord("\n")][:-1]
    for cut in [0, *ends, *(chance.randrange(len(sound)) for _ in range(50 - len(ends) - 1))]:
        ledger.path.write_bytes(sound[:cut])
        with pytest.raises(Damaged):
            Ledger.open(tmp_path).verify(kept)
        if cut in (0, *ends):  # documented: whole lines that are missing leave a ledger that is sound by itself
            Ledger.open(tmp_path).verify()
        with pytest.raises(Damaged, match=r"no longer begins|has the hash|ends before"):
            ledger.verify()  # who read more before knows better


def test_a_kept_head_shows_a_chain_written_anew(tmp_path: Path) -> None:
    ledger = filled(tmp_path, 5)
    kept = ledger.head
    raw, previous = b"", EMPTY
    for record in ledger.records:
        content = plain({**CONTENT, "i": record.number + 100}, "content")
        raw += line_of(record.number, record.time, record.kind, content, previous)
        previous = json.loads(raw.splitlines()[-1])["hash"]
    ledger.path.write_bytes(raw)
    Ledger.open(tmp_path).verify()  # documented: sound by itself
    with pytest.raises(Damaged, match="none of its 5 records has the hash"):
        Ledger.open(tmp_path).verify(kept)
    with pytest.raises(Damaged, match="no longer begins"):
        ledger.append("note", {})


def test_an_older_head_still_holds(tmp_path: Path) -> None:
    ledger = filled(tmp_path, 3)
    kept = ledger.head
    ledger.append("note", {})
    for head in (EMPTY, kept, ledger.head, None):
        Ledger.open(tmp_path).verify(head)
    for head in ("0" * 64, kept[:-1] + ("0" if kept[-1] != "0" else "1")):
        with pytest.raises(Damaged):
            Ledger.open(tmp_path).verify(head)
    with pytest.raises(BadInput, match="expected the 64 hexadecimal digits"):
        ledger.verify(kept[:10])


def test_a_link_is_refused(tmp_path: Path) -> None:
    """Renaming would replace the link and leave the file it leads to behind."""
    filled(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / LEDGER).symlink_to(tmp_path / "real" / LEDGER)
    with pytest.raises(BadInput, match="is a link"):
        Ledger.open(tmp_path / "linked")
