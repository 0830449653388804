"""`unsee unlearn` in a process of its own, with the seconds of its steps and its largest memory.

    python benchmarks/child.py NOTES unlearn --model ...

runs the command line as it is and writes what it measured into the file NOTES.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One measured run of `unsee unlearn`.

    Attributes:
        edit_seconds: of the manifest: model loaded to edit finished, without reading, hashing and writing files.
        step_seconds: mean of one optimiser step.
        step_cpu_seconds: the same in processor time, which other work on the machine disturbs less.
        wall_seconds: of the whole process; cpu_seconds: its processor time.
        peak: largest resident memory, in bytes.
        peak_before_steps: the same until the first step.
    """

    edit_seconds: float
    step_seconds: float
    step_cpu_seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak: int
    peak_before_steps: int


def unlearn(
    model: Path, data: str, forget: str, method: str, settings: Sequence[str], out: Path, gate: bool = True
) -> Run:
    """Run it and wait; the process ends when this one is interrupted.

    Args:
        settings: as for `--set`.

    Raises:
        SystemExit: the command failed; its own message is on stderr.
    """
    arguments = ["--model", str(model), "--data", data, "--forget", forget, "--method", method, "--out", str(out)]
    arguments += [part for setting in settings for part in ("--set", setting)] + ([] if gate else ["--no-gate"])
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.json"
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, __file__, str(notes), "unlearn", *arguments], stdout=sys.stderr) as run:
            try:
                run.wait()
            except BaseException:
                run.kill()
                raise
        wall = time.perf_counter() - start
        if run.returncode:
            raise SystemExit(f"unsee unlearn {' '.join(arguments)}: exit code {run.returncode}")
        noted = json.loads(notes.read_text())
    manifest = json.loads((out / "unsee.json").read_text())
    return Run(
        edit_seconds=manifest["seconds"],
        step_seconds=noted["seconds"] / noted["steps"],
        step_cpu_seconds=noted["cpu_seconds"] / noted["steps"],
        wall_seconds=wall,
        cpu_seconds=noted["all_cpu_seconds"],
        peak=noted["peak"],
        peak_before_steps=noted["peak_before_steps"],
    )


def main(notes: Path, arguments: Sequence[str]) -> None:
    from unsee.cli import main as unsee
    from unsee.methods import Plan
    from unsee.provenance import peak_memory

    about: dict[str, Any] = {}
    carry_out = Plan.carry_out

    def timed(plan: Plan, label: str) -> Any:
        about["peak_before_steps"] = peak_memory()
        start, cpu = time.perf_counter(), time.process_time()
        history = carry_out(plan, label)
        about.update(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu, steps=plan.steps)
        return history

    Plan.carry_out = timed  # type: ignore[method-assign]
    try:
        unsee(arguments)
    finally:
        notes.write_text(json.dumps({**about, "all_cpu_seconds": time.process_time(), "peak": peak_memory()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
