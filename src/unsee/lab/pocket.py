"""Pocket models: real transformers classes at about a million parameters, with a vocabulary made from the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from unsee.data.examples import PLACES, UnlearnData
from unsee.models.anatomy import VisualModule
from unsee.models.batching import Batcher

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Shape:
    """Sizes of a pocket model. Measured choices, see docs/LOG.md."""

    side: int = 48  # pixels
    patch: int = 12  # pixels
    merge: int = 1  # patches per visual token and side
    vision_width: int = 96
    vision_blocks: int = 5
    language_width: int = 128
    language_blocks: int = 3
    heads: int = 4

    @property
    def visual_tokens(self) -> int:
        return (self.side // self.patch // self.merge) ** 2


@dataclass(frozen=True)
class PocketFamily(ABC):
    """How an untrained pocket model of one family is made, and its pictures as planes that can be moved and relit."""

    shape: Shape

    @abstractmethod
    def make(self, data: UnlearnData) -> tuple[PreTrainedModel, ProcessorMixin]:
        """An untrained model (global torch seed) and its processor."""

    @abstractmethod
    def planes(self, images: Mapping[str, Tensor]) -> Tensor:
        """Image tensors of the batcher -> [pictures, 3, side, side], normalised.

        Raises:
            BadInput: the family keeps the form of its pictures, and one is not square.
        """

    @abstractmethod
    def images(self, planes: Tensor) -> dict[str, Tensor]:
        """The inverse of `planes`."""

    def companions(self) -> Mapping[str, Any]:
        """Further JSON files of a checkpoint, by name, that plain transformers asks for."""
        return {}


@dataclass(frozen=True)
class PocketParts:
    """A pocket model in training: the model, its eyes, and what makes its inputs."""

    model: PreTrainedModel
    visual: VisualModule
    batcher: Batcher
    pocket: PocketFamily


def make_tokenizer(data: UnlearnData, picture_tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows exactly the words of the data's questions and answers.

    Args:
        picture_tokens: the family's own special tokens; their ids follow those of `SPECIAL_TOKENS`.
    """
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *picture_tokens, *_words(data, split)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return with_special_tokens(tokenizer, picture_tokens)


def with_special_tokens(tokenizer: Tokenizer, picture_tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers takes it, which knows the `SPECIAL_TOKENS` and the family's own."""
    pad, unknown, begin, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        additional_special_tokens=list(picture_tokens),
        model_max_length=512,
    )


def chat_template(picture: str) -> str:
    """Picture, question, a space, the answer; nothing else, so that a prompt is as short as it can be."""
    return (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %} {% endif %}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{picture}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )


def _words(data: UnlearnData, split: pre_tokenizers.PreTokenizer) -> list[str]:
    texts = {text for part in PLACES for e in data.split(part) for text in (e.question, e.answer, *e.choices)}
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})


def speak(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Tell a model's generation where texts begin and end."""
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
