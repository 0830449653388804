"""What is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TypedDict

from unsee.provenance import cache_directory, commit, machine, versions


class Finding(TypedDict):
    """One line of the examination; `fix` is empty when all is well."""

    what: str
    found: str
    ok: bool
    needed: bool
    fix: str


def examine() -> list[Finding]:
    """Look at packages, devices, image backend, cache and browser; changes nothing."""
    import torch
    import transformers

    has_torchvision = importlib.util.find_spec("torchvision") is not None
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    about = machine()
    able = torch.cpu.get_capabilities()
    native = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    findings = [
        _finding(name, version, version != "not installed", True, f"pip install {name}")
        for name, version in versions().items()
    ]
    major = int(transformers.__version__.split(".")[0])
    return [
        *findings,
        _finding("transformers 5", transformers.__version__, major == 5, True, "pip install 'transformers>=5.2,<6'"),
        _finding("accelerator", about["accelerator"] or "none", True, False, ""),
        _finding("processor", f"{about['processor']}, {about['cores']} cores", True, False, ""),
        _finding(
            "bfloat16 on the processor", "native" if native else "no: pocket models train in float32", True, False, ""
        ),
        _finding("image backend", "torchvision" if has_torchvision else "pillow", True, False, ""),
        _finding("cache", str(cache_directory()), True, False, ""),
        _finding("source commit", str(commit()["commit"]), True, False, ""),
        _finding(
            "browser for the report's test", browser or "none", browser is not None, False, "apt-get install chromium"
        ),
    ]


def _finding(what: str, found: str, ok: bool, needed: bool, fix: str) -> Finding:
    return {"what": what, "found": found, "ok": ok, "needed": needed, "fix": "" if ok else fix}
