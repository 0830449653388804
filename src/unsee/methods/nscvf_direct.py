"""`nscvf-direct`: the goal of `nscvf` by ridge regression inside the retain null space, without gradient steps.

Every forgotten subject p is given one retained subject q to be taken for. With m(p, c) the reference's mean states of a
subject at place c of its pictures, a forget picture x of p is to become

    t(x, c) = Z0(x, c) + s_p (m(q, c) - m(p, c))          its identity moves; what this picture alone shows stays

and each edited layer, from the lowest up, gets the ridge solution on its inputs k. With K = E[k kᵀ] on forget pictures,
C = E[k kᵀ] on retained ones and U the null space of C:

    ΔW = E[(t - Z) kᵀ] S,     S = U (Uᵀ (K + w C + λ I) U)⁻¹ Uᵀ,     w = retain_weight,

    λ = ridge * mean diagonal of (K + w C)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unsee.methods.parts.base import DirectMethod, count, positive, setting, share
from unsee.methods.parts.features import POSITIONS, FeatureStudy
from unsee.methods.parts.stand_ins import mistaken_for
from unsee.models.anatomy import VisualModule
from unsee.models.packed import Grid, Packed
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace

HALVINGS = 10  # of the interval a strength lies in: a thousandth of it is left


@dataclass(frozen=True)
class DirectForgetting(DirectMethod):
    """NSCVF in closed form. Defaults chosen on people and model seeds 100-102 (docs/LOG.md).

    Attributes:
        last_blocks: vision blocks edited, counted back from the feature layer; the projector always is.
        same_attributes: what a visible attribute that all pictures of both have in common counts for a stand-in;
            likeness itself counts from 0 to 1.
        retain_weight: weight of retained inputs against those of forget pictures, each a mean over positions.
        ridge: weight of |ΔW|², relative to the mean square of an input.
        moment_pictures: retained pictures that C is taken from; 0: all.
        rule: how the free directions are chosen, see `subspace.null_space`; a soft one would be `retain_weight` once
            more.
        threshold: of that rule; `energy` at 1 frees all, and only `retain_weight` holds back.
        adapt_target: share of a subject's held-back pictures that may still be recognised, that is, have a reference
            centroid of their own that is nearer than every other.
        adapt_margin: or farther by no more than this, in units of cosine.
        strength_low, strength_high: bounds of the strength s_p; the least that reaches the target is taken, and 1 for a
            subject without held-back pictures. The upper one matters: the hardest subject costs the others most.
    """

    name: ClassVar[str] = "nscvf-direct"
    paper: ClassVar[str] = "goal of NSCVF (arXiv 2605.05909), solved as AlphaEdit does (2410.02355); targets are ours"

    last_blocks: int = count(1)
    same_attributes: float = setting(2.0, was="same_looks")
    retain_weight: float = positive(3.0, was="keep")
    ridge: float = positive(1e-3)
    moment_pictures: int = count(0)
    rule: Literal["energy", "relative", "rank", "absolute"] = "energy"
    threshold: float = share(0.1)
    adapt_target: float = share(0.05, was="dial_target")
    adapt_margin: float = setting(0.04, was="dial_margin")
    strength_low: float = setting(0.1, was="dial_low")
    strength_high: float = setting(2.0, was="dial_high")

    def layers(self, visual: VisualModule) -> dict[str, nn.Linear]:
        """The last linear layer of each edited block and of the projector, by full module name, as they run."""
        projector, *blocks = visual.tail(self.last_blocks)
        names = {module: name for name, module in visual.editable(self.last_blocks).items()}
        last = [[m for m in stage.modules() if isinstance(m, nn.Linear)][-1] for stage in (*blocks, projector)]
        return {names[layer]: layer for layer in last}

    def space(self, moment: SecondMoment) -> NullSpace:
        space = moment.null_space(self.rule, self.threshold)
        assert isinstance(space, NullSpace)  # none of the rules offered is soft
        return space

    @torch.no_grad()
    def solve(self, study: FeatureStudy, moments: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
        layers = self.layers(study.visual)
        *_, projector = layers
        before = {name: layer.get_parameter("weight").clone() for name, layer in layers.items()}
        stand_ins, strength = self.stand_ins(study), study.variance.new_ones(study.forgotten)
        deltas = {}
        try:
            for i, (name, layer) in enumerate(layers.items()):
                regression = Regression(self, study, layer, study.cut + i, moments[name])
                if name == projector:
                    strength = regression.least_strength(stand_ins)
                share_of_rest = 1 / (len(layers) - i)  # later layers do what is left
                deltas[f"{name}.weight"] = share_of_rest * regression.solution(stand_ins, strength)
                layer.weight += deltas[f"{name}.weight"]
        finally:
            for name, layer in layers.items():
                layer.weight.copy_(before[name])
        return deltas

    def stand_ins(self, study: FeatureStudy) -> Tensor:
        """The retained subject that each forgotten one is to be taken for [forget subjects].

        One for all pictures of a target: of those who look alike the one that a model which never saw the target would
        take it for (`mistaken_for`), over its pictures.
        """
        own = F.one_hot(torch.cat([study.forget.subject, study.retain.subject]), len(study.subjects)).float()
        own = (own / own.sum(0)).T  # [subjects, pictures]
        distance = own[: study.forgotten, : len(study.forget)].double() @ mistaken_for(study)
        low, high = distance.amin(1, keepdim=True), distance.amax(1, keepdim=True)
        score = (high - distance) / (high - low).clamp(min=torch.finfo(distance.dtype).tiny)  # 0 ... 1
        for table in study.attributes:
            shown = own @ table  # how often each subject shows each class
            score += self.same_attributes * (shown[: study.forgotten] @ shown[study.forgotten :].T)
        return study.forgotten + score.masked_fill(~study.candidates, float("-inf")).argmax(1)


class Regression:
    """The ridge solution for one layer, for the visual module as it is when this is made.

    Sums over forget pictures are taken once, in one pass; stand-ins and strengths may be tried afterwards.
    """

    def __init__(
        self, settings: DirectForgetting, study: FeatureStudy, layer: nn.Linear, stage: int, moment: SecondMoment
    ) -> None:
        """
        Args:
            layer: the last one of its stage: what it adds is added to the stage's output.
            stage: which block that is; the number of blocks stands for the projector.
            moment: of the layer's retained inputs.
        """
        self.settings, self.study, self.layer = settings, study, layer
        self.stage = _Stage(study, layer, stage)
        size, subjects = layer.in_features, study.forgotten
        places = subjects * self.stage.places  # of every subject
        new = study.forget.hidden.states.new_zeros
        gram, missing = new(size, size).double(), new(layer.out_features, size).double()
        inputs, states = new(places, size).double(), new(places, layer.out_features)
        number, first, tokens = new(places), 0, 0
        for part in study.forget.hidden.split(POSITIONS):
            pictures = slice(first, first := first + len(part))
            now, keys = self.stage.observe(part)
            wanted = self.stage.reference(part, study.forget.tokens[pictures])
            subject = _per_position(study.forget.subject[pictures], now)
            place = subject * self.stage.places + self.stage.place(now)
            keys, tokens = keys.double(), tokens + len(keys)
            gram += keys.T @ keys
            missing += (wanted.states - now.states).double().T @ keys
            inputs.index_add_(0, place, keys)
            states.index_add_(0, place, wanted.states)
            number.index_add_(0, place, number.new_ones(len(place)))
        solver = _solver(gram / tokens, moment, settings)
        by_subject = (subjects, self.stage.places, -1)
        self.rest = missing / tokens @ solver  # what earlier layers left undone [d_out, d_in]
        self.answer = (inputs / tokens @ solver).view(by_subject)  # to a displacement [subjects, places, d_in]
        self.own = (states / number.clamp(min=1)[:, None]).view(by_subject)

    def displacement(self, stand_ins: Tensor) -> Tensor:
        """m(q, c) - m(p, c) for every forgotten subject [subjects, places, d_out]."""
        return torch.stack([self.stage.mean(subject) for subject in stand_ins.tolist()]) - self.own

    def solution(self, stand_ins: Tensor, strength: Tensor) -> Tensor:
        """What to add to the layer's weight [d_out, d_in]."""
        moved = (strength[:, None, None] * self.displacement(stand_ins)).double()
        return (self.rest + torch.einsum("sco,sci->oi", moved, self.answer)).to(self.layer.weight.dtype)

    def least_strength(self, stand_ins: Tensor) -> Tensor:
        """The least strength at which held-back pictures are no longer recognised [subjects]; projector only.

        Each subject is looked at as if it were the only one, and found by halving an interval.
        """
        s, study = self.settings, self.study
        subject = study.held_back.subject
        low, high = (study.variance.new_full((len(stand_ins),), bound) for bound in (s.strength_low, s.strength_high))
        if len(study.held_back):
            start, push = self._held_back(self.displacement(stand_ins))
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                likeness = F.normalize(start + middle[subject, None] * push, dim=-1) @ study.centroids.T
                own = likeness.gather(1, subject[:, None])[:, 0]
                others = likeness.scatter(1, subject[:, None], float("-inf")).amax(1)
                recognised = torch.zeros_like(middle).index_add_(0, subject, (own > others - s.adapt_margin).float())
                too_many = recognised > s.adapt_target * subject.bincount(minlength=len(middle))
                low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        seen = subject.bincount(minlength=len(stand_ins)) > 0
        return torch.where(seen, high, 1.0)

    def _held_back(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Centred vectors of held-back pictures at strength 0, and what strength 1 adds [pictures, cells * width]."""
        study, start, push = self.study, [], []
        first = 0
        for part in study.held_back.hidden.split(POSITIONS):
            now, keys = self.stage.observe(part)
            subject = study.held_back.subject[first : (first := first + len(part))]
            owner = _per_position(subject, now)
            moved = torch.empty_like(now.states)
            for i in subject.unique().tolist():
                moved[owner == i] = keys[owner == i] @ self.answer[i].to(keys.dtype).T @ displacement[i]
            rest = now.states + keys @ self.rest.to(keys.dtype).T
            start.append(study.flat(now.with_states(rest)) - study.centre)
            push.append(study.flat(now.with_states(moved)))
        return torch.cat(start), torch.cat(push)


class _Stage:
    """One edited block, or the projector: what goes into its last linear layer, and what it makes of it.

    Attributes:
        places: into how many places a picture is divided. In a block these are its positions, if all pictures have as
            many, else there is one; after the projector the cells of the grid on which pictures are compared.
    """

    def __init__(self, study: FeatureStudy, layer: nn.Linear, number: int) -> None:
        self.study, self.layer, self.number = study, layer, number
        self.projector = number == len(study.visual.blocks)
        hidden = (study.forget.hidden, study.retain.hidden)
        self._alike = len({shape for states in hidden for shape in zip(states.lengths, states.grids, strict=True)}) == 1
        self._means: dict[int, Tensor] = {}
        self.places = prod(study.grid) if self.projector else study.forget.hidden.lengths[0] if self._alike else 1

    def observe(self, hidden: Packed) -> tuple[Packed, Tensor]:
        """Hidden states at the cut -> what leaves the stage, and the layer's input at each of its positions."""
        visual, start, caught = self.study.visual, self.study.cut, []
        if not self.projector:
            handle = self.layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].flatten(0, -2)))
            try:
                return visual.run(hidden, start, self.number + 1), caught[0]
            finally:
                handle.remove()
        # a projector may put its tokens in another order: every token takes its input along
        handle = self.layer.register_forward_hook(lambda _, inputs, output: torch.cat([output, inputs[0]], -1))
        try:
            tokens = visual.leave(visual.run(hidden, start))
        finally:
            handle.remove()
        states, keys = tokens.states.split([self.layer.out_features, self.layer.in_features], -1)
        return tokens.with_states(states), keys

    def reference(self, hidden: Packed, tokens: Packed) -> Packed:
        """What leaves the stage of the unedited module."""
        return tokens if self.projector else self.study.reference.run(hidden, self.study.cut, self.number + 1)

    def place(self, states: Packed) -> Tensor:
        """The place of every position [positions]."""
        if self.projector:
            cells = torch.cat([_cells(grid, self.study.grid) for grid in states.grids])
        elif self._alike:
            cells = torch.arange(self.places).repeat(len(states))
        else:
            cells = torch.zeros(len(states.states), dtype=torch.long)
        return cells.to(states.states.device)

    def mean(self, subject: int) -> Tensor:
        """m(q, c) of a retained subject [places, d_out]."""
        if subject not in self._means:
            own = (self.study.retain.subject == subject).nonzero()[:, 0]
            new = self.study.retain.hidden.states.new_zeros
            total, number, first = new(self.places, self.layer.out_features), new(self.places), 0
            for part in self.study.retain.hidden[own].split(POSITIONS):
                pictures = own[first : (first := first + len(part))]
                states = self.reference(part, self.study.retain.tokens[pictures])
                total.index_add_(0, self.place(states), states.states)
                number.index_add_(0, self.place(states), number.new_ones(len(states.states)))
            self._means[subject] = total / number[:, None]
        return self._means[subject]


def _solver(gram: Tensor, moment: SecondMoment, settings: DirectForgetting) -> Tensor:
    """S of the formula above [d_in, d_in]; solved on the processor, where the statistics are."""
    free = settings.space(moment).basis
    system = gram.cpu() + settings.retain_weight * moment.mean
    system.diagonal().add_(settings.ridge * system.diagonal().mean())
    solver: Tensor = free @ torch.linalg.solve(free.T @ system @ free, free.T)
    return solver.to(gram.device)


def _per_position(values: Tensor, states: Packed) -> Tensor:
    """One value of each picture [pictures] -> at each of its positions [positions]."""
    return values.repeat_interleave(torch.tensor(states.lengths, device=values.device))


def _cells(grid: Grid, coarse: Grid) -> Tensor:
    """The cell of a coarser grid in which each token of a picture lies [tokens]."""
    layers, rows, columns = (torch.arange(n) * m // n for n, m in zip(grid, coarse, strict=True))
    cells = (layers[:, None, None] * coarse[1] + rows[:, None]) * coarse[2] + columns
    return cells.flatten()
