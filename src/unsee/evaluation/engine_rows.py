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
from unsee.models.loading import Loaded
from unsee.models.packed import NOTHING, Packed, pack

ROOM = 1 << 14  # positions per forward pass, what rows share counted for each of them: bounds its memory
TREE = 512  # tokens of a row: attention looks at all pairs


class Opening(NamedTuple):
    """What questions begin with: their pictures, by number, and tokens up to the last one's placeholder."""

    pictures: tuple[int, ...]
    tokens: tuple[int, ...]


class Path(NamedTuple):
    """A question with an answer: its opening, all further tokens, and how many of them, at the end, are the answer."""

    opening: Opening
    rest: tuple[int, ...]
    answer: int


class Place(NamedTuple):
    """Where the tokens of an answer are predicted: row, a node for each token, and the tokens."""

    row: int
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]


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

    @cached_property
    def sees(self) -> Tensor:
        """Which nodes each may look at: itself and those before it in its text [nodes, nodes]."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


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


def openings(loaded: Loaded, pictures: Sequence[int], ids: Sequence[int]) -> tuple[Opening, tuple[int, ...]]:
    """Token ids of a text, placeholders not expanded -> what it begins with, and the rest."""
    begin, rest = cut(loaded, len(pictures), ids)
    return Opening(tuple(pictures), begin), rest


def cut(loaded: Loaded, pictures: int, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids up to the placeholder of the last of so many pictures, and those behind it."""
    batcher = loaded.batcher
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
    """Some paths as rows for one forward pass.

    Attributes:
        beginning: what its rows begin with.
        ids, depths: of the nodes of its trees, padded on the right [rows, nodes].
        sees: which of them each may look at [rows, nodes, nodes].
        trees: of the rows.
        places: number of the path -> where its answer is predicted.
    """

    beginning: Beginning
    ids: Tensor
    depths: Tensor
    sees: Tensor
    trees: tuple[Tree, ...]
    places: dict[int, Place]

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


@dataclass(frozen=True)
class _Grown:
    """A tree of some texts about the same pictures.

    Attributes:
        first: number of the first of its texts.
        placed: number of a text, nodes that predict its answer, and the answer's tokens.
    """

    tree: Tree
    first: int
    placed: list[tuple[int, tuple[int, ...], tuple[int, ...]]]


def _grown(texts: Sequence[tuple[tuple[int, ...], int]]) -> list[_Grown]:
    """Trees of texts, given with how many tokens at the end are the answer; a full tree is followed by the next."""
    found: list[_Grown] = []
    for number, (rest, answer) in enumerate(texts):
        if not found or len(found[-1].tree.tokens) + len(rest) > TREE:
            found.append(_Grown(Tree(), number, []))
        nodes = found[-1].tree.grow(rest[:-1])
        found[-1].placed.append((number, tuple(nodes[-answer:]), rest[-answer:]))
    return found


def chunks(loaded: Loaded, seen: Seen, paths: Sequence[Path]) -> Iterator[Chunk]:
    """All paths; those with one opening share trees.

    Raises:
        BadInput: an answer whose first token stands right behind its picture, so that nothing predicts it.
    """
    about: dict[Opening, list[int]] = {}
    for number, (opening, rest, answer) in enumerate(paths):
        if answer >= len(rest):
            raise BadInput("a prompt ends with its picture; the chat template must write something before the answer")
        about.setdefault(opening, []).append(number)
    known: dict[tuple[tuple[tuple[int, ...], int], ...], list[_Grown]] = {}  # pictures of one subject are asked alike
    begun: list[tuple[int, Opening, _Grown, Sequence[int]]] = []
    for opening, own in about.items():
        texts = tuple((paths[number].rest, paths[number].answer) for number in own)
        if texts not in known:
            known[texts] = _grown(texts)
        begun += [(own[grown.first], opening, grown, own) for grown in known[texts]]
    begun.sort(key=lambda row: row[0])  # in the order of their first texts
    rows = [(opening, grown.tree) for _, opening, grown, _ in begun]
    placed = {
        row: [(own[text], Place(row, nodes, tokens)) for text, nodes, tokens in grown.placed]
        for row, (_, _, grown, own) in enumerate(begun)
    }
    for beginning, numbers in alike(loaded, seen, [(opening, len(tree.tokens)) for opening, tree in rows]):
        trees = tuple(rows[number][1] for number in numbers)
        longest = max(len(tree.tokens) for tree in trees)
        ids = torch.full((len(trees), longest), loaded.batcher.tokenizer.pad_token_id)
        depths = torch.zeros_like(ids)
        sees = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
        for i, tree in enumerate(trees):
            count = len(tree.tokens)
            ids[i, :count], depths[i, :count] = torch.tensor(tree.tokens), torch.tensor(tree.depths)
            sees[i, :count, :count] = tree.sees
        places = {n: place._replace(row=i) for i, row in enumerate(numbers) for n, place in placed[row]}
        there = loaded.batcher.device
        yield Chunk(beginning, ids.to(there), depths.to(there), sees.to(there), trees, places)
