"""Checkpoints of any size with random weights, written to disk without ever standing in memory.

Names and shapes come from the real transformers class on the meta device, so plain transformers loads the result.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2Config,
    Qwen2VLConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unsee.data.examples import UnlearnData
from unsee.lab.pocket import chat_template, make_tokenizer
from unsee.models.llava import Llava
from unsee.models.qwen import Qwen2VL

PATCH = 14
SCALE = 0.02  # of every weight matrix; as models are initialised, so features stay finite
BLOCK = 1 << 24  # random values drawn once; every tensor is a stretch of them from its own place on


@dataclass(frozen=True)
class Language:
    """Sizes of a language model."""

    width: int
    layers: int
    intermediate: int
    heads: int
    groups: int
    vocabulary: int
    tied: bool = False


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision tower."""

    width: int
    blocks: int
    intermediate: int
    heads: int
    side: int  # pixels


@dataclass(frozen=True)
class Shape:
    """A model to be made: the same tower with one of several language models."""

    family: str
    label: str
    tower: Tower
    language: Language


def _shapes(family: str, tower: Tower, languages: Mapping[str, Language]) -> list[Shape]:
    return [Shape(family, label, tower, language) for label, language in languages.items()]


REAL = {
    "llava": _shapes(
        "llava",
        Tower(1024, 24, 4096, 16, 336),  # CLIP ViT-L/14
        {
            "0.5B, same width": Language(4096, 1, 11008, 32, 32, 32064),
            "Qwen2-0.5B": Language(896, 24, 4864, 14, 2, 151936, tied=True),
            "LLaVA-1.5-7B": Language(4096, 32, 11008, 32, 32, 32064),
        },
    ),
    "qwen2_vl": _shapes(
        "qwen2_vl",
        Tower(1280, 32, 5120, 16, 336),
        {
            "0.5B, same width": Language(3584, 1, 18944, 28, 4, 32064),
            "Qwen2-0.5B": Language(896, 24, 4864, 14, 2, 151936, tied=True),
            "Qwen2-VL-7B": Language(3584, 28, 18944, 28, 4, 152064),
        },
    ),
}
_TINY_TOWER = Tower(32, 4, 64, 2, 4 * PATCH)
_TINY_LANGUAGES = {
    "short": Language(64, 1, 128, 4, 4, 512),
    "narrow": Language(32, 6, 64, 2, 1, 512, tied=True),
    "full": Language(64, 8, 128, 4, 4, 512),
}
TINY = {family: _shapes(family, _TINY_TOWER, _TINY_LANGUAGES) for family in REAL}


def write_random_checkpoint(shape: Shape, data: UnlearnData, folder: Path, shard_bytes: int, seed: int = 10) -> int:
    """Write a checkpoint in bfloat16 with an index, processor and tokenizer.

    Args:
        data: its words become the tokenizer's; the vocabulary is as large as the shape says all the same.
        shard_bytes: no weight file holds more, unless a single tensor does.

    Returns:
        its number of parameters.
    """
    config, processor = {"llava": _llava, "qwen2_vl": _qwen2_vl}[shape.family](shape, data)
    config.dtype = torch.bfloat16
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = shape.language.tied
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    config.architectures = [type(model).__name__]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
    _write_weights(sizes, folder, shard_bytes, torch.Generator().manual_seed(seed))
    return sum(map(math.prod, sizes.values()))


def _write_weights(
    sizes: Mapping[str, tuple[int, ...]], folder: Path, shard_bytes: int, generator: torch.Generator
) -> None:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + 2 * math.prod(size) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = size
        filled += 2 * math.prod(size)
    block = torch.randn(BLOCK, generator=generator).mul_(SCALE).bfloat16()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, size in shard.items():
            start, end = end, end + 2 * math.prod(size)
            header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
            weight_map[name] = file.name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, size in shard.items():
                for values in _values(name, size, block, generator):
                    out.write(values.view(torch.uint8).numpy().data)
    total = sum(2 * math.prod(size) for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _values(
    name: str, size: tuple[int, ...], block: torch.Tensor, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """The entries of one tensor, some at a time: norms 1, biases 0, everything else random."""
    left = math.prod(size)
    if len(size) == 1:
        yield torch.full(size, float(name.endswith("weight")), dtype=torch.bfloat16)
        return
    start = int(torch.randint(len(block), (), generator=generator))
    while left:
        part = block[start : start + left]
        yield part
        left -= len(part)
        start = 0


def _llava(shape: Shape, data: UnlearnData) -> tuple[PreTrainedConfig, ProcessorMixin]:
    tower, language = shape.tower, shape.language
    tokenizer = make_tokenizer(data, [Llava.image_placeholder])
    kind = Qwen2Config if language.tied else LlamaConfig
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=tower.width,
            intermediate_size=tower.intermediate,
            num_hidden_layers=tower.blocks,
            num_attention_heads=tower.heads,
            image_size=tower.side,
            patch_size=PATCH,
        ),
        text_config=kind(**_text(language, tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(Llava.image_placeholder),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(tower.side // PATCH) ** 2,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": tower.side}, crop_size={"height": tower.side, "width": tower.side}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template(Llava.image_placeholder),
    )
    return config, processor


def _qwen2_vl(shape: Shape, data: UnlearnData) -> tuple[PreTrainedConfig, ProcessorMixin]:
    tower, language = shape.tower, shape.language
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = make_tokenizer(data, marks)
    image, video, start, end = tokenizer.convert_tokens_to_ids(marks)
    pairs = language.width // language.heads // 2
    section = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]  # 16, 24, 24 at 128 entries per head
    rotation = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": section}
    config = Qwen2VLConfig(
        vision_config={
            "depth": tower.blocks,
            "embed_dim": tower.width,
            "hidden_size": language.width,
            "mlp_ratio": tower.intermediate // tower.width,
            "num_heads": tower.heads,
            "patch_size": PATCH,
        },
        text_config=_text(language, tokenizer) | {"rope_parameters": rotation},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    pixels = tower.side**2
    processor = Qwen2VL.processor_class(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": pixels, "longest_edge": pixels}, patch_size=PATCH
        ),
        tokenizer=tokenizer,
        chat_template=chat_template(Qwen2VL.picture),
    )
    return config, processor


def _text(language: Language, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": language.vocabulary,
        "hidden_size": language.width,
        "intermediate_size": language.intermediate,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.groups,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
