"""What must stay and what earlier requests removed, held in place by one null space per layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch

from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import SOFT, NullSpace, SoftNullSpace, null_space

Joining = Literal["cut", "halves", "tokens"]


class Joined(SecondMoment):
    """Moments of the inputs that a layer gets on retained pictures, and on pictures of those forgotten before.

    What was forgotten must not come back, so a later edit may not change what the layer makes of either. The two are
    very unequal: one person's pictures are a small part of all, and an `energy` cut of the sum would give them up.
    Our choice, and the three ways are compared in docs/sequence.md.

    Attributes:
        how: `cut`: each is cut by the rule alone, and an update must be in both null spaces (a soft rule measures each
            by its own mean eigenvalue and adds them: P = (1 + C / λ + C' / λ')⁻¹); `halves`: both count as much as the
            other, whatever their number; `tokens`: every position counts the same.
    """

    def __init__(self, kept: SecondMoment, gone: SecondMoment, how: Joining) -> None:
        super().__init__(len(kept.sum))
        self._kept, self._gone, self.how = kept, gone, how
        self.merge(kept)
        if how == "halves":
            share = kept.tokens / gone.tokens
            self.total += share * gone.total
            self.sum += share * gone.sum
            self.tokens += kept.tokens
        elif how in get_args(Joining):
            self.merge(gone)
        else:
            raise ValueError(f"joining '{how}' unknown; expected one of {', '.join(get_args(Joining))}")

    def null_space(self, rule: str, threshold: float, centred: bool = False) -> NullSpace | SoftNullSpace:
        """See `SecondMoment.null_space`."""
        both = self._kept, self._gone
        if self.how != "cut":
            return super().null_space(rule, threshold, centred)
        if rule == SOFT:
            means = [moment.covariance if centred else moment.mean for moment in both]
            scaled = [mean / mean.diagonal().mean().clamp(min=torch.finfo(mean.dtype).tiny) for mean in means]
            return null_space(scaled[0] + scaled[1], SOFT, threshold / 2)  # the mean eigenvalue of the sum is 2
        spaces = [moment.null_space(rule, threshold, centred) for moment in both]
        return outside(torch.cat([space.used for space in spaces if isinstance(space, NullSpace)], 1))


def outside(directions: torch.Tensor) -> NullSpace:
    """The null space of given directions [d_in, any number], which need not be orthogonal; float64."""
    vectors, sizes, _ = torch.linalg.svd(directions)
    rank = int((sizes > 1e-9 * max(directions.shape)).sum())  # of unit vectors: what rounding leaves is far below
    return NullSpace(vectors[:, rank:], vectors[:, :rank])


class JoinedMoments(Mapping[str, SecondMoment]):
    """`Joined` of every layer, read one at a time."""

    def __init__(self, kept: Mapping[str, SecondMoment], gone: Mapping[str, SecondMoment], how: Joining) -> None:
        self._kept, self._gone, self._how = kept, gone, how

    def __getitem__(self, name: str) -> Joined:
        return Joined(self._kept[name], self._gone[name], self._how)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
