"""LLaVA-1.5 and LLaVA-NeXT (1.6): CLIP vision tower, two-layer projector, Llama- or Mistral-like language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector, image_size_to_num_patches

from unsee.errors import BadInput
from unsee.models.anatomy import Family, VisualModule
from unsee.models.packed import Packed

CLIP = "clip_vision_model"


class LlavaVisual(VisualModule):
    """Reads the hidden state that `config.vision_feature_layer` names (LLaVA-1.5: -2, before the last block)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        layer = model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise BadInput(f"config.json: vision_feature_layer={layer}; only a single layer is supported for llava")
        kind = model.config.vision_config.model_type
        if kind != CLIP:
            raise BadInput(f"config.json: vision tower '{kind}'; LLaVA models are supported with {CLIP}")
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

    def tiles(self, images: Mapping[str, Tensor]) -> tuple[Tensor, list[int]]:
        """What the tower looks at one by one [tiles, 3, side, side], and how many belong to each picture."""
        pixels = images["pixel_values"]
        return pixels, [1] * len(pixels)

    def enter(self, images: Mapping[str, Tensor]) -> Packed:
        pixels, counts = self.tiles(images)
        hidden = self.vision_tower.embeddings(pixels.to(self.vision_tower.embeddings.patch_embedding.weight.dtype))
        hidden = self.vision_tower.pre_layrnorm(hidden)
        length = hidden.shape[1]  # the first position stands for the whole tile
        side = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size
        plane = (side, side) if self._drop_first else (1, length)
        return Packed(
            hidden.flatten(0, 1), tuple(count * length for count in counts), tuple((count, *plane) for count in counts)
        )

    def run(self, hidden: Packed, start: int = 0, stop: int | None = None) -> Packed:
        states = self._per_tile(hidden)
        for block in self.blocks[start : self._used if stop is None else stop]:
            states = block(states, None)
        return hidden.with_states(states.flatten(0, 1))

    def leave(self, hidden: Packed) -> Packed:
        states = self._per_tile(hidden)
        tokens = self.projector(states[:, 1:] if self._drop_first else states)
        lengths = tuple(layers * rows * columns for layers, rows, columns in hidden.grids)
        return Packed(tokens.flatten(0, 1), lengths, hidden.grids)

    def _per_tile(self, hidden: Packed) -> Tensor:
        tiles = sum(layers for layers, _, _ in hidden.grids)
        return hidden.states.view(tiles, len(hidden.states) // tiles, -1)


class LlavaNextVisual(LlavaVisual):
    """A small copy of the whole picture, then tiles of it at full size; all pass the tower alike.

    The grid has one layer per tile. For the prompt the tiles are put together again, cut to the picture's shape, and a
    learned newline ends each row (`assemble`).
    """

    def tiles(self, images: Mapping[str, Tensor]) -> tuple[Tensor, list[int]]:
        config = self.model.config
        counts = [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in images["image_sizes"]
        ]
        tiles = [padded[:count] for padded, count in zip(images["pixel_values"], counts, strict=True)]
        return torch.cat(tiles), counts

    def assemble(self, tokens: Packed, images: Mapping[str, Tensor]) -> list[Tensor]:
        model = self.model.model
        tiles = [
            picture.unflatten(0, (grid[0], -1))
            for picture, grid in zip(super().assemble(tokens, images), tokens.grids, strict=True)
        ]
        strategy = self.model.config.vision_feature_select_strategy
        packed, _ = model.pack_image_features(tiles, images["image_sizes"], strategy, model.image_newline)
        return list(packed)


class Llava(Family):
    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    image_placeholder: ClassVar[str] = "<image>"
    picture: ClassVar[str] = "<image>\n"
    default_prompt: ClassVar[str] = "USER: {pictures}{question} ASSISTANT:"
    projector: ClassVar[type[nn.Module]] = LlavaMultiModalProjector

    def visual(self, model: PreTrainedModel) -> VisualModule:
        return LlavaVisual(model)

    def build_visual(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        return {
            "model.vision_tower": AutoModel.from_config(config.vision_config),
            "model.multi_modal_projector": self.projector(config),
        }

    def fit(self, processor: Any, config: PretrainedConfig, pictures: str) -> None:
        """Processors saved before transformers 4.46 know neither patch size nor strategy nor the class token."""
        vision = config.vision_config
        if vision.model_type != CLIP:
            return  # refused where its parts are looked for
        oblong = Image.new("RGB", (96, 64))
        height, width = processor.image_processor(images=[oblong], return_tensors="pt")["pixel_values"].shape[-2:]
        side = vision.image_size
        if (height, width) != (side, side):
            raise BadInput(
                f"{pictures}: a picture of 96 x 64 pixels becomes one of {width} x {height}, but the vision tower of "
                f"config.json sees {side} x {side}; set size and crop_size to {side}, and do_center_crop to true"
            )
        if processor.patch_size is None:
            processor.patch_size = vision.patch_size
        if not isinstance(processor.patch_size, int) or processor.patch_size != vision.patch_size:
            raise BadInput(
                f"processor_config.json: patch_size is {processor.patch_size!r}, but that of the vision tower in "
                f"config.json is {vision.patch_size}; correct one of them"
            )
        strategy = config.vision_feature_select_strategy
        said = processor.vision_feature_select_strategy or strategy
        wanted = 0 if strategy == "default" else 1  # tokens of a picture beside those of its patches: CLIP's first one
        more = processor.num_additional_image_tokens or 0
        less = 1 if said == "default" else 0
        if more - less != wanted and not more:  # never said: transformers writes 0 then
            more = 1
        if more - less != wanted:
            raise BadInput(
                f"processor_config.json: num_additional_image_tokens {more} with vision_feature_select_strategy "
                f"'{said}' counts {more - less:+d} tokens beside those of the patches, but config.json's '{strategy}' "
                f"has {wanted:+d}; set them to 1 and '{strategy}'"
            )
        processor.vision_feature_select_strategy, processor.num_additional_image_tokens = said, more


class LlavaNext(Llava):
    name: ClassVar[str] = "llava_next"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    default_prompt: ClassVar[str] = "[INST] {pictures}{question} [/INST]"
    projector: ClassVar[type[nn.Module]] = LlavaNextMultiModalProjector

    def visual(self, model: PreTrainedModel) -> VisualModule:
        return LlavaNextVisual(model)

    def fit(self, processor: Any, config: PretrainedConfig, pictures: str) -> None:
        """The same for each tile; and both must cut pictures into the same tiles."""
        super().fit(processor, config, pictures)
        ours, theirs = (
            sorted(map(list, found))
            for found in (processor.image_processor.image_grid_pinpoints, config.image_grid_pinpoints)
        )
        if ours != theirs:
            raise BadInput(
                f"{pictures}: image_grid_pinpoints are {ours}, but those of config.json are {theirs}; "
                "correct one of them"
            )

    def join(self, encoded: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Pictures with fewer tiles are filled up with empty ones, as the processor does in one call."""
        most = max(one["pixel_values"].shape[1] for one in encoded)
        filled = [
            {**one, "pixel_values": F.pad(one["pixel_values"], (0, 0) * 3 + (0, most - one["pixel_values"].shape[1]))}
            for one in encoded
        ]
        return super().join(filled)
