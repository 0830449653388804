"""Qwen2-VL and Qwen2.5-VL: a vision transformer over packed patches of any picture size, a merger, a Qwen2 model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from unsee.errors import BadInput
from unsee.models.anatomy import Family, VisualModule
from unsee.models.packed import Grid, Packed

ATTENTION = "unsee_packed"
COUNTERPARTS = {  # settings of the image processor -> what the vision tower calls them
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
SHORT = 128  # positions; up to here plain products are faster than torch's fused attention (measured on a processor)


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, spans: Sequence[int] = (), **rest: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in which every span sees itself only.

    transformers calls attention once per picture and window; with equal spans one call does for all (same values).

    Args:
        query, key, value: [1, heads, positions, head width].
        spans: their lengths; empty: all positions are one span.

    Returns:
        [1, positions, heads, head width]; no attention weights.
    """
    spans = spans or (query.shape[2],)
    if len(set(spans)) == 1:
        q, k, v = (x[0].unflatten(1, (len(spans), -1)).transpose(0, 1) for x in (query, key, value))
        seen = _attend(q, k, v, rest["scaling"])  # [spans, heads, span, head width]
        return seen.transpose(1, 2).flatten(0, 1)[None], None
    parts = zip(*(x.split(list(spans), dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([_attend(q, k, v, rest["scaling"]) for q, k, v in parts], 2).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if query.shape[2] > SHORT:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    scores = query @ key.transpose(2, 3) * scale
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


AttentionInterface.register(ATTENTION, packed_attention)


class QwenVisual(VisualModule):
    """The vision transformer holds its projector, the merger, which joins neighbouring patches into one token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.vision_tower.set_attn_implementation(ATTENTION)
        self._merge = self.vision_tower.spatial_merge_size

    @property
    def vision_tower(self) -> Any:
        return self.model.model.visual

    @property
    def projector(self) -> nn.Module:
        return self.vision_tower.merger  # type: ignore[no-any-return]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.vision_tower.blocks)

    def enter(self, images: Mapping[str, Tensor]) -> Packed:
        patches = [cast(Grid, tuple(grid)) for grid in images["image_grid_thw"].tolist()]
        return Packed(
            self.vision_tower.patch_embed(images["pixel_values"]),
            tuple(t * h * w for t, h, w in patches),
            tuple((t, h // self._merge, w // self._merge) for t, h, w in patches),
        )

    def run(self, hidden: Packed, start: int = 0, stop: int | None = None) -> Packed:
        ends = torch.tensor([0, sum(hidden.lengths)])
        rotary = self.rotary(hidden)
        states = hidden.states
        for number, block in list(enumerate(self.blocks))[start:stop]:
            spans = self.spans(hidden, number)
            states = block(states, cu_seqlens=ends, position_embeddings=rotary, spans=spans)
        return hidden.with_states(states)

    def leave(self, hidden: Packed) -> Packed:
        lengths = tuple(t * h * w for t, h, w in hidden.grids)
        return Packed(self.projector(hidden.states), lengths, hidden.grids)

    def rotary(self, hidden: Packed) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, each [positions, head width]."""
        known = {grid: self.rotary_of(grid, hidden.states) for grid in set(hidden.grids)}
        cos, sin = zip(*(known[grid] for grid in hidden.grids), strict=True)
        return torch.cat(cos), torch.cat(sin)

    def rotary_of(self, grid: Grid, like: Tensor) -> tuple[Tensor, Tensor]:
        positions = get_vision_position_ids(self.patches(grid), self._merge)
        cos, sin = self.vision_tower.rotary_pos_emb(like, positions.to(like.device))
        return cos, sin

    def spans(self, hidden: Packed, block: int) -> tuple[int, ...]:
        """Lengths of the stretches of positions that see each other in a block: each frame of each picture."""
        return tuple(h * w * self._merge**2 for t, h, w in hidden.grids for _ in range(t))

    def patches(self, grid: Grid) -> Tensor:
        """Patches of one picture, as the model's own functions want them [1, 3]."""
        return torch.tensor([[grid[0], grid[1] * self._merge, grid[2] * self._merge]])


class Qwen25Visual(QwenVisual):
    """Most blocks look through windows: positions are put in the order of the windows, and back at the end."""

    def enter(self, images: Mapping[str, Tensor]) -> Packed:
        hidden = super().enter(images)
        return hidden.with_states(self._in_windows(hidden.states, hidden.grids))

    def leave(self, hidden: Packed) -> Packed:
        tokens = super().leave(hidden)
        return tokens.with_states(tokens.states[self._order(tokens.grids).argsort()])

    def rotary_of(self, grid: Grid, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().rotary_of(grid, like)
        return self._in_windows(cos, [grid]), self._in_windows(sin, [grid])

    def spans(self, hidden: Packed, block: int) -> tuple[int, ...]:
        if block in self.vision_tower.fullatt_block_indexes:
            return super().spans(hidden, block)
        known = {grid: tuple(self._windows(grid)[1].diff().tolist()) for grid in set(hidden.grids)}
        return tuple(span for grid in hidden.grids for span in known[grid])

    def _windows(self, grid: Grid) -> tuple[Tensor, Tensor]:
        tower = self.vision_tower
        return get_vision_window_index(self.patches(grid), self._merge, tower.window_size, tower.patch_size)

    def _order(self, grids: Sequence[Grid]) -> Tensor:
        """Which token stands at each place [tokens of all pictures]."""
        known = {grid: self._windows(grid)[0] for grid in set(grids)}
        parts, offset = [], 0
        for grid in grids:
            parts.append(known[grid] + offset)
            offset += len(known[grid])
        return torch.cat(parts)

    def _in_windows(self, states: Tensor, grids: Sequence[Grid]) -> Tensor:
        tokens = states.unflatten(0, (-1, self._merge**2))
        return tokens[self._order(grids)].flatten(0, 1)  # type: ignore[no-any-return]


def without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class made of image processor and tokenizer alone: the part for videos needs torchvision.

    It keeps its name, so that what it saves names the class that plain transformers knows.
    """
    parts = classmethod(lambda cls: ["image_processor", "tokenizer"])
    return type(kind.__name__, (kind,), {"get_attributes": parts, "__module__": kind.__module__})


class Qwen2VL(Family):
    name: ClassVar[str] = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_grid_thw")
    processor_class: ClassVar[Any] = without_videos(Qwen2VLProcessor)
    image_placeholder: ClassVar[str] = "<|image_pad|>"
    picture: ClassVar[str] = "<|vision_start|><|image_pad|><|vision_end|>"
    default_prompt: ClassVar[str] = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n"
    )

    def visual(self, model: PreTrainedModel) -> VisualModule:
        return QwenVisual(model)

    def build_visual(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        return {"model.visual": Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)}

    def fit(self, processor: Any, config: PretrainedConfig, pictures: str) -> None:
        ours, theirs = processor.image_processor, config.vision_config
        for name, counterpart in COUNTERPARTS.items():
            wanted = getattr(theirs, counterpart)
            if getattr(ours, name) is None:
                setattr(ours, name, wanted)
            if (said := getattr(ours, name)) != wanted:
                raise BadInput(
                    f"{pictures}: {name} is {said}, but {counterpart} of the vision tower in config.json is {wanted}; "
                    "correct one of them"
                )

    def text_inputs(self, processor: ProcessorMixin, input_ids: Tensor) -> dict[str, Tensor]:
        mark = processor.tokenizer.convert_tokens_to_ids(self.image_placeholder)
        return {"mm_token_type_ids": (input_ids == mark).int()}

    def positions(self, model: PreTrainedModel, input_ids: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        kinds = (input_ids == model.config.image_token_id).int()
        positions, _ = model.model.get_rope_index(input_ids, kinds, images["image_grid_thw"])
        return cast(Tensor, positions)


class Qwen25VL(Qwen2VL):
    name: ClassVar[str] = "qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    processor_class: ClassVar[Any] = without_videos(Qwen2_5_VLProcessor)

    def visual(self, model: PreTrainedModel) -> VisualModule:
        return Qwen25Visual(model)

    def build_visual(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        return {"model.visual": Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)}
