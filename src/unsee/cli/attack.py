"""`unsee attack`: what brings the forgotten back, and what still tells them apart inside."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from unsee.cli.options import JobsOption, QuestionOptions, RunOptions, roles, with_options
from unsee.settings import from_text

attack = typer.Typer(no_args_is_help=True, help="Look for what a model should have forgotten: relearn, probe.")


@attack.command("relearn")
@with_options
def relearn(
    questions: QuestionOptions,
    run: RunOptions,
    attacker: Annotated[str | None, typer.Option(help="what is trained: full (everything), lora or visual")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="pictures of the attacked: train (as unlearned) or validation (others of them)"),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, see docs/relearning.md")] = None,
    jobs: JobsOption = 1,
) -> None:
    """Teach half of the forget set again: does the rest come back?"""
    models = roles(questions.model)
    run.begin([questions.data, *models.values()], adds="attacks.jsonl")
    from unsee.attacks.relearn_plan import AttackRequest, Relearning
    from unsee.attacks.relearn_run import relearn as attack_models
    from unsee.attacks.relearn_run import table
    from unsee.cli.terminal import plain_table

    named = [f"{key}={value}" for key, value in (("attacker", attacker), ("source", source)) if value is not None]
    chosen, (data, forget) = from_text(Relearning, [*named, *(settings or [])]), questions.load()
    asked = AttackRequest(data, forget, chosen, questions.seed)
    results = attack_models(models, asked, run.out, run.resume, jobs)
    run.present(results, lambda: plain_table(*table(results)), f"results: {run.out / 'relearn.json'}")


@attack.command("probe")
@with_options
def probe(
    questions: QuestionOptions,
    run: RunOptions,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, see docs/probes.md")] = None,
) -> None:
    """Ask linear probes who is seen at every stage of a model. Beside gold and random weights."""
    models = roles(questions.model)
    run.begin([questions.data, *models.values()], adds="probes.jsonl")
    from unsee.attacks.probe import Probing
    from unsee.attacks.probe import probe as probe_models
    from unsee.cli.terminal import plain_table
    from unsee.reporting.probing import sections

    chosen, (data, forget) = from_text(Probing, settings or []), questions.load()
    results = probe_models(models, data, forget, chosen, questions.seed, run.out, run.resume)

    def table() -> Any:
        return plain_table(*sections(results)[0].short())

    run.present(results, table, f"forgotten subjects named right, in %; page: {run.out / 'probes.html'}")
