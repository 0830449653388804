"""Matrix products in the precision the processor is fast in: timed once on each machine, and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from unsee.errors import BadInput
from unsee.provenance import cache_directory
from unsee.storage import unwritten

SHAPES = ((1024, 128, 512), (1024, 512, 128))  # rows, width in, width out: of a pocket's MLP, with a few pictures
ROUNDS = 5  # the best one counts: what else the machine does makes a product slower, never faster
CLEARLY = 1.2  # times as fast; casts of weights and inputs, which are not timed, take some of what is won
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """What pocket models are trained in on this machine, and why.

    Attributes:
        chosen: a key of `DTYPES`.
        seconds: of the products, the best of several rounds, by precision.
    """

    chosen: str
    seconds: dict[str, float]


def measured() -> Precision:
    """bfloat16 where its products are clearly faster here; elsewhere float32. Takes some hundredths of a second.

    A processor may have instructions for it and be slower with them, so no flag is asked.
    """
    products = {name: _products(dtype) for name, dtype in DTYPES.items()}
    for product in products.values():
        product()  # torch prepares a shape when it first meets it
    seconds = dict.fromkeys(products, float("inf"))
    for _ in range(ROUNDS):  # in turns: what slows down one meets the other too
        for name, product in products.items():
            start = perf_counter()
            product()
            seconds[name] = min(seconds[name], perf_counter() - start)
    faster = seconds["float32"] >= CLEARLY * seconds["bfloat16"]
    return Precision("bfloat16" if faster else "float32", seconds)


def _products(dtype: torch.dtype) -> Callable[[], None]:
    pairs = [
        (torch.ones(rows, wide, dtype=dtype, device="cpu"), torch.ones(wide, out, dtype=dtype, device="cpu"))
        for rows, wide, out in SHAPES
    ]

    def run() -> None:
        for one, other in pairs:
            torch.mm(one, other)

    return run


def kept() -> Precision | None:
    """What was measured on this machine before; None if nothing was.

    Raises:
        BadInput: the file was damaged.
    """
    file = _file()
    if not file.is_file():
        return None
    try:
        found = Precision(**json.loads(file.read_text(encoding="utf-8")))
        if found.chosen not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}")
    except (ValueError, TypeError) as error:
        raise BadInput(f"{file}: not the precision that was measured here ({error}); delete it") from error
    return found


@cache
def precision() -> Precision:
    """The same for every process on this machine: near the limit, two measurements might not agree, and the same seed
    would not give the same model.

    Raises:
        BadInput: the cache cannot be written to, or see `kept`.
    """
    if (found := kept()) is not None:
        return found
    file, found = _file(), measured()
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
        if not file.exists():  # else another process measured meanwhile: its choice stands
            os.replace(partial, file)
        partial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritten(file, error, renamed=False) from error
    return kept() or found


def native_precision() -> torch.dtype:
    """See `precision`."""
    return DTYPES[precision().chosen]


def autocast() -> torch.autocast:
    """One training step's forward pass in `native_precision`; weights and optimiser stay float32.

    Enter it anew in every step: inside one long block torch would keep using the first step's cast weights. Keep
    products whose shape changes from step to step outside: every new shape is compiled first.
    """
    dtype = native_precision()
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def _file() -> Path:
    """One for each kind of processor and version of torch: homes are shared between machines."""
    able = torch.cpu.get_capabilities()
    kind = [str(able.get("cpu_name")), *sorted(name for name, has in able.items() if has is True), torch.__version__]
    return cache_directory() / "precision" / f"{hashlib.sha256(' '.join(kind).encode()).hexdigest()[:16]}.json"
