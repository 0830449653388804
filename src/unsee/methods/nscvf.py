"""NSCVF: contrastive visual forgetting inside the null space of what must be kept (arXiv 2605.05909)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from unsee.methods.base import share
from unsee.methods.cvf import ContrastiveVisualForgetting, weights_of
from unsee.methods.features import FeatureStudy
from unsee.subspace.constrain import steps_inside
from unsee.subspace.moments import SecondMoment


@dataclass(frozen=True)
class NullSpaceConstrainedForgetting(ContrastiveVisualForgetting):
    """CVF whose every optimiser step stays in the retain null space of each edited layer.

    Published: an update confined to the null space of retained knowledge. Which activations, the threshold and the
    layers are not; ours are the inputs of each edited layer on retained pictures, uncentred, cut by `rule`.

    Attributes:
        rule: how the free directions are chosen, see `subspace.null_space`.
        threshold: of that rule.
    """

    name: ClassVar[str] = "nscvf"
    paper: ClassVar[str] = "NSCVF (arXiv 2605.05909); loss, layers and threshold reconstructed by us"
    needs_moments: ClassVar[bool] = True

    rule: Literal["energy", "relative", "rank"] = "energy"
    threshold: float = share(0.1)

    def constraint(
        self,
        optimiser: Optimizer,
        study: FeatureStudy,
        layers: Mapping[str, nn.Linear],
        moments: Mapping[str, SecondMoment] | None,
    ) -> AbstractContextManager[None]:
        if moments is None:
            raise ValueError("nscvf needs the second moments of the retained pictures")
        weights = weights_of(layers)
        spaces = {
            weight: moments[name.removesuffix(".weight")].null_space(self.rule, self.threshold).projection(weight.dtype)
            for name, weight in weights.items()
        }
        reference = weights_of(study.reference.editable(self.last_blocks))
        return steps_inside(optimiser, spaces, {weight: reference[name] for name, weight in weights.items()})
