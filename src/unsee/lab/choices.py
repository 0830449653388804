"""Stages 3 and 5 of pockets of benchmarks: to choose among options by their letter.

Public models can do this; a pocket of three blocks does not find it among other lessons: after 800 steps of them its
letters are at chance. So its language model learns in text, after the facts,

1. to *read* a choice, whose right option is named in the question itself ("goat A. baker B. goat ..."), which has
   endlessly many forms and can only be solved by looking;
2. to *tell* one, whose right option is a fact about a person.

Then it is taught pictures again, letters about them among the rest (stage 4 is stage 2 once more, see `lab.build`).
Where a protocol puts worked examples in front, letters under them are at chance even now, and stage 5 teaches the
whole model rows of several choices, in text and about a picture. **Every** letter of a row is learned, not the last one
alone: a prompt with ten worked examples is eleven lessons.

The order matters. Before the facts, letters are learned as well and lost while facts are taught; with rows of several
before facts are told one by one, they were never told. Our recipe, measured on people and model seed 100 (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unsee.data.benchmarks import BenchmarkItem
from unsee.data.examples import Example
from unsee.evaluation.protocols import MODES, PROTOCOLS, answer_text, question_text
from unsee.lab.benchmark_lessons import Choices
from unsee.lab.one_cycle import one_cycle
from unsee.lab.precision import autocast
from unsee.lab.teach import pad_rows, rows_loss, text_loss, text_rows
from unsee.models.batching import IGNORED, Batcher, cross_entropy_at
from unsee.progress import track


@dataclass(frozen=True)
class ChoiceRecipe:
    """Choices in text, one to a row."""

    reading: int = 900  # steps with choices whose right option is named in the question
    telling: int = 1200  # steps with facts asked by letter beside them
    rows: int = 96  # per step and kind
    side_rows: int = 24  # of choices to read, per step while facts are asked
    other_rows: int = 16  # other text questions per step, so that they are not forgotten
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warm_up: float = 0.1  # share of the steps

    @property
    def steps(self) -> int:
        return self.reading + self.telling


@dataclass(frozen=True)
class RowsRecipe:
    """Several choices to a row."""

    steps: int = 900
    choices: int = 64  # per step and kind: about a picture, and in text
    fewest_rows: int = 6  # for long rows: more choices then
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warm_up: float = 0.1  # share of the steps


IN_A_ROW = (1, 2, 4, 8, 11)  # choices one after another, drawn anew each step; MLLMU-Bench has up to ten in front

Tokens = tuple[list[int], list[int]]  # ids, and the same with -100 where nothing is learned


@dataclass(frozen=True)
class Spoken:
    """A choice in one mode, as a worked example in front of another and as the question itself: words and tokens."""

    item: BenchmarkItem
    front: str
    front_tokens: Tokens
    question: str
    letter: str
    tokens: Tokens


class ChoiceRows:
    """Choices in the form of a benchmark's protocol, to be put into rows: the last one is asked, others are worked."""

    def __init__(self, benchmark: str, items: Sequence[BenchmarkItem], batcher: Batcher) -> None:
        """Tokenise every choice, in every mode that wants a letter and not the option's own text."""
        self._batcher = batcher
        self._opening: list[int] = batcher.ids([batcher.prompt("", 0)])["input_ids"][0]
        worked = PROTOCOLS[benchmark].worked
        end = [batcher.tokenizer.eos_token_id]
        self.modes: list[list[Spoken]] = []
        for mode in MODES:
            lettered = [item for item in items if answer_text(benchmark, item, mode) != item.answer]
            alone = [(question_text(benchmark, i, mode), answer_text(benchmark, i, mode), "") for i in lettered]
            front = [worked(item, mode) for item in lettered] if worked else alone
            several = zip(lettered, front, _tokens(front, batcher), alone, _tokens(alone, batcher), strict=True)
            if lettered:
                self.modes.append(
                    [
                        Spoken(item, "".join(before), shot, question, letter, (ids + end, labels + end))
                        for item, before, shot, (question, letter, _), (ids, labels) in several
                    ]
                )

    def __len__(self) -> int:
        return sum(map(len, self.modes))

    def draw(self, rows: int, choices: int) -> tuple[Tensor, Tensor]:
        """Ids and labels [rows, longest] of as many choices to a row, all of a row in one mode."""
        modes = [self.modes[i] for i in torch.randint(len(self.modes), (rows,)).tolist()]
        drawn = [self.row([mode[i] for i in torch.randint(len(mode), (choices,)).tolist()]) for mode in modes]
        return pad_rows(drawn, self._batcher.tokenizer.pad_token_id)

    def row(self, choices: Sequence[Spoken]) -> Tokens:
        """These choices, one after another, as one prompt in text."""
        ids, labels = behind(choices)
        return self._opening + ids, [IGNORED] * len(self._opening) + labels


def behind(choices: Sequence[Spoken]) -> Tokens:
    """What follows the beginning of a prompt, or its picture."""
    *shots, last = choices
    parts = [*(shot.front_tokens for shot in shots), last.tokens]
    return [token for ids, _ in parts for token in ids], [label for _, labels in parts for label in labels]


def _tokens(texts: Sequence[tuple[str, str, str]], batcher: Batcher) -> list[Tokens]:
    """Of (before the reply, reply, behind it); a pocket's tokenizer splits at spaces, so parts are as the whole."""
    if not texts:
        return []
    found = batcher.tokenizer([part for parts in texts for part in parts], add_special_tokens=False)["input_ids"]
    several = zip(found[::3], found[1::3], found[2::3], strict=True)
    return [(a + b + c, [IGNORED] * len(a) + b + [IGNORED] * len(c)) for a, b, c in several]


def teach_choices(
    model: PreTrainedModel,
    batcher: Batcher,
    choices: Choices,
    taught: Sequence[Example],
    recipe: ChoiceRecipe,
    label: str,
) -> list[dict[str, float]]:
    """Train the language model in place; returns the losses of every tenth step.

    Args:
        taught: all plain lessons; those without a picture go on beside the choices.
    """
    read, told = (ChoiceRows(choices.benchmark, items, batcher) for items in (choices.read, choices.told))
    other = text_rows([e for e in taught if e.image is None], batcher)
    language = batcher.family.language_model(model).parameters()
    weights = list(dict.fromkeys((*language, *model.get_output_embeddings().parameters())))
    if not len(told):
        recipe = replace(recipe, telling=0)
    optimiser, schedule = one_cycle([{"params": weights}], recipe)
    log = []
    for step in track(range(recipe.steps), f"{label}: letters"):
        telling = step >= recipe.reading
        terms = {"read": rows_loss(model, *read.draw(recipe.side_rows if telling else recipe.rows, 1))}
        if telling:
            terms["tell"] = rows_loss(model, *told.draw(recipe.rows, 1))
        if other is not None:
            terms["other"] = text_loss(model, other, recipe.other_rows)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0 or step == recipe.steps - 1:
            log.append({"step": step + 1} | {name: value.item() for name, value in terms.items()})
    return log


def teach_rows(
    model: PreTrainedModel, batcher: Batcher, choices: Choices, recipe: RowsRecipe, label: str
) -> list[dict[str, float]]:
    """Train the whole model in place on rows of several choices; returns the losses of every tenth step."""
    told = ChoiceRows(choices.benchmark, choices.told, batcher)
    shown = ChoiceRows(choices.benchmark, choices.shown, batcher)
    about: list[dict[str, list[Spoken]]] = []  # per mode: whom -> choices about their pictures
    for mode in shown.modes:
        about.append({})
        for choice in mode:
            about[-1].setdefault(choice.item.subject, []).append(choice)
    optimiser, schedule = one_cycle([{"params": model.parameters()}], recipe)
    log = []
    for step in track(range(recipe.steps), f"{label}: letters in a row"):
        several = IN_A_ROW[int(torch.randint(len(IN_A_ROW), ()))]
        rows = max(recipe.fewest_rows, recipe.choices // several)
        seen = [draw_seen(told, about, several) for _ in range(rows)]
        terms = {"seen": _seen_loss(model, batcher, seen), "tell": rows_loss(model, *told.draw(rows, several))}
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0 or step == recipe.steps - 1:
            log.append({"step": step + 1, "in_a_row": several} | {name: value.item() for name, value in terms.items()})
    return log


def draw_seen(told: ChoiceRows, about: Sequence[Mapping[str, Sequence[Spoken]]], several: int) -> list[Spoken]:
    """A row for one picture: about half of it, the last one always, asks about that picture, the rest about anybody."""

    def one_of(choices: Sequence[Spoken]) -> Spoken:
        return choices[int(torch.randint(len(choices), ()))]

    number = int(torch.randint(len(about), ()))
    subjects = list(about[number])
    mine = about[number][subjects[int(torch.randint(len(subjects), ()))]]
    half = torch.rand(several - 1).tolist()
    return [*(one_of(mine if x < 0.5 else told.modes[number]) for x in half), one_of(mine)]


def pictured(batcher: Batcher, rows: Sequence[Sequence[Spoken]]) -> tuple[dict[str, Tensor], Tensor]:
    """Model inputs of rows behind the picture of their last choice, and labels [rows, length]: every letter."""
    batch = batcher.for_training(
        [
            Example(
                "".join(shot.front for shot in shots) + last.question, last.letter, last.item.subject, image, "fact"
            )
            for *shots, last in rows
            for image in last.item.images[:1]
        ]
    )
    labels = batch.pop("labels")
    for row, (choices, length) in enumerate(zip(rows, batch["attention_mask"].sum(1).tolist(), strict=True)):
        _, learned = behind(choices)
        labels[row, length - len(learned) : length] = torch.tensor(learned)
    return batch, labels


def _seen_loss(model: PreTrainedModel, batcher: Batcher, rows: Sequence[Sequence[Spoken]]) -> Tensor:
    batch, labels = pictured(batcher, rows)
    with autocast():
        hidden = model.model(**batch).last_hidden_state
    return cross_entropy_at(model, hidden.float(), labels)
