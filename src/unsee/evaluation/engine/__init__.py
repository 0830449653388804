"""Ask a model many questions at once: greedy answers, and how likely it finds given ones.

Every picture is looked at once for all its questions and answers, what their texts share goes through the language
model once (see `engine.rows`), and no batch grows with the set. Where the answer that a model would give is among those
that are weighed, it can be read off the same pass: at each token the most likely one must be the next. All others are
generated, going on from the pictures' keys and values. Either way they are the answers of `generate` (tested).

A batch is decided by the questions alone, so a run that is broken off or shared among processes computes the same
batches, and finds the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unsee.data.examples import Example, ImageSource
from unsee.evaluation.engine.rows import Chunk, Opening, Seen, Text, TextRow, alike, at_pictures, chunks, text_rows
from unsee.models.batching import Batcher
from unsee.models.loading import Loaded

SPARE = 8  # tokens that an answer may have more than the longest true one
PICTURES = 32  # per batch
TEXTS = 256  # questions without a picture per batch
SCORES = 1 << 23  # vocabulary scores held at a time
KEPT = 1 << 11  # sheets

Prompt = tuple[Opening, tuple[int, ...]]  # a question as tokens, in two parts

HARMLESS = {  # settings of generation that play no part in greedy answers, or are followed here
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_length",
        "max_new_tokens",
        "use_cache",
    ),
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"),  # of drawing at random
    *("_from_model_config", "transformers_version", "output_attentions", "output_hidden_states"),
    *("return_dict_in_generate", "num_return_sequences"),
}


@dataclass(frozen=True)
class EngineRequest:
    """A question with answers to be weighed.

    Attributes:
        example: the question; its own answer is weighed first.
        others: further answers, without it.
        spoken: whether the model's own answer is wanted too.
    """

    example: Example
    others: tuple[str, ...] = ()
    spoken: bool = True


@dataclass(frozen=True)
class RowScores:
    """What a model predicts at the nodes of one row.

    Attributes:
        log_probs: of its pairs.
        best, expected, spread: of its nodes that predict something: the most likely token, mean and standard deviation
            of the log-probability over the model's own prediction.
    """

    row: TextRow
    log_probs: Sequence[float]
    best: Sequence[int]
    expected: Sequence[float]
    spread: Sequence[float]


@dataclass(frozen=True)
class Weighed:
    """What a model finds of one answer, token by token, its end included (see `Recital` and `MembershipRecord`)."""

    _scores: RowScores
    _pairs: tuple[int, ...]

    @property
    def log_probs(self) -> tuple[float, ...]:
        return tuple(self._scores.log_probs[i] for i in self._pairs)

    @property
    def hits(self) -> tuple[bool, ...]:
        tokens = (self._scores.row.predicted[i][1] for i in self._pairs)
        return tuple(self._scores.best[at] == token for at, token in zip(self._at, tokens, strict=True))

    @property
    def expected(self) -> tuple[float, ...]:
        return tuple(self._scores.expected[at] for at in self._at)

    @property
    def spread(self) -> tuple[float, ...]:
        return tuple(self._scores.spread[at] for at in self._at)

    @property
    def _at(self) -> list[int]:
        row = self._scores.row
        return [row.looked[row.predicted[i][0]] for i in self._pairs]


@dataclass(frozen=True)
class EngineReply:
    """What a model makes of a request.

    Attributes:
        given: its own answer; None if it was not wanted, or if its checkpoint asks for more than greedy generation.
        weighed: by answer, in the order of the request.
    """

    given: str | None
    weighed: dict[str, Weighed]


def greedy(model: PreTrainedModel) -> bool:
    """Whether greedy answers are those of the most likely tokens: its checkpoint sets no penalties and the like."""
    config: Any = model.generation_config
    return set(config.to_diff_dict()) <= HARMLESS


class Engine:
    """Requests, and the batches in which they are put to a model.

    Args:
        longest: tokens of the longest true answer; the model's own may have `SPARE` more.

    Attributes:
        batches: numbers of requests. They depend on the requests alone.
    """

    def __init__(
        self, loaded: Loaded, requests: Sequence[EngineRequest], longest: int, sheets: Sheets | None = None
    ) -> None:
        self._loaded, self._requests, self._longest = loaded, requests, longest
        self._sheets = sheets or Sheets(loaded.batcher)
        self.batches = batches([request.example for request in requests])

    @torch.no_grad()
    def run(self, batch: Sequence[int]) -> list[EngineReply]:
        """The replies to one of the batches, in its order."""
        asked = [self._requests[number] for number in batch]
        about: dict[tuple[ImageSource, ...], list[int]] = {}
        for i, request in enumerate(asked):
            about.setdefault(request.example.images, []).append(i)
        seen = Seen.of(self._loaded, list(dict.fromkeys(image for images in about for image in images)))
        speaks, most = greedy(self._loaded.model), self._longest + SPARE
        sheets = [self._sheets.of([asked[i] for i in numbers], speaks) for numbers in about.values()]
        rows = [(seen.places(images), sheet.rows) for images, sheet in zip(about, sheets, strict=True)]
        numbers, found, said = (
            list(about.values()),
            [dict[str, Weighed]() for _ in asked],
            dict[int, list[int] | None](),
        )
        for chunk in chunks(self._loaded, seen, rows):
            hidden = chunk.hidden(self._loaded, seen.tokens)
            for (sheet, row), scores in zip(chunk.rows, _scored(self._loaded.model, chunk, hidden), strict=True):
                for text, pairs in row.answers.items():
                    i, answer = sheets[sheet].owners[text]
                    if answer is None:
                        said[numbers[sheet][i]] = _said(scores, pairs[0], _ends(self._loaded.model), most)
                    else:
                        found[numbers[sheet][i]][answer] = Weighed(scores, pairs)
        unknown = [i for i, tokens in said.items() if tokens is None]
        prompts = [self._sheets.prompt(seen, asked[i].example) for i in unknown]
        said |= dict(zip(unknown, _generated(self._loaded, seen, prompts, most), strict=True))
        texts = dict(zip(said, _texts(self._loaded, [tokens or [] for tokens in said.values()]), strict=True))
        return [
            EngineReply(texts.get(i), {answer: found[i][answer] for answer in (r.example.answer, *r.others)})
            for i, r in enumerate(asked)
        ]


@torch.no_grad()
def answers(loaded: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
    """Greedy answers, as `predict.generate` gives them, of a model that is `greedy`; in order.

    Args:
        longest: see `Engine`.
    """
    said: dict[int, list[int]] = {}
    sheets = Sheets(loaded.batcher)
    for batch in batches(examples):
        pictures = list(dict.fromkeys(image for number in batch for image in examples[number].images))
        seen = Seen.of(loaded, pictures)
        prompts = [sheets.prompt(seen, examples[number]) for number in batch]
        said |= dict(zip(batch, _generated(loaded, seen, prompts, longest + SPARE), strict=True))
    return _texts(loaded, [said[number] for number in range(len(examples))])


def batches(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Numbers of questions, in parts: all about one picture stay together, with and without pictures stay apart."""
    about: dict[Any, list[int]] = {}
    for number, e in enumerate(examples):
        about.setdefault(e.images or number, []).append(number)
    parts: list[tuple[int, ...]] = []
    for pictured, groups in groupby(about.values(), key=lambda group: bool(examples[group[0]].images)):
        part: list[int] = []
        size = 0
        for group in groups:
            more = len(examples[group[0]].images) if pictured else 1
            if part and size + more > (PICTURES if pictured else TEXTS):
                parts.append(tuple(part))
                part, size = [], 0
            part += group
            size += more
        parts.append(tuple(part))
    return parts


@dataclass(frozen=True)
class Sheet:
    """All that is asked about the same pictures.

    Attributes:
        rows: its texts.
        owners: of each text, which of the requests it is of, and the answer; None where the model's own begins.
    """

    rows: list[TextRow]
    owners: list[tuple[int, str | None]]


class Sheets:
    """Requests as rows of tokens, made once for all pictures and models of which the same is asked.

    Args:
        batcher: of the models. What another one makes of a text may be other tokens.
    """

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self._texts: dict[tuple[str, str | None, int], Text] = {}
        self._sheets: dict[tuple[Any, ...], Sheet] = {}

    def of(self, asked: Sequence[EngineRequest], speaks: bool) -> Sheet:
        """The sheet of some requests about the same pictures.

        Args:
            speaks: whether a model's own answers can be read off, see `greedy`.
        """
        key = (
            speaks,
            *((r.example.question, r.example.answer, len(r.example.images), r.others, r.spoken) for r in asked),
        )
        if key not in self._sheets:
            owners = [
                (i, answer)
                for i, r in enumerate(asked)
                for answer in (*([None] if r.spoken and speaks else []), r.example.answer, *r.others)
            ]
            if len(self._sheets) == KEPT:
                self._sheets.clear()
            texts = [self._text(asked[i].example, answer) for i, answer in owners]
            self._sheets[key] = Sheet(text_rows(texts), owners)
        return self._sheets[key]

    def prompt(self, seen: Seen, e: Example) -> Prompt:
        """Where the model's own answer to a question begins."""
        text = self._text(e, None)
        return Opening(seen.places(e.images), text.opening), text.rest[:-1]

    def _text(self, e: Example, answer: str | None) -> Text:
        """With None an answer of one token, which is padding: where the model's own answer begins."""
        key = e.question, answer, len(e.images)
        if key not in self._texts:
            batcher, count = self.batcher, len(e.images)
            if answer is None:
                ids, length = [*batcher.prompt_ids(e.question, count), batcher.tokenizer.pad_token_id], 1
            else:
                ids, length = batcher.answer_length(e.question, answer, count)
            self._texts[key] = Text(*at_pictures(batcher, count, ids), length)
        return self._texts[key]


def _ends(model: PreTrainedModel) -> frozenset[int]:
    """Tokens that end an answer."""
    config: Any = model.generation_config
    given = config.eos_token_id
    return frozenset([given] if isinstance(given, int) else given or ())


def _texts(loaded: Loaded, said: Sequence[Sequence[int]]) -> list[str]:
    if not said:
        return []
    ids = torch.full((len(said), max(map(len, said))), loaded.batcher.tokenizer.pad_token_id)
    for row, tokens in enumerate(said):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return loaded.batcher.decode(ids)


def _scored(model: PreTrainedModel, chunk: Chunk, hidden: Tensor) -> list[RowScores]:
    """What a model predicts at those nodes of a chunk where answers are looked at, row by row."""
    indices = [row.indices for _, row in chunk.rows]
    nodes_at = torch.cat([nodes for nodes, _, _ in indices])
    counts = [len(nodes) for nodes, _, _ in indices]
    first = [0, *accumulate(counts)]
    rows = torch.arange(len(indices)).repeat_interleave(torch.tensor(counts))
    nodes_of = torch.cat([at + start for (_, at, _), start in zip(indices, first, strict=False)])
    tokens_of = torch.cat([tokens for _, _, tokens in indices])
    size = max(1, SCORES // len(model.get_output_embeddings().weight))
    pairs = torch.zeros(len(tokens_of))
    best, expected, spread = list[int](), list[float](), list[float]()
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        scores = model.get_output_embeddings()(hidden[rows[part], nodes_at[part]]).float()
        log_probs = scores.log_softmax(-1)
        mean = (log_probs.exp() * log_probs).sum(-1)
        best += scores.argmax(-1).tolist()
        expected += mean.tolist()
        spread += (log_probs.exp() * (log_probs - mean[:, None]) ** 2).sum(-1).sqrt().tolist()
        here = (nodes_of >= start) & (nodes_of < start + size)
        pairs[here] = log_probs[nodes_of[here] - start, tokens_of[here]].cpu()
    values = [part.tolist() for part in pairs.split([len(tokens) for _, _, tokens in indices])]
    return [
        RowScores(row, values[i], best[start:stop], expected[start:stop], spread[start:stop])
        for i, ((_, row), (start, stop)) in enumerate(zip(chunk.rows, pairwise(first), strict=True))
    ]


def _said(scores: RowScores, pair: int, ends: frozenset[int], most: int) -> list[int] | None:
    """The model's own answer from the node of a pair on; None if it leaves the tree before its end."""
    row = scores.row
    node: int | None = row.predicted[pair][0]
    spoken: list[int] = []
    while node is not None and node in row.looked:
        spoken.append(scores.best[row.looked[node]])
        if spoken[-1] in ends or len(spoken) == most:
            return spoken
        node = row.tree.after(node, spoken[-1])
    return None


def _generated(loaded: Loaded, seen: Seen, prompts: Sequence[Prompt], most: int) -> list[list[int]]:
    """Greedy answers to prompts, token by token; those that have ended leave the batch."""
    said: list[list[int]] = [[] for _ in prompts]
    model, ends = loaded.model, _ends(loaded.model)
    for beginning, numbers in alike(loaded, seen, [(opening, len(rest) + 1 + most) for opening, rest in prompts]):
        rests = [prompts[number][1] for number in numbers]
        longest = max(map(len, rests))
        ids = torch.full((len(rests), longest), loaded.batcher.tokenizer.pad_token_id)
        filled = torch.zeros_like(ids)
        for row, rest in enumerate(rests):
            ids[row, longest - len(rest) :] = torch.tensor(rest)
            filled[row, longest - len(rest) :] = 1
        ids, filled = ids.to(loaded.batcher.device), filled.to(loaded.batcher.device)
        depths = (filled.cumsum(1) - 1).clamp(min=0)
        mask = torch.cat([filled.new_ones(len(rests), beginning.ids.shape[1]), filled], 1)
        cache, going = beginning.cache(loaded, seen.tokens), torch.tensor(numbers)
        for _ in range(most):
            out = model.model(
                input_ids=ids,
                position_ids=beginning.places(depths),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            ids = model.get_output_embeddings()(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
            for number, token in zip(going.tolist(), ids[:, 0].tolist(), strict=True):
                said[number].append(token)
            goes_on = torch.tensor([token not in ends for token in ids[:, 0].tolist()])
            if not goes_on.any():
                break
            if not goes_on.all():
                cache.batch_select_indices(goes_on.nonzero()[:, 0])
                ids, depths, mask, going = ids[goes_on], depths[goes_on], mask[goes_on], going[goes_on]
            depths = depths[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return said
