"""What an update does to retained data, from statistics alone: the drift, its bound, its effect on the outputs.

Everything here is about ΔW and the second moments C of a layer's inputs; nothing is assumed about how ΔW was found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace, relative_drift

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class LayerCertificate:
    """One edited layer on one set of retained inputs. Drifts are relative changes of its outputs, without its bias.

    Attributes:
        drift: sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)), exact.
        drift_after_cast: the same of the weight as it is stored.
        dtype: in which it is stored, e.g. `bfloat16`.
        bound: what `drift` cannot exceed whatever the direction of ΔW, see `drift_bound`; null without a space.
        outside: share of |ΔW|² outside of the space: rounding, if the constraint held; null without a hard space, as a
            soft one closes nothing.
        free: share of input directions the update could use; 1 without a space.
        kept: number of directions it could not use, effective for a soft space.
        tokens: how many inputs C is the mean of.
    """

    drift: float
    drift_after_cast: float
    dtype: str
    bound: float | None
    outside: float | None
    free: float
    kept: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return dataclasses.asdict(self)


def certify(
    delta: Tensor,
    weight: Tensor,
    moment: SecondMoment,
    space: NullSpace | SoftNullSpace | None,
    dtype: torch.dtype,
) -> LayerCertificate:
    """The certificate of one layer.

    Args:
        delta: the update [d_out, d_in] before any cast; weight: the layer before it.
        moment: of the inputs the statement is about: those the space was cut from, or of pictures that were not used.
        space: what the update was kept in, if anything.
        dtype: the weight is stored in.
    """
    C = moment.mean
    delta, weight = delta.to(C.device), weight.to(C.device)
    stored = (weight.double() + delta.double()).to(dtype)
    hard = space if isinstance(space, NullSpace) else None
    return LayerCertificate(
        drift=relative_drift(delta, weight, C),
        drift_after_cast=relative_drift(stored.double() - weight.double(), weight, C),
        dtype=str(dtype).removeprefix("torch."),
        bound=drift_bound(delta, weight, C, space) if space else None,
        outside=outside(delta, hard) if hard else None,
        free=space.free if space else 1.0,
        kept=space.kept if space else 0,
        tokens=moment.tokens,
    )


def freed_eigenvalue(space: NullSpace, moment: Tensor) -> float:
    """Largest eigenvalue of C [d_in, d_in] within the free directions: the largest freed one if C is what was cut."""
    if not space.basis.shape[1]:
        return 0.0
    return _largest(space.basis.T @ moment.double() @ space.basis)


def outside(delta: Tensor, space: NullSpace) -> float:
    """Share of |ΔW|² that is not inside `space`, 0 ... 1."""
    change = delta.double()
    total = change.square().sum()
    return 0.0 if total == 0 else float((change - space.project(change)).square().sum() / total)


def drift_bound(delta: Tensor, weight: Tensor, moment: Tensor, space: NullSpace | SoftNullSpace) -> float:
    """What the relative drift cannot exceed, by the space and the size of the update. Our choice.

    For ΔW = ΔW P of a hard space: sqrt(tr(ΔW C ΔWᵀ)) ≤ sqrt(v) |ΔW|, v the largest freed eigenvalue; reached by an
    update along its eigenvector. What of ΔW is not inside, by rounding, is added exactly (triangle inequality), so the
    bound holds for every ΔW. For ΔW = S P of a soft one, S the steps before they were held back: ≤ sqrt(u) |S|, u the
    largest eigenvalue of P C P, at most λ/4 if P was made from C. Relative to sqrt(tr(W C Wᵀ)), as the drift.
    """
    change, C = delta.double(), moment.double()
    size = (weight.double() @ C * weight.double()).sum().sqrt()
    if isinstance(space, SoftNullSpace):
        held = space.contraction.double()
        steps = torch.linalg.solve(held, change.T).T
        return float(_largest(held @ C @ held) ** 0.5 * steps.norm() / size) if steps.any() else 0.0
    inside = space.project(change)
    if not inside.any():
        return relative_drift(change, weight, C)
    cut = freed_eigenvalue(space, C) ** 0.5 * inside.norm() / size
    return float(cut) + relative_drift(change - inside, weight, C)


def _largest(symmetric: Tensor) -> float:
    """Largest eigenvalue of a positive semi-definite matrix."""
    return float(torch.linalg.eigvalsh(symmetric)[-1].clamp(min=0))


def first_order_effect(
    function: Callable[[Mapping[str, Tensor], Inputs], Tensor],
    parameters: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    inputs: Inputs,
) -> tuple[Tensor, Tensor]:
    """Z and its exact first-order change δZ = Σ ∂Z/∂W ΔW for given inputs, in one forward pass (forward-mode autodiff).

    Args:
        function: (parameters, inputs) -> Z, e.g. with `torch.func.functional_call`; must not work in place.
        parameters: all it reads. deltas: the update, of some of them.

    Returns:
        Z and δZ, of the same shape.

    Raises:
        ValueError: an update of a parameter that is not there, of another shape, or no update at all.
    """
    if not deltas:
        raise ValueError("no update given, so no effect to compute")
    for name, delta in deltas.items():
        if name not in parameters or parameters[name].shape != delta.shape:
            found = list(parameters[name].shape) if name in parameters else "no such parameter"
            raise ValueError(f"update of '{name}' {list(delta.shape)}: {found}")
    at = {name: parameters[name].detach() for name in deltas}
    along = {name: delta.detach().to(at[name].dtype) for name, delta in deltas.items()}
    others = {name: value.detach() for name, value in parameters.items() if name not in deltas}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels know no forward mode
        pair = torch.func.jvp(lambda edited: function({**others, **edited}, inputs), (at,), (along,))
    return pair[0], pair[1]
