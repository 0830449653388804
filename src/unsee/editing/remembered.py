"""Statistics of what was forgotten, beside the weights of the model that forgot it: for edits still to come.

When a request is done its pictures may have to be deleted. What is left then are, of all requests so far,

- the second moments of the inputs that each edited layer gets on the forgotten pictures, as the edited model makes
  them: a later edit keeps its steps in their null space too;
- the mean hidden states of each forgotten subject's pictures below the edited blocks, which no edit changes, and how
  pictures differ around such means: samples stand among the pictures that a later edit keeps where the model sees them.

The second moments alone do not hold anybody over many requests: their null space closes most of what people differ by,
and still leaves a part of each edit's effect to be overwritten by the next (docs/LOG.md). A mean of one subject is a
biometric template. Both are data about these people: leave them out (no `remember`) where they may not be kept. Our
choice; the paper (arXiv 2605.05909) is silent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unsee.editing.retain_free import RANK
from unsee.errors import BadInput
from unsee.methods import FeatureStudy, Method
from unsee.methods.parts.features import POSITIONS, Pictures, evenly, means_by_subject
from unsee.models.packed import Packed, pack
from unsee.subspace.moments import SecondMoment, load_extra, load_moments, save_moments, watching
from unsee.subspace.replay import Replay

REMEMBERED = "unsee-forgotten.safetensors"
SAMPLES = 32  # of each forgotten subject, drawn for one edit
AROUND = 600  # pictures, about, from which it is learned how pictures of a subject differ


def check(model: Path, method: Method, remember: bool) -> None:
    """Whether `method` can hold in place what was forgotten.

    Raises:
        BadInput: it cannot, and is asked to, or there is something to be held.
    """
    if getattr(method, "needs_moments", False):
        return
    if remember:
        raise BadInput(f"--remember: method {method.name} has no null space to hold anything in place; use nscvf")
    if (model / REMEMBERED).is_file():
        raise BadInput(
            f"{model / REMEMBERED}: what was forgotten before must be held in place, which {method.name} cannot; use "
            "nscvf, or remove the file and accept that it may come back"
        )


@dataclass(frozen=True)
class Remembered:
    """What lies beside the weights.

    Attributes:
        moments: by layer.
        replay: a mean per forgotten subject, in the order of the requests; None where pictures are of different sizes.
        length, grid: positions of a picture's hidden states, and their grid, if there is a replay.
        depth: how many blocks lie above those hidden states.
    """

    moments: Mapping[str, SecondMoment]
    replay: Replay | None = None
    length: int = 0
    grid: tuple[int, int, int] = (0, 0, 0)
    depth: int = 0

    @staticmethod
    def load(model: Path, layers: Collection[str]) -> Remembered | None:
        """What lies beside the weights of `model`, of these layers; None if nothing does.

        Raises:
            BadInput: it lacks a layer, or is damaged.
        """
        file = model / REMEMBERED
        if not file.is_file():
            return None
        moments, _ = load_moments(file, layers, label="")
        extra = load_extra(file, label="")
        try:
            replay = Replay.of(extra)
            if replay is None:
                return Remembered(moments)
            length, depth, grid = int(extra["length"]), int(extra["depth"]), extra["grid"].tolist()
            if length < 1 or replay.means.shape[1] % length or len(grid) != 3:
                raise ValueError("means do not fit the shape of pictures")
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadInput(f"{file}: damaged ({error}); make the model anew, or remove the file") from error
        return Remembered(moments, replay, length, (grid[0], grid[1], grid[2]), depth)

    @staticmethod
    @torch.no_grad()
    def of(study: FeatureStudy, layers: Collection[str], past: Remembered | None) -> Remembered:
        """With the pictures of this edit as it left them, after what was remembered before."""
        modules = study.visual.editable(len(study.visual.blocks) - study.cut)
        with watching({name: modules[name] for name in layers}) as found:
            for part in study.forget.hidden.split(POSITIONS):
                study.tail(part)
        for name, moment in found.items():
            if past is not None:
                moment.merge(past.moments[name])
        before = past.replay if past is not None else None
        length, grid = study.forget.hidden.lengths[0], study.forget.hidden.grids[0]
        shapes = {*zip(study.forget.hidden.lengths, study.forget.hidden.grids, strict=True)}
        if past is not None and before is not None:
            shapes.add((past.length, past.grid))
        if len(shapes) > 1:  # no mean over pictures of different sizes; those from before are handed on
            return dataclasses.replace(past, moments=found) if past is not None else Remembered(found)
        states = study.forget.hidden.stack().flatten(1)
        means = means_by_subject(states, study.forget.subject, study.forgotten).cpu()
        if before is not None:
            means = torch.cat([before.means, means])
        each = torch.ones(len(means), dtype=torch.long)
        axes = Replay.fit(*_around(study), group_size=1, rank=RANK).axes
        depth = len(study.visual.blocks) - study.cut
        return Remembered(found, Replay(means, each / len(each), axes, each), length, grid, depth)

    def into(self, study: FeatureStudy) -> FeatureStudy:
        """`study` with samples of those forgotten among what is kept, where the model sees them now.

        Raises:
            BadInput: the study's edit begins at another block.
        """
        if self.replay is None:
            return study
        if (blocks := len(study.visual.blocks) - study.cut) != self.depth:
            raise BadInput(
                f"{REMEMBERED}: stands for those forgotten below the last {self.depth} blocks, and this edit changes "
                f"{blocks}; use --set last_blocks={self.depth}"
            )
        count, first = len(self.replay.means), len(study.subjects)
        group = torch.arange(count).repeat_interleave(SAMPLES)
        states = self.replay.around(group)
        shape = (self.length,) * len(states), (self.grid,) * len(states)
        there = study.retain.subject.device
        hidden = Packed(states.view(len(states) * self.length, -1).to(there), *shape)
        retain = study.retain
        return dataclasses.replace(
            study,
            retain=Pictures(
                pack([retain.hidden, hidden]),
                pack([retain.tokens, study.reference_tail(hidden)]),
                torch.cat([retain.subject, group.to(there) + first]),
            ),
            subjects=(*study.subjects, *(f"forgotten {i}" for i in range(count))),
            earlier=(*study.earlier, *range(first, first + count)),
            attributes=tuple(
                torch.cat([table, table.new_zeros(len(states), table.shape[1])]) for table in study.attributes
            ),
        )

    def save(self, path: Path) -> None:
        """As `load` reads it.

        Raises:
            BadInput: it cannot be written.
        """
        extra: dict[str, Tensor] = {}
        if self.replay is not None:
            shape = {"length": self.length, "grid": self.grid, "depth": self.depth}
            extra = self.replay.tensors() | {name: torch.tensor(value) for name, value in shape.items()}
        save_moments(self.moments, path, {}, extra)


def _around(study: FeatureStudy) -> tuple[Tensor, Tensor]:
    """Hidden states [pictures, size] and subjects, from 0 without gaps, of all forget and about `AROUND` retained
    pictures: all pictures of some subjects, so that a subject's mean is that of its pictures.
    """
    retain = study.retain
    subjects = retain.subject.unique()
    each = max(1, len(retain) // max(1, len(subjects)))
    some = subjects[evenly(len(subjects), max(1, AROUND // each)).to(subjects.device)] if len(subjects) else subjects
    shape = study.forget.hidden.lengths[0], study.forget.hidden.grids[0]
    alike = [one == shape for one in zip(retain.hidden.lengths, retain.hidden.grids, strict=True)]
    chosen = (torch.isin(retain.subject, some).cpu() & torch.tensor(alike, dtype=torch.bool)).nonzero()[:, 0]
    parts = [study.forget.hidden, retain.hidden[chosen]] if len(chosen) else [study.forget.hidden]
    states = torch.cat([part.stack().flatten(1).cpu() for part in parts])
    subject = torch.cat([study.forget.subject, retain.subject[chosen.to(retain.subject.device)]]).cpu()
    return states, subject.unique(return_inverse=True)[1]
