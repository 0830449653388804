"""What the directions that `nscvf` closes hold of what tells people apart, layer by layer, and where edits lie.

    .venv/bin/python benchmarks/closed.py --case models/a --case models/b --data people:count=60,seed=100 \\
        --data people:count=60,seed=101 --edit nscvf-s0 --edit cvf-s0

A case is a folder with the models of one study's case: `vanilla`, and edits of it by the names given (those that are
not there are left out). Inputs are those that each edited layer of `vanilla` gets on training pictures, at every
position. A table row is a layer, mean ± sd over cases, in %.

    inputs, kept out    how many input directions there are, and how many of them are closed: least to most
    between    of the covariance of retained people's means, the share in the closed directions (trace)
    differs    of the squared difference of a target's picture and its stand-in, likewise; mean over targets
    closed,    retained people whom a discriminant analysis fitted on training pictures names right on validation
    free, dim  pictures, from a picture's mean input in the closed directions alone, in the free ones alone, and in
               those that hold less than 0.1 % of the retained energy each
    NAME       of |ΔW|² of that edit, the share in those dim directions; below the table, |ΔW| / |W|
    left       of the effect of the first edit on the forgotten, the share that a later edit may overwrite, if it is
               kept from the closed directions of retained people and of the forgotten, each cut alone
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from unsee.data.sources import load_data
from unsee.methods import FeatureStudy
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.methods.parts.features import POSITIONS, means_by_subject
from unsee.methods.parts.stand_ins import StandIns
from unsee.models.loading import load_visual
from unsee.models.packed import Packed
from unsee.subspace.moments import SecondMoment, watching
from unsee.subspace.nullspace import NullSpace

DIM = 1e-3  # of the retained energy, in one direction
RIDGE = 1e-3  # of the spread within people, relative to its mean
Numbers = dict[str, float]


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--case", action="append", required=True, type=Path)
    options.add_argument("--data", action="append", required=True, help="of the case at the same place")
    options.add_argument("--forget", default="first:6")
    options.add_argument("--edit", action="append", default=[])
    given = options.parse_args()
    if len(given.case) != len(given.data):
        raise SystemExit(f"--data: {len(given.data)} for {len(given.case)} times --case; give one for each")
    torch.set_num_threads(1)
    found: dict[str, list[Numbers]] = defaultdict(list)
    for case, data in zip(given.case, given.data, strict=True):
        for layer, numbers in of_case(case, data, given.forget, given.edit).items():
            found[layer].append(numbers)
    columns = [name for name in next(iter(found.values()))[0] if "/" not in name]
    print("| layer | " + " | ".join(columns) + " |\n|---|" + "--:|" * len(columns))
    for layer, each in found.items():
        print(
            f"| {layer} | " + " | ".join(shown([one[name] for one in each if name in one]) for name in columns) + " |"
        )
    for name in [name for name in next(iter(found.values()))[0] if "/" in name]:
        sizes = [one[name] for each in found.values() for one in each if name in one]
        print(f"\n{name}: {min(sizes):.2f} to {max(sizes):.2f}, mean {fmean(sizes):.2f}")


def shown(values: Sequence[float]) -> str:
    """Shares in percent; what counts directions is above 1."""
    if max(values) > 1:
        return f"{min(values):.0f}–{max(values):.0f}" if min(values) < max(values) else f"{values[0]:.0f}"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def of_case(case: Path, source: str, wanted: str, names: Sequence[str]) -> dict[str, Numbers]:
    """What is measured of one model, by layer."""
    data, method = load_data(source), NullSpaceConstrainedForgetting()
    forget, loaded = data.choose(wanted), load_visual(str(case / "vanilla"))
    splits = data.train.of(forget), data.train.without(forget)
    study = FeatureStudy.of(loaded.visual, loaded.batcher, *splits, data.validation, method.last_blocks)
    moments, modules = method.moments(study), study.reference.editable(method.last_blocks)
    retain, gone, new = (inputs(study, modules, p.hidden) for p in (study.retain, study.forget, study.held_back))
    stand_ins = StandIns.choose(study, method.positives, method.same_attributes).picture
    people, count = study.retain.subject - study.forgotten, len(study.subjects) - study.forgotten
    asked = study.held_back.subject >= study.forgotten
    truth = study.held_back.subject[asked] - study.forgotten
    edits = {
        name: load_visual(str(case / name)).visual.editable(method.last_blocks)
        for name in names
        if (case / name).is_dir()
    }
    after = inputs_after(study, edits[names[0]]) if names and names[0] in edits else {}
    rows = {}
    for layer, module in modules.items():
        moment = moments[layer]
        space = method.space(moment)
        assert isinstance(space, NullSpace)  # as with any rule but `soft`
        used, basis = space.used, space.basis
        values, vectors = torch.linalg.eigh(moment.mean)
        dim = vectors[:, values < DIM * values.sum()]
        means = means_by_subject(retain[layer], people, count)
        differences = gone[layer] - retain[layer][stand_ins]
        targets = [inside(used, differences[study.forget.subject == i]) for i in range(study.forgotten)]
        pooled = retain[layer].mean(1), new[layer][asked].mean(1)
        closed, free, faint = (named([x @ part for x in pooled], people, truth) for part in (used, basis, dim))
        row = {"inputs": float(module.in_features), "kept out": float(space.kept)}
        row |= {"between": inside(used, means - means.mean(0)), "differs": fmean(targets)}
        row |= {"closed": closed, "free": free, "dim": faint}
        for name, layers in edits.items():
            delta = (layers[layer].weight - module.weight).double()
            row |= {name: inside(dim, delta), f"{name} / W": (delta.norm() / module.weight.norm()).item()}
        if layer in after:
            joined = method.joined({layer: moment}, {layer: after[layer]})[layer]
            later = joined.null_space(method.rule, method.threshold)
            delta = (edits[names[0]][layer].weight - module.weight).double()
            left, whole = (effect(x, after[layer]) for x in (later.project(delta), delta))
            row["left"] = left / whole
        rows[short(layer)] = row
    return rows


def short(layer: str) -> str:
    """The last parts of a layer's name, from its block's number on."""
    parts = layer.split(".")
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[numbers[-1] if len(parts) - (numbers or [0])[-1] < 5 and numbers else -2 :])


def inputs(study: FeatureStudy, modules: Mapping[str, nn.Linear], hidden: Packed) -> dict[str, Tensor]:
    """What each layer of the reference gets [pictures, positions, width]; pictures are of one size."""
    found: dict[str, list[Tensor]] = {name: [] for name in modules}

    def keep(name: str) -> None:
        module = modules[name]
        handles.append(module.register_forward_pre_hook(lambda _, x: found[name].append(x[0].flatten(0, -2))))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in modules:
        keep(name)
    study.reference_tail(hidden)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).unflatten(0, (len(hidden), -1)).double() for name, parts in found.items()}


def inputs_after(study: FeatureStudy, edited: Mapping[str, nn.Linear]) -> dict[str, SecondMoment]:
    """Moments of what each layer gets on the forgotten once the edit is made, as `editing.remembered` takes them."""
    own = study.visual.editable(len(study.visual.blocks) - study.cut)
    for name, layer in edited.items():
        own[name].weight.copy_(layer.weight)
    with watching(own) as moments:
        for part in study.forget.hidden.split(POSITIONS):
            study.tail(part)
    return moments


def inside(directions: Tensor, rows: Tensor) -> float:
    """Share of the squares of rows [..., d_in] in the span of orthonormal columns [d_in, k]."""
    return ((rows @ directions).square().sum() / rows.square().sum()).item()


def effect(delta: Tensor, moment: SecondMoment) -> float:
    """Mean squared change of a layer's outputs on the inputs behind a moment."""
    return (delta @ moment.mean * delta).sum().item()


def named(rows: Sequence[Tensor], people: Tensor, truth: Tensor) -> float:
    """Share of pictures nearest the mean of their own person, in units of the spread within people.

    Args:
        rows: of training pictures [pictures, k] of `people` [pictures], and of others [pictures, k], who is in `truth`.
    """
    train, asked = rows
    means = means_by_subject(train, people, int(people.max()) + 1)
    apart = train - means[people]
    spread = apart.T @ apart / len(train)
    spread.diagonal().add_(RIDGE * spread.diagonal().mean())
    root = torch.linalg.cholesky(spread)
    seen, centres = (torch.linalg.solve_triangular(root, x.T, upper=False).T for x in (asked, means))
    return (torch.cdist(seen, centres).argmin(1) == truth).double().mean().item()


if __name__ == "__main__":
    main()
