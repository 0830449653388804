"""The frozen operator: directions of a layer's input space that retained data hardly use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RULES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # eigenvalues [d_in] ascending, threshold -> which directions are free [d_in]
    "energy": lambda values, t: values.cumsum(0) <= t * values.cumsum(0)[-1],  # summed alike, so that 1 frees all
    "relative": lambda values, t: values <= t * values[-1],
    "rank": lambda values, t: torch.arange(len(values)) < round(t * len(values)),
}


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
    """

    basis: Tensor
    used: Tensor

    @property
    def size(self) -> int:
        return self.basis.shape[0]

    @property
    def free(self) -> float:
        """Share of input directions an update may use."""
        return self.basis.shape[1] / self.size

    def projection(self, dtype: torch.dtype) -> Projection:
        """Its projector in the precision of the weights it is to hold."""
        removes = self.used.shape[1] < self.basis.shape[1]
        return Projection((self.used if removes else self.basis).to(dtype).clone(), removes)

    def project(self, delta: Tensor) -> Tensor:
        """delta [d_out, d_in] -> its part inside the null space, in the dtype of `delta`."""
        return self.projection(delta.dtype).project(delta)


@dataclass(frozen=True)
class Projection:
    """The projector of a null space, by whichever of its two bases is smaller: less memory, fewer products.

    Attributes:
        directions: [d_in, k], orthonormal columns.
        removes: whether these are the directions taken away, or those that are left.
    """

    directions: Tensor
    removes: bool

    @property
    def size(self) -> int:
        return self.directions.shape[0]

    def project(self, delta: Tensor) -> Tensor:
        """delta [d_out, d_in] -> its part inside the null space."""
        part = (delta @ self.directions) @ self.directions.T
        return delta - part if self.removes else part


def null_space(moment: Tensor, rule: str, threshold: float) -> NullSpace:
    """Directions that `rule` calls free in a second moment.

    Args:
        moment: symmetric positive semi-definite [d_in, d_in], float64.
        rule: `energy` (the free directions together hold at most `threshold` of the total), `relative` (eigenvalue at
            most `threshold` times the largest) or `rank` (the `threshold` share of directions with the least energy).
            Energy and relative do not depend on the scale of the features.
        threshold: 0 ... 1.

    Raises:
        ValueError: unknown rule, or a threshold outside 0 ... 1.
    """
    if rule not in RULES:
        raise ValueError(f"null-space rule '{rule}' unknown; expected one of {', '.join(RULES)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"null-space threshold {threshold} outside 0 ... 1")
    values, vectors = torch.linalg.eigh(moment.double())
    free = int(RULES[rule](values.clamp(min=0), threshold).sum())  # the first ones: every rule frees from below
    return NullSpace(vectors[:, :free], vectors[:, free:])


def relative_drift(delta: Tensor, weight: Tensor, moment: Tensor) -> float:
    """Exact relative change of a layer's outputs on the data behind `moment`: sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)).

    Args:
        delta: [d_out, d_in]; weight: the layer before the change, same shape; moment: [d_in, d_in].
    """
    change, before, c = delta.double(), weight.double(), moment.double()
    return float(((change @ c * change).sum().clamp(min=0) / (before @ c * before).sum()).sqrt())
