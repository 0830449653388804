"""`unsee benchmarks`: what can be given as DATA, where it is to be had and how, and each of them in small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from unsee.cli.options import JsonOption, OutOption, SeedOption
from unsee.errors import BadInput
from unsee.output import check_output, present

if TYPE_CHECKING:
    from unsee.data.benchmarks import Benchmark

benchmarks = typer.Typer(
    help="List the field's benchmarks: licence, size, where and how to get them. Or write one in small."
)


@benchmarks.callback(invoke_without_command=True)
def listed(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the field's benchmarks: licence, size, where and how to get them. Or write one in small."""
    if context.invoked_subcommand is not None:
        return
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


@benchmarks.command("miniature")
def miniature(
    name: Annotated[str, typer.Argument(help="see `unsee benchmarks`")],
    out: OutOption,
    people: Annotated[int, typer.Option("--people", min=2, help="generated people, of whom some are forgotten")] = 20,
    seed: SeedOption = 10,
    as_json: JsonOption = False,
) -> None:
    """Write a benchmark's own files filled with generated people: nothing of the published one is in them."""
    from unsee.checkpoint.folder import new_folder
    from unsee.lab.miniatures import MINIATURES

    if name not in MINIATURES:
        raise BadInput(f"unsee benchmarks miniature {name}: no such benchmark; expected one of {', '.join(MINIATURES)}")
    check_output(out, overwrite=False)
    with new_folder(out) as folder:
        MINIATURES[name](folder, count=people, seed=seed)
    written = {"data": f"{name}:{out}", "people": people, "seed": seed}
    present(written, as_json, None, f"give it as --data {written['data']}")
