"""The drift certificate of a whole edit: what it does to each layer by arithmetic, and to the final visual tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unsee.methods.parts.features import POSITIONS, SAMPLE, FeatureStudy, Pictures, Tail, evenly
from unsee.models.packed import Packed
from unsee.progress import track
from unsee.subspace.certificate import LayerCertificate, certify, first_order_effect
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace

LARGEST = 2400  # positions of a picture for the first order: without fused attention memory is quadratic (about 2 GB)
MEANING = {
    "layers": "each edited weight alone, on the second moments C of its inputs on retained pictures before the edit",
    "drift": "sqrt(tr(dW C dW^T) / tr(W C W^T)), exact",
    "drift_after_cast": "the same of the weight in the dtype it is stored in",
    "bound": "what drift cannot exceed for any update of this size under the same constraint; null without one",
    "outside": "share of |dW|^2 outside of the free directions: rounding; null unless directions were closed",
    "free": "share of input directions the update could use; 1 without a constraint",
    "parameters_changed": "entries of the edited weights that differ from before, before the cast",
    "tokens": "the final visual tokens Z of whole pictures: sqrt(mean |dZ|^2 / mean |Z|^2), no guarantee for others",
    "used": "retained training pictures, those the edit worked with",
    "unseen": "retained pictures the edit had nothing to do with",
    "first_order": "dZ to first order in all updates together, exact; null if every picture was too large for it",
    "measured": "dZ itself, with the edited weights before the cast",
    "measured_after_cast": "dZ itself, with the weights as they are stored",
}


def certify_edit(
    study: FeatureStudy,
    edited: Mapping[str, nn.Parameter],
    before: Mapping[str, Tensor],
    inputs: Mapping[str, SecondMoment],
    spaces: Mapping[str, NullSpace | SoftNullSpace | None],
    dtypes: Mapping[str, torch.dtype],
    unseen: Pictures | None,
) -> dict[str, Any]:
    """What is known of the drift of retained features under the edit that now stands in `study.visual`.

    No weight is touched: other values are tried without being written. Layers are read one at a time from `inputs`
    and `spaces`, which may be lazy.

    Args:
        edited: every weight that may have changed, by full parameter name; at least one.
        before: their values in the reference.
        inputs: of each layer (parameter name without ".weight") on retained pictures before the edit.
        spaces: what its update was kept in, if anything.
        dtypes: in which each edited parameter is stored.
        unseen: retained pictures that were not used; their reference tokens are those before the edit.

    Returns:
        as it is written to JSON, see `MEANING`; `tokens` of a kind of pictures there are none of is null.
    """
    layers = {}
    for name in track(edited, "certificate of each layer"):
        layer, delta = name.removesuffix(".weight"), edited[name].detach().double() - before[name].double()
        layers[name] = certify(delta, before[name], inputs[layer], spaces[layer], dtypes[name])
    return {
        "layers": {name: layer.to_dict() for name, layer in layers.items()},
        "summary": {
            **_summary(list(layers.values())),
            "parameters_changed": sum(int((edited[name] != before[name]).sum()) for name in edited),
        },
        "tokens": {
            "used": _tokens(study, edited, before, dtypes, study.retain, "used pictures"),
            "unseen": _tokens(study, edited, before, dtypes, unseen, "unseen pictures"),
        },
        "meaning": MEANING,
    }


def _summary(layers: Sequence[LayerCertificate]) -> dict[str, Any]:
    drifts = [layer.drift for layer in layers]
    bounds = [layer.bound for layer in layers if layer.bound is not None]
    outsides = [layer.outside for layer in layers if layer.outside is not None]
    return {
        "drift": {"mean": sum(drifts) / len(drifts), "worst": max(drifts)},
        "bound": {"worst": max(bounds, default=None)},
        "outside": {"worst": max(outsides, default=None)},
        "free": {"mean": sum(layer.free for layer in layers) / len(layers)},
    }


@torch.no_grad()
def _tokens(
    study: FeatureStudy,
    edited: Mapping[str, nn.Parameter],
    before: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    pictures: Pictures | None,
    what: str,
) -> dict[str, Any] | None:
    """Relative change of the final visual tokens of (a sample of) `pictures`, a few of them at a time."""
    if not pictures:
        return None
    chosen = evenly(len(pictures), SAMPLE)
    parts = list(_side_by_side(pictures.hidden[chosen], pictures.tokens[chosen]))
    student, reference = Tail(study.visual, study.cut), Tail(study.reference, study.cut)

    def first_order() -> float | None:
        deltas = {name: weight - before[name] for name, weight in edited.items()}
        small = [(part, old) for part, old in parts if max(part.lengths) <= LARGEST]
        return _relative(small, f"{what}, first order", lambda part, _: _first_order(reference, before, deltas, part))

    def measured() -> float | None:
        return _relative(parts, f"{what}, measured", lambda part, old: student(part) - old)

    def after_cast() -> float | None:
        stored = {name: weight.to(dtypes[name]).to(weight.dtype) for name, weight in edited.items()}
        return _relative(parts, f"{what}, after the cast", lambda part, old: student.under(stored, part) - old)

    return {  # one after the other: each holds one further copy of the edited weights at most
        "first_order": first_order(),
        "measured": measured(),
        "measured_after_cast": after_cast(),
        "pictures": len(chosen),
    }


def _side_by_side(hidden: Packed, tokens: Packed) -> Iterator[tuple[Packed, Tensor]]:
    """Hidden states in parts as large as one pass may be, each with the reference tokens of the same pictures."""
    start = 0
    for part in hidden.split(POSITIONS):
        yield part, tokens[start : start + len(part)].states
        start += len(part)


def _relative(
    parts: Sequence[tuple[Packed, Tensor]], what: str, change: Callable[[Packed, Tensor], Tensor]
) -> float | None:
    """sqrt(sum |dZ|^2 / sum |Z|^2) over all tokens of all parts; None if there are no parts."""
    moved = size = 0.0
    for part, old in track(parts, what):
        moved += float(change(part, old).double().square().sum())
        size += float(old.double().square().sum())
    return (moved / size) ** 0.5 if parts else None


def _first_order(tail: Tail, before: Mapping[str, Tensor], deltas: Mapping[str, Tensor], hidden: Packed) -> Tensor:
    with warnings.catch_warnings():
        # torch's own: what it registers for forward mode is written with its deprecated torch.jit.script
        warnings.filterwarnings("ignore", "`torch.jit.script.*` is", DeprecationWarning, r"torch\.jit\._script")
        return first_order_effect(tail.under, before, deltas, hidden)[1]
