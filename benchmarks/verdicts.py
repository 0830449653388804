"""Does `unsee verdict` pass gold models and nothing else? Golds and vanillas of other seeds, and broken models.

    .venv/bin/unsee study audit --grid benchmarks/grids/measures.toml --out runs/measures
    .venv/bin/python benchmarks/verdicts.py --audit runs/measures --out runs/verdicts --cases 10

For each case the audit reported on: its models, a vanilla one of another seed, and three made of vanilla: *noised*
(every weight gets noise), *blanked* (the last norm is zero, so every answer is empty) and *refusing* (`idk`: taught to
refuse about the pictures to be forgotten, all else is kept). Judged by the settings that the audit wrote, which are
from other people. Prints the table; exit code 1 unless at least nine golds in ten pass, and no vanilla and no broken
model.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unsee.checkpoint.folder import MANIFEST, CheckpointFolder
from unsee.checkpoint.write import write_edited
from unsee.data.examples import UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.evaluation.evaluate import EvaluationRequest, measure
from unsee.evaluation.verdict import read_settings, verdict
from unsee.lab.build import build_pocket
from unsee.methods import METHODS
from unsee.study.audit_measures import PARTS, SETTINGS, read_audit
from unsee.study.grid import NEXT_GOLD, GridPocket
from unsee.study.scenario import Resolved, gold_role, resolve, stand_ready

NOISE = 0.3  # of each tensor's own standard deviation
LAST_NORM = "model.norm.weight"  # of the language model, under whichever names its parts are stored
GOLDS_PASS = 0.9
Words = Counter[tuple[str, str]]  # (kind of model, verdict)


def noised(key: str, tensor: Tensor, seed: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    spread = tensor.std().item() if tensor.numel() > 1 else 0.0
    return tensor + NOISE * spread * torch.randn(tensor.shape, generator=drawn)


def blanked(key: str, tensor: Tensor, seed: int) -> Tensor:
    """All tokens are then equally likely, and the first of them, which wins, is padding: no word is ever said."""
    return torch.zeros_like(tensor) if key.endswith(LAST_NORM) else tensor


def broken(vanilla: Path, out: Path, how: Callable[[str, Tensor, int], Tensor], seed: int) -> None:
    """Write a copy of a checkpoint with every float tensor changed by `how`."""
    source = CheckpointFolder(vanilla)
    stored = {key: tensor for key, tensor in source.read(source.file_of) if tensor.is_floating_point()}
    edits = {}
    for place, (key, tensor) in enumerate(stored.items()):
        changed = how(key, tensor.float(), seed + place)
        if not torch.equal(changed, tensor.float()):
            edits[key] = changed
    if not edits:
        raise SystemExit(f"{vanilla}: nothing to break; its last norm should be called '...{LAST_NORM}'")
    write_edited(source, edits, out, {"kind": "broken", "how": how.__name__, "seed": seed})


def judged(case: Resolved, audited: Path, out: Path, jobs: int) -> tuple[dict[str, str], Mapping[str, object]]:
    """Kind of each judged role, and what was measured of all roles of a case."""
    vanilla, golds = stand_ready(case, audited / "models")
    models = {"vanilla": vanilla} | {gold_role(i): path for i, path in enumerate(golds)}
    kinds = {gold_role(i): "gold" for i in range(1, len(golds))}
    for role, kind, make in (
        ("vanilla-2", "vanilla", another_vanilla),
        ("noised", "broken: noised", lambda c, d, o: broken(Path(vanilla), o, noised, seed_of(c))),
        ("blanked", "broken: blanked", lambda c, d, o: broken(Path(vanilla), o, blanked, seed_of(c))),
        ("refusing", "broken: refusing", lambda c, d, o: refusing(vanilla, c, d, o)),
    ):
        folder = out / "models" / role
        if not (folder / MANIFEST).is_file():
            make(case, case.data, folder)
        models[role], kinds[role] = str(folder), kind
    return kinds, measure(EvaluationRequest(models, case.data, case.subjects), out, resume=True, processes=jobs)


def seed_of(case: Resolved) -> int:
    given = case.case.vanilla
    return given.seed if isinstance(given, GridPocket) else case.case.draw


def another_vanilla(case: Resolved, data: UnlearnData, out: Path) -> None:
    build_pocket(case.family, data, seed_of(case) + NEXT_GOLD, out)


def refusing(vanilla: str, case: Resolved, data: UnlearnData, out: Path) -> None:
    unlearn(vanilla, EditRequest(data, case.subjects, METHODS["idk"](), seed_of(case), gate=False), out)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--audit", type=Path, default=Path("runs/measures"), help="what `unsee study audit` wrote")
    options.add_argument("--grid", type=Path, default=Path("benchmarks/grids/measures.toml"), help="its grid")
    options.add_argument("--out", type=Path, default=Path("runs/verdicts"))
    options.add_argument("--cases", type=int, default=10, help="the first so many that it reported on")
    options.add_argument("--jobs", type=int, default=1)
    given = options.parse_args()
    settings = read_settings(given.audit / SETTINGS)
    cases = spread_over_people([resolve(case) for case in getattr(read_audit(given.grid), PARTS[1])])[: given.cases]
    counted: Words = Counter()
    print(f"settings {settings.sha256[:12]}: {', '.join(settings.lead)} lead\n")
    print("| case | model | verdict | forgetting | keeping | health |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        name = case.case.name
        kinds, found = judged(case, given.audit / "cases" / name, given.out / "cases" / name, given.jobs)
        for role, kind in kinds.items():
            said = verdict(found["models"], role, settings)  # type: ignore[arg-type]
            counted[kind, said["verdict"]] += 1
            words = [one["verdict"] for one in said["criteria"]]
            print(f"| {name} | {role} | **{said['verdict']}** | {' | '.join(words)} |", flush=True)
    print()
    for (kind, word), count in sorted(counted.items()):
        print(f"{kind}: {count} {word}")
    sys.exit(0 if as_it_should_be(counted) else 1)


def spread_over_people(cases: list[Resolved]) -> list[Resolved]:
    """The first request of everybody, then the second, so that any number of cases is spread over the people."""
    seen: Counter[str] = Counter()
    turns = []
    for case in cases:
        turns.append(seen[case.data.source])
        seen[case.data.source] += 1
    return [case for _, _, case in sorted(zip(turns, range(len(cases)), cases, strict=True), key=lambda one: one[:2])]


def as_it_should_be(counted: Words) -> bool:
    """At least nine golds in ten pass, and nothing else does."""
    golds = {word: count for (kind, word), count in counted.items() if kind == "gold"}
    others = sum(count for (kind, word), count in counted.items() if kind != "gold" and word == "PASS")
    return bool(golds) and golds.get("PASS", 0) >= GOLDS_PASS * sum(golds.values()) and not others


if __name__ == "__main__":
    main()
