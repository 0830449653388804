"""`unsee benchmark`: the field's benchmarks as published and in small, and what other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unsee.cli.options import (
    DataOption,
    JsonOption,
    ModelOption,
    ModelsOption,
    OutOption,
    OutputOptions,
    RunOptions,
    SeedOption,
    present,
    roles,
    with_options,
)
from unsee.errors import BadInput
from unsee.output import check_output

benchmark = typer.Typer(no_args_is_help=True, help="Public benchmarks, exports: run, make, export, scores, tasks.")

PublishedOption = Annotated[
    str, typer.Option("--data", help="mllmu:PATH, clear:PATH, umu:PATH or fiubench:PATH, see docs/protocols.md")
]


@benchmark.command("run")
@with_options
def run_benchmark(
    model: ModelsOption,
    data: PublishedOption,
    run: RunOptions,
    mode: Annotated[str, typer.Option("--mode", help="paper, corrected or both")] = "both",
    goal: Annotated[
        str, typer.Option("--goal", help="what was to be forgotten: visual-only or entity")
    ] = "visual-only",
    seed: SeedOption = 10,
) -> None:
    """Ask models what a benchmark asks, and print its table."""
    models = roles(model)
    run.begin([data, *models.values()])
    from rich.console import Group

    from unsee.cli.terminal import plain_table
    from unsee.evaluation.protocols import GOALS
    from unsee.study.protocol import modes_of, rows_of, run_protocol

    chosen = next((known for known in GOALS if known == goal), None)
    if chosen is None:
        raise BadInput(f"--goal {goal}: expected {' or '.join(GOALS)}")
    results = run_protocol(models, data, modes_of(mode), run.out, chosen, run.resume, seed)
    run.present(
        results,
        lambda: Group(*(plain_table(*rows_of(results, mode), keys=3) for mode in results["modes"])),
        f"results: {run.out / 'protocol.json'}",
    )


@benchmark.command("make")
def make_small(
    name: Annotated[str, typer.Argument(help="see `unsee list benchmarks`")],
    out: OutOption,
    people: Annotated[int, typer.Option("--people", min=2, help="generated people, of whom some are forgotten")] = 20,
    seed: SeedOption = 10,
    as_json: JsonOption = False,
) -> None:
    """Write a benchmark's own files, filled with generated people. Nothing of the published one is in them."""
    from unsee.checkpoint.folder import new_folder
    from unsee.lab.miniatures import MINIATURES

    if name not in MINIATURES:
        raise BadInput(f"unsee benchmark make {name}: no such benchmark; expected one of {', '.join(MINIATURES)}")
    check_output(out, overwrite=False)
    with new_folder(out) as folder:
        MINIATURES[name](folder, count=people, seed=seed)
    written = {"data": f"{name}:{out}", "people": people, "seed": seed}
    present(written, as_json, None, f"give it as --data {written['data']}")


@benchmark.command("export")
@with_options
def export(data: DataOption, output: OutputOptions) -> None:
    """Write DATA as one parquet table that carries its pictures."""
    output.check("file", [data])
    from unsee.data.export import export_data
    from unsee.data.sources import load_data

    written = export_data(load_data(data), output.out)
    output.present(written, None, f"table: {output.out} ({written['rows']} rows, {written['pictures']} pictures)")


@benchmark.command("scores")
def scores(
    directory: Annotated[Path, typer.Argument(help="what `unsee evaluate` or `unsee benchmark run` wrote")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Write scores as open-unlearning does, and as CSV and LaTeX."""
    check_output(out, overwrite=False, inputs=[directory])
    from unsee.interop.export import write_scores

    written = write_scores(directory, out)
    present(written, as_json, None, f"{len(written['models'])} models: {out}")


@benchmark.command("tasks")
def tasks(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    forget: Annotated[
        list[str] | None, typer.Option("--forget", help="SUBJECTS; without it, a benchmark's own scored questions")
    ] = None,
    seed: SeedOption = 10,
    as_json: JsonOption = False,
) -> None:
    """Write DATA as tasks for lm-evaluation-harness and lmms-eval."""
    check_output(out, overwrite=False, inputs=[model, data])
    from unsee.data.benchmarks import BENCHMARKS, read_benchmark
    from unsee.data.sources import load_data
    from unsee.interop.export import benchmark_tasks, evaluation_tasks, write_tasks

    kind, _, place = data.partition(":")
    if not forget and kind not in BENCHMARKS:
        raise BadInput(f"--data {data}: is no benchmark, so --forget must say whom the forget set holds")
    if not forget:
        found = benchmark_tasks(read_benchmark(kind, place))
    else:
        loaded = load_data(data)
        found = evaluation_tasks(loaded, loaded.choose(forget, seed))
    written = write_tasks(found, data, model, out)
    present(written, as_json, None, f"{len(written['tasks'])} tasks: {out}")
