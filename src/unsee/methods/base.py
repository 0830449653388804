"""What every unlearning method is: a frozen dataclass whose fields are its settings, and a plan for the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unsee.data.examples import Split
from unsee.methods.features import FeatureStudy
from unsee.models.loading import Loaded
from unsee.subspace.moments import SecondMoment
from unsee.training.loop import History, Phase, run


@dataclass(frozen=True)
class Plan:
    """Everything the loop needs to carry a method out.

    Attributes:
        edited: the parameters that may change, by full name; nothing else does (tested for every method).
        constraint: entered around the whole run, e.g. to keep steps inside a null space.
        after_step: see `training.loop.run`.
    """

    edited: Mapping[str, nn.Parameter]
    phases: Sequence[Phase]
    optimiser: Optimizer
    steps: int
    schedule: LRScheduler | None = None
    clip_norm: float | None = None
    constraint: AbstractContextManager[None] = field(default_factory=nullcontext)
    after_step: Callable[[int], Mapping[str, float]] | None = None

    def carry_out(self, label: str) -> History:
        with self.constraint:
            return run(self.phases, self.optimiser, self.steps, label, self.schedule, self.clip_norm, self.after_step)


class Method(ABC):
    """Base of all methods.

    Attributes:
        name: as in the table and on the command line.
        paper: where the idea is published, and what of ours is a reconstruction.
        level: `features` methods see the visual module only (the language model is never loaded); `outputs` methods
            train on the answers of the whole model.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    level: ClassVar[Literal["features", "outputs"]]


class FeatureMethod(Method):
    """Works on visual features alone, so its cost does not depend on the language model."""

    level: ClassVar[Literal["features", "outputs"]] = "features"
    needs_moments: ClassVar[bool] = False
    last_blocks: int

    @abstractmethod
    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        """Prepare the edit of `study.visual`, whose weights still equal the reference.

        Args:
            moments: second moments of the retained inputs of every edited layer, if the method needs them.
        """


class OutputMethod(Method):
    """Trains on the answers of the whole model."""

    level: ClassVar[Literal["features", "outputs"]] = "outputs"

    @abstractmethod
    def plan(self, student: Loaded, forget: Split, retain: Split) -> Plan:
        """Prepare the edit of `student`, whose weights still equal the reference.

        Args:
            forget: training questions that must no longer be answered.
            retain: training questions that must still be.
        """
