"""Keep an optimiser's step inside given null spaces, exactly.

Projecting the gradient is not enough: Adam's division and weight decay leave the subspace again (measured in the
tests). So the *step* is projected: W <- W_before + (W_after - W_before) P, after every optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unsee.subspace.nullspace import NullSpace


@contextmanager
def steps_inside(optimiser: Optimizer, spaces: Mapping[nn.Parameter, NullSpace]) -> Iterator[None]:
    """While the block runs, every step of `optimiser` on these weights [d_out, d_in] stays in their null space.

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
    before: dict[nn.Parameter, Tensor] = {}

    def remember(*_: Any) -> None:
        before.update((weight, weight.detach().clone()) for weight in spaces)

    @torch.no_grad()
    def project(*_: Any) -> None:
        for weight, space in spaces.items():
            start = before.pop(weight)
            weight.copy_(start + space.project(weight - start))

    handles = [optimiser.register_step_pre_hook(remember), optimiser.register_step_post_hook(project)]
    for weight in spaces:
        weight._unsee_constrained = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight in spaces:
            del weight._unsee_constrained  # type: ignore[attr-defined]
