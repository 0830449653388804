"""VGID as its authors run it: the teacher's picture is uniform noise, predictions count at every position, in turns.

Their code (repository JackChen-seu/VGID, `baselines/Vgid.py`) differs from the formula of the paper, which `vgid`
follows. There is no instruction, so teacher and student read the same tokens, and p(. | x) at one of them can be
compared with p(. | x) at the same one of the other:

    forget step:  minimise  forget_weight * sum_t KL(p_0(. | noise, x_<=t) || p(. | picture, x_<=t))
    retain step:  minimise  retain_weight * sum_t KL(p_0(. | picture, x_<=t) || p(. | picture, x_<=t))

averaged over questions; t: every position of prompt, picture and answer. Ours: padding is left out, where theirs counts
it, so that a question's loss does not depend on its neighbours. The rest that differs: docs/methods/vgid-released.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unsee.data.examples import Split
from unsee.methods.parts.base import count, positive
from unsee.methods.parts.likelihood import kl_at_answers
from unsee.methods.parts.tuned import Tuned, reference_of
from unsee.models.batching import Batch, scores_everywhere
from unsee.models.loading import Loaded
from unsee.training.loop import Phase


@dataclass(frozen=True)
class ReleasedVisualNoiseDistillation(Tuned):
    """Say of a target's picture what the model itself says of noise; keep the rest. A step is one of each, in turn.

    Rate, rank and alpha are those of the code; `batch` (there 4) and `retain_weight` were chosen on people 100-102.

    Attributes:
        forget_weight: of the term on forget inputs; alpha of the code.
        retain_weight: of the term on retained inputs; beta of the code, there 1.
    """

    name: ClassVar[str] = "vgid-released"
    paper: ClassVar[str] = "VGID (arXiv 2606.00105) as its public code runs it; without padding, rate falls: ours"
    lora_dropout: ClassVar[float] = 0.05

    steps: int = 300
    learning_rate: float = positive(5e-4)
    batch: int = 12
    clip_norm: float = positive(1e9)
    lora_rank: int = count(16)
    forget_weight: float = 1.0
    retain_weight: float = 3.0

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        teacher = reference_of(student)

        def forgetting(batch: Batch) -> dict[str, Tensor]:
            return {"forget": self.forget_weight * divergence(student.model, batch, teacher, blinded(batch))}

        def keeping(batch: Batch) -> dict[str, Tensor]:
            return {"retain": self.retain_weight * divergence(student.model, batch, teacher, batch)}

        return [
            Phase("forget", self.drawing(student, forget.pictured), forgetting),
            Phase("retain", self.drawing(student, retain.pictured), keeping),
        ]


def blinded(batch: Batch) -> Batch:
    """The same questions with nothing left of their pictures: values drawn from 0 to 1 (global torch seed).

    What is replaced is what a processor gives, as there, so 0 is the mean colour and little of the range of pictures
    is covered.
    """
    pixels = batch["pixel_values"]
    return batch | {"pixel_values": torch.rand(pixels.shape, dtype=pixels.dtype).to(pixels.device)}


def divergence(student: PreTrainedModel, batch: Batch, teacher: PreTrainedModel, taught: Batch) -> Tensor:
    """KL(teacher || student) in nats, summed over all positions but padding, mean over questions (scalar).

    Args:
        taught: what the teacher is shown in place of `batch`; the same tokens.
    """
    with torch.no_grad():
        wanted = scores_everywhere(teacher, taught)
    return kl_at_answers(scores_everywhere(student, batch), wanted) * (len(wanted) / len(batch["input_ids"]))
