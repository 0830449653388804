"""Make a multimodal LLM forget whom or what it sees in pictures, keep everything else, and prove both.

The functions are those of `unsee.api`. Nothing heavy is loaded before one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unsee.api import evaluate, load_data, report, unlearn, verdict
    from unsee.methods import METHODS

    __version__: str

__all__ = ["METHODS", "__version__", "evaluate", "load_data", "report", "unlearn", "verdict"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("unsee")
    if name == "METHODS":
        from unsee.methods import METHODS

        return METHODS
    if name in __all__:
        from unsee import api

        return getattr(api, name)
    raise AttributeError(f"module 'unsee' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
