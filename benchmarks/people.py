"""The table of docs/results.md: every method on generated people, several seeds, against the gold model.

    .venv/bin/python benchmarks/people.py --seeds 10,11,12 --out runs/people

Writes one results directory per seed (with its report) and prints the table as Markdown. Models come from the cache if
they were trained before; the seconds shown are those of the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unsee.data.people import people_data
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.lab.build import build_pocket
from unsee.methods import METHODS
from unsee.reporting import write_report

COLUMNS = (  # paths in results.json
    "forget.test retain.test names.retain.test facts.retain.test attributes.forget attributes.retain "
    "attributes.strangers text.forget text.retain misattribution.forget health.off_list"
).split()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", default="10,11,12")
    options.add_argument("--methods", default=",".join(METHODS))
    options.add_argument("--family", default="llava")
    options.add_argument("--forget", default="first:6")
    options.add_argument("--out", type=Path, default=Path("runs/people"))
    given = options.parse_args()
    print("| seed | model | " + " | ".join(COLUMNS) + " | seconds |")
    print("|---|---|" + "--:|" * (len(COLUMNS) + 1))
    for seed in map(int, given.seeds.split(",")):
        results = one_seed(given.family, seed, given.methods.split(","), given.forget, given.out / str(seed))
        for role, measured in results.items():
            if role != "provenance":
                cells = [f"{100 * value(measured, path):.1f}" for path in COLUMNS]
                print(f"| {seed} | {role} | {' | '.join(cells)} | {measured['cost']['seconds']:.1f} |", flush=True)


def one_seed(family: str, seed: int, methods: list[str], forget: str, out: Path) -> dict[str, Any]:
    """Train (or fetch) vanilla and gold, run every method ungated, evaluate all, write the report."""
    data = people_data(seed=seed)
    subjects = data.choose(forget, seed)
    models = {role: str(out / "models" / role) for role in ("vanilla", "gold", *methods)}
    build_pocket(family, data, seed, Path(models["vanilla"]))
    build_pocket(family, data, seed, Path(models["gold"]), without=subjects)
    for name in methods:
        method = METHODS[name]()
        unlearn(models["vanilla"], EditRequest(data, subjects, method, seed, gate=False), Path(models[name]))
    results = evaluate(EvaluationRequest(models, data, subjects), out).to_json()
    write_report(out)
    return results


def value(measured: Any, path: str) -> float:
    for key in path.split("."):
        measured = measured[key]
    return float(measured["value"])


if __name__ == "__main__":
    main()
