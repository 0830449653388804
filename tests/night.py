"""What `make test` leaves to the night: more of what another test, or another case of the same one, shows by day."""

from __future__ import annotations

from typing import Any

import pytest


def by_day(day: Any, *others: Any) -> list[Any]:
    """Values of a parameter, of which only the first is tried by day."""
    return [day, *(pytest.param(other, marks=pytest.mark.nightly) for other in others)]
