"""The pocket LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from unsee.data.examples import UnlearnData
from unsee.lab.pocket import SPECIAL_TOKENS, PocketFamily, Shape, chat_template, make_tokenizer, speak
from unsee.models.llava import Llava

SHAPE = Shape()  # 16 visual tokens; of five blocks four are read


@dataclass(frozen=True)
class PocketLlava(PocketFamily):
    """Reads the hidden state before its last vision block, as LLaVA-1.5 does."""

    shape: Shape = SHAPE

    def make(self, data: UnlearnData) -> tuple[PreTrainedModel, ProcessorMixin]:
        shape = self.shape
        tokenizer = make_tokenizer(data, [Llava.image_placeholder])
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
                image_token_index=len(SPECIAL_TOKENS),
                vision_feature_layer=-2,
                vision_feature_select_strategy="default",
                image_seq_length=shape.visual_tokens,
            )
        )
        speak(model, tokenizer)
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
            chat_template=chat_template(Llava.image_placeholder),
        )
        return model, processor

    def planes(self, images: Mapping[str, Tensor]) -> Tensor:
        return images["pixel_values"]

    def images(self, planes: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": planes}
