"""Pocket models: real transformers classes at about a million parameters, with a vocabulary made from the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from unsee.data.examples import UnlearnData

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a pocket model. Measured choices, see docs/LOG.md."""

    side: int = 48  # pixels
    patch: int = 12  # pixels: 16 visual tokens
    vision_width: int = 96
    vision_blocks: int = 5  # the feature layer is -2, so four of them are read
    language_width: int = 128
    language_blocks: int = 3
    heads: int = 4


def make_tokenizer(data: UnlearnData) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows exactly the words of the data's questions and answers."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *_words(data, split)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        model_max_length=512,
    )


def _words(data: UnlearnData, split: pre_tokenizers.PreTokenizer) -> list[str]:
    texts = {
        text
        for part in ("train", "validation", "test", "strangers")
        for e in data.split(part)
        for text in (e.question, e.answer, *e.choices)
    }
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})


def pocket_llava(data: UnlearnData, shape: Shape) -> tuple[PreTrainedModel, ProcessorMixin]:
    """An untrained LLaVA that reads the hidden state before its last vision block, as LLaVA-1.5 does."""
    tokenizer = make_tokenizer(data)
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_width * 3,
        num_hidden_layers=shape.vision_blocks,
        num_attention_heads=shape.heads,
        image_size=shape.side,
        patch_size=shape.patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.language_width,
        intermediate_size=shape.language_width * 3,
        num_hidden_layers=shape.language_blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=SPECIAL_TOKENS.index("<image>"),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=(shape.side // shape.patch) ** 2,
        )
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    images = CLIPImageProcessorPil(
        size={"shortest_edge": shape.side},
        crop_size={"height": shape.side, "width": shape.side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


POCKETS: dict[str, Callable[[UnlearnData, Shape], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": pocket_llava,
}
