"""Is an unlearned model like gold or like vanilla? A verdict from measures, by thresholds that stand before the run.

Pure functions of `measures.json`: role -> measure -> set -> cell. Roles `gold`, `gold-2`, ... are models that never saw
the target's pictures, `vanilla`, `vanilla-2`, ... models that did; they differ among each other in their seed alone,
and that spread is the yardstick. The whole construction is ours; docs/verdict.md says why it is as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from unsee.errors import BadInput
from unsee.evaluation.faithfulness import SIGNS, Yardstick, yardstick
from unsee.evaluation.metrics import LEADING, MEASURES
from unsee.evaluation.metrics.base import ROUNDING

Word = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]  # measure -> set -> cell of measures.json
Roles = Mapping[str, Cells]
FORGET, RETAIN = "forget", "retain"
SIGNS_OF_COLLAPSE = {
    "health-empty": "empty answers",
    "health-repeated": "repeating answers",
    "health-off-list": "answers off the list",
}
KEEP = {
    RETAIN: 0.03,
    "retain_text": 0.02,
    "forget_text": 0.02,
    "retain_attributes": 0.03,
    "forget_attributes": 0.03,
}


@dataclass(frozen=True)
class VerdictSettings:
    """What decides, fixed before the model to be judged is made. `unsee metrics audit` writes them; all our choice.

    Attributes:
        lead: measures that decide about forgetting, all of them, on the forget set.
        alpha: chance that a good gold model of another seed is found unlike gold by any of them (Bonferroni).
        nearer: how far from gold, in parts of the way from gold to vanilla, a model is still called the nearer to gold.
        least_spread: no yardstick is taken for shorter than this; few models may agree by chance.
        keep: set -> how much of it may be lost against vanilla; twice as much is a clear loss.
        keep_by: measures that decide about keeping; a higher value has kept more.
        broken: how many more answers than of gold or vanilla may show a sign of collapse; twice as many is clear.
        yardsticks: (measure, set) -> spread from seed to seed, learned on other people.
    """

    lead: tuple[str, ...] = LEADING
    alpha: float = 0.01
    nearer: float = 0.5
    least_spread: float = 0.01
    keep: Mapping[str, float] = field(default_factory=lambda: dict(KEEP))
    keep_by: tuple[str, ...] = ("accuracy",)
    broken: float = 0.05
    yardsticks: Mapping[tuple[str, str], Yardstick] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, names in (("lead", self.lead), ("keep_by", self.keep_by)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{key}={list(names)}: expected at least one measure, and none twice")
            for name in names:
                if name not in MEASURES:
                    raise ValueError(f"{key}: '{name}' is no measure; expected one of those of `unsee metrics`")
        for name in self.lead:
            if beside_gold(name) or not SIGNS[MEASURES[name].higher]:
                raise ValueError(f"lead: '{name}' does not say by itself how much a model knows; take another")
        for name in self.keep_by:
            if MEASURES[name].higher not in ("knows more", "better kept"):
                raise ValueError(f"keep_by: a higher '{name}' does not say that more was kept; choose another measure")
        for key in ("alpha", "nearer"):
            if not 0 < getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: expected a fraction between 0 and 1")
        for key, value in {"least_spread": self.least_spread, "broken": self.broken, **self.keep}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key}={value}: expected a number above zero")
        if RETAIN not in self.keep:
            raise ValueError(f"keep: expected the set '{RETAIN}' among {', '.join(self.keep)}; add its margin")

    @property
    def sha256(self) -> str:
        """Of everything above, however the file that it came from was laid out."""
        plain = dataclasses.asdict(self)
        plain["yardsticks"] = sorted([*key, one.spread, one.degrees] for key, one in self.yardsticks.items())
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def beside_gold(name: str) -> bool:
    """Whether a measure compares with a gold model already: of that gold model itself it says nothing."""
    return "gold model" in MEASURES[name].cost


def is_role(role: str, kind: Literal["gold", "vanilla"]) -> bool:
    return re.fullmatch(rf"{kind}(-\d+)?", role) is not None


@dataclass(frozen=True)
class Judged:
    """One model with those it is compared with, none of which it is itself."""

    model: Cells
    golds: tuple[Cells, ...]
    vanillas: tuple[Cells, ...]
    settings: VerdictSettings

    def values(self, of: Sequence[Cells], measure: str, part: str) -> list[float]:
        return [x for cells in of if (x := value_of(cells, measure, part)) is not None]


def value_of(cells: Cells, measure: str, part: str) -> float | None:
    """None where the measure was not taken, of this set or at all."""
    value = cells.get(measure, {}).get(part, {}).get("value")
    return None if value is None else float(value)


def verdict(roles: Roles, role: str, settings: VerdictSettings) -> dict[str, Any]:
    """PASS, FAIL or INCONCLUSIVE of one model, with a sentence for each of three criteria and the lines behind it.

    PASS: all three are met. FAIL: at least one is clearly violated. A model that is a gold or a vanilla one itself is
    judged by the others.

    Args:
        roles: `models` of `measures.json`.

    Returns:
        `model`, `verdict`, `criteria` (`criterion`, `verdict`, `sentence`, `lines`), `golds`, `vanillas`, and the
        SHA-256 of the settings.

    Raises:
        BadInput: no such role, or neither a gold nor a vanilla one beside it.
    """
    if role not in roles:
        raise BadInput(f"--model {role}: not measured; expected one of {', '.join(roles)}")
    golds, vanillas = ([other for other in roles if other != role and is_role(other, k)] for k in ("gold", "vanilla"))
    for kind, found in (("gold", golds), ("vanilla", vanillas)):
        if not found:
            raise BadInput(f"--model {role}: no {kind} model beside it, so nothing to compare with; measure one too")
    judged = Judged(roles[role], tuple(roles[r] for r in golds), tuple(roles[r] for r in vanillas), settings)
    criteria = [_forgetting(judged), _keeping(judged), _health(judged)]
    return {
        "model": role,
        "verdict": _together([one["verdict"] for one in criteria]),
        "criteria": criteria,
        "golds": golds,
        "vanillas": vanillas,
        "settings_sha256": settings.sha256,
    }


def _together(words: Sequence[Word]) -> Word:
    if "FAIL" in words:
        return "FAIL"
    return "PASS" if words and all(word == "PASS" for word in words) else "INCONCLUSIVE"


def _criterion(name: str, lines: Sequence[dict[str, Any]], sentences: Mapping[Word, str]) -> dict[str, Any]:
    """The worst lines speak: `{which}` in a sentence is what they are called, with the reason of each."""
    word = _together([line["verdict"] for line in lines])
    telling = [f"{line['of']}: {line['finding']}" for line in lines if line["verdict"] == word]
    return {
        "criterion": name,
        "verdict": word,
        "sentence": sentences[word].format(which="; ".join(telling)),
        "lines": list(lines),
    }


# Forgetting -----------------------------------------------------------------------------------------------------------


def _forgetting(judged: Judged) -> dict[str, Any]:
    return _criterion(
        "forgetting",
        [_position(judged, measure) for measure in judged.settings.lead],
        {
            "PASS": "The model cannot be told from a gold model of another seed ({which}).",
            "FAIL": "The model is not like one that never saw the forget set ({which}).",
            "INCONCLUSIVE": "Whether the model is like gold is not settled ({which}).",
        },
    )


def _position(judged: Judged, measure: str) -> dict[str, Any]:
    """Where a model stands between gold (0) and vanilla (1), on the forget set.

    The position is (value - gold) / (vanilla - gold), golds and vanillas by their means. Its interval is where the same
    model may stand with other seeds: the value plus and minus the reach of the golds' spread. Questions are the same
    for all models, so what their choice brings is in that spread already and is not counted again.
    """
    settings = judged.settings
    value = value_of(judged.model, measure, FORGET)
    golds, vanillas = (judged.values(of, measure, FORGET) for of in (judged.golds, judged.vanillas))
    line: dict[str, Any] = {
        "of": measure,
        "verdict": "INCONCLUSIVE",
        "value": value,
        "gold": fmean(golds) if golds else None,
        "vanilla": fmean(vanillas) if vanillas else None,
        "position": None,
        "low": None,
        "high": None,
        "spreads": None,
    }
    missing = [what for what, there in (("it", value is not None), ("gold", golds), ("vanilla", vanillas)) if not there]
    if missing or value is None:
        return line | {"finding": f"not measured of {' and '.join(missing)}"}
    stick = yardstick([golds], settings.yardsticks.get((measure, FORGET)))
    if stick is None:
        return line | {"finding": "one gold model and no yardstick; measure a second, or give settings of an audit"}
    gold, way = fmean(golds), fmean(vanillas) - fmean(golds)
    reach = stick.reach(settings.alpha / len(settings.lead), len(golds), settings.least_spread)
    line["spreads"] = (value - gold) / max(stick.spread, settings.least_spread)
    if abs(way) <= 2 * reach or way * SIGNS[MEASURES[measure].higher] < 0:
        return line | {"finding": "not measurable, gold and vanilla differ too little for their spread"}
    position, half = (value - gold) / way, reach / abs(way)
    line |= {"position": position, "low": position - half, "high": position + half}
    if abs(position) <= half + ROUNDING:
        return line | {"verdict": "PASS", "finding": f"{position:+.2f} of the way to vanilla"}
    if abs(position) > settings.nearer:
        where = "nearer to vanilla" if position > 0 else "beyond gold"
        return line | {"verdict": "FAIL", "finding": f"{position:+.2f} of the way to vanilla, {where}"}
    where = "nearer to gold" if position > 0 else "beyond gold"
    return line | {"finding": f"{position:+.2f} of the way to vanilla, {where}, but farther than other seeds lie"}


# Keeping --------------------------------------------------------------------------------------------------------------


def _keeping(judged: Judged) -> dict[str, Any]:
    lines = [
        _loss(judged, measure, part, margin)
        for measure in judged.settings.keep_by
        for part, margin in judged.settings.keep.items()
    ]
    asked = [line for line in lines if line is not None]
    absent = [part for part in judged.settings.keep if not any(line["set"] == part for line in asked)]
    found = _criterion(
        "keeping",
        asked,
        {
            "PASS": "Nothing was lost against vanilla beyond the margins ({which}).",
            "FAIL": "What should stay was clearly lost ({which}).",
            "INCONCLUSIVE": "Whether all that should stay did is not settled ({which}).",
        },
    )
    if absent:
        found["sentence"] += f" Not asked: {', '.join(absent)}."
    return found


def _loss(judged: Judged, measure: str, part: str, margin: float) -> dict[str, Any] | None:
    """What was lost of one set; None if it was asked of nobody, unless it is the retain set."""
    settings = judged.settings
    value = value_of(judged.model, measure, part)
    golds, vanillas = (judged.values(of, measure, part) for of in (judged.golds, judged.vanillas))
    line = {"of": f"{measure} on {part}", "set": part, "value": value, "vanilla": fmean(vanillas) if vanillas else None}
    if value is None or not vanillas:
        if part != RETAIN and value is None and not (golds or vanillas):
            return None
        return line | {"verdict": "INCONCLUSIVE", "finding": "not measured"}
    stick = yardstick([golds, vanillas], settings.yardsticks.get((measure, part)))
    reach = stick.reach(settings.alpha, len(vanillas)) if stick else 0.0
    lost, allowed = fmean(vanillas) - value, min(max(margin, reach), 2 * margin)
    finding = f"{0.0 - 100 * lost:+.1f} points"  # no "-0.0"
    line |= {"lost": lost, "allowed": allowed, "margin": margin}
    if lost > 2 * margin + ROUNDING:
        return line | {"verdict": "FAIL", "finding": finding}
    return line | {"verdict": "PASS" if lost <= allowed + ROUNDING else "INCONCLUSIVE", "finding": finding}


# Health ---------------------------------------------------------------------------------------------------------------


def _health(judged: Judged) -> dict[str, Any]:
    parts = (FORGET, *judged.settings.keep)
    lines = [_collapse(judged, measure, part) for part in parts for measure in SIGNS_OF_COLLAPSE]
    return _criterion(
        "health",
        [line for line in lines if line is not None],
        {
            "PASS": "No more answers are empty, repeating or off the list than of gold or vanilla.",
            "FAIL": "The model answers like neither gold nor vanilla, it is broken or refuses ({which}).",
            "INCONCLUSIVE": "Whether answers are as sound as gold's is not settled ({which}).",
        },
    )


def _collapse(judged: Judged, measure: str, part: str) -> dict[str, Any] | None:
    """One sign of collapse on one set; None if it was asked of nobody, unless it is the forget set.

    There it must have been looked for: gold guesses names there in whole answers, a model behind a refusal does not.
    """
    value = value_of(judged.model, measure, part)
    others = judged.values((*judged.golds, *judged.vanillas), measure, part)
    line = {"of": f"{SIGNS_OF_COLLAPSE[measure]} on {part}", "set": part, "value": value}
    if value is None or not others:
        if part != FORGET and value is None and not others:
            return None
        return line | {"verdict": "INCONCLUSIVE", "most": None, "finding": "not measured"}
    most, broken = max(others), judged.settings.broken
    word: Word = "PASS" if value <= most + broken + ROUNDING else "INCONCLUSIVE"
    if value > most + 2 * broken + ROUNDING:
        word = "FAIL"
    return line | {
        "verdict": word,
        "most": most,
        "finding": f"{100 * value:.1f} %, of others at most {100 * most:.1f} %",
    }
