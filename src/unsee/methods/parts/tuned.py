"""What methods that train on the answers of the whole model have in common."""

from __future__ import annotations

import copy
import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from unsee.data.examples import Example, Split, UnlearnData
from unsee.errors import BadInput
from unsee.methods.parts.adapters import Adapters
from unsee.methods.parts.base import OutputMethod, Plan, count, positive
from unsee.methods.parts.features import evenly
from unsee.models.anatomy import trainable
from unsee.models.batching import Batch, answer_loss
from unsee.models.loading import Loaded
from unsee.progress import track
from unsee.subspace.saliency import Mask, Saliency, kept_mask, steps_masked
from unsee.training.loop import Phase, Role, shuffled

Scope = Literal["visual", "language", "both"]


@dataclass(frozen=True)
class Tuned(OutputMethod):
    """Some optimiser steps on losses of answers.

    Attributes:
        steps: optimiser steps.
        learning_rate: of AdamW, falling to zero in a straight line, as in most public trainers.
        batch: questions per step and side.
        scope: what is trained: vision tower and projector, language model (with its head), or both.
        clip_norm: gradient norm above which gradients are scaled down.
        lora_rank: 0 trains the weights themselves; more trains adapters of this rank beside the linear layers of
            `scope`, without the head, and merges them into their weights at the end (needs peft: docs/saliency.md).
    """

    lora_dropout: ClassVar[float] = 0.0
    """The share of a layer's inputs that its adapter does not see, drawn anew in every step."""

    steps: int = 300
    learning_rate: float = positive(3e-4)
    batch: int = 16
    scope: Scope = "both"
    clip_norm: float = positive(1.0)
    lora_rank: int = count(0)

    def plan(self, student: Loaded, forget: Split, retain: Split) -> Plan:
        edited = self.edited(student)
        trainable(edited, student.model)
        phases = self.phases(student, forget, retain)  # of the plain model: adapters come after
        adapters = Adapters(student.model, edited, self.lora_rank, self.lora_dropout) if self.lora_rank else None
        trained = adapters.parameters() if adapters else edited.values()
        optimiser = torch.optim.AdamW(trained, lr=self.learning_rate, fused=True)
        return Plan(
            edited=edited,
            phases=phases,
            optimiser=optimiser,
            steps=self.steps,
            schedule=torch.optim.lr_scheduler.PolynomialLR(optimiser, self.steps),
            clip_norm=self.clip_norm,
            constraint=adapters or nullcontext(),
        )

    @property
    def language_model(self) -> Literal["not loaded", "read", "changed"]:
        return "read" if self.scope == "visual" else "changed"

    def edited(self, student: Loaded) -> dict[str, nn.Parameter]:
        """What may change, by full name."""
        return linear_weights_in(student, self.scope) if self.lora_rank else parameters_in(student, self.scope)

    @abstractmethod
    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        """What every step minimises; `student` still equals the reference."""

    def drawing(self, student: Loaded, examples: Split) -> Callable[[], Batch]:
        """A function that returns the next training batch of `batch` examples, endlessly."""
        draw = self.choosing(examples)
        return lambda: student.batcher.for_training(draw())

    def choosing(self, examples: Split) -> Callable[[], list[Example]]:
        """A function that returns the next `batch` examples, endlessly."""
        order = shuffled(len(examples), self.batch)
        return lambda: [examples.examples[i] for i in next(order).tolist()]


@dataclass(frozen=True)
class Masked(Tuned):
    """Steps of which some may change salient entries of the weights only, those that matter to what is forgotten.

    Attributes:
        saliency_batch: questions per gradient that saliency is taken from.
        saliency_questions: of each kind, evenly spaced; 0: all.
        mask_file: where the mask is kept: read if it is there and was made of this model, these questions and these
            settings, else made and left there. Empty: in memory alone. See docs/saliency.md.
    """

    masks: ClassVar[tuple[Role, ...]]
    """The phases whose steps are held by the mask."""
    mask_settings: ClassVar[tuple[str, ...]]
    """The settings that shape the mask, besides `scope` and those of saliency."""

    saliency_batch: int = 4
    saliency_questions: int = count(1200)
    mask_file: str = ""

    def plan(self, student: Loaded, forget: Split, retain: Split) -> Plan:
        plan = super().plan(student, forget, retain)
        mask = kept_mask(
            Path(self.mask_file) if self.mask_file else None,
            plan.edited,
            lambda: self._origin(student, forget, retain),
            lambda: self.mask(student, plan.edited, forget, retain),
        )
        share = mask.share
        if not share:
            settings = ", ".join(f"{name}={getattr(self, name)}" for name in ("scope", *self.mask_settings))
            raise BadInput(
                f"{self.name}: no entry of {len(mask)} weights is salient with {settings}; change one of them"
            )

        def held() -> AbstractContextManager[None]:
            if isinstance(plan.constraint, Adapters):
                return plan.constraint.steps_masked(plan.optimiser, mask)
            return steps_masked(plan.optimiser, plan.edited, mask)

        phases = [dataclasses.replace(p, constraint=held) if p.role in self.masks else p for p in plan.phases]
        return dataclasses.replace(plan, phases=phases, after_step=lambda _: {"mask_share": share})

    @abstractmethod
    def mask(self, student: Loaded, edited: Mapping[str, nn.Parameter], forget: Split, retain: Split) -> Mask:
        """Which entries are salient, of every parameter in `edited`; `student` still equals the reference."""

    def gather(self, student: Loaded, examples: Split, what: str, *fitters: Saliency) -> None:
        """Gradients of the answer loss of `examples`, all with pictures or all without, into every fitter.

        Their order does not depend on the run's seed: a mask from a file and a new one lead to the same run.
        """
        if not examples:
            return
        chosen = evenly(len(examples), self.saliency_questions or len(examples))
        order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        for some in track(order.split(self.saliency_batch), f"saliency: {what}"):
            batch = student.batcher.for_training([examples.examples[i] for i in some.tolist()])
            answer_loss(student.model, batch).backward()
            for fitter in fitters:
                fitter.add()

    def _origin(self, student: Loaded, forget: Split, retain: Split) -> dict[str, str]:
        names = ("scope", "saliency_batch", "saliency_questions", *self.mask_settings)
        return {
            "weights": json.dumps(student.folder.hashes(), sort_keys=True),
            "data": UnlearnData("", forget, retain, Split()).fingerprint,
            "rule": json.dumps({"method": self.name, **{name: getattr(self, name) for name in names}}),
        }


def linear_weights_in(student: Loaded, scope: Scope) -> dict[str, nn.Parameter]:
    """The weights of the linear layers of one part of the model, by full name; the head of the vocabulary left out.

    Raises:
        BadInput: an unknown scope.
    """
    layers = {id(m.weight) for m in student.model.modules() if isinstance(m, nn.Linear)}
    layers.discard(id(student.model.get_output_embeddings().weight))
    return {name: p for name, p in parameters_in(student, scope).items() if id(p) in layers}


def parameters_in(student: Loaded, scope: Scope) -> dict[str, nn.Parameter]:
    """The parameters of one part of the model, by full name.

    Raises:
        BadInput: an unknown scope.
    """
    if scope not in ("visual", "language", "both"):
        raise BadInput(f"scope={scope}: expected visual, language or both")
    visual = student.visual.named_parameters()
    return {
        name: parameter
        for name, parameter in student.model.named_parameters()
        if scope == "both" or (name in visual) == (scope == "visual")
    }


def reference_of(student: Loaded) -> PreTrainedModel:
    """A frozen copy of the model as it is now; parameters that are not trained are shared, not copied."""
    shared: dict[int, Any] = {id(p): p for p in student.model.parameters() if not p.requires_grad}
    reference: PreTrainedModel = copy.deepcopy(student.model, shared)
    reference.requires_grad_(False)
    reference.eval()
    return reference
