"""Contrastive visual forgetting (CVF), the unconstrained form; `nscvf` adds the retain null space.

Published (arXiv 2605.05909, in words only): the language model is frozen, the visual module is tuned; target
representations are separated from retained ones contrastively, supervised by a frozen reference model, and guided
toward appropriate regions of the feature space. Formula, positives, negatives, layers and weights are not published:
everything below is our reconstruction, and every choice is a setting.

With Z(x) the student's visual tokens, Z0 the reference's, n(.) centred, flattened and normalised, d(x) the retained
picture that stands in for x, v the variance of Z0 on retained pictures, and m mixtures of two retained pictures'
hidden states below the edited blocks:

    forget   L_f = -log  e^{n(Zx).n(Z0 d)/t} / (e^{n(Zx).n(Z0 d)/t} + sum_y e^{n(Zx).n(Z0 y)/t}),  y: same subject
    pull     L_t = |Zx - Z0 d|^2 / v
    keep     L_m = |Zr - Z0 r|^2 / v,  one mean over retained pictures r and mixtures m
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

from unsee.methods.base import FeatureMethod, Plan, count, positive, share
from unsee.methods.features import FeatureStudy
from unsee.methods.readout import LinearReadout
from unsee.models.anatomy import trainable
from unsee.models.packed import Grid, Packed, pack
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
        mixtures: mixtures of two retained pictures per step; they keep the function in place between the pictures.
        temperature: t in L_f and L_c.
        push: first weight of L_f; the dial moves it, for each forgotten subject apart.
        pull, keep, apart, looks: weights of L_t, L_m, L_c, L_a.
        same_looks: a stand-in shares as many visible attributes with the picture as possible, so that what everybody
            can see stays described rightly. Without known attributes it changes nothing.
        unlike_answers: a stand-in preferably belongs to somebody who shares no answer with the target; else that answer
            would survive by coincidence.
        dial_target: share of a subject's held-back pictures that may still be recognised, that is, have its own
            reference centroid among their `dial_nearest` nearest. Every `dial_every` steps that subject's weight of
            L_f is multiplied or divided by `dial_step` to reach it.
        dial_low, dial_high: bounds of that weight.
    """

    name: ClassVar[str] = "cvf"
    paper: ClassVar[str] = "NSCVF without its null space (arXiv 2605.05909); loss reconstructed by us"

    last_blocks: int = count(2)
    steps: int = 400
    learning_rate: float = positive(4e-3)
    forget_pictures: int = 16
    retain_pictures: int = 48
    mixtures: int = count(32)
    temperature: float = positive(0.1)
    push: float = 1.0
    pull: float = 0.5
    keep: float = 150.0
    apart: float = 0.5
    looks: float = 10.0
    same_looks: bool = True
    unlike_answers: bool = True
    dial_target: float = share(0.05)
    dial_nearest: int = 2
    dial_every: int = 10
    dial_step: float = positive(1.25)
    dial_low: float = 0.2
    dial_high: float = 4.0

    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        layers = study.visual.editable(self.last_blocks)
        edited = weights_of(layers)
        trainable(edited, study.visual.model)
        optimiser = torch.optim.Adam(edited.values(), lr=self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        objective = Objective(self, study)
        return Plan(
            edited=edited,
            phases=[Phase("both", objective.draw, objective.loss)],
            optimiser=optimiser,
            steps=self.steps,
            schedule=schedule,
            constraint=self.constraint(optimiser, study, layers, moments),
            after_step=objective.turn_dial,
        )

    def constraint(
        self,
        optimiser: Optimizer,
        study: FeatureStudy,
        layers: Mapping[str, nn.Linear],
        moments: Mapping[str, SecondMoment] | None,
    ) -> AbstractContextManager[None]:
        """What holds the steps back; nothing in `cvf`."""
        return nullcontext()


def weights_of(layers: Mapping[str, nn.Linear]) -> dict[str, nn.Parameter]:
    """The weights (not the biases) of linear layers, by full parameter name."""
    return {f"{name}.weight": layer.get_parameter("weight") for name, layer in layers.items()}


class Objective:
    """The loss above over cached hidden states, and its dial."""

    def __init__(self, settings: ContrastiveVisualForgetting, study: FeatureStudy) -> None:
        self.settings, self.study = settings, study
        self.push = torch.full((int(study.forget.subject.max()) + 1,), settings.push)  # [forget subjects]
        self.reference_forget = study.direction(study.forget.tokens)
        self.reference_retain = study.direction(study.retain.tokens)
        chosen = self.stand_ins()
        self.stand_in = study.retain.tokens[chosen].on(study.forget.tokens.grids)  # one for each forget picture
        self.stand_in_direction = self.reference_retain[chosen]
        self.readout = LinearReadout.fit(study) if settings.looks and study.looks else None
        self._forget = shuffled(len(study.forget), settings.forget_pictures)
        self._retain = shuffled(len(study.retain), settings.retain_pictures)
        self._alike = _of_the_same_size(study.retain.hidden)

    def stand_ins(self) -> Tensor:
        """Index of the retained picture that stands in for each forget picture [forget pictures].

        Most visible attributes in common first, then nobody who shares an answer, then the most alike features.
        """
        study, count = self.study, len(self.study.forget)
        score = self.reference_forget @ self.reference_retain.T  # cosines: within -1 ... 1
        if self.settings.unlike_answers:
            score = score - 3.0 * study.shared[study.forget.subject][:, study.retain.subject]
        if self.settings.same_looks:
            for table in study.looks:
                score = score + 6.0 * (table[:count] @ table[count:].T)
        return score.argmax(1)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices of forget and of retained pictures, pairs of retained pictures to mix, and in which proportion.

        Only pictures of the same size can be mixed.
        """
        first, second = torch.randint(len(self.study.retain), (2, self.settings.mixtures))
        alike = [self._alike[i] for i in first.tolist()]
        second = torch.tensor([own[i % len(own)] for own, i in zip(alike, second.tolist(), strict=True)]).long()
        pairs = torch.stack([first, second])
        return next(self._forget), next(self._retain), pairs, torch.rand(self.settings.mixtures)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """The named terms of L, already weighted."""
        f, r, pairs, part = batch
        s, study = self.settings, self.study
        shown, kept = [study.forget.hidden[f], study.retain.hidden[r]], [study.retain.tokens[r]]
        if s.mixtures:
            first, second = study.retain.hidden[pairs[0]], study.retain.hidden[pairs[1]]
            each = part.repeat_interleave(torch.tensor(first.lengths))[:, None]  # [positions, 1]
            mixed = first.with_states(torch.lerp(first.states, second.states, each))
            shown, kept = [*shown, mixed], [*kept, study.reference_tail(mixed)]
        tokens = study.tail(pack(shown))
        z_f, z_kept = tokens[: len(f)], tokens[len(f) :]
        n_f, n_r = study.direction(z_f), study.direction(z_kept[: len(r)])

        positive = (n_f * self.stand_in_direction[f]).sum(1, keepdim=True) / s.temperature
        others = study.forget.subject[f][:, None] != study.forget.subject[None]
        negative = (n_f @ self.reference_forget.T / s.temperature).masked_fill(others, float("-inf"))
        forget = torch.logsumexp(torch.cat([positive, negative], 1), 1) - positive[:, 0]
        candidates = torch.cat([self.reference_retain[r], self.reference_forget])
        terms = {
            "forget": (self.push[study.forget.subject[f]] * forget).mean(),
            "pull": s.pull * F.mse_loss(z_f.states, self.stand_in[f].states) / study.variance,
            "keep": s.keep * F.mse_loss(z_kept.states, pack(kept).states) / study.variance,
            "apart": s.apart * F.cross_entropy(n_r @ candidates.T / s.temperature, torch.arange(len(r))),
        }
        if self.readout is not None:
            terms["looks"] = s.looks * self.readout.change(study.flat(z_f), study.flat(study.forget.tokens[f]))
        return terms

    def turn_dial(self, step: int) -> dict[str, float]:
        """Raise the forgetting weight while held-back pictures are still recognised, lower it once they are not."""
        s = self.settings
        if step % s.dial_every or not len(self.study.held_back):
            return {}
        recognised = self.study.recognised(s.dial_nearest)
        for subject in range(len(self.push)):
            own = recognised[self.study.held_back.subject == subject]
            if len(own):
                self.push[subject] *= s.dial_step if own.mean() > s.dial_target else 1 / s.dial_step
        self.push.clamp_(s.dial_low, s.dial_high)
        return {"recognised": recognised.mean().item(), "push": self.push.mean().item()}


def _of_the_same_size(pictures: Packed) -> list[list[int]]:
    """For every picture the pictures of its size, itself among them."""
    groups: dict[Grid, list[int]] = {}
    for i, grid in enumerate(pictures.grids):
        groups.setdefault(grid, []).append(i)
    return [groups[grid] for grid in pictures.grids]
