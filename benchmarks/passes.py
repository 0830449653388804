"""What an edit costs in passes: its time, from the loaded visual module to the last step, over that of one pass.

    .venv/bin/python benchmarks/passes.py --model runs/a/vanilla --data people:count=60,seed=10 --forget first:6

One pass is the fastest batched forward of the visual module, without gradients, over all training pictures, in the same
process with the same threads and precision. Pictures are prepared beforehand for both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from unsee.data.sources import load_data
from unsee.methods import METHODS, DirectMethod, FeatureMethod, FeatureStudy
from unsee.models.loading import load_visual

BATCHES = (16, 32, 64, 128, 256, 512)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--data", required=True)
    options.add_argument("--forget", default="first:6")
    options.add_argument("--methods", default="nscvf,cvf,nscvf-direct")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_visual(given.model)
    data = load_data(given.data)
    forget = data.choose(given.forget)
    splits = data.train.of(forget), data.train.without(forget), data.validation.of(forget)
    visual, batcher = loaded.visual, loaded.batcher
    images = [image for split in splits for image in split.pictures]
    seen = images[: -len(splits[2].pictures) or None]  # what one pass looks at: training pictures
    for start in range(0, len(images), 16):
        batcher.images(images[start : start + 16])

    @torch.no_grad()
    def one_pass(size: int) -> Callable[[], None]:
        batches = [batcher.images(seen[start : start + size]) for start in range(0, len(seen), size)]

        def look() -> None:
            with torch.no_grad():
                for batch in batches:
                    visual.features(batch)

        return look

    fastest, batch = min((timed(one_pass(size), given.repeats), size) for size in BATCHES)
    print(f"one pass over {len(seen)} pictures: {fastest:.2f} s with {batch} at a time, {given.threads} threads\n")
    print("| method | edit (s) | passes |\n|---|--:|--:|")
    weights = {name: p.detach().clone() for name, p in visual.named_parameters().items()}
    for name in given.methods.split(","):
        method = METHODS[name]()
        if not isinstance(method, FeatureMethod):
            raise SystemExit(f"--methods {name}: not a feature-level method")

        def edit(method: FeatureMethod = method) -> None:
            torch.manual_seed(0)
            study = FeatureStudy.of(visual, batcher, *splits, method.last_blocks)
            moments = method.moments(study)
            if isinstance(method, DirectMethod):
                method.solve(study, moments or {})
            else:
                method.plan(study, moments).carry_out(method.name)
            with torch.no_grad():
                for key, parameter in visual.named_parameters().items():
                    parameter.copy_(weights[key])

        seconds = timed(edit, given.repeats)
        print(f"| {name} | {seconds:.2f} | {seconds / fastest:.1f} |", flush=True)


def timed(run: Callable[[], None], repeats: int) -> float:
    """Seconds of the fastest of so many runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
