"""Carry out requests of a ledger: look up what they ask for, edit the model, record the run.

Killed at any moment, the same call with `resume` ends as one that was not killed, with one record of one run:

- killed while unlearning: nothing is visible; the run begins anew, and the same seed leads to the same weights
- killed between the model's rename and the record: the finished model is found by its manifest, its files are hashed,
  and it is recorded
- killed after the record: it says so
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import MANIFEST, CheckpointFolder, mismatch, read_manifest, sha256_of
from unsee.data.examples import UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput, GateFailed
from unsee.methods import Method
from unsee.models.loading import locate
from unsee.requests.checks import certificate_hash, drift_of, file_hashes
from unsee.requests.entries import EditRun, ForgetRequest, add, requests_of, runs_of, subjects_of
from unsee.requests.ledger import Ledger, plain
from unsee.requests.subjects import salt_of
from unsee.settings import of_method


@dataclass(frozen=True)
class EditRecipe:
    """How a model is edited: with the model and the data, all that decides about the result.

    Attributes:
        before: file -> SHA-256 of the model it begins with.
        moments: SHA-256 of stored statistics.
        remember: whether statistics of what was forgotten are left beside the weights, see `unlearn`.
        first: file -> SHA-256 of the model that what must stay is kept as seen by, see `unlearn`.
    """

    before: Mapping[str, str]
    method: str
    settings: Mapping[str, Any]
    seed: int
    moments: str | None
    remember: bool
    first: Mapping[str, str] | None

    def differs(self, other: Mapping[str, Any]) -> str | None:
        """The first thing in which a run or a manifest differs."""
        other = {**other, "settings": of_method(other.get("method"), other.get("settings"))}
        for key, own in dataclasses.asdict(self).items():
            if _plain(other.get(key)) != _plain(own):
                return key
        return None


def run_requests(
    folder: Path,
    model: str,
    asked: EditRequest,
    out: Path,
    ids: Sequence[str] = (),
    rebase: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Edit `model` for requests of the ledger in `folder`, all in one go, write it to `out`, record the run.

    The ledger is locked meanwhile: others wait.

    Args:
        model: what the last run wrote; the very first model if none is done, or to re-base.
        asked: how the edit is made; whom it forgets is what the ledger says.
        ids: which requests; all open ones by default.
        rebase: all done and open requests together, from the first model.
        resume: go on with a run that was broken off.

    Returns:
        the run's number, requests, `out`, the new head, requests still open, and `state`: `done`, `recorded` (the model
        was finished before) or `done before`.

    Raises:
        BadInput: something given does not fit, or a request is no longer testable; nothing is written.
        GateFailed: the edit did too much damage; recorded as failed, no model is written.
    """
    method, data = asked.method, asked.data
    ledger = Ledger.open(folder)
    with ledger.locked():
        recipe = EditRecipe(
            before=CheckpointFolder(locate(model)).hashes(),
            method=method.name,
            settings=_settings(method),
            seed=asked.seed,
            moments=_hash_of(asked.moments),
            remember=asked.remember,
            first=CheckpointFolder(locate(asked.first)).hashes() if asked.first is not None else None,
        )
        if resume and (run := _ended(ledger, recipe, ids, out)) is not None:
            return _told(ledger, run, out, "done before")
        if out.exists() and not resume:  # made by the process this one waited for
            raise BadInput(f"--out {out}: exists; choose another place, or add --resume to go on with a broken run")
        chosen = _chosen(ledger, ids or _made_for(out), rebase)
        runs = runs_of(ledger)
        _check_model(model, recipe.before, runs, rebase)
        if asked.first is not None and recipe.first is not None:
            _check_first(asked.first, recipe.first, runs)
        salt = salt_of(ledger)
        wanted = {subject for request in chosen for subject in subjects_of(request, data, salt)}
        forget = tuple(subject for subject in data.subjects if subject in wanted)
        names = tuple(request.id for request in chosen)
        state = "recorded" if out.exists() else "done"
        if not out.exists():
            try:
                about = {"requests": list(names), "moments": recipe.moments, "remember": recipe.remember}
                unlearn(model, dataclasses.replace(asked, forget=forget, about=about), out)
            except GateFailed as problem:
                failed = EditRun(names, "failed", recipe.before, {}, data.fingerprint, **_how(recipe))
                add(ledger, failed)
                raise GateFailed(f"{problem}; recorded as run {len(runs_of(ledger))}, head {ledger.head}") from problem
        run = _run(names, recipe, data, out)
        add(ledger, run)
        return _told(ledger, run, out, state)


def _settings(method: Method) -> dict[str, Any]:
    settings: dict[str, Any] = dataclasses.asdict(method)  # type: ignore[call-overload]
    try:
        plain(settings, "settings")  # not after hours of work
    except ValueError as error:
        raise BadInput(f"--set: {error}") from error
    return settings


def _hash_of(moments: Path | None) -> str | None:
    if moments is not None and not moments.is_file():
        raise BadInput(f"--moments {moments}: no such file; `unsee moments fit` writes one")
    return sha256_of(moments) if moments is not None else None


# Which requests, which model ------------------------------------------------------------------------------------------


def _chosen(ledger: Ledger, ids: Sequence[str], rebase: bool) -> tuple[ForgetRequest, ...]:
    """The requests to be carried out, oldest first."""
    known = {request.id: request for request in requests_of(ledger)}
    if rebase:
        done = [request for request in known.values() if request.status == "done"]
        if not done:
            raise BadInput(f"--rebase: no request of {ledger.path} is done; leave it out")
        ids = ids or [request.id for request in known.values() if request.status in ("done", "open")]
        if left := [request.id for request in done if request.id not in ids]:
            raise BadInput(f"--rebase: carries out all done requests anew, '{left[0]}' too; leave out the ids")
    for id in ids:
        if id not in known:
            raise BadInput(f"request '{id}': not in {ledger.path}; `unsee request list` shows what is")
        if (status := known[id].status) == "withdrawn" or (status == "done" and not rebase):
            raise BadInput(f"request '{id}': {status} already; leave it out, or add it anew under another id")
    wanted = set(ids) or {request.id for request in known.values() if request.status == "open"}
    if not wanted:
        failed = ", ".join(request.id for request in known.values() if request.status == "failed")
        hint = f"name those that failed to try them again: {failed}" if failed else "nothing to do"
        raise BadInput(f"{ledger.path}: no request is open; {hint}")
    return tuple(request for request in known.values() if request.id in wanted)


def _check_model(model: str, before: Mapping[str, str], runs: Sequence[EditRun], rebase: bool) -> None:
    """Raises BadInput if it is not the model that comes next."""
    done = [(number, run) for number, run in enumerate(runs, start=1) if run.outcome == "done"]
    if not done:
        return
    number, expected = (done[0][0], done[0][1].before) if rebase else (done[-1][0], done[-1][1].after)
    if off := mismatch(before, expected):
        which = f"the model that run {number} began with" if rebase else f"what run {number} wrote"
        hint = "" if rebase else ", or --rebase to begin anew with the first model"
        raise BadInput(f"--model {model}: {off}; expected {which}{hint}")


def _check_first(first: str, hashes: Mapping[str, str], runs: Sequence[EditRun]) -> None:
    """Raises BadInput if it is not the model that the first run began with."""
    begun = next((run.before for run in runs if run.outcome == "done"), hashes)
    if off := mismatch(hashes, begun):
        raise BadInput(f"--first {first}: {off}; expected the model that the first run began with")


def _made_for(out: Path) -> tuple[str, ...]:
    """The requests that a finished model was made for; more may have been added since."""
    ids = read_manifest(out).get("requests", []) if out.exists() else []
    return tuple(ids) if isinstance(ids, list) else ()


# The record -----------------------------------------------------------------------------------------------------------


def _how(recipe: EditRecipe) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(recipe).items() if key != "before"}


def _run(ids: tuple[str, ...], recipe: EditRecipe, data: UnlearnData, out: Path) -> EditRun:
    """What `out` says of itself, after its files were read again.

    Raises:
        BadInput: it was made in another way, or is not as it was written.
    """
    manifest, files = read_manifest(out), file_hashes(out)
    off = recipe.differs({**manifest, "before": manifest.get("base", {}).get("sha256")})
    if manifest.get("requests") != list(ids):
        off = "requests"
    elif manifest.get("data", {}).get("fingerprint") != data.fingerprint:
        off = "data"
    if off is not None:
        raise BadInput(
            f"--out {out}: holds a model that this run did not write (another '{off}'); choose another place"
        )
    after = manifest["sha256"]
    if problem := mismatch({name: files[name] for name in files if name in after}, after):
        raise BadInput(f"--out {out}: {problem} in {MANIFEST}; remove the folder and run again")
    return EditRun(
        requests=ids,
        outcome="done",
        before=recipe.before,
        after=after,
        beside={name: files[name] for name in files if name not in after},
        data=data.fingerprint,
        scores={"recognised": manifest["recognised"]},
        certificate=certificate_hash(manifest),
        drift=drift_of(manifest),
        **_how(recipe),
    )


def _ended(ledger: Ledger, recipe: EditRecipe, ids: Sequence[str], out: Path) -> EditRun | None:
    """The last run, if it is the one that is to be resumed.

    Raises:
        GateFailed: it is, and it failed.
    """
    runs = runs_of(ledger)
    if not runs or recipe.differs(vars(runs[-1])):
        return None
    last = runs[-1]
    if last.outcome == "failed":
        wanted = ids or [request.id for request in requests_of(ledger) if request.status == "open"] or last.requests
        if set(wanted) != set(last.requests):
            return None
        raise GateFailed(f"run {len(runs)} was this one and failed at its gate; change settings, or leave out --resume")
    same = out.exists() and not mismatch(file_hashes(out), {**last.after, **last.beside})
    return last if same and set(ids or last.requests) == set(last.requests) else None


def _told(ledger: Ledger, run: EditRun, out: Path, state: str) -> dict[str, Any]:
    return {
        "state": state,
        "run": len(runs_of(ledger)),
        "requests": list(run.requests),
        "out": str(out),
        "untouched": read_manifest(out).get("untouched", {}),
        "head": ledger.head,
        "open": [request.id for request in requests_of(ledger) if request.status == "open"],
        "recognised": run.scores.get("recognised"),
        "drift": dict(run.drift),
    }


def _plain(value: Any) -> Any:
    """As JSON reads it back: comparable, wherever it comes from."""
    return json.loads(json.dumps(plain(value, "")))
