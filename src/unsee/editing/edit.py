"""What an edit did, and its weights as they will be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unsee.editing.remembered import Remembered
from unsee.errors import GateFailed
from unsee.models.loading import Loaded
from unsee.training.loop import History

RECOGNISED = 0.25  # share of held-back pictures from which an edit is warned about: our choice
ROOM = 0.25  # share of free directions of a layer below which is warned, long before forgetting fails: docs/sequence.md


@dataclass(frozen=True)
class Edit:
    """What an edit did.

    Attributes:
        seconds: from the loaded model to the edited weights.
        before: the parameters it could change, as they were.
        certificate: what is known of the drift of retained features; None for methods on outputs.
        forgotten: statistics of what is forgotten by now, if they are to be kept.
        recognised: share of held-back forget pictures that are still nearest their own subject's reference features;
            None without such pictures, and for methods on outputs.
        unpictured: how many were forgotten before and have no pictures in the data.
        sampled: for how many samples stand, see `Remembered`.
    """

    seconds: float
    before: Mapping[str, Tensor]
    history: History
    certificate: dict[str, Any] | None
    forgotten: Remembered | None = None
    recognised: float | None = None
    unpictured: int = 0
    sampled: int = 0

    @property
    def warnings(self) -> list[str]:
        """What does not stop the edit, but should be known before its result is used."""
        found = []
        if self.recognised is not None and self.recognised > RECOGNISED:
            found.append(
                f"{self.recognised:.0%} of held-back forget pictures are still nearest their own subject's features; "
                "evaluate before you rely on it, and if it forgets too little ask for more steps or a larger threshold"
            )
        if self.unpictured:
            held = "samples stand for them: over many requests some" if self.sampled else "nothing holds them: they"
            found.append(
                f"{self.unpictured} of those forgotten before have no pictures in the data, and {held} come back; keep "
                "pictures until a re-base, one edit of all requests together from the first model"
            )
        free = {name: layer["free"] for name, layer in (self.certificate or {}).get("layers", {}).items()}
        if tight := {name: share for name, share in free.items() if share < ROOM}:
            name = min(tight, key=lambda layer: tight[layer])
            found.append(
                f"{len(tight)} of {len(free)} edited layers have less than {ROOM:.0%} of their directions left "
                f"({name}: {free[name]:.0%}), later requests will forget less; re-base: one edit of all requests "
                "together from the first model"
            )
        return found


@torch.no_grad()
def as_written(edited: Mapping[str, nn.Parameter], loaded: Loaded, label: str) -> None:
    """Round edited weights to the precision they are stored in: gates and certificates speak of what is written.

    Raises:
        GateFailed: a weight is not finite in that precision.
    """
    keys = loaded.checkpoint_keys(edited)
    dtypes = loaded.folder.dtypes(keys.values())
    for name, parameter in edited.items():
        parameter.copy_(parameter.to(dtypes[keys[name]]))
    check_finite(edited, label)


def check_finite(edited: Mapping[str, Tensor], label: str) -> None:
    """Raises GateFailed if a weight is not finite: the loop looks at losses before a step, not at weights after it."""
    for name, parameter in edited.items():
        if not parameter.isfinite().all():
            raise GateFailed(f"{label}: '{name}' is no longer finite; nothing was written. Ask for a smaller edit")


@torch.no_grad()
def add(deltas: Mapping[str, Tensor], own: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Add to the parameters of these names; returns them."""
    for name, delta in deltas.items():
        own[name].add_(delta)
    return {name: own[name] for name in deltas}
