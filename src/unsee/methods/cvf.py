"""Contrastive visual forgetting (CVF), the unconstrained form; `nscvf` adds the retain null space.

Published (arXiv 2605.05909, in words only): the language model is frozen, the visual module is tuned; target
representations are separated from retained ones contrastively, supervised by a frozen reference model, and guided
toward appropriate regions of the feature space. Formula, positives, negatives, layers and weights are not published:
everything below is our reconstruction, and every choice is a setting.

With Z(x) the student's visual tokens, Z0 the reference's, n(.) what is compared of them (`features`), centred and
normalised, d(x) what stands in for x (`positives`), and v the variance of Z0 on retained pictures:

    forget   L_f = -log  e^{n(Zx).n(Z0 d)/t} / (e^{n(Zx).n(Z0 d)/t} + sum_y e^{n(Zx).n(Z0 y)/t}),  y: `negatives`
    pull     L_t = |Zx - Z0 d|^2 / v
    keep     L_m = |Zr - Z0 r|^2 / v
    apart    L_c = cross-entropy of n(Zr) finding n(Z0 r) among other retained and all forget pictures
    looks    L_a = |A(Zx) - A(Z0 x)|^2 / var A, A a linear read-out of visible attributes fitted on the reference

    brace    L_b = dial * L_f + pull * L_t of some targets while others are taught again (`rehearsal`)

    L = dial * L_f + pull * L_t + keep * L_m + apart * L_c + looks * L_a + brace * L_b
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from unsee.errors import BadInput
from unsee.methods.base import FeatureMethod, Plan, count, positive, share
from unsee.methods.features import FeatureStudy
from unsee.methods.readout import LinearReadout
from unsee.methods.rehearsal import Rehearsal
from unsee.methods.standins import Positive, StandIns, mistaken_for
from unsee.models.anatomy import trainable
from unsee.models.packed import Packed, pack
from unsee.subspace.moments import SecondMoment
from unsee.training.loop import Phase, shuffled

CLOSE = 3  # subjects per target
CROWD = 30  # subjects for whom the dial looks at one more neighbour
STEPS, ROUNDS = 280, 7  # fewest steps, and fewest times every forget picture is shown, where `steps` is 0


@dataclass(frozen=True)
class ContrastiveVisualForgetting(FeatureMethod):
    """CVF without a null space. Defaults chosen on people and model seeds 100-102 (docs/LOG.md).

    Attributes:
        last_blocks: vision blocks edited, counted back from the feature layer; the projector always is.
        steps: optimiser steps; 0: as many as show every forget picture `ROUNDS` times, and `STEPS` at least, so that
            a larger request gets more.
        optimiser: `adam`, or `muon` (Jordan et al. 2024), which takes steps with all directions of a weight's update
            equally long. With many targets, or many requests one after another, it gets as far in far fewer steps
            (docs/LOG.md); its learning rate is another, about 1e-2.
        learning_rate: of the optimiser, cosine to zero.
        forget_pictures: forget pictures per step.
        retain_pictures: retained pictures per step.
        close: share of them drawn from those that are most at risk: of the `CLOSE` subjects for whom a target is most
            easily taken, see `standins.mistaken_for`.
        settled: pictures of those forgotten before, if there are any, that every step keeps beside the retained ones,
            relative to their number: they are few among all, and would come back.
        features: what L_f and L_c compare: visual `tokens`, each at its place, their mean over places (`pooled`), or
            the mean of the tower's last hidden states (`blocks`).
        positives: what a forget picture is drawn to, see `standins.StandIns.choose`.
        negatives: what it is pushed off: reference features of its `own` subject, or of `all` single retained pictures
            of this step too.
        temperature: t in L_f and L_c.
        push: first weight of L_f; the dial moves it, for each forgotten subject apart.
        pull, keep, apart, looks: weights of L_t, L_m, L_c, L_a.
        same_looks: a stand-in shares as many visible attributes with the picture as possible, so that what everybody
            can see stays described rightly. Without known attributes it changes nothing.
        dial_target: share of a subject's held-back pictures that may still be recognised, that is, have its own
            reference centroid among their `dial_nearest` nearest, or among the nearest thirtieth of all subjects if
            that is more: in a crowd one is soon not the nearest and still recognised. Every `dial_every` steps that
            subject's weight of L_f is multiplied or divided by `dial_step` to reach it.
        dial_low, dial_high: bounds of that weight.
        brace: weight of L_b, the forgetting of some while others are taught again, see `rehearsal.Rehearsal`; with one
            forgotten subject there are no others, and the term is left out.
        attack_pictures: of the attacked, and of the others, per step.
        attack_steps, attack_size, attack_turn: steps of one rehearsed attack, and how far it may go.
    """

    name: ClassVar[str] = "cvf"
    paper: ClassVar[str] = "NSCVF without its null space (arXiv 2605.05909); loss reconstructed by us"

    last_blocks: int = count(2)
    steps: int = count(0)
    optimiser: Literal["adam", "muon"] = "adam"
    learning_rate: float = positive(6e-3)
    forget_pictures: int = 6
    retain_pictures: int = 16
    close: float = share(0.5)
    settled: float = 1.0
    features: Literal["tokens", "pooled", "blocks"] = "tokens"
    positives: Positive = "unknowing"
    negatives: Literal["own", "all"] = "own"
    temperature: float = positive(0.1)
    push: float = 3.0
    pull: float = 0.5
    keep: float = 400.0
    apart: float = 0.0
    looks: float = 15.0
    same_looks: bool = True
    dial_target: float = share(0.05)
    dial_nearest: int = 2
    dial_every: int = 10
    dial_step: float = positive(1.4)
    dial_low: float = 0.2
    dial_high: float = 8.0
    brace: float = 1.0
    attack_pictures: int = 3
    attack_steps: int = 5
    attack_size: float = 0.01
    attack_turn: float = 2.0

    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        layers = study.visual.editable(self.last_blocks)
        edited = weights_of(layers)
        trainable(edited, study.visual.model)
        optimiser = self.stepping(edited.values())
        steps = self.steps or max(STEPS, -(-ROUNDS * len(study.forget) // self.forget_pictures))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        objective = Objective(self, study)
        return Plan(
            edited=edited,
            phases=[Phase("both", objective.draw, objective.loss)],
            optimiser=optimiser,
            steps=steps,
            schedule=schedule,
            constraint=self.constraint(optimiser, study, layers, moments),
            after_step=objective.turn_dial,
        )

    def stepping(self, weights: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser of these matrices; Muon's steps are as long as Adam's would be at the same rate."""
        if self.optimiser == "muon":
            return torch.optim.Muon(weights, lr=self.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return torch.optim.Adam(weights, lr=self.learning_rate, fused=True)

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
        there = study.forget.subject.device
        self.push = torch.full((study.forgotten,), settings.push, dtype=torch.float, device=there)  # [forget subjects]
        self.stand_ins = StandIns.choose(study, settings.positives, settings.same_looks)
        retain, forget, positive = self._reference_features()
        self.centre = retain.mean(0, keepdim=True)
        self.reference_retain, self.reference_forget, self.positive = (
            F.normalize(vectors - self.centre, dim=-1) for vectors in (retain, forget, positive)
        )
        self.readout = LinearReadout.fit(study) if settings.looks and study.looks else None
        self._forget = shuffled(len(study.forget), settings.forget_pictures)
        near = mistaken_for(study).topk(min(CLOSE, len(study.subjects) - study.forgotten), largest=False).indices
        self._close = torch.isin(study.retain.subject, near.unique() + study.forgotten).nonzero()[:, 0].cpu()
        at_risk = round(settings.close * settings.retain_pictures)
        self._retain_close = shuffled(len(self._close), at_risk)
        settled = torch.tensor(study.settled, device=there)
        self._settled = torch.isin(study.retain.subject, settled).nonzero()[:, 0].cpu()
        gone = round(settings.settled * settings.retain_pictures) if len(self._settled) else 0
        self._retain_settled = shuffled(len(self._settled), gone) if gone else None
        self._retain = shuffled(len(study.retain), settings.retain_pictures - at_risk)
        self.rehearsal = None
        if settings.brace and study.forgotten > 1:
            if settings.features == "blocks":
                raise BadInput("--set features=blocks: a rehearsed attack sees visual tokens only; add --set brace=0")
            edited = weights_of(study.visual.editable(settings.last_blocks))
            limits = settings.attack_pictures, settings.attack_steps, settings.attack_size, settings.attack_turn
            self.rehearsal = Rehearsal(study, edited, *limits)

    def compared(self, blocks: Packed | None, tokens: Packed) -> Tensor:
        """What the contrast compares of the tower's last hidden states and the visual tokens [pictures, size]."""
        if self.settings.features == "blocks":
            assert blocks is not None
            return blocks.mean()
        return tokens.mean() if self.settings.features == "pooled" else self.study.flat(tokens)

    def _reference_features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of retained pictures, forget pictures and stand-ins."""
        study, stand_ins = self.study, self.stand_ins
        if self.settings.features != "blocks":
            found = (study.retain.tokens, study.forget.tokens, stand_ins.tokens)
            retain, forget, positive = (self.compared(None, tokens) for tokens in found)
            return retain, forget, positive
        if stand_ins.hidden is None:
            raise BadInput(
                f"--set features=blocks: positives={self.settings.positives} has no hidden states; use tokens"
            )
        places = (study.retain.hidden, study.forget.hidden, stand_ins.hidden)
        retain, forget, positive = (study.reference_blocks(hidden).mean() for hidden in places)
        return retain, forget, positive

    def draw(self) -> tuple[Tensor, Tensor]:
        """Indices of forget and of retained pictures."""
        retain = [next(self._retain), self._close[next(self._retain_close)]]
        if self._retain_settled is not None:
            retain.append(self._settled[next(self._retain_settled)])
        return next(self._forget), torch.cat(retain)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The named terms of L, already weighted."""
        f, r = batch
        s, study = self.settings, self.study
        blocks = study.visual.run(pack([study.forget.hidden[f], study.retain.hidden[r]]), start=study.cut)
        tokens = study.visual.leave(blocks)
        z_f, z_r = tokens[: len(f)], tokens[len(f) :]
        n_f, n_r = F.normalize(self.compared(blocks, tokens) - self.centre, dim=-1).split([len(f), len(r)])

        terms = {
            "forget": self._forgetting(n_f, f, r),
            "pull": self._pull(z_f, f),
            "keep": s.keep * F.mse_loss(z_r.states, study.retain.tokens[r].states) / study.variance,
        }
        if s.apart:
            terms["apart"] = s.apart * self._apart(n_r, r)
        if self.rehearsal is not None:
            others, seen = self.rehearsal.attack()
            n_o = F.normalize(self.compared(None, seen) - self.centre, dim=-1)
            terms["brace"] = s.brace * (self._forgetting(n_o, others, r) + self._pull(seen, others))
        if self.readout is not None:
            terms["looks"] = s.looks * self.readout.change(study.flat(z_f), study.flat(study.forget.tokens[f]))
        return terms

    def _forgetting(self, n_f: Tensor, f: Tensor, r: Tensor) -> Tensor:
        """dial * L_f of what is compared of forget pictures `f`, beside retained pictures `r`."""
        s, study = self.settings, self.study
        positive = (n_f * self.positive[f]).sum(1, keepdim=True) / s.temperature
        others = study.forget.subject[f][:, None] != study.forget.subject[None]
        negative = (n_f @ self.reference_forget.T / s.temperature).masked_fill(others, float("-inf"))
        if s.negatives == "all":
            theirs = study.retain.subject[r][None] == study.retain.subject[self.stand_ins.picture[f]][:, None]
            single = (n_f @ self.reference_retain[r].T / s.temperature).masked_fill(theirs, float("-inf"))
            negative = torch.cat([negative, single], 1)
        forget = torch.logsumexp(torch.cat([positive, negative], 1), 1) - positive[:, 0]
        return (self.push[study.forget.subject[f]] * forget).mean()

    def _pull(self, z_f: Packed, f: Tensor) -> Tensor:
        """pull * L_t of the tokens of forget pictures `f`."""
        away = F.mse_loss(z_f.states, self.stand_ins.tokens[f].states)
        return self.settings.pull * away / self.study.variance

    def _apart(self, n_r: Tensor, r: Tensor) -> Tensor:
        candidates = torch.cat([self.reference_retain[r], self.reference_forget])
        return F.cross_entropy(n_r @ candidates.T / self.settings.temperature, torch.arange(len(r), device=n_r.device))

    def telling_apart(self, r: Tensor) -> Tensor:
        """L_c of these retained pictures alone (scalar, unweighted)."""
        blocks = self.study.visual.run(self.study.retain.hidden[r], start=self.study.cut)
        compared = self.compared(blocks, self.study.visual.leave(blocks))
        return self._apart(F.normalize(compared - self.centre, dim=-1), r)

    def turn_dial(self, step: int) -> dict[str, float]:
        """Raise the forgetting weight while held-back pictures are still recognised, lower it once they are not."""
        s = self.settings
        if step % s.dial_every or not len(self.study.held_back):
            return {}
        recognised = self.study.recognised(max(s.dial_nearest, len(self.study.subjects) // CROWD))
        for subject in range(len(self.push)):
            own = recognised[self.study.held_back.subject == subject]
            if len(own):
                self.push[subject] *= s.dial_step if own.mean() > s.dial_target else 1 / s.dial_step
        self.push.clamp_(s.dial_low, s.dial_high)
        return {"recognised": recognised.mean().item(), "push": self.push.mean().item()}
