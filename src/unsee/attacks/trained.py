"""What an attacker trains: the model's own weights, or adapters beside them. Afterwards the model is what it was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unsee.attacks.relearn_plan import Attack, Relearning
from unsee.errors import BadInput
from unsee.models.anatomy import trainable
from unsee.models.loading import Loaded

Parameters = Mapping[str, nn.Parameter]


def trained_by(settings: Relearning, loaded: Loaded, attack: Attack) -> AbstractContextManager[Parameters]:
    """The parameters of one attack, by name; on leaving, whatever ended it, the model is as it was."""
    if settings.attacker == "lora":
        return adapters(loaded, settings.lora_rank, f"{attack.seed}/{attack.split}/{attack.half}/adapters")
    own = loaded.visual.named_parameters() if settings.attacker == "visual" else dict(loaded.model.named_parameters())
    return weights(loaded, own)


@contextmanager
def weights(loaded: Loaded, parameters: Parameters) -> Iterator[Parameters]:
    """Some of the model's own weights; everything else is frozen. A copy of them is put back."""
    trainable(parameters, loaded.model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name])


@contextmanager
def adapters(loaded: Loaded, rank: int, seed: str) -> Iterator[Parameters]:
    """Low-rank adapters on every linear layer but the output layer: y = W x + B A x (LoRA, 2106.09685, alpha = rank).

    A [rank, d_in] is drawn uniformly from +-1/sqrt(d_in), B [d_out, rank] is zero, so the model starts as it is. The
    weights themselves are frozen and never touched, so nothing need be copied.

    Args:
        seed: decides A, the same for every model of one shape.

    Raises:
        BadInput: the model has no linear layers.
    """
    out = loaded.model.get_output_embeddings()
    layers = {name: m for name, m in loaded.model.named_modules() if isinstance(m, nn.Linear) and m is not out}
    if not layers:
        raise BadInput(f"{loaded.folder.path}: no linear layers to put adapters on; choose another attacker")
    trainable({}, loaded.model)
    chance = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
    added: dict[str, nn.Parameter] = {}
    hooks = []
    try:
        for name, layer in layers.items():
            at = layer.weight
            bound = 1 / math.sqrt(layer.in_features)
            down = (2 * torch.rand(rank, layer.in_features, generator=chance) - 1) * bound
            a = added[f"{name}.lora_A"] = nn.Parameter(down.to(at))
            b = added[f"{name}.lora_B"] = nn.Parameter(at.new_zeros(layer.out_features, rank))
            hooks.append(layer.register_forward_hook(_adding(a, b)))
        yield added
    finally:
        for hook in hooks:
            hook.remove()


def _adding(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda layer, inputs, output: output + inputs[0] @ a.T @ b.T
