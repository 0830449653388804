"""A GPU device for machines without one: real numbers of the processor, wrapped so that torch believes they are there.

torch has `FakeTensorMode` for this, but its tensors hold no values, and half of unsee looks at values on the way
(`tolist`, boolean masks, generation). Here every operation is computed on the processor after it was checked that a GPU
would have taken it: what torch refuses there is refused here. The rules are those of `FakeTensorMode`, and stricter
where it is lenient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretended")
GPU, CPU = torch.device("pretended:0"), torch.device("cpu")
ATEN = torch.ops.aten
MOVES = {ATEN._to_copy, ATEN.copy_, ATEN.copy, ATEN._copy_from}  # from any device to any
BY_INDEX = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN._unsafe_index}
MAY_READ_SCALARS = {ATEN.where, ATEN.masked_fill, ATEN.masked_fill_, ATEN.fill, ATEN.fill_, ATEN.index_fill_}


class Misplaced(RuntimeError):
    """What a GPU would not have done."""


class Pretended(torch.Tensor):
    """A tensor that says it is on `cuda:0`, around one on the processor."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise Misplaced("can't convert a tensor on cuda:0 to numpy; copy it to host memory first")
        if func is torch.Tensor.tolist:
            return args[0].held.tolist()
        if func is torch.Tensor.data.__set__:
            if not isinstance(args[1], Pretended):
                raise Misplaced("data of a tensor on cuda:0 set to what is on cpu")
            args[0].held = args[1].held
        with torch._C.DisableTorchFunctionSubclass():  # else results on cpu would become of this class
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # so that `Module.to` swaps parameters in place
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> Pretended:
        return Pretended(inner["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Pretended:
        if id(self) not in memo:
            copied = Pretended(self.held.clone(), self.requires_grad)
            copied.__dict__.update({key: value for key, value in self.__dict__.items() if key != "held"})
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"cuda:0 {self.held}"


class _Mode(TorchDispatchMode):
    """For what has no tensor of ours among its arguments, such as `torch.zeros(3, device="cuda")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        if any(isinstance(x, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in leaves):
            return func(*args, **(kwargs or {}))  # of `torch.func`: comes back unwrapped
        return computed(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor` moves what it read without asking anybody; here it is moved by an operation of its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and named.get("device") is not None:
            place = named.pop("device")
            numbers = tree_map(lambda x: x.held.item() if isinstance(x, Pretended) else x, args[0])
            return func(numbers, *args[1:], **named).to(place)
        return func(*args, **named)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """While the block runs, `cuda:0` can be used."""
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.object(torch.cuda, "get_device_name", lambda *_: "pretended"),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        _Mode(),
        _Literals(),
    ):
        yield GPU


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation, on the processor; its results are where a GPU would have left them."""
    place = placed(func, args, kwargs)
    plain_args, plain_kwargs = tree_map(_plain, args), tree_map(_plain, kwargs)
    if func.overloadpacket is ATEN._efficientzerotensor:  # of forward mode: a tensor without values
        func = ATEN.zeros.default
    with _disable_current_modes():
        found = func(*plain_args, **plain_kwargs)
    if place.type != GPU.type:
        return found
    changed = _changed(func, args, kwargs)
    if changed:  # in place: what was given comes back
        for one in changed:
            if one.shape != one.held.shape:
                raise NotImplementedError(f"{func} changes a shape in place")
        returned = iter(changed)
        return None if found is None else tree_map(lambda x: next(returned) if torch.is_tensor(x) else x, found)
    return tree_map(lambda x: Pretended(x) if torch.is_tensor(x) else x, found)


def placed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where the result is.

    Raises:
        Misplaced: a GPU would refuse.
    """
    packet = func.overloadpacket
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    asked = kwargs.get("device")
    there = [x for x in given if isinstance(x, Pretended)]
    here = [x for x in given if not isinstance(x, Pretended)]
    if packet in MOVES:
        return torch.device(asked) if asked is not None else args[0].device
    if packet in BY_INDEX and there:
        first, _, *rest = args  # what is indexed; indices may be on the processor; values may not
        if not isinstance(first, Pretended):
            raise Misplaced(f"{func}: indices on cuda:0 into what is on cpu")
        here = [x for x in rest if isinstance(x, torch.Tensor) and not isinstance(x, Pretended)]
    scalars = torch.Tag.pointwise in func.tags or packet in MAY_READ_SCALARS or packet in BY_INDEX
    if there and (wrong := [x for x in here if x.dim() or not scalars]):
        raise Misplaced(f"{func}: found two different devices, cuda:0 and cpu ({[list(x.shape) for x in wrong]})")
    place = torch.device(asked) if asked is not None else GPU if there else CPU
    if place.type == GPU.type and any(not isinstance(x, Pretended) for x in _changed(func, args, kwargs)):
        raise Misplaced(f"{func}: would change a tensor on cpu by what is on cuda:0")
    chance = kwargs.get("generator")
    if chance is not None and chance.device.type != place.type:
        raise Misplaced(f"{func}: a generator of {chance.device.type} for a tensor on {place.type}")
    return place


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The tensors that an operation writes into, in its order."""
    found: list[Any] = []
    for position, name in _written(func):
        value = args[position] if position < len(args) else kwargs.get(name)
        found += [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]
    return found


@cache
def _written(func: Any) -> list[tuple[int, str]]:
    arguments = enumerate(func._schema.arguments)
    return [(i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _plain(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.held
    return CPU if isinstance(value, torch.device) and value.type == GPU.type else value
