"""Keep an optimiser's step inside given null spaces, exactly.

Projecting the gradient is not enough: Adam's division and weight decay leave the subspace again (measured in the
tests). So the *step* is projected: W <- W_start + (W - W_start) P, after every optimiser step; all earlier steps are in
the subspace already, so this is the same as projecting the last one. A soft space is a contraction, not a projector:
there the last step alone is taken, W <- W_before + (W - W_before) P.

Only the step counts, so gradients may be clipped, accumulated over several backward passes, or computed in lower
precision under autocast; the optimiser may decay weights or call a closure. Hooks go on the optimiser that holds the
weights, not on a wrapper around it (`accelerate`: the raw one).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unsee.subspace.nullspace import NullSpace, Projection, SoftNullSpace

Space = NullSpace | Projection | SoftNullSpace
AnySpace = TypeVar("AnySpace", bound=Space)


@contextmanager
def steps_inside(
    optimiser: Optimizer, spaces: Mapping[nn.Parameter, Space], starts: Mapping[nn.Parameter, Tensor] | None = None
) -> Iterator[None]:
    """While the block runs, every step of `optimiser` on these weights [d_out, d_in] stays in their null space.

    Args:
        starts: the weights as they are now, if somebody holds them already; else they are copied. Soft spaces need
            none: they copy the weight before each step.

    Weights must be kept in float32 or wider: in bfloat16 rounding alone leaks (about 3 % of the layer's output).

    Raises:
        ValueError: a constrained weight is not optimised, is already constrained, has another width or is too coarse.
    """
    _check(optimiser, spaces)
    hard = {weight: space for weight, space in spaces.items() if not space.each_step}
    soft = {weight: space for weight, space in spaces.items() if space.each_step}
    since = dict(starts) if starts is not None else {weight: weight.detach().clone() for weight in hard}

    @torch.no_grad()
    def remember(*_: Any) -> None:
        since.update({weight: weight.detach().clone() for weight in soft})

    @torch.no_grad()
    def project(*_: Any) -> None:
        for weight, space in spaces.items():
            weight.copy_(since[weight] + space.project(weight - since[weight]))

    with ExitStack() as stack:
        stack.enter_context(claimed(spaces))
        if soft:
            stack.callback(optimiser.register_step_pre_hook(remember).remove)
        stack.callback(optimiser.register_step_post_hook(project).remove)
        yield


@contextmanager
def gradients_inside(optimiser: Optimizer, spaces: Mapping[nn.Parameter, Space]) -> Iterator[None]:
    """Project gradients before every step instead of the step itself. **This leaks**: what AdamW makes of a gradient
    inside a null space is not inside (tests: its drift is that of no constraint, within an order of magnitude).

    It is how GPM and others are commonly coded, and stands here to be compared with `steps_inside`, nothing else.

    Raises:
        ValueError: as `steps_inside`; and on a step with a closure, whose gradients come too late to be projected.
    """
    _check(optimiser, spaces)

    def project(_: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if any(value is not None for value in (*arguments[1:], *named.values())):
            raise ValueError("gradients of a closure cannot be projected before the step; call backward first")
        for weight, space in spaces.items():
            if weight.grad is not None:
                weight.grad = space.project(weight.grad)

    with claimed(spaces):
        handle = optimiser.register_step_pre_hook(project)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def claimed(weights: Collection[nn.Parameter]) -> Iterator[None]:
    """Mark these weights as constrained during the block. For everything that restricts an update, also other kinds:
    a mask after a projection leaves the null space, a projection after a mask fills what was masked (tests).

    Raises:
        ValueError: one of them is constrained already.
    """
    if any(getattr(weight, "_unsee_constrained", False) for weight in weights):
        raise ValueError("a weight can carry one constraint only: two projections do not commute")
    for weight in weights:
        weight._unsee_constrained = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for weight in weights:
            del weight._unsee_constrained  # type: ignore[attr-defined]


def by_weight(spaces: Mapping[str, AnySpace], layers: Mapping[str, nn.Module]) -> dict[nn.Parameter, AnySpace]:
    """Spaces by layer name -> spaces by weight, as the constraints take them.

    Args:
        layers: for instance `dict(model.named_modules())`; may hold more than what is constrained.

    Raises:
        ValueError: no names at all, names that match no linear layer (a constraint that silently holds nothing looks
            like one that works), or two names for one weight.
    """
    if not spaces:
        raise ValueError("a constraint of no layers holds nothing")
    if lost := sorted(name for name in spaces if not isinstance(layers.get(name), nn.Linear)):
        known = ", ".join(name for name, layer in layers.items() if isinstance(layer, nn.Linear)) or "none"
        raise ValueError(f"constrained names match no linear layer: {', '.join(lost)}; there are: {known}")
    found: dict[nn.Parameter, AnySpace] = {}
    for name, space in spaces.items():
        weight = layers[name].weight
        assert isinstance(weight, nn.Parameter)
        if weight in found:
            raise ValueError(f"layer '{name}' shares its weight with another; a weight can carry one constraint only")
        found[weight] = space
    return found


def _check(optimiser: Optimizer, spaces: Mapping[nn.Parameter, Space]) -> None:
    optimised = {id(p) for group in optimiser.param_groups for p in group["params"]}
    for weight, space in spaces.items():
        if id(weight) not in optimised:
            raise ValueError("a constrained weight is not among the optimiser's parameters")
        if weight.dim() != 2 or weight.shape[1] != space.size:
            raise ValueError(f"weight {list(weight.shape)} does not fit a null space of {space.size} inputs")
        if torch.finfo(weight.dtype).bits < 32:
            raise ValueError(f"constrained weights must be float32 or wider while training, not {weight.dtype}")
