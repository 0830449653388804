"""Where models run: chosen once, the same in worker processes, and every tensor is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from unsee.cli import main
from unsee.device import choose_device, chosen_device, on_device
from unsee.errors import BadInput
from unsee.models.loading import load_model, load_visual
from unsee.parallel import side_by_side
from unsee.provenance import machine

PLACEMENT = Path(__file__).with_name("placement.py")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with on_device("cpu"):
        yield


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """As if torch found so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")


def with_cards(*counts: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cards", counts, indirect=True)


# The choice -----------------------------------------------------------------------------------------------------------


@with_cards(2)
@pytest.mark.parametrize(
    ("name", "chosen"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_card_is_taken_where_there_is_one(cards: None, name: str, chosen: str) -> None:
    assert choose_device(name) == chosen_device() == chosen
    named = f"card {chosen}" if chosen != "cpu" else None
    assert (machine()["device"], machine()["accelerator"]) == (chosen, named)


@with_cards(0)
def test_without_one_models_run_on_the_processor(cards: None) -> None:
    assert choose_device("auto") == "cpu"
    assert (machine()["device"], machine()["accelerator"]) == ("cpu", None)


@with_cards(0, 2)
@pytest.mark.parametrize("name", ["cuda:2", "cuda:-1", "cuda:", "gpu", "", "cpu:0", "auto:1", "cuda:x"])
def test_what_is_not_there_is_refused_and_the_choice_stays(cards: None, name: str) -> None:
    with pytest.raises(BadInput, match=f"--device {name}: "):
        choose_device(name)
    assert chosen_device() == "cpu"


@with_cards(1)
def test_a_choice_for_a_while(cards: None) -> None:
    choose_device("cuda")
    with suppress(BadInput), on_device("cpu"):
        assert chosen_device() == "cpu"
        choose_device("cuda:9")
    assert chosen_device() == "cuda:0"


@with_cards(0)
@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "moments fit --model M --data people",
        "unlearn --model M --data people --forget first:1",
        "evaluate --model a=M --data people --forget first:1",
        "attack relearn --model a=M --data people --forget first:1",
        "attack probe --model a=M --data people --forget first:1",
        "audit --before M --after N --data people --forget first:1",
        "benchmark run --model a=M --data mllmu:M",
        "study merge --model M --edited N --data people",
        "request run --ledger L --model M --data people",
    ],
)
def test_every_command_that_runs_a_model_takes_a_device(
    cards: None, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--out", "out", "--device", "cuda"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("unsee: --device cuda: torch")
    assert said.endswith("finds no GPU; take auto, or see `unsee doctor`\n")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def told(_: str) -> Iterator[str]:
    yield chosen_device()


@pytest.mark.usefixtures("quick_workers")
def test_workers_make_the_same_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker knows nothing of a patched torch: that it refuses a card which is not there shows what it was told."""
    tasks = {"one": ("",), "two": ("",)}
    assert list(side_by_side("asking", told, tasks, 2)) == ["cpu", "cpu"]
    monkeypatch.setattr("unsee.device._chosen", "cuda:99")
    with pytest.raises(BadInput, match="--device cuda:99: "):
        list(side_by_side("asking", told, tasks, 2))


# The place ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_it", [load_model, load_visual])
def test_models_are_loaded_where_they_were_told_to(checkpoint: Path, open_it: type) -> None:
    """`meta` stands for another device: it takes any tensor and computes nothing."""
    assert {p.device.type for p in open_it(str(checkpoint)).visual.named_parameters().values()} == {"cpu"}
    elsewhere = open_it(str(checkpoint), device="meta")
    assert {p.device.type for p in elsewhere.visual.named_parameters().values()} == {"meta"}
    assert elsewhere.batcher.device == torch.device("meta")


def on_a_pretended_device(*tests: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(PLACEMENT), *tests]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=PLACEMENT.parents[1])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_runs_stay_on_a_pretended_device_which_refuses_what_a_real_one_would() -> None:
    on_a_pretended_device("-m", "not nightly")


@pytest.mark.nightly
@pytest.mark.parametrize("runs", ["test_methods or test_settings", "not test_methods and not test_settings"])
def test_the_other_runs_do_so_too(runs: str) -> None:
    on_a_pretended_device("-m", "nightly", "-k", runs)
