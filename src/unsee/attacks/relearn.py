"""The attack itself: train a model on a few pictures again, and see what comes back about the others."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from unsee.attacks.relearn_plan import Attack, EvaluationSets, Relearning, Step
from unsee.data.examples import Example, Split
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct
from unsee.evaluation.predict import generate_from, longest_answer
from unsee.models.anatomy import trainable
from unsee.models.batching import Batch, cross_entropy_at
from unsee.models.loading import Loaded
from unsee.training.loop import Phase, run

Parameters = Mapping[str, nn.Parameter]
ROWS = 1024  # questions per call of `generate`

Counts = dict[str, tuple[int, int]]
"""Subject -> right answers, answers."""


class Point(TypedDict):
    """What a model answered after so many steps of an attack."""

    step: int
    forget: Counts
    retain: Counts


class Attacker:
    """One model under attack; after each attack its weights are what they were.

    Weights, gradients, two moments of AdamW and a copy of the weights are held at once: twenty bytes per parameter if
    every one is trained, four per parameter that is not.

    Args:
        loaded: the whole model in float32.
    """

    def __init__(self, loaded: Loaded, asked: EvaluationSets, names: Sequence[str], settings: Relearning) -> None:
        self._loaded = loaded
        self._settings = settings
        self._forget = Questions(loaded, asked.forget, names)
        self._retain = Questions(loaded, asked.retain, names)
        self._before = self._measure(0)

    def attack(self, attack: Attack, label: str) -> tuple[list[Point], float]:
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
        return {"step": step, "forget": self._forget.count(), "retain": self._retain.count()}


class Questions:
    """Questions about pictures, prepared once and put to a changing model again and again."""

    def __init__(self, loaded: Loaded, asked: Split, names: Sequence[str]) -> None:
        self._loaded = loaded
        self._names = tuple(names)
        self._longest = longest_answer(loaded, asked.examples)
        by_picture = [e for group in asked.pictures.values() for e in group]
        self._chunks = [by_picture[at : at + ROWS] for at in range(0, len(by_picture), ROWS)]
        self._prompts = [text_alone(loaded.batcher.for_generation(chunk)) for chunk in self._chunks]

    def count(self) -> Counts:
        """How many of each subject's questions are answered right."""
        found: Counts = {}
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
    hidden = loaded.family.with_visual_tokens(loaded.model, tokens, text_alone(batch)).last_hidden_state
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


def text_alone(batch: Mapping[str, Tensor]) -> Batch:
    """A batch without its pixels; what says where pictures stand in the prompt remains."""
    return {name: tensor for name, tensor in batch.items() if name != "pixel_values"}


# What is trained: the model's own weights, or adapters beside them ----------------------------------------------------


def trained_by(settings: Relearning, loaded: Loaded, attack: Attack) -> AbstractContextManager[Parameters]:
    """The parameters of one attack, by name; on leaving, whatever ended it, the model is as it was."""
    if settings.attacker == "lora":
        return adapters(loaded, settings.lora_rank, f"{attack.seed}/{attack.split}/{attack.half}/adapters")
    own = loaded.visual.named_parameters() if settings.attacker == "visual" else dict(loaded.model.named_parameters())
    return weights(loaded, own)


@contextmanager
def weights(loaded: Loaded, parameters: Parameters) -> Iterator[Parameters]:
    """Some of the model's own weights; everything else is frozen. A copy of them is put back."""
    trainable(parameters, loaded.model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name])


@contextmanager
def adapters(loaded: Loaded, rank: int, seed: str) -> Iterator[Parameters]:
    """Low-rank adapters on every linear layer but the output layer: y = W x + B A x (LoRA, 2106.09685, alpha = rank).

    A [rank, d_in] is drawn uniformly from +-1/sqrt(d_in), B [d_out, rank] is zero, so the model starts as it is. The
    weights themselves are frozen and never touched, so nothing need be copied.

    Args:
        seed: decides A, the same for every model of one shape.

    Raises:
        BadInput: the model has no linear layers.
    """
    out = loaded.model.get_output_embeddings()
    layers = {name: m for name, m in loaded.model.named_modules() if isinstance(m, nn.Linear) and m is not out}
    if not layers:
        raise BadInput(f"{loaded.folder.path}: no linear layers to put adapters on; choose another attacker")
    trainable({}, loaded.model)
    chance = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
    added: dict[str, nn.Parameter] = {}
    hooks = []
    try:
        for name, layer in layers.items():
            at = layer.weight
            bound = 1 / math.sqrt(layer.in_features)
            down = (2 * torch.rand(rank, layer.in_features, generator=chance) - 1) * bound
            a = added[f"{name}.lora_A"] = nn.Parameter(down.to(at))
            b = added[f"{name}.lora_B"] = nn.Parameter(at.new_zeros(layer.out_features, rank))
            hooks.append(layer.register_forward_hook(_adding(a, b)))
        yield added
    finally:
        for hook in hooks:
            hook.remove()


def _adding(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda layer, inputs, output: output + inputs[0] @ a.T @ b.T
