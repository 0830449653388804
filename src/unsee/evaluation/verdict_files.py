"""Settings of a verdict, in a TOML file that stands before the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unsee.errors import BadInput
from unsee.evaluation.faithfulness import Yardstick
from unsee.evaluation.verdict import VerdictSettings
from unsee.storage import replace_text
from unsee.strict_toml import (
    Keys,
    as_it_is,
    assignments,
    at_least_one,
    fraction,
    mapping,
    not_negative,
    open_toml,
    positive,
    several,
    tables,
    text,
)

OPTION = "--settings"


def read_warnings(file: Path) -> list[str]:
    """What was wrong with what the models of a `measures.json` were asked, see `evaluation.asked`.

    Raises:
        BadInput: it holds something else there.
    """
    about = json.loads(file.read_text(encoding="utf-8")).get("provenance") or {}
    found = about.get("warnings", {}) if isinstance(about, dict) else None
    if not isinstance(found, dict) or not all(isinstance(said, list) for said in found.values()):
        raise BadInput(f"--measures {file}: provenance.warnings: expected lists of sentences by role; measure again")
    return [str(sentence) for said in found.values() for sentence in said]


def read_settings(file: Path) -> VerdictSettings:
    """What `write_settings` wrote, or less: what is left out is as by default.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys, default = open_toml(file, OPTION), VerdictSettings()
    found: dict[str, Any] = {
        "lead": keys.take("lead", several(text), default.lead),
        "alpha": keys.take("alpha", fraction, default.alpha),
        "nearer": keys.take("nearer", fraction, default.nearer),
        "least_spread": keys.take("least_spread", positive, default.least_spread),
        "keep_by": keys.take("keep_by", several(text), default.keep_by),
        "broken": keys.take("broken", positive, default.broken),
        "keep": keys.take("keep", _margins, default.keep),
    }
    yardsticks: dict[tuple[str, str], Yardstick] = {}
    for i, item in enumerate(keys.take("yardsticks", tables, ())):
        one = Keys(item, f"{keys.where}yardsticks[{i}].")
        place = one.take("measure", text), one.take("set", text)
        stick = Yardstick(one.take("spread", not_negative), one.take("degrees", at_least_one))
        one.done()
        if place in yardsticks:
            raise BadInput(f"{one.where}measure: '{place[0]}' on {place[1]} is given twice; keep one")
        yardsticks[place] = stick
    keys.take("provenance", as_it_is, None)
    keys.done()
    try:
        return VerdictSettings(**found, yardsticks=yardsticks)
    except ValueError as error:
        raise BadInput(f"{OPTION} {file}: {error}") from error


def _margins(value: Any, where: str) -> dict[str, float]:
    return {part: positive(margin, f"{where}.{part}") for part, margin in mapping(value, where).items()}


def write_settings(file: Path, settings: VerdictSettings, made: Mapping[str, Any]) -> None:
    """Write settings so that `read_settings` gives the same ones.

    Args:
        made: where they come from.
    """
    plain = ("lead", "alpha", "nearer", "least_spread", "keep_by", "broken")
    lines = [
        "# Found by `unsee study audit` on the people it chooses on, for `unsee verdict --settings THIS`.",
        "# What stands here before a model is made may judge it; what is changed afterwards may not.",
        "",
        *assignments({key: getattr(settings, key) for key in plain}),
        "",
        "[keep]",
        *assignments(settings.keep),
    ]
    for (measure, part), one in sorted(settings.yardsticks.items()):
        about = {"measure": measure, "set": part, "spread": one.spread, "degrees": one.degrees}
        lines += ["", "[[yardsticks]]", *assignments(about)]
    lines += ["", "[provenance]", *assignments({key: value for key, value in made.items() if value is not None})]
    replace_text(file, "\n".join(lines) + "\n")
