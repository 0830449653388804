"""Commands with a new name: the old one works until `GONE_IN`. Then this file goes, and its lines in `main`."""

from __future__ import annotations

from collections.abc import Sequence

GONE_IN = "0.2.0"
RENAMED = {  # a longer name before one it begins with
    "relearn": "attack relearn",
    "probe": "attack probe",
    "search": "study search",
    "ablate": "study ablate",
    "sequence": "study sequence",
    "merge": "study merge",
    "metrics audit": "study audit",
    "protocol": "benchmark run",
    "benchmarks miniature": "benchmark make",
    "export": "benchmark export",
    "interchange scores": "benchmark scores",
    "interchange tasks": "benchmark tasks",
    "interchange": "benchmark",
    "methods": "list methods",
    "families": "list families",
    "metrics": "list metrics",
    "benchmarks": "list benchmarks",
}


def under_new_name(arguments: Sequence[str]) -> tuple[list[str], str]:
    """The arguments with the command's new name; and a line that says so, empty where nothing was renamed."""
    for old, new in RENAMED.items():
        words = old.split()
        if list(arguments[: len(words)]) == words:
            line = f"unsee {old} is now `unsee {new}`; the old name goes with version {GONE_IN}"
            return [*new.split(), *arguments[len(words) :]], line
    return list(arguments), ""
