"""Is an unlearned model like gold or like vanilla? A verdict from measures, by thresholds that stand before the run.

The only rule there is: `unsee evaluate` writes what it says beside the scores, the report shows it, `unsee verdict`
asks it again. Pure functions of `measures.json`: role -> measure -> set -> cell. Roles `gold`, `gold-2`, ... are models
that never saw the target's pictures, `vanilla`, `vanilla-2`, ... models that did; they differ among each other in their
seed alone, and that spread is the yardstick. The whole construction is ours; docs/verdict.md says why it is as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from unsee.data.examples import SPLITS
from unsee.errors import BadInput
from unsee.evaluation.faithfulness import SIGNS, Yardstick, yardstick
from unsee.evaluation.intervals import ROUNDING, Relation, relation
from unsee.evaluation.metrics import LEADING, MEASURES
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

Word = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]  # measure -> set -> cell of measures.json
Roles = Mapping[str, Cells]
OPTION = "--settings"
FORGET, RETAIN = "forget", "retain"
RECOGNISED = (FORGET, "forget_validation", "forget_train")  # sets in which plain recognition is looked at too
MISATTRIBUTION = "misattribution"
APART = ("above", "below")
TOO_NEAR = "not measurable, gold and vanilla differ too little for their spread"
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
    "strangers_attributes": 0.03,
}
SCORED: dict[tuple[str, str], tuple[str, str]] = {  # path in a role's scores -> measure and set
    **{("forget", split): ("accuracy", part) for split, part in zip(SPLITS[::-1], RECOGNISED, strict=True)},
    ("retain", "test"): ("accuracy", RETAIN),
    **{("attributes", part): ("accuracy", f"{part}_attributes") for part in ("forget", "retain", "strangers")},
    **{("text", part): ("accuracy", f"{part}_text") for part in ("forget", "retain")},
    (MISATTRIBUTION, "forget"): (MISATTRIBUTION, FORGET),
}


@dataclass(frozen=True)
class VerdictSettings:
    """What decides, fixed before the model to be judged is made. `unsee study audit` writes them; all our choice.

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
                    raise ValueError(f"{key}: '{name}' is no measure; expected one of those of `unsee list metrics`")
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

    def relation(self, of: Sequence[Cells], measure: str, part: str) -> Relation:
        """Where the model's interval lies from those of others that have a value."""
        cells = [cells.get(measure, {}).get(part, {}) for cells in (self.model, *of)]
        return relation(cells[0], [cell for cell in cells[1:] if cell.get("value") is not None])


def value_of(cells: Cells, measure: str, part: str) -> float | None:
    """None where the measure was not taken, of this set or at all."""
    value = cells.get(measure, {}).get(part, {}).get("value")
    return None if value is None else float(value)


def with_scores(cells: Cells, scores: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Measures of one model with what a verdict reads from its scores in `results.json`; measures go first."""
    found = {measure: dict(sets) for measure, sets in cells.items()}
    for (what, inner), (measure, part) in SCORED.items():
        cell = (scores.get(what) or {}).get(inner) or {}
        if cell.get("value") is not None:
            plain = {key: cell.get(key) for key in ("value", "low", "high", "n")}
            found.setdefault(measure, {}).setdefault(part, plain)
    return found


def verdict(roles: Roles, role: str, settings: VerdictSettings) -> dict[str, Any]:
    """See `assess`; for people who ask of one model and have to have what it is compared with.

    Raises:
        BadInput: no such role, or neither a gold nor a vanilla one beside it.
    """
    if role not in roles:
        raise BadInput(f"--model {role}: not measured; expected one of {', '.join(roles)}")
    found = assess(roles, role, settings)
    for kind in ("gold", "vanilla"):
        if not found[f"{kind}s"]:
            raise BadInput(f"--model {role}: no {kind} model beside it, so nothing to compare with; measure one too")
    return found


def verdicts(roles: Roles, settings: VerdictSettings) -> dict[str, dict[str, Any]]:
    """What `assess` says of every model that is neither a gold nor a vanilla one."""
    judged = [role for role in roles if not (is_role(role, "gold") or is_role(role, "vanilla"))]
    return {role: assess(roles, role, settings) for role in judged}


def assess(roles: Roles, role: str, settings: VerdictSettings) -> dict[str, Any]:
    """PASS, FAIL or INCONCLUSIVE of one model, with a sentence for each of three criteria and the lines behind it.

    PASS: all three are met. FAIL: at least one is clearly violated. A model that is a gold or a vanilla one itself is
    judged by the others. Where there is no gold model, whether it forgot cannot be decided.

    Args:
        roles: `models` of `measures.json`.

    Returns:
        `model`, `verdict`, `criteria` (`criterion`, `verdict`, `sentence`, `lines`), `golds`, `vanillas`, and the
        SHA-256 of the settings.
    """
    golds, vanillas = ([other for other in roles if other != role and is_role(other, k)] for k in ("gold", "vanilla"))
    judged = Judged(roles[role], tuple(roles[r] for r in golds), tuple(roles[r] for r in vanillas), settings)
    criteria = [_forgetting(judged), _keeping(judged), _health(judged)]
    return {
        "model": role,
        "verdict": together([one["verdict"] for one in criteria]),
        "criteria": criteria,
        "golds": golds,
        "vanillas": vanillas,
        "settings_sha256": settings.sha256,
    }


def together(words: Sequence[Word]) -> Word:
    """FAIL if anything fails, PASS if everything passes."""
    passed = bool(words) and all(word == "PASS" for word in words)
    return "FAIL" if "FAIL" in words else "PASS" if passed else "INCONCLUSIVE"


def _criterion(name: str, lines: Sequence[dict[str, Any]], sentences: Mapping[Word, str]) -> dict[str, Any]:
    """The worst lines speak: `{which}` in a sentence is what they are called, with their reason, each reason once."""
    word = together([line["verdict"] for line in lines])
    telling: dict[str, list[str]] = {}
    for line in lines:
        if line["verdict"] == word:
            telling.setdefault(line["finding"], []).append(line["of"])
    return {
        "criterion": name,
        "verdict": word,
        "sentence": sentences[word].format(
            which="; ".join(f"{', '.join(of)}: {finding}" for finding, of in telling.items())
        ),
        "lines": list(lines),
    }


# Forgetting -----------------------------------------------------------------------------------------------------------


def _forgetting(judged: Judged) -> dict[str, Any]:
    lead = judged.settings.lead
    plain = [_recognition(judged, part) for part in RECOGNISED]
    return _criterion(
        "forgetting",
        [*(_position(judged, measure) for measure in lead), *(line for line in plain if line is not None)],
        {
            "PASS": "The model cannot be told from a gold model of another seed ({which}).",
            "FAIL": "The model is not like one that never saw the forget set ({which}).",
            "INCONCLUSIVE": "Whether the model is like gold cannot be decided ({which}).",
        },
    )


def _position(judged: Judged, measure: str) -> dict[str, Any]:
    """Where a model stands between gold (0) and vanilla (1), on the forget set.

    The position is (value - gold) / (vanilla - gold), golds and vanillas by their means. Its interval is where the same
    model may stand with other seeds: the value plus and minus the reach of the golds' spread. Questions are the same
    for all models, so what their choice brings is in that spread already and is not counted again.

    That spread says nothing of other people, the intervals of the cells do: a model is like gold if its interval is
    apart from vanilla's too, and not apart from gold's.
    """
    settings, line = judged.settings, _stand(judged, measure, FORGET)
    value, gold, vanilla = (line[key] for key in ("value", "gold", "vanilla"))
    line |= {"low": None, "high": None, "spreads": None}
    missing = [what for what, x in (("it", value), ("gold", gold), ("vanilla", vanilla)) if x is None]
    if missing:
        return line | {"finding": f"not measured of {' and '.join(missing)}"}
    others = judged.values(judged.golds, measure, FORGET)
    stick = yardstick([others], settings.yardsticks.get((measure, FORGET)))
    if stick is None:
        return line | {
            "position": None,
            "finding": "one gold model and no yardstick; measure a second, or give settings of an audit",
        }
    line["spreads"] = (value - gold) / max(stick.spread, settings.least_spread)
    reach = stick.reach(settings.alpha / len(settings.lead), len(others), settings.least_spread)
    position = line["position"]
    if position is None or abs(vanilla - gold) <= 2 * reach:
        return line | {"position": None, "finding": TOO_NEAR}
    half = reach / abs(vanilla - gold)
    line |= {"low": position - half, "high": position + half}
    if abs(position) > max(half + ROUNDING, settings.nearer):
        return line | {"verdict": "FAIL", "finding": _placed(line, settings)}
    if abs(position) > half + ROUNDING:
        return line | {"finding": f"{_placed(line, settings)}, but farther than other seeds lie"}
    off, before = (judged.relation(of, measure, FORGET) for of in (judged.golds, judged.vanillas))
    if "unknown" in (off, before):
        return line | {"finding": "no interval; too few people"}
    if before not in APART:
        return line | {"finding": "too few people; its interval overlaps vanilla's"}
    if off in APART:
        return line | {"finding": f"{position:+.2f} of the way to vanilla, but its interval is apart from gold's"}
    return line | {"verdict": "PASS", "finding": f"{position:+.2f} of the way to vanilla"}


def _recognition(judged: Judged, part: str) -> dict[str, Any] | None:
    """Plain recognition, by the intervals of the cells alone.

    It can speak against a model where leading measures cannot, with one gold model too, and passes nothing by itself.

    Returns:
        None if it was not asked of the model and of gold.
    """
    line = _stand(judged, "accuracy", part) | {"of": f"accuracy on {part}"}
    if line["value"] is None or line["gold"] is None:
        return None
    off = judged.relation(judged.golds, "accuracy", part)
    if off == "unknown":
        return line | {"finding": "no interval; too few people"}
    if off not in APART:
        return line | {"verdict": "PASS", "finding": "its interval overlaps gold's"}
    if line["position"] is None:
        return line | {"finding": f"{off} gold"}
    word: Word = "FAIL" if abs(line["position"]) > judged.settings.nearer else "INCONCLUSIVE"
    return line | {"verdict": word, "finding": f"{_placed(line, judged.settings)}, and its interval apart"}


def _stand(judged: Judged, measure: str, part: str) -> dict[str, Any]:
    """A line with the values that are compared, and the position if gold and vanilla lie as expected."""
    value = value_of(judged.model, measure, part)
    gold, vanilla = (
        fmean(found) if (found := judged.values(of, measure, part)) else None for of in (judged.golds, judged.vanillas)
    )
    position = None
    if value is not None and gold is not None and vanilla is not None:
        way = vanilla - gold
        position = (value - gold) / way if way * SIGNS[MEASURES[measure].higher] > 0 else None
    line = {"of": measure, "verdict": "INCONCLUSIVE", "value": value, "gold": gold, "vanilla": vanilla}
    return line | {"position": position}


def _placed(line: Mapping[str, Any], settings: VerdictSettings) -> str:
    position = line["position"]
    where = "beyond gold" if position < 0 else "nearer to vanilla" if position > settings.nearer else "nearer to gold"
    return f"{position:+.2f} of the way to vanilla, {where}"


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
            "INCONCLUSIVE": "Whether all that should stay did cannot be decided ({which}).",
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
    lines.append(_renamed(judged))
    return _criterion(
        "health",
        [line for line in lines if line is not None],
        {
            "PASS": "No more answers are empty, repeating, off the list or one wrong name than of gold or vanilla.",
            "FAIL": "The model answers like neither gold nor vanilla: it is broken, refuses or renames ({which}).",
            "INCONCLUSIVE": "Whether answers are as sound as gold's cannot be decided ({which}).",
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


def _renamed(judged: Judged) -> dict[str, Any] | None:
    """Whether one target is called the same wrong name more often than by gold; None if it was not asked of both."""
    value = value_of(judged.model, MISATTRIBUTION, FORGET)
    others = judged.values(judged.golds, MISATTRIBUTION, FORGET)
    if value is None or not others:
        return None
    found = judged.relation(judged.golds, MISATTRIBUTION, FORGET)
    word: Word = "FAIL" if found == "above" else "INCONCLUSIVE" if found == "unknown" else "PASS"
    line = {"of": "one wrong name for one target", "set": FORGET, "value": value, "most": max(others), "verdict": word}
    return line | {"finding": f"{100 * value:.1f} %, of gold {100 * max(others):.1f} %"}
