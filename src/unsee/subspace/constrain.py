"""Keep an optimiser's step inside given null spaces, exactly.

Projecting the gradient is not enough: Adam's division and weight decay leave the subspace again (measured in the
tests). So the *step* is projected: W <- W_start + (W - W_start) P, after every optimiser step; all earlier steps are in
the subspace already, so this is the same as projecting the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unsee.subspace.nullspace import Projection


@contextmanager
def steps_inside(
    optimiser: Optimizer, spaces: Mapping[nn.Parameter, Projection], starts: Mapping[nn.Parameter, Tensor] | None = None
) -> Iterator[None]:
    """While the block runs, every step of `optimiser` on these weights [d_out, d_in] stays in their null space.

    Args:
        starts: the weights as they are now, if somebody holds them already; else they are copied.

    Weights must be kept in float32 or wider: in bfloat16 rounding alone leaks (about 3 % of the layer's output).

    Raises:
        ValueError: a constrained weight is not optimised, is already constrained, has another width or is too coarse.
    """
    optimised = {id(p) for group in optimiser.param_groups for p in group["params"]}
    for weight, space in spaces.items():
        if id(weight) not in optimised:
            raise ValueError("a constrained weight is not among the optimiser's parameters")
        if getattr(weight, "_unsee_constrained", False):
            raise ValueError("a weight can carry one constraint only: two projections do not commute")
        if weight.dim() != 2 or weight.shape[1] != space.size:
            raise ValueError(f"weight {list(weight.shape)} does not fit a null space of {space.size} inputs")
        if torch.finfo(weight.dtype).bits < 32:
            raise ValueError(f"constrained weights must be float32 or wider while training, not {weight.dtype}")

    if starts is None:
        starts = {weight: weight.detach().clone() for weight in spaces}

    @torch.no_grad()
    def project(*_: Any) -> None:
        for weight, space in spaces.items():
            weight.copy_(starts[weight] + space.project(weight - starts[weight]))

    handle = optimiser.register_step_post_hook(project)
    for weight in spaces:
        weight._unsee_constrained = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        handle.remove()
        for weight in spaces:
            del weight._unsee_constrained  # type: ignore[attr-defined]
