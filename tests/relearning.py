"""An attack as short as it gets, and its seed."""

from __future__ import annotations

from unsee.attacks.relearn_plan import Relearning

SHORT = Relearning(splits=1, pictures=2, replay=2, steps=4, every=2, forget_pictures=1)
SEED = 3
