"""`unsee study`: many models, seeds and settings, as a grid says, side by side on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.cli.options import (
    DataOption,
    JobsOption,
    LinkOption,
    ModelOption,
    ModelOutputOptions,
    RunOptions,
    StudyOptions,
    short,
    with_options,
)
from unsee.settings import from_text

study = typer.Typer(no_args_is_help=True, help="Many runs side by side: search, ablate, sequence, merge, audit.")


@study.command("search")
@with_options
def search(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file with a table [search], see docs/search.md")],
    run: StudyOptions,
) -> None:
    """Find settings for every method under one budget. On people that the comparison does not report about."""
    from unsee.reporting.comparison import sections
    from unsee.study.grid import read_compare, reads
    from unsee.study.search import FROZEN
    from unsee.study.search import search as search_settings

    chosen = read_compare(grid)
    run.begin([grid, *reads(chosen.every_case)])
    results = search_settings(chosen, run.out, run.resume, run.jobs, run.link)
    run.present(results, lambda: side_by_side(sections(results)), f"settings: {run.out / FROZEN}")


@study.command("ablate")
@with_options
def ablate(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file, see docs/compare.md")], run: RunOptions
) -> None:
    """Compare settings at matched forgetting. Of feature-level methods, each with its own learning rate."""
    from unsee.reporting.comparison import sections
    from unsee.study.ablate import ablate as compare_settings
    from unsee.study.grid import read_ablation, reads

    chosen = read_ablation(grid)
    run.begin([grid, *reads(chosen.cases)])
    results = compare_settings(chosen, run.out, run.resume)
    run.present(results, lambda: side_by_side(sections(results)), f"report: {run.out / 'ablation.html'}")


@study.command("sequence")
@with_options
def sequence(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file, see docs/sequence.md")],
    run: StudyOptions,
) -> None:
    """Carry out requests one after another. See what comes back, what is lost and what each costs."""
    from unsee.evaluation.sequence import summarise
    from unsee.reporting.sequence import sections
    from unsee.reporting.sequence_lines import read_sequence as read_lines
    from unsee.study.grid import reads
    from unsee.study.sequence import read_sequence
    from unsee.study.sequence import sequence as edit_in_turn

    chosen = read_sequence(grid)
    run.begin([grid, *reads([chosen.case])])
    page = edit_in_turn(chosen, run.out, run.resume, run.jobs, run.link)
    results = summarise(read_lines(run.out)[0])
    run.present(results, lambda: side_by_side(sections(results)), f"report: {page}")


@study.command("merge")
@with_options
def merge(
    model: ModelOption,
    edited: Annotated[list[str], typer.Option("--edited", help="a model edited from --model; once per edit")],
    data: DataOption,
    output: ModelOutputOptions,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of nscvf, by which it is cut")] = None,
    link: LinkOption = False,
) -> None:
    """Add up edits made independently of one model. Inside the null space of what all must keep."""
    from unsee.methods.nscvf import NullSpaceConstrainedForgetting

    chosen = from_text(NullSpaceConstrainedForgetting, settings or [])
    output.check("checkpoint", [model, data, *edited])
    from unsee.checkpoint.write import said
    from unsee.data.sources import load_data
    from unsee.editing.merge import merge as merge_edits

    manifest = merge_edits(model, edited, load_data(data), chosen, output.out, link)
    note = f"{len(edited)} edits merged\n{said(manifest['untouched'])}\nmodel: {output.out}"
    output.present(short(manifest), None, note)


@study.command("audit")
@with_options
def audit(
    grid: Annotated[Path, typer.Option("--grid", help="a TOML file, see docs/verdict.md")],
    run: RunOptions,
    jobs: JobsOption = 1,
) -> None:
    """Say which measures can be believed. Which tell models that know from models that never saw, on many of both."""
    from unsee.cli.terminal import plain_table
    from unsee.study.audit_measures import SETTINGS, STEM, audit_measures, read_audit
    from unsee.study.audit_measures import table as table_of
    from unsee.study.grid import reads

    chosen = read_audit(grid)
    run.begin([grid, *reads(chosen.cases)])
    results = audit_measures(chosen, run.out, run.resume, jobs)
    note = f"whole table: {run.out / STEM}.md; settings: {run.out / SETTINGS}"
    run.present(results, lambda: plain_table(*table_of(results)), note)


def side_by_side(sections: Sequence[Any]) -> Any:
    """The unfolded tables of a page."""
    from rich.console import Group
    from rich.text import Text

    from unsee.cli.terminal import plain_table

    shown = [section for section in sections if not section.folded]
    return Group(*(part for s in shown for part in (Text(f"\n{s.title}"), plain_table(*s.short()))))
