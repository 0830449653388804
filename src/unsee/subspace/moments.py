"""The mutable fitter: second moments of layer inputs, streamed in float64, mergeable, stored without any picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unsee.errors import BadInput
from unsee.subspace.nullspace import NullSpace, null_space


class SecondMoment:
    """Running sum of x xᵀ over tokens x [d_in]: uncentred, float64.

    The order and grouping of `update` and `merge` change the result only by float64 rounding (tested).
    """

    def __init__(self, size: int) -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64)
        self.tokens = 0

    def update(self, x: Tensor) -> None:
        """Add inputs [..., d_in]."""
        rows = x.detach().reshape(-1, x.shape[-1]).double().cpu()
        self.total += rows.T @ rows
        self.tokens += len(rows)

    def merge(self, other: SecondMoment) -> None:
        self.total += other.total
        self.tokens += other.tokens

    @property
    def mean(self) -> Tensor:
        """E[x xᵀ], [d_in, d_in].

        Raises:
            ValueError: nothing was added yet.
        """
        if not self.tokens:
            raise ValueError("a second moment needs at least one token")
        return self.total / self.tokens

    def null_space(self, rule: str, threshold: float) -> NullSpace:
        return null_space(self.mean, rule, threshold)


@contextmanager
def watching(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, SecondMoment]]:
    """Collect the second moment of every layer's inputs during the block; the hooks are gone afterwards."""
    moments = {name: SecondMoment(layer.in_features) for name, layer in layers.items()}
    handles = []

    def watch(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            moments[name].update(inputs[0])

        handles.append(layers[name].register_forward_pre_hook(hook))

    try:
        for name in layers:
            watch(name)
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def save_moments(moments: Mapping[str, SecondMoment], path: Path, origin: Mapping[str, str]) -> None:
    """Write all layers' moments with the hashes of the model and data they came from.

    Args:
        origin: kept as text beside the numbers; `model` is checked when the file is used.
    """
    tensors = {}
    for name, moment in moments.items():
        tensors[f"{name}.total"] = moment.total
        tensors[f"{name}.tokens"] = torch.tensor(moment.tokens)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, metadata={"format": "unsee-moments-1", **origin})
    os.replace(partial, path)


class StoredMoments(Mapping[str, SecondMoment]):
    """Moments in a file, read one layer at a time: those of wide layers take hundreds of megabytes each."""

    def __init__(self, path: Path, layers: Iterable[str]) -> None:
        self._path, self._layers = path, tuple(layers)

    def __getitem__(self, name: str) -> SecondMoment:
        with safe_open(self._path, framework="pt") as file:
            total = file.get_tensor(f"{name}.total").clone()
            moment = SecondMoment(0)
            moment.total, moment.tokens = total, int(file.get_tensor(f"{name}.tokens"))
        return moment

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def load_moments(path: Path, layers: Iterable[str]) -> tuple[StoredMoments, dict[str, str]]:
    """The moments of the named layers, and the origin they were saved with.

    Raises:
        BadInput: not such a file, or a layer is missing from it.
    """
    layers = tuple(layers)
    if not path.is_file():
        raise BadInput(f"--moments {path}: no such file; make it with `unsee moments fit`")
    try:
        with safe_open(path, framework="pt") as file:
            origin = file.metadata() or {}
            if origin.get("format") != "unsee-moments-1":
                raise BadInput(f"--moments {path}: not a moments file; make it with `unsee moments fit`")
            known = set(file.keys())
            for name in layers:
                if not {f"{name}.total", f"{name}.tokens"} <= known:
                    raise BadInput(f"--moments {path}: holds no layer '{name}'; fit it again with more --last-blocks")
                shape, tokens = file.get_slice(f"{name}.total").get_shape(), file.get_tensor(f"{name}.tokens")
                if len(shape) != 2 or shape[0] != shape[1] or tokens.numel() != 1 or tokens < 1:
                    raise BadInput(f"--moments {path}: layer '{name}' is damaged or of no tokens; fit it again")
    except SafetensorError as error:
        raise BadInput(f"--moments {path}: not a readable safetensors file ({error}); fit them again") from error
    return StoredMoments(path, layers), origin
