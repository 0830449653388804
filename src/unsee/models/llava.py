"""LLaVA-1.5: CLIP vision tower, two-layer projector, Llama-like language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, LlavaConfig, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from unsee.errors import BadInput
from unsee.models.anatomy import Family, VisualModule


class LlavaVisual(VisualModule):
    """Reads the hidden state that `config.vision_feature_layer` names (LLaVA-1.5: -2, before the last block)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        layer = model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise BadInput(f"config.json: vision_feature_layer={layer}; only a single layer is supported for llava")
        self._layers = self.vision_tower.encoder.layers
        depth = len(self._layers)
        self._used = layer if layer >= 0 else depth + 1 + layer  # hidden_states[0] stands before the first block
        self._drop_first = model.config.vision_feature_select_strategy == "default"

    @property
    def vision_tower(self) -> Any:
        return self.model.model.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector  # type: ignore[no-any-return]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self._layers)[: self._used]

    def enter(self, images: Mapping[str, Tensor]) -> Tensor:
        pixels = images["pixel_values"].to(self.vision_tower.embeddings.patch_embedding.weight.dtype)
        return self.vision_tower.pre_layrnorm(self.vision_tower.embeddings(pixels))  # type: ignore[no-any-return]

    def run(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        for block in self.blocks[start : self._used if stop is None else stop]:
            hidden = block(hidden, None)
        return hidden

    def leave(self, hidden: Tensor) -> Tensor:
        return self.projector(hidden[:, 1:] if self._drop_first else hidden)  # type: ignore[no-any-return]


class Llava(Family):
    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    default_prompt: ClassVar[str] = "USER: {image}{question} ASSISTANT:"
    image_placeholder: ClassVar[str] = "<image>"

    def visual(self, model: PreTrainedModel) -> VisualModule:
        return LlavaVisual(model)

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        return model.model.language_model  # type: ignore[no-any-return]

    def build_visual(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        return {
            "model.vision_tower": AutoModel.from_config(config.vision_config),
            "model.multi_modal_projector": LlavaMultiModalProjector(cast(LlavaConfig, config)),
        }

    def encode_images(self, processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        encoded = processor.image_processor(images=list(pictures), return_tensors="pt")
        return {"pixel_values": torch.as_tensor(encoded["pixel_values"])}

    def placeholder_tokens(self, processor: ProcessorMixin, images: Mapping[str, Tensor], index: int) -> str:
        return processor.replace_image_token(dict(images), index)

    def with_visual_tokens(self, model: PreTrainedModel, tokens: Tensor, inputs: Mapping[str, Tensor]) -> Any:
        given = BaseModelOutputWithPooling(pooler_output=list(tokens))  # type: ignore[arg-type]  # a list, as LLaVA has it
        return model.model(**inputs, mm_encoder_outputs={"image": given})
