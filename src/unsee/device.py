"""Where models run: chosen once by a command, read wherever a model is loaded, handed on to worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unsee.errors import BadInput

_chosen = "cpu"  # of this process; without a choice, as from Python, models stay on the processor


def choose_device(name: str) -> str:
    """Models that are loaded from now on run there.

    Args:
        name: `auto` (the first GPU if torch finds one, else the processor), `cpu`, `cuda` (the first one) or `cuda:N`.

    Returns:
        `cpu` or `cuda:N`.

    Raises:
        BadInput: none of these, or a GPU that is not there.
    """
    global _chosen
    _chosen = _found(name)
    return _chosen


def chosen_device() -> str:
    """`cpu` or `cuda:N`."""
    return _chosen


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Another choice during the block, see `choose_device`."""
    global _chosen
    before, _ = _chosen, choose_device(name)
    try:
        yield
    finally:
        _chosen = before


def _found(name: str) -> str:
    kind, _, number = name.partition(":")
    if name == "cpu":
        return name
    if not (name in ("auto", "cuda") or (kind == "cuda" and number.isdecimal())):
        raise BadInput(f"--device {name}: expected auto, cpu, cuda or cuda:N, e.g. cuda:0")
    import torch  # as late as this: `unsee --help` answers at once

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    wanted = int(number or 0)
    if wanted >= count:
        there = f"{count} GPU{'s' if count > 1 else ''}, cuda:0 is the first" if count else "no GPU"
        raise BadInput(f"--device {name}: torch {torch.__version__} finds {there}; take auto, or see `unsee doctor`")
    return f"cuda:{wanted}"
