"""Ask a model many questions at once: greedy answers, and how likely it finds given ones.

Every picture is looked at once for all its questions and answers, what their texts share goes through the language
model once (see `engine_rows`), and no batch grows with the set. Where the answer that a model would give is among those
that are weighed, it can be read off the same pass: at each token the most likely one must be the next. All others are
generated, going on from the pictures' keys and values. Either way they are the answers of `generate` (tested).

A batch is decided by the questions alone, so a run that is broken off or shared among processes computes the same
batches, and finds the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unsee.data.examples import Example
from unsee.evaluation.engine_rows import Chunk, Opening, Path, Seen, alike, chunks, cut
from unsee.models.loading import Loaded

SPARE = 8  # tokens that an answer may have more than the longest true one
PICTURES = 32  # per batch
TEXTS = 256  # questions without a picture per batch
SCORES = 1 << 23  # vocabulary scores held at a time

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
class Request:
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
class Weighed:
    """What a model finds of one answer, token by token, its end included (see `Recital` and `MembershipRecord`)."""

    log_probs: tuple[float, ...]
    hits: tuple[bool, ...]
    expected: tuple[float, ...]
    spread: tuple[float, ...]


@dataclass(frozen=True)
class Reply:
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

    def __init__(self, loaded: Loaded, requests: Sequence[Request], longest: int) -> None:
        self._loaded, self._requests, self._longest = loaded, requests, longest
        self._texts = _Texts(loaded)
        self.batches = batches([request.example for request in requests])

    @torch.no_grad()
    def run(self, batch: Sequence[int]) -> list[Reply]:
        """The replies to one of the batches, in its order."""
        asked = [self._requests[number] for number in batch]
        seen = Seen.of(self._loaded, list(dict.fromkeys(image for r in asked for image in r.example.images)))
        speaks = greedy(self._loaded.model)
        prompts = [self._texts.path(seen, r.example, None) for r in asked]
        paths, owner = list[Path](), list[tuple[int, str | None]]()
        for i, request in enumerate(asked):
            if request.spoken and speaks:
                paths.append(prompts[i])
                owner.append((i, None))
            for weighed in (request.example.answer, *request.others):
                paths.append(self._texts.path(seen, request.example, weighed))
                owner.append((i, weighed))
        found: list[dict[str, Weighed]] = [{} for _ in asked]
        said: dict[int, list[int] | None] = {}
        for chunk in chunks(self._loaded, seen, paths):
            scored = _Scored(self._loaded.model, chunk, chunk.hidden(self._loaded, seen.tokens))
            for number in chunk.places:
                i, answer = owner[number]
                if answer is None:
                    said[i] = scored.said(number, _ends(self._loaded.model), self._longest + SPARE)
                else:
                    found[i][answer] = scored.weighed(number)
        unknown = [i for i, tokens in said.items() if tokens is None]
        own = _generated(self._loaded, seen, [prompts[i] for i in unknown], self._longest + SPARE)
        said |= dict(zip(unknown, own, strict=True))
        texts = dict(zip(said, _texts(self._loaded, [tokens or [] for tokens in said.values()]), strict=True))
        return [
            Reply(texts.get(i), {answer: found[i][answer] for answer in (r.example.answer, *r.others)})
            for i, r in enumerate(asked)
        ]


@torch.no_grad()
def answers(loaded: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
    """Greedy answers, as `predict.generate` gives them, of a model that is `greedy`; in order.

    Args:
        longest: see `Engine`.
    """
    said: dict[int, list[int]] = {}
    texts = _Texts(loaded)
    for batch in batches(examples):
        pictures = list(dict.fromkeys(image for number in batch for image in examples[number].images))
        seen = Seen.of(loaded, pictures)
        prompts = [texts.path(seen, examples[number], None) for number in batch]
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


class _Texts:
    """Questions with answers as tokens; each text is cut once, however many pictures it is asked about."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._known: dict[tuple[str, str | None, int], tuple[tuple[int, ...], tuple[int, ...], int]] = {}

    def path(self, seen: Seen, e: Example, answer: str | None) -> Path:
        """With None an answer of one token, which is padding: where the model's own answer begins."""
        key = e.question, answer, len(e.images)
        if key not in self._known:
            batcher, count = self._loaded.batcher, len(e.images)
            if answer is None:
                ids, length = [*batcher.prompt_ids(e.question, count), batcher.tokenizer.pad_token_id], 1
            else:
                ids, length = batcher.answer_length(e.question, answer, count)
            self._known[key] = *cut(self._loaded, count, ids), length
        begin, rest, length = self._known[key]
        return Path(Opening(tuple(seen.numbers[image] for image in e.images), begin), rest, length)


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


class _Scored:
    """What a model predicts at the nodes of a chunk where answers are looked at."""

    def __init__(self, model: PreTrainedModel, chunk: Chunk, hidden: Tensor) -> None:
        self._chunk = chunk
        self._node: dict[tuple[int, int], int] = {}
        self._token: dict[tuple[int, int], int] = {}  # node, token: to be weighed
        for row, nodes, tokens in chunk.places.values():
            for node, token in zip(nodes, tokens, strict=True):
                at = self._node.setdefault((row, node), len(self._node))
                self._token.setdefault((at, token), len(self._token))
        rows, nodes_at = (torch.tensor(x) for x in zip(*self._node, strict=True))
        nodes_of, tokens_of = (torch.tensor(x) for x in zip(*self._token, strict=True))
        size = max(1, SCORES // len(model.get_output_embeddings().weight))
        self._log_probs = torch.zeros(len(tokens_of))
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
            self._log_probs[here] = log_probs[nodes_of[here] - start, tokens_of[here]].cpu()
        self._values = self._log_probs.tolist()
        self._best, self._expected, self._spread = best, expected, spread

    def weighed(self, path: int) -> Weighed:
        row, nodes, tokens = self._chunk.places[path]
        at = [self._node[row, node] for node in nodes]
        return Weighed(
            tuple(self._values[self._token[i, token]] for i, token in zip(at, tokens, strict=True)),
            tuple(self._best[i] == token for i, token in zip(at, tokens, strict=True)),
            tuple(self._expected[i] for i in at),
            tuple(self._spread[i] for i in at),
        )

    def said(self, path: int, ends: frozenset[int], most: int) -> list[int] | None:
        """The model's own answer from here on; None if it leaves the tree before its end."""
        row, (at,), _ = self._chunk.places[path]
        node: int | None = at
        spoken: list[int] = []
        while node is not None and (row, node) in self._node:
            spoken.append(self._best[self._node[row, node]])
            if spoken[-1] in ends or len(spoken) == most:
                return spoken
            node = self._chunk.trees[row].after(node, spoken[-1])
        return None


def _generated(loaded: Loaded, seen: Seen, prompts: Sequence[Path], most: int) -> list[list[int]]:
    """Greedy answers to prompts, token by token; those that have ended leave the batch."""
    said: list[list[int]] = [[] for _ in prompts]
    model, ends = loaded.model, _ends(loaded.model)
    for beginning, numbers in alike(loaded, seen, [(p.opening, len(p.rest) + most) for p in prompts]):
        rests = [prompts[number].rest[:-1] for number in numbers]
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
