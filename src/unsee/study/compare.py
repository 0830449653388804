"""Whole unlearning runs side by side: every method on every model, request and seed, evaluated against gold models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unsee.attacks.relearn_plan import AttackRequest, Relearning, attacks, evaluation_sets
from unsee.attacks.relearn_run import relearn
from unsee.checkpoint.folder import CheckpointFolder
from unsee.errors import BadInput
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.evaluation.results import Results
from unsee.methods import Method
from unsee.models.loading import locate
from unsee.parallel import side_by_side
from unsee.provenance import origin
from unsee.reporting import write_report
from unsee.reporting.compared import latex
from unsee.storage import alone, replace_text
from unsee.study.grid import Arm, CompareGrid
from unsee.study.scenario import (
    Resolved,
    as_json,
    begin,
    build_models,
    gold_role,
    keep_apart,
    resolve,
    stand_ready,
    unlearned,
    write_results,
)
from unsee.study.search import Frozen
from unsee.study.summary import MEASURES, numbers, shares_of, summarise
from unsee.table import table_text

SHARES = (*MEASURES, "text")
READ = ("distance", "total", "gain_over_gold")  # of a run, against gold


@alone
def compare(
    grid: CompareGrid, out: Path, resume: bool = False, frozen: Frozen | None = None, jobs: int = 1, link: bool = False
) -> dict[str, Any]:
    """Unlearn (ungated), evaluate, attack if the grid asks for it, and read every run against the gold models.

    Leaves `compare.json`, `compare.csv` (a row per run), `compare-summary.csv` (a row per method), `compare.tex`,
    `compare.html`, `figures/`, and for every case `cases/NAME/`: its models and a results directory with its own
    report. Models, answers and attacks that are complete are kept by `resume`.

    Args:
        frozen: settings that a search found; they replace those of the grid.
        jobs: how much of each kind of work is done side by side, see `parallel.side_by_side`.
        link: of the models it writes, as for `unlearn`.

    Raises:
        BadInput: something in the grid cannot be used, settings that were found on people reported here, or `resume`
            found models that were made otherwise.
    """
    cases = [resolve(case) for case in grid.cases]
    if grid.search is not None:
        keep_apart(cases, [resolve(case) for case in grid.search.cases])
    arms = {case.family: grid.arms for case in cases}
    if frozen is not None:
        frozen.keep_apart(cases)
        arms = {family: frozen.arms(grid.arms, family) for family in arms}
    for case in cases if grid.relearning else ():
        _attackable(case, grid.relearning or Relearning())
    begin(out, grid, resume)
    folders = {case.case.name: out / "cases" / case.case.name for case in cases}
    build_models({folders[case.case.name] / "models": case for case in cases}, jobs)
    measured = [_one_case(case, grid, arms[case.family], folders[case.case.name], jobs, link) for case in cases]
    results = summarise(
        [about for about, _ in measured], [cell for _, cells in measured for cell in cells], grid.weights
    )
    results["relearning"] = dataclasses.asdict(grid.relearning) if grid.relearning else None
    results["settings"] = frozen.about if frozen is not None else None
    warnings = {
        f"{about['name']}, {role}": said for about, _ in measured for role, said in about.pop("warnings").items()
    }
    results["provenance"] = {**origin(), "jobs": jobs, "warnings": warnings}
    write_results(out, "compare", results, map(_row, results["cells"]))
    replace_text(out / "compare-summary.csv", table_text(map(_summary, (*results["baselines"], *results["arms"]))))
    replace_text(out / "compare.tex", latex(results))
    return results


def _attackable(case: Resolved, settings: Relearning) -> None:
    """Raises BadInput if the people of a case cannot be attacked."""
    try:
        attacks(case.data, case.subjects, settings, case.case.draw)
        evaluation_sets(case.data, case.subjects, settings)
    except BadInput as error:
        raise BadInput(f"case '{case.case.name}', relearn: {error}") from error


def _one_case(
    case: Resolved, grid: CompareGrid, arms: Sequence[Arm], folder: Path, jobs: int, link: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    vanilla, golds = stand_ready(case, folder / "models")
    models = {"vanilla": vanilla} | {gold_role(i): path for i, path in enumerate(golds)}
    gold_roles = list(models)[1:]
    runs = {f"{arm.name}-s{seed}": (arm, seed) for arm in arms for seed in grid.seeds}
    tasks = {role: (role, arm.method, seed, folder / "models" / role) for role, (arm, seed) in runs.items()}
    failed = dict(side_by_side("unlearning", partial(_unlearned, case, vanilla, link), tasks, jobs))
    models |= {role: str(folder / "models" / role) for role in runs if failed[role] is None}
    cells: list[dict[str, Any]] = [
        {
            "case": case.case.name,
            "family": case.family,
            "arm": arm.name,
            "method": arm.method.name,
            "given": list(arm.method.inputs),
            "settings": as_json(arm.method),
            "seed": seed,
            "role": role,
            "failed": failed[role],
        }
        for role, (arm, seed) in runs.items()
    ]
    results = _evaluated(case, models, folder, jobs)
    attacked = _attacked(case, models, grid.relearning, folder, jobs)
    if not (folder / "report.html").is_file():
        write_report(folder)
    about: dict[str, Any] = {**case.about, "fingerprint": case.data.fingerprint}
    about["shares"] = {
        "vanilla": shares_of(results.models["vanilla"].scores),
        "golds": [shares_of(results.models[role].scores) for role in gold_roles],
    }
    about["warnings"] = results.provenance.get("warnings", {})
    about["attack"] = None
    if attacked:
        about["attack"] = {"vanilla": attacked["vanilla"], "golds": [attacked[role] for role in gold_roles]}
    for cell in cells:
        done = cell["failed"] is None
        cell["shares"] = shares_of(results.models[cell["role"]].scores) if done else None
        cell["attack"] = attacked.get(cell["role"])
        cell["seconds"] = results.models[cell["role"]].seconds if done else None
    return about, cells


def _unlearned(
    case: Resolved, vanilla: str, link: bool, role: str, method: Method, seed: int, out: Path
) -> list[tuple[str, str | None]]:
    """One run, and why there is no model of it."""
    return [(role, unlearned(case, vanilla, method, seed, out, link))]


def _evaluated(case: Resolved, models: Mapping[str, str], folder: Path, jobs: int) -> Results:
    """The results directory of a case; one that is complete is not opened again."""
    file = folder / "results.json"
    if file.is_file():
        results = Results.from_json(json.loads(file.read_text(encoding="utf-8")), {}, str(file))
        about = results.provenance
        known = {role: model["sha256"] for role, model in about["models"].items()}
        wanted = {role: CheckpointFolder(locate(path)).hashes() for role, path in models.items()}
        if known == wanted and about["data"]["fingerprint"] == case.data.fingerprint:
            return results
    (folder / "report.html").unlink(missing_ok=True)
    return evaluate(EvaluationRequest(models, case.data, case.subjects), folder, resume=True, jobs=jobs)


def _attacked(
    case: Resolved, models: Mapping[str, str], settings: Relearning | None, folder: Path, jobs: int
) -> dict[str, dict[str, Any]]:
    """What relearning brought back, by role; empty if nobody is attacked. Finished attacks are kept."""
    if settings is None:
        return {}
    request = AttackRequest(case.data, case.subjects, settings, case.case.draw)
    found = relearn(models, request, folder, resume=True, jobs=jobs)
    return {role: {key: found[role][key] for key in ("held_out", "attacked", "retain", "curve")} for role in models}


# Rows -----------------------------------------------------------------------------------------------------------------


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One run."""
    about = {key: cell[key] for key in ("family", "case", "arm", "method", "seed", "failed", "seconds", *READ)}
    drops = {f"drop.{what}": value for what, value in cell["drops"].items()}
    return {**about, **_ends(cell["shares"] or {}), **drops}


def _summary(one: Mapping[str, Any]) -> dict[str, Any]:
    """One method or baseline; what a baseline has not is empty."""
    row: dict[str, Any] = {"family": one["family"], "arm": one.get("arm", one.get("role"))}
    row |= {"runs": one.get("cells", one.get("models")), "failed": one.get("failed")}
    row |= _ends({name: share or {} for name, share in one["shares"].items()})
    for what, of in numbers(one).items():
        row |= {f"{what}.{part}": of[part] for part in ("mean", "sd", "worst")}
        row |= {f"{what}.standing": one.get("standing", {}).get(what)} if what != "forget" else {}
    row |= {key: one.get(key) for key in ("seconds", "relative_seconds", "front")}
    return row | {"given": "; ".join(one.get("given", ()))}


def _ends(shares: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values under their names, the ends of their intervals beside them."""
    found: dict[str, Any] = {}
    for name in SHARES:
        known = shares.get(name, {})
        found[name] = known.get("value")
        found |= {f"{name}.{end}": known.get(end) for end in ("low", "high")}
    return found
