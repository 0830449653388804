"""The doctor: finds what is wrong on machines that are not this one, and names the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from unsee.cli import main
from unsee.doctor import CPU_WHEELS, GET_TORCH, Diagnosis, examine


def run(arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    return int(exit_.value.code or 0)


def findings() -> dict[str, Diagnosis]:
    return {finding["what"]: finding for finding in examine()}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions to pretend: package -> version, or None for one that is missing."""
    pretended: dict[str, str | None] = {}
    original = importlib.metadata.version

    def version(package: str) -> str:
        found = pretended[package] if package in pretended else original(package)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr("importlib.metadata.version", version)
    return pretended


def pretend_torchvision(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None], version: str | None, loads: bool
) -> None:
    installed["torchvision"] = version
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision") if loads else None)  # type: ignore[arg-type]


def test_what_make_installed_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor --json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert all(set(finding) == {"what", "found", "ok", "needed", "fix"} for finding in listed)
    assert all(bool(finding["fix"]) != finding["ok"] for finding in listed)
    names = [finding["what"] for finding in listed]
    assert len(set(names)) == len(names)
    assert {"torch", "transformers", "datasets", "pyarrow", "threads", "cache", "HF_HUB_OFFLINE"} < set(names)
    assert run("doctor") == 0
    table = capsys.readouterr().out
    assert all(name.split()[0] in table for name in names)


@pytest.mark.parametrize(
    ("package", "version", "fix"),
    [
        ("transformers", "4.57.1", "pip install 'transformers<6,>=5.2'"),
        ("datasets", None, "pip install 'datasets<6,>=5'"),
        ("pyarrow", None, "pip install 'pyarrow'"),
        ("torch", "2.1.0", CPU_WHEELS),
    ],
)
def test_a_missing_or_old_package_fails_and_is_named(
    installed: dict[str, str | None],
    capsys: pytest.CaptureFixture[str],
    package: str,
    version: str | None,
    fix: str,
) -> None:
    assert findings()[package]["ok"]
    installed[package] = version
    found = findings()[package]
    assert (found["found"], found["ok"], found["needed"]) == (version or "not installed", False, True)
    assert fix in found["fix"]
    assert run("doctor") == 1
    assert fix.split()[-1] in "".join(capsys.readouterr().out.split())


def test_without_torch_it_still_answers(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None]) -> None:
    installed["torch"] = None
    monkeypatch.setitem(sys.modules, "torch", None)  # type: ignore[arg-type]
    found = findings()
    assert not found["torch"]["ok"]
    assert not found["torch loads"]["ok"]
    assert GET_TORCH in found["torch"]["fix"]
    assert "threads" not in found


def test_without_unsee_itself(installed: dict[str, str | None]) -> None:
    installed["unsee"] = None
    assert (findings()["unsee"]["ok"], "numpy" in findings()) == (False, False)


# Torchvision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "fix"),
    [
        ("2.13.0+cpu", f"pip install torchvision {CPU_WHEELS}"),
        ("2.13.0+cu128", GET_TORCH),
        ("2.13.0", GET_TORCH),
    ],
)
def test_missing_torchvision_is_mended_for_the_build_of_torch(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None], build: str, fix: str
) -> None:
    pretend_torchvision(monkeypatch, installed, None, loads=False)
    installed["torch"] = build
    found = findings()
    assert found["image backend"]["ok"]
    assert found["image backend"]["found"].startswith("pillow")
    qwen = found["Qwen's AutoProcessor"]
    assert (qwen["ok"], qwen["needed"]) == (False, False)
    assert qwen["fix"].endswith(fix)


def test_working_torchvision_is_used(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None]) -> None:
    pretend_torchvision(monkeypatch, installed, "0.28.0", loads=True)
    found = findings()
    assert found["image backend"]["found"] == "torchvision 0.28.0"
    assert found["Qwen's AutoProcessor"]["found"] == "loads"


def test_torchvision_that_does_not_fit_torch_is_an_error(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None], tmp_path: Path
) -> None:
    """Such a build raises RuntimeError, not ImportError."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    installed["torchvision"] = "0.20.0"
    backend = findings()["image backend"]
    assert (backend["ok"], backend["needed"]) == (False, True)
    for words in ("torchvision 0.20.0", f"torch {torch.__version__}", "nms does not exist"):
        assert words in backend["found"]
    assert backend["fix"].startswith("pip uninstall torchvision")


# Machines -------------------------------------------------------------------------------------------------------------


def test_accelerators_are_listed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "accelerator cuda:0" not in findings()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (3 << 30, 4 << 30))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: f"Card {i}")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda i: (7 + i, 5))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 9 << 30)
    found = findings()
    assert found["accelerator cuda:0"]["found"] == "Card 0, 3.0 GiB of 4.0 GiB free, no bfloat16"
    assert found["accelerator cuda:1"]["found"] == "Card 1, 3.0 GiB of 4.0 GiB free, bfloat16"
    assert found["accelerator mps"]["found"].startswith("9.0 GiB")
    assert "accelerator" not in found


def test_settings_of_the_environment_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert findings()["threads"]["found"] == "7 (OMP_NUM_THREADS=7)"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert findings()["HF_HUB_OFFLINE"]["found"].startswith("set")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert findings()["HF_HUB_OFFLINE"]["found"].startswith("not set")


def test_a_full_or_locked_cache_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2 << 30))
    assert findings()["cache"]["ok"]
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot be written to" in findings()["cache"]["found"]
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2 << 20))
    assert "export UNSEE_CACHE=" in findings()["cache"]["fix"]
    assert "export HF_HUB_CACHE=" in findings()["hub cache"]["fix"]


def test_a_missing_browser_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    original = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if "chrom" in name else original(name))
    browser = findings()["browser for the report's test"]
    assert (browser["ok"], browser["needed"]) == (False, False)
    assert "install" in browser["fix"]


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert examine()
