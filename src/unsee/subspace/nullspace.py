"""The frozen operator: directions of a layer's input space that retained data hardly use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

RULES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # eigenvalues [d_in] ascending, threshold -> which directions are free [d_in]
    "energy": lambda values, t: values.cumsum(0) <= t * values.cumsum(0)[-1],  # summed alike, so that 1 frees all
    "relative": lambda values, t: values <= t * values[-1],
    "rank": lambda values, t: torch.arange(len(values)) < round(t * len(values)),
    "absolute": lambda values, t: values <= t,
}
SOFT = "soft"  # not a choice of directions, so not in the table


@dataclass(frozen=True)
class NullSpace:
    """An orthonormal basis of the free directions of one layer's inputs.

    For a layer y = W x, an update ΔW with ΔW = ΔW P leaves y unchanged for every x orthogonal to the basis. For
    ViT-sized layers with many retained tokens the exact null space is empty, so the truncation rule *is* the method
    (Adam-NSCL, CVPR 2021; AlphaEdit, 2410.02355 with an absolute threshold).

    Attributes:
        basis: the free directions [d_in, k], float64, orthonormal columns.
        used: the others [d_in, d_in - k], likewise.
        size: d_in.
        each_step: whether it may only be applied to one step at a time; not so, projecting twice is projecting once.
    """

    each_step: ClassVar[bool] = False
    basis: Tensor
    used: Tensor

    @property
    def size(self) -> int:
        return self.basis.shape[0]

    @property
    def free(self) -> float:
        """Share of input directions an update may use."""
        return self.basis.shape[1] / self.size

    @property
    def kept(self) -> int:
        """Number of input directions it may not use."""
        return self.used.shape[1]

    def projection(self, dtype: torch.dtype, device: torch.device | None = None) -> Projection:
        """Its projector in the precision of the weights it is to hold, where they are."""
        removes = self.used.shape[1] < self.basis.shape[1]
        return Projection((self.used if removes else self.basis).to(device, dtype).clone(), removes)

    def project(self, delta: Tensor) -> Tensor:
        """delta [d_out, d_in] -> its part inside the null space, in the dtype of `delta`."""
        return self.projection(delta.dtype, delta.device).project(delta)


@dataclass(frozen=True)
class Projection:
    """The projector of a null space, by whichever of its two bases is smaller: less memory, fewer products.

    Attributes:
        directions: [d_in, k], orthonormal columns.
        removes: whether these are the directions taken away, or those that are left.
        each_step: see `NullSpace`.
    """

    each_step: ClassVar[bool] = False
    directions: Tensor
    removes: bool

    @property
    def size(self) -> int:
        return self.directions.shape[0]

    def project(self, delta: Tensor) -> Tensor:
        """delta [d_out, d_in] -> its part inside the null space."""
        part = (delta @ self.directions) @ self.directions.T
        return delta - part if self.removes else part


@dataclass(frozen=True)
class SoftNullSpace:
    """A ridge in place of a cut: P = λ (C + λ 1)⁻¹, λ = threshold × mean eigenvalue of C.

    A direction of eigenvalue v keeps the share λ / (v + λ) of each step: unused ones all of it, much used ones little,
    none exactly nothing. A symmetric contraction and no projector: applied again and again to the sum of all steps it
    shrinks the edit to nothing (tested), so it is applied to each step once. Of all steps together, S before they are
    held back, ΔW = S P is left, and tr(ΔW C ΔWᵀ) ≤ λ/4 |S|².

    Attributes:
        contraction: P [d_in, d_in].
        each_step: see `NullSpace`.
    """

    each_step: ClassVar[bool] = True
    contraction: Tensor

    @property
    def size(self) -> int:
        return self.contraction.shape[0]

    @property
    def free(self) -> float:
        """Effective share of input directions an update may use: the trace of P over d_in."""
        return self.contraction.double().trace().item() / self.size

    @property
    def kept(self) -> float:
        """Effective number of input directions it may not use."""
        return self.size - self.contraction.double().trace().item()

    def projection(self, dtype: torch.dtype, device: torch.device | None = None) -> SoftNullSpace:
        """The same in the precision of the weights it is to hold, where they are."""
        return SoftNullSpace(self.contraction.to(device, dtype))

    def project(self, delta: Tensor) -> Tensor:
        """One step [d_out, d_in] -> what it leaves of it, in the dtype of `delta`."""
        return delta @ self.contraction.to(delta)


def null_space(moment: Tensor, rule: str, threshold: float) -> NullSpace | SoftNullSpace:
    """Directions that `rule` calls free in a second moment.

    Args:
        moment: symmetric positive semi-definite [d_in, d_in], float64.
        rule: `energy` (the free directions together hold at most `threshold` of the total), `relative` (eigenvalue at
            most `threshold` times the largest), `rank` (the `threshold` share of directions with the least energy),
            `absolute` (eigenvalue at most `threshold`; 2e-2 in AlphaEdit) or `soft` (see `SoftNullSpace`).
            All but `absolute` do not depend on the scale of the features.
        threshold: 0 ... 1; of `absolute` any from 0, of `soft` any above 0.

    Raises:
        ValueError: unknown rule, a threshold outside these limits, or a moment that is not finite.
    """
    if rule not in (*RULES, SOFT):
        raise ValueError(f"null-space rule '{rule}' unknown; expected one of {', '.join([*RULES, SOFT])}")
    check_threshold(rule, threshold)
    if not moment.isfinite().all():
        raise ValueError("null space of a moment that is not finite: the features overflowed; take them in float32")
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp(min=0)
    if rule == SOFT:
        ridge = threshold * values.mean()
        shares = ridge / (values + ridge) if ridge > 0 else torch.ones_like(values)
        return SoftNullSpace(vectors * shares @ vectors.T)
    free = int(RULES[rule](values, threshold).sum())  # the first ones: every rule frees from below
    return NullSpace(vectors[:, :free], vectors[:, free:])


def check_threshold(rule: str, threshold: float) -> None:
    """Whether `threshold` is one of `rule`; settings can be checked with it before anything is computed.

    Raises:
        ValueError: it is not.
    """
    high = math.inf if rule in ("absolute", SOFT) else 1
    above_zero = threshold > 0 if rule == SOFT else threshold >= 0
    if not (above_zero and threshold <= high and math.isfinite(threshold)):
        limits = {"absolute": "0 or more", SOFT: "more than 0"}.get(rule, "0 ... 1")
        raise ValueError(f"threshold={threshold}: expected {limits} for the null-space rule '{rule}'")


def relative_drift(delta: Tensor, weight: Tensor, moment: Tensor) -> float:
    """Exact relative change of a layer's outputs on the data behind `moment`: sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)).

    It is the root of a float64 sum, so what is below about 1e-8 cannot be told from nothing.

    Args:
        delta: [d_out, d_in]; weight: the layer before the change, same shape; moment: [d_in, d_in].
    """
    change, before, c = (x.to(moment.device, torch.float64) for x in (delta, weight, moment))
    moved = (change @ c * change).sum().clamp(min=0)
    return 0.0 if moved == 0 else float((moved / (before @ c * before).sum()).sqrt())
