"""Studies by hand: a visual module without layers, pictures where a test puts them, people under other names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unsee.data.examples import Example, Split, UnlearnData
from unsee.methods import FeatureStudy
from unsee.methods.parts.features import Pictures
from unsee.models.anatomy import VisualModule
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import load_visual
from unsee.models.packed import NOTHING, Packed

NOBODY = Pictures(NOTHING, NOTHING, torch.empty(0, dtype=torch.long))


class Through(VisualModule):
    """A visual module without layers: hidden states are the tokens, so a test decides where pictures stand.

    Args:
        shift: added by the projector. below: added by the blocks.
    """

    vision_tower = projector = None  # type: ignore[assignment]
    blocks = ()  # type: ignore[assignment]

    def __init__(self, shift: float | Tensor = 0.0, below: float | Tensor = 0.0) -> None:
        self.shift, self.below = shift, below

    def enter(self, images: Any) -> Packed:
        raise AssertionError("no picture is needed")

    def run(self, hidden: Packed, start: int = 0, stop: int | None = None) -> Packed:
        return hidden.with_states(hidden.states + self.below)

    def leave(self, hidden: Packed) -> Packed:
        return hidden.with_states(hidden.states + self.shift)


def carried_out(study: Callable[[Any, Path], object]) -> Any:
    """The fixture `whole` of a module: where its `grid` was carried out without a break."""

    @pytest.fixture(scope="module")
    def whole(grid: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("study") / "whole"
        study(grid, out)
        return out

    return whole


def equal(states: Tensor) -> Packed:
    """Pictures of one row each [pictures, positions, width]."""
    count, positions, _ = states.shape
    return Packed(states.flatten(0, 1), (positions,) * count, ((1, 1, positions),) * count)


def moved(pictures: Pictures, hidden: Tensor) -> Pictures:
    """The same pictures with other hidden states [pictures, positions, width]."""
    return dataclasses.replace(pictures, hidden=pictures.hidden.with_states(hidden.flatten(0, 1)))


def people_study(checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], last_blocks: int = 1) -> FeatureStudy:
    """What a method would see of `people`, at the reference features of a model."""
    loaded = load_visual(str(checkpoint))
    parts = people.train.of(forget), people.train.without(forget), people.validation.of(forget)
    return FeatureStudy.of(loaded.visual, loaded.batcher, *parts, last_blocks)


def uneven_study(family: str, new_model: Callable[..., Any], ragged: UnlearnData) -> FeatureStudy:
    """Two subjects to forget, pictures of different sizes, two blocks of a new model to be edited."""
    (model, processor), forget = new_model(family), ragged.choose("first:2")
    parts = ragged.train.of(forget), ragged.train.without(forget), ragged.validation.of(forget)
    return FeatureStudy.of(FAMILIES[family].visual(model), Batcher(processor, FAMILIES[family]), *parts, last_blocks=2)


def still(real: FeatureStudy) -> FeatureStudy:
    """The same pictures at the same places, under a visual module without layers."""
    parts = {part: getattr(real, part) for part in ("forget", "retain", "held_back")}
    hidden = {part: dataclasses.replace(pictures, hidden=pictures.tokens) for part, pictures in parts.items()}
    return dataclasses.replace(real, visual=Through(), reference=Through(), **hidden)


def placed(forget: Tensor, retain: Tensor, looks: tuple[Tensor, ...] = ()) -> FeatureStudy:
    """Subjects whose pictures a test puts somewhere.

    Args:
        forget, retain: [subjects, pictures, width] or [subjects, pictures, positions, width].
        looks: see `FeatureStudy.attributes`.
    """

    def pictures(points: Tensor, first: int) -> Pictures:
        subject = torch.arange(first, first + len(points)).repeat_interleave(points.shape[1])
        states = equal(points.flatten(0, 1).reshape(len(subject), -1, points.shape[-1]))
        return Pictures(states, states, subject)

    names = tuple(f"subject {i}" for i in range(len(forget) + len(retain)))
    parts = pictures(forget, 0), pictures(retain, len(forget)), NOBODY
    return FeatureStudy(Through(), Through(), 0, *parts, names, looks)


def answering(data: UnlearnData, probes: tuple[str, ...], answer: str = "nobody") -> UnlearnData:
    """Every true answer to these questions replaced by one and the same."""

    def other(e: Example) -> Example:
        return dataclasses.replace(e, answer=answer) if e.probe in probes else e

    parts = {name: Split(tuple(map(other, data.split(name)))) for name in ("train", "validation")}
    return dataclasses.replace(data, **parts)
