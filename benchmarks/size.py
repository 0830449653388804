"""Does the edit's cost depend on the language model? Real sizes, random weights, few steps.

    python benchmarks/size.py --family llava

For each language model: writes a checkpoint of that shape, forgets one of five generated people (eight pictures each)
with `unsee unlearn` in a process of its own, and prints time and memory as a Markdown table. The largest checkpoint
takes 13.5 GB of disk (LLaVA; Qwen2-VL 16.6 GB) and everything is removed again, also on failure and interruption.
Hashing every byte of a checkpoint is for provenance, and timed apart from the edit.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import child
from PIL import Image
from random_checkpoint import REAL, TINY, Shape, write_random_checkpoint

from unsee.checkpoint.folder import CheckpointFolder
from unsee.data import people
from unsee.data.sources import load_data

SETTINGS = "steps=4 learning_rate=1e-4 forget_pictures=2 retain_pictures=2 adapt_every=2"
PICTURES = {"train": 8, "validation": 2, "test": 1}  # per person
PEOPLE = 5
SHARD_BYTES = {"real": 5 * 10**9, "tiny": 10**5}
HEADS = "family, language model, parameters, on disk (GB), edit (s), relative, per step (s), peak memory (GiB), "
HEADS += "before the steps (GiB), hashing (s), whole process (s), its processor time (s)"


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    shape: Shape
    parameters: int
    disk: int
    hashing_seconds: float
    run: child.Run

    def cells(self, smallest: Measured) -> list[str]:
        run = self.run
        return [
            self.shape.family,
            self.shape.label,
            f"{self.parameters / 1e9:.3g} B",
            f"{self.disk / 1e9:.3g}",
            f"{run.edit_seconds:.1f}",
            f"{run.edit_seconds / smallest.run.edit_seconds:.2f}",
            f"{run.step_seconds:.2f}",
            f"{run.peak / 2**30:.2f}",
            f"{run.peak_before_steps / 2**30:.2f}",
            f"{self.hashing_seconds:.1f}",
            f"{run.wall_seconds:.1f}",
            f"{run.cpu_seconds:.1f}",
        ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", choices=[*REAL, "all"], default="all")
    options.add_argument("--scale", choices=list(SHARD_BYTES), default="real", help="tiny: the same in seconds")
    options.add_argument("--only", help="language models, separated by ';', e.g. '0.5B, same width;LLaVA-1.5-7B'")
    options.add_argument("--set", default=SETTINGS, help="settings of nscvf, separated by spaces")
    options.add_argument("--dir", type=Path, help="where the checkpoints stand meanwhile; the system's temp by default")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the folder below is removed then too
    table = REAL if given.scale == "real" else TINY
    print("| " + " | ".join(HEADS.split(", ")) + " |")
    print("|---|---|" + "--:|" * (HEADS.count(", ") - 1))
    with tempfile.TemporaryDirectory(prefix="unsee-size-", dir=given.dir) as folder:
        for family in table if given.family == "all" else [given.family]:
            smallest = None
            for shape in table[family]:
                if given.only and shape.label not in given.only.split(";"):
                    continue
                measured = measure(shape, given.set.split(), SHARD_BYTES[given.scale], Path(folder))
                smallest = smallest or measured
                print("| " + " | ".join(measured.cells(smallest)) + " |", flush=True)


def measure(shape: Shape, settings: list[str], shard_bytes: int, folder: Path) -> Measured:
    """Make the checkpoint, edit it in a process of its own, remove both."""
    photos, model, out = folder / "photos", folder / "model", folder / "out"
    if not photos.exists():
        write_photos(photos, shape.tower.side)
    source = f"folder:{photos}"
    data = load_data(source)
    parameters = write_random_checkpoint(shape, data, model, shard_bytes)
    start = time.perf_counter()
    CheckpointFolder(model).hashes()
    hashing = time.perf_counter() - start
    run = child.unlearn(model, source, data.subjects[0], "nscvf", settings, out)
    disk = sum(item.stat().st_size for item in model.iterdir())
    shutil.rmtree(model)
    shutil.rmtree(out)
    return Measured(shape, parameters, disk, hashing, run)


def write_photos(folder: Path, side: int) -> None:
    """Portraits as files: `PEOPLE` times the pictures of `PICTURES`."""
    for person in people.make_people(PEOPLE, seed=10):
        for split, count in PICTURES.items():
            place = folder / split / person.subject
            place.mkdir(parents=True)
            for i, portrait in enumerate(people.portraits(person, count, split, seed=10)):
                portrait.open().resize((side, side), Image.Resampling.LANCZOS).save(place / f"{i}.png")


if __name__ == "__main__":
    main()
