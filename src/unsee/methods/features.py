"""What feature-level methods see: pictures as hidden states below the edited blocks, and the reference's features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from unsee.data.examples import ImageSource, Split
from unsee.models.anatomy import VisualModule
from unsee.models.batching import Batcher
from unsee.progress import track

CHUNK = 64  # pictures per forward pass without gradients


@dataclass(frozen=True)
class Pictures:
    """Pictures as a feature-level method sees them.

    Attributes:
        hidden: output of the last frozen block [pictures, positions, width]; everything below is never run again.
        tokens: the reference model's visual tokens [pictures, tokens, language width].
        subject: index into `FeatureStudy.subjects` [pictures].
    """

    hidden: Tensor
    tokens: Tensor
    subject: Tensor

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True)
class FeatureStudy:
    """The data of one feature-level edit.

    Attributes:
        visual: the module to be edited; still equal to the reference when the study is made.
        reference: a frozen copy of it.
        cut: blocks below this index are frozen.
        forget: training pictures of what must be forgotten.
        retain: training pictures of what must be kept.
        held_back: validation pictures of what must be forgotten; only dials look at them. May be empty.
        subjects: all subjects, forgotten ones first.
        shared: whether a forget subject and a subject have an answer in common [forget subjects, subjects].
        looks: visible attributes of `forget` then `retain`: one [pictures, classes] 0/1 table per attribute, rows of
            zeros where it is unknown.
    """

    visual: VisualModule
    reference: VisualModule
    cut: int
    forget: Pictures
    retain: Pictures
    held_back: Pictures
    subjects: tuple[str, ...]
    shared: Tensor
    looks: tuple[Tensor, ...]

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
            subject = torch.tensor([number[group[0].subject] for group in split.pictures.values()], dtype=torch.long)
            hidden, tokens = look(visual, batcher, list(split.pictures), cut, what)
            return Pictures(hidden, tokens, subject)

        return FeatureStudy(
            visual=visual,
            reference=type(visual)(copy.deepcopy(visual.model).requires_grad_(False)),
            cut=cut,
            forget=see(forget, "reference features: forget"),
            retain=see(retain, "reference features: retain"),
            held_back=see(held_back, "reference features: held back"),
            subjects=subjects,
            shared=_shared_answers(forget, retain, subjects),
            looks=_looks((forget, retain)),
        )

    def tail(self, hidden: Tensor) -> Tensor:
        """Edited part of the visual module: hidden states at the cut -> visual tokens."""
        return self.visual.leave(self.visual.run(hidden, start=self.cut))

    @torch.no_grad()
    def reference_tail(self, hidden: Tensor) -> Tensor:
        """What the reference makes of hidden states at the cut that belong to no picture, e.g. mixtures."""
        return self.reference.leave(self.reference.run(hidden, start=self.cut))

    @cached_property
    def centre(self) -> Tensor:
        """Mean reference tokens over retained pictures [1, tokens, width]."""
        return self.retain.tokens.mean(0, keepdim=True)

    @cached_property
    def variance(self) -> Tensor:
        """Variance of all reference token entries over retained pictures (scalar): the unit of squared distances."""
        return self.retain.tokens.var()

    def direction(self, tokens: Tensor) -> Tensor:
        """Centred, flattened, unit-length features [pictures, tokens * width]: cosine geometry per picture."""
        return F.normalize((tokens - self.centre).flatten(1), dim=-1)

    @cached_property
    def centroids(self) -> Tensor:
        """Reference centroid direction of every subject [subjects, tokens * width]."""
        tokens = torch.cat([self.forget.tokens, self.retain.tokens])
        subject = torch.cat([self.forget.subject, self.retain.subject])
        means = torch.stack([tokens[subject == i].mean(0) for i in range(len(self.subjects))])
        return self.direction(means)

    @torch.no_grad()
    def recognised(self, nearest: int = 1) -> Tensor:
        """Held-back pictures whose own subject's reference centroid is among the `nearest` [pictures], as 0/1."""
        likeness = self.direction(self.tail(self.held_back.hidden)) @ self.centroids.T
        closest = likeness.topk(min(nearest, len(self.subjects)), 1).indices
        return (closest == self.held_back.subject[:, None]).any(1).float()


@torch.no_grad()
def look(
    visual: VisualModule, batcher: Batcher, images: Sequence[ImageSource], cut: int, what: str
) -> tuple[Tensor, Tensor]:
    """Hidden states at the cut and visual tokens of pictures, a few at a time.

    Returns:
        hidden [pictures, positions, width] and tokens [pictures, tokens, language width]; empty for no pictures.
    """
    if not images:
        return torch.empty(0), torch.empty(0)
    hidden, tokens = [], []
    for start in track(range(0, len(images), CHUNK), what):
        at_cut = visual.run(visual.enter(batcher.images(images[start : start + CHUNK])), stop=cut)
        hidden.append(at_cut)
        tokens.append(visual.leave(visual.run(at_cut, start=cut)))
    return torch.cat(hidden), torch.cat(tokens)


def _shared_answers(forget: Split, retain: Split, subjects: Sequence[str]) -> Tensor:
    """[forget subjects, subjects]: do two subjects have the same answer to the same kind of question?"""
    known: dict[str, set[tuple[str, str]]] = {subject: set() for subject in subjects}
    for e in (*forget.probing("identity", "fact"), *retain.probing("identity", "fact")):
        known.setdefault(e.subject, set()).add((e.key or e.question, e.answer))
    return torch.tensor([[bool(known[a] & known[b]) for b in subjects] for a in forget.pictured.subjects])


def _looks(splits: Sequence[Split]) -> tuple[Tensor, ...]:
    groups = [group for split in splits for group in split.pictures.values()]
    keys = sorted({e.key or e.question for group in groups for e in group if e.probe == "attribute"})
    tables = []
    for key in keys:
        answers = [
            next((e.answer for e in group if e.probe == "attribute" and (e.key or e.question) == key), None)
            for group in groups
        ]
        classes = sorted({a for a in answers if a is not None})
        tables.append(torch.tensor([[float(answer == c) for c in classes] for answer in answers]))
    return tuple(tables)
