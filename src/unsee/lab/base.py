"""Stage 1: a generic base that can tell faces (or things) apart before any of them has a name.

With many strangers: two pictures of one stranger attract, pictures of different strangers repel (InfoNCE, 1807.03748).
With photos of few subjects: a linear head tells the subjects apart. Further heads read the visible attributes. All work
on the mean visual token, and the language model is not touched. Our choice of recipe, measured in docs/LOG.md:
pre-training that tells identities apart is what lets the second stage generalise to new pictures.

Also here: how every stage steps. AdamW, its rate once up and down again (Smith & Topin, arXiv 1708.07120), gradients
cut at norm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from unsee.lab.pocket import PocketFamily
from unsee.lab.precision import autocast
from unsee.models.anatomy import VisualModule
from unsee.progress import track

UNKNOWN = -100  # what cross-entropy passes over


@dataclass(frozen=True)
class BaseRecipe:
    objective: Literal["pairs", "classes"] = "pairs"
    steps: int = 800
    pairs: int = 64  # pictures per step: twice this
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    temperature: float = 0.1
    strangers: int = 800
    pictures_per_stranger: int = 8
    things: int = 0  # of each domain of bystanders, beside the strangers, with as many pictures each
    warm_up: float = 0.15  # share of the steps


@dataclass(frozen=True)
class BaseData:
    """Pictures for stage 1.

    Attributes:
        planes: [pictures, 3, side, side].
        groups: who or what is on each picture [pictures], numbered from 0.
        attributes: class of each visible attribute [pictures, attributes], `UNKNOWN` where it is not there to be seen;
            may have no columns.
    """

    planes: Tensor
    groups: Tensor
    attributes: Tensor


def pretrain(
    visual: VisualModule, pocket: PocketFamily, data: BaseData, recipe: BaseRecipe, augment: bool
) -> list[dict[str, float]]:
    """Train tower and projector in place; returns the loss terms of every tenth step."""
    members = [torch.nonzero(data.groups == g).flatten() for g in range(int(data.groups.max()) + 1)]
    width = visual.model.config.get_text_config().hidden_size
    paired = recipe.objective == "pairs"
    if paired:  # a digit has many pictures, and is drawn as often as if each few of them were a stranger's
        members = [few for own in members for few in own.split(recipe.pictures_per_stranger)]
    identity = nn.Linear(width, width if paired else len(members))
    sizes = [int(column.max()) + 1 for column in data.attributes.T]
    heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
    modules = nn.ModuleList([visual.vision_tower, visual.projector, identity, heads])

    def losses(_: int) -> dict[str, Tensor]:
        index = _pairs(members, recipe.pairs) if paired else torch.randint(len(data.planes), (2 * recipe.pairs,))
        planes = data.planes[index]
        if augment:
            planes = augmented(planes)
        with autocast():
            pooled = visual.features(pocket.images(planes)).mean()
            embedded, scores = identity(pooled), [head(pooled) for head in heads]
        groups = data.groups[index]
        told = (
            _info_nce(embedded.float(), groups, recipe.temperature)
            if paired
            else F.cross_entropy(embedded.float(), groups)
        )
        terms = {"identity": told}
        for column, score in enumerate(scores):
            classes = data.attributes[index, column]
            if (classes != UNKNOWN).any():
                terms[f"attribute {column}"] = F.cross_entropy(score.float(), classes, ignore_index=UNKNOWN)
        return terms

    return run_stage(list(modules.parameters()), recipe, "generic base", losses)


def _pairs(members: list[Tensor], pairs: int) -> Tensor:
    """Picture numbers [2 * pairs]: the i-th and the (i + pairs)-th show the same stranger."""
    order = torch.randperm(len(members))
    if len(members) < pairs:
        order = order.repeat(-(-pairs // len(members)))
    first, second = [], []
    for group in order[:pairs].tolist():
        pictures = members[group]
        picked = pictures[torch.randperm(len(pictures))[:2]]
        first.append(picked[0])
        second.append(picked[-1])
    return torch.stack(first + second)


def _info_nce(embedded: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Each picture must find its partner; others of the same stranger are neither right nor wrong."""
    unit = F.normalize(embedded, dim=-1)
    similarity = unit @ unit.T / temperature
    n = len(unit)
    partner = (torch.arange(n) + n // 2) % n
    ignored = groups[:, None] == groups[None]
    ignored[torch.arange(n), partner] = False
    return F.cross_entropy(similarity.masked_fill(ignored, float("-inf")), partner)


def augmented(planes: Tensor) -> Tensor:
    """Random small rotations, shifts, scales, brightness and contrast of [n, 3, side, side]; never mirrored."""
    n = len(planes)
    angle = (torch.rand(n) - 0.5) * 0.35
    scale = 0.8 + 0.35 * torch.rand(n)
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -scale * angle.sin(), scale * angle.sin()
    matrix[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.3
    grid = F.affine_grid(matrix, list(planes.shape), align_corners=False)
    moved = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    mean = moved.mean((1, 2, 3), keepdim=True)
    contrast = 0.6 + 0.8 * torch.rand(n, 1, 1, 1)
    light = (torch.rand(n, 1, 1, 1) - 0.5) * 0.6
    return ((moved - mean) * contrast + mean + light).clamp(-1, 1)


# What all stages share -----------------------------------------------------------------------------------------------


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
