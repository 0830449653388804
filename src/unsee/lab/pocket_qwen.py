"""The pocket Qwen2-VL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.lab.pocket import SPECIAL_TOKENS, PocketFamily, Shape, chat_template, make_tokenizer, speak
from unsee.models.qwen import Qwen2VL

SHAPE = Shape(patch=12, merge=2, vision_blocks=4)  # 4 visual tokens, each of four patches
FRAMES = 2  # a still picture counts as two equal frames, as in the real model


@dataclass(frozen=True)
class PocketQwen(PocketFamily):
    """Every picture is brought to one size; patches are merged two by two, as in the real model."""

    shape: Shape = SHAPE

    def make(self, data: UnlearnData) -> tuple[PreTrainedModel, ProcessorMixin]:
        shape = self.shape
        marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
        tokenizer = make_tokenizer(data, marks)
        image, video, start, end = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + len(marks))
        rotated = shape.language_width // shape.heads // 2  # pairs of entries per head, shared among three axes
        config = Qwen2VLConfig(
            vision_config={
                "depth": shape.vision_blocks,
                "embed_dim": shape.vision_width,
                "hidden_size": shape.language_width,
                "mlp_ratio": 3,
                "num_heads": shape.heads,
                "patch_size": shape.patch,
                "spatial_merge_size": shape.merge,
                "temporal_patch_size": FRAMES,
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": shape.language_width,
                "intermediate_size": shape.language_width * 3,
                "num_hidden_layers": shape.language_blocks,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.heads,
                "max_position_embeddings": 512,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10_000.0,
                    "mrope_section": [rotated - 2 * (rotated // 3), rotated // 3, rotated // 3],
                },
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
        model = Qwen2VLForConditionalGeneration(config)
        speak(model, tokenizer)
        images = Qwen2VLImageProcessorPil(
            size={"shortest_edge": shape.side**2, "longest_edge": shape.side**2},
            patch_size=shape.patch,
            merge_size=shape.merge,
            temporal_patch_size=FRAMES,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        processor = Qwen2VL.processor_class(
            image_processor=images, tokenizer=tokenizer, chat_template=chat_template(Qwen2VL.picture)
        )
        return model, processor

    def planes(self, images: Mapping[str, Tensor]) -> Tensor:
        if not (images["image_grid_thw"] == torch.tensor(self._grid)).all():
            raise BadInput("--data: the pocket qwen2_vl learns from square pictures only; cut them, or use llava")
        patches = images["pixel_values"].view(-1, *self._places, 3, FRAMES, *self._patch)[..., 0, :, :]
        return patches.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5, 7).flatten(2, 4)

    def images(self, planes: Tensor) -> dict[str, Tensor]:
        rows, _, merge, _ = self._places
        patches = planes.view(-1, 3, *(rows, merge, self.shape.patch) * 2).permute(0, 2, 5, 3, 6, 1, 4, 7)
        twice = patches.unsqueeze(-3).expand(*patches.shape[:-2], FRAMES, *self._patch)
        return {
            "pixel_values": twice.reshape(len(planes) * self._grid[1] ** 2, -1),
            "image_grid_thw": torch.tensor([self._grid] * len(planes)),
        }

    def companions(self) -> Mapping[str, Any]:
        """With torchvision installed `AutoProcessor` wants a part for videos; pocket models are never shown any."""
        sizes = {"patch_size": self.shape.patch, "merge_size": self.shape.merge, "temporal_patch_size": FRAMES}
        return {"video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor", **sizes}}

    @property
    def _grid(self) -> tuple[int, int, int]:
        across = self.shape.side // self.shape.patch
        return 1, across, across

    @property
    def _places(self) -> tuple[int, int, int, int]:
        """How the real processor orders patches: rows and columns of tokens, rows and columns inside a token."""
        across = self._grid[1] // self.shape.merge
        return across, across, self.shape.merge, self.shape.merge

    @property
    def _patch(self) -> tuple[int, int]:
        return self.shape.patch, self.shape.patch
