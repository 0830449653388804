"""NSCVF: contrastive visual forgetting inside the null space of what must be kept (arXiv 2605.05909)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.optim import Optimizer

from unsee.methods.cvf import ContrastiveObjective, ContrastiveVisualForgetting, weights_of
from unsee.methods.parts.base import count
from unsee.methods.parts.features import FeatureStudy
from unsee.models.anatomy import trainable
from unsee.progress import track
from unsee.subspace.constrain import by_weight, gradients_inside, steps_inside
from unsee.subspace.gradients import GradientMoments
from unsee.subspace.joined import JoinedMoments, Joining
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace, check_threshold


@dataclass(frozen=True)
class NullSpaceConstrainedForgetting(ContrastiveVisualForgetting):
    """CVF whose every optimiser step stays in the retain null space of each edited layer.

    Published: an update confined to the null space of retained knowledge. Which activations, the threshold and the
    layers are not; ours are the inputs of each edited layer on retained pictures, uncentred, weighed or cut by `rule`.

    Attributes:
        rule: how the free directions are chosen, see `subspace.null_space`. By default none is closed: the more often
            retained pictures use a direction, the less of each step is let through. A hard cut (`energy` 0.05, the
            default before) closes most of what people differ by; what relearning brings back then spreads twice as
            far (docs/LOG.md).
        threshold: of that rule; another rule needs another threshold.
        centred: cut the covariance of the inputs instead of their second moment: their mean is then not protected.
        basis: what the null space is of: layer `inputs`, or gradients of L_c (the loss that tells retained pictures
            apart) `gradients_stacked` over batches or `gradients_averaged`, as a public review reads the paper.
        projects: every `step` of the optimiser (exact), or every `gradient` (leaks; what is commonly done).
        moment_pictures: retained pictures the statistics are taken from, evenly spaced; 0: all.
        joining: how the statistics of what was forgotten before, if the model remembers them, join those of what must
            stay, see `subspace.joined`.
    """

    name: ClassVar[str] = "nscvf"
    paper: ClassVar[str] = "NSCVF (arXiv 2605.05909); loss, layers and threshold reconstructed by us"
    needs_moments: ClassVar[bool] = True

    rule: Literal["energy", "relative", "rank", "absolute", "soft"] = "soft"
    threshold: float = 1.0
    centred: bool = False
    basis: Literal["inputs", "gradients_stacked", "gradients_averaged"] = "inputs"
    projects: Literal["step", "gradient"] = "step"
    moment_pictures: int = count(600)
    joining: Joining = "cut"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.rule, self.threshold)
        if self.rule in ("energy", "relative", "rank") and self.threshold >= 1:
            raise ValueError(
                f"threshold={self.threshold}: with the rule {self.rule} it frees every direction, which is cvf; "
                "expected less than 1, for instance threshold=0.05"
            )

    def moments(self, study: FeatureStudy) -> Mapping[str, SecondMoment]:
        layers = study.visual.editable(self.last_blocks)
        if self.basis == "inputs":
            return study.moments(layers, self.moment_pictures)
        trainable(weights_of(layers), study.visual.model)
        objective = ContrastiveObjective(self, study)
        gathered = GradientMoments(layers, "stacked" if self.basis == "gradients_stacked" else "averaged")
        order = torch.randperm(len(study.retain))[: self.moment_pictures or None]
        for pictures in track(order.split(self.retain_pictures), "gradients of retained pictures"):
            objective.contrast(pictures).backward()
            gathered.add()
        return gathered.moments()

    def space(self, moment: SecondMoment) -> NullSpace | SoftNullSpace:
        return moment.null_space(self.rule, self.threshold, self.centred)

    def joined(self, kept: Mapping[str, SecondMoment], gone: Mapping[str, SecondMoment]) -> Mapping[str, SecondMoment]:
        return JoinedMoments(kept, gone, self.joining)

    def constraint(
        self, optimiser: Optimizer, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None
    ) -> AbstractContextManager[None]:
        if moments is None:
            raise ValueError("nscvf needs the second moments of the retained pictures")
        layers = study.visual.editable(self.last_blocks)
        weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
        projections = {
            name: self.space(moments[name]).projection(weight.dtype, weight.device) for name, weight in weights.items()
        }
        spaces = by_weight(projections, layers)
        if self.projects == "gradient":
            return gradients_inside(optimiser, spaces)
        reference = study.reference.editable(self.last_blocks)
        return steps_inside(optimiser, spaces, {w: reference[name].weight for name, w in weights.items()})
