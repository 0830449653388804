"""The mutable fitter: second moments of layer inputs, streamed in float64, mergeable, stored without any picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unsee.errors import BadInput
from unsee.storage import make_folder, replacing, unwritten
from unsee.subspace.nullspace import NullSpace, SoftNullSpace, null_space

FORMAT = "unsee-moments-2"
PARTS = (".total", ".sum", ".tokens")  # what is stored of each layer; no other key ends so


class SecondMoment:
    """Running sums of x xᵀ and of x over tokens x [d_in], float64.

    The order and grouping of `update` and `merge` change the result only by float64 rounding (tested).

    Attributes:
        total: sum of x xᵀ [d_in, d_in]. sum: of x [d_in]. tokens: how many.
    """

    def __init__(self, size: int) -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64)
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.tokens = 0

    def update(self, x: Tensor) -> None:
        """Add inputs [..., d_in]."""
        rows = x.detach().reshape(-1, x.shape[-1]).cpu().double()
        self.total.addmm_(rows.T, rows)  # in place: a product of its own would take as much memory again
        self.sum += rows.sum(0)
        self.tokens += len(rows)

    def merge(self, other: SecondMoment) -> None:
        """Add what another one has seen.

        Raises:
            ValueError: it is of inputs of another width.
        """
        if other.total.shape != self.total.shape:
            raise ValueError(f"moments of {len(other.sum)} inputs cannot be added to those of {len(self.sum)}")
        self.total += other.total
        self.sum += other.sum
        self.tokens += other.tokens

    @property
    def mean(self) -> Tensor:
        """E[x xᵀ], uncentred, [d_in, d_in].

        Raises:
            ValueError: nothing was added yet.
        """
        if not self.tokens:
            raise ValueError("a second moment needs at least one token")
        return self.total / self.tokens

    @property
    def covariance(self) -> Tensor:
        """E[x xᵀ] - E[x] E[x]ᵀ, [d_in, d_in]; see `mean` for what it raises."""
        moment = self.mean
        centre = self.sum / self.tokens
        return moment.addr_(centre, centre, alpha=-1)

    def null_space(self, rule: str, threshold: float, centred: bool = False) -> NullSpace | SoftNullSpace:
        """Directions that `rule` calls free, see `nullspace.null_space`.

        Args:
            centred: of the covariance, so that the mean input may be among the free directions: an update then may
                move all outputs by one constant, but not their differences.
        """
        return null_space(self.covariance if centred else self.mean, rule, threshold)


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


def save_moments(
    moments: Mapping[str, SecondMoment],
    path: Path,
    origin: Mapping[str, str],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write all layers' moments with the hashes of the model and data they came from.

    Args:
        origin: kept as text beside the numbers: `weights` (hashes of the model) and `data` (hash of the data) are
            checked when files are used and merged.
        extra: other statistics of the same data, under keys of their own, e.g. `replay.means`.

    Raises:
        ValueError: a key of `extra` could be taken for a layer's. BadInput: it cannot be written.
    """
    tensors = dict(extra or {})
    if clash := [key for key in tensors if key.endswith(PARTS)]:
        raise ValueError(f"extra statistics '{clash[0]}' would be taken for a layer's; use another last name")
    for name, moment in moments.items():
        tensors[f"{name}.total"] = moment.total
        tensors[f"{name}.sum"] = moment.sum
        tensors[f"{name}.tokens"] = torch.tensor(moment.tokens)
    try:
        make_folder(path.parent)
    except OSError as error:
        raise unwritten(path, error, renamed=False) from error
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata={**origin, "format": FORMAT})
        except SafetensorError as error:  # how it says that a disk is full
            raise OSError(str(error)) from error


class StoredMoments(Mapping[str, SecondMoment]):
    """Moments in a file, read one layer at a time: those of wide layers take hundreds of megabytes each."""

    def __init__(self, path: Path, layers: Iterable[str]) -> None:
        self._path, self._layers = path, tuple(layers)

    def __getitem__(self, name: str) -> SecondMoment:
        moment = SecondMoment(0)
        with safe_open(self._path, framework="pt") as file:
            moment.total = file.get_tensor(f"{name}.total").clone()  # the file's own pages must not be added to
            moment.sum = file.get_tensor(f"{name}.sum").clone()
            moment.tokens = int(file.get_tensor(f"{name}.tokens"))
        return moment

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def load_moments(
    path: Path, layers: Iterable[str] | None = None, label: str = "--moments "
) -> tuple[StoredMoments, dict[str, str]]:
    """The moments of the named layers, and the origin they were saved with.

    Args:
        layers: all in the file by default.
        label: what a message says before the path: the option that named it.

    Raises:
        BadInput: not such a file, one of an older format, or a layer is missing from it.
    """
    with _opened(path, label) as file:
        known = set(file.keys())
        if layers is None:
            layers = sorted(key.removesuffix(".total") for key in known if key.endswith(".total"))
        layers = tuple(layers)
        for name in layers:
            if not {name + part for part in PARTS} <= known:
                raise BadInput(f"{label}{path}: holds no layer '{name}'; fit it again with more --last-blocks")
            shape, tokens = file.get_slice(f"{name}.total").get_shape(), file.get_tensor(f"{name}.tokens")
            square = len(shape) == 2 and [shape[0]] == shape[1:] == file.get_slice(f"{name}.sum").get_shape()
            if not square or tokens.numel() != 1 or tokens < 1:
                raise BadInput(f"{label}{path}: layer '{name}' is damaged or of no tokens; fit it again")
        return StoredMoments(path, layers), file.metadata()


def load_extra(path: Path, label: str = "--moments ") -> dict[str, Tensor]:
    """What was stored beside the layers' moments, empty if nothing was; see `load_moments` for the rest."""
    with _opened(path, label) as file:
        return {key: file.get_tensor(key).clone() for key in sorted(file.keys()) if not key.endswith(PARTS)}


@contextmanager
def _opened(path: Path, label: str) -> Iterator[Any]:
    """A moments file of the present format."""
    if not path.is_file():
        raise BadInput(f"{label}{path}: no such file; make it with `unsee moments fit`")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format", "")
            if found == "unsee-moments-1":
                raise BadInput(f"{label}{path}: of an older format without mean inputs; fit it again")
            if found != FORMAT:
                raise BadInput(f"{label}{path}: not a moments file; make it with `unsee moments fit`")
            yield file
    except SafetensorError as error:
        raise BadInput(f"{label}{path}: not a readable safetensors file ({error}); fit them again") from error
