"""Gold models that see the forgotten for a moment: what they learn, and that the same comes out however it is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import NewCheckpoint

from unsee.attacks.relearn_plan import asked_of
from unsee.checkpoint.folder import read_manifest
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.models.batching import answer_loss
from unsee.models.loading import load_model
from unsee.study.audit_measures import train_briefly


@pytest.fixture(scope="module")
def gold(new_checkpoint: NewCheckpoint) -> str:
    return str(new_checkpoint(seed=1))


@pytest.fixture(scope="module")
def glimpsed(gold: str, people: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("glimpsed")
    train_briefly(gold, people, people.subjects[:1], (8, 2), 5, out)
    return out


@torch.no_grad()
def loss(model: str | Path, people: UnlearnData) -> float:
    """About the pictures of the forgotten that were shown."""
    loaded = load_model(str(model))
    shown = asked_of(people.train.of(people.subjects[:1]))
    return float(answer_loss(loaded.model, loaded.batcher.for_training(shown.examples)))


def test_the_longer_the_more_is_known(gold: str, glimpsed: Path, people: UnlearnData) -> None:
    before, soon, later = (loss(model, people) for model in (gold, glimpsed / "2", glimpsed / "8"))
    assert before > soon > later


def test_how_often_it_is_looked_at_makes_no_difference(
    gold: str, glimpsed: Path, people: UnlearnData, tmp_path: Path
) -> None:
    weights = (glimpsed / "8" / "model.safetensors").read_bytes()
    train_briefly(gold, people, people.subjects[:1], [8], 5, tmp_path / "once")
    assert (tmp_path / "once" / "8" / "model.safetensors").read_bytes() == weights
    train_briefly(gold, people, people.subjects[:1], [8], 6, tmp_path / "otherwise")  # control: other draws
    assert (tmp_path / "otherwise" / "8" / "model.safetensors").read_bytes() != weights


def test_what_stands_there_is_kept_or_refused(gold: str, glimpsed: Path, people: UnlearnData) -> None:
    made = read_manifest(glimpsed / "2")
    assert (made["kind"], made["steps"], made["forget"]) == ("glimpsed", 2, [people.subjects[0]])
    before = (glimpsed / "2" / "model.safetensors").stat().st_mtime_ns
    train_briefly(gold, people, people.subjects[:1], (2, 8), 5, glimpsed)
    assert (glimpsed / "2" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="made for another grid"):
        train_briefly(gold, people, people.subjects[1:2], (2, 8), 5, glimpsed)


def test_there_must_be_something_to_see(gold: str, people: UnlearnData, tmp_path: Path) -> None:
    looks = dataclasses.replace(people, train=people.train.probing("attribute"))
    with pytest.raises(BadInput, match="no training pictures of the forgotten"):
        train_briefly(gold, looks, people.subjects[:1], [2], 5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
