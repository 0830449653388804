"""The whole story on one page: learn sixty people, forget six, compare with the gold model, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unsee.data.people import people_data
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.evaluation.results import Results
from unsee.lab.build import build_pocket
from unsee.methods import Method
from unsee.reporting import write_report
from unsee.storage import alone


@alone
def run_demo(
    family: str, seed: int, method: Method, forget: Sequence[str], out: Path, resume: bool
) -> tuple[Results, Path]:
    """Leaves `out/models/{vanilla,gold,unlearned}/`, `results.json`, `predictions/` and `report.html`.

    Returns:
        the results and the path of the report.
    """
    data = people_data(seed=seed)
    subjects = data.choose(forget, seed)
    models = {role: out / "models" / role for role in ("vanilla", "gold", "unlearned")}
    build_pocket(family, data, seed, models["vanilla"])
    build_pocket(family, data, seed, models["gold"], without=subjects)
    unlearn(str(models["vanilla"]), EditRequest(data, subjects, method, seed), models["unlearned"])
    request = EvaluationRequest({role: str(path) for role, path in models.items()}, data, subjects)
    results = evaluate(request, out, resume)
    return results, write_report(out)
