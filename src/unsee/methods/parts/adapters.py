"""Low-rank adapters (LoRA, arXiv 2106.09685) in place of full weights, through peft: trained, then merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from unsee.errors import BadInput
from unsee.subspace.constrain import claimed
from unsee.subspace.saliency import Mask

NAME = "unsee"  # of the adapter, as peft wants one


class Adapters(AbstractContextManager[None]):
    """Adapters W + B A beside the weights W of linear layers [d_out, d_in]; A [rank, d_in], B [d_out, rank].

    They stand in the model within the `with` block only: afterwards B A is added to the weights in place, or, if the
    block ended in an exception, thrown away; either way the layers are the ones from before and nothing of peft is
    left. B begins at zero, so putting them in changes no answer. The scale is 1 (alpha = rank).

    Layers are named in full. peft matches the ends of names, by which public scripts adapt the vision tower's
    `q_proj` with the language model's.

    Args:
        edited: weights of linear layers, by full name.
        dropout: share of a layer's inputs that its adapter does not see, drawn anew at every pass of a model that is
            being trained.

    Raises:
        BadInput: peft is not installed.
    """

    def __init__(
        self, model: PreTrainedModel, edited: Mapping[str, nn.Parameter], rank: int, dropout: float = 0.0
    ) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise BadInput(
                f"lora_rank={rank}: LoRA needs peft; pip install 'unsee[lora]', or set lora_rank=0"
            ) from error
        self._model, self._edited = model, dict(edited)
        self._plain = {name: model.get_submodule(_layer(name)) for name in edited}
        layers = [_layer(name) for name in edited]
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=layers)
        learning = [p for p in model.parameters() if p.requires_grad]
        try:
            inject_adapter_in_model(config, model, NAME)
            self._adapted: dict[str, Any] = {name: model.get_submodule(_layer(name)) for name in edited}
        finally:
            self._put(self._plain)
            del model.peft_config
            for parameter in learning:
                parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: A and B of every layer."""
        return [factor for layer in self._adapted.values() for factor in _factors(layer)]

    def __enter__(self) -> None:
        for weight in self._edited.values():
            weight.requires_grad_(False)
        self._put(self._adapted)

    @torch.no_grad()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._put(self._plain)
        for name, weight in self._edited.items():
            weight.requires_grad_(True)
            if kind is None:
                weight.add_(_product(self._adapted[name]).to(weight.dtype))

    @contextmanager
    def steps_masked(self, optimiser: Optimizer, mask: Mask) -> Iterator[None]:
        """While the block runs, steps of the adapters change salient entries of W + B A only.

        No product of small factors is zero where a mask is, so W takes back what a step did to the others:
        W <- W - (1 - m) * (B' A' - B A). They stay what they were up to one rounding of W per step, where
        `subspace.saliency.steps_masked` is exact. The gradient of A and B is not masked, what it leads to is. Our
        choice: in the public MMUnlearner script a mask of W finds nothing of that name beside adapters, and does
        nothing.

        Raises:
            ValueError: the mask does not fit, or a weight carries a constraint already.
        """
        mask.fits(self._edited)

        @torch.no_grad()
        def take_back(*_: Any) -> None:
            for name, weight in self._edited.items():
                moved = _product(self._adapted[name]) - before[name][1] @ before[name][0]
                weight.sub_(moved.masked_fill_(mask[name].to(weight.device), 0).to(weight.dtype))

        with ExitStack() as stack:
            stack.enter_context(claimed(list(self._edited.values())))
            before = {
                name: [factor.detach().clone() for factor in _factors(layer)] for name, layer in self._adapted.items()
            }
            stack.callback(optimiser.register_step_post_hook(take_back).remove)
            yield

    def _put(self, layers: Mapping[str, nn.Module]) -> None:
        for name, layer in layers.items():
            self._model.set_submodule(_layer(name), layer)


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _factors(adapted: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """A [rank, d_in] and B [d_out, rank] of a layer."""
    return adapted.lora_A[NAME].weight, adapted.lora_B[NAME].weight


def _product(adapted: Any) -> Tensor:
    first, second = _factors(adapted)
    return second @ first
