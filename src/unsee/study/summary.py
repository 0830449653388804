"""How whole runs are read: against gold and vanilla models, together over runs, and which of them nothing beats.

Pure functions of scores. A *share* is a cell of `results.json`: `value`, `low`, `high`, `n`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from unsee.evaluation.intervals import nothing

Share = Mapping[str, Any]
MEASURES = {
    "forget.test": ("forget", "test"),
    "retain.test": ("retain", "test"),
    "attributes.forget": ("attributes", "forget"),
    "text.forget": ("text", "forget"),
    "text.retain": ("text", "retain"),
    "bystanders": ("bystanders", "test"),
}
DROPS = {"retain": "retain.test", "attributes": "attributes.forget", "text": "text", "bystanders": "bystanders"}
BEST, AS_GOOD = "best", "equal to the best"
Spread = Mapping[str, float | None]


@dataclass(frozen=True)
class DistanceWeights:
    """What each part of the total distance counts (our choice: all alike). Bystanders do not: few data have them.

    Attributes:
        forget: how far right answers about the forget set lie from the gold models, above or below.
        retain, attributes, text: what was lost against the vanilla model of retained subjects, of what is visible on
            pictures of the forget set, and of text.
    """

    forget: float = 1.0
    retain: float = 1.0
    attributes: float = 1.0
    text: float = 1.0


EQUAL = DistanceWeights()


def shares_of(scored: Mapping[str, Any]) -> dict[str, Share]:
    """What is compared of one model; `text` is both text sets together.

    Args:
        scored: what `evaluation.score` gives.
    """
    found = {name: scored[part][split] for name, (part, split) in MEASURES.items() if part in scored}
    return {**found, "text": together([found["text.forget"], found["text.retain"]])}


def _asked(shares: Mapping[str, Share], name: str) -> Share:
    """One of them; what older results do not hold was not asked."""
    return shares.get(name) or nothing()


def together(parts: Sequence[Share]) -> Share:
    """One share of all answers; the parts ask about different subjects, so their half-widths add up as squares."""
    asked = [part for part in parts if part["n"]]
    total = sum(part["n"] for part in asked)
    if not total:
        return nothing()
    value = sum(part["value"] * part["n"] for part in asked) / total
    down = math.hypot(*((part["value"] - part["low"]) * part["n"] / total for part in asked))
    up = math.hypot(*((part["high"] - part["value"]) * part["n"] / total for part in asked))
    return {"value": value, "low": max(0.0, value - down), "high": min(1.0, value + up), "n": total}


def pooled(cells: Sequence[tuple[str, Share]]) -> dict[str, float] | None:
    """Mean of shares over cases, with a 95 % interval; None if nothing was scored.

    Runs of one case ask about the same subjects, so their intervals are averaged; those of different cases are
    independent, so their half-widths add up as squares. Our choice.

    Args:
        cells: (case, share).
    """
    by_case: dict[str, list[Share]] = {}
    for case, cell in cells:
        if cell["value"] is not None:
            by_case.setdefault(case, []).append(cell)
    if not by_case:
        return None
    each = [{end: sum(c[end] for c in own) / len(own) for end in ("value", "low", "high")} for own in by_case.values()]
    value = sum(one["value"] for one in each) / len(each)
    down = math.sqrt(sum((one["value"] - one["low"]) ** 2 for one in each)) / len(each)
    up = math.sqrt(sum((one["high"] - one["value"]) ** 2 for one in each)) / len(each)
    return {"value": value, "low": max(0.0, value - down), "high": min(1.0, value + up)}


# One run --------------------------------------------------------------------------------------------------------------


def gold_of(golds: Sequence[Mapping[str, Share]]) -> dict[str, float] | None:
    """Mean and spread of right answers of the gold models about the forget set; None without any."""
    left = [gold["forget.test"]["value"] for gold in golds]
    return {"mean": sum(left) / len(left), "spread": max(left) - min(left)} if left else None


def read_against(
    vanilla: Mapping[str, Share],
    gold: Mapping[str, float] | None,
    shares: Mapping[str, Share] | None,
    weights: DistanceWeights = EQUAL,
) -> dict[str, Any]:
    """`distance` to gold on the forget set, `drops` against vanilla, and their `total`; None where not known.

    The total is the weighted sum of the distance and of all drops that are known. A drop below zero is a gain, which
    pays for nothing: it counts as zero.
    """
    if shares is None:
        return {"distance": None, "drops": dict.fromkeys(DROPS), "total": None}
    left = shares["forget.test"]["value"]
    distance = None if gold is None or left is None else abs(left - gold["mean"])
    drops = {}
    for what, key in DROPS.items():
        before, after = (_asked(of, key)["value"] for of in (vanilla, shares))
        drops[what] = None if before is None or after is None else before - after
    return {"distance": distance, "drops": drops, "total": _total(distance, drops, weights)}


def _total(distance: float | None, drops: Mapping[str, float | None], weights: DistanceWeights) -> float | None:
    if distance is None:
        return None
    share: dict[str, float] = vars(weights)
    lost = {what: max(0.0, drop) for what, drop in drops.items() if drop is not None and what in share}
    return weights.forget * distance + sum(share[what] * drop for what, drop in lost.items())


# Many runs ------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, standard deviation (of two and more) and largest of what is known."""
    known = [value for value in values if value is not None]
    return {
        "mean": fmean(known) if known else None,
        "sd": stdev(known) if len(known) > 1 else None,
        "worst": max(known) if known else None,
    }


def numbers(one: Mapping[str, Any]) -> dict[str, Spread]:
    """Every number of an arm that has a spread over runs, by name; a baseline has none."""
    unknown = spread([])
    return {
        "forget": one.get("forget", unknown),
        "distance": one.get("distance", unknown),
        **{f"drop.{what}": one.get("drops", {}).get(what, unknown) for what in DROPS},
        "gain_over_gold": one.get("gain_over_gold", unknown),
        "total": one.get("total", unknown),
        "seconds": one.get("time", unknown),
    }


def standing(spreads: Mapping[str, Spread]) -> dict[str, str]:
    """Who is best in a number of which less is better, and who cannot be told from the best.

    Best has the smallest mean. Equal to the best is whose mean lies within one standard deviation of it, the larger of
    the two: our choice, a way of speaking and no test. One run has no standard deviation.

    Args:
        spreads: of the number, by name, as `spread` gives them.

    Returns:
        `BEST` or `AS_GOOD` by name; empty where fewer than two are known.
    """
    known = {name: (one["mean"], one["sd"] or 0.0) for name, one in spreads.items() if one["mean"] is not None}
    if len(known) < 2:
        return {}
    least = min(mean for mean, _ in known.values())
    widest = max(sd for mean, sd in known.values() if mean == least)
    near = {name: mean for name, (mean, sd) in known.items() if mean - least <= max(sd, widest)}
    return {name: BEST if mean == least else AS_GOOD for name, mean in near.items()}


def summarise(
    cases: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]], weights: DistanceWeights = EQUAL
) -> dict[str, Any]:
    """Every run read against gold and vanilla; every arm and both baselines together, per family.

    Args:
        cases: `name`, `family`, `shares` with those of `vanilla` and of the `golds`; `attack` likewise with what
            `attacks.relearn_run.outcome` says of each, or None.
        cells: `case`, `family`, `arm`, `method`, `given`, `seed`, `shares` (None if the run failed), `attack`,
            `seconds`.

    Returns:
        `baselines`, `arms`, `cases`, `cells`, as in docs/compare.md.
    """
    read = {case["name"]: _case(case) for case in cases}
    filled = [_cell(cell, read[cell["case"]], weights) for cell in cells]
    arms, baselines = [], []
    for family in dict.fromkeys(case["family"] for case in cases):
        own = [case for case in read.values() if case["family"] == family]
        baselines += [_baseline(family, role, own) for role in ("vanilla", "gold")]
        names = dict.fromkeys(cell["arm"] for cell in filled if cell["family"] == family)
        here = [_arm(family, name, [c for c in filled if (c["family"], c["arm"]) == (family, name)]) for name in names]
        _compare_with_each_other(here)
        arms += here
    return {
        "kind": "compare",
        "weights": vars(weights),
        "baselines": baselines,
        "arms": arms,
        "cases": list(read.values()),
        "cells": filled,
    }


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    shares = case["shares"]
    return {
        **case,
        "vanilla": _values(shares["vanilla"]),
        "golds": [_values(gold) for gold in shares["golds"]],
        "gold": gold_of(shares["golds"]),
    }


def _cell(cell: Mapping[str, Any], case: Mapping[str, Any], weights: DistanceWeights) -> dict[str, Any]:
    found = read_against(case["shares"]["vanilla"], case["gold"], cell["shares"], weights)
    measures = None if cell["shares"] is None else _values(cell["shares"])
    attack, golds = cell.get("attack"), (case.get("attack") or {}).get("golds")
    over = None
    if attack and golds:
        over = _gain(attack) - fmean(map(_gain, golds))
    return {**cell, "measures": measures, **found, "gain_over_gold": over}


def _gain(attack: Mapping[str, Any]) -> float:
    gain: float = attack["held_out"]["gain"]["value"]
    return gain


def _values(shares: Mapping[str, Share]) -> dict[str, float | None]:
    return {name: share["value"] for name, share in shares.items()}


def _arm(family: str, name: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [(cell["case"], cell["shares"]) for cell in cells if cell["shares"] is not None]
    return {
        "family": family,
        "arm": name,
        "method": cells[0]["method"],
        "given": cells[0]["given"],
        "cells": len(cells),
        "failed": len(cells) - len(done),
        "forget": spread([(cell["measures"] or {}).get("forget.test") for cell in cells]),
        "distance": spread([cell["distance"] for cell in cells]),
        "drops": {what: spread([cell["drops"][what] for cell in cells]) for what in DROPS},
        "total": spread([cell["total"] for cell in cells]),
        "gain_over_gold": spread([cell["gain_over_gold"] for cell in cells]),
        "shares": _pooled_shares(done),
        "curve": _curve([(cell["case"], cell.get("attack")) for cell in cells]),
        "time": (time := spread([cell["seconds"] for cell in cells])),
        "seconds": time["mean"],
    }


def _baseline(family: str, role: str, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def models(what: str) -> list[tuple[str, Any]]:
        given = [(case["name"], case.get(what)) for case in cases]
        if role == "vanilla":
            return [(name, found["vanilla"]) for name, found in given if found]
        return [(name, one) for name, found in given if found for one in found["golds"]]

    return {
        "family": family,
        "role": role,
        "models": len(models("shares")),
        "shares": _pooled_shares(models("shares")),
        "curve": _curve(models("attack")),
    }


def _pooled_shares(models: Sequence[tuple[str, Mapping[str, Share]]]) -> dict[str, dict[str, float] | None]:
    return {name: pooled([(case, _asked(shares, name)) for case, shares in models]) for name in (*MEASURES, "text")}


def _curve(attacks: Sequence[tuple[str, Mapping[str, Any] | None]]) -> list[dict[str, Any]]:
    """The held-out half along the attack, together over runs; empty without attacks."""
    known: list[tuple[str, Any]] = [(case, attack["curve"]) for case, attack in attacks if attack]
    if not known:
        return []
    steps = [point["step"] for point in known[0][1]]
    return [
        {"step": step, "held_out": pooled([(case, curve[i]["held_out"]) for case, curve in known])}
        for i, step in enumerate(steps)
    ]


def _compare_with_each_other(arms: Sequence[dict[str, Any]]) -> None:
    """Add the time of each arm relative to the fastest one, whether it is on the front, and in what it is best."""
    fastest = min((arm["seconds"] for arm in arms if arm["seconds"]), default=None)
    retain = {arm["arm"]: arm["shares"]["retain.test"] for arm in arms}
    points = {
        arm["arm"]: (arm["distance"]["mean"], kept["value"])
        for arm in arms
        if (kept := retain[arm["arm"]]) is not None and arm["distance"]["mean"] is not None
    }
    best = front(points)
    contested = [name for name in numbers(arms[0]) if name != "forget"] if arms else []  # gold's level is no contest
    places = {name: standing({arm["arm"]: numbers(arm)[name] for arm in arms}) for name in contested}
    for arm in arms:
        arm["relative_seconds"] = arm["seconds"] / fastest if fastest and arm["seconds"] is not None else None
        arm["front"] = arm["arm"] in best
        arm["standing"] = {name: place[arm["arm"]] for name, place in places.items() if arm["arm"] in place}


def front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Whom no other beats in both: as near to gold or nearer, as much retained or more, and better in one of them.

    Args:
        points: name -> (distance to gold, retained share).
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    return {name for name, point in points.items() if not any(beats(other, point) for other in points.values())}
