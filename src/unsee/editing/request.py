"""What is asked of an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput
from unsee.methods import FeatureMethod, Method


@dataclass(frozen=True)
class EditRequest:
    """Everything that decides about an edit but the model.

    Attributes:
        data: pictures and questions; what the forget set does not hold must stay.
        forget: subjects whose pictures must no longer be recognised.
        method: how; any instance, one of `METHODS` or a class of one's own.
        seed: of the run; same seed, same machine, same result.
        moments: stored statistics of what must stay; without it they are taken from the retained training pictures.
        gate: refuse to write a model that lost what it had to keep.
        retain_free: look at no picture of what must stay, but at samples of the replay distribution in `moments`.
        remember: leave statistics of what was forgotten beside the weights (`REMEMBERED`), so that later edits hold it
            in place without its pictures. A model that has them hands them on.
        first: the model before the first of a line of edits: what must stay is kept as *it* sees it, so that what one
            edit moved the next moves back, and drift does not add up. For methods on features.
        link: weight files in which nothing changes become hard links: who writes there in place reaches the model that
            was edited.
        about: what else the manifest is to say.

    Raises:
        BadInput: settings that do not go together.
    """

    data: UnlearnData
    forget: Sequence[str]
    method: Method
    seed: int = 10
    moments: Path | None = None
    gate: bool = True
    retain_free: bool = False
    remember: bool = False
    first: str | None = None
    link: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, on_features = self.method.name, isinstance(self.method, FeatureMethod)
        if self.moments is not None and not (self.retain_free or getattr(self.method, "needs_moments", False)):
            raise BadInput(f"--moments {self.moments}: method {name} does not use stored statistics; leave it out")
        if self.retain_free and not on_features:
            raise BadInput(f"--retain-free: method {name} needs retained questions; use a feature-level method")
        if self.retain_free and self.moments is None:
            raise BadInput("--retain-free: needs --moments FILE from `unsee moments fit --replay-group 2`")
        if self.first is not None and not on_features:
            raise BadInput(f"--first {self.first}: method {name} does not work on features; leave it out")

    @cached_property
    def seen(self) -> UnlearnData:
        """What the edit may look at: all data, or without retained data nothing but the forget set."""
        return self.data.only(self.forget) if self.retain_free else self.data


@dataclass(frozen=True)
class EditSets:
    """The questions of one edit.

    Attributes:
        forget: about the training pictures of those to be forgotten.
        retain: all other training questions, less what must not be learnt again.
        validation: about pictures that no step may use; adaptive weights, gates and certificates look at them.
        gone: subjects that earlier edits of the model took away.
    """

    forget: Split
    retain: Split
    validation: Split
    gone: tuple[str, ...]

    @staticmethod
    def of(request: EditRequest, gone: Sequence[str]) -> EditSets:
        """The sets of a request for a model that was made to forget `gone`.

        Subjects that earlier edits took away are not learnt again: methods on outputs never see their pictures, methods
        on features keep them as the model sees them now.

        Raises:
            BadInput: a forget or a retain set without training pictures.
        """
        data = request.seen
        before = tuple(subject for subject in gone if subject not in request.forget)
        retain, validation = data.train.without(request.forget), data.validation
        if not isinstance(request.method, FeatureMethod):
            retain, validation = _not_taught(retain, before), _not_taught(validation, before)
        forget = data.train.of(request.forget)
        for what, split in (("forget", forget), ("retain", retain)):
            if not split.pictured and not (request.retain_free and what == "retain"):
                raise BadInput(f"{data.source}: the {what} set has no training pictures")
        return EditSets(forget, retain, validation, before)


def _not_taught(split: Split, before: Sequence[str]) -> Split:
    """Without pictures of those forgotten before: their true answers must not be learnt again. Their text stays."""
    gone = frozenset(before)
    return Split(tuple(e for e in split if e.image is None or e.subject not in gone))
