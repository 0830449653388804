"""The attack itself: train a model on a few pictures again, and see what comes back about the others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from unsee.attacks.relearn_plan import Attack, Exam, Relearning, Step
from unsee.attacks.trained import trained_by
from unsee.data.examples import Example, Split
from unsee.evaluation.answers import is_correct
from unsee.evaluation.predict import generate_from, longest_answer
from unsee.models.batching import Batch, cross_entropy_at
from unsee.models.loading import Loaded
from unsee.training.loop import Phase, run

ROWS = 1024  # questions per call of `generate`

Tally = dict[str, tuple[int, int]]
"""Subject -> right answers, answers."""


class Point(TypedDict):
    """What a model answered after so many steps of an attack."""

    step: int
    forget: Tally
    retain: Tally


class Attacker:
    """One model under attack; after each attack its weights are what they were.

    Weights, gradients, two moments of AdamW and a copy of the weights are held at once: twenty bytes per parameter if
    every one is trained, four per parameter that is not.

    Args:
        loaded: the whole model in float32.
    """

    def __init__(self, loaded: Loaded, exam: Exam, names: Sequence[str], settings: Relearning) -> None:
        self._loaded = loaded
        self._settings = settings
        self._forget = Questions(loaded, exam.forget, names)
        self._retain = Questions(loaded, exam.retain, names)
        self._before = self._measure(0)

    def carry_out(self, attack: Attack, label: str) -> tuple[list[Point], float]:
        """Train and measure; returns the curve and the seconds that took.

        Raises:
            GateFailed: a loss is not finite.
        """
        settings, began = self._settings, time.perf_counter()
        curve = [self._before]
        steps = attack.steps(settings)

        def after_step(step: int) -> dict[str, float]:
            if step in settings.measured:
                curve.append(self._measure(step))
            return {}

        phase = Phase("both", lambda: next(steps), lambda step: answer_losses(self._loaded, step))
        with trained_by(settings, self._loaded, attack) as parameters:
            optimiser = torch.optim.AdamW(parameters.values(), lr=settings.rate, fused=True)
            run([phase], optimiser, settings.steps, label, None, settings.clip_norm, after_step)
        return curve, time.perf_counter() - began

    def _measure(self, step: int) -> Point:
        return {"step": step, "forget": self._forget.tally(), "retain": self._retain.tally()}


class Questions:
    """Questions about pictures, prepared once and put to a changing model again and again."""

    def __init__(self, loaded: Loaded, asked: Split, names: Sequence[str]) -> None:
        self._loaded = loaded
        self._names = tuple(names)
        self._longest = longest_answer(loaded, asked.examples)
        by_picture = [e for group in asked.pictures.values() for e in group]
        self._chunks = [by_picture[at : at + ROWS] for at in range(0, len(by_picture), ROWS)]
        self._prompts = [_text_alone(loaded.batcher.for_generation(chunk)) for chunk in self._chunks]

    def tally(self) -> Tally:
        """How many of each subject's questions are answered right."""
        found: Tally = {}
        for chunk, said in zip(self._chunks, self.answers(), strict=True):
            for e, text in zip(chunk, said, strict=True):
                right, asked = found.get(e.subject, (0, 0))
                options = self._names if e.probe == "identity" else e.choices
                found[e.subject] = right + is_correct(text, e.answer, options), asked + 1
        return found

    @torch.no_grad()
    def answers(self) -> list[list[str]]:
        """Greedy answers of `generate`, chunk by chunk; each picture passes the visual module once."""
        said = []
        for chunk, prompts in zip(self._chunks, self._prompts, strict=True):
            given = BaseModelOutputWithPooling(pooler_output=visual_tokens(self._loaded, chunk))  # type: ignore[arg-type]
            said.append(generate_from(self._loaded, {**prompts, "mm_encoder_outputs": {"image": given}}, self._longest))
        return said


def answer_losses(loaded: Loaded, step: Step) -> dict[str, Tensor]:
    """`models.batching.answer_loss` of each part, all in one pass; each picture passes the visual module once."""
    parts = {what: examples for what, examples in step.items() if examples}
    examples = [e for part in parts.values() for e in part]
    batch = loaded.batcher.for_training(examples)
    labels = batch.pop("labels")
    tokens = visual_tokens(loaded, examples)
    hidden = loaded.family.with_visual_tokens(loaded.model, tokens, _text_alone(batch)).last_hidden_state
    sizes = [len(part) for part in parts.values()]
    return {
        what: cross_entropy_at(loaded.model, states, wanted)
        for what, states, wanted in zip(parts, hidden.split(sizes), labels.split(sizes), strict=True)
    }


def visual_tokens(loaded: Loaded, examples: Sequence[Example]) -> list[Tensor]:
    """What stands in the prompts for their pictures, in order [positions, language width]; one tensor per picture."""
    sources = list(dict.fromkeys(image for e in examples for image in e.images))
    images = loaded.batcher.images(sources)
    tokens = dict(zip(sources, loaded.visual.assemble(loaded.visual.features(images), images), strict=True))
    return [tokens[image] for e in examples for image in e.images]


def _text_alone(batch: Mapping[str, Tensor]) -> Batch:
    """A batch without its pixels; what says where pictures stand in the prompt remains."""
    return {name: tensor for name, tensor in batch.items() if name != "pixel_values"}
