"""Attack several models with the same budget and the same draws, and write down what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unsee.attacks.relearn import Attacker
from unsee.attacks.relearn_plan import Attack, Exam, Relearning, attacks, exam
from unsee.attacks.relearn_tally import Record, outcome
from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.questions import warned
from unsee.journal import Journal
from unsee.lock import alone
from unsee.models.loading import Loaded, load_model, open_checkpoint
from unsee.parallel import side_by_side
from unsee.provenance import origin, peak_memory

ATTACKS, RESULT = "attacks.jsonl", "relearn.json"
RESERVED = ("settings", "provenance")  # keys of relearn.json beside the roles


@alone
def relearn(
    models: Mapping[str, str],
    data: UnlearnData,
    forget: Sequence[str],
    settings: Relearning,
    seed: int,
    out: Path,
    resume: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
    """Write `attacks.jsonl`, one line per finished attack, and `relearn.json` into `out`.

    Args:
        models: role -> folder or hub id; they are only read.
        forget: subjects that were to be forgotten, two or more.
        seed: decides splits, pictures and batches, the same for every model.
        resume: continue where a broken run of the same attacks stopped, also with further models; the numbers are those
            of an unbroken run.
        jobs: models that are attacked side by side, see `parallel.side_by_side`.

    Returns:
        the content of `relearn.json`.

    Raises:
        BadInput: a model that does not load, data without the pictures the attack needs, a request that cannot be
            halved, or `resume` where attacks of something else stand. GateFailed: a loss is not finite.
    """
    for role in models:
        if role in RESERVED:
            raise BadInput(f"--model {role}={models[role]}: '{role}' is a key of {RESULT}; choose another role")
    plan, questions = attacks(data, forget, settings, seed), exam(data, forget, settings)
    about = {role: _about(path) for role, path in models.items()}
    warnings = warned(models, data.source, forget, data.fingerprint)
    identity = {
        "models": {role: record["sha256"] for role, record in about.items()},
        "data": data.fingerprint,
        "forget": list(forget),
        "seed": seed,
        "settings": dataclasses.asdict(settings),
    }
    journal = Journal(out / ATTACKS, identity, "attacks on other models, data or settings", partial(_goes_on, identity))
    done = [record for record in journal.left(resume) if record["role"] in models]
    names = tuple(dict.fromkeys(data.names.values()))
    tasks: dict[str, tuple[str, str, list[Attack]]] = {}
    for role, path in models.items():
        known = {(record["split"], record["half"]) for record in done if record["role"] == role}
        missing = [attack for attack in plan if (attack.split, attack.half) not in known]
        if missing:
            tasks[role] = (role, path, missing)
    begun = False
    for record in side_by_side("attacking models", partial(_attack, plan, questions, names, settings), tasks, jobs):
        if not begun:  # as late as this: if the first model does not load, older results stay
            for stale in (out / RESULT, out / "report.html"):
                stale.unlink(missing_ok=True)
            journal.begin(done)
            begun = True
        journal.append([record])
        done.append(record)
    records = {role: _of(role, plan, done) for role in models}
    results: dict[str, Any] = {role: outcome(records[role]) for role in models}
    results["settings"] = {**dataclasses.asdict(settings), "seed": seed}
    results["provenance"] = {
        **origin(),
        "data": data.record,
        "forget": list(forget),
        "names": data.names,
        "models": {role: {**about[role], "image_backend": records[role][0]["image_backend"]} for role in models},
        "warnings": warnings,
        "jobs": jobs,
        "peak_memory_bytes": peak_memory() if jobs == 1 else None,  # this process may have attacked nobody
    }
    write_json(out / RESULT, results)
    return results


def _about(path: str) -> dict[str, Any]:
    folder, _, _ = open_checkpoint(path)
    manifest = read_manifest(folder.path)
    return {**{key: manifest.get(key) for key in ("kind", "method", "seed")}, "path": path, "sha256": folder.hashes()}


def _ready(path: str, plan: Sequence[Attack], questions: Exam, settings: Relearning) -> Loaded:
    loaded = load_model(path, torch.float32)
    loaded.visual.named_parameters()
    taught = [e for attack in plan for step in attack.steps(settings) for part in step.values() for e in part]
    loaded.batcher.check([*questions.forget, *questions.retain, *taught])
    return loaded


def _attack(
    plan: Sequence[Attack],
    questions: Exam,
    names: Sequence[str],
    settings: Relearning,
    role: str,
    path: str,
    missing: Sequence[Attack],
) -> Iterator[Record]:
    """Some attacks of the plan on one model, each as it is finished."""
    loaded = _ready(path, plan, questions, settings)
    attacker = Attacker(loaded, questions, names, settings)
    for attack in missing:
        record = _carry_out(attacker, attack, role, len(plan))
        yield {**record, "image_backend": loaded.batcher.image_backend}


def _carry_out(attacker: Attacker, attack: Attack, role: str, total: int) -> Record:
    number = 2 * attack.split + attack.half + 1
    curve, seconds = attacker.carry_out(attack, f"attack {number} of {total} on {role}")
    return {
        "role": role,
        "split": attack.split,
        "half": attack.half,
        "attacked": list(attack.attacked),
        "held_out": list(attack.held_out),
        "pictures": [group[0].image.label for group in attack.taught if group[0].image is not None],
        "curve": curve,
        "seconds": seconds,
    }


def _of(role: str, plan: Sequence[Attack], done: Sequence[Record]) -> list[Record]:
    """The records of one model, in the order of the plan."""
    found = {(record["split"], record["half"]): record for record in done if record["role"] == role}
    return [found[attack.split, attack.half] for attack in plan]


def _goes_on(identity: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether attacks of an earlier run are on these models; it may have had fewer of them, or more."""
    before = known.get("models")
    if not isinstance(before, dict):
        return False
    models = {role: before.get(role, sha) for role, sha in identity["models"].items()}
    return {**known, "models": models} == identity
