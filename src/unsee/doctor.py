"""What is installed, what is missing, and the command that mends it. Looks only: installs, downloads, asks nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from packaging.requirements import Requirement

from unsee.errors import one_line
from unsee.provenance import cache_directory, commit, machine

GET_TORCH = "https://pytorch.org/get-started/locally"
CPU_WHEELS = "--index-url https://download.pytorch.org/whl/cpu"
TORCH_FIX = f"pip install --upgrade torch {CPU_WHEELS} (for the processor; other builds: {GET_TORCH})"
ROOM = 1 << 30  # bytes that should be free in the cache


class Diagnosis(TypedDict):
    """One line of the examination; `fix` is empty when all is well."""

    what: str
    found: str
    ok: bool
    needed: bool
    fix: str


def examine() -> list[Diagnosis]:
    """Look at packages, devices, image backend, cache and browser; changes nothing."""
    torch, problem = _imported("torch")
    findings = [_fact("python", platform.python_version()), *_packages(), _fact("source commit", _commit())]
    if torch is None:
        findings.append(_finding("torch loads", problem, False, True, TORCH_FIX))
    else:
        findings += _devices(torch)
    findings += _image_backend(torch)
    findings += [_space("cache", cache_directory(), "UNSEE_CACHE"), *_hub()]
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    fix = "brew install --cask chromium" if platform.system() == "Darwin" else "apt-get install chromium"
    return [*findings, _finding("browser for the report's test", browser or "none", browser is not None, False, fix)]


def _packages() -> Iterator[Diagnosis]:
    """Every package that unsee's own metadata asks for, in a version that it accepts."""
    own = _version("unsee")
    yield _finding("unsee", own or "not installed", own is not None, True, "pip install -e .")
    for line in (importlib.metadata.requires("unsee") or []) if own else []:
        asked = Requirement(line)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        version = _version(asked.name)
        ok = version is not None and asked.specifier.contains(version, prereleases=True)
        fix = TORCH_FIX if asked.name == "torch" else f"pip install '{asked.name}{asked.specifier}'"
        yield _finding(asked.name, version or "not installed", ok, True, fix)


def _devices(torch: Any) -> Iterator[Diagnosis]:
    from unsee.lab.precision import kept, measured  # needs a torch that loads

    precision = kept() or measured()
    times = precision.seconds["float32"] / precision.seconds["bfloat16"]
    about = machine()
    yield _fact("processor", f"{about['processor']}, {about['cores']} cores, {_memory()}")
    threads = os.environ.get("OMP_NUM_THREADS")
    yield _fact("threads", f"{about['threads']}" + (f" (OMP_NUM_THREADS={threads})" if threads else ""))
    speed = f"{times:.1f} times as fast as float32: pocket models train in {precision.chosen}"
    yield _fact("bfloat16 on the processor", speed)
    found = False
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = True
        free, total = torch.cuda.mem_get_info(i)
        bfloat = "bfloat16" if torch.cuda.get_device_capability(i) >= (8, 0) else "no bfloat16"  # Ampere and later
        yield _fact(
            f"accelerator cuda:{i}",
            f"{torch.cuda.get_device_name(i)}, {_size(free)} of {_size(total)} free, {bfloat}",
        )
    if torch.backends.mps.is_available():
        found = True
        yield _fact("accelerator mps", f"{_size(torch.mps.recommended_max_memory())} to be used at most")
    if not found:
        yield _fact("accelerator", f"none that torch {torch.__version__} can use")


def _image_backend(torch: Any) -> Iterator[Diagnosis]:
    """Torchvision is optional, but transformers trips over one that does not fit torch."""
    version = _version("torchvision")
    module, problem = _imported("torchvision") if torch is not None else (None, "")
    fix = _torchvision_fix(_version("torch") or "")
    if version is None:
        yield _fact("image backend", "pillow (torchvision is not installed)")
    elif module is not None or torch is None:
        yield _fact("image backend", f"torchvision {version}")
    else:
        found = f"torchvision {version} does not work with torch {torch.__version__}: {problem}"
        yield _finding("image backend", found, False, True, f"pip uninstall torchvision, or {fix}")
    found = "loads" if module is not None else "no: its video part needs torchvision; unsee reads pictures without it"
    yield _finding("Qwen's AutoProcessor", found, module is not None, False, fix)


def _hub() -> Iterator[Diagnosis]:
    constants, _ = _imported("huggingface_hub.constants")
    if constants is not None:
        yield _space("hub cache", Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE")
        offline = "set: nothing is downloaded" if constants.HF_HUB_OFFLINE else "not set: missing models are downloaded"
        yield _fact("HF_HUB_OFFLINE", offline)


def _space(what: str, folder: Path, variable: str) -> Diagnosis:
    """Whether a cache can be written to and has room; it need not exist yet."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, writable = shutil.disk_usage(place).free, os.access(place, os.W_OK)
    found = f"{folder}, {_size(free)} free{'' if writable else ', cannot be written to'}"
    fix = f"export {variable}=FOLDER, one with at least {_size(ROOM)} free that you may write to"
    return _finding(what, found, writable and free >= ROOM, False, fix)


def _imported(name: str) -> tuple[Any, str]:
    """The module, or None and why it does not load."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a build that does not fit fails in many ways: ImportError, OSError, RuntimeError
        return None, one_line(error)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torchvision_fix(torch: str) -> str:
    if torch.endswith("+cpu"):
        return f"pip install torchvision {CPU_WHEELS}"
    return f"install the torchvision that goes with torch {torch}: {GET_TORCH}"


def _commit() -> str:
    found = commit()
    return f"{found['commit'] or 'none: an installed package'}{', with changes' if found['dirty'] else ''}"


def _memory() -> str:
    try:
        return f"{_size(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} memory"
    except (AttributeError, ValueError, OSError):  # Windows, or a system that does not tell
        return "memory unknown"


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _fact(what: str, found: str) -> Diagnosis:
    """Something to know that cannot be wrong."""
    return _finding(what, found, True, False, "")


def _finding(what: str, found: str, ok: bool, needed: bool, fix: str) -> Diagnosis:
    return {"what": what, "found": found, "ok": ok, "needed": needed, "fix": "" if ok else fix}
