"""What stands in for retained pictures when none may be kept: a distribution of their hidden states at one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Replay:
    """A mixture of Gaussians with one mean per group of subjects and one low-rank covariance for all.

    A group of one is a mean per subject: of faces, a biometric template. Groups of k similar subjects store nobody's
    own mean, but what k people have in common (microaggregation, Domingo-Ferrer & Mateo-Sanz 2002); one group of all is
    a single Gaussian. Our choice; the paper (arXiv 2605.05909) says nothing about working without retained data.

    Attributes:
        means: [groups, size], of hidden states flattened per picture.
        shares: of all pictures that each group has [groups].
        axes: principal directions of the pictures around their group's mean, each as long as its standard deviation
            [rank, size].
        subjects: how many subjects each group has [groups].
    """

    means: Tensor
    shares: Tensor
    axes: Tensor
    subjects: Tensor

    @staticmethod
    def fit(states: Tensor, subject: Tensor, group_size: int, rank: int) -> Replay:
        """Fit to pictures.

        Args:
            states: hidden states [pictures, size]. subject: of each picture [pictures], 0 ... subjects - 1.
            group_size: subjects per mean, at least; 0: all in one group.
            rank: of the covariance, at most.

        Raises:
            ValueError: no pictures.
        """
        if not len(states):
            raise ValueError("a replay distribution needs at least one picture")
        x = states.double()
        own = torch.stack([x[subject == i].mean(0) for i in range(int(subject.max()) + 1)])
        groups = microaggregated(own, group_size or len(own))
        group = torch.empty(len(own), dtype=torch.long)
        for number, members in enumerate(groups):
            group[members] = number
        of = group[subject]
        means = torch.stack([x[of == i].mean(0) for i in range(len(groups))])
        rest = x - means[of]
        many = len(x) > x.shape[1]  # pictures, more than numbers in each: the smaller side is decomposed
        values, vectors = torch.linalg.eigh((rest.T @ rest if many else rest @ rest.T) / len(x))
        values, vectors = values[-rank:], vectors[:, -rank:]
        large = values > 1e-12 * values[-1].clamp(min=1e-300)
        vectors = vectors[:, large]
        axes = (vectors * values[large].sqrt()).T.contiguous() if many else vectors.T @ rest / len(x) ** 0.5
        return Replay(
            means.float(),
            (of.bincount(minlength=len(groups)) / len(x)).float(),
            axes.float(),
            torch.tensor([len(members) for members in groups]),
        )

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw so many hidden states [count, size], and the group of each [count] (global torch seed)."""
        group = torch.multinomial(self.shares, count, replacement=True)
        return self.around(group), group

    def around(self, group: Tensor) -> Tensor:
        """A hidden state for each of these groups [count] -> [count, size] (global torch seed)."""
        return self.means[group] + torch.randn(len(group), len(self.axes)) @ self.axes

    @property
    def identifies(self) -> bool:
        """Whether a mean of a single subject is stored."""
        return bool((self.subjects == 1).any())

    @property
    def meaning(self) -> str:
        """What is stored, in one line."""
        vectors = f"{len(self.axes)} directions in which pictures of everybody differ"
        if self.identifies:
            return f"one mean per subject ({len(self.means)}), a biometric template of each face, and {vectors}"
        if len(self.means) == 1:
            return f"one mean over all {int(self.subjects[0])} subjects, and {vectors}"
        return f"{len(self.means)} means, each over at least {int(self.subjects.min())} subjects, and {vectors}"

    def tensors(self) -> dict[str, Tensor]:
        """As stored beside moments."""
        names = ("means", "shares", "axes", "subjects")
        return {f"replay.{name}": getattr(self, name) for name in names}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Replay | None:
        """What `tensors` gave; None if there is none.

        Raises:
            ValueError: parts are missing or do not fit together.
        """
        found = {key.removeprefix("replay."): value for key, value in tensors.items() if key.startswith("replay.")}
        if not found:
            return None
        try:
            replay = Replay(found["means"], found["shares"], found["axes"], found["subjects"])
        except KeyError as error:
            raise ValueError(f"replay distribution without {error}") from error
        if replay.means.dim() != 2 or replay.axes.dim() != 2:
            raise ValueError("means or axes of the replay distribution are no matrix")
        groups, size = replay.means.shape
        if replay.axes.shape[1:] != (size,) or replay.shares.shape != (groups,) or replay.subjects.shape != (groups,):
            raise ValueError("parts of the replay distribution do not fit together")
        return replay


def microaggregated(points: Tensor, size: int) -> list[list[int]]:
    """Groups of at least `size` points that are near each other; the last one takes what is left over.

    MDAV (Domingo-Ferrer & Mateo-Sanz 2002), one group at a time: the point farthest from the centre and its nearest.

    Args:
        points: [points, width]. size: at least 1; more than there are points gives one group.
    """
    left, groups = list(range(len(points))), []
    apart = torch.cdist(points, points)
    while len(left) >= 2 * size:
        centre = points[left].mean(0)
        farthest = max(left, key=lambda i: float((points[i] - centre).norm()))
        group = sorted(left, key=lambda i: (float(apart[farthest, i]), i))[:size]
        groups.append(group)
        left = [i for i in left if i not in group]
    return [*groups, left] if left else groups
