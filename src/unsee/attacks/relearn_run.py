"""Attack several models with the same budget and the same draws, and write down what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unsee.attacks.relearn import Attacker, Counts, Point
from unsee.attacks.relearn_plan import Attack, AttackRequest, EvaluationSets, Relearning, attacks, evaluation_sets
from unsee.checkpoint.folder import read_manifest, write_json
from unsee.errors import BadInput
from unsee.evaluation.intervals import ROUNDING, Cell, around, paired_spread, share, student
from unsee.evaluation.questions import warned
from unsee.journal import Journal
from unsee.models.loading import load_model, open_checkpoint
from unsee.parallel import side_by_side
from unsee.provenance import origin, peak_memory
from unsee.storage import alone

ATTACKS, RESULT = "attacks.jsonl", "relearn.json"
RESERVED = ("settings", "provenance")  # keys of relearn.json beside the roles

AttackRecord = dict[str, Any]
"""One attack on one model: `role`, `split`, `half`, `attacked`, `held_out`, `pictures`, `curve`, `seconds`,
`image_backend`."""


@alone
def relearn(
    models: Mapping[str, str], request: AttackRequest, out: Path, resume: bool = False, jobs: int = 1
) -> dict[str, Any]:
    """Write `attacks.jsonl`, one line per finished attack, and `relearn.json` into `out`.

    Args:
        models: role -> folder or hub id; they are only read.
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
    data, forget, settings = request.data, request.forget, request.settings
    plan, asked = attacks(data, forget, settings, request.seed), evaluation_sets(data, forget, settings)
    about = {role: about_model(path) for role, path in models.items()}
    warnings = warned(models, data.source, forget, data.fingerprint)
    identity = {"models": {role: record["sha256"] for role, record in about.items()}, **request.identity}
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
    for record in side_by_side("attacking models", partial(_attack, plan, asked, names, settings), tasks, jobs):
        if not begun:  # as late as this: if the first model does not load, older results stay
            for stale in (out / RESULT, out / "report.html"):
                stale.unlink(missing_ok=True)
            journal.begin(done)
            begun = True
        journal.append([record])
        done.append(record)
    records = {role: _of(role, plan, done) for role in models}
    results: dict[str, Any] = {role: outcome(records[role]) for role in models}
    results["settings"] = {**dataclasses.asdict(settings), "seed": request.seed}
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


def about_model(path: str) -> dict[str, Any]:
    """What a results file says of an attacked model."""
    folder, _, _ = open_checkpoint(path)
    manifest = read_manifest(folder.path)
    return {**{key: manifest.get(key) for key in ("kind", "method", "seed")}, "path": path, "sha256": folder.hashes()}


def _attack(
    plan: Sequence[Attack],
    asked: EvaluationSets,
    names: Sequence[str],
    settings: Relearning,
    role: str,
    path: str,
    missing: Sequence[Attack],
) -> Iterator[AttackRecord]:
    """Some attacks of the plan on one model, each as it is finished."""
    loaded = load_model(path, torch.float32)
    loaded.visual.named_parameters()
    taught = [e for attack in plan for step in attack.steps(settings) for part in step.values() for e in part]
    loaded.batcher.check([*asked.forget, *asked.retain, *taught])
    attacker = Attacker(loaded, asked, names, settings)
    for attack in missing:
        number = 2 * attack.split + attack.half + 1
        curve, seconds = attacker.attack(attack, f"attack {number} of {len(plan)} on {role}")
        yield {
            "role": role,
            "split": attack.split,
            "half": attack.half,
            "attacked": list(attack.attacked),
            "held_out": list(attack.held_out),
            "pictures": [group[0].image.label for group in attack.taught if group[0].image is not None],
            "curve": curve,
            "seconds": seconds,
            "image_backend": loaded.batcher.image_backend,
        }


def _of(role: str, plan: Sequence[Attack], done: Sequence[AttackRecord]) -> list[AttackRecord]:
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


# What attacks brought back: pure functions of their records -----------------------------------------------------------

GROUPS = ("held_out", "attacked", "retain")


def outcome(records: Sequence[AttackRecord]) -> dict[str, Any]:
    """All measures of one model from its attacks. They all start from the same answers, which therefore count once.

    Returns:
        for each of `GROUPS` the cells `before`, `after` and `gain`; `curve`, one entry per measured step with a cell
        for each group; `subjects`, the share right about each forget subject while it was held out; `attacks`;
        `seconds`.
    """
    steps = [point["step"] for point in records[0]["curve"]]

    def at(index: int, group: str) -> Counts:
        counts = [_counts(record, record["curve"][index], group) for record in records]
        return together(counts if index else [{s: n for count in counts for s, n in count.items()}])

    curve = [{"step": step, **{group: cell(at(index, group)) for group in GROUPS}} for index, step in enumerate(steps)]
    first, last = ({group: at(index, group) for group in GROUPS} for index in (0, -1))
    return {
        **{
            group: {
                "before": cell(first[group]),
                "after": cell(last[group]),
                "gain": gain(first[group], last[group]),
            }
            for group in GROUPS
        },
        "curve": curve,
        "subjects": {
            subject: {"before": _rate(first["held_out"][subject]), "after": _rate(last["held_out"][subject])}
            for subject in sorted(first["held_out"])
        },
        "attacks": len(records),
        "seconds": sum(record["seconds"] for record in records),
    }


def _counts(record: AttackRecord, point: Point, group: str) -> Mapping[str, Sequence[int]]:
    if group == "retain":
        return point["retain"]
    return {subject: point["forget"][subject] for subject in record[group]}


def together(several: Iterable[Mapping[str, Sequence[int]]]) -> Counts:
    """The sum of several counts."""
    total: Counts = {}
    for counts in several:
        for subject, (right, asked) in counts.items():
            before = total.get(subject, (0, 0))
            total[subject] = before[0] + right, before[1] + asked
    return total


def cell(counts: Counts) -> Cell:
    """The share of right answers, with its interval clustered by subject."""
    right = [number < r for r, asked in counts.values() for number in range(asked)]
    return share(right, [subject for subject, (_, asked) in counts.items() for _ in range(asked)])


def gain(before: Counts, after: Counts) -> Cell:
    """Right answers after minus before, as a share from -1 to 1, with a 95 % interval over subjects.

    Student's t on the differences of `paired_spread`, at (subjects - 1) degrees of freedom. Where all subjects gained
    the same, nothing about their spread is known, and the ends are null.
    """
    asked = sum(n for _, n in after.values())
    value, spread = paired_spread(before, after)
    half = student(len(after) - 1) * spread / len(after) ** 0.5 if spread > ROUNDING else None
    return around(value, half, asked, (-1.0, 1.0))


def _rate(counts: Sequence[int]) -> float:
    right, asked = counts
    return right / asked


ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], Cell]], ...] = (
    ("held out, before", lambda role: role["held_out"]["before"]),
    ("held out, after", lambda role: role["held_out"]["after"]),
    ("gain", lambda role: role["held_out"]["gain"]),
    ("attacked, after", lambda role: role["attacked"]["after"]),
    ("retain, after", lambda role: role["retain"]["after"]),
)


def table(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of `relearn.json` as text, one row per model: percentages with their intervals."""
    roles = [role for role, value in results.items() if "held_out" in value]
    columns = ("model", *(label for label, _ in ROWS), "attacks", "seconds")
    rows = [
        (
            role,
            *(_percent(find(results[role])) for _, find in ROWS),
            str(results[role]["attacks"]),
            f"{results[role]['seconds']:.0f}",
        )
        for role in roles
    ]
    return columns, rows


def _percent(found: Cell) -> str:
    value, low, high = found["value"], found["low"], found["high"]
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})")
