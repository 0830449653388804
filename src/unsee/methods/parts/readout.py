"""A linear read-out of visible attributes, fitted on the reference model's features: no language model needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unsee.methods.parts.features import FeatureStudy, evenly

PICTURES = 1000  # at most, evenly spaced: the fit is cubic in them


@dataclass(frozen=True)
class LinearReadout:
    """attribute scores = (vector - centre) . weight, one column per class of every attribute.

    Attributes:
        weight: [cells * width, classes], for the vectors of `FeatureStudy.flat`.
        spread: variance of the scores over the pictures it was fitted on [classes].
    """

    weight: Tensor
    spread: Tensor

    @staticmethod
    def fit(study: FeatureStudy, ridge: float = 1e-2) -> LinearReadout:
        """Ridge regression to 0/1 tables, solved in its dual form: cost grows with pictures, not with feature width.

        Args:
            ridge: relative to the mean diagonal of the Gram matrix. Our choice.
        """
        vectors = torch.cat([study.flat(study.forget.tokens), study.flat(study.retain.tokens)])
        chosen = evenly(len(vectors), PICTURES)
        x = (vectors[chosen] - study.centre).double()
        y = torch.cat(study.attributes, 1)[chosen].double()
        gram = x @ x.T
        gram += ridge * gram.diagonal().mean() * torch.eye(len(x), dtype=torch.float64, device=x.device)
        weight = x.T @ torch.linalg.solve(gram, y - y.mean(0))
        return LinearReadout(weight.float(), (x @ weight).var(0).float())

    def change(self, vectors: Tensor, reference: Tensor) -> Tensor:
        """Mean squared change of the scores, in units of their variance (scalar)."""
        moved = (vectors - reference) @ self.weight
        spread = self.spread.clamp(min=torch.finfo(self.spread.dtype).tiny)  # 0 for what everybody shares: change 0 too
        return (moved.square() / spread).mean()
