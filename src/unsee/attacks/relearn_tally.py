"""What attacks brought back: pure functions of their records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from unsee.attacks.relearn import Point, Tally
from unsee.evaluation.intervals import ROUNDING, Cell, around, share, student

Record = dict[str, Any]
"""One attack on one model: `role`, `split`, `half`, `attacked`, `held_out`, `pictures`, `curve`, `seconds`."""

GROUPS = ("held_out", "attacked", "retain")


def outcome(records: Sequence[Record]) -> dict[str, Any]:
    """All measures of one model from its attacks. They all start from the same answers, which therefore count once.

    Returns:
        for each of `GROUPS` the cells `before`, `after` and `gain`; `curve`, one entry per measured step with a cell
        for each group; `subjects`, the share right about each forget subject while it was held out; `attacks`;
        `seconds`.
    """
    steps = [point["step"] for point in records[0]["curve"]]

    def at(index: int, group: str) -> Tally:
        counts = [_counts(record, record["curve"][index], group) for record in records]
        return together(counts if index else [{s: n for count in counts for s, n in count.items()}])

    curve = [{"step": step, **{group: cell(at(index, group)) for group in GROUPS}} for index, step in enumerate(steps)]
    first, last = ({group: at(index, group) for group in GROUPS} for index in (0, -1))
    return {
        **{
            group: {
                "before": cell(first[group]),
                "after": cell(last[group]),
                "gain": gain(first[group], last[group]),
            }
            for group in GROUPS
        },
        "curve": curve,
        "subjects": {
            subject: {"before": _rate(first["held_out"][subject]), "after": _rate(last["held_out"][subject])}
            for subject in sorted(first["held_out"])
        },
        "attacks": len(records),
        "seconds": sum(record["seconds"] for record in records),
    }


def _counts(record: Record, point: Point, group: str) -> Mapping[str, Sequence[int]]:
    if group == "retain":
        return point["retain"]
    return {subject: point["forget"][subject] for subject in record[group]}


def together(tallies: Iterable[Mapping[str, Sequence[int]]]) -> Tally:
    """The sum of several counts."""
    total: Tally = {}
    for tally in tallies:
        for subject, (right, asked) in tally.items():
            before = total.get(subject, (0, 0))
            total[subject] = before[0] + right, before[1] + asked
    return total


def cell(tally: Tally) -> Cell:
    """The share of right answers, with its interval clustered by subject."""
    right = [number < r for r, asked in tally.values() for number in range(asked)]
    return share(right, [subject for subject, (_, asked) in tally.items() for _ in range(asked)])


def gain(before: Tally, after: Tally) -> Cell:
    """Right answers after minus before, as a share from -1 to 1, with a 95 % interval over subjects.

    Every subject is compared with itself, so what makes some easier than others drops out: Student's t on the
    differences, weighed by the number of answers, at (subjects - 1) degrees of freedom. Where all subjects gained the
    same, nothing about their spread is known, and the ends are null.
    """
    asked = sum(n for _, n in after.values())
    usual = fmean(n for _, n in after.values())
    parts = [(_rate(after[subject]) - _rate(before[subject])) * n / usual for subject, (_, n) in after.items()]
    value, spread = fmean(parts), stdev(parts) if len(parts) > 1 else 0.0
    half = student(len(parts) - 1) * spread / len(parts) ** 0.5 if spread > ROUNDING else None
    return around(value, half, asked, (-1.0, 1.0))


def _rate(counts: Sequence[int]) -> float:
    right, asked = counts
    return right / asked


ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], Cell]], ...] = (
    ("held out, before", lambda role: role["held_out"]["before"]),
    ("held out, after", lambda role: role["held_out"]["after"]),
    ("gain", lambda role: role["held_out"]["gain"]),
    ("attacked, after", lambda role: role["attacked"]["after"]),
    ("retain, after", lambda role: role["retain"]["after"]),
)


def table(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of `relearn.json` as text, one row per model: percentages with their intervals."""
    roles = [role for role, value in results.items() if "held_out" in value]
    columns = ("model", *(label for label, _ in ROWS), "attacks", "seconds")
    rows = [
        (
            role,
            *(_percent(find(results[role])) for _, find in ROWS),
            str(results[role]["attacks"]),
            f"{results[role]['seconds']:.0f}",
        )
        for role in roles
    ]
    return columns, rows


def _percent(found: Cell) -> str:
    value, low, high = found["value"], found["low"], found["high"]
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})")
