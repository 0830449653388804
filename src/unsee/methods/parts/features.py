"""What feature-level methods see: pictures as hidden states below the edited blocks, and the reference's features."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from unsee.data.examples import ImageSource, Split
from unsee.models.anatomy import VisualModule
from unsee.models.batching import Batcher
from unsee.models.packed import NOTHING, Grid, Packed, pack
from unsee.progress import track
from unsee.subspace.moments import SecondMoment, watching

CHUNK = 16  # pictures prepared at a time
POSITIONS = 1200  # of hidden states per forward pass without gradients: bounds its memory at any size of picture
SAMPLE = 120  # pictures of each kind that certificates look at
FINEST = 8  # cells per axis; a finer comparison costs memory and asks for a likeness to the pixel


@dataclass(frozen=True)
class Pictures:
    """Pictures as a feature-level method sees them; they may differ in size.

    Attributes:
        hidden: output of the last frozen block; everything below is never run again.
        tokens: the reference model's visual tokens.
        subject: index into `FeatureStudy.subjects` [pictures].
    """

    hidden: Packed
    tokens: Packed
    subject: Tensor

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True)
class FeatureStudy:
    """The data of one feature-level edit.

    Attributes:
        visual: the module to be edited; still equal to the reference when the study is made.
        reference: a frozen copy of it; everything below the cut is shared, not copied.
        cut: blocks below this index are frozen.
        forget: training pictures of what must be forgotten.
        retain: training pictures of what must be kept.
        held_back: validation pictures of what must be forgotten; only weights that adapt look at them. May be empty.
        subjects: all subjects, forgotten ones first.
        earlier: numbers of the subjects that earlier edits made the model forget; their pictures are among `retain`, to
            be kept as the model sees them now.
        attributes: visible attributes of `forget` then `retain`: one [pictures, classes] 0/1 table per attribute, rows
            of zeros where it is unknown.
        others: pictures of anything else that must be seen as before; nobody said of what, so all have the subject 0.
            May be empty.
    """

    visual: VisualModule
    reference: VisualModule
    cut: int
    forget: Pictures
    retain: Pictures
    held_back: Pictures
    subjects: tuple[str, ...]
    attributes: tuple[Tensor, ...]
    earlier: tuple[int, ...] = ()
    others: Pictures = Pictures(NOTHING, NOTHING, torch.zeros(0, dtype=torch.long))

    @staticmethod
    def of(
        visual: VisualModule, batcher: Batcher, forget: Split, retain: Split, held_back: Split, last_blocks: int
    ) -> FeatureStudy:
        """Run every picture once through the reference.

        Args:
            forget, retain: training examples; held_back: validation examples of the forget subjects.
            last_blocks: how many blocks a method will edit.
        """
        cut = len(visual.blocks) - last_blocks
        subjects = tuple(dict.fromkeys((*forget.pictured.subjects, *retain.pictured.subjects)))
        number = {subject: i for i, subject in enumerate(subjects)}

        def see(split: Split, what: str) -> Pictures:
            hidden, tokens = look(visual, batcher, list(split.pictures), cut, what)
            subject = [number[group[0].subject] for group in split.pictures.values()]
            return Pictures(hidden, tokens, torch.tensor(subject, dtype=torch.long, device=batcher.device))

        return FeatureStudy(
            visual=visual,
            reference=_copy_of_tail(visual, last_blocks),
            cut=cut,
            forget=see(forget, "reference features: forget"),
            retain=see(retain, "reference features: retain"),
            held_back=see(held_back, "reference features: held back"),
            subjects=subjects,
            attributes=tuple(table.to(batcher.device) for _, _, table in attributes((forget, retain), {})),
        )

    @staticmethod
    def unseen(visual: VisualModule, batcher: Batcher, split: Split, last_blocks: int) -> Pictures | None:
        """Some pictures, evenly spaced, that no edit has to do with; for certificates. None if there are none."""
        pictures = list(split.pictures)
        if not pictures:
            return None
        images = [pictures[i] for i in evenly(len(pictures), SAMPLE).tolist()]
        return FeatureStudy.unlabelled(visual, batcher, images, last_blocks, "reference features: unseen")

    @staticmethod
    def unlabelled(
        visual: VisualModule, batcher: Batcher, images: Sequence[ImageSource], last_blocks: int, what: str
    ) -> Pictures:
        """Pictures of nobody in particular."""
        hidden, tokens = look(visual, batcher, images, len(visual.blocks) - last_blocks, what)
        return Pictures(hidden, tokens, torch.zeros(len(images), dtype=torch.long, device=batcher.device))

    def tail(self, hidden: Packed) -> Packed:
        """Edited part of the visual module: hidden states at the cut -> visual tokens."""
        return self.visual.leave(self.visual.run(hidden, start=self.cut))

    @torch.no_grad()
    def reference_blocks(self, hidden: Packed) -> Packed:
        """What the reference's blocks make of hidden states at the cut, before the projector; a few at a time."""
        return pack([self.reference.run(part, start=self.cut) for part in hidden.split(POSITIONS)])

    @torch.no_grad()
    def reference_tail(self, hidden: Packed) -> Packed:
        """What the reference makes of hidden states at the cut that belong to no picture, e.g. samples."""
        return pack([self.reference.leave(self.reference.run(p, start=self.cut)) for p in hidden.split(POSITIONS)])

    def moments(self, layers: Collection[str], pictures: int = 0) -> dict[str, SecondMoment]:
        """Second moments of the inputs that layers of the unedited tail get on retained pictures.

        Args:
            layers: full module names.
            pictures: of how many retained pictures at most, evenly spaced; 0: of all.
        """
        chosen = evenly(len(self.retain), pictures or len(self.retain))
        modules = self.reference.editable(len(self.reference.blocks) - self.cut)
        with watching({name: modules[name] for name in layers}) as moments:
            for part in track(self.retain.hidden[chosen].split(POSITIONS), "statistics of retained pictures"):
                self.reference_tail(part)
        return moments

    @cached_property
    def forgotten(self) -> int:
        """How many of the subjects are to be forgotten."""
        return int(self.forget.subject.max()) + 1

    @cached_property
    def candidates(self) -> Tensor:
        """Whether a target may be taken for a retained subject [retained subjects]: not for one that earlier edits took
        away, whom a model that never saw them would not name either. All may where there are no others.
        """
        left = [i not in self.earlier for i in range(self.forgotten, len(self.subjects))]
        return torch.tensor(left if any(left) else [True] * len(left), device=self.retain.subject.device)

    @cached_property
    def grid(self) -> Grid:
        """The grid on which pictures are compared: the smallest on each axis, at most `FINEST`. Our choice."""
        layers, rows, columns = zip(*self.forget.tokens.grids, *self.retain.tokens.grids, strict=True)
        return min(layers), min(*rows, FINEST), min(*columns, FINEST)

    def flat(self, tokens: Packed) -> Tensor:
        """Visual tokens as one vector per picture [pictures, cells of `grid` * width]."""
        return tokens.on([self.grid] * len(tokens)).stack().flatten(1)

    @cached_property
    def centre(self) -> Tensor:
        """Mean reference vector of retained pictures [1, cells * width]."""
        return self.flat(self.retain.tokens).mean(0, keepdim=True)

    @cached_property
    def variance(self) -> Tensor:
        """Variance of all reference token entries over retained pictures (scalar): the unit of squared distances."""
        return self.retain.tokens.states.var()

    def direction(self, tokens: Packed) -> Tensor:
        """Centred, unit-length vectors [pictures, cells * width]: cosine geometry per picture."""
        return F.normalize(self.flat(tokens) - self.centre, dim=-1)

    @cached_property
    def centroids(self) -> Tensor:
        """Reference centroid direction of every subject [subjects, cells * width]."""
        vectors = torch.cat([self.flat(self.forget.tokens), self.flat(self.retain.tokens)])
        subject = torch.cat([self.forget.subject, self.retain.subject])
        return F.normalize(means_by_subject(vectors, subject, len(self.subjects)) - self.centre, dim=-1)

    @property
    def target_centroids(self) -> Tensor:
        """Those of the forgotten subjects [forget subjects, cells * width]."""
        means = means_by_subject(self.flat(self.forget.tokens), self.forget.subject, self.forgotten)
        return F.normalize(means - self.centre, dim=-1)

    def recognised(self, nearest: int = 1) -> Tensor:
        """Held-back pictures whose own subject's reference centroid is among the `nearest` [pictures], as 0/1."""
        return self.recognised_in(self.held_back.hidden, self.held_back.subject, nearest)

    @torch.no_grad()
    def recognised_in(self, hidden: Packed, subject: Tensor, nearest: int) -> Tensor:
        """The same of hidden states at the cut of any pictures of these subjects [pictures]."""
        likeness = self.direction(self.tail(hidden)) @ self.centroids.T
        closest = likeness.topk(min(nearest, len(self.subjects)), 1).indices
        return (closest == subject[:, None]).any(1).float()


class Tail(nn.Module):
    """The edited part of a visual module as one torch module, so that it can run with other weights than its own."""

    def __init__(self, visual: VisualModule, cut: int) -> None:
        super().__init__()
        self.model, self._visual, self._cut = visual.model, visual, cut

    def forward(self, hidden: Packed) -> Tensor:
        return self._visual.leave(self._visual.run(hidden, start=self._cut)).states

    def under(self, weights: Mapping[str, Tensor], hidden: Packed) -> Tensor:
        """Visual tokens with `weights`, by parameter name, in place of the module's own for this one pass."""
        own = {f"model.{name}": weight for name, weight in weights.items()}
        return functional_call(self, own, (hidden,), tie_weights=False)  # type: ignore[no-any-return]


def evenly(count: int, most: int) -> Tensor:
    """Indices of at most `most` of `count` things, evenly spaced [chosen]; `count` is at least 1."""
    return torch.arange(count)[:: -(-count // most)]


def means_by_subject(values: Tensor, subject: Tensor, count: int) -> Tensor:
    """Mean over the pictures of each subject [count, ...] of values [pictures, ...]."""
    return torch.stack([values[subject == i].mean(0) for i in range(count)])


@torch.no_grad()
def look(
    visual: VisualModule, batcher: Batcher, images: Sequence[ImageSource], cut: int, what: str
) -> tuple[Packed, Packed]:
    """Hidden states at the cut and visual tokens of pictures, a few at a time."""
    if not images:
        return NOTHING, NOTHING
    hidden, tokens = [], []
    for entered in entering(visual, batcher, images, what):
        at_cut = visual.run(entered, stop=cut)
        hidden.append(at_cut)
        tokens.append(visual.leave(visual.run(at_cut, start=cut)))
    return pack(hidden), pack(tokens)


def entering(visual: VisualModule, batcher: Batcher, images: Sequence[ImageSource], what: str) -> Iterator[Packed]:
    """Hidden states before the first block, in parts as large as a pass may be at any size of picture."""
    waiting: list[Packed] = []
    for start in track(range(0, len(images), CHUNK), what):
        waiting.append(visual.enter(batcher.images(images[start : start + CHUNK])))
        if sum(len(part.states) for part in waiting) >= POSITIONS:
            *full, rest = pack(waiting).split(POSITIONS)
            yield from full
            waiting = [rest]
    yield from pack(waiting).split(POSITIONS)


def _copy_of_tail(visual: VisualModule, last_blocks: int) -> VisualModule:
    copied = {id(p) for module in visual.tail(last_blocks) for p in module.parameters()}
    shared: dict[int, Any] = {id(p): p for p in visual.model.parameters() if id(p) not in copied}
    return type(visual)(copy.deepcopy(visual.model, shared).requires_grad_(False))


def attributes(
    splits: Sequence[Split], known: Mapping[str, Sequence[str]]
) -> list[tuple[str, tuple[str, ...], Tensor]]:
    """Visible attributes of the pictures of splits: (attribute, its classes, 0/1 table [pictures, classes]).

    Args:
        known: further classes of attributes, by attribute, that have a column even if no picture shows them.
    """
    groups = [group for split in splits for group in split.pictures.values()]
    keys = sorted({e.key or e.question for group in groups for e in group if e.probe == "attribute"})
    tables = []
    for key in keys:
        answers = [
            next((e.answer for e in group if e.probe == "attribute" and (e.key or e.question) == key), None)
            for group in groups
        ]
        classes = tuple(sorted({a for a in answers if a is not None} | {*known.get(key, ())}))
        tables.append((key, classes, torch.tensor([[float(answer == c) for c in classes] for answer in answers])))
    return tables
