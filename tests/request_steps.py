"""What tests of `unsee request` do: ask, carry out without unlearning, and look at what is there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from unsee.checkpoint.folder import CheckpointFolder, lineage, read_manifest
from unsee.checkpoint.write import Companions, write_edited
from unsee.cli import main
from unsee.data.examples import SPLITS, UnlearnData
from unsee.data.sources import load_data
from unsee.editing.request import EditRequest
from unsee.provenance import origin
from unsee.requests import run as module
from unsee.requests.entries import EditRun, requests_of, runs_of
from unsee.requests.ledger import LOCK, Ledger


def model_and_photos(checkpoint: Path, people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and a folder of pictures for each of four people, in the working directory."""
    shutil.copytree(checkpoint, tmp_path / "model")
    for split in SPLITS:
        for picture, (example, *_) in people.split(split).pictures.items():
            folder = tmp_path / "photos" / split / example.subject
            folder.mkdir(parents=True, exist_ok=True)
            picture.open().save(folder / f"{len(list(folder.iterdir()))}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclasses.dataclass
class Edits:
    """Stands in for `unlearn`: another weight for other inputs, and the same for the same, in no time.

    Attributes:
        seen: the data and the subjects of each call.
        ends: raised instead of writing.
    """

    seen: list[tuple[UnlearnData, tuple[str, ...]]] = dataclasses.field(default_factory=list)
    ends: BaseException | None = None

    def __call__(self, model: str, request: EditRequest, out: Path) -> dict[str, Any]:
        data, forget, method, seed = request.data, request.forget, request.method, request.seed
        self.seen.append((data, tuple(forget)))
        if self.ends is not None:
            raise self.ends
        source = CheckpointFolder(Path(model))
        key = next(key for key in source.file_of if key.endswith("linear_1.weight"))
        draw = torch.Generator().manual_seed(int(data.fingerprint[:8], 16) + seed)
        value = dict(source.read([key]))[key]
        manifest = {
            "kind": "unlearned",
            "method": method.name,
            "settings": dataclasses.asdict(method),  # type: ignore[call-overload]
            "seed": seed,
            "data": {"source": data.source, "fingerprint": data.fingerprint},
            "forget": list(forget),
            "base": {"sha256": source.hashes(), "lineage": lineage(read_manifest(Path(model)))},
            "certificate": {"layers": {}},
            "drift_so_far": {"lower": 0.01, "upper": 0.02},
            "recognised": 0.25,
            **request.about,
            **origin(),
        }
        edits = {key: value + torch.randn(value.shape, generator=draw)}
        return write_edited(source, edits, out, manifest, Companions("A card\n"), link=request.link)


def edits_in_no_time(monkeypatch: pytest.MonkeyPatch) -> Edits:
    stand_in = Edits()
    monkeypatch.setattr(module, "unlearn", stand_in)
    return stand_in


def request(command: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(["request", *command.split()])
    return int(ending.value.code or 0)


def added(*numbers: int, ledger: str = "ledger") -> None:
    subjects = load_data("photos").subjects
    for number in numbers:
        ask = f"--id r{number} --data photos --forget {subjects[number - 1]} --date 2026-01-0{number}"
        assert request(f"add --ledger {ledger} {ask}") == 0


def run(model: str, out: str, more: str = "", ledger: str = "ledger") -> int:
    return request(f"run --ledger {ledger} --model {model} --data photos --out {out} {more}")


def book() -> tuple[list[str], tuple[EditRun, ...]]:
    ledger = Ledger.open(Path("ledger"))
    return [one.status for one in requests_of(ledger)], runs_of(ledger)


def tree(folder: Path = Path()) -> dict[str, bytes]:
    files = {str(item.relative_to(folder)): item for item in folder.rglob("*") if item.name != LOCK}
    return {name: item.read_bytes() if item.is_file() else b"" for name, item in files.items()}
