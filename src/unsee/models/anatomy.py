"""Where the parts of a vision-language model live, and how its visual module runs on its own.

One `Family` per model architecture. Everything outside `models/` sees only these interfaces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from unsee.errors import BadInput


class VisualModule(ABC):
    """Vision tower and projector of a loaded model, runnable without its language model.

    `features(pixels)` equals what the whole model feeds its language model (tested). It is split into
    `enter -> run -> leave` so that frozen lower blocks can be computed once and reused.

    Attributes:
        model: the whole model; its language model may be on the meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module: ...

    @property
    @abstractmethod
    def projector(self) -> nn.Module: ...

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks that influence the visual tokens, in order (later ones are left out)."""

    @abstractmethod
    def enter(self, images: Mapping[str, Tensor]) -> Tensor:
        """Image tensors -> hidden states before the first block [pictures, positions, width]."""

    @abstractmethod
    def run(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks `start` up to (not including) `stop`; shapes as in `enter`."""

    @abstractmethod
    def leave(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last block -> visual tokens [pictures, tokens, language width]."""

    def features(self, images: Mapping[str, Tensor]) -> Tensor:
        """Image tensors -> the visual tokens the language model reads [pictures, tokens, language width]."""
        return self.leave(self.run(self.enter(images)))

    def editable(self, last_blocks: int) -> dict[str, nn.Linear]:
        """Linear layers of the projector and of the last `last_blocks` blocks, by full module name.

        Counted back from the feature layer: a block behind it cannot influence the output and is never offered.

        Raises:
            BadInput: `last_blocks` outside 0 ... number of blocks.
        """
        if not 0 <= last_blocks <= len(self.blocks):
            raise BadInput(f"last_blocks={last_blocks}: expected 0 to {len(self.blocks)}, the blocks of the tower")
        roots = [self.projector, *list(self.blocks)[len(self.blocks) - last_blocks :]]
        inside = {id(module) for root in roots for module in root.modules()}
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside
        }


class Family(ABC):
    """What differs between model architectures; one instance per family stands in `families.FAMILIES`."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    default_prompt: ClassVar[str]
    """Used when the processor has no chat template; holds {image} and {question}."""
    image_placeholder: ClassVar[str]

    @abstractmethod
    def visual(self, model: PreTrainedModel) -> VisualModule: ...

    @abstractmethod
    def language_model(self, model: PreTrainedModel) -> nn.Module: ...

    @abstractmethod
    def build_visual(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        """New vision tower and projector of this configuration, by module path inside the model."""

    @abstractmethod
    def encode_images(self, processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Pictures -> the image tensors of `VisualModule.enter`, one row (or group of rows) per picture."""

    @abstractmethod
    def placeholder_tokens(self, processor: ProcessorMixin, images: Mapping[str, Tensor], index: int) -> str:
        """The text that stands for picture `index` after expansion to one placeholder per visual token."""

    @abstractmethod
    def with_visual_tokens(self, model: PreTrainedModel, tokens: Tensor, inputs: Mapping[str, Tensor]) -> Any:
        """Run the whole model on precomputed visual tokens; returns its base-model output (hidden states)."""


def trainable(parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Freeze every parameter of `model` except `parameters`."""
    chosen = {id(p) for p in parameters.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
