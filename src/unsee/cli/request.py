"""`unsee request`: requests into a ledger, carried out one run after the other, verified at any time."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from unsee.cli.options import (
    DeviceOption,
    EditCommandOptions,
    ForgetOption,
    JsonOption,
    ResumeOption,
    present,
    with_options,
)
from unsee.device import choose_device
from unsee.errors import BadInput, GateFailed
from unsee.output import check_output

request = typer.Typer(no_args_is_help=True, help="A ledger of requests: add, list, run, verify, withdraw.")

LedgerOption = Annotated[Path, typer.Option("--ledger", help="folder of the ledger, see docs/ledger.md")]
DataOption = Annotated[str, typer.Option("--data", help="where the pictures are, see docs/data.md")]
IdOption = Annotated[str, typer.Option("--id", help="letters, digits, '.', '-' and '_'; no name of a person")]


@request.command("add")
def add_request(
    ledger: LedgerOption,
    id: IdOption,
    data: DataOption,
    forget: ForgetOption,
    received: Annotated[str | None, typer.Option("--date", help="YYYY-MM-DD; today, UTC")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write down who must no longer be recognised. Makes the ledger if there is none."""
    day = _day(received) if received is not None else None
    from unsee.data.sources import load_data
    from unsee.requests.entries import add, new_request
    from unsee.requests.ledger import Ledger

    loaded = load_data(data)
    subjects = loaded.choose(forget)
    book = Ledger.open(ledger, create=True)
    entry = new_request(book, id, loaded, subjects, day)
    add(book, entry)
    about = {"id": id, "date": entry.date, "subjects": len(subjects), "pictures": entry.pictures, "head": book.head}
    present(about, as_json, None, f"request {id}: {_count(entry)}\n{_kept(ledger, book.head)}")


@request.command("list")
def list_requests(ledger: LedgerOption, as_json: JsonOption = False) -> None:
    """List the requests, what became of them, and by which run."""
    from unsee.cli.terminal import plain_table
    from unsee.requests.entries import requests_of, runs_of
    from unsee.requests.ledger import Ledger

    book = Ledger.open(ledger)
    last = {one: number for number, run in enumerate(runs_of(book), start=1) for one in run.requests}
    about = [
        {
            "id": entry.id,
            "date": entry.date,
            "subjects": len(entry.subjects),
            "pictures": entry.pictures,
            "status": entry.status,
            "run": last.get(entry.id),
        }
        for entry in requests_of(book)
    ]
    heads = ("id", "date", "subjects", "pictures", "status", "run")
    rows = [["–" if one[key] is None else str(one[key]) for key in heads] for one in about]
    present(about, as_json, lambda: plain_table(heads, rows), f"head: {book.head}")


@request.command("withdraw")
def withdraw(ledger: LedgerOption, id: IdOption, as_json: JsonOption = False) -> None:
    """Take a request back. A model edited for it stays so until the next re-base."""
    from unsee.requests.entries import Withdrawal, add
    from unsee.requests.ledger import Ledger

    book = Ledger.open(ledger)
    try:
        entry = Withdrawal(id)
    except ValueError as problem:
        raise BadInput(str(problem).replace("request", "--id", 1)) from problem
    add(book, entry)
    present({"id": id, "head": book.head}, as_json, None, f"request {id}: withdrawn\n{_kept(ledger, book.head)}")


@request.command("run")
@with_options
def run(
    ledger: LedgerOption,
    model: Annotated[str, typer.Option("--model", help="what the last run wrote; the very first model to begin with")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="where the next model goes")],
    edit: EditCommandOptions,
    ids: Annotated[list[str] | None, typer.Argument(help="which requests; all open ones by default")] = None,
    rebase: Annotated[
        bool, typer.Option("--rebase", help="all done and open requests together, from the very first model")
    ] = False,
    resume: ResumeOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Carry out requests in one edit, and record what was done."""
    chosen = edit.chosen()
    check_output(out, False, resume, kind="checkpoint", inputs=[model, data, edit.moments, ledger, edit.first])
    choose_device(device)
    from unsee.checkpoint.write import said
    from unsee.data.sources import load_data
    from unsee.requests.run import run_requests

    asked = edit.request(load_data(data), (), chosen)
    about = run_requests(ledger, model, asked, out, ids or (), rebase, resume)
    states = {
        "done": "done",
        "recorded": "the model was finished already; recorded now",
        "done before": "done already; nothing to resume",
    }
    notes = [
        f"run {about['run']} ({', '.join(about['requests'])}): {states[about['state']]}",
        f"model: {out}",
        *([f"still open: {', '.join(about['open'])}"] if about["open"] else []),
        said(about["untouched"]),
        _kept(ledger, about["head"]),
    ]
    present(about, as_json, None, "\n".join(notes))


@request.command("verify")
def verify_ledger(
    ledger: LedgerOption,
    head: Annotated[str | None, typer.Option("--head", help="a head that was printed, from where it was kept")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="what the last run wrote")] = None,
    data: Annotated[str | None, typer.Option("--data", help="where the pictures are")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the ledger and its model. The chain, the model's files, its certificate, the requests' pictures."""
    import dataclasses

    from unsee.cli.terminal import plain_table
    from unsee.data.sources import load_data
    from unsee.requests.checks import verify

    found = verify(ledger, head, model, load_data(data) if data is not None else None)
    rows = [(one.check, one.result, one.about) for one in found]
    table = [dataclasses.asdict(one) for one in found]
    present(table, as_json, lambda: plain_table(("check", "result", "about"), rows))
    if failed := [one.check for one in found if one.result == "failed"]:
        raise GateFailed(f"{ledger}: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


def _day(text: str) -> date:
    try:
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):  # Python takes weeks and other digits too
            raise ValueError
        return date.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"--date {text}: expected a day as YYYY-MM-DD") from error


def _count(entry: Any) -> str:
    many = len(entry.subjects)
    return f"{many} {'subject' if many == 1 else 'subjects'}, {entry.pictures} pictures"


def _kept(ledger: Path, head: str) -> str:
    return f"head: {head}\nkeep it elsewhere; later: unsee request verify --ledger {ledger} --head {head}"
