"""What a run left on disk, said in hashes, so that it can be told from anything else later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import sha256_of
from unsee.errors import BadInput


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint folder, by path relative to it; hidden ones are left out.

    Also of files that unsee did not write: a further copy of the weights may be one in which nothing is forgotten.

    Raises:
        BadInput: no such folder, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected a local checkpoint")
    found = {}
    try:
        for item in sorted(folder.rglob("*")):
            name = item.relative_to(folder)
            if item.is_file() and not any(part.startswith(".") for part in name.parts):
                found[name.as_posix()] = sha256_of(item)
    except OSError as error:
        raise BadInput(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
    return found


def difference(found: Mapping[str, str], recorded: Mapping[str, str]) -> str | None:
    """The first file, weights before others, that is not as it was recorded; None if all are."""
    for name in sorted(found.keys() | recorded.keys(), key=lambda name: (not name.endswith(".safetensors"), name)):
        if name not in found:
            return f"'{name}' is missing"
        if name not in recorded:
            return f"'{name}' is one file too many"
        if found[name] != recorded[name]:
            return f"'{name}' has SHA-256 {found[name][:12]}…, recorded is {recorded[name][:12]}…"
    return None


def certificate_hash(manifest: Mapping[str, Any]) -> str | None:
    """SHA-256 of the certificate in a manifest as canonical JSON (keys sorted, no white space); None without one."""
    if (certificate := manifest.get("certificate")) is None:
        return None
    return hashlib.sha256(json.dumps(certificate, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def drift_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """What retained features drifted since the first of a line of edits, at most: mean and worst layer; empty if that
    is not known.
    """
    layers = list((manifest.get("drift_so_far") or {}).values())
    return {"mean": sum(layers) / len(layers), "worst": max(layers)} if layers else {}
