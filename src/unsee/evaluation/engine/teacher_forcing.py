"""A fast measurement for a model whose visual module is being edited: teacher forcing on cached pictures.

Three things are never done twice: blocks below the cut (hidden states are kept), what prompts about a picture have in
common (see `rows`), and a token of an answer after another (the true answer is fed in as a whole). An answer is
right if at each of its tokens, the end included, the model finds it the most likely: then, and only then, greedy
generation would have said exactly this. `generate` with `is_correct` also accepts the answer inside a longer sentence;
models that answer in so many words agree on every question (tested).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unsee.data.examples import Example, ImageSource
from unsee.errors import BadInput
from unsee.evaluation.engine.rows import Chunk, Seen, Text, at_pictures, chunks, text_rows
from unsee.methods.parts.features import POSITIONS, look
from unsee.models.loading import Loaded
from unsee.models.packed import Packed, pack


class CachedExam:
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
        about: dict[ImageSource, int] = {}
        for e in asked:
            if e.image is None or e.others:
                raise BadInput(f"question '{e.question}': shows {len(e.images)} pictures; only one can be measured")
            about.setdefault(e.image, len(about))
        self.pictures = tuple(about)
        self._hidden, self.reference = look(loaded.visual, loaded.batcher, self.pictures, cut, what)
        seen = Seen.of(loaded, self.pictures, self.reference)
        texts: list[list[Text]] = [[] for _ in about]
        numbers: list[list[int]] = [[] for _ in about]
        for number, e in enumerate(asked):
            ids, answer = loaded.batcher.answer_length(e.question, e.answer, 1)
            texts[about[e.images[0]]].append(Text(*at_pictures(loaded.batcher, 1, ids), answer))
            numbers[about[e.images[0]]].append(number)
        sheets = [((picture,), text_rows(some)) for picture, some in enumerate(texts)]
        self._chunks = [(chunk, _wanted(chunk, numbers)) for chunk in chunks(loaded, seen, sheets)]

    @torch.no_grad()
    def tokens(self) -> Packed:
        """Visual tokens of all pictures as the visual module stands now."""
        visual = self._loaded.visual
        parts = self._hidden.split(POSITIONS)
        return pack([visual.leave(visual.run(part, start=self._cut)) for part in parts])

    @torch.no_grad()
    def right(self, tokens: Packed) -> list[bool]:
        """Whether each question would be answered in exactly the words of its true answer, given visual tokens."""
        verdict = torch.ones(self._count, dtype=torch.bool)
        for chunk, (rows, nodes, wanted, asked) in self._chunks:
            hidden = chunk.hidden(self._loaded, tokens)[rows, nodes]
            said = self._loaded.model.get_output_embeddings()(hidden).argmax(-1).cpu()
            verdict[asked[said != wanted]] = False
        return verdict.tolist()


def _wanted(chunk: Chunk, numbers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every token of every answer: row and node that predict it, the token, the question [tokens]."""
    found = []
    for at, (sheet, row) in enumerate(chunk.rows):
        found += [(at, *row.predicted[i], numbers[sheet][text]) for text, answer in row.answers.items() for i in answer]
    rows, nodes, tokens, asked = torch.tensor(found).T
    return rows, nodes, tokens, asked
