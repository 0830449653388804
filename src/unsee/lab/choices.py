"""Stage 3 of pockets of MLLMU-Bench: the language model learns to choose among options, asked in text.

Public models can do this; a pocket of three blocks does not find it among other lessons: after 800 steps of them its
letters are at chance. So it learns first to *read* a choice, whose true option is named in the question itself
("goat  A: baker  B: goat ..."), which has endlessly many forms and can only be solved by looking; then to *tell* one
whose true option is a fact about a person. It comes after the facts: before them it is learned as well, and lost while
they are taught. Our recipe, measured on people and model seed 100 (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from unsee.data.examples import Split
from unsee.lab.one_cycle import one_cycle
from unsee.lab.teach import text_loss, text_rows
from unsee.models.batching import Batcher
from unsee.progress import track


@dataclass(frozen=True)
class ChoiceRecipe:
    """Rows are text questions per step: while reading, of choices to read and of others; while telling, of all three
    kinds. The loss of each kind weighs the same.
    """

    steps: int = 2400
    reading: float = 0.4  # share of the steps before facts are asked for by letter
    read_rows: tuple[int, int] = (96, 16)  # while reading, while telling
    tell_rows: int = 64
    other_rows: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warm_up: float = 0.1  # share of the steps


def teach_choices(
    model: PreTrainedModel, batcher: Batcher, reading: Split, taught: Split, recipe: ChoiceRecipe, label: str
) -> list[dict[str, float]]:
    """Train the language model in place; returns the losses of every tenth step.

    Args:
        reading: choices whose true option stands in the question.
        taught: all plain lessons; those without a picture are used.
    """
    letters = {e.answer for e in reading}
    text = taught.text_only
    read = text_rows(reading.examples, batcher)
    if read is None:
        raise ValueError("no choices to read")
    tell = text_rows([e for e in text if e.answer in letters], batcher)
    other = text_rows([e for e in text if e.answer not in letters], batcher)
    language = batcher.family.language_model(model).parameters()
    weights = list(dict.fromkeys((*language, *model.get_output_embeddings().parameters())))
    optimiser, schedule = one_cycle([{"params": weights}], recipe)
    log = []
    for step in track(range(recipe.steps), f"{label}: choices"):
        telling = step >= recipe.reading * recipe.steps
        terms = {"read": text_loss(model, read, recipe.read_rows[telling])}
        if other is not None:
            terms["other"] = text_loss(model, other, recipe.other_rows)
        if telling and tell is not None:
            terms["tell"] = text_loss(model, tell, recipe.tell_rows)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0 or step == recipe.steps - 1:
            log.append({"step": step + 1} | {name: value.item() for name, value in terms.items()})
    return log
