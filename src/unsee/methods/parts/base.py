"""What every unlearning method is: a frozen dataclass whose fields are its settings, and a plan for the loop."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unsee.data.examples import Split
from unsee.methods.parts.features import FeatureStudy
from unsee.models.anatomy import VisualModule
from unsee.models.loading import Loaded
from unsee.subspace.joined import JoinedMoments
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace
from unsee.training.loop import History, Phase, run

Given = Literal["facts", "retained pictures", "retained answers", "attributes", "held-back pictures", "text"]
"""What a method may look at beyond the pictures to be forgotten and the names of who they show.

`facts`: true answers to other questions about those to be forgotten; `retained pictures`, with the names of who they
show; `retained answers` to other questions about them; `attributes`: labels of what anybody can see, of whomever;
`held-back pictures` of those to be forgotten (validation); `text`: questions without a picture.
"""


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


def setting(default: float, was: str | None = None, **limits: float) -> Any:
    """A setting of a method.

    Args:
        was: what it was called in an earlier version; files and commands are still read, see `settings.renamed`.
        limits: `low`, `high` (reached at most) and `above` (never reached).
    """
    return field(default=default, metadata=limits | ({"was": was} if was else {}))


def positive(default: float, was: str | None = None) -> Any:
    """A setting above zero."""
    return setting(default, was, above=0)


def share(default: float, was: str | None = None) -> Any:
    """A setting from zero to one."""
    return setting(default, was, high=1)


def count(default: int) -> Any:
    """A whole number that may be zero."""
    return setting(default, low=0)


class Method(ABC):
    """Base of all methods.

    Attributes:
        name: as in the table and on the command line.
        paper: where the idea is published, and what of ours is a reconstruction.
        level: `features` methods see the visual module only (the language model is never loaded); `outputs` methods
            train on the answers of the whole model.
        given: what it looks at with its default settings. A contract test takes the rest away, which may not change a
            byte of the result, and then each of these, which must.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    level: ClassVar[Literal["features", "outputs"]]
    given: ClassVar[tuple[Given, ...]]

    @property
    def language_model(self) -> Literal["not loaded", "read", "changed"]:
        """What becomes of the language model."""
        return "read"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Everything it was given, in words."""
        loaded = self.language_model != "not loaded"
        return (*self.given, *([f"language model ({self.language_model})"] if loaded else []))

    def __post_init__(self) -> None:
        """Whole numbers are at least 1 and numbers finite and not negative, unless a field says otherwise.

        Raises:
            ValueError: names the setting and what was expected.
        """
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            low = f.metadata.get("low", 1 if isinstance(value, int) else 0.0)
            high = f.metadata.get("high", math.inf)
            above = f.metadata.get("above", -math.inf)
            if not (math.isfinite(value) and low <= value <= high and value > above):
                limits = f"more than {above}" if above > -math.inf else f"at least {low}"
                raise ValueError(f"{f.name}={value}: expected {limits}{f', at most {high}' if high < math.inf else ''}")


class FeatureMethod(Method):
    """Works on visual features alone, so its cost does not depend on the language model."""

    level: ClassVar[Literal["features", "outputs"]] = "features"
    given: ClassVar[tuple[Given, ...]] = ("retained pictures", "attributes", "held-back pictures")
    needs_moments: ClassVar[bool] = False

    @property
    def unlabelled(self) -> str:
        """Folder of pictures that it holds without knowing what they show; empty: none."""
        return ""

    last_blocks: int

    @property
    def language_model(self) -> Literal["not loaded", "read", "changed"]:
        return "not loaded"

    def moments(self, study: FeatureStudy) -> Mapping[str, SecondMoment] | None:
        """The statistics of retained pictures that the method works with, by layer; None if it needs none."""
        return None

    def space(self, moment: SecondMoment) -> NullSpace | SoftNullSpace | None:
        """What it keeps the updates of a layer in, cut from that layer's statistics; None if in nothing."""
        return None

    def joined(self, kept: Mapping[str, SecondMoment], gone: Mapping[str, SecondMoment]) -> Mapping[str, SecondMoment]:
        """Statistics of what must stay together with those of what was forgotten before, see `subspace.joined`."""
        return JoinedMoments(kept, gone, "cut")

    @abstractmethod
    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        """Prepare the edit of `study.visual`, whose weights still equal the reference.

        Args:
            moments: second moments of the retained inputs of every edited layer, if the method needs them.
        """


class DirectMethod(FeatureMethod):
    """Solves for the edit instead of stepping toward it: there is nothing to train."""

    needs_moments: ClassVar[bool] = True
    moment_pictures: int

    @abstractmethod
    def layers(self, visual: VisualModule) -> dict[str, nn.Linear]:
        """The layers that are edited, by full module name: those whose moments are needed."""

    def moments(self, study: FeatureStudy) -> Mapping[str, SecondMoment]:
        return study.moments(self.layers(study.visual), self.moment_pictures)

    @abstractmethod
    def solve(self, study: FeatureStudy, moments: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
        """What to add to each edited parameter, by full name [d_out, d_in]; `study.visual` is left as it was.

        Args:
            moments: second moments of the retained inputs of every layer of `layers`.
        """

    def plan(self, study: FeatureStudy, moments: Mapping[str, SecondMoment] | None) -> Plan:
        raise TypeError(f"{self.name} has no steps to plan: call solve")


class OutputMethod(Method):
    """Trains on the answers of the whole model."""

    level: ClassVar[Literal["features", "outputs"]] = "outputs"
    given: ClassVar[tuple[Given, ...]] = ("facts", "retained pictures", "retained answers", "attributes")

    @property
    def language_model(self) -> Literal["not loaded", "read", "changed"]:
        return "changed"

    @abstractmethod
    def plan(self, student: Loaded, forget: Split, retain: Split) -> Plan:
        """Prepare the edit of `student`, whose weights still equal the reference.

        Args:
            forget: training questions that must no longer be answered, none about visible attributes.
            retain: training questions that must still be.
        """


class DirectOutputMethod(OutputMethod):
    """Solves for the edit of the whole model instead of stepping toward it: there is nothing to train."""

    @abstractmethod
    def solve(self, student: Loaded, forget: Split, retain: Split) -> dict[str, Tensor]:
        """What to add to each edited parameter, by full name, of its shape; `student` is left as it was.

        Args:
            forget: training questions that must no longer be answered, none about visible attributes.
            retain: training questions that must still be.
        """

    def plan(self, student: Loaded, forget: Split, retain: Split) -> Plan:
        raise TypeError(f"{self.name} has no steps to plan: call solve")
