"""The relearning attack in the report: what `relearn.json` holds, its figure and its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from unsee.errors import BadInput
from unsee.reporting.parts import Drawing, Score, drawing, finite

AGAIN = "run `unsee attack relearn` again"
BESIDE = ("settings", "provenance")  # what stands beside the roles
GROUPS = ("held_out", "attacked", "retain")
TRAINED = {
    "full": "all its parameters",
    "lora": "low-rank adapters on all its linear layers",
    "visual": "its vision tower and projector",
}
SPARE = "#5a6470"  # of a role that was attacked but not evaluated


@dataclass(frozen=True)
class Attacked:
    """What the attacks on one model brought back.

    Attributes:
        cells: (group, `before` or `after`) -> score.
        gain: after minus before on the held-out half, a share from -1 to 1; its ends are None where unknown.
        curve: measured step -> score of the held-out half.
    """

    role: str
    cells: Mapping[tuple[str, str], Score]
    gain: tuple[float, float | None, float | None]
    curve: Mapping[int, Score]
    attacks: int

    @property
    def gain_points(self) -> str:
        return _signed(self.gain[0])

    @property
    def gain_interval(self) -> str:
        """In points; empty if there is none."""
        _, low, high = self.gain
        return "" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


@dataclass(frozen=True)
class Relearned:
    """Attacks on all models under one budget."""

    roles: tuple[Attacked, ...]
    settings: Mapping[str, Any]

    @property
    def attacker(self) -> str:
        """What was trained, in words; attacks from before there was a choice trained everything."""
        return TRAINED[str(self.settings.get("attacker", "full"))]


def parse(raw: Mapping[str, Any], hashes: Mapping[str, Mapping[str, Any]], where: str) -> Relearned | None:
    """The content of `relearn.json`; None if it holds no model.

    Args:
        hashes: role -> SHA-256 of the weights that were evaluated, where known.

    Raises:
        BadInput: it does not hold what it should, or other weights of a role were attacked than evaluated.
    """
    found = {role: value for role, value in raw.items() if role not in BESIDE}
    if not found:
        return None
    about = _inner(raw, "provenance", where).get("models") or {}
    for role in found:
        attacked = about.get(role, {}).get("sha256") if isinstance(about, Mapping) else None
        if attacked and hashes.get(role) and attacked != hashes[role]:
            raise BadInput(f"{where}: '{role}' was attacked with other weights than results.json evaluates; {AGAIN}")
    order = sorted(found, key=lambda role: ("vanilla", "gold").index(role) if role in ("vanilla", "gold") else 2)
    roles = tuple(_attacked(role, _inner(found, role, where), f"{where}: {role}") for role in order)
    settings = _inner(raw, "settings", where)
    if settings.get("attacker", "full") not in TRAINED:
        raise BadInput(f"{where}: settings.attacker: expected one of {', '.join(TRAINED)}; {AGAIN}")
    return Relearned(roles, settings)


def _attacked(role: str, raw: Mapping[str, Any], where: str) -> Attacked:
    cells = {
        (group, when): Score.parse(_inner(raw, group, where).get(when), f"{where}.{group}.{when}")
        for group in GROUPS
        for when in ("before", "after")
    }
    gain = _inner(_inner(raw, "held_out", where), "gain", f"{where}.held_out")
    value, low, high = (_difference(gain.get(key), f"{where}.held_out.gain.{key}") for key in ("value", "low", "high"))
    curve, attacks = raw.get("curve"), raw.get("attacks")
    whole = isinstance(curve, list) and all(isinstance(p, Mapping) and isinstance(p.get("step"), int) for p in curve)
    if not whole or not curve or not isinstance(attacks, int) or value is None:
        raise BadInput(f"{where}: expected a gain, the number of attacks and a curve with steps; {AGAIN}")
    points = {p["step"]: Score.parse(p.get("held_out"), f"{where}.curve: step {p['step']}") for p in curve}
    return Attacked(role, cells, (value, low, high), points, attacks)


def _inner(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    inner = raw.get(key)
    if not isinstance(inner, Mapping):
        raise BadInput(f"{where}: expected an object '{key}'; {AGAIN}")
    return inner


def _difference(raw: Any, where: str) -> float | None:
    return None if raw is None else finite(raw, where, "a number from -1 to 1 or null", (-1, 1), AGAIN)


def figure(relearned: Relearned, colour: Mapping[str, str], size: tuple[float, float]) -> Drawing:
    """The held-out half over the steps of the attack, one line with its interval per model."""
    said = "; ".join(
        f"{role.role}: " + ", ".join(f"step {step} {cell.words}" for step, cell in role.curve.items())
        for role in relearned.roles
    )
    caption = (
        "Right answers about the held-out half of the forget set while the model is taught the other half again: "
        f"{relearned.attacker} are trained. "
        "Bands are 95% intervals clustered by subject. Good is where gold is."
    )
    lines = {role.role: role.curve for role in relearned.roles}
    return drawing("relearning", "relearning", caption, f"Relearning. {said}.", size, curves(lines, colour))


def curves(
    lines: Mapping[str, Mapping[int, Score]],
    colour: Mapping[str, str],
    marker: Mapping[str, str] | None = None,
    bands: bool = True,
) -> Callable[[Figure], None]:
    """What paints shares of the held-out half over the steps of an attack, one line per model.

    Args:
        bands: fill the intervals, too; many of them hide each other.
    """

    def paint(page: Figure) -> None:
        axes = page.add_subplot()
        for name, line in lines.items():
            shade = colour.get(name, SPARE)
            scored = {step: cell for step, cell in line.items() if cell.value is not None}
            heights = [100 * (cell.value or 0.0) for cell in scored.values()]
            axes.plot(
                list(scored), heights, color=shade, marker=(marker or {}).get(name, "o"), markersize=3.5, label=name
            )
            banded = {step: cell.ends for step, cell in scored.items() if cell.ends is not None} if bands else {}
            low, high = ([100 * ends[side] for ends in banded.values()] for side in (0, 1))
            axes.fill_between(list(banded), low, high, color=shade, alpha=0.16, linewidth=0)
        axes.set_ylim(0, 105)
        axes.set_yticks(range(0, 101, 25))
        axes.set_xticks(sorted({step for line in lines.values() for step in line}))
        axes.set_xlabel("steps of the attack")
        axes.set_ylabel("share of answers, %")
        axes.grid(axis="y")
        axes.set_title("Held-out half of the forget set")
        page.legend(loc="outside lower center", ncols=min(3, len(lines)), handlelength=1.6)

    return paint
