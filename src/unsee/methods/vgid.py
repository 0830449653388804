"""Visual-noise guided in-context distillation (VGID): the model learns from itself, shown noise and told to forget.

Published (arXiv 2606.00105): the teacher is the frozen base model; of a forget input it sees a noisy picture, behind an
in-context unlearning instruction; the student sees the clean picture and the question alone; forward KL on both sides;
no other teacher, no written refusals:

    p_T(. | x_f) = p_0(. | noisy picture, instruction + question)
    minimise  forget_weight * E_f KL(p_T || p)  +  retain_weight * E_r KL(p_0 || p)

Not in the paper: kind and scale of the noise, the instruction, the answers along which token distributions are
compared, the weights, the rate, what is trained. All of that is our reconstruction, and a setting. The authors' code,
public since, differs from the formula: it is `vgid-released`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unsee.data.examples import Example, Split
from unsee.methods.in_context import behind, filled
from unsee.methods.parts.likelihood import kl_at_answers
from unsee.methods.parts.noise import LARGEST, Noise, NoisyPicture
from unsee.methods.parts.tuned import Tuned, reference_of
from unsee.models.batching import Batch, Batcher, answer_scores
from unsee.models.loading import Loaded
from unsee.training.loop import Phase


@dataclass(frozen=True)
class VisualNoiseGuidedDistillation(Tuned):
    """Say of a target what the model itself says of noise; keep the rest. Defaults are our choice.

    Attributes:
        noise: what is done to the teacher's pictures, anew at every step: `gaussian`, `blur`, `shuffle` or `mask`, see
            `noise.NoisyPicture`.
        noise_scale: how much of it, in units of the picture itself, see there; 0 is none, for `shuffle` and `mask` 1 is
            all.
        instruction: what the teacher is told before the question; `{subjects}` becomes the names of those to be
            forgotten. It is put to forget inputs alone, so it need not say whom it is about.
        along: the answer whose tokens both models are read along: the `true_answer`, as in the other methods, or a
            `teacher_answer` drawn anew from p_T. Averaged over such draws the sum over tokens is the KL of whole
            answers; it takes a generation by the teacher per step.
        forget_weight: of the term on forget inputs.
        retain_weight: of the term on retained inputs.
    """

    name: ClassVar[str] = "vgid"
    paper: ClassVar[str] = "VGID (arXiv 2606.00105); noise, instruction, weights and schedule reconstructed by us"

    batch: int = 12
    noise: Noise = "gaussian"
    noise_scale: float = 12.0
    instruction: str = (
        "You have never seen who or what this picture shows and know nothing about them. "
        "Answer from what is visible alone."
    )
    along: Literal["true_answer", "teacher_answer"] = "true_answer"
    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise not in LARGEST:
            raise ValueError(f"noise={self.noise}: expected one of {', '.join(LARGEST)}")
        if self.noise_scale > LARGEST[self.noise]:
            raise ValueError(
                f"noise_scale={self.noise_scale}: expected at most {LARGEST[self.noise]:g}, "
                f"the share of a picture that {self.noise} takes"
            )

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        teacher = Teacher(self, student, filled(self.instruction, forget))
        choose, draw_retain = self.choosing(forget.pictured), self.drawing(student, retain.pictured)

        def draw() -> tuple[Batch, Batch, Batch]:
            clean, asked = teacher.ask(choose())
            return student.batcher.for_training(clean), asked, draw_retain()

        def loss(batches: tuple[Batch, Batch, Batch]) -> dict[str, Tensor]:
            clean, asked, kept = batches
            with torch.no_grad():
                taught, said, _ = answer_scores(teacher.model, asked)
                before, _, _ = answer_scores(teacher.model, kept)
            learned, tokens, _ = answer_scores(student.model, clean)
            assert torch.equal(tokens, said), "prompts differ, answers do not"
            after, _, _ = answer_scores(student.model, kept)
            return {
                "forget": self.forget_weight * kl_at_answers(learned, taught),
                "retain": self.retain_weight * kl_at_answers(after, before),
            }

        return [Phase("both", draw, loss)]


class Teacher:
    """The frozen base model, p_0, and what it is asked about forget inputs to become p_T.

    Args:
        student: still equal to the reference.
        instruction: put before every question; empty for none.
    """

    def __init__(self, settings: VisualNoiseGuidedDistillation, student: Loaded, instruction: str) -> None:
        self.settings, self.instruction = settings, instruction
        self.model = reference_of(student)
        self.batcher = Batcher(student.batcher.processor, student.family, device=student.batcher.device)

    def ask(self, examples: Sequence[Example]) -> tuple[list[Example], Batch]:
        """The examples for the student, clean, and the teacher's batch about the same answers (global torch seed)."""
        self.batcher.release()  # noise is drawn anew: no picture is asked for twice
        noisy = self.disturbed(examples)
        if self.settings.along == "teacher_answer":
            answers = self.answers(noisy)
            examples, noisy = with_answers(examples, answers), with_answers(noisy, answers)
        return list(examples), self.batcher.for_training(noisy)

    def disturbed(self, examples: Sequence[Example]) -> list[Example]:
        """The same questions behind the instruction, every picture of theirs noisy."""
        pictures = list(dict.fromkeys(image for e in examples for image in e.images))
        seeds = torch.randint(2**31, (len(pictures),)).tolist()
        s = self.settings
        noisy = {p: NoisyPicture(p, s.noise, s.noise_scale, seed) for p, seed in zip(pictures, seeds, strict=True)}
        return [
            dataclasses.replace(
                e,
                question=behind(self.instruction, e.question),
                image=noisy[e.images[0]],
                others=tuple(noisy[other] for other in e.others),
            )
            for e in examples
        ]

    @torch.no_grad()
    def answers(self, examples: Sequence[Example]) -> list[str]:
        """One answer to each, drawn from the teacher's own distribution, at most as long as the longest true one."""
        inputs = self.batcher.for_generation(examples)
        lengths = [self.batcher.answer_length(e.question, e.answer, len(e.images))[1] for e in examples]
        ids = self.model.generate(  # type: ignore[operator]
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max(lengths),
            pad_token_id=self.batcher.tokenizer.pad_token_id,
        )
        return self.batcher.decode(ids[:, inputs["input_ids"].shape[1] :])


def with_answers(examples: Sequence[Example], answers: Sequence[str]) -> list[Example]:
    return [dataclasses.replace(e, answer=answer) for e, answer in zip(examples, answers, strict=True)]
