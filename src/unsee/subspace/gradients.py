"""Second moments of weight gradients, from the backward pass: another basis for a null space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from unsee.subspace.moments import SecondMoment


class GradientMoments:
    """Second moments of the gradients G [d_out, d_in] that retained data's loss has on each weight.

    Their null space is where an update does not change that loss to first order, for instance as a public review reads
    "the null space associated with retained knowledge" of NSCVF (arXiv 2605.05909). Every gradient is Σ g xᵀ over
    tokens, so its rows lie in the span of the layer's inputs: the free directions of the inputs' moment are free here
    too, and others where the loss happens to be flat. That is weaker: only the loss is held, to first order, and only
    on average if averaged.

    Args:
        how: `stacked`: Σ_b G_bᵀ G_b over batches b, `averaged`: (mean_b G_b)ᵀ (mean_b G_b), of rank d_out at most.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], how: Literal["stacked", "averaged"]) -> None:
        if how not in ("stacked", "averaged"):
            raise ValueError(f"gradients '{how}': expected stacked or averaged")
        self.layers, self.how = dict(layers), how
        self.batches = 0
        widths = {name: layer.in_features for name, layer in layers.items()} if how == "stacked" else {}
        self._stacked = {name: SecondMoment(width) for name, width in widths.items()}
        self._sums: dict[str, Tensor] = {}

    def add(self) -> None:
        """Take the gradients of the batch that `backward` was just called for, and clear them: none counts twice.

        Raises:
            ValueError: a layer got no gradient, or one that is not finite. Nothing was added then.
        """
        gradients = {}
        for name, layer in self.layers.items():
            if layer.weight.grad is None:
                raise ValueError(f"layer '{name}' has no gradient: call backward first, of a loss that depends on it")
            if not layer.weight.grad.isfinite().all():
                raise ValueError(f"the gradient of layer '{name}' is not finite")
            gradients[name] = layer.weight.grad
        self.batches += 1
        for name, gradient in gradients.items():
            if self.how == "stacked":
                self._stacked[name].update(gradient)
            else:
                self._sums[name] = gradient.cpu().double() + self._sums.get(name, 0)
            self.layers[name].weight.grad = None

    def moments(self) -> dict[str, SecondMoment]:
        """Of everything added so far; a "token" is one row of one gradient."""
        if self.how == "stacked":
            return self._stacked
        averaged = {name: SecondMoment(layer.in_features) for name, layer in self.layers.items()}
        for name, total in self._sums.items():
            averaged[name].update(total / self.batches)
        return averaged
