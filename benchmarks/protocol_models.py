"""A benchmark in small, and pocket models that know it: vanilla, and gold without the pictures of its forget set.

    .venv/bin/python benchmarks/protocol_models.py --benchmark mllmu --seed 100 --out runs/mllmu

Writes OUT/data in the benchmark's own format, OUT/vanilla and OUT/gold, and prints what to ask them next. The seed is
that of the people and of the models.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unsee.data.sources import load_data
from unsee.lab.build import POCKETS, build_pocket
from unsee.lab.miniatures import MINIATURES

PEOPLE, FORGET = 60, 10  # percent: six people
WRITTEN: dict[str, dict[str, Any]] = {  # enough pictures that their people are known on others
    "mllmu": {"pictures": 8},
    "clear": {"pictures": 10, "perturbed": PEOPLE},
    "umu": {},
    "fiubench": {},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--benchmark", choices=list(MINIATURES), default="mllmu")
    options.add_argument("--family", choices=list(POCKETS), default="llava")
    options.add_argument("--seed", type=int, default=100)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()

    folder = given.out / "data"
    MINIATURES[given.benchmark](folder, count=PEOPLE, seed=given.seed, forget=(FORGET,), **WRITTEN[given.benchmark])
    source = f"{given.benchmark}:{folder},forget={FORGET}"
    data = load_data(source)
    forget = data.choose(f"first:{PEOPLE * FORGET // 100}")
    for role, without in (("vanilla", ()), ("gold", forget)):
        made = build_pocket(given.family, data, given.seed, given.out / role, without)
        print(f"{given.out / role}: {made['seconds']:.0f} s", flush=True)
    models = " ".join(f"--model {role}={given.out / role}" for role in ("vanilla", "gold"))
    print(f"unsee benchmark run {models} --data {source} --out {given.out / 'protocol'}")


if __name__ == "__main__":
    main()
