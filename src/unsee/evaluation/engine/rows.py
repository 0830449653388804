"""Rows for a language model in which what questions and answers share stands once.

The beginning of a prompt, up to the end of its last picture, goes through the model once and is kept (key/value cache).
Everything behind it that is asked about the same pictures is one *tree*: texts that begin alike share those tokens, and
each token sees the tokens before it in its own text only. One row thus holds all questions about a picture with all
their answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unsee.data.examples import ImageSource
from unsee.errors import BadInput
from unsee.methods.parts.features import CHUNK, POSITIONS
from unsee.models.batching import Batcher
from unsee.models.loading import Loaded
from unsee.models.packed import NOTHING, Packed, pack

ROOM = 1 << 14  # positions per forward pass, what rows share counted for each of them: bounds its memory
TREE = 512  # tokens of a row: attention looks at all pairs


class Opening(NamedTuple):
    """What questions begin with: their pictures, by number, and tokens up to the last one's placeholder."""

    pictures: tuple[int, ...]
    tokens: tuple[int, ...]


class Text(NamedTuple):
    """A question with an answer: see `Opening.tokens`, all further tokens, and how many of them are the answer."""

    opening: tuple[int, ...]
    rest: tuple[int, ...]
    answer: int


@dataclass
class Tree:
    """Texts with the tokens that they begin with in common.

    Attributes:
        tokens: of every node, each behind its parent.
        parents: number of the node before it, -1 at the beginning.
        depths: how many nodes are before it in its text.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def grow(self, text: Sequence[int]) -> list[int]:
        """Add a text; returns its nodes."""
        nodes, node = [], -1
        for depth, token in enumerate(text):
            key = node, token
            if key not in self._known:
                self._known[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = self._known[key]
            nodes.append(node)
        return nodes

    def after(self, node: int, token: int) -> int | None:
        """The node that goes on with this token, if a text does."""
        return self._known.get((node, token))

    @property
    def sees(self) -> Tensor:
        """Which nodes each may look at: itself and those before it in its text [nodes, nodes]."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        parents, depths = torch.tensor(self.parents), torch.tensor(self.depths)
        for depth in range(1, max(self.depths, default=0) + 1):
            nodes = (depths == depth).nonzero()[:, 0]
            seen[nodes] |= seen[parents[nodes]]
        return seen


@dataclass(frozen=True)
class TextRow:
    """Texts of one opening as one row: a tree.

    Attributes:
        opening: see `Opening.tokens`.
        pairs: a token of an answer and the node that predicts it -> their number.
        answers: number of a text -> the tokens of its answer, as numbers of `pairs`.
    """

    opening: tuple[int, ...]
    tree: Tree = field(default_factory=Tree)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def predicted(self) -> list[tuple[int, int]]:
        """Node and token of each pair."""
        return list(self.pairs)

    @cached_property
    def looked(self) -> dict[int, int]:
        """Nodes that predict something -> their number."""
        return {node: i for i, node in enumerate(dict.fromkeys(node for node, _ in self.pairs))}

    @cached_property
    def indices(self) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes that predict something [nodes]; of each pair, which of these predicts it, and its token [pairs]."""
        at = [self.looked[node] for node, _ in self.pairs]
        return torch.tensor([*self.looked]), torch.tensor(at), torch.tensor([token for _, token in self.pairs])


def text_rows(texts: Sequence[Text]) -> list[TextRow]:
    """All texts about the same pictures, in the order of their first ones; a full tree is followed by the next.

    Raises:
        BadInput: an answer whose first token stands right behind its picture, so that nothing predicts it.
    """
    rows: list[TextRow] = []
    last: dict[tuple[int, ...], TextRow] = {}
    for number, (opening, rest, answer) in enumerate(texts):
        if answer >= len(rest):
            raise BadInput("a prompt ends with its picture; the chat template must write something before the answer")
        if opening not in last or len(last[opening].tree.tokens) + len(rest) > TREE:
            rows.append(TextRow(opening))
            last[opening] = rows[-1]
        row = last[opening]
        nodes = row.tree.grow(rest[:-1])
        pairs = zip(nodes[-answer:], rest[-answer:], strict=True)
        row.answers[number] = tuple(row.pairs.setdefault(pair, len(row.pairs)) for pair in pairs)
    return rows


@dataclass(frozen=True)
class Seen:
    """Pictures as the language model gets them.

    Attributes:
        numbers: picture -> its place in `tokens`.
        tokens: visual tokens.
        sizes: image tensors without the pixels, a row per picture: what `assemble` and `positions` still need.
        lengths: how many positions each takes in a prompt.
    """

    numbers: Mapping[ImageSource, int]
    tokens: Packed
    sizes: dict[str, Tensor]
    lengths: tuple[int, ...]

    @staticmethod
    def of(loaded: Loaded, pictures: Sequence[ImageSource], tokens: Packed | None = None) -> Seen:
        """Look at every picture once, a few at a time; with `tokens` given, only at their sizes."""
        visual, fresh, sizes = loaded.visual, list[Packed](), list[dict[str, Tensor]]()
        for start in range(0, len(pictures), CHUNK):
            images = loaded.batcher.images(pictures[start : start + CHUNK])
            sizes.append({name: tensor for name, tensor in images.items() if name != "pixel_values"})
            if tokens is None:
                fresh += [visual.leave(visual.run(part)) for part in visual.enter(images).split(POSITIONS)]
        if tokens is None:
            tokens = pack(fresh) if fresh else NOTHING
        joined = {name: torch.cat([part[name] for part in sizes]) for name in (sizes[0] if sizes else ())}
        lengths = [len(shown) for shown in visual.assemble(tokens, joined)] if pictures else []
        return Seen({picture: i for i, picture in enumerate(pictures)}, tokens, joined, tuple(lengths))

    def places(self, pictures: Sequence[ImageSource]) -> tuple[int, ...]:
        return tuple(self.numbers[picture] for picture in pictures)

    def sizes_of(self, pictures: Tensor) -> dict[str, Tensor]:
        return {name: tensor[pictures] for name, tensor in self.sizes.items()}


@dataclass(frozen=True)
class Beginning:
    """Openings of the same tokens and sizes of pictures, in one batch.

    Attributes:
        pictures: numbers of their pictures, one opening after the other [openings * pictures of each].
        sizes: see `Seen`, of these.
        ids: tokens of each, placeholders as often as needed [openings, positions]; no positions for text alone.
        at: their position ids [..., openings, positions].
        next: position id of what follows [...].
        row: which opening each row goes on from [rows].
    """

    pictures: Tensor
    sizes: dict[str, Tensor]
    ids: Tensor
    at: Tensor
    next: Tensor
    row: Tensor

    def cache(self, loaded: Loaded, tokens: Packed) -> Any:
        """Keys and values of the opening of every row, given visual tokens of all pictures; None for text alone."""
        if not self.ids.shape[1]:
            return None
        shown = loaded.visual.assemble(tokens[self.pictures], self.sizes)
        inputs: dict[str, Any] = {"input_ids": self.ids, "position_ids": self.at, "use_cache": True}
        cache = loaded.family.with_visual_tokens(loaded.model, shown, inputs).past_key_values
        if not torch.equal(self.row, torch.arange(len(self.ids))):
            cache.batch_select_indices(self.row)
        return cache

    def places(self, depths: Tensor) -> Tensor:
        """Position ids of tokens so far behind the opening [rows, positions] -> [..., rows, positions]."""
        return self.next[..., None, None] + depths


def at_pictures(batcher: Batcher, pictures: int, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids up to the placeholder of the last of so many pictures, and those behind it."""
    mark = batcher.tokenizer.convert_tokens_to_ids(batcher.family.image_placeholder)
    end = max((i for i, token in enumerate(ids, 1) if token == mark), default=0) if pictures else 0
    return tuple(ids[:end]), tuple(ids[end:])


def alike(
    loaded: Loaded, seen: Seen, rows: Sequence[tuple[Opening, int]]
) -> Iterator[tuple[Beginning, tuple[int, ...]]]:
    """Rows, each an opening and how many positions follow it, in batches that begin alike and are bounded in size.

    Yields:
        what a batch begins with, and the numbers of its rows.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (opening, _) in enumerate(rows):
        grids = tuple((seen.tokens.grids[i], seen.lengths[i]) for i in opening.pictures)
        groups.setdefault((opening.tokens, grids), []).append(number)
    for group in groups.values():
        past = len(_expanded(loaded, seen, rows[group[0]][0]))
        part, longest = list[int](), 0
        for number in group:
            longest = max(longest, rows[number][1])
            if part and (len(part) + 1) * (past + longest) > ROOM:
                yield _beginning(loaded, seen, [rows[i][0] for i in part]), tuple(part)
                part, longest = [], rows[number][1]
            part.append(number)
        yield _beginning(loaded, seen, [rows[i][0] for i in part]), tuple(part)


def _beginning(loaded: Loaded, seen: Seen, of_rows: Sequence[Opening]) -> Beginning:
    known = {opening: i for i, opening in enumerate(dict.fromkeys(of_rows))}
    first = of_rows[0]
    pictures = torch.tensor([i for opening in known for i in opening.pictures], dtype=torch.long)
    row = torch.tensor([known[opening] for opening in of_rows])
    begin = torch.tensor(_expanded(loaded, seen, first), dtype=torch.long, device=loaded.batcher.device)
    if not len(begin):
        return Beginning(pictures, {}, begin.expand(len(known), 0), begin, begin.new_zeros(()), row)
    more = torch.cat([begin, torch.tensor([loaded.batcher.tokenizer.pad_token_id], device=begin.device)])[None]
    at = loaded.family.positions(loaded.model, more, seen.sizes_of(pictures[: len(first.pictures)]))
    return Beginning(
        pictures=pictures,
        sizes=seen.sizes_of(pictures),
        ids=begin.expand(len(known), -1),
        at=at[..., :-1].expand(*at.shape[:-2], len(known), -1),
        next=at[..., 0, -1],
        row=row,
    )


def _expanded(loaded: Loaded, seen: Seen, opening: Opening) -> list[int]:
    mark = loaded.batcher.tokenizer.convert_tokens_to_ids(loaded.batcher.family.image_placeholder)
    lengths = iter(opening.pictures)
    return [t for token in opening.tokens for t in [token] * (seen.lengths[next(lengths)] if token == mark else 1)]


@dataclass(frozen=True)
class Chunk:
    """Some rows for one forward pass.

    Attributes:
        beginning: what its rows begin with.
        ids, depths: of the nodes of its trees, padded on the right [rows, nodes].
        sees: which of them each may look at [rows, nodes, nodes].
        rows: which of the sheets each is of, and the row.
    """

    beginning: Beginning
    ids: Tensor
    depths: Tensor
    sees: Tensor
    rows: tuple[tuple[int, TextRow], ...]

    @torch.no_grad()
    def hidden(self, loaded: Loaded, tokens: Packed) -> Tensor:
        """Last hidden states of all nodes [rows, nodes, width], given visual tokens of all pictures."""
        cache = self.beginning.cache(loaded, tokens)
        past = self.sees.new_ones(*self.sees.shape[:2], self.beginning.ids.shape[1])
        dtype = loaded.model.dtype
        hides = torch.zeros(1, dtype=dtype, device=past.device)
        hides = hides.masked_fill(~torch.cat([past, self.sees], 2), torch.finfo(dtype).min)
        hidden: Tensor = loaded.model.model(
            input_ids=self.ids,
            position_ids=self.beginning.places(self.depths),
            attention_mask=hides[:, None],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden


def chunks(loaded: Loaded, seen: Seen, sheets: Sequence[tuple[tuple[int, ...], Sequence[TextRow]]]) -> Iterator[Chunk]:
    """All rows of sheets, each the numbers of some pictures and what `text_rows` gives of the texts about them."""
    rows = [
        (Opening(pictures, row.opening), number, row) for number, (pictures, own) in enumerate(sheets) for row in own
    ]
    drawn: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by tree: pictures of one subject share them
    for beginning, numbers in alike(loaded, seen, [(opening, len(row.tree.tokens)) for opening, _, row in rows]):
        trees = [rows[number][2].tree for number in numbers]
        longest = max(len(tree.tokens) for tree in trees)
        ids = torch.full((len(trees), longest), loaded.batcher.tokenizer.pad_token_id)
        depths = torch.zeros_like(ids)
        sees = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
        for i, tree in enumerate(trees):
            if id(tree) not in drawn:
                drawn[id(tree)] = torch.tensor(tree.tokens), torch.tensor(tree.depths), tree.sees
            count = len(tree.tokens)
            ids[i, :count], depths[i, :count], sees[i, :count, :count] = drawn[id(tree)]
        there = loaded.batcher.device
        yield Chunk(beginning, ids.to(there), depths.to(there), sees.to(there), tuple(rows[n][1:] for n in numbers))
