"""A linear probe: can the states of pictures at one stage be told apart by who they show? Pure functions of states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unsee.attacks.relearn import Tally

STRENGTHS = tuple(10.0**-power for power in range(-1, 7))
"""Ridges that are tried, relative to the mean variance of a feature within subjects; the strongest first."""
ROUNDING = 1e-6  # spread of a feature, relative to its size, below which it is rounding


@dataclass(frozen=True)
class Probing:
    """What a probe is given; the same for every model.

    Attributes:
        pictures: per subject to learn from: so many training pictures, and as many validation pictures. Few, for with
            many every trained tower tells everybody apart, also people it never saw, and nothing can stand out.
        test_pictures: per subject to be named.
        others: retained subjects, evenly spaced, among whom the forgotten are to be found; fewer if there are fewer.
        depths: blocks of the tower and layers of the language model that are read, evenly spaced with the last.
    """

    pictures: int = 1
    test_pictures: int = 12
    others: int = 60
    depths: int = 4

    def __post_init__(self) -> None:
        """All at least one.

        Raises:
            ValueError: names the setting and what was expected.
        """
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected more than zero")


@dataclass(frozen=True)
class Probe:
    """Nearest subject under one metric for all: a linear classifier, since what is quadratic in a picture cancels.

    Attributes:
        centre, scale: of features, x -> (x - centre) * scale [width]; 0 for a feature that does not vary.
        metric: to coordinates in which subjects scatter alike in all directions [width, directions].
        means: of the subjects in these coordinates [subjects, directions].
        subjects: whom they belong to.
        strength: the ridge that was chosen, one of `STRENGTHS`.
        left_out: share of training pictures named right by the others, mean over subjects, at that ridge.
    """

    centre: Tensor
    scale: Tensor
    metric: Tensor
    means: Tensor
    subjects: tuple[str, ...]
    strength: float
    left_out: float

    @staticmethod
    def fit(states: Tensor, subjects: Sequence[str]) -> Probe:
        """Ridge linear discriminant: d(x, k) = (x - m_k)' (S + r I)^-1 (x - m_k), the nearest k is said.

        S is the covariance within subjects, each subject weighing the same, and no subject is held to be likelier than
        another. The ridge r (Friedman 1989, doi 10.1080/01621459.1989.10478752,
        with the identity as target) is the one under which most training pictures are named right when each in turn is
        left out, which has a closed form (`_left_out`): no random folds, and the order of pictures plays no part. Of
        equal ridges the strongest. Our choice over logistic regression and over ridge regression on indicators, both of
        which found less on the pocket model of people 100 (docs/probes.md).

        Args:
            states: [pictures, width]; finite.
            subjects: whom each picture shows; two or more, each with two pictures or more.
        """
        names = tuple(sorted(set(subjects)))
        label = torch.tensor([names.index(subject) for subject in subjects])
        x = states.double()
        centre, spread = x.mean(0), x.std(0)
        varies = spread > ROUNDING * x.abs().amax(0)
        scale = torch.where(varies, 1 / spread.where(varies, torch.ones_like(spread)), 0)
        x = (x - centre) * scale
        turned = torch.linalg.qr(x.T).Q if x.shape[1] > len(x) else torch.eye(x.shape[1], dtype=x.dtype)
        x = x @ turned  # no more directions than pictures; what a ridge finds lies within these
        means = torch.stack([x[label == number].mean(0) for number in range(len(names))])
        scatter = x - means[label]
        count = torch.bincount(label).double()[label]  # pictures of the same subject [pictures]
        within = scatter.T @ (scatter / (count * len(names))[:, None])
        variances, axes = torch.linalg.eigh(within)
        size = (within.trace() / varies.sum()).clamp(min=torch.finfo(torch.float64).tiny)
        best: tuple[float, float, Tensor] | None = None
        for strength in STRENGTHS:
            metric = axes / (variances.clamp(min=0) + strength * size).sqrt()
            right = _left_out(x @ metric, means @ metric, label, count)
            score = round(float((right / count).sum()) / len(names), 12)  # not by rounding better than a stronger one
            if best is None or score > best[0]:
                best = score, strength, metric
        assert best is not None
        score, strength, metric = best
        return Probe(centre, scale, turned @ metric, means @ metric, names, strength, score)

    def named(self, states: Tensor) -> list[str]:
        """Who is seen in each picture [pictures, width]."""
        x = ((states.double() - self.centre) * self.scale) @ self.metric
        return [self.subjects[number] for number in _distances(x, self.means).argmin(1).tolist()]

    def tally(self, states: Tensor, subjects: Sequence[str]) -> Tally:
        """Pictures of each subject that are named right, and pictures of it, for subjects in order of their names."""
        found: Tally = dict.fromkeys(sorted(set(subjects)), (0, 0))
        for said, true in zip(self.named(states), subjects, strict=True):
            right, asked = found[true]
            found[true] = right + (said == true), asked + 1
        return found


def _distances(x: Tensor, means: Tensor) -> Tensor:
    """Squared distances [pictures, subjects]."""
    return x.square().sum(1, keepdim=True) - 2 * x @ means.T + means.square().sum(1)


def _left_out(x: Tensor, means: Tensor, label: Tensor, count: Tensor) -> Tensor:
    """Whether each picture is named right by a probe fitted on all others [pictures], without fitting them.

    In coordinates in which S + r I is the identity, leaving out picture i of subject k, of which there are n, with
    scatter s = x - m_k moves m_k by -s / (n - 1) and takes c s s' off S, c = n / (n - 1) times its weight. By the
    formula of Sherman and Morrison a distance |d|^2 becomes |d|^2 + c (s'd)^2 / (1 - c s's). Weights, scaling and r
    stay.

    Args:
        x: [pictures, directions]. means: [subjects, directions].
        label: number of the subject [pictures]. count: of its pictures, n [pictures].
    """
    rows = torch.arange(len(x))
    scatter = x - means[label]
    along = (scatter * x).sum(1, keepdim=True) - scatter @ means.T  # s'd [pictures, subjects]
    squared = _distances(x, means)
    own, stretch = scatter.square().sum(1), count / (count - 1)
    along[rows, label], squared[rows, label] = own * stretch, own * stretch**2  # d = s n / (n - 1) to the moved mean
    taken = stretch / (count * len(means))
    left = squared + (taken / (1 - taken * own))[:, None] * along**2
    return left.argmin(1) == label
