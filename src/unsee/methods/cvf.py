"""Contrastive visual forgetting (CVF), the unconstrained form; `nscvf` adds the retain null space.

Published (arXiv 2605.05909, in words only): the language model is frozen, the visual module is tuned; target
representations are separated from retained ones contrastively, supervised by a frozen reference model, and guided
toward appropriate regions of the feature space. Formula, positives, negatives, layers and weights are not published:
everything below is our reconstruction, and every choice is a setting.

With Z(x) the student's visual tokens, Z0 the reference's, n(.) centred, flattened and normalised, d(x) a retained
look-alike of x, v the variance of Z0 on retained pictures:

    forget   L_f = -log  e^{n(Zx).n(Z0 d)/t} / (e^{n(Zx).n(Z0 d)/t} + sum_y e^{n(Zx).n(Z0 y)/t}),  y: own forget pictures
    pull     L_t = |Zx - Z0 d|^2 / v
    keep     L_m = |Zr - Z0 r|^2 / v
    apart    L_c = cross-entropy of n(Zr) finding n(Z0 r) among other retained and all forget pictures
    looks    L_a = |A(Zx) - A(Z0 x)|^2 / var A, A a linear read-out of visible attributes fitted on the reference

    L = dial * L_f + pull * L_t + keep * L_m + apart * L_c + looks * L_a
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from unsee.methods.base import FeatureMethod, Plan
from unsee.methods.features import FeatureStudy
from unsee.methods.readout import LinearReadout
from unsee.models.anatomy import trainable
from unsee.subspace.moments import SecondMoment
from unsee.training.loop import Phase, shuffled


@dataclass(frozen=True)
class ContrastiveVisualForgetting(FeatureMethod):
    """CVF without a null space. Defaults chosen on people and model seeds 100-102 (docs/LOG.md).

    Attributes:
        last_blocks: vision blocks edited, counted back from the feature layer; the projector always is.
        steps: optimiser steps.
        learning_rate: of Adam, cosine to zero.
        forget_pictures: forget pictures per step.
        retain_pictures: retained pictures per step.
        temperature: t in L_f and L_c.
        push: first weight of L_f; the dial moves it.
        pull, keep, apart, looks: weights of L_t, L_m, L_c, L_a.
        dial_target: share of held-back forget pictures that may still be nearest their own reference centroid. Every
            `dial_every` steps the weight of L_f is multiplied or divided by `dial_step` to reach it.
        dial_low, dial_high: bounds of that weight.
    """

    name: ClassVar[str] = "cvf"
    paper: ClassVar[str] = "NSCVF without its null space (arXiv 2605.05909); loss reconstructed by us"

    last_blocks: int = 2
    steps: int = 400
    learning_rate: float = 2e-3
    forget_pictures: int = 16
    retain_pictures: int = 64
    temperature: float = 0.1
    push: float = 2.0
    pull: float = 0.5
    keep: float = 100.0
    apart: float = 0.5
    looks: float = 10.0
    dial_target: float = 0.05
    dial_every: int = 10
    dial_step: float = 1.25
    dial_low: float = 1.0
    dial_high: float = 12.0

    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        layers = study.visual.editable(self.last_blocks)
        edited = {f"{name}.weight": layer.weight for name, layer in layers.items()}
        trainable(edited, study.visual.model)
        optimiser = torch.optim.Adam(edited.values(), lr=self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        objective = _Objective(self, study)
        return Plan(
            edited=edited,
            phases=[Phase("both", objective.draw, objective.loss)],
            optimiser=optimiser,
            steps=self.steps,
            schedule=schedule,
            constraint=self.constraint(optimiser, layers, moments),
            after_step=objective.turn_dial,
        )

    def constraint(
        self, optimiser: Optimizer, layers: Mapping[str, nn.Linear], moments: Mapping[str, SecondMoment] | None
    ) -> AbstractContextManager[None]:
        return nullcontext()


class _Objective:
    """The loss above over cached hidden states, and its dial."""

    def __init__(self, settings: ContrastiveVisualForgetting, study: FeatureStudy) -> None:
        self.settings, self.study = settings, study
        self.push = settings.push
        self.reference_forget = study.direction(study.forget.tokens)
        self.reference_retain = study.direction(study.retain.tokens)
        alike = (self.reference_forget @ self.reference_retain.T).argmax(1)
        self.stand_in = study.retain.tokens[alike]  # [forget pictures, tokens, width]
        self.stand_in_direction = self.reference_retain[alike]
        self.readout = LinearReadout.fit(study) if settings.looks and study.looks else None
        self._forget = shuffled(len(study.forget), settings.forget_pictures)
        self._retain = shuffled(len(study.retain), settings.retain_pictures)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Indices of forget and of retained pictures."""
        return next(self._forget), next(self._retain)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        f, r = batch
        s, study = self.settings, self.study
        tokens = study.tail(torch.cat([study.forget.hidden[f], study.retain.hidden[r]]))
        z_f, z_r = tokens[: len(f)], tokens[len(f) :]
        n_f, n_r = study.direction(z_f), study.direction(z_r)

        positive = (n_f * self.stand_in_direction[f]).sum(1, keepdim=True) / s.temperature
        others = study.forget.subject[f][:, None] != study.forget.subject[None]
        negative = (n_f @ self.reference_forget.T / s.temperature).masked_fill(others, float("-inf"))
        forget = torch.logsumexp(torch.cat([positive, negative], 1), 1) - positive[:, 0]
        candidates = torch.cat([self.reference_retain[r], self.reference_forget])
        terms = {
            "forget": self.push * forget.mean(),
            "pull": s.pull * F.mse_loss(z_f, self.stand_in[f]) / study.variance,
            "keep": s.keep * F.mse_loss(z_r, study.retain.tokens[r]) / study.variance,
            "apart": s.apart * F.cross_entropy(n_r @ candidates.T / s.temperature, torch.arange(len(r))),
        }
        if self.readout is not None:
            terms["looks"] = s.looks * self.readout.change(z_f, study.forget.tokens[f])
        return terms

    def turn_dial(self, step: int) -> dict[str, float]:
        """Raise the forgetting weight while held-back pictures are still recognised, lower it once they are not."""
        s = self.settings
        if step % s.dial_every or not len(self.study.held_back):
            return {}
        recognised = self.study.recognised().mean().item()
        factor = s.dial_step if recognised > s.dial_target else 1 / s.dial_step
        self.push = min(max(self.push * factor, s.dial_low), s.dial_high)
        return {"recognised": recognised, "push": self.push}
