"""Which entries of the weights matter: mutable fitters of saliency, and the frozen mask cut from them.

Saliency is kept in float32 whatever the weights' own type, and rules compare without dividing: squares of small
gradients underflow in float16, where 0 / 0 and x / 0 would decide at random (both public defects of MMUnlearner).
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from unsee.errors import BadInput
from unsee.storage import replacing
from unsee.subspace.constrain import claimed

FORMAT = "unsee-mask-1"
Entries = Iterable[tuple[str, Tensor]]  # name, which entries are salient (boolean)


# Fitters --------------------------------------------------------------------------------------------------------------


class Saliency(ABC):
    """Running statistics of gradients, entry by entry; 4 bytes per entry.

    Args:
        parameters: whose gradients are looked at, by full name.

    Raises:
        ValueError: none are given, or one collects no gradient: it would look as if it never mattered.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        if not parameters:
            raise ValueError("saliency of no parameters tells nothing")
        if frozen := [name for name, p in parameters.items() if not p.requires_grad]:
            raise ValueError(f"parameter '{frozen[0]}' collects no gradient; thaw it before its saliency is taken")
        self.parameters = dict(parameters)
        self.batches = 0
        self._totals = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}

    def add(self) -> None:
        """Take the gradients of the batch that `backward` was just called for, and clear them: none counts twice.

        A parameter that the loss does not depend on has the gradient zero.

        Raises:
            ValueError: no parameter has a gradient, or one is not finite. Nothing was added then.
        """
        found = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not found:
            raise ValueError("no parameter has a gradient: call backward first, of a loss that depends on one")
        if broken := [name for name, gradient in found.items() if not gradient.isfinite().all()]:
            raise ValueError(f"the gradient of '{broken[0]}' is not finite")
        self.batches += 1
        for name, gradient in found.items():
            self._accumulate(self._totals[name], gradient.float())
            self.parameters[name].grad = None

    @staticmethod
    @abstractmethod
    def _accumulate(total: Tensor, gradient: Tensor) -> None:
        """Add a gradient (float32) in place."""

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """The saliency of every entry of a parameter, float32, at least 0."""


class FisherSaliency(Saliency):
    """Diagonal of the empirical Fisher information: the mean over batches of (gradient of the mean batch loss)².

    Squares of batch gradients, not of single examples: batches of another size give another saliency (MMUnlearner,
    arXiv 2502.11051; after SFRon).
    """

    @staticmethod
    def _accumulate(total: Tensor, gradient: Tensor) -> None:
        total.addcmul_(gradient, gradient)

    def __getitem__(self, name: str) -> Tensor:
        if not self.batches:
            raise ValueError("saliency needs at least one batch")
        return self._totals[name] / self.batches


class GradientSaliency(Saliency):
    """|sum of gradients|: what batches disagree about cancels (SalUn, arXiv 2310.12508)."""

    @staticmethod
    def _accumulate(total: Tensor, gradient: Tensor) -> None:
        total.add_(gradient)

    def __getitem__(self, name: str) -> Tensor:
        return self._totals[name].abs()


# Rules ----------------------------------------------------------------------------------------------------------------


def ratio_rule(forget: Saliency, preserve: Saliency, beta: float) -> Iterator[tuple[str, Tensor]]:
    """S_forget / S_preserve >= beta, entry by entry, for every parameter of `preserve` (MMUnlearner).

    What matters to neither is not salient; what matters to `forget` alone is.

    Raises:
        ValueError: a parameter that `forget` does not know.
    """
    if lost := sorted(preserve.parameters.keys() - forget.parameters.keys()):
        raise ValueError(f"nothing is known of how much '{lost[0]}' matters to what must be forgotten")
    for name in preserve.parameters:
        matters = forget[name]
        yield name, (matters >= beta * preserve[name]) & (matters > 0)


def top_rule(saliency: Saliency, share: float) -> Iterator[tuple[str, Tensor]]:
    """The `share` of all entries of all parameters together with the largest saliency (SalUn: one global ranking).

    Entries as large as the smallest that is kept are kept too; an entry of saliency 0 never is. Positive floats are
    ordered as their bits are, so the limit is found by halving: in 31 passes and no memory, however many entries.
    """
    sizes = [p.numel() for p in saliency.parameters.values()]
    wanted = round(share * sum(sizes))

    def ranks(name: str) -> Tensor:
        return saliency[name].view(torch.int32)

    low, high = 1, int(torch.tensor(math.inf).view(torch.int32))
    while low < high:
        middle = (low + high + 1) // 2
        if sum(int((ranks(name) >= middle).sum()) for name in saliency.parameters) >= wanted:
            low = middle
        else:
            high = middle - 1
    for name in saliency.parameters:
        yield name, ranks(name) >= low


# The mask -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mask(Mapping[str, Tensor]):
    """Which entries of each parameter are salient; eight in a byte, one parameter unpacked at a time.

    Attributes:
        bits: by parameter name [entries / 8, rounded up], uint8; the lowest bit stands first.
        shapes: of the parameters.
    """

    bits: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(entries: Entries) -> Mask:
        """Pack boolean tensors, one at a time."""
        bits, shapes = {}, {}
        for name, salient in entries:
            bits[name], shapes[name] = pack(salient), tuple(salient.shape)
        return Mask(bits, shapes)

    def __getitem__(self, name: str) -> Tensor:
        """Boolean, in the shape of the parameter."""
        return unpack(self.bits[name], self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def share(self) -> float:
        """Of all entries, how many are salient."""
        return sum(int(salient.sum()) for salient in self.values()) / sum(map(math.prod, self.shapes.values()))

    def fits(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Every parameter has its part of the mask, and there is no other part.

        Raises:
            ValueError: a name that matches nothing would hold nothing, a parameter without a mask would be free (both
                public defects).
        """
        if lost := sorted(self.keys() - parameters.keys()):
            raise ValueError(f"masked names match no parameter: {', '.join(lost[:3])}; there is: {min(parameters)}")
        for name, parameter in parameters.items():
            if name not in self.shapes:
                raise ValueError(f"the mask says nothing of '{name}'")
            if tuple(parameter.shape) != self.shapes[name]:
                raise ValueError(f"the mask of '{name}' is {self.shapes[name]}, the parameter {tuple(parameter.shape)}")


def pack(entries: Tensor) -> Tensor:
    """Booleans of any shape -> eight in a byte [entries / 8, rounded up]."""
    flat = entries.flatten().to(torch.uint8)
    rows = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (rows * _powers(entries.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`."""
    return (bits[:, None] & _powers(bits.device)).bool().flatten()[: math.prod(shape)].view(shape)


def _powers(device: torch.device) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)


@contextmanager
def steps_masked(optimiser: Optimizer, parameters: Mapping[str, nn.Parameter], mask: Mask) -> Iterator[None]:
    """While the block runs, steps change salient entries only; the others are what they were, bit for bit.

    Gradients of the others are cleared before each step, and the entries put back after it: weight decay and the
    momentum of other steps would move them without any gradient (SalUn's fix of February 2026). Takes memory for a
    copy of these entries during the block.

    Raises:
        ValueError: the mask does not fit, a parameter is not optimised, or one carries a constraint already.
    """
    mask.fits(parameters)
    optimised = {id(p) for group in optimiser.param_groups for p in group["params"]}
    if lost := [name for name, p in parameters.items() if id(p) not in optimised]:
        raise ValueError(f"masked parameter '{lost[0]}' is not among the optimiser's: its mask would do nothing")

    def fixed(name: str) -> Tensor:
        return ~mask[name].to(parameters[name].device)

    def silence(*_: Any) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(fixed(name), 0)

    @torch.no_grad()
    def restore(*_: Any) -> None:
        for name, parameter in parameters.items():
            parameter[fixed(name)] = before[name]

    with ExitStack() as stack:
        stack.enter_context(claimed(list(parameters.values())))
        before = {name: parameter.detach()[fixed(name)] for name, parameter in parameters.items()}
        stack.callback(optimiser.register_step_pre_hook(silence).remove)
        stack.callback(optimiser.register_step_post_hook(restore).remove)
        yield


# On disk --------------------------------------------------------------------------------------------------------------


def kept_mask(
    path: Path | None,
    parameters: Mapping[str, nn.Parameter],
    origin: Callable[[], Mapping[str, str]],
    fit: Callable[[], Mask],
) -> Mask:
    """The mask in a file, where a run before left it; without such a file a new one, left there for the next run.

    Args:
        path: None: nothing is read or written.
        origin: what the mask is made of (model, data, rule), as text. Only asked for if there is a path.

    Raises:
        BadInput: the file is no mask, damaged, of another origin, or cannot be written.
    """
    if path is None:
        return fit()
    wanted = origin()
    if not path.exists():
        mask = fit()
        save_mask(mask, path, wanted)
        return mask
    mask, found = load_mask(path)
    if other := [key for key, text in wanted.items() if found.get(key) != text]:
        raise BadInput(f"mask_file={path}: made of another {other[0]}; delete it, or name another file")
    try:
        mask.fits(parameters)
    except ValueError as error:
        raise BadInput(f"mask_file={path}: {error}; delete it, or name another file") from error
    return mask


def save_mask(mask: Mask, path: Path, origin: Mapping[str, str]) -> None:
    """Write a mask, an eighth of a byte per entry, and where it comes from.

    Raises:
        BadInput: the file cannot be written.
    """
    bits = {name: packed.cpu() for name, packed in mask.bits.items()}
    about = {"format": FORMAT, "shapes": json.dumps(dict(mask.shapes)), "sha256": _digest(bits, mask.shapes)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(bits, partial, metadata={**origin, **about})
    except (OSError, SafetensorError) as error:
        raise BadInput(f"mask_file={path}: cannot be written ({error}); name another file") from error


def load_mask(path: Path) -> tuple[Mask, dict[str, str]]:
    """A mask that is read from its file one parameter at a time, and what `save_mask` was told of its origin.

    Raises:
        BadInput: not such a file, or one that was damaged.
    """
    again = "delete it, and it is made again"
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
        if about.get("format") != FORMAT:
            raise BadInput(f"mask_file={path}: not a mask of unsee; name another file")
        shapes = {name: tuple(shape) for name, shape in json.loads(about.pop("shapes")).items()}
        bits = StoredBits(path, tuple(shapes))
        if _digest(bits, shapes) != about.pop("sha256"):
            raise BadInput(f"mask_file={path}: damaged, its checksum differs; {again}")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"mask_file={path}: not a readable safetensors file ({error}); {again}") from error
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"mask_file={path}: damaged, without shapes or checksum ({error}); {again}") from error
    return Mask(bits, shapes), about


@dataclass(frozen=True)
class StoredBits(Mapping[str, Tensor]):
    """The packed entries of each parameter, in a file."""

    path: Path
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            packed: Tensor = file.get_tensor(name)
        return packed

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _digest(bits: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256 over names, shapes and entries, whatever their order in a file."""
    digest = hashlib.sha256()
    for name in sorted(shapes):
        digest.update(f"{name} {list(shapes[name])}".encode())
        digest.update(bits[name].numpy().tobytes())
    return digest.hexdigest()
