"""The command line: arguments in, one call into the package, a table or JSON out. What most people need is here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from unsee.cli.attack import attack
from unsee.cli.audit import audit
from unsee.cli.benchmark import benchmark
from unsee.cli.listing import listing
from unsee.cli.moved import under_new_name
from unsee.cli.options import (
    SUBJECTS,
    DataOption,
    DemoOptions,
    EditCommandOptions,
    ForgetOption,
    JobsOption,
    JsonOption,
    ModelOption,
    ModelOutputOptions,
    OutputOptions,
    QuestionOptions,
    RunOptions,
    SeedOption,
    StudyOptions,
    at_home,
    present,
    roles,
    short,
    with_options,
)
from unsee.cli.patch import patch
from unsee.cli.request import request
from unsee.cli.study import side_by_side, study
from unsee.errors import BadInput, GateFailed, WorkerLost
from unsee.output import hold_output, output_of_command
from unsee.settings import method_from_text
from unsee.storage import no_room

# Torch, transformers and the package's rooms are imported inside the commands: `unsee --help` answers at once.

# What click raises for wrong usage. Newer versions of typer carry their own click, so its name is not to be relied on.
WrongUsage = cast("type[Exception]", typer.BadParameter.__mro__[1])

HEADINGS = {
    "Commands": ("demo", "unlearn", "evaluate", "verdict", "audit", "report", "request", "patch", "compare", "doctor"),
    "More commands, in groups": ("attack", "study", "benchmark", "list", "moments", "pocket"),
}


class Headings(TyperGroup):
    """Lists its commands under `HEADINGS`, in that order."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for heading, names in HEADINGS.items():
            with formatter.section(heading):
                room = formatter.width - width - 6
                formatter.write_dl([(f"{n:{width}}", self.commands[n].get_short_help_str(room)) for n in names])


app = typer.Typer(
    name="unsee",
    cls=Headings,
    help="Make a vision-language model forget who or what it sees, keep the rest, and prove both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
moments = typer.Typer(no_args_is_help=True, help="Statistics of what must stay, in place of its pictures: fit.")
pocket = typer.Typer(no_args_is_help=True, help="Small models to try things on: build.")
for name, group in (
    ("request", request),
    ("patch", patch),
    ("attack", attack),
    ("study", study),
    ("benchmark", benchmark),
    ("list", listing),
    ("moments", moments),
    ("pocket", pocket),
):
    app.add_typer(group, name=name)


@app.command()
@with_options
def demo(
    run: DemoOptions,
    family: Annotated[str, typer.Option(help="model family")] = "llava",
    seed: SeedOption = 10,
    method: Annotated[str, typer.Option(help="see `unsee list methods`")] = "nscvf",
    forget: Annotated[list[str] | None, typer.Option("--forget", help=f"{SUBJECTS} [default: first:6]")] = None,
) -> None:
    """Teach a small model sixty people, forget six, and report."""
    chosen = method_from_text(method, [])
    run.begin((), kind="demo")
    from unsee.cli.terminal import results_table, verdict_lines
    from unsee.study.demo import run_demo

    results, page = run_demo(family, seed, chosen, forget or ["first:6"], run.out, run.resume)
    note = "\n".join([*verdict_lines(results), f"report: {page}"])
    run.present(results.to_json(), lambda: results_table(results), note)


@app.command()
@with_options
def unlearn(
    model: ModelOption,
    data: DataOption,
    forget: ForgetOption,
    output: ModelOutputOptions,
    edit: EditCommandOptions,
    gate: Annotated[bool, typer.Option(help="refuse to write a wrecked model")] = True,
    retain_free: Annotated[
        bool, typer.Option("--retain-free", help="read no retained picture, only the replay statistics in --moments")
    ] = False,
) -> None:
    """Write a copy of a model that no longer recognises someone."""
    chosen = edit.chosen()
    output.check("checkpoint", [model, data, edit.moments, edit.first])
    from unsee.checkpoint.write import said
    from unsee.data.sources import load_data
    from unsee.editing.unlearn import unlearn as write_unlearned

    loaded = load_data(data)
    subjects = loaded.choose(forget, edit.seed, all_may_go=retain_free)
    manifest = write_unlearned(model, edit.request(loaded, subjects, chosen, gate, retain_free), output.out)
    note = f"{len(manifest['changed'])} tensors changed in {manifest['seconds']:.1f} s\n{said(manifest['untouched'])}"
    output.present(short(manifest), None, f"{note}\nmodel: {output.out}")


@app.command()
@with_options
def evaluate(
    questions: QuestionOptions,
    run: RunOptions,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="a model that never saw the forgotten nor strangers, for member-reference"),
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="take gradient norms too, for member-gradient-norm")
    ] = False,
    jobs: JobsOption = 1,
) -> None:
    """Ask models the same questions and score them side by side."""
    models = roles(questions.model)
    run.begin([questions.data, reference, *models.values()])
    from unsee.cli.terminal import results_table, verdict_lines
    from unsee.evaluation.evaluate import EvaluationRequest
    from unsee.evaluation.evaluate import evaluate as ask_models

    request = EvaluationRequest(models, *questions.load(), gradients, reference)
    results = ask_models(request, run.out, run.resume, jobs)
    note = "\n".join([*verdict_lines(results), f"results: {run.out / 'results.json'}"])
    run.present(results.to_json(), lambda: results_table(results), note)


@app.command()
def verdict(
    measures: Annotated[Path, typer.Option("--measures", help="a measures.json with the model, gold and vanilla")],
    model: Annotated[str, typer.Option("--model", help="ROLE of the model to be judged")],
    settings: Annotated[
        Path | None, typer.Option("--settings", help="TOML file, e.g. verdict.toml of `unsee study audit`")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model is like gold. PASS ends with exit code 0, FAIL and INCONCLUSIVE with 1."""
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
    rows = [(one["criterion"], *(line[key] for key in heads[1:])) for one in found["criteria"] for line in one["lines"]]
    present(found, as_json, lambda: plain_table(heads, rows), note)
    if found["verdict"] != "PASS":
        raise GateFailed(f"{model}: {found['verdict']}")


app.command()(audit)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="what `unsee evaluate` or `unsee study sequence` wrote")],
    as_json: JsonOption = False,
) -> None:
    """Write report.html from the results in a directory."""
    from unsee.reporting import write_report
    from unsee.reporting.sequence import STEM, write_sequence_report

    hold_output(directory)
    page = (write_sequence_report if (directory / f"{STEM}.jsonl").is_file() else write_report)(directory)
    present({"report": str(page)}, as_json, None, f"report: {page}")


@app.command()
@with_options
def compare(
    run: StudyOptions,
    model: Annotated[list[str] | None, typer.Option("--model", help="vanilla=PATH, gold=PATH, gold-2=PATH …")] = None,
    data: Annotated[str | None, typer.Option("--data", help="as for `unsee unlearn`")] = None,
    forget: Annotated[list[str] | None, typer.Option("--forget", help=SUBJECTS)] = None,
    methods: Annotated[str | None, typer.Option("--methods", help="comma list, see `unsee list methods`")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="of the unlearning runs, comma list; 0")] = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="all of that in a TOML file, see docs/compare.md")] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help="settings.toml of `unsee study search`")] = None,
) -> None:
    """Run methods and seeds, and read each against the gold models."""
    from unsee.reporting.comparison import sections
    from unsee.study.compare import compare as compare_methods
    from unsee.study.grid import compare_grid, reads
    from unsee.study.search import read_frozen

    chosen = compare_grid(grid, roles(model or []), data, forget, methods, seeds)
    frozen = read_frozen(settings) if settings is not None else None
    run.begin([grid, settings, *reads(chosen.every_case)])
    results = compare_methods(chosen, run.out, run.resume, frozen, run.jobs, run.link)
    run.present(results, lambda: side_by_side(sections(results)), f"report: {run.out / 'compare.html'}")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, what is missing, and how to fix it."""
    from unsee.cli.terminal import plain_table
    from unsee.doctor import examine

    findings = examine()
    rows = [(f["what"], f["found"], "ok" if f["ok"] else f["fix"]) for f in findings]
    present(findings, as_json, lambda: plain_table(("what", "found", "fix"), rows))
    if not all(f["ok"] for f in findings if f["needed"]):
        raise GateFailed("something needed is missing; see the last column")


@moments.command("fit")
@with_options
def moments_fit(
    model: ModelOption,
    data: DataOption,
    output: ModelOutputOptions,
    without: Annotated[list[str] | None, typer.Option(help="SUBJECTS to leave out: those to be forgotten")] = None,
    seed: SeedOption = 10,
    last_blocks: Annotated[int | None, typer.Option(help="blocks above the cut; all of them by default")] = None,
    replay_group: Annotated[
        int | None,
        typer.Option(
            min=0, help="for --retain-free: store means over so many subjects (1: a template of each; 0: all)"
        ),
    ] = None,
) -> None:
    """Store the statistics of what must stay. The pictures are not needed afterwards."""
    output.check("file", [model, data])
    import dataclasses

    from unsee.data.sources import load_data
    from unsee.editing.retain_free import fit_moments

    loaded = load_data(data)
    if without:
        subjects = loaded.choose(without, seed, "--without")
        loaded = dataclasses.replace(loaded, train=loaded.train.without(subjects))
    about = fit_moments(model, loaded, output.out, last_blocks, replay_group)
    stored = "\n".join(f"{what}: {about[what]}" for what in ("moments", "replay") if what in about)
    output.present(about, None, f"{stored}\nstatistics: {output.out}")


@pocket.command("build")
@with_options
def pocket_build(
    data: DataOption,
    output: OutputOptions,
    family: Annotated[str, typer.Option(help="model family")] = "llava",
    seed: SeedOption = 10,
    without_images_of: Annotated[
        list[str] | None, typer.Option(help="SUBJECTS whose pictures are never shown: this makes the gold model")
    ] = None,
) -> None:
    """Train a pocket model on DATA (cached), or its gold model."""
    output.check("checkpoint", [data])
    from unsee.data.sources import load_data
    from unsee.lab.build import build_pocket

    loaded = load_data(data)
    hidden = loaded.choose(without_images_of, seed, "--without-images-of") if without_images_of else ()
    manifest = build_pocket(family, loaded, seed, output.out, hidden)
    output.present(short(manifest), None, f"model: {output.out} (trained in {manifest['seconds']:.0f} s)")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: 0 done, 1 ran but failed its own gate, 2 bad input (one line, no traceback)."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given, renamed = under_new_name([at_home(one) for one in (sys.argv[1:] if arguments is None else arguments)])
    if renamed:
        with suppress(OSError):  # nobody to be told
            typer.echo(renamed, err=True)
    try:
        with output_of_command():
            code = app(args=given, prog_name="unsee", standalone_mode=False)
    except BadInput as problem:
        _leave(2, str(problem))
    except (GateFailed, WorkerLost) as problem:
        _leave(1, str(problem))
    except WrongUsage as problem:
        _leave(2, _usage(problem))
    except OSError as problem:
        if (full := no_room(problem)) is None:
            raise
        _leave(2, str(full))
    except typer.Abort:
        code = 1
    sys.exit(code or 0)


def _usage(problem: Any) -> str:
    if type(problem).__name__ == "NoArgsIsHelpError":  # `unsee` alone: its message is the help
        problem.show()
        sys.exit(2)
    message, path = problem.format_message().rstrip("."), problem.ctx.command_path if problem.ctx else "unsee"
    return f"{message}; see `{path} --help`"


def _leave(code: int, problem: str) -> NoReturn:
    with suppress(OSError):  # nobody to be told
        typer.echo(f"unsee: {' '.join(problem.splitlines())}", err=True)  # one line, whatever something is called
    sys.exit(code)
