"""Visual knowledge distillation (VKD): forget and keep by intermediate visual features of a frozen teacher.

Published (arXiv 2512.11325, in words): the language model is frozen and only visual components are tuned, supervised by
intermediate visual representations of a teacher inside the model instead of by answers, both to forget and to keep;
combined with partial fine-tuning and weight masking. A summary calls the features "auxiliary supervision" beside a main
loss. Layers, teacher, weights, mask criterion and code we could not read: the rest is ours, and every choice a setting.

With h_l(x) the student's states after edited block l, Z(x) its visual tokens, h0_l and Z0 those of the teacher (the
reference), d(x) a picture that stands in for x and is no target (`teacher`), and v the teacher's spread at that place:

    forget  L_f = mean_l |h_l(x) - h0_l(d)|^2 / v_l          keep  L_k = mean_l |h_l(r) - h0_l(r)|^2 / v_l
    main    M_f = |Z(x) - Z0(d)|^2 / v                             M_k = |Z(r) - Z0(r)|^2 / v

    L = forget_weight * (L_f + main_weight * M_f) + retain_weight * (L_k + main_weight * M_k)

No answer is looked at: what a main loss on answers would ask for is read as asked of Z, the visual module's own output,
which is all that the language model learns of a picture. So the language model need not be loaded.

Under the mask, only those entries w of a weight move that matter most to forgetting for what they matter to keeping:

    saliency(w) = E[(d(L_f + m M_f)/dw)^2] / E[(d(L_k + m M_k)/dw)^2]     at the reference, m = main_weight,
                                                                            E over batches

There the gradient of L_k is zero, as the student is the teacher. So for the mask, and only there, the teacher's
features get noise of their own spread: the denominator is then the Fisher information of features normal around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unsee.methods.cvf import weights_of
from unsee.methods.parts.base import FeatureMethod, Given, Plan, count, positive, setting
from unsee.methods.parts.features import SAMPLE, FeatureStudy, evenly
from unsee.methods.parts.stand_ins import StandIns
from unsee.models.anatomy import VisualModule, trainable
from unsee.models.packed import Packed, pack
from unsee.progress import track
from unsee.subspace.moments import SecondMoment
from unsee.subspace.saliency import FisherSaliency, Mask, Saliency, steps_masked
from unsee.training.loop import Phase, shuffled


@dataclass(frozen=True)
class VisualKnowledgeDistillation(FeatureMethod):
    """VKD. Everything but the idea is ours, see above.

    Attributes:
        last_blocks: vision blocks edited, counted back from the feature layer; 0: the projector alone.
        trains: partial fine-tuning: `all` linear layers of these blocks and the projector, or the `attention` or `mlp`
            layers of the blocks only.
        teacher: which picture the teacher looks at in place of a forget picture, see `stand_ins.StandIns.choose`. The
            kinds that no picture leads to have no intermediate features and are not offered.
        same_attributes: it shares as many visible attributes with the forget picture as possible.
        layers: h_l after `every` edited block, or after the `last` one.
        main_weight: weight of M_f and M_k; at 0 the projector has no say in the loss and stays as it is.
        forget_weight, retain_weight: weights of the two sides.
        free: share of the entries of each weight that may move, those of the largest saliency; 1: no mask.
        steps: optimiser steps.
        learning_rate: of Adam, cosine to zero.
        forget_pictures: forget pictures per step.
        retain_pictures: retained pictures per step.
    """

    name: ClassVar[str] = "vkd"
    paper: ClassVar[str] = "VKD (arXiv 2512.11325); loss, layers, teacher and mask reconstructed by us"
    given: ClassVar[tuple[Given, ...]] = ("retained pictures", "attributes")

    last_blocks: int = count(2)
    trains: Literal["all", "attention", "mlp"] = "all"
    teacher: Literal["unknowing", "look_alike", "mixture", "perturbed"] = "unknowing"
    same_attributes: bool = setting(True, was="same_looks")
    layers: Literal["every", "last"] = "every"
    main_weight: float = setting(16.0, was="main")
    forget_weight: float = setting(1.0, was="forget")
    retain_weight: float = setting(1.0, was="keep")
    free: float = setting(0.5, above=0, high=1)
    steps: int = 480
    learning_rate: float = positive(5e-3)
    forget_pictures: int = 10
    retain_pictures: int = 36

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_blocks == 0 and self.main_weight == 0:
            raise ValueError("main_weight=0: with last_blocks=0 there is no other loss; raise one of them")
        if self.last_blocks == 0 and self.trains != "all":
            raise ValueError(f"trains={self.trains}: with last_blocks=0 there are no such layers; raise last_blocks")

    def edited_layers(self, visual: VisualModule) -> dict[str, nn.Linear]:
        """The linear layers that are trained, by full module name."""
        projector, *blocks = visual.tail(self.last_blocks)
        outside = set(projector.modules())
        mlp = {module for block in blocks for module in block.get_submodule("mlp").modules()}

        def chosen(layer: nn.Linear) -> bool:
            if layer in outside:
                return self.trains == "all" and self.main_weight > 0
            return self.trains == "all" or (layer in mlp) == (self.trains == "mlp")

        return {name: layer for name, layer in visual.editable(self.last_blocks).items() if chosen(layer)}

    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        edited = weights_of(self.edited_layers(study.visual))
        trainable(edited, study.visual.model)
        optimiser = torch.optim.Adam(edited.values(), lr=self.learning_rate, fused=True)
        objective = DistillationObjective(self, study)
        held: AbstractContextManager[None] = nullcontext()
        if self.free < 1:
            mask = Mask.of(most_salient(*objective.saliency(edited), self.free))
            held = steps_masked(optimiser, edited, mask)
        return Plan(
            edited=edited,
            phases=[Phase("both", objective.draw, objective.loss)],
            optimiser=optimiser,
            steps=self.steps,
            schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps),
            constraint=held,
        )


class DistillationObjective:
    """The loss above over cached hidden states at the cut.

    Attributes:
        stand_ins: the pictures the teacher looks at in place of the forget pictures.
        weights: of each place where features are compared: those after blocks, which add up to 1, then Z.
        spread: standard deviation of each channel of the teacher's features there, over positions of (a sample of)
            retained pictures [width]. Its mean square is v: what all positions have in common is not spread.
    """

    def __init__(self, settings: VisualKnowledgeDistillation, study: FeatureStudy) -> None:
        self.settings, self.study = settings, study
        self.stand_ins = StandIns.choose(study, settings.teacher, settings.same_attributes)
        sample = evenly(len(study.retain), SAMPLE)
        taught = self.taught(study.retain.hidden[sample], study.retain.tokens[sample])
        self.spread = [place.states.std(0) for place in taught]
        inner = len(taught) - (settings.main_weight > 0)
        self.weights = [1 / max(inner, 1)] * inner + [settings.main_weight] * (settings.main_weight > 0)
        self._forget = shuffled(len(study.forget), settings.forget_pictures)
        self._retain = shuffled(len(study.retain), settings.retain_pictures)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Indices of forget and of retained pictures."""
        return next(self._forget), next(self._retain)

    def inner(self, visual: VisualModule, hidden: Packed) -> list[Packed]:
        """Hidden states at the cut -> after each edited block, or the last."""
        places = []
        for block in range(self.study.cut, len(visual.blocks)):
            hidden = visual.run(hidden, block, block + 1)
            places.append(hidden)
        return places if self.settings.layers == "every" else places[-1:]

    def seen(self, hidden: Packed) -> list[Packed]:
        """The student's features wherever they are compared."""
        places, visual = self.inner(self.study.visual, hidden), self.study.visual
        if self.settings.main_weight:
            places.append(visual.leave(places[-1] if places else hidden))
        return places

    @torch.no_grad()
    def taught(self, hidden: Packed, tokens: Packed) -> list[Packed]:
        """The teacher's, likewise; its visual `tokens` are known."""
        return self.inner(self.study.reference, hidden) + ([tokens] if self.settings.main_weight else [])

    def forgetting(self, f: Tensor) -> list[Packed]:
        """What the teacher asks of these forget pictures: what it sees in those that stand in for them."""
        assert self.stand_ins.hidden is not None  # as in every kind that is offered
        return self.taught(self.stand_ins.hidden[f], self.stand_ins.tokens[f])

    def keeping(self, r: Tensor) -> list[Packed]:
        """What it asks of these retained pictures: what it sees in them itself."""
        return self.taught(self.study.retain.hidden[r], self.study.retain.tokens[r])

    def distances(self, seen: list[Packed], taught: list[Packed]) -> dict[str, Tensor]:
        """L and M of one side, already weighted by place: `features` if blocks are edited, and `main`."""
        parts = [
            weight * distance(now, wanted) / spread.square().mean()
            for weight, now, wanted, spread in zip(self.weights, seen, taught, self.spread, strict=True)
        ]
        inner = len(parts) - (self.settings.main_weight > 0)
        named = {"features": parts[:inner], "main": parts[inner:]}
        return {name: torch.stack(some).sum() for name, some in named.items() if some}

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The named terms of L, already weighted."""
        f, r = batch
        seen = self.seen(pack([self.study.forget.hidden[f], self.study.retain.hidden[r]]))
        forget = self.distances([place[: len(f)] for place in seen], self.forgetting(f))
        keep = self.distances([place[len(f) :] for place in seen], self.keeping(r))
        return {
            **{f"forget {name}": self.settings.forget_weight * term for name, term in forget.items()},
            **{f"retain {name}": self.settings.retain_weight * term for name, term in keep.items()},
        }

    def saliency(self, edited: Mapping[str, nn.Parameter]) -> tuple[Saliency, Saliency]:
        """Of forgetting and of keeping, over one round of forget pictures and as many batches of retained ones."""
        sides = FisherSaliency(edited), FisherSaliency(edited)
        rounds = -(-len(self.study.forget) // self.settings.forget_pictures)
        for _ in track(range(rounds), "saliency of weights"):
            f, r = self.draw()
            noisy = [
                place.with_states(place.states + spread * torch.randn_like(place.states))
                for place, spread in zip(self.keeping(r), self.spread, strict=True)
            ]
            batches = (self.study.forget.hidden[f], self.forgetting(f)), (self.study.retain.hidden[r], noisy)
            for side, (hidden, taught) in zip(sides, batches, strict=True):
                torch.stack(list(self.distances(self.seen(hidden), taught).values())).sum().backward()
                side.add()
        return sides


def distance(now: Packed, wanted: Packed) -> Tensor:
    """Mean squared difference of entries (scalar); every picture counts the same.

    Position by position where both pictures have one size. Inner states of different sizes cannot be laid over each
    other (they may be more than the tokens, and in another order), so there the means over positions are compared.
    """
    if now.uniform and (now.lengths, now.grids) == (wanted.lengths, wanted.grids):
        return F.mse_loss(now.states, wanted.states)
    sizes = zip(now.lengths, now.grids, strict=True), zip(wanted.lengths, wanted.grids, strict=True)
    pairs = zip(now.states.split(now.lengths), wanted.states.split(wanted.lengths), *sizes, strict=True)
    each = [F.mse_loss(x, y) if size == other else F.mse_loss(x.mean(0), y.mean(0)) for x, y, size, other in pairs]
    return torch.stack(each).mean()


def most_salient(forget: Saliency, keep: Saliency, share: float) -> Iterator[tuple[str, Tensor]]:
    """This share of the entries of each weight, those of the largest forget / keep, as booleans by name.

    Rounded down, but at least one: each weight is ranked by itself, so none is closed altogether. Ranks and no fixed
    ratio (as in MMUnlearner): how the two sides compare depends on how many positions a batch of either has.
    """
    tiny = torch.finfo(torch.float32).tiny
    for name in forget.parameters:
        ratio = (forget[name] / (keep[name] + tiny)).flatten()
        chosen = ratio.argsort(descending=True, stable=True)[: max(1, int(share * len(ratio)))]
        free = torch.zeros_like(ratio, dtype=torch.bool).index_fill_(0, chosen, True)
        yield name, free.view(forget[name].shape)
