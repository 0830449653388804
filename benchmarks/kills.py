"""Kill `unsee request add` and `unsee request run` at random moments: does every resume end as if nothing had happened?

    python benchmarks/kills.py --count 50
    python benchmarks/kills.py --model models/vanilla --data people --forget first:1

Both commands run in a process of their own, which is killed (SIGKILL) at a random moment, or with `--steps` at each of
its changes to the disk in turn; then they run again, `run` with --resume. After each kill the model must be the one of
an unbroken run, byte for byte but for times and command lines in its manifest and card, the ledger must verify with
exactly one run in it, and no file may be left over, neither beside the model nor among the system's temporary ones.
Without --model, a tiny random model is made. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unsee.checkpoint.card import CARD
from unsee.checkpoint.folder import MANIFEST
from unsee.data.sources import load_data
from unsee.requests.checks import verify
from unsee.requests.entries import requests_of, runs_of
from unsee.requests.ledger import LEDGER, LOCK, SALT, Ledger

DATA = "people:count=4,seed=5,train=3,validation=2,test=2"
SETTINGS = "steps=12 learning_rate=5e-4 forget_pictures=3 retain_pictures=6 threshold=0.05"
TIMES = ("created", "seconds", "peak_memory_bytes", "command")  # of a manifest: all that may differ
DATES = re.compile(rb"\d{4}-\d{2}-\d{2}T[\d:]+\+00:00")  # of a card
CHANGES = ("mkdir", "link", "replace", "rename", "fsync", "unlink", "rmdir", "write")  # calls that change the disk
KNOWN = {LEDGER, LOCK, SALT}

CONTEXT = multiprocessing.get_context("forkserver")  # a clean process that has loaded everything, forked for each run
LATE = ("transformers.models.llava.processing_llava", "transformers.models.clip.image_processing_pil_clip")
LATE += ("transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama", "unsee.cli.terminal")
LATE += ("torch._decomp.decompositions_for_jvp",)  # loaded when needed; what cannot be found is left out
CONTEXT.set_forkserver_preload(["unsee.cli", "unsee.requests.run", "unsee.data.sources", "kills", *LATE])


@dataclass(frozen=True)
class Case:
    """What is run again and again."""

    model: Path
    data: str
    forget: str
    settings: tuple[str, ...]
    method: str = "nscvf"

    def add(self, place: Path) -> list[str]:
        ledger = str(place / "ledger")
        return ["request", "add", "--ledger", ledger, "--id", "r1", "--data", self.data, "--forget", self.forget]

    def run(self, place: Path, *more: str) -> list[str]:
        command = ["request", "run", "--ledger", str(place / "ledger"), "--model", str(self.model), "--data", self.data]
        command += ["--out", str(place / "next"), "--method", self.method, *more]
        return command + [part for setting in self.settings for part in ("--set", setting)]


@dataclass(frozen=True)
class Outcome:
    """What was found after one kill and its resume.

    Attributes:
        killed: False if the commands had ended before.
        resumed: the second attempt ended with exit code 0.
        same: the model is that of the unbroken run.
        one_run: the ledger has one request, done, and one run.
        verified: every check that could be made is ok.
        clean: nothing was left over.
        seconds: what the second attempt took.
    """

    killed: bool
    resumed: bool
    same: bool
    one_run: bool
    verified: bool
    clean: bool
    seconds: float

    @property
    def sound(self) -> bool:
        return self.resumed and self.same and self.one_run and self.verified and self.clean


# One process ----------------------------------------------------------------------------------------------------------


def work(commands: Sequence[Sequence[str]], place: Path, kill_at: int = 0) -> None:
    """Run commands one after the other, all their output in a file; what runs in the child.

    Args:
        kill_at: die just before this change to the disk, counted from 1; 0: never. `place / "changes"` counts them.
    """
    import torch

    from unsee.cli import main

    torch.set_num_threads(1)
    tempfile.tempdir = str(place / "temporary")
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    count = _count_changes(kill_at)
    for command in commands:
        try:
            main(command)
        except SystemExit as end:
            if end.code:
                raise
    (place / "changes").write_text(str(count[0]))


def _count_changes(kill_at: int) -> list[int]:
    count = [0]

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    return count


def start(commands: Sequence[Sequence[str]], place: Path, kill_at: int = 0) -> Any:
    (place / "temporary").mkdir(parents=True, exist_ok=True)
    child = CONTEXT.Process(target=work, args=(commands, place, kill_at), daemon=True)
    child.start()
    return child


def again(case: Case, place: Path) -> bool:
    """What an operator does after a crash: look what is in the ledger, then the same commands."""
    folder = place / "ledger"
    there = (folder / LEDGER).exists() and bool(requests_of(Ledger.open(folder)))
    child = start([*([] if there else [case.add(place)]), case.run(place, "--resume")], place)
    child.join()
    return child.exitcode == 0


# One kill -------------------------------------------------------------------------------------------------------------


def contents(model: Path) -> dict[str, Any]:
    """Every file of a model, without times in its manifest and card."""
    found: dict[str, Any] = {
        str(item.relative_to(model)): item.read_bytes() for item in model.rglob("*") if item.is_file()
    }
    manifest = json.loads(found[MANIFEST])
    for ancestor in manifest["base"].get("lineage", []):
        ancestor.pop("created", None)
    found[MANIFEST] = {key: value for key, value in manifest.items() if key not in TIMES}
    found[CARD] = DATES.sub(b"", found[CARD])
    return found


def unbroken(case: Case, place: Path) -> tuple[dict[str, Any], float, int]:
    """The model that must come out, how long that takes, and how many changes to the disk."""
    before = time.perf_counter()
    child = start([case.add(place), case.run(place)], place)
    child.join()
    if child.exitcode:
        raise SystemExit(f"the unbroken run failed:\n{(place / 'log').read_text()}")
    return contents(place / "next"), time.perf_counter() - before, int((place / "changes").read_text())


def trial(case: Case, place: Path, wanted: dict[str, Any], seconds: float | None = None, kill_at: int = 0) -> Outcome:
    """Begin in the empty folder `place`, kill after so many seconds or at a change to the disk, run again, and look."""
    child = start([case.add(place), case.run(place)], place, kill_at)
    child.join(seconds)
    child.kill()
    child.join()
    before = time.perf_counter()
    resumed = again(case, place)
    took = time.perf_counter() - before
    if not resumed:
        print((place / "log").read_text(), file=sys.stderr)
        return Outcome(child.exitcode != 0, False, False, False, False, False, took)
    ledger = Ledger.open(place / "ledger")
    checks = verify(ledger.folder, ledger.head, place / "next", load_data(case.data))
    return Outcome(
        killed=child.exitcode == -signal.SIGKILL,
        resumed=True,
        same=contents(place / "next") == wanted,
        one_run=[one.status for one in requests_of(ledger)] == ["done"] and len(runs_of(ledger)) == 1,
        verified=all(one.result == "ok" for one in checks),
        clean=not left_over(place),
        seconds=took,
    )


def left_over(place: Path) -> list[str]:
    """Names that an unbroken run does not leave."""
    found = [
        item.name for item in place.iterdir() if item.name not in ("ledger", "next", "temporary", "log", "changes")
    ]
    found += [item.name for item in (place / "ledger").iterdir() if item.name not in KNOWN]
    found += [item.name for item in (place / "next").rglob(".*")]
    return found + [item.name for item in (place / "temporary").iterdir()]


# All of them ----------------------------------------------------------------------------------------------------------


def tiny_model(place: Path, data: str) -> Path:
    """A random model that fits in a hundred kilobytes, as the tests have it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import tiny

    for part in tiny("llava", load_data(data)):
        part.save_pretrained(place)
    return place


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--count", type=int, default=50, help="kills at random moments before the end (default: %(default)d)"
    )
    options.add_argument("--steps", action="store_true", help="kill at each change to the disk instead")
    options.add_argument("--model", type=Path, help="a checkpoint; a tiny random one by default")
    options.add_argument("--data", default=DATA)
    options.add_argument("--forget", default="first:1")
    options.add_argument("--set", default=SETTINGS, help="settings of nscvf, separated by spaces")
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    given = options.parse_args()
    chance, attempts, failed, killed = random.Random(given.seed), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        root = Path(temporary)
        case = Case(
            given.model or tiny_model(root / "model", given.data), given.data, given.forget, (*given.set.split(),)
        )
        unbroken(case, root / "warm")  # the first child waits for everything to be loaded
        wanted, seconds, changes = unbroken(case, root / "unbroken")
        print(f"unbroken: {seconds:.1f} s, {changes} changes to the disk")
        heads = ["moment", *(field.name for field in fields(Outcome))]
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
        while (attempts if given.steps else killed) < (changes if given.steps else given.count):
            attempts += 1
            place, moment = root / str(attempts), chance.uniform(0, seconds)
            outcome = trial(case, place, wanted, None if given.steps else moment, attempts if given.steps else 0)
            seconds = outcome.seconds or seconds  # other work on the machine comes and goes
            killed, failed = killed + outcome.killed, failed + (not outcome.sound)
            cells = [f"change {attempts}" if given.steps else f"{moment:.2f} s"]
            for field in fields(Outcome):
                value = getattr(outcome, field.name)
                cells.append(f"{value:.1f}" if field.name == "seconds" else "yes" if value else "no")
            print("| " + " | ".join(cells) + " |", flush=True)
            shutil.rmtree(place)
    print(f"{attempts} attempts, {killed} killed before their end, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
