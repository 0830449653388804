r"""The table of a comparison for a paper: LaTeX with `\usepackage{booktabs}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unsee.reporting.section import percent
from unsee.table import MISSING, escape, latex_table

Arm = Mapping[str, Any]
SHARES = {"forget": "forget.test", "retain": "retain.test"}
SPREADS: dict[str, Callable[[Arm], Mapping[str, float | None]]] = {
    "distance": lambda arm: arm["distance"],
    "retain drop": lambda arm: arm["drops"]["retain"],
    "attr. drop": lambda arm: arm["drops"]["attributes"],
    "text drop": lambda arm: arm["drops"]["text"],
    "gain over gold": lambda arm: arm["gain_over_gold"],
    "total": lambda arm: arm["total"],
}


def latex(results: Mapping[str, Any]) -> str:
    """One table per family: shares in % with 95 % intervals, spreads in points with standard deviations, best in bold.

    The best is the smallest mean, exactly compared; of the shares none is, since neither gold's level nor vanilla's is
    a contest.
    """
    families = dict.fromkeys(case["family"] for case in results["cases"])
    return "\n".join(_table(results, family) for family in families)


def _table(results: Mapping[str, Any], family: str) -> str:
    arms = [arm for arm in results["arms"] if arm["family"] == family]
    baselines = [one for one in results["baselines"] if one["family"] == family and one["models"]]
    shown = {what: read for what, read in SPREADS.items() if any(read(arm)["mean"] is not None for arm in arms)}
    best = {what: min(_known(arms, read), default=None) for what, read in shown.items()}
    seconds = min((arm["seconds"] for arm in arms if arm["seconds"] is not None), default=None)
    head = ["method", *(f"{what} (\\%)" for what in SHARES), *map(escape, shown), "seconds"]
    levels, contest = [], []
    for one in baselines:
        shares = [share_cell(one["shares"][name]) for name in SHARES.values()]
        levels.append([escape(one["role"]), *shares, *[""] * (len(shown) + 1)])
    for arm in arms:
        shares = [share_cell(arm["shares"][name]) for name in SHARES.values()]
        numbers = [_spread(read(arm), read(arm)["mean"] == best[what]) for what, read in shown.items()]
        time = MISSING if arm["seconds"] is None else _bold(f"{arm['seconds']:.1f}", arm["seconds"] == seconds)
        contest.append([escape(arm["arm"]), *shares, *numbers, time])
    return latex_table(head, levels, contest, caption=_caption(results, family))


def _known(arms: Sequence[Arm], read: Callable[[Arm], Mapping[str, float | None]]) -> list[float]:
    return [mean for arm in arms if (mean := read(arm)["mean"]) is not None]


def _caption(results: Mapping[str, Any], family: str) -> str:
    runs = max((arm["cells"] for arm in results["arms"] if arm["family"] == family), default=0)
    return (
        f"Unlearning on {escape(family)}, {runs} run{'' if runs == 1 else 's'} per method. Forget and retain: right "
        "answers with 95\\,\\% intervals clustered by subject. Others in percentage points, mean $\\pm$ standard "
        "deviation over runs, seconds per edit; smallest in bold."
    )


def share_cell(share: Mapping[str, Any] | None) -> str:
    """A share in percent with its 95 % interval, if there is one."""
    if share is None or share["value"] is None:
        return MISSING
    if share["low"] is None or share["high"] is None:
        return _number(share["value"])
    return f"{_number(share['value'])} [{_number(share['low'])}, {_number(share['high'])}]"


def _spread(spread: Mapping[str, float | None], best: bool) -> str:
    if spread["mean"] is None:
        return MISSING
    mean = _bold(_number(spread["mean"]), best)
    return mean if spread["sd"] is None else f"{mean} $\\pm$ {percent(spread['sd'])}"


def _number(value: float) -> str:
    return percent(value).replace("-", "$-$")


def _bold(text: str, best: bool) -> str:
    return f"\\textbf{{{text}}}" if best else text
