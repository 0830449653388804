"""`unsee interchange`: scores and questions for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unsee.errors import BadInput
from unsee.output import check_output, present

interchange = typer.Typer(no_args_is_help=True, help="Scores and questions for other tools: scores, tasks.")

OutOption = Annotated[Path, typer.Option("--out", help="a new folder")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for machines")]


@interchange.command("scores")
def scores(
    directory: Annotated[Path, typer.Argument(help="what `unsee evaluate` or `unsee protocol` wrote")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Write the scores of a directory as open-unlearning does, and all of them as CSV and LaTeX."""
    check_output(out, overwrite=False, inputs=[directory])
    from unsee.experiments.interchange import write_scores

    written = write_scores(directory, out)
    present(written, as_json, None, f"{len(written['models'])} models: {out}")


@interchange.command("tasks")
def tasks(
    model: Annotated[str, typer.Option("--model", help="checkpoint folder or hub id that is to be asked")],
    data: Annotated[str, typer.Option("--data", help="as for `unsee evaluate`")],
    out: OutOption,
    forget: Annotated[
        str | None, typer.Option("--forget", help="SUBJECTS; without it, a benchmark's own scored questions")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="decides random:N")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Write the questions of DATA as tasks for lm-evaluation-harness and lmms-eval."""
    check_output(out, overwrite=False, inputs=[model, data])
    from unsee.data.benchmarks import BENCHMARKS, read_benchmark
    from unsee.data.sources import load_data
    from unsee.experiments.interchange import benchmark_tasks, evaluation_tasks, write_tasks

    kind, _, place = data.partition(":")
    if forget is None and kind not in BENCHMARKS:
        raise BadInput(f"--data {data}: is no benchmark, so --forget must say whom the forget set holds")
    if forget is None:
        found = benchmark_tasks(read_benchmark(kind, place))
    else:
        loaded = load_data(data)
        found = evaluation_tasks(loaded, loaded.choose(forget, seed))
    written = write_tasks(found, data, model, out)
    present(written, as_json, None, f"{len(written['tasks'])} tasks: {out}")
