"""How the stages of a pocket model step: AdamW, its rate once up and down again (Smith & Topin, arXiv 1708.07120)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import OneCycleLR


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


def one_cycle(groups: list[dict[str, Any]], recipe: Stepping) -> tuple[torch.optim.AdamW, OneCycleLR]:
    """The optimiser and its schedule; groups of weights (`params`) may have a highest rate (`lr`) of their own."""
    optimiser = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    highest = [group["lr"] for group in optimiser.param_groups]
    return optimiser, OneCycleLR(optimiser, highest, total_steps=recipe.steps + 1, pct_start=recipe.warm_up)
