"""`unsee list`: what there is to choose from, for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from unsee.cli.options import JsonOption, present

if TYPE_CHECKING:
    from unsee.data.benchmarks import Benchmark

listing = typer.Typer(no_args_is_help=True, help="What there is: methods, families, metrics, benchmarks.")


@listing.command("methods")
def methods(as_json: JsonOption = False) -> None:
    """List the unlearning methods and their settings. What each is given beyond the pictures to be forgotten."""
    from unsee.cli.terminal import plain_table
    from unsee.methods import METHODS

    about, rows = {}, []
    for name, kind in METHODS.items():
        settings = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        given = kind().inputs
        about[name] = {"paper": kind.paper, "level": kind.level, "given": list(given), "settings": settings}
        shown = " ".join(f"{key}={value}" for key, value in settings.items())
        rows.append((name, kind.level, kind.paper, ", ".join(given), shown))
    present(about, as_json, lambda: plain_table(("method", "level", "source", "given", "settings"), rows))


@listing.command("families")
def families(as_json: JsonOption = False) -> None:
    """List the supported model families."""
    from unsee.cli.terminal import plain_table
    from unsee.lab.build import POCKETS
    from unsee.models.families import FAMILIES

    about = {name: {"model_types": f.model_types, "pocket": name in POCKETS} for name, f in FAMILIES.items()}
    rows = [(name, ", ".join(f.model_types), "yes" if name in POCKETS else "no") for name, f in FAMILIES.items()]
    present(about, as_json, lambda: plain_table(("family", "model types", "pocket model"), rows))


@listing.command("metrics")
def metrics(as_json: JsonOption = False) -> None:
    """List the measures and how to read them. Range, cost, the command that takes it, formula, source."""
    from unsee.cli.terminal import plain_table
    from unsee.evaluation.metrics import MEASURES, OTHER_COMMANDS
    from unsee.evaluation.metrics.base import ASKED_WITH, About, Cost

    places: list[tuple[str, str, Mapping[str, About], Mapping[Cost, str]]] = [
        ("unsee evaluate", "", MEASURES, ASKED_WITH),
        ("unsee study sequence", "sequence.", OTHER_COMMANDS["sequence"], {}),
        ("unsee attack probe", "probes.", OTHER_COMMANDS["probes"], {}),
        ("unsee attack relearn", "relearn.", OTHER_COMMANDS["relearn"], {}),
    ]
    about: dict[str, dict[str, Any]] = {
        file + name: {
            "higher": m.higher,
            "range": list(m.span),
            "cost": list(m.cost),
            "command": command,
            "options": [asked_with[cost] for cost in m.cost if cost in asked_with],
            "formula": m.formula,
            "source": m.source,
        }
        for command, file, known, asked_with in places
        for name, m in known.items()
    }
    rows = [
        (
            name,
            m["higher"],
            "{:g} to {:g}".format(*m["range"]),
            ", ".join(m["cost"]),
            " ".join([m["command"], *m["options"]]),
            m["source"],
        )
        for name, m in about.items()
    ]

    heads = ("measure", "higher: it", "range", "needs", "taken by", "source")
    present(about, as_json, lambda: plain_table(heads, rows))


@listing.command("benchmarks")
def benchmarks(as_json: JsonOption = False) -> None:
    """List public benchmarks and how to get them. Licence, size, what is read of them."""
    from unsee.cli.terminal import plain_table
    from unsee.data.benchmarks import BENCHMARKS

    about: dict[str, dict[str, Any]] = {
        name: {
            "title": b.title,
            "paper": b.paper,
            "licence": b.licence,
            "size": b.size,
            "where": f"https://huggingface.co/datasets/{b.hub}",
            "fetch": fetch(b),
            "data": f"{name}:data/{b.title}",
            "forget": list(b.forget),
            "reads": b.reads,
            "configurations": b.configurations,
        }
        for name, b in BENCHMARKS.items()
    }
    shown = ("title", "paper", "licence", "size", "where", "reads", "fetch", "data")
    rows = [(name if key == shown[0] else "", key, str(b[key])) for name, b in about.items() for key in shown]
    present(about, as_json, lambda: plain_table(("benchmark", "", ""), rows))


def fetch(about: Benchmark) -> str:
    """The command that brings what one percentage needs; everything, where names of files do not tell (FIUBench).

    `hf` comes with huggingface_hub. Files stand in data/TITLE afterwards, where `--data NAME:data/TITLE` reads them.
    """
    from unsee.data.benchmarks import DEFAULT_FORGET

    named = any("{" in pattern for pattern in about.files)
    files = [f.format(forget=DEFAULT_FORGET, retain=100 - DEFAULT_FORGET) for f in about.files if named]
    parts = ["hf download", about.hub, "--repo-type dataset", *(f'--include "{pattern}"' for pattern in files)]
    return " ".join([*parts, f"--local-dir data/{about.title}"])
