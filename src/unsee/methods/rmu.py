"""RMU: states of one language-model layer are misdirected on forget answers and held on retained ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from unsee.data.examples import Split
from unsee.methods.parts.base import positive
from unsee.methods.parts.tuned import Tuned, reference_of
from unsee.models.batching import IGNORED, Batch
from unsee.models.loading import Loaded
from unsee.training.loop import Phase


@dataclass(frozen=True)
class RepresentationMisdirection(Tuned):
    """Push hidden states on forget answers to one random direction, hold those on retained answers.

    With h and h0 the student's and the reference's states behind the layer, where an answer token is predicted, and u a
    random unit vector, drawn once:

        L_f = mean_t |h_t - scale * |h0_t| u|^2 / |h0_t|^2        t: answer tokens of forget questions
        L_r = mean_t |h_t - h0_t|^2 / |h0_t|^2                    t: answer tokens of retained questions
        L = forget_weight * L_f + retain_weight * L_r

    The paper has the length of the target as a number c, which means something else for every model and layer; lengths
    relative to |h0_t| are those of Adaptive RMU (Dang et al. 2024, 2408.06223). Division by |h0_t|^2 is ours, for the
    same reason: the two weights mean the same everywhere. What is trained is `scope`, as in every method here, and not
    the MLPs of three layers; parameters above the layer get no gradient and stay as they are.

    Attributes:
        depth: which layer, as a share of the language model's layers, rounded up: 1 is the last one.
        scale: length of the target in lengths of the reference's state.
        forget_weight: of L_f.
        retain_weight: of L_r.
    """

    name: ClassVar[str] = "rmu"
    paper: ClassVar[str] = "RMU (Li et al. 2024, 2403.03218), lengths relative as in Adaptive RMU (2408.06223)"

    depth: float = field(default=0.5, metadata={"above": 0, "high": 1})
    scale: float = positive(2.0)
    forget_weight: float = 1.0
    retain_weight: float = 10.0

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        reference = reference_of(student)
        layers = [self.layer(student.family.language_model(model)) for model in (student.model, reference)]
        direction = control_vector(student.model.config.get_text_config().hidden_size).to(student.batcher.device)
        draw_forget = self.drawing(student, forget.pictured)
        draw_retain = self.drawing(student, retain.pictured)

        def states(batch: Batch) -> tuple[Tensor, Tensor]:
            return answer_states(student.model, layers[0], batch), answer_states(reference, layers[1], batch)

        def loss(batches: tuple[Batch, Batch]) -> dict[str, Tensor]:
            now, before = states(batches[0])
            kept, known = states(batches[1])
            elsewhere = self.scale * before.norm(dim=-1, keepdim=True) * direction
            return {
                "forget": self.forget_weight * relative_error(now, elsewhere, before),
                "retain": self.retain_weight * relative_error(kept, known, known),
            }

        return [Phase("both", lambda: (draw_forget(), draw_retain()), loss)]

    def layer(self, language_model: nn.Module) -> nn.Module:
        """The layer whose outputs are steered."""
        layers: Any = language_model.layers
        chosen: nn.Module = layers[math.ceil(self.depth * len(layers)) - 1]
        return chosen


def control_vector(width: int) -> Tensor:
    """A random direction of length 1, every entry from zero to one before that, as the paper has it [width]."""
    return F.normalize(torch.rand(width), dim=0)


def answer_states(model: PreTrainedModel, layer: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What `layer` of `model` puts out where an answer token is predicted, in float32 [answer tokens, width]."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        model.model(**{k: v for k, v in batch.items() if k != "labels"})
    finally:
        hook.remove()
    return seen[0][:, :-1][batch["labels"][:, 1:] != IGNORED].float()


def relative_error(states: Tensor, wanted: Tensor, reference: Tensor) -> Tensor:
    """Mean over tokens of |states - wanted|^2 / |reference|^2, all [answer tokens, width] (scalar).

    Raises:
        ValueError: shapes differ. Torch would broadcast them, and compare each token with others.
    """
    if not states.shape == wanted.shape == reference.shape:
        raise ValueError(f"states {[*states.shape]}, wanted {[*wanted.shape]}: expected the same tokens and widths")
    return ((states - wanted).square().sum(-1) / reference.square().sum(-1)).mean()
