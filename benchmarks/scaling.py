"""Time and memory of an edit as the language model grows: the pocket model's tower, language models 1, 10, 50 times.

    python benchmarks/scaling.py

Random weights: what is asked is the cost. `nscvf` never loads the language model, so its row should stay flat;
`graddiff` trains the whole model, so its row grows. Every run is a process of its own; the repeats of all rows take
turns, so that other work on the machine hits them alike; medians are printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import child
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from unsee.data.sources import load_data
from unsee.lab.build import POCKETS

DATA = "people:count=12,seed=10"
FORGET = "first:2"
SETTINGS = {"nscvf": ["steps=60"], "graddiff": ["steps=6"]}
GROWTH = {1: 1, 10: 2, 50: 4}  # times the parameters -> times the layers; the rest comes from wider feed-forward parts
HEADS = "method, language model, its parameters (M), per step (ms), relative, processor time per step (ms), relative, "
HEADS += "edit (s), relative, peak memory (MiB)"


@dataclass(frozen=True)
class Case:
    """One row: a method on a model."""

    method: str
    times: int
    parameters: int
    model: Path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", choices=list(POCKETS), default="llava")
    options.add_argument("--methods", default=",".join(SETTINGS))
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    methods = given.methods.split(",")
    with tempfile.TemporaryDirectory(prefix="unsee-scaling-") as folder:
        cases = []
        for times in GROWTH:
            model = Path(folder) / str(times)
            parameters = write_pocket(given.family, times, model)
            cases += [Case(method, times, parameters, model) for method in methods]
        runs: dict[Case, list[child.Run]] = {case: [] for case in cases}
        for turn in range(given.repeats):
            for case in cases:
                out = Path(folder) / f"{case.method}-{case.times}-{turn}"
                settings = SETTINGS[case.method]
                runs[case].append(child.unlearn(case.model, DATA, FORGET, case.method, settings, out, gate=False))
    print("| " + " | ".join(HEADS.split(", ")) + " |")
    print("|---|--:|" + "--:|" * (HEADS.count(", ") - 1))
    for method in methods:
        rows = [case for case in cases if case.method == method]
        steps = [1000 * median(run.step_seconds for run in runs[case]) for case in rows]
        works = [1000 * median(run.step_cpu_seconds for run in runs[case]) for case in rows]
        edits = [median(run.edit_seconds for run in runs[case]) for case in rows]
        for case, step, work, edit in zip(rows, steps, works, edits, strict=True):
            peak = median(run.peak for run in runs[case]) / 2**20
            print(
                f"| {method} | {case.times} × | {case.parameters / 1e6:.1f} | {step:.1f} | {step / steps[0]:.2f} "
                f"| {work:.1f} | {work / works[0]:.2f} | {edit:.2f} | {edit / edits[0]:.2f} | {peak:.0f} |"
            )


def write_pocket(family: str, times: int, folder: Path) -> int:
    """A pocket model with random weights whose language model has `times` as many parameters, at the same width.

    Returns:
        the parameters of its language model.
    """
    torch.manual_seed(10)
    pocket, processor = POCKETS[family]().make(load_data(DATA))
    size, layers = pocket.config.text_config.intermediate_size, pocket.config.text_config.num_hidden_layers
    target = times * language_parameters(pocket)
    short = target - language_parameters(_with_text(pocket, size, layers * GROWTH[times]))
    size += short // (3 * pocket.config.text_config.hidden_size * layers * GROWTH[times])
    grown = _with_text(pocket, size, layers * GROWTH[times])
    grown.save_pretrained(folder)
    processor.save_pretrained(folder)
    return language_parameters(grown)


def _with_text(model: PreTrainedModel, intermediate_size: int, layers: int) -> PreTrainedModel:
    """The same model with another language model, both untrained."""
    config = model.config.to_dict()
    config["text_config"] |= {"intermediate_size": intermediate_size, "num_hidden_layers": layers}
    config["text_config"].pop("layer_types", None)  # one entry per layer; made anew
    return AutoModelForImageTextToText.from_config(type(model.config).from_dict(config))


def language_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "language_model" in name or "lm_head" in name)


if __name__ == "__main__":
    main()
