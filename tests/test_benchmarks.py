"""The benchmark scripts at a miniature scale: they run, what they make is loadable, and they leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from night import by_day
from transformers import AutoModelForImageTextToText

from unsee.checkpoint.folder import INDEX
from unsee.data.examples import UnlearnData
from unsee.models.loading import load_visual
from unsee.requests.ledger import LEDGER, Ledger

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARD = 50_000


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def start(script: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start a benchmark that can be interrupted, also where the tests run in the background of a shell (which makes
    their children ignore SIGINT).
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, str(BENCHMARKS / script), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


# Random checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("label", ["narrow", "full"])
def test_random_checkpoint_is_one_that_plain_transformers_loads(
    people: UnlearnData, tmp_path: Path, family: str, label: str
) -> None:
    from random_checkpoint import TINY, write_random_checkpoint

    [shape] = [shape for shape in TINY[family] if shape.label == label]
    folder = tmp_path / "model"
    count = write_random_checkpoint(shape, people, folder, SHARD)
    files = list(folder.glob("*.safetensors"))
    index = json.loads((folder / INDEX).read_text())
    assert len(files) > 3
    tensors = Counter(index["weight_map"].values())
    assert all(file.stat().st_size < SHARD + 10_000 for file in files if tensors[file.name] > 1)
    assert index["metadata"]["total_size"] == 2 * count
    assert ("lm_head.weight" in index["weight_map"]) == (not shape.language.tied)

    model, found = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(found[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in model.parameters()) == count
    norms = [p for name, p in model.named_parameters() if "norm" in name and name.endswith("weight")]
    assert norms
    assert all((norm == 1).all() for norm in norms)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    matrices = torch.cat([p.flatten() for p in model.parameters() if p.dim() > 1]).float()
    assert matrices.std().item() == pytest.approx(0.02, rel=0.05)

    loaded = load_visual(str(folder))
    pictures = list(people.train.pictures)[:2]
    tokens = loaded.visual.features(loaded.batcher.images(pictures)).states
    assert tokens.isfinite().all()
    assert tokens.std() > 0


def test_real_shapes_have_the_parameters_of_their_names() -> None:
    """From shapes alone: nothing is allocated."""
    from random_checkpoint import REAL, Language

    def parameters(language: Language) -> int:
        head = language.width // language.heads
        attention = 2 * language.width**2 + 2 * language.width * language.groups * head
        layer = attention + 3 * language.width * language.intermediate
        return language.layers * layer + (1 if language.tied else 2) * language.vocabulary * language.width

    for shapes in REAL.values():
        short, small, full = (parameters(shape.language) for shape in shapes)
        assert short == pytest.approx(0.5e9, rel=0.1)
        assert small == pytest.approx(0.5e9, rel=0.1)
        assert full == pytest.approx(7e9, rel=0.1)
        assert shapes[0].language.width == shapes[2].language.width


# Scripts --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "labels"),
    [
        ("llava", ("short", "full")),
        pytest.param("llava", ("short", "narrow", "full"), marks=pytest.mark.nightly),
        pytest.param("qwen2_vl", ("short", "narrow", "full"), marks=pytest.mark.nightly),
    ],
)
def test_size_prints_its_table_and_cleans_up(tmp_path: Path, family: str, labels: tuple[str, ...]) -> None:
    only = [] if len(labels) == 3 else ["--only", ";".join(labels)]
    script = start("size.py", ["--scale", "tiny", "--family", family, "--dir", str(tmp_path), *only])
    printed, errors = script.communicate(timeout=300)
    assert script.returncode == 0, errors
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in printed.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert [row[:2] for row in rows[2:]] == [[family, label] for label in labels]
    relative = rows[0].index("relative")
    assert float(rows[2][relative]) == 1
    assert all(float(cell) >= 0 for row in rows[2:] for cell in row[relative:])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_size_cleans_up_when_the_edit_fails(tmp_path: Path) -> None:
    arguments = ["--scale", "tiny", "--family", "llava", "--dir", str(tmp_path), "--set", "steps=none"]
    script = start("size.py", arguments)
    _, errors = script.communicate(timeout=300)
    assert script.returncode == 1
    assert "exit code 2" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("sent", by_day(signal.SIGTERM, signal.SIGINT))
def test_size_cleans_up_when_interrupted(tmp_path: Path, sent: signal.Signals) -> None:
    arguments = ["--scale", "tiny", "--family", "llava", "--dir", str(tmp_path), "--set", "steps=1000000"]
    script = start("size.py", arguments)
    for _ in range(600):
        if list(tmp_path.glob("*/model/model.safetensors.index.json")):
            break
        time.sleep(0.1)
    else:
        script.kill()
        pytest.fail("no checkpoint appeared")
    time.sleep(2)  # into the edit
    script.send_signal(sent)
    script.communicate(timeout=300)
    assert script.returncode != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_of_a_child_is_its_own(tmp_path: Path, checkpoint: Path) -> None:
    """What this process holds must not count: with `wait4` it would."""
    import child

    settings = ["steps=2", "learning_rate=5e-4", "forget_pictures=3", "retain_pictures=6"]
    data = "people:count=2,seed=5"
    ballast = torch.ones(1 << 28)  # 1 GiB
    after = child.unlearn(checkpoint, data, "first:1", "nscvf", settings, tmp_path / "out", gate=False)
    assert len(ballast)
    assert 0 < after.peak_before_steps <= after.peak < 1 << 30
    assert 0 < after.step_seconds < after.edit_seconds < after.wall_seconds
    assert 0 < after.step_cpu_seconds < after.cpu_seconds


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_pocket_grows_in_its_language_model_only(tmp_path: Path, family: str) -> None:
    from scaling import GROWTH, language_parameters, write_pocket

    counts, rests = {}, set()
    for times in GROWTH:
        counts[times] = write_pocket(family, times, tmp_path / str(times))
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / str(times))
        assert language_parameters(model) == counts[times]
        rests.add(sum(p.numel() for p in model.parameters()) - counts[times])
    assert len(rests) == 1
    assert {times: round(count / counts[1], 1) for times, count in counts.items()} == {1: 1, 10: 10, 50: 50}


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """At chosen changes to the disk: in `add`, in the edit, around the model's rename and the run's record."""
    from kills import DATA, SETTINGS, Case, contents, left_over, tiny_model, trial, unbroken

    case = Case(tiny_model(tmp_path / "model", DATA), DATA, "first:1", tuple(SETTINGS.split()))
    wanted, _, changes = unbroken(case, tmp_path / "unbroken")
    for kill_at in (12, changes // 2, changes - 12, changes - 3):
        outcome = trial(case, tmp_path / str(kill_at), wanted, kill_at=kill_at)
        assert outcome.killed
        assert outcome.resumed
        assert outcome.same
        assert outcome.one_run
        assert outcome.verified
    assert contents(tmp_path / "unbroken" / "next") == wanted
    data = bytearray((tmp_path / "unbroken/next/model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "unbroken/next/model.safetensors").write_bytes(data)
    assert contents(tmp_path / "unbroken" / "next") != wanted
    assert not left_over(tmp_path / "unbroken")
    (tmp_path / "unbroken" / ".next.0123456789ab.partial").mkdir()
    assert left_over(tmp_path / "unbroken") == [".next.0123456789ab.partial"]


def test_flips_and_truncations_are_noticed(tmp_path: Path) -> None:
    from flips import flips, make, missed, truncations

    about, chance = make(tmp_path), random.Random(0)
    assert about.verified()
    assert about.patch_opens()
    made, lost = flips(about, 60, chance)
    assert sum(made.values()) == 60
    assert len(made) > 8
    assert not lost
    assert not truncations(about, 10, chance)
    assert about.verified()
    file = about.ledger / LEDGER  # the control: without a head, lines that are missing at the end are missed
    cut = b"".join(file.read_bytes().splitlines(keepends=True)[:-1])
    assert not missed(file, cut, about.verified)
    assert missed(file, cut, dataclasses.replace(about, head=Ledger.open(about.ledger).records[0].hash).verified)
