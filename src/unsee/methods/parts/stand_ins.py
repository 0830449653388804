"""What a forgotten picture is to look like: the positives of contrastive visual forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unsee.methods.parts.features import FeatureStudy, means_by_subject
from unsee.models.packed import Packed

Positive = Literal["unknowing", "look_alike", "transport", "mixture", "perturbed", "centre"]
RIDGE = 0.01  # of the spread within subjects, relative to its mean: chosen on seeds 100-102
NOISE = 1.0  # of a perturbed copy, in standard deviations of the hidden states


@dataclass(frozen=True)
class StandIns:
    """One stand-in for every forget picture.

    Attributes:
        picture: index of the retained picture it is, or was made from [forget pictures].
        hidden: its hidden states at the cut, on the grid of that picture; None if there are none.
        tokens: the visual tokens it asks for, on the grids of the forget pictures.
    """

    picture: Tensor
    hidden: Packed | None
    tokens: Packed

    @staticmethod
    @torch.no_grad()
    def choose(study: FeatureStudy, kind: Positive, same_attributes: bool) -> StandIns:
        """Choose positives.

        The paper (arXiv 2605.05909) speaks of guiding target representations "toward appropriate regions of the feature
        space" and says no more; every kind is our reading.

        Args:
            kind: `unknowing`: of whom a model would take the target for that never saw it, see `mistaken_for`;
                `look_alike`: the retained picture with the most alike tokens; `transport`: the picture itself, moved by
                the difference of the two subjects' mean tokens; `mixture`: half of the unknowing picture, half of the
                most alike one; `perturbed`: the picture itself with noise at the cut; `centre`: the mean of all
                retained pictures.
            same_attributes: pictures with the most visible attributes in common come first.
        """
        forget, retain = study.forget, study.retain
        alike = study.direction(forget.tokens) @ study.direction(retain.tokens).T  # cosines [forget, retained pictures]
        shared = sum((t[: len(forget)] @ t[len(forget) :].T for t in study.attributes), torch.zeros_like(alike))
        if not same_attributes:
            shared = torch.zeros_like(alike)
        alike = alike.masked_fill(~study.candidates[retain.subject - study.forgotten], float("-inf"))
        rank = mistaken_for(study).argsort(1).argsort(1)[:, retain.subject - study.forgotten]
        steps = len(study.subjects) + 1  # of rank between one more attribute in common and one less
        near = (alike + 3.0 * steps * shared).argmax(1)
        unknowing = (alike - 3.0 * rank + 3.0 * steps * shared).argmax(1)
        picture = near if kind == "look_alike" else unknowing
        grids = forget.tokens.grids
        if kind in ("unknowing", "look_alike"):
            return StandIns(picture, retain.hidden[picture], retain.tokens[picture].on(grids))
        if kind == "mixture":
            shape = list(zip(retain.hidden.lengths, retain.hidden.grids, strict=True))
            alone = [shape[i] != shape[j] for i, j in zip(picture.tolist(), near.tolist(), strict=True)]
            of_other_size = torch.tensor(alone, device=near.device)
            other = torch.where(of_other_size, picture, near)  # only pictures of the same size can be mixed
            first = retain.hidden[picture]
            hidden = first.with_states((first.states + retain.hidden[other].states) / 2)
            return StandIns(picture, hidden, study.reference_tail(hidden).on(grids))
        if kind == "perturbed":
            spread = retain.hidden.states.std(0)
            hidden = forget.hidden
            hidden = hidden.with_states(hidden.states + NOISE * spread * torch.randn_like(hidden.states))
            return StandIns(picture, hidden, study.reference_tail(hidden))
        theirs = retain.tokens.on([study.grid] * len(retain)).stack()  # [retained pictures, cells, width]
        if kind == "centre":
            return StandIns(picture, None, _cells(study, theirs.mean(0).expand(len(forget), -1, -1)).on(grids))
        own = forget.tokens.on([study.grid] * len(forget)).stack()
        means = {int(i): theirs[retain.subject == i].mean(0) for i in retain.subject[picture].unique()}
        other = torch.stack([means[int(i)] for i in retain.subject[picture]])
        mean = means_by_subject(own, forget.subject, study.forgotten)[forget.subject]
        moved = _cells(study, other - mean).on(grids)
        return StandIns(picture, None, forget.tokens.with_states(forget.tokens.states + moved.states))


def _cells(study: FeatureStudy, states: Tensor) -> Packed:
    """[pictures, cells, width] on the grid on which pictures are compared."""
    return Packed(states.flatten(0, 1), (states.shape[1],) * len(states), (study.grid,) * len(states))


def mistaken_for(study: FeatureStudy) -> Tensor:
    """How far each forget picture is from every retained subject, to a model that never saw its own subject.

    Linear discriminant analysis fitted on retained pictures alone: squared distance of mean visual tokens to each
    subject's mean, in units of the spread within subjects. Its nearest subject is whom a gold model names for 50-90 %
    of the pictures, about as often as a second gold model does (docs/LOG.md). So a target's answers survive by
    coincidence as often as they would in a model that never saw it, not more and not less. Our choice.

    Returns:
        squared distances [forget pictures, retained subjects].
    """
    seen = study.retain.tokens.mean().double()
    subject = study.retain.subject - study.forgotten
    means = means_by_subject(seen, subject, len(study.subjects) - study.forgotten)
    _, sizes, axes = torch.linalg.svd(seen - means[subject], full_matrices=False)
    spread = sizes.square() / len(seen)
    ridge = RIDGE * spread.sum() / seen.shape[1] + torch.finfo(spread.dtype).tiny
    apart = study.forget.tokens.mean().double()[:, None] - means[None]  # [forget pictures, retained subjects, width]
    along = (apart @ axes.T).square()
    beside = (apart.square().sum(-1) - along.sum(-1)).clamp(min=0)
    distance: Tensor = (along / (spread + ridge)).sum(-1) + beside / ridge
    return distance
