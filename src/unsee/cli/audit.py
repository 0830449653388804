"""`unsee audit`: did a model forget, without a gold model?"""

from __future__ import annotations

from typing import Annotated

import typer

from unsee.cli.options import DataOption, ForgetOption, JobsOption, RunOptions, SeedOption, with_options
from unsee.errors import GateFailed


@with_options
def audit(
    before: Annotated[str, typer.Option("--before", help="the model that knew them: checkpoint folder or hub id")],
    after: Annotated[str, typer.Option("--after", help="the model that is said to have forgotten them")],
    data: DataOption,
    forget: ForgetOption,
    run: RunOptions,
    strangers: Annotated[
        str | None,
        typer.Option("--strangers", help="DATA of people neither model was shown; those of --data by default"),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="a model retrained without them, shown beside and not used to judge"),
    ] = None,
    seed: SeedOption = 10,
    jobs: JobsOption = 1,
) -> None:
    """Say whether a model forgot, with no gold model. PASS ends with exit code 0, FAIL and INCONCLUSIVE with 1."""
    run.begin([data, strangers, before, after, reference])
    from unsee.audit.run import PAGE, AuditRequest
    from unsee.audit.run import audit as audit_model
    from unsee.cli.terminal import plain_table
    from unsee.data.sources import load_data
    from unsee.reporting.audited import table

    loaded = load_data(data)
    subjects = loaded.choose(forget, seed)
    unseen = load_data(strangers) if strangers is not None else None
    results = audit_model(AuditRequest(before, after, loaded, subjects, unseen, reference), run.out, run.resume, jobs)
    note = f"{results['sentence']}\n\n{results['verdict']}; report: {run.out / PAGE}"
    run.present(results, lambda: plain_table(*table(results)), note)
    if results["verdict"] != "PASS":
        raise GateFailed(f"--after {after}: {results['verdict']}")
