"""Files of results, read and checked."""

from __future__ import annotations

import json
import math
from pathlib import Path

from unsee.errors import BadInput
from unsee.evaluation.relative import Roles


def read_measures(file: Path, where: str) -> Roles:
    """`models` of a `measures.json`.

    Args:
        where: what messages begin with.

    Raises:
        BadInput: what was expected where.
    """
    try:
        roles = json.loads(file.read_text(encoding="utf-8"))["models"]
        for role, measures in roles.items():
            for measure, parts in measures.items():
                for part, cell in parts.items():
                    if cell["value"] is not None and not math.isfinite(cell["value"]):
                        raise BadInput(f"{where}: {role}.{measure}.{part}: {cell['value']} is no value; measure again")
    except OSError as error:
        raise BadInput(f"{where}: cannot be read ({error.strerror}); expected a measures.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{where}: not a measures.json ({' '.join(str(error).split())}); expected models, by role, measure and set"
        ) from error
    found: Roles = roles
    return found
