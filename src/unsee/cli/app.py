"""The command line: arguments in, one call into the package, a table or JSON out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from unsee.cli.benchmarks import benchmarks
from unsee.cli.interchange import interchange
from unsee.cli.metrics import metrics
from unsee.cli.options import (
    SUBJECTS,
    DataOption,
    DeviceOption,
    ForgetOption,
    JobsOption,
    JsonOption,
    LinkOption,
    ModelOption,
    ModelsOption,
    OutOption,
    OverwriteOption,
    ResumeOption,
    SeedOption,
    at_home,
    roles,
)
from unsee.cli.patch import patch
from unsee.cli.pocket import pocket
from unsee.cli.probe import probe
from unsee.cli.protocol import protocol
from unsee.cli.request import request
from unsee.cli.verdict import verdict
from unsee.device import choose_device
from unsee.durable import no_room
from unsee.errors import BadInput, GateFailed, WorkerLost
from unsee.output import check_output, hold_output, output_of_command, present, short
from unsee.settings import from_text, method_from_text

# Torch, transformers and the package's rooms are imported inside the commands: `unsee --help` answers at once.

# What click raises for wrong usage. Newer versions of typer carry their own click, so its name is not to be relied on.
WrongUsage = cast("type[Exception]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="unsee",
    help="Make a vision-language model forget who or what it sees, keep the rest, and prove both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
moments = typer.Typer(no_args_is_help=True, help="Statistics of what must stay.")
app.add_typer(pocket, name="pocket")
app.add_typer(moments, name="moments")
app.add_typer(patch, name="patch")
app.add_typer(metrics, name="metrics")
app.command()(probe)
app.command()(protocol)
app.command()(verdict)
app.add_typer(request, name="request")
app.add_typer(benchmarks, name="benchmarks")
app.add_typer(interchange, name="interchange")


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    family: Annotated[str, typer.Option(help="model family")] = "llava",
    seed: SeedOption = 10,
    method: Annotated[str, typer.Option(help="see `unsee methods`")] = "nscvf",
    forget: Annotated[list[str] | None, typer.Option("--forget", help=f"{SUBJECTS} [default: first:6]")] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """A pocket model learns sixty people, forgets six, and reports."""
    chosen = method_from_text(method, [])
    check_output(out, overwrite, resume, kind="demo")
    choose_device(device)
    from unsee.cli.terminal import results_table, verdict_lines
    from unsee.study.demo import run_demo

    results, page = run_demo(family, seed, chosen, forget or ["first:6"], out, resume)
    note = "\n".join([*verdict_lines(results), f"report: {page}"])
    present(results.to_json(), as_json, lambda: results_table(results), note)


@moments.command("fit")
def moments_fit(
    model: ModelOption,
    data: DataOption,
    out: OutOption,
    without: Annotated[list[str] | None, typer.Option(help="SUBJECTS to leave out: those to be forgotten")] = None,
    seed: SeedOption = 10,
    last_blocks: Annotated[int | None, typer.Option(help="blocks above the cut; all of them by default")] = None,
    replay_group: Annotated[
        int | None,
        typer.Option(
            min=0, help="for --retain-free: store means over so many subjects (1: a template of each; 0: all)"
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Store the statistics of what must stay; the pictures are not needed afterwards."""
    check_output(out, overwrite, kind="file", inputs=[model, data])
    choose_device(device)
    import dataclasses

    from unsee.data.sources import load_data
    from unsee.editing.retain_free import fit_moments

    loaded = load_data(data)
    if without:
        subjects = loaded.choose(without, seed, "--without")
        loaded = dataclasses.replace(loaded, train=loaded.train.without(subjects))
    about = fit_moments(model, loaded, out, last_blocks, replay_group)
    stored = "\n".join(f"{what}: {about[what]}" for what in ("moments", "replay") if what in about)
    present(about, as_json, None, f"{stored}\nstatistics: {out}")


@app.command()
def unlearn(
    model: ModelOption,
    data: DataOption,
    forget: ForgetOption,
    out: OutOption,
    method: Annotated[str, typer.Option(help="see `unsee methods`")] = "nscvf",
    moments_file: Annotated[Path | None, typer.Option("--moments", help="from `unsee moments fit`")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, see `unsee methods`")] = None,
    seed: SeedOption = 10,
    gate: Annotated[bool, typer.Option(help="refuse to write a wrecked model")] = True,
    retain_free: Annotated[
        bool, typer.Option("--retain-free", help="read no retained picture, only the replay statistics in --moments")
    ] = False,
    remember: Annotated[
        bool,
        typer.Option("--remember", help="leave what stands for those forgotten for later edits, see docs/sequence.md"),
    ] = False,
    first: Annotated[
        str | None, typer.Option("--first", help="the model before all edits: what must stay is kept as it sees it")
    ] = None,
    link: LinkOption = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a copy of a model that no longer recognises the given subjects."""
    chosen = method_from_text(method, settings or [])
    check_output(out, overwrite, kind="checkpoint", inputs=[model, data, moments_file, first])
    choose_device(device)
    from unsee.checkpoint.untouched import said
    from unsee.data.sources import load_data
    from unsee.editing.request import EditRequest
    from unsee.editing.unlearn import unlearn as edit

    loaded = load_data(data)
    subjects = loaded.choose(forget, seed, all_may_go=retain_free)
    asked = EditRequest(loaded, subjects, chosen, seed, moments_file, gate, retain_free, remember, first, link)
    manifest = edit(model, asked, out)
    note = f"{len(manifest['changed'])} tensors changed in {manifest['seconds']:.1f} s\n{said(manifest['untouched'])}"
    note += f"\nmodel: {out}"
    present(short(manifest), as_json, None, note)


@app.command()
def evaluate(
    model: ModelsOption,
    data: DataOption,
    forget: ForgetOption,
    out: OutOption,
    seed: SeedOption = 10,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="a model that never saw the forgotten nor strangers, for member-reference"),
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="take gradient norms too, for member-gradient-norm")
    ] = False,
    jobs: JobsOption = 1,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask models the same questions and score them side by side."""
    models = roles(model)
    check_output(out, overwrite, resume, inputs=[data, reference, *models.values()])
    choose_device(device)
    from unsee.cli.terminal import results_table, verdict_lines
    from unsee.data.sources import load_data
    from unsee.evaluation.evaluate import EvaluationRequest
    from unsee.evaluation.evaluate import evaluate as ask

    loaded = load_data(data)
    request = EvaluationRequest(models, loaded, loaded.choose(forget, seed), gradients, reference)
    results = ask(request, out, resume, jobs)
    note = "\n".join([*verdict_lines(results), f"results: {out / 'results.json'}"])
    present(results.to_json(), as_json, lambda: results_table(results), note)


@app.command()
def relearn(
    model: ModelsOption,
    data: DataOption,
    forget: ForgetOption,
    out: OutOption,
    attacker: Annotated[str | None, typer.Option(help="what is trained: full (everything), lora or visual")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="pictures of the attacked: train (as unlearned) or validation (others of them)"),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, see docs/relearning.md")] = None,
    seed: SeedOption = 10,
    jobs: JobsOption = 1,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Teach models half of the forget set again, and see whether the other half comes back."""
    models = roles(model)
    check_output(out, overwrite or not (out / "attacks.jsonl").exists(), resume, inputs=[data, *models.values()])
    choose_device(device)
    from unsee.attacks.relearn_plan import Relearning
    from unsee.attacks.relearn_run import relearn as carry_out
    from unsee.attacks.relearn_tally import table
    from unsee.cli.terminal import plain_table
    from unsee.data.sources import load_data

    named = [f"{key}={value}" for key, value in (("attacker", attacker), ("source", source)) if value is not None]
    chosen, loaded = from_text(Relearning, [*named, *(settings or [])]), load_data(data)
    results = carry_out(models, loaded, loaded.choose(forget, seed), chosen, seed, out, resume, jobs)
    present(results, as_json, lambda: plain_table(*table(results)), f"results: {out / 'relearn.json'}")


@app.command()
def compare(
    out: OutOption,
    model: Annotated[list[str] | None, typer.Option("--model", help="vanilla=PATH, gold=PATH, gold-2=PATH …")] = None,
    data: Annotated[str | None, typer.Option("--data", help="as for `unsee unlearn`")] = None,
    forget: Annotated[list[str] | None, typer.Option("--forget", help=SUBJECTS)] = None,
    methods: Annotated[str | None, typer.Option("--methods", help="comma list, see `unsee methods`")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="of the unlearning runs, comma list; 0")] = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="all of that in a TOML file, see docs/compare.md")] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help="settings.toml of `unsee search`")] = None,
    jobs: JobsOption = 1,
    link: LinkOption = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run several methods and seeds, and read each result against the gold models."""
    from unsee.reporting.comparison import sections
    from unsee.study.compare import compare as carry_out
    from unsee.study.grid import compare_grid, reads
    from unsee.study.search import read_frozen

    chosen = compare_grid(grid, roles(model or []), data, forget, methods, seeds)
    frozen = read_frozen(settings) if settings is not None else None
    check_output(out, overwrite, resume, inputs=[grid, settings, *reads(chosen.every_case)])
    choose_device(device)
    results = carry_out(chosen, out, resume, frozen, jobs, link)
    present(results, as_json, lambda: _side_by_side(sections(results)), f"report: {out / 'compare.html'}")


@app.command()
def search(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file with a table [search], see docs/search.md")],
    out: OutOption,
    jobs: JobsOption = 1,
    link: LinkOption = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find settings for every method of a comparison under one budget, on people it does not report about."""
    from unsee.reporting.comparison import sections
    from unsee.study.grid import read_compare, reads
    from unsee.study.search import FROZEN
    from unsee.study.search import search as carry_out

    chosen = read_compare(grid)
    check_output(out, overwrite, resume, inputs=[grid, *reads(chosen.every_case)])
    choose_device(device)
    results = carry_out(chosen, out, resume, jobs, link)
    present(results, as_json, lambda: _side_by_side(sections(results)), f"settings: {out / FROZEN}")


@app.command()
def sequence(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file, see docs/sequence.md")],
    out: OutOption,
    jobs: JobsOption = 1,
    link: LinkOption = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Carry out requests one after another, and see what comes back, what is lost and what each costs."""
    from unsee.evaluation.sequence import summarise
    from unsee.reporting.sequence import sections
    from unsee.reporting.sequence_lines import read_sequence as read_lines
    from unsee.study.grid import reads
    from unsee.study.sequence import sequence as carry_out
    from unsee.study.sequence_grid import read_sequence

    chosen = read_sequence(grid)
    check_output(out, overwrite, resume, inputs=[grid, *reads([chosen.case])])
    choose_device(device)
    page = carry_out(chosen, out, resume, jobs, link)
    results = summarise(read_lines(out)[0])
    present(results, as_json, lambda: _side_by_side(sections(results)), f"report: {page}")


@app.command()
def merge(
    model: ModelOption,
    edited: Annotated[list[str], typer.Option("--edited", help="a model edited from --model; once per edit")],
    data: DataOption,
    out: OutOption,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of nscvf, by which it is cut")] = None,
    link: LinkOption = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add up edits that were made independently of one model, inside the null space of what all must keep."""
    from unsee.methods.nscvf import NullSpaceConstrainedForgetting

    chosen = from_text(NullSpaceConstrainedForgetting, settings or [])
    check_output(out, overwrite, kind="checkpoint", inputs=[model, data, *edited])
    choose_device(device)
    from unsee.checkpoint.untouched import said
    from unsee.data.sources import load_data
    from unsee.editing.merge import merge as carry_out

    manifest = carry_out(model, edited, load_data(data), chosen, out, link)
    note = f"{len(edited)} edits merged\n{said(manifest['untouched'])}\nmodel: {out}"
    present(short(manifest), as_json, None, note)


@app.command()
def ablate(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file, see docs/compare.md")],
    out: OutOption,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare settings of feature-level methods at matched forgetting, each with its own learning rate."""
    from unsee.reporting.comparison import sections
    from unsee.study.ablate import ablate as carry_out
    from unsee.study.grid import read_ablation, reads

    chosen = read_ablation(grid)
    check_output(out, overwrite, resume, inputs=[grid, *reads(chosen.cases)])
    choose_device(device)
    results = carry_out(chosen, out, resume)
    present(results, as_json, lambda: _side_by_side(sections(results)), f"report: {out / 'ablation.html'}")


def _side_by_side(sections: Sequence[Any]) -> Any:
    """The unfolded tables of a page."""
    from rich.console import Group
    from rich.text import Text

    from unsee.cli.terminal import plain_table

    shown = [section for section in sections if not section.folded]
    return Group(*(part for s in shown for part in (Text(f"\n{s.title}"), plain_table(*s.short()))))


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="what `unsee evaluate` or `unsee sequence` wrote")],
    as_json: JsonOption = False,
) -> None:
    """Write report.html from the results in a directory."""
    from unsee.reporting import write_report
    from unsee.reporting.sequence import STEM, write_sequence_report

    hold_output(directory)
    page = (write_sequence_report if (directory / f"{STEM}.jsonl").is_file() else write_report)(directory)
    present({"report": str(page)}, as_json, None, f"report: {page}")


@app.command()
def export(data: DataOption, out: OutOption, overwrite: OverwriteOption = False, as_json: JsonOption = False) -> None:
    """Write DATA as one parquet table that carries its pictures."""
    check_output(out, overwrite, kind="file", inputs=[data])
    from unsee.data.export import export_data
    from unsee.data.sources import load_data

    written = export_data(load_data(data), out)
    present(written, as_json, None, f"table: {out} ({written['rows']} rows, {written['pictures']} pictures)")


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the unlearning methods and their settings."""
    import dataclasses

    from unsee.cli.terminal import plain_table
    from unsee.methods import METHODS

    about: dict[str, dict[str, Any]] = {
        name: {
            "paper": kind.paper,
            "level": kind.level,
            "settings": {f.name: f.default for f in dataclasses.fields(kind)},  # type: ignore[arg-type]
        }
        for name, kind in METHODS.items()
    }
    rows = [
        (name, m["level"], m["paper"], " ".join(f"{k}={v}" for k, v in m["settings"].items()))
        for name, m in about.items()
    ]
    present(about, as_json, lambda: plain_table(("method", "level", "source", "settings"), rows))


@app.command()
def families(as_json: JsonOption = False) -> None:
    """List the supported model families."""
    from unsee.cli.terminal import plain_table
    from unsee.lab.build import POCKETS
    from unsee.models.families import FAMILIES

    about = {name: {"model_types": f.model_types, "pocket": name in POCKETS} for name, f in FAMILIES.items()}
    rows = [(name, ", ".join(f.model_types), "yes" if name in POCKETS else "no") for name, f in FAMILIES.items()]
    present(about, as_json, lambda: plain_table(("family", "model types", "pocket model"), rows))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, what is missing, and how to mend it."""
    from unsee.cli.terminal import plain_table
    from unsee.doctor import examine

    findings = examine()
    rows = [(f["what"], f["found"], "ok" if f["ok"] else f["fix"]) for f in findings]
    present(findings, as_json, lambda: plain_table(("what", "found", "fix"), rows))
    if not all(f["ok"] for f in findings if f["needed"]):
        raise GateFailed("something needed is missing; see the last column")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: 0 done, 1 ran but failed its own gate, 2 bad input (one line, no traceback)."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = [at_home(one) for one in (sys.argv[1:] if arguments is None else arguments)]
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
