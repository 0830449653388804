"""Where a result comes from: versions, commit, machine, time. Stored beside every artefact."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from unsee.device import chosen_device

PACKAGES = ("unsee", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Installed versions of everything that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The machine; `device` is where models run, and `accelerator` the name of that GPU, null on the processor."""
    import torch

    device = chosen_device()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.cpu.get_capabilities().get("cpu_name", "") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "accelerator": torch.cuda.get_device_name(device) if device != "cpu" else None,
    }


def commit() -> dict[str, Any]:
    """The commit of the source tree unsee runs from, and whether it was changed; nulls for an installed package."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None  # no git, or not a work tree: stated as null, see above
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", "provenance.py")
    if tracked is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def origin() -> dict[str, Any]:
    """The whole record, with the command line that is running."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["unsee", *sys.argv[1:]]),
        "versions": versions(),
        "machine": machine(),
        **commit(),
    }


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; null where the system does not tell."""
    status = Path("/proc/self/status")  # Linux; what `getrusage` says there includes what the parent held at the start
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cache_directory() -> Path:
    """Where trained pocket models are kept: $UNSEE_CACHE, else $XDG_CACHE_HOME/unsee, else ~/.cache/unsee."""
    chosen = os.environ.get("UNSEE_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unsee"
