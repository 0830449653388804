"""`unsee interchange`: scores and questions for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unsee.cli.options import DataOption, JsonOption, ModelOption, OutOption, SeedOption
from unsee.errors import BadInput
from unsee.output import check_output, present

interchange = typer.Typer(no_args_is_help=True, help="Scores and questions for other tools: scores, tasks.")


@interchange.command("scores")
def scores(
    directory: Annotated[Path, typer.Argument(help="what `unsee evaluate` or `unsee protocol` wrote")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Write the scores of a directory as open-unlearning does, and all of them as CSV and LaTeX."""
    check_output(out, overwrite=False, inputs=[directory])
    from unsee.interop.export import write_scores

    written = write_scores(directory, out)
    present(written, as_json, None, f"{len(written['models'])} models: {out}")


@interchange.command("tasks")
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
    """Write the questions of DATA as tasks for lm-evaluation-harness and lmms-eval."""
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
