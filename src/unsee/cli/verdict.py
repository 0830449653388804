"""`unsee verdict`: is a model like gold or like vanilla?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.cli.options import JsonOption
from unsee.errors import GateFailed
from unsee.output import present


def verdict(
    measures: Annotated[Path, typer.Option("--measures", help="a measures.json with the model, gold and vanilla")],
    model: Annotated[str, typer.Option("--model", help="ROLE of the model to be judged")],
    settings: Annotated[
        Path | None, typer.Option("--settings", help="TOML file, e.g. verdict.toml of `unsee metrics audit`")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a model by its measures: PASS ends with exit code 0, FAIL and INCONCLUSIVE with 1."""
    from unsee.cli.terminal import plain_table
    from unsee.evaluation.results import read_measures
    from unsee.evaluation.verdict import VerdictSettings, read_settings
    from unsee.evaluation.verdict import verdict as judge
    from unsee.progress import warn

    chosen = read_settings(settings) if settings is not None else VerdictSettings()
    measured = read_measures(measures, f"--measures {measures}")
    found = judge(measured.models, model, chosen) | {"warnings": list(measured.warnings)}
    for sentence in found["warnings"]:
        warn(sentence)
    sentences = "\n".join(f"{one['criterion']}: {one['sentence']}" for one in found["criteria"])
    note = f"{sentences}\n\n{model}: {found['verdict']} (settings {found['settings_sha256'][:12]})"
    heads = ("criterion", "of", "finding", "verdict")
    present(found, as_json, lambda: plain_table(heads, _rows(found)), note)
    if found["verdict"] != "PASS":
        raise GateFailed(f"{model}: {found['verdict']}")


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (one["criterion"], line["of"], line["finding"], line["verdict"])
        for one in found["criteria"]
        for line in one["lines"]
    ]
