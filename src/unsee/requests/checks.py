"""All that can be computed again of a ledger, from what is given: a check is ok, failed, or not made and says why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unsee.checkpoint.folder import mismatch, read_manifest, sha256_of
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.requests.entries import EditRun, ForgetRequest, requests_of, runs_of, subjects_of
from unsee.requests.ledger import HASH, Damaged, Ledger
from unsee.requests.subjects import NoLongerTestable, salt_of

Result = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One line of what `verify` found."""

    check: str
    result: Result
    about: str


class _NotMade(Exception):
    """A check for which something is missing."""


def verify(
    folder: Path, head: str | None = None, model: Path | None = None, data: UnlearnData | None = None
) -> tuple[Check, ...]:
    """Compute again what a ledger says.

    Args:
        head: what was printed at some time, from where it was kept.
        model: what the last run that is done wrote.
        data: where the pictures of requests are.

    Raises:
        BadInput: no ledger there, a head that is no hash, or a model that is no folder.
    """
    if head is not None and not HASH.fullmatch(head):
        raise BadInput(f"--head {head[:80]}: expected the 64 hexadecimal digits that were printed")
    if model is not None and not model.is_dir():
        raise BadInput(f"--model {model}: no such folder; expected a local checkpoint")
    return tuple(_checks(folder, head, model, data))


def _checks(folder: Path, head: str | None, model: Path | None, data: UnlearnData | None) -> Iterator[Check]:
    damage: Damaged | None = None
    try:
        ledger = Ledger.open(folder)
    except Damaged as problem:
        ledger, damage = Ledger(folder), problem
    seen: dict[str, Result] = {}

    def check(what: str, look: Callable[[], str], *needs: str) -> Check:
        result: Result = "ok"
        try:
            if wanting := [one for one in needs if seen[one] != "ok"]:
                raise _NotMade(f"'{wanting[0]}' comes first")
            about = look()
        except _NotMade as reason:
            result, about = "not checked", str(reason)
        except BadInput as problem:
            result, about = "failed", str(problem)
        seen[what] = result
        return Check(what, result, about)

    def chain() -> str:
        if damage is not None:
            raise damage
        return f"{len(ledger.records)} records, the last is {ledger.head}"

    yield check("chain", chain)
    yield check("head", lambda: _head(ledger, head), "chain")
    yield check("records", lambda: f"{len(requests_of(ledger))} requests, {len(runs_of(ledger))} runs", "chain")
    sound = seen["records"] == "ok"
    requests, runs = (requests_of(ledger), runs_of(ledger)) if sound else ((), ())
    yield check("salt", lambda: _salt(ledger), "records")
    yield check("runs", lambda: _follow(runs), "records")
    yield check("model", lambda: _model(runs, model), "records")
    yield check("certificate", lambda: _certificate(runs, model), "model")
    yield check("data", lambda: _data(runs, data), "records")
    if data is not None:
        for request in requests:
            yield check(f"request {request.id}", partial(_testable, request, data, ledger), "salt")


def _head(ledger: Ledger, head: str | None) -> str:
    if head is None:
        raise _NotMade("no --head given: lines missing at the end would not be noticed")
    ledger.verify(head)
    number = next((record.number for record in ledger.records if record.hash == head), 0)
    return f"the chain goes on from the given head, record {number}"


def _salt(ledger: Ledger) -> str:
    try:
        salt_of(ledger)
    except NoLongerTestable as reason:
        raise _NotMade(str(reason)) from reason
    return "the one the ledger was made with"


def _done(runs: Sequence[EditRun]) -> tuple[int, EditRun]:
    """The last one, and its number."""
    for number, run in reversed(tuple(enumerate(runs, start=1))):
        if run.outcome == "done":
            return number, run
    raise _NotMade("no run is done")


def _follow(runs: Sequence[EditRun]) -> str:
    first = last = None
    for number, run in enumerate(runs, start=1):
        if first is not None and run.before not in (last, first):
            raise BadInput(f"run {number} began with a model that is neither what the run before wrote nor the first")
        if run.outcome == "done":
            first, last = first or run.before, run.after
    if first is None:
        raise _NotMade("no run is done")
    return f"each of {len(runs)} began with what the one before had written, or with the first model (a re-base)"


def _model(runs: Sequence[EditRun], model: Path | None) -> str:
    number, run = _done(runs)
    if model is None:
        raise _NotMade(f"no --model given: what run {number} wrote was not looked at")
    recorded = {**run.after, **run.beside}
    if off := mismatch(file_hashes(model), recorded):
        raise BadInput(f"{model}: {off}; it is not as run {number} wrote it")
    return f"all {len(recorded)} files are as run {number} wrote them"


def _certificate(runs: Sequence[EditRun], model: Path | None) -> str:
    number, run = _done(runs)
    if run.certificate is None or model is None:
        raise _NotMade(f"run {number} has none: the method gives none")
    manifest = read_manifest(model)
    if certificate_hash(manifest) != run.certificate or drift_of(manifest) != dict(run.drift):
        raise BadInput(f"{model}: its certificate is not the one that run {number} recorded")
    return f"the one that run {number} recorded, with its drift"


def _data(runs: Sequence[EditRun], data: UnlearnData | None) -> str:
    if data is None:
        raise _NotMade("no --data given: no picture was looked at")
    number, run = _done(runs)
    if data.fingerprint != run.data:
        raise _NotMade(f"not what run {number} worked with; pictures of others may have come and gone since")
    return f"exactly what run {number} worked with"


def _testable(request: ForgetRequest, data: UnlearnData, ledger: Ledger) -> str:
    salt = salt_of(ledger)
    try:
        subjects_of(request, data, salt)
    except NoLongerTestable as reason:
        if request.status in ("open", "failed"):  # a promise that cannot be kept
            raise
        raise _NotMade(str(reason)) from reason
    return f"{request.status}, testable: {request.pictures} pictures as they were"


# What a run left on disk, in hashes -----------------------------------------------------------------------------------


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint folder, by path relative to it; hidden ones are left out.

    Also of files that unsee did not write: a further copy of the weights may be one in which nothing is forgotten.

    Raises:
        BadInput: no such folder, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected a local checkpoint")
    found = {}
    try:
        for item in sorted(folder.rglob("*")):
            name = item.relative_to(folder)
            if item.is_file() and not any(part.startswith(".") for part in name.parts):
                found[name.as_posix()] = sha256_of(item)
    except OSError as error:
        raise BadInput(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
    return found


def certificate_hash(manifest: Mapping[str, Any]) -> str | None:
    """SHA-256 of the certificate in a manifest as canonical JSON (keys sorted, no white space); None without one."""
    if (certificate := manifest.get("certificate")) is None:
        return None
    return hashlib.sha256(json.dumps(certificate, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def drift_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """What retained features drifted since the first of a line of edits, at most: mean and worst layer; empty if that
    is not known.
    """
    layers = list((manifest.get("drift_so_far") or {}).values())
    return {"mean": sum(layers) / len(layers), "worst": max(layers)} if layers else {}
