"""Flip bytes of ledgers, patches and checkpoints, and cut ledgers short: is every one of them noticed?

    python benchmarks/flips.py --count 1000

One request is carried out on a tiny random model, another is open. Then one random byte at a time is changed in a file
of the ledger, the patch or the checkpoint (a third of the flips each; files of one kind in equal shares), and what
`unsee request verify` and `unsee patch` do first is called. Truncations of the ledger are held against a kept head.
Exit code 1 if anything was missed, or if what is sound was refused.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kills import DATA, SETTINGS, tiny_model

from unsee.checkpoint.patch import PatchFile, make_patch
from unsee.data.sources import load_data
from unsee.editing.request import EditRequest
from unsee.errors import BadInput
from unsee.methods import METHODS
from unsee.requests.checks import verify
from unsee.requests.entries import add, new_request
from unsee.requests.ledger import LEDGER, SALT, Ledger
from unsee.requests.run import run_requests
from unsee.settings import from_text


@dataclass(frozen=True)
class Artefacts:
    """All that a request leaves, and how damage to it is noticed.

    Attributes:
        head: kept elsewhere.
    """

    ledger: Path
    model: Path
    patch: Path
    head: str

    @property
    def files(self) -> dict[str, list[Path]]:
        return {
            "ledger": [self.ledger / LEDGER, self.ledger / SALT],
            "patch": [self.patch],
            "checkpoint": sorted(item for item in self.model.rglob("*") if item.is_file()),
        }

    def verified(self) -> bool:
        """What `unsee request verify --head --model` says."""
        return all(one.result != "failed" for one in verify(self.ledger, self.head, self.model))

    def patch_opens(self) -> bool:
        try:
            PatchFile(self.patch)
        except BadInput:
            return False
        return True


def make(root: Path) -> Artefacts:
    data, model = load_data(DATA), tiny_model(root / "model", DATA)
    ledger = Ledger.open(root / "ledger", create=True)
    add(ledger, new_request(ledger, "r1", data, data.subjects[:1]))
    method = from_text(METHODS["nscvf"], SETTINGS.split())
    run_requests(ledger.folder, str(model), EditRequest(data, (), method, 0), root / "next")
    ledger = Ledger.open(ledger.folder)
    add(ledger, new_request(ledger, "r2", data, data.subjects[1:2]))
    make_patch(model, root / "next", root / "patch.safetensors")
    return Artefacts(ledger.folder, root / "next", root / "patch.safetensors", ledger.head)


def missed(file: Path, content: bytes, sound: Callable[[], bool]) -> bool:
    """Whether nobody notices that `file` holds something else; it is put back."""
    kept = file.read_bytes()
    file.write_bytes(content)
    try:
        return sound()
    finally:
        file.write_bytes(kept)


def flips(about: Artefacts, count: int, chance: random.Random) -> tuple[Counter[str], list[str]]:
    """How many flips there were of each file, and those that were missed."""
    made: Counter[str] = Counter()
    lost = []
    kinds = list(about.files)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        file = chance.choice(about.files[kind])
        content = bytearray(file.read_bytes())
        place = chance.randrange(len(content))
        content[place] ^= chance.randrange(1, 256)
        made[f"{kind}: {file.name}"] += 1
        if missed(file, content, about.patch_opens if kind == "patch" else about.verified):
            lost.append(f"{file.name}, byte {place}")
    return made, lost


def truncations(about: Artefacts, count: int, chance: random.Random) -> list[str]:
    """Those that were missed: at every line's end, and anywhere."""
    file = about.ledger / LEDGER
    content = file.read_bytes()
    ends = [0, *(place + 1 for place, byte in enumerate(content[:-1]) if byte == ord("\n"))]
    cuts = (ends + [chance.randrange(len(content)) for _ in range(count)])[:count]
    return [f"the first {cut} bytes" for cut in cuts if missed(file, content[:cut], about.verified)]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=1000, help="flips (default: %(default)d)")
    options.add_argument("--cuts", type=int, default=50, help="truncations of the ledger (default: %(default)d)")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="flips-") as root:
        about = make(Path(root))
        refused = not (about.verified() and about.patch_opens())
        made, lost = flips(about, given.count, chance)
        cut = truncations(about, given.cuts, chance)
    print("| file | flips |\n|---|--:|")
    for name, number in sorted(made.items()):
        print(f"| {name} | {number} |")
    for what in [*lost, *cut]:
        print(f"missed: {what}")
    print(f"{given.count} flips, {len(lost)} missed; {given.cuts} truncations, {len(cut)} missed")
    if refused:
        print("what is sound was refused")
    return 1 if lost or cut or refused else 0


if __name__ == "__main__":
    sys.exit(main())
