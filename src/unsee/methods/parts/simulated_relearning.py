"""A relearning attack in features, carried out while the edit is made, so that the edit is made against it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unsee.methods.parts.features import FeatureStudy, Tail
from unsee.models.packed import Packed


class SimulatedRelearning:
    """Somebody who teaches half of the forgotten subjects again, to see whether the other half comes back.

    Our construction, after adversarial training of open weights (TAR, Tamirisa et al. 2024, arXiv 2408.00761) but
    without a language model, an answer or a second derivative. The attacker adds D_W to every edited weight and turns
    hidden states at the cut, h -> h + h T, which stands for what he may change in the frozen blocks below. Both start
    at zero with every new half, and take `steps` steps down the distance of the attacked to what the reference saw:

        D_W <- D_W - size / steps * sign(dR / dD_W)          R = |Z(x) - Z0(x)|^2 / v   over attacked pictures x
        T   <- T - turn / steps * (dR / dT) / |dR / dT|

    The attacker needs no retained pictures: what he breaks does not matter here.

    Args:
        study: the data of the edit.
        weights: the edited weights, by parameter name.
        pictures: of the attacked, and of the others, per step.
        steps: steps of one attack; then another half of the subjects, drawn at random, is attacked.
        size: how far an attack may move any one weight.
        turn: Frobenius norm that T may reach.
    """

    def __init__(
        self,
        study: FeatureStudy,
        weights: Mapping[str, nn.Parameter],
        pictures: int,
        steps: int,
        size: float,
        turn: float,
    ) -> None:
        self._study, self._weights, self._pictures = study, weights, pictures
        self._steps, self._size, self._farthest = steps, size, turn
        self._tail = Tail(study.visual, study.cut)
        self.turn: Tensor
        self._begin()

    def attack(self) -> tuple[Tensor, Packed]:
        """The attacker's next step; then some pictures of the others, and their tokens under the attacked weights.

        Returns:
            indices into `study.forget` [pictures], and tokens with gradients for the weights, none for the attack.
        """
        if self._step == self._steps:
            self._begin()
        self._step += 1
        taught = self._some(self.attacked)
        weights = {name: (w.detach() + self.change[name]).requires_grad_() for name, w in self._weights.items()}
        turn = self.turn.requires_grad_()
        missing = self.see(taught, weights, turn).states - self._study.forget.tokens[taught].states
        *slopes, twist = torch.autograd.grad(missing.square().mean() / self._study.variance, [*weights.values(), turn])
        for change, slope in zip(self.change.values(), slopes, strict=True):
            change -= self._size / self._steps * slope.sign()
        reach = self._farthest / self._steps / twist.norm().clamp(min=torch.finfo(twist.dtype).tiny)
        self.turn = turn.detach() - reach * twist
        others = self._some(~self.attacked)
        return others, self.see(others, {k: w + self.change[k] for k, w in self._weights.items()}, self.turn)

    def _begin(self) -> None:
        """Another half of the subjects, and no changes."""
        states, count = self._study.forget.hidden.states, self._study.forgotten
        self._step = 0
        self.attacked = (torch.randperm(count) < count // 2).to(states.device)
        self.change = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self.turn = states.new_zeros(states.shape[1], states.shape[1])

    def _some(self, subjects: Tensor) -> Tensor:
        """Random forget pictures of these subjects."""
        theirs = subjects[self._study.forget.subject].nonzero()[:, 0]
        return theirs[torch.randperm(len(theirs))[: self._pictures]]

    def see(self, pictures: Tensor, weights: Mapping[str, Tensor], turn: Tensor) -> Packed:
        hidden, tokens = self._study.forget.hidden[pictures], self._study.forget.tokens[pictures]
        turned = hidden.with_states(hidden.states + hidden.states @ turn)
        return tokens.with_states(self._tail.under(weights, turned))
