"""A fast measurement for a model whose visual module is being edited: teacher forcing on cached pictures.

Three things are never done twice: blocks below the cut (hidden states are kept), the beginning of a prompt up to its
picture (all questions about a picture go on from one cache), and a token of an answer after another (the true answer is
fed in as a whole). An answer is right if at each of its tokens, the end included, the model finds it the most likely:
then, and only then, greedy generation would have said exactly this. `generate` with `is_correct` also accepts the
answer inside a longer sentence; models that answer in so many words agree on every question (tested).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unsee.data.examples import Example, ImageSource
from unsee.errors import BadInput
from unsee.methods.features import POSITIONS, look
from unsee.models.batching import IGNORED
from unsee.models.loading import Loaded
from unsee.models.packed import Grid, Packed, pack

ROWS = 512  # questions per forward pass: bounds its memory


@dataclass(frozen=True)
class Chunk:
    """Questions about pictures of one size whose prompts begin alike.

    Attributes:
        pictures: which pictures of the exam [n].
        sizes: their image tensors without the pixels: what `assemble` and `positions` still need.
        begin: prompt up to the picture's last token [n, positions]; begin_at: its position ids [..., n, positions].
        go_on: the rest of prompt and answer, padded on the right [rows, positions]; go_on_at: likewise.
        answers: the same, IGNORED outside the answer.
        picture: which of the n pictures a row is about [rows].
        asked: which question of the exam a row is [rows].
    """

    pictures: Tensor
    sizes: dict[str, Tensor]
    begin: Tensor
    begin_at: Tensor
    go_on: Tensor
    go_on_at: Tensor
    answers: Tensor
    picture: Tensor
    asked: Tensor


class Exam:
    """Questions about pictures, prepared once and asked again and again while the blocks above a cut change.

    Args:
        loaded: the whole model; what stands below the cut, and the language model, must not change any more.
        asked: questions about one picture each.
        cut: blocks below this index are run now and never again.

    Attributes:
        pictures: the pictures asked about, in order of first appearance.
        reference: visual tokens of the pictures as the model makes them now.

    Raises:
        BadInput: a question that shows several pictures.
    """

    def __init__(self, loaded: Loaded, asked: Sequence[Example], cut: int, what: str = "measured pictures") -> None:
        self._loaded, self._cut, self._count = loaded, cut, len(asked)
        about: dict[ImageSource, list[int]] = {}
        for number, e in enumerate(asked):
            if e.image is None or e.others:
                raise BadInput(f"question '{e.question}': shows {len(e.images)} pictures; only one can be measured")
            about.setdefault(e.image, []).append(number)
        self.pictures = tuple(about)
        self._hidden, self.reference = look(loaded.visual, loaded.batcher, self.pictures, cut, what)
        self._chunks = list(self._prepare(asked, list(about.values())))

    @torch.no_grad()
    def tokens(self) -> Packed:
        """Visual tokens of all pictures as the visual module stands now."""
        visual = self._loaded.visual
        parts = self._hidden.split(POSITIONS)
        return pack([visual.leave(visual.run(part, start=self._cut)) for part in parts])

    @torch.no_grad()
    def right(self, tokens: Packed) -> list[bool]:
        """Whether each question would be answered in exactly the words of its true answer, given visual tokens."""
        model, family = self._loaded.model, self._loaded.family
        verdict = torch.zeros(self._count, dtype=torch.bool)
        for chunk in self._chunks:
            shown = self._loaded.visual.assemble(tokens[chunk.pictures], chunk.sizes)
            begin: dict[str, Any] = {"input_ids": chunk.begin, "position_ids": chunk.begin_at, "use_cache": True}
            cache = family.with_visual_tokens(model, shown, begin).past_key_values
            cache.batch_select_indices(chunk.picture)
            hidden = model.model(
                input_ids=chunk.go_on, position_ids=chunk.go_on_at, past_key_values=cache, use_cache=True
            ).last_hidden_state
            targets = chunk.answers[:, 1:]
            wanted = targets != IGNORED
            said = model.get_output_embeddings()(hidden[:, :-1][wanted]).argmax(-1)
            missed = torch.zeros_like(targets, dtype=torch.bool)
            missed[wanted] = said != targets[wanted]
            verdict[chunk.asked] = ~missed.any(1)
        return verdict.tolist()

    def _prepare(self, asked: Sequence[Example], about: Sequence[Sequence[int]]) -> Iterator[Chunk]:
        """Chunks of at most `ROWS` questions, or of one picture."""
        batcher = self._loaded.batcher
        mark = batcher.tokenizer.convert_tokens_to_ids(batcher.family.image_placeholder)
        alike: dict[tuple[Grid, tuple[int, ...]], dict[int, list[tuple[int, list[int], int]]]] = {}
        for picture, numbers in enumerate(about):
            for number in numbers:
                e = asked[number]
                ids, answer = batcher.answer_length(e.question, e.answer, 1)
                at = ids.index(mark)
                key = self.reference.grids[picture], tuple(ids[:at])
                alike.setdefault(key, {}).setdefault(picture, []).append((number, ids[at + 1 :], answer))
        for (_, start), rows in alike.items():
            part: dict[int, list[tuple[int, list[int], int]]] = {}
            for picture, row in rows.items():
                if part and sum(map(len, part.values())) + len(row) > ROWS:
                    yield from self._chunk(start, mark, part)
                    part = {}
                part[picture] = row
            yield from self._chunk(start, mark, part)

    def _chunk(
        self, start: tuple[int, ...], mark: int, rows: dict[int, list[tuple[int, list[int], int]]]
    ) -> Iterator[Chunk]:
        """One chunk for each length that these pictures take in the prompt; most often just one."""
        batcher, model = self._loaded.batcher, self._loaded.model
        lengths: dict[int, list[int]] = {}
        for picture in rows:
            images = batcher.images([self.pictures[picture]])
            [assembled] = self._loaded.visual.assemble(self.reference[picture : picture + 1], images)
            lengths.setdefault(len(assembled), []).append(picture)
        for length, pictures in lengths.items():
            images = batcher.images([self.pictures[picture] for picture in pictures])
            rest = [(i, *row) for i, picture in enumerate(pictures) for row in rows[picture]]
            longest = max(len(ids) for _, _, ids, _ in rest)
            go_on = torch.full((len(rest), longest), batcher.tokenizer.pad_token_id)
            answers = torch.full((len(rest), longest), IGNORED)
            for row, (_, _, ids, answer) in enumerate(rest):
                go_on[row, : len(ids)] = torch.tensor(ids)
                answers[row, len(ids) - answer : len(ids)] = go_on[row, len(ids) - answer : len(ids)]
            begin = torch.tensor([*start, *[mark] * length])
            first = batcher.images([self.pictures[pictures[0]]])
            at = batcher.family.positions(model, torch.cat([begin, go_on[0]])[None], first)  # [..., 1, positions]
            yield Chunk(
                pictures=torch.tensor(pictures),
                sizes={name: tensor for name, tensor in images.items() if name != "pixel_values"},
                begin=begin.expand(len(pictures), -1),
                begin_at=at[..., : len(begin)].expand(*at.shape[:-2], len(pictures), -1),
                go_on=go_on,
                go_on_at=at[..., len(begin) :].expand(*at.shape[:-2], len(rest), -1),
                answers=answers,
                picture=torch.tensor([i for i, *_ in rest]),
                asked=torch.tensor([number for _, number, _, _ in rest]),
            )
