"""Small tables and their pictures, written in the working directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unsee.data.examples import SPLITS, UnlearnData
from unsee.errors import BadInput

Row = dict[str, Any]
NFC, NFD = "jos\u00e9", "jose\u0301"


def ten_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Ten questions about ten pictures of two subjects; the working directory is where they lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    made = []
    for subject in ("ada", "bob"):
        for shot in range(5):
            draw(f"shots/{subject}{shot}.png")
            made.append({"image": f"shots/{subject}{shot}.png", "question": "Who?", "answer": subject})
            made[-1]["subject"] = subject
    return made


def draw(name: str) -> None:
    noise = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((24, 24), Image.Resampling.BICUBIC).save(name)


def csv(rows: Sequence[Row], header: Sequence[str] | None = None, end: str = "\n") -> str:
    cells = [header or list(rows[0]), *(list(row.values()) for row in rows)]
    return end.join(",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in cells) + end


def jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(name: str, content: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def answers(data: UnlearnData) -> list[tuple[str, str, str]]:
    return sorted(
        (e.subject, e.answer, "" if e.image is None else os.path.basename(e.image.label))
        for split in SPLITS
        for e in data.split(split)
    )


def chat(row: Row, content: Any) -> Row:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": row["answer"]}]
    return {"images": [row["image"]], "subject": row["subject"], "messages": messages}


@contextmanager
def refused_in_one_line(words: str) -> Iterator[None]:
    """The block is refused as bad input, by a message of one line that matches `words`."""
    with pytest.raises(BadInput, match=words) as refusal:
        yield
    assert "\n" not in str(refusal.value)
