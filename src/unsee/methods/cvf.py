"""Contrastive visual forgetting (CVF), the unconstrained form; `nscvf` adds the retain null space.

Published (arXiv 2605.05909, in words only): the language model is frozen, the visual module is tuned; target
representations are separated from retained ones contrastively, supervised by a frozen reference model, and guided
toward appropriate regions of the feature space. Formula, positives, negatives, layers and weights are not published:
everything below is our reconstruction, and every choice is a setting.

With Z(x) the student's visual tokens, Z0 the reference's, n(.) what is compared of them (`features`), centred and
normalised, d(x) what stands in for x (`positives`), and v the variance of Z0 on retained pictures:

    forgetting    L_f = -log  e^{n(Zx).n(Z0 d)/t} / (e^{n(Zx).n(Z0 d)/t} + sum_y e^{n(Zx).n(Z0 y)/t}),  y: `negatives`
    alignment     L_t = |Zx - Z0 d|^2 / v
    retention     L_m = |Zr - Z0 r|^2 / v, and likewise of what is in `also_keep`
    contrast      L_c = cross-entropy of n(Zr) finding n(Z0 r) among other retained and all forget pictures
    attributes    L_a = |A(Zx) - A(Z0 x)|^2 / var A, A a linear read-out of visible attributes fitted on the reference
    relearning    L_b = forget_weight * L_f + alignment_weight * L_t of some targets while others are taught again, see
                        `simulated_relearning`

    L = forget_weight * L_f + alignment_weight * L_t + retain_weight * L_m
        + contrast_weight * L_c + attribute_weight * L_a + relearning_weight * L_b

The weight of L_f is adaptive: each target has its own, which follows how well the target is still recognised.
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
from unsee.methods.parts.base import FeatureMethod, Plan, count, positive, setting, share
from unsee.methods.parts.features import FeatureStudy
from unsee.methods.parts.readout import LinearReadout
from unsee.methods.parts.simulated_relearning import SimulatedRelearning
from unsee.methods.parts.stand_ins import Positive, StandIns, mistaken_for
from unsee.methods.parts.variation import Variation
from unsee.models.anatomy import trainable
from unsee.models.packed import Packed, pack
from unsee.subspace.moments import SecondMoment
from unsee.training.loop import Phase, shuffled

NEAREST = 3  # subjects per forget picture
CROWD = 30  # subjects for whom one more neighbour is looked at when a weight adapts
FEW = 10  # pictures of a target: with fewer they are varied
VIEWS = 2  # of each varied picture, when a weight adapts
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
        nearest_share: share of them drawn from those that are most at risk: of the `NEAREST` subjects for whom a forget
            picture is most easily taken, see `stand_ins.mistaken_for`. Pictures of one target differ, so together these
            may be half of all subjects.
        earlier_share: pictures of those forgotten before, if there are any, that every step keeps beside the retained
            ones, relative to their number: they are few among all, and would come back.
        features: what L_f and L_c compare: visual `tokens`, each at its place, their mean over places (`pooled`), or
            the mean of the tower's last hidden states (`blocks`).
        positives: what a forget picture is drawn to, see `stand_ins.StandIns.choose`.
        negatives: what it is pushed off: reference features of its `own` subject, or of `all` single retained pictures
            of this step too.
        temperature: t in L_f and L_c.
        forget_weight: first weight of L_f; it adapts, for each forgotten subject by itself.
        alignment_weight, retain_weight, contrast_weight, attribute_weight: weights of L_t, L_m, L_c, L_a.
        same_attributes: a stand-in shares as many visible attributes with the picture as possible, so that what
            everybody can see stays described rightly. Without known attributes it changes nothing.
        adapt_target: share of a subject's held-back pictures that may still be recognised, that is, have its own
            reference centroid among their `adapt_nearest` nearest, or among the nearest thirtieth of all subjects if
            that is more: in a crowd one is soon not the nearest and still recognised. Every `adapt_every` steps that
            subject's weight of L_f is multiplied or divided by `adapt_factor` to reach it. Where pictures are varied,
            varied forget pictures are looked at too, and twice as many neighbours.
        forget_weight_low, forget_weight_high: bounds of that weight.
        variation: whether pictures are varied as those of others vary, see `variation.Variation`: where there are
            `few` of a target, fewer than `FEW` on average, `always` or `never`.
        relearning_weight: weight of L_b, the forgetting of some while others are taught again, see
            `simulated_relearning.SimulatedRelearning`; with one forgotten subject there are no others, and the term is
            left out.
        relearning_pictures: of the attacked, and of the others, per step.
        relearning_steps, relearning_size, relearning_turn: steps of one simulated attack, and how far it may go.
        also_keep: folder with pictures of anything else that must be seen as before, whatever they show; empty: none.
            As many as `retain_pictures` of them are held in every step, by L_m.
    """

    name: ClassVar[str] = "cvf"
    paper: ClassVar[str] = "NSCVF without its null space (arXiv 2605.05909); loss reconstructed by us"

    last_blocks: int = count(2)
    steps: int = count(0)
    optimiser: Literal["adam", "muon"] = "adam"
    learning_rate: float = positive(6e-3)
    forget_pictures: int = 6
    retain_pictures: int = 16
    nearest_share: float = share(0.5, was="close")
    earlier_share: float = setting(1.0, was="settled")
    features: Literal["tokens", "pooled", "blocks"] = "tokens"
    positives: Positive = "unknowing"
    negatives: Literal["own", "all"] = "own"
    temperature: float = positive(0.1)
    forget_weight: float = setting(3.0, was="push")
    alignment_weight: float = setting(0.5, was="pull")
    retain_weight: float = setting(400.0, was="keep")
    contrast_weight: float = setting(0.0, was="apart")
    attribute_weight: float = setting(15.0, was="looks")
    same_attributes: bool = setting(True, was="same_looks")
    adapt_target: float = share(0.05, was="dial_target")
    adapt_nearest: int = setting(2, was="dial_nearest")
    adapt_every: int = setting(10, was="dial_every")
    adapt_factor: float = positive(1.4, was="dial_step")
    forget_weight_low: float = setting(0.2, was="dial_low")
    forget_weight_high: float = setting(8.0, was="dial_high")
    variation: Literal["few", "always", "never"] = "few"
    relearning_weight: float = setting(1.0, was="brace")
    relearning_pictures: int = setting(3, was="attack_pictures")
    relearning_steps: int = setting(5, was="attack_steps")
    relearning_size: float = setting(0.01, was="attack_size")
    relearning_turn: float = setting(2.0, was="attack_turn")
    also_keep: str = ""

    @property
    def unlabelled(self) -> str:
        return self.also_keep

    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        edited = weights_of(study.visual.editable(self.last_blocks))
        trainable(edited, study.visual.model)
        optimiser = self.stepping(edited.values())
        steps = self.steps or max(STEPS, -(-ROUNDS * len(study.forget) // self.forget_pictures))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        objective = ContrastiveObjective(self, study)
        return Plan(
            edited=edited,
            phases=[Phase("both", objective.draw, objective.loss)],
            optimiser=optimiser,
            steps=steps,
            schedule=schedule,
            constraint=self.constraint(optimiser, study, moments),
            after_step=objective.adapt,
        )

    def stepping(self, weights: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser of these matrices; Muon's steps are as long as Adam's would be at the same rate."""
        if self.optimiser == "muon":
            return torch.optim.Muon(weights, lr=self.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return torch.optim.Adam(weights, lr=self.learning_rate, fused=True)

    def constraint(
        self, optimiser: Optimizer, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None
    ) -> AbstractContextManager[None]:
        """What holds the steps back; nothing in `cvf`."""
        return nullcontext()


def weights_of(layers: Mapping[str, nn.Linear]) -> dict[str, nn.Parameter]:
    """The weights (not the biases) of linear layers, by full parameter name."""
    return {f"{name}.weight": layer.get_parameter("weight") for name, layer in layers.items()}


class ContrastiveObjective:
    """The loss above over cached hidden states, and its adaptive weights.

    Attributes:
        forget_weight: the present weight of L_f [forget subjects].
    """

    def __init__(self, settings: ContrastiveVisualForgetting, study: FeatureStudy) -> None:
        self.settings, self.study = settings, study
        there = study.forget.subject.device
        self.forget_weight = torch.full((study.forgotten,), settings.forget_weight, dtype=torch.float, device=there)
        self.stand_ins = StandIns.choose(study, settings.positives, settings.same_attributes)
        retain, forget, positive = self._reference_features()
        self.centre = retain.mean(0, keepdim=True)
        self.reference_retain, self.reference_forget, self.positive = (
            F.normalize(vectors - self.centre, dim=-1) for vectors in (retain, forget, positive)
        )
        self.readout = LinearReadout.fit(study) if settings.attribute_weight and study.attributes else None
        self._forget = shuffled(len(study.forget), settings.forget_pictures)
        near = mistaken_for(study).topk(min(NEAREST, len(study.subjects) - study.forgotten), largest=False).indices
        self._nearest = torch.isin(study.retain.subject, near.unique() + study.forgotten).nonzero()[:, 0].cpu()
        at_risk = round(settings.nearest_share * settings.retain_pictures)
        self._retain_nearest = shuffled(len(self._nearest), at_risk)
        earlier = torch.tensor(study.earlier, device=there)
        self._earlier = torch.isin(study.retain.subject, earlier).nonzero()[:, 0].cpu()
        gone = round(settings.earlier_share * settings.retain_pictures) if len(self._earlier) else 0
        self._retain_earlier = shuffled(len(self._earlier), gone) if gone else None
        self._retain = shuffled(len(study.retain), settings.retain_pictures - at_risk)
        self._others = shuffled(len(study.others), settings.retain_pictures) if len(study.others) else None
        few = len(study.forget) < FEW * study.forgotten
        varied = settings.variation == "always" or (settings.variation == "few" and few)
        self.variation = Variation(study) if varied else None
        if varied:  # retained tokens are those of the first model where a line of edits keeps to it
            apart = study.retain.tokens.states - study.reference_tail(study.retain.hidden).states
            self._apart = study.retain.tokens.with_states(apart)
        self.relearning = None
        if settings.relearning_weight and study.forgotten > 1:
            if settings.features == "blocks":
                raise BadInput(
                    "--set features=blocks: simulated relearning sees visual tokens only; add --set relearning_weight=0"
                )
            edited = weights_of(study.visual.editable(settings.last_blocks))
            s = settings
            limits = s.relearning_pictures, s.relearning_steps, s.relearning_size, s.relearning_turn
            self.relearning = SimulatedRelearning(study, edited, *limits)

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
        retain = [next(self._retain), self._nearest[next(self._retain_nearest)]]
        if self._retain_earlier is not None:
            retain.append(self._earlier[next(self._retain_earlier)])
        return next(self._forget), torch.cat(retain)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The named terms of L, already weighted."""
        f, r = batch
        s, study = self.settings, self.study
        hidden, before_f, before_r = self._seen(f, r)
        blocks = study.visual.run(hidden, start=study.cut)
        tokens = study.visual.leave(blocks)
        z_f, z_r = tokens[: len(f)], tokens[len(f) :]
        n_f, n_r = F.normalize(self.compared(blocks, tokens) - self.centre, dim=-1).split([len(f), len(r)])

        terms = {
            "forget": self._forgetting(n_f, f, r),
            "alignment": self._alignment(z_f, f),
            "retain": s.retain_weight * F.mse_loss(z_r.states, before_r.states) / study.variance,
        }
        if self._others is not None:
            o = next(self._others)
            away = F.mse_loss(study.tail(study.others.hidden[o]).states, study.others.tokens[o].states)
            terms["others"] = s.retain_weight * away / study.variance
        if s.contrast_weight:
            terms["contrast"] = s.contrast_weight * self._contrast(n_r, r)
        if self.relearning is not None:
            others, seen = self.relearning.attack()
            n_o = F.normalize(self.compared(None, seen) - self.centre, dim=-1)
            held = self._forgetting(n_o, others, r) + self._alignment(seen, others)
            terms["relearning"] = s.relearning_weight * held
        if self.readout is not None:
            change = self.readout.change(study.flat(z_f), study.flat(before_f))
            terms["attributes"] = s.attribute_weight * change
        return terms

    def _seen(self, f: Tensor, r: Tensor) -> tuple[Packed, Packed, Packed]:
        """Hidden states of forget, then of retained pictures, and the tokens that both had before."""
        study = self.study
        if self.variation is None:
            hidden = pack([study.forget.hidden[f], study.retain.hidden[r]])
            return hidden, study.forget.tokens[f], study.retain.tokens[r]
        hidden = pack([self.variation.of_forget(f), self.variation.of_retain(r)])
        before = study.reference_tail(hidden)
        kept = before[len(f) :]
        return hidden, before[: len(f)], kept.with_states(kept.states + self._apart[r].states)

    def _forgetting(self, n_f: Tensor, f: Tensor, r: Tensor) -> Tensor:
        """forget_weight * L_f of what is compared of forget pictures `f`, beside retained pictures `r`."""
        s, study = self.settings, self.study
        positive = (n_f * self.positive[f]).sum(1, keepdim=True) / s.temperature
        others = study.forget.subject[f][:, None] != study.forget.subject[None]
        negative = (n_f @ self.reference_forget.T / s.temperature).masked_fill(others, float("-inf"))
        if s.negatives == "all":
            theirs = study.retain.subject[r][None] == study.retain.subject[self.stand_ins.picture[f]][:, None]
            single = (n_f @ self.reference_retain[r].T / s.temperature).masked_fill(theirs, float("-inf"))
            negative = torch.cat([negative, single], 1)
        forget = torch.logsumexp(torch.cat([positive, negative], 1), 1) - positive[:, 0]
        return (self.forget_weight[study.forget.subject[f]] * forget).mean()

    def _alignment(self, z_f: Packed, f: Tensor) -> Tensor:
        """alignment_weight * L_t of the tokens of forget pictures `f`."""
        away = F.mse_loss(z_f.states, self.stand_ins.tokens[f].states)
        return self.settings.alignment_weight * away / self.study.variance

    def _contrast(self, n_r: Tensor, r: Tensor) -> Tensor:
        candidates = torch.cat([self.reference_retain[r], self.reference_forget])
        return F.cross_entropy(n_r @ candidates.T / self.settings.temperature, torch.arange(len(r), device=n_r.device))

    def contrast(self, r: Tensor) -> Tensor:
        """L_c of these retained pictures alone (scalar, unweighted)."""
        blocks = self.study.visual.run(self.study.retain.hidden[r], start=self.study.cut)
        compared = self.compared(blocks, self.study.visual.leave(blocks))
        return self._contrast(F.normalize(compared - self.centre, dim=-1), r)

    def adapt(self, step: int) -> dict[str, float]:
        """Raise the forgetting weight while held-back pictures are still recognised, lower it once they are not."""
        s, study = self.settings, self.study
        if step % s.adapt_every or not (len(study.held_back) or self.variation):
            return {}
        nearest = max(s.adapt_nearest, len(study.subjects) // CROWD)
        looked_at = [(study.held_back.hidden, study.held_back.subject, nearest)] if len(study.held_back) else []
        if self.variation is not None:
            views = torch.arange(len(study.forget)).repeat(VIEWS)
            looked_at.append((self.variation.of_forget(views), study.forget.subject[views], 2 * nearest))
        recognised = torch.cat([study.recognised_in(*pictures) for pictures in looked_at])
        whose = torch.cat([subject for _, subject, _ in looked_at])
        for subject in range(len(self.forget_weight)):
            own = recognised[whose == subject]
            if len(own):
                self.forget_weight[subject] *= s.adapt_factor if own.mean() > s.adapt_target else 1 / s.adapt_factor
        self.forget_weight.clamp_(s.forget_weight_low, s.forget_weight_high)
        return {"recognised": recognised.mean().item(), "forget_weight": self.forget_weight.mean().item()}
