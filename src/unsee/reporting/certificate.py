"""The drift certificate in the report: what an edited model carries, its figures and the sentences above its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from unsee.errors import BadInput
from unsee.reporting.parts import UNSCORED, Drawing, drawing, finite

AGAIN = "run `unsee unlearn` and `unsee evaluate` again"
KINDS = {"used": "pictures used\nfor the edit", "unseen": "pictures\nnot used"}
WAYS = {"first_order": "first order", "measured": "measured", "measured_after_cast": "measured, as stored"}
SHADES = ("#b4bbc4", "", "#1d232b")  # of WAYS; empty: the model's own colour
MOST = 40  # layers in a figure


@dataclass(frozen=True)
class Layer:
    """One edited layer; relative changes of its outputs as fractions, None where unknown.

    Attributes:
        name: full parameter name. label: its last parts.
        free: share of input directions the update could use.
    """

    name: str
    label: str
    free: float | None
    drift: float
    bound: float | None
    after_cast: float | None


@dataclass(frozen=True)
class Certificate:
    """What is known of an edit.

    Attributes:
        tokens: (kind of pictures, way) -> relative change of the visual tokens.
        pictures: kind of pictures -> how many; only kinds that were looked at.
    """

    layers: tuple[Layer, ...]
    tokens: Mapping[tuple[str, str], float | None]
    pictures: Mapping[str, int]

    @property
    def worst(self) -> Layer:
        return max(self.layers, key=lambda layer: layer.drift)

    @property
    def sentences(self) -> list[str]:
        """What the numbers say, the certain first."""
        worst = self.worst
        said = [
            f"Computed exactly: taken alone, no edited layer moved its outputs by more than {percent(worst.drift)} on "
            f"average over retained pictures (that is {worst.label}; all {len(self.layers)} layers on average: "
            f"{percent(self._mean)})."
        ]
        stored = [layer.after_cast for layer in self.layers if layer.after_cast is not None]
        if stored and percent(max(stored)) != percent(worst.drift):
            said.append(f"After rounding to the precision it is stored in, the largest is {percent(max(stored))}.")
        bounds = [layer.bound for layer in self.layers if layer.bound is not None]
        if bounds and max(bounds) < 1:
            said.append(
                f"Bounded by the constraint: whatever its direction, an update of this size under the same constraint "
                f"moves no layer’s outputs by more than {percent(max(bounds))}."
            )
        elif bounds:
            said.append("In some layer the bound exceeds 100%: there the constraint alone promises nothing.")
        elif stored:
            said.append("Nothing held the update back, so nothing bounds the drift beforehand.")
        used, unseen = (self.tokens.get((kind, "measured")) for kind in KINDS)
        if used is not None:
            said.append(
                f"Only measured: what the language model is given changed by {percent(used)} on a sample of "
                f"{self.pictures['used']} retained pictures that the edit used."
            )
        if unseen is not None:
            times = f", {unseen / used:.1f} times as much" if used else ""
            said.append(
                f"Only measured: on {self.pictures['unseen']} retained pictures that the edit never saw it changed by "
                f"{percent(unseen)}{times}."
            )
        return said

    @property
    def _mean(self) -> float:
        return sum(layer.drift for layer in self.layers) / len(self.layers)


def percent(share: float | None) -> str:
    """A relative change for people: two digits, never a wrong zero."""
    if share is None:
        return UNSCORED
    if share < 1e-6:
        return "< 0.0001%" if share else "0%"
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:#.2g}%"


def parse(raw: Mapping[str, Any], where: str) -> Certificate | None:
    """A role's `certificate` of results.json; None if it names no layer. Older ones hold drifts of layers alone.

    Raises:
        BadInput: it does not hold what it should.
    """
    layers = tuple(
        Layer(
            name,
            ".".join(name.removesuffix(".weight").removeprefix("model.").split(".")[-4:]),
            _share(row.get("free"), f"{where}.layers: {name}: free"),
            _known(row.get("drift"), f"{where}.layers: {name}: drift"),
            _share(row.get("bound"), f"{where}.layers: {name}: bound"),
            _share(row.get("drift_after_cast"), f"{where}.layers: {name}: drift_after_cast"),
        )
        for name, row in _rows(raw, "layers", where)
    )
    tokens: dict[tuple[str, str], float | None] = {}
    pictures = {}
    for kind, row in _rows(raw, "tokens", where):
        if kind in KINDS and row:
            place = f"{where}.tokens.{kind}"
            tokens |= {(kind, way): _share(row.get(way), f"{place}.{way}") for way in WAYS}
            pictures[kind] = int(_known(row.get("pictures"), f"{place}.pictures"))
    return Certificate(layers, tokens, pictures) if layers else None


def _rows(raw: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = raw.get(key)
    if not isinstance(rows, Mapping | None):
        raise BadInput(f"{where}.{key}: expected an object, found {type(rows).__name__}; {AGAIN}")
    for name, row in (rows or {}).items():
        if not isinstance(row, Mapping | None):
            raise BadInput(f"{where}.{key}: {name}: expected an object, found {type(row).__name__}; {AGAIN}")
        yield name, row or {}


def _share(raw: Any, where: str) -> float | None:
    return None if raw is None else _known(raw, where)


def _known(raw: Any, where: str) -> float:
    return finite(raw, where, "a number from 0", (0, math.inf), AGAIN)


def figures(role: str, found: Certificate, colour: str, width: float) -> Iterator[Drawing]:
    """Drift against its bound per layer; change of the tokens of used and of unused pictures, where known."""
    largest = sorted(found.layers, key=lambda layer: -layer.drift)[:MOST]
    shown = [layer for layer in found.layers if layer in largest]
    said = "; ".join(f"{layer.label}: drift {percent(layer.drift)}, bound {percent(layer.bound)}" for layer in shown)
    some = (
        f" The {MOST} layers with the largest drift, of {len(found.layers)}." if len(shown) < len(found.layers) else ""
    )
    bounded = any(layer.bound is not None for layer in shown)
    caption = (
        f"{role}: how far each edited layer’s outputs moved on the retained statistics"
        + (" (filled), and how far an update of this size could have moved them (outline)." if bounded else ".")
        + some
    )
    size = (width, 1.1 + 0.19 * len(shown))
    alt = f"Drift per layer, {role}. {said}."
    yield drawing(f"certificate-{role}-layers", "certificate", caption, alt, size, _layers_painter(shown, colour))
    if any(value is not None for value in found.tokens.values()):
        told = "; ".join(
            f"{' '.join(KINDS[kind].split())}: {WAYS[way]} {percent(value)}"
            for (kind, way), value in found.tokens.items()
        )
        caption = (
            f"{role}: change of the visual tokens, what the language model is given. First order: what the update does "
            "if small steps simply add up. A higher bar for unused pictures means that the constraint fits those used."
        )
        alt = f"Change of visual tokens, {role}. {told}."
        yield drawing(
            f"certificate-{role}-tokens", "certificate", caption, alt, (width, 3.2), _tokens_painter(found, colour)
        )


def _layers_painter(layers: list[Layer], colour: str) -> Callable[[Figure], None]:
    def paint(page: Figure) -> None:
        axes = page.add_subplot()
        bounded = [(place, 100 * layer.bound) for place, layer in enumerate(layers) if layer.bound is not None]
        if bounded:
            axes.barh(
                [place for place, _ in bounded], [bound for _, bound in bounded], 0.72,
                facecolor="none", edgecolor="#5a6470", linewidth=0.9, label="bound",
            )  # fmt: skip
        drifts = [100 * layer.drift for layer in layers]
        axes.barh(range(len(layers)), drifts, 0.72, color=colour, label="drift")
        axes.set_yticks(range(len(layers)), [layer.label for layer in layers], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("relative change of outputs, %")
        axes.grid(axis="x")
        page.suptitle("Drift per layer", x=0.02, ha="left", fontsize=10, fontweight="bold")
        page.legend(loc="outside lower center", ncols=2, handlelength=1.2)

    return paint


def _tokens_painter(found: Certificate, colour: str) -> Callable[[Figure], None]:
    def paint(page: Figure) -> None:
        axes = page.add_subplot()
        kinds = list(found.pictures)
        width = 0.8 / len(WAYS)
        for place, ((way, label), shade) in enumerate(zip(WAYS.items(), SHADES, strict=True)):
            at = [group + (place - (len(WAYS) - 1) / 2) * width for group in range(len(kinds))]
            values = [found.tokens[kind, way] for kind in kinds]
            axes.bar(at, [100 * (value or 0.0) for value in values], 0.9 * width, color=shade or colour, label=label)
            for x, value in zip(at, values, strict=True):
                axes.text(x, 100 * (value or 0.0), percent(value), ha="center", va="bottom", fontsize=7.5)
        axes.set_xticks(range(len(kinds)), [f"{KINDS[kind]}\nn = {found.pictures[kind]}" for kind in kinds])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.margins(y=0.12)
        axes.set_ylabel("relative change, %")
        axes.grid(axis="y")
        axes.set_title("Change of the visual tokens")
        page.legend(loc="outside lower center", ncols=2, handlelength=1.2)

    return paint
