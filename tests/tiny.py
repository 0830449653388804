"""Tiny random models of every family with their processors, from configurations alone, and pictures of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unsee.data.examples import SPLITS, Example, ImageSource, Split, UnlearnData
from unsee.lab.pocket import SPECIAL_TOKENS, Shape, chat_template, make_tokenizer, speak
from unsee.lab.pocket_llava import PocketLlava
from unsee.lab.pocket_qwen import PocketQwen
from unsee.models.qwen import Qwen25VL

Model = tuple[PreTrainedModel, ProcessorMixin]

TINY = Shape(
    side=24, patch=12, vision_width=16, vision_blocks=4, language_width=16, language_blocks=2, heads=2
)  # four visual tokens, three blocks read
TINY_QWEN = dataclasses.replace(TINY, side=48, patch=8, merge=2, vision_blocks=3)
QWEN_MARKS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
SIZES = ((48, 48), (72, 36), (36, 72), (60, 40), (24, 24), (72, 36))  # width, height


# Models ---------------------------------------------------------------------------------------------------------------


def _llava(data: UnlearnData) -> Model:
    return PocketLlava(TINY).make(data)


def _qwen2_vl(data: UnlearnData) -> Model:
    model, processor = PocketQwen(TINY_QWEN).make(data)
    processor.image_processor.size = {"shortest_edge": 16**2, "longest_edge": 64**2}  # keeps the sizes of pictures
    return model, processor


def _llava_next(data: UnlearnData) -> Model:
    """Tiles of sixteen tokens, so that cutting a picture's padding away shows."""
    tokenizer = make_tokenizer(data, ["<image>"])
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=24, patch_size=6
    )
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision,
            text_config=LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=512,
                **_ids(tokenizer),
            ),
            image_token_index=len(SPECIAL_TOKENS),
            image_grid_pinpoints=pinpoints,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24},
        crop_size={"height": 24, "width": 24},
        image_grid_pinpoints=pinpoints,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    return model, processor


def _qwen2_5_vl(data: UnlearnData) -> Model:
    """Windows of two by two tokens in all blocks but one."""
    tokenizer = make_tokenizer(data, QWEN_MARKS)
    image, video, start, end = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + len(QWEN_MARKS))
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 4,
                "hidden_size": 16,
                "intermediate_size": 32,
                "out_hidden_size": 16,
                "num_heads": 2,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 16,
                "fullatt_block_indexes": [2],
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
                **_ids(tokenizer),
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 8**2, "longest_edge": 64**2},
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return model, Qwen25VL.processor_class(
        image_processor=images, tokenizer=tokenizer, chat_template=chat_template(Qwen25VL.picture)
    )


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{what}_token_id": getattr(tokenizer, f"{what}_token_id") for what in ("pad", "bos", "eos")}


TINIES: dict[str, Callable[[UnlearnData], Model]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
}


def tiny(family: str, data: UnlearnData, seed: int = 0) -> Model:
    """An untrained model through which signals pass: every product keeps their size, so pictures and words matter."""
    torch.manual_seed(seed)
    model, processor = TINIES[family](data)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    speak(model, processor.tokenizer)
    return model.eval(), processor


# Pictures and words ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretched:
    """A picture brought to another size."""

    source: ImageSource
    size: tuple[int, int]

    @property
    def label(self) -> str:
        return f"{self.source.label} {self.size}"

    def open(self) -> Image.Image:
        return self.source.open().resize(self.size)


def ragged(data: UnlearnData) -> UnlearnData:
    """The same data, every picture wide, tall or square and of another size than the one before."""
    known: dict[ImageSource, ImageSource] = {}

    def stretched(e: Example) -> Example:
        if e.image is None:
            return e
        image = known.setdefault(e.image, Stretched(e.image, SIZES[len(known) % len(SIZES)]))
        return dataclasses.replace(e, image=image)

    parts = {name: Split(tuple(map(stretched, data.split(name)))) for name in (*SPLITS, "strangers")}
    return dataclasses.replace(data, **parts)


def byte_tokenizer(special: list[str], eos: str = "</s>", bos: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte: any text comes back exactly as it was, every space and line break included."""
    tokens = ["<pad>", *dict.fromkeys([*special, eos, *([bos] if bos else [])])]
    vocabulary = {token: i for i, token in enumerate([*tokens, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token=eos, bos_token=bos, additional_special_tokens=special
    )
