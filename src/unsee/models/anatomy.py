"""Where the parts of a vision-language model live, and how its visual module runs on its own.

One `Family` per model architecture. Everything outside `models/` sees only these interfaces.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from unsee.errors import BadInput
from unsee.models.packed import Packed


class VisualModule(ABC):
    """Vision tower and projector of a loaded model, runnable without its language model.

    It is split into `enter -> run -> leave` so that frozen lower blocks can be computed once and reused; what the whole
    model feeds its language model is `assemble(features(images), images)` (tested for every family).

    Attributes:
        model: the whole model; its language model may be on the meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """May hold the projector too."""

    @property
    @abstractmethod
    def projector(self) -> nn.Module: ...

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks that influence the visual tokens, in order (later ones are left out)."""

    @abstractmethod
    def enter(self, images: Mapping[str, Tensor]) -> Packed:
        """Image tensors -> hidden states before the first block."""

    @abstractmethod
    def run(self, hidden: Packed, start: int = 0, stop: int | None = None) -> Packed:
        """Blocks `start` up to (not including) `stop`."""

    @abstractmethod
    def leave(self, hidden: Packed) -> Packed:
        """Hidden states after the last block -> visual tokens, in the order of their grid."""

    def features(self, images: Mapping[str, Tensor]) -> Packed:
        """Image tensors -> visual tokens of every picture."""
        return self.leave(self.run(self.enter(images)))

    def assemble(self, tokens: Packed, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Visual tokens -> what stands in the prompt for each picture [positions, language width]."""
        return list(tokens.states.split(tokens.lengths))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of vision tower and projector, by their full name in the model."""
        inside = {id(p) for part in (self.vision_tower, self.projector) for p in part.parameters()}
        return {name: p for name, p in self.model.named_parameters() if id(p) in inside}

    def tail(self, last_blocks: int) -> list[nn.Module]:
        """The projector and the last `last_blocks` blocks.

        Counted back from the feature layer: a block behind it cannot influence the output and is never offered.

        Raises:
            BadInput: `last_blocks` outside 0 ... number of blocks.
        """
        if not 0 <= last_blocks <= len(self.blocks):
            raise BadInput(f"last_blocks={last_blocks}: expected 0 to {len(self.blocks)}, the blocks of the tower")
        return [self.projector, *list(self.blocks)[len(self.blocks) - last_blocks :]]

    def editable(self, last_blocks: int) -> dict[str, nn.Linear]:
        """Linear layers of the tail, by full module name.

        Raises:
            BadInput: see `tail`.
        """
        inside = {id(module) for root in self.tail(last_blocks) for module in root.modules()}
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside
        }

    def release(self, last_blocks: int) -> None:
        """Give back the memory of everything below the tail; from now on only the tail can run.

        What is freed goes back to the system at once where the C library can do that (glibc): it would keep the space
        between the tail's weights, half a gigabyte for Qwen2-VL-7B's tower.
        """
        kept = {id(p) for module in self.tail(last_blocks) for p in module.parameters()}
        for parameter in self.named_parameters().values():
            if id(parameter) not in kept:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)


class Family(ABC):
    """What differs between model architectures; one instance per family stands in `families.FAMILIES`."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    image_placeholder: ClassVar[str]
    """The token that is repeated once per visual token."""
    picture: ClassVar[str]
    """How a picture stands in a prompt when the processor has no chat template."""
    default_prompt: ClassVar[str]
    """Used when the processor has no chat template; holds {pictures} and {question}."""
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """What its image processor makes of pictures."""
    processor_class: ClassVar[Any] = AutoProcessor
    """What reads the processor of a checkpoint."""

    @abstractmethod
    def visual(self, model: PreTrainedModel) -> VisualModule: ...

    @abstractmethod
    def build_visual(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        """New vision tower and projector of this configuration, by module path inside the model."""

    @abstractmethod
    def fit(self, processor: Any, config: PretrainedConfig, pictures: str) -> None:
        """Make the processor count as many tokens for a picture as the model has, and prepare pictures as its tower
        wants them: what its files leave open is set as config.json tells, in memory only.

        Args:
            pictures: the file that says how pictures are prepared, for messages.

        Raises:
            BadInput: files of the processor contradict config.json.
        """

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        return model.model.language_model  # type: ignore[no-any-return]

    def encode_images(self, processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Pictures -> the image tensors of `VisualModule.enter`, one row (or group of rows) per picture."""
        encoded = processor.image_processor(images=list(pictures), return_tensors="pt")
        return {name: torch.as_tensor(encoded[name]) for name in self.image_inputs}

    def join(self, encoded: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Image tensors of several calls of `encode_images` as those of one."""
        return {name: torch.cat([one[name] for one in encoded]) for name in encoded[0]}

    def placeholder_tokens(self, processor: ProcessorMixin, images: Mapping[str, Tensor], index: int) -> str:
        """The text that stands for picture `index` after expansion to one placeholder per visual token."""
        return processor.replace_image_token(dict(images), index)

    def text_inputs(self, processor: ProcessorMixin, input_ids: Tensor) -> dict[str, Tensor]:
        """Further inputs the model needs beside token ids [rows, positions] that stand for pictures and text."""
        return {}

    def positions(self, model: PreTrainedModel, input_ids: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        """Position ids of one prompt [..., 1, positions], as the model itself would count them."""
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]

    def with_visual_tokens(self, model: PreTrainedModel, tokens: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Any:
        """Run the whole model on precomputed visual tokens; returns its base-model output (hidden states)."""
        given = BaseModelOutputWithPooling(pooler_output=list(tokens))  # type: ignore[arg-type]  # a list, as models have it
        return model.model(**inputs, mm_encoder_outputs={"image": given})


def trainable(parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Freeze every parameter of `model` except `parameters`."""
    chosen = {id(p) for p in parameters.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
