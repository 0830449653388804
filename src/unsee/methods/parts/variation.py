"""How pictures of one subject differ, borrowed from the others: for targets of whom there are few pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unsee.methods.parts.features import FeatureStudy
from unsee.models.packed import Grid, Packed

Shape = tuple[int, Grid]
"""Positions and grid of a picture's hidden states."""


class Variation:
    """Pictures that were never taken: each of a subject, varied as the pictures of somebody else vary.

    An edit that sees five pictures of a person learns those five, and the model still knows the person on a sixth.
    Discriminant analysis takes pictures of all subjects to spread alike around their means. So hidden states h of a
    picture of subject s become

        h' = m_s + cos(a) (h - m_s) + sin(a) (g - m_t),     a uniform in 0 ... pi/2,

    with g a random retained picture, of subject t, and m the means of a subject's training pictures: as far from the
    mean as pictures are, in directions in which pictures do differ. Our construction; measured in docs/LOG.md.

    Only pictures of equal size lend to each other, and a subject with one picture lends nothing; a picture to which
    nobody lends stays as it is.
    """

    def __init__(self, study: FeatureStudy) -> None:
        self._study = study
        self._means: dict[tuple[int, Shape], Tensor] = {}
        self._lenders: dict[Shape, list[int]] = {}
        for pictures in (study.forget, study.retain):
            groups: dict[tuple[int, Shape], list[int]] = {}
            for i, subject in enumerate(pictures.subject.tolist()):
                groups.setdefault((subject, _shape(pictures.hidden, i)), []).append(i)
            for (subject, shape), members in groups.items():
                self._means[subject, shape] = pictures.hidden[torch.tensor(members)].stack().mean(0)
                if pictures is study.retain and len(members) > 1:
                    self._lenders.setdefault(shape, []).extend(members)

    def of_forget(self, chosen: Tensor) -> Packed:
        """Forget pictures [chosen], each varied anew (global torch seed)."""
        return self._varied(self._study.forget.hidden[chosen], self._study.forget.subject[chosen])

    def of_retain(self, chosen: Tensor) -> Packed:
        """Retained pictures [chosen], each varied anew (global torch seed)."""
        return self._varied(self._study.retain.hidden[chosen], self._study.retain.subject[chosen])

    def _varied(self, hidden: Packed, subjects: Tensor) -> Packed:
        retain, varied = self._study.retain, []
        draws = torch.rand(len(hidden), 2).tolist()
        pictures = zip(hidden.states.split(hidden.lengths), subjects.tolist(), draws, strict=True)
        for i, (states, subject, (turn, pick)) in enumerate(pictures):
            lenders = self._lenders.get(shape := _shape(hidden, i), [])
            if lenders:
                other = lenders[int(pick * len(lenders))]
                lent = retain.hidden[other : other + 1].states - self._means[int(retain.subject[other]), shape]
                mean, angle = self._means[subject, shape], turn * math.pi / 2
                states = mean + math.cos(angle) * (states - mean) + math.sin(angle) * lent
            varied.append(states)
        return hidden.with_states(torch.cat(varied))


def _shape(pictures: Packed, i: int) -> Shape:
    return pictures.lengths[i], pictures.grids[i]
