"""What the stages of a pocket model's training have in common: how they step, and what they write down.

AdamW, its rate once up and down again (Smith & Topin, arXiv 1708.07120), gradients cut at norm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from unsee.progress import track


class Stepping(Protocol):
    """What a stage's recipe says of its steps."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warm_up(self) -> float: ...


def run_stage(
    weights: Sequence[nn.Parameter],
    recipe: Stepping,
    label: str,
    losses: Callable[[int], Mapping[str, Tensor]],
    groups: list[dict[str, Any]] | None = None,
) -> list[dict[str, float]]:
    """Train weights in place on the sum of the losses.

    Args:
        label: of the progress bar.
        losses: number of the step, from 0 -> its loss terms by name.
        groups: the weights as an optimiser takes them (`params`), if some have a highest rate (`lr`) of their own.

    Returns:
        the loss terms of every tenth step and of the last.
    """
    optimiser = adamw(groups or [{"params": weights}], recipe)
    highest = [group["lr"] for group in optimiser.param_groups]
    schedule = OneCycleLR(optimiser, highest, total_steps=recipe.steps + 1, pct_start=recipe.warm_up)
    log = []
    for step in track(range(recipe.steps), label):
        terms = losses(step)
        take_step(optimiser, schedule, weights, torch.stack(list(terms.values())).sum())
        if step % 10 == 0 or step == recipe.steps - 1:
            log.append({"step": step + 1} | {name: value.item() for name, value in terms.items()})
    return log


def adamw(groups: list[dict[str, Any]], recipe: Stepping) -> torch.optim.AdamW:
    """The optimiser of every stage."""
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )


def take_step(
    optimiser: torch.optim.Optimizer, schedule: LRScheduler, weights: Sequence[nn.Parameter], loss: Tensor
) -> None:
    """One step down the gradient of a loss."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()
    schedule.step()
