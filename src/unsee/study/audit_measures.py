"""Which measures tell models that know from models that never saw: many of both, built and measured.

Measures that lead are chosen on one half of the people and their areas reported on the other, so that no area is high
because it was picked for being high.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from unsee.attacks.relearn import answer_losses, trained_by
from unsee.attacks.relearn_plan import Attack, Groups, Relearning, asked_of
from unsee.checkpoint.folder import MANIFEST, read_manifest, write_json
from unsee.checkpoint.write import write_edited
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput, GateFailed
from unsee.evaluation.evaluate import EvaluationRequest, attackable, measure
from unsee.evaluation.faithfulness import SIGNS, Observation, Yardstick, faithfulness, ranked, yardstick
from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.metrics.base import ASKED_WITH, Cost
from unsee.evaluation.questions import PICTURES
from unsee.evaluation.verdict import FORGET, VerdictSettings, is_role, value_of, write_settings
from unsee.models.loading import load_model, open_checkpoint, opens_alike
from unsee.provenance import origin
from unsee.storage import alone, replace_text
from unsee.strict_toml import Keys, at_least_one, fraction, open_toml, several
from unsee.study.grid import Case, cases_in
from unsee.study.scenario import Resolved, begin, build_models, gold_role, keep_apart, resolve, stand_ready
from unsee.table import markdown_table, table_text
from unsee.training.loop import Phase, run

STEM, SETTINGS = "audit", "verdict.toml"
PARTS = ("choose", "report")
GLIMPSED = "glimpsed"
OPTIONAL: set[Cost] = {*ASKED_WITH, "strangers"}  # what an evaluation, or its data, need not have
BESIDE: set[Cost] = {"gold model", "reference model"}  # which the first gold model of each case is, both


@dataclass(frozen=True)
class AuditGrid:
    """Models to learn from, and others to report on.

    Attributes:
        choose: cases on whose people leading measures and yardsticks are found; two gold models or more in each.
        report: cases of other people, on which areas are reported.
        glimpses: after so many steps each gold models that see the forgotten for a moment are measured too, see
            `train_briefly`.
        leads: so many measures lead at most.
        least: area that a measure must have, on the people it is chosen on, to lead.
    """

    choose: tuple[Case, ...]
    report: tuple[Case, ...]
    glimpses: tuple[int, ...] = ()
    leads: int = 3
    least: float = 0.99

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.choose + self.report


@dataclass(frozen=True)
class Measured:
    """One model of one case on every measure.

    Attributes:
        part: "choose" or "report".
        people: DATA argument; models of the same people hang together.
        cells: measure -> set -> cell.
        glimpsed: for how many steps it saw the forgotten; None: a vanilla or gold model.
    """

    part: str
    case: str
    people: str
    role: str
    cells: Mapping[str, Mapping[str, Mapping[str, Any]]]
    glimpsed: int | None = None

    @property
    def knows(self) -> bool:
        return self.glimpsed is not None or is_role(self.role, "vanilla")

    def value(self, name: str, part: str) -> float | None:
        """None also for the gold model that the others are measured beside: beside itself it is no evidence."""
        if BESIDE.intersection(MEASURES[name].cost) and self.role == gold_role(0):
            return None
        return value_of(self.cells, name, part)


def read_audit(path: Path) -> AuditGrid:
    """The grid of `unsee study audit`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = open_toml(path, "--grid")
    choose, report = (keys.take(part, _cases) for part in PARTS)
    glimpses = keys.take("glimpses", several(at_least_one, empty=True), AuditGrid.glimpses)
    leads, least = keys.take("leads", at_least_one, AuditGrid.leads), keys.take("least", fraction, AuditGrid.least)
    keys.done()
    for part, cases in zip(PARTS, (choose, report), strict=True):
        few = [case.name for case in cases if len(case.golds) < 2]
        if few:
            raise BadInput(f"{keys.where}{part}: '{few[0]}' has fewer than two gold models; raise `golds` to 2 or more")
    names = {case.name for case in choose}
    for case in report:
        if case.name in names:
            raise BadInput(f"{keys.where}report: '{case.name}' stands in choose too; report on other people")
    return AuditGrid(choose, report, glimpses, leads, least)


def _cases(value: Any, where: str) -> tuple[Case, ...]:
    keys = Keys(value, f"{where}.")
    found = cases_in(keys)
    keys.done()
    return found


@alone
def audit_measures(grid: AuditGrid, out: Path, resume: bool = False, jobs: int = 1) -> dict[str, Any]:
    """Build all models of the grid that know and all that never saw, measure them, and say what tells them apart.

    Leaves `audit.json`, `audit.csv`, `audit.md` (a table for reading), `verdict.toml` (settings of `unsee verdict`:
    leading measures and yardsticks, from `choose` alone), and for every case `cases/NAME/` with its models and
    `measures.json`.

    Args:
        resume: models and measures that are complete are kept.
        jobs: how much is done side by side.

    Raises:
        BadInput: something in the grid cannot be used, or people stand in both parts. GateFailed: no measure is
            faithful enough to lead; everything but `verdict.toml` is written.
    """
    resolved = {part: [resolve(case) for case in getattr(grid, part)] for part in PARTS}
    keep_apart(resolved["report"], resolved["choose"])
    begin(out, grid, resume)
    every = [(part, case) for part in PARTS for case in resolved[part]]
    folders = {case.case.name: out / "cases" / case.case.name for _, case in every}
    build_models({folders[case.case.name] / "models": case for _, case in every}, jobs)
    models = [
        one for part, case in every for one in _measured(part, case, folders[case.case.name], grid.glimpses, jobs)
    ]
    results = summarise(models, grid.leads, grid.least)
    results["cases"] = [{"part": part, **case.about, "fingerprint": case.data.fingerprint} for part, case in every]
    made = origin()
    results["provenance"] = {**made, "jobs": jobs}
    replace_text(out / f"{STEM}.csv", table_text(_rows(results)))
    replace_text(out / f"{STEM}.md", page(results))
    write_json(out / f"{STEM}.json", results)
    if not results["lead"]:
        raise GateFailed(
            f"on the people to choose on no measure has an area of {grid.least} and tells gold from vanilla beyond the "
            f"spread of golds; see {out / STEM}.csv, and add people or `golds`"
        )
    settings = settings_of(results)
    write_settings(out / SETTINGS, settings, {key: made[key] for key in ("created", "command", "commit", "dirty")})
    return results


def _measured(part: str, case: Resolved, folder: Path, glimpses: Sequence[int], jobs: int) -> Iterator[Measured]:
    vanilla, golds = stand_ready(case, folder / "models")
    steps = {f"{GLIMPSED}-{number}": number for number in glimpses}
    if steps:  # of the second gold: the first is the one that others are measured beside
        train_briefly(golds[1], case.data, case.subjects, glimpses, case.case.draw, folder / "models" / GLIMPSED)
    paths = {"vanilla": vanilla} | {gold_role(i): path for i, path in enumerate(golds)}
    paths |= {role: str(folder / "models" / GLIMPSED / str(number)) for role, number in steps.items()}
    attacked = attackable(case.data, case.subjects)
    reference = golds[0] if attacked else None
    found = measure(EvaluationRequest(paths, case.data, case.subjects, attacked, reference), folder, True, jobs)
    for role in paths:
        yield Measured(part, case.case.name, case.data.source, role, found["models"][role], steps.get(role))


# Reading them ---------------------------------------------------------------------------------------------------------


def summarise(models: Sequence[Measured], leads: int, least: float) -> dict[str, Any]:
    """Every measure on every set, for both parts; the measures that lead, and the yardsticks, from `choose` alone.

    On the forget set every measure has its line, also one that was taken of nobody.

    Returns:
        `lead`; `choose` and `report`, each a list of `measure`, `set`, what `faithfulness` gives of vanilla and gold
        models, `glimpsed`, a list of the same of models that hardly know, with their `steps`, `sensitivity`, the mean
        of all these areas, the `yardstick` of the golds and `apart`, the distance between means of vanilla and gold
        models in spreads; most faithful first; `values`, one per model, measure and set.
    """
    places = [
        (name, part)
        for name in MEASURES
        for part in dict.fromkeys((FORGET, *(part for one in models for part in one.cells.get(name, {}))))
    ]
    results: dict[str, Any] = {"kind": "audit of measures", "leads": leads, "least": least}
    for half in PARTS:
        own = [one for one in models if one.part == half]
        table: dict[str, list[dict[str, Any]]] = {}
        for name, part in places:
            table.setdefault(part, []).append({"measure": name, "set": part, **_read(own, name, part)})
        order = sorted(table, key=lambda part: part != FORGET)  # the set that was to be forgotten first
        results[half] = [
            row
            for part in order
            for name in ranked({row["measure"]: row for row in table[part]})
            for row in table[part]
            if row["measure"] == name
        ]
    results["lead"] = choose([row for row in results["choose"] if row["set"] == FORGET], leads, least)
    results["values"] = [
        {"part": m.part, "case": m.case, "role": m.role, "measure": name, "set": part, "value": m.value(name, part)}
        for m in models
        for name, part in places
    ]
    return results


def _read(models: Sequence[Measured], name: str, part: str) -> dict[str, Any]:
    def against_gold(steps: int | None) -> dict[str, Any]:
        """Of models that know and glimpsed for so long, none: vanilla ones, beside all that never saw."""
        own = [m for m in models if not m.knows or m.glimpsed == steps]
        return faithfulness([Observation(m.value(name, part), m.knows, m.people) for m in own], MEASURES[name].higher)

    found = against_gold(None)
    doses = sorted({m.glimpsed for m in models if m.glimpsed is not None})
    found["glimpsed"] = [{"steps": steps, **against_gold(steps)} for steps in doses]
    areas = [one["value"] for one in (found, *found["glimpsed"]) if one["value"] is not None]
    found["sensitivity"] = fmean(areas) if areas else None
    by_case: dict[str, list[float]] = {}
    for m in models:
        value = m.value(name, part)
        if not m.knows and value is not None:
            by_case.setdefault(m.case, []).append(value)
    stick = yardstick(list(by_case.values()))
    found["yardstick"] = dataclasses.asdict(stick) if stick else None
    found["apart"] = None
    if stick is not None and found["value"] is not None:
        way = abs(found["knowing"]["mean"] - found["not_knowing"]["mean"])
        found["apart"] = way / max(stick.spread, VerdictSettings.least_spread)
    return found


def choose(rows: Sequence[Mapping[str, Any]], leads: int, least: float) -> list[str]:
    """Measures that lead: the most sensitive one of each kind of record, so that each looks in another way.

    Left out are measures that not every evaluation can take (those that compare with gold among them: of gold itself
    they say nothing) or that expect nothing, and such where gold and vanilla lie no farther apart than the verdict
    needs.

    Args:
        rows: of the forget set, most faithful first.
    """
    found: dict[type, str] = {}
    settings = VerdictSettings()
    for row in rows:
        name, stick = row["measure"], row["yardstick"]
        if OPTIONAL.intersection(MEASURES[name].cost) or not SIGNS[MEASURES[name].higher]:
            continue
        if row["value"] is None or stick is None:
            continue
        reach = Yardstick(**stick).reach(settings.alpha / leads, 1, settings.least_spread)
        way = abs(row["knowing"]["mean"] - row["not_knowing"]["mean"])
        if row["value"] >= least and way > 2 * reach and len(found) < leads:
            found.setdefault(MEASURES[name].reads, name)
    return list(found.values())


def settings_of(results: Mapping[str, Any]) -> VerdictSettings:
    """Settings of `unsee verdict`: default thresholds, with what was learned on the people to choose on."""
    sticks = {
        (row["measure"], row["set"]): Yardstick(**row["yardstick"])
        for row in results["choose"]
        if row["yardstick"] is not None
    }
    return VerdictSettings(lead=tuple(results["lead"]), yardsticks=sticks)


# Tables ---------------------------------------------------------------------------------------------------------------


def table(results: Mapping[str, Any], whole: bool = False) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows for reading: every measure on the forget set, most faithful first; leading ones are marked.

    Args:
        whole: with what the areas come from, which is too wide for a terminal.
    """
    chosen = {row["measure"]: row for row in results["choose"] if row["set"] == FORGET}
    doses = [one["steps"] for one in results["report"][0]["glimpsed"]]
    heads = ["measure", "AUC", "95 %", *(f"{steps} steps" for steps in doses)]
    if whole:
        heads += ["mean AUC, chosen on", "vanilla", "gold", "spreads apart", "not measured"]
    rows = []
    for row in results["report"]:
        if row["set"] == FORGET:
            name, sides = row["measure"], (row["knowing"], row["not_knowing"])
            mark = " (leads)" if name in results["lead"] else "" if row["directed"] else " (no side)"
            cells = [
                name + mark,
                _number(row["value"]),
                f"{row['low']:.2f}–{row['high']:.2f}" if row["n"] else "–",
                *(_number(one["value"]) for one in row["glimpsed"]),
            ]
            if whole:
                cells += [
                    _number(chosen[name]["sensitivity"]),
                    *(_number(side["mean"]) for side in sides),
                    _number(row["apart"], 1),
                    str(sum(side["unscored"] for side in sides)),
                ]
            rows.append(tuple(cells))
    return tuple(heads), rows


def page(results: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    heads, rows = table(results, whole=True)
    return markdown_table(heads, rows, numbers=True)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _rows(results: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """One row per part, set and measure."""
    for half in PARTS:
        for row in results[half]:
            about = {"part": half, **{key: row[key] for key in ("set", "measure", "value", "low", "high", "n")}}
            for side in ("knowing", "not_knowing"):
                about |= {f"{side}.{key}": row[side][key] for key in ("n", "unscored", "effective", "mean")}
            stick = row["yardstick"] or {}
            yield {
                **about,
                **{
                    f"glimpsed.{one['steps']}.{key}": one[key]
                    for one in row["glimpsed"]
                    for key in ("value", "low", "high")
                },
                "sensitivity": row["sensitivity"],
                "directed": row["directed"],
                "spread": stick.get("spread"),
                "degrees": stick.get("degrees"),
                "apart": row["apart"],
                "lead": row["set"] == FORGET and row["measure"] in results["lead"],
            }


# Models that hardly know ----------------------------------------------------------------------------------------------


def train_briefly(
    gold: str, data: UnlearnData, forget: Sequence[str], steps: Iterable[int], seed: int, out: Path
) -> None:
    """Train a gold model as a relearning attacker does, and put it into `out/STEPS` after each of `steps`.

    A vanilla model knows its people so well that almost any measure tells it from gold. What is left after an
    unlearning method is a little knowledge, and a measure that is to find it has to notice as little. Our choice.

    All weights are trained on the training pictures of the forgotten that an evaluation asks about, with their names
    and facts, beside a fresh draw of retained pictures in every step; rates are those of `Relearning`.

    Args:
        gold: its folder or hub id.
        seed: of all draws.
        out: models that stand there are kept, if they were made alike.

    Raises:
        BadInput: a model that stands there was made otherwise, or there is nothing to be seen. GateFailed: a loss is
            not finite.
    """
    folders = {number: out / str(number) for number in sorted(steps)}
    about = {
        "kind": "glimpsed",
        "gold": open_checkpoint(gold)[0].hashes(),
        "data": data.fingerprint,
        "forget": list(forget),
        "seed": seed,
    }
    for number, folder in folders.items():
        made = read_manifest(folder)
        if made and {key: made.get(key) for key in (*about, "steps")} != {**about, "steps": number}:
            raise BadInput(f"{folder}: made for another grid; choose another --out, or add --overwrite")
    if all((folder / MANIFEST).is_file() for folder in folders.values()):
        return
    asked = asked_of(data.train)
    if not asked.of(forget):
        raise BadInput(
            f"{data.source}: no training pictures of the forgotten with questions for names or facts; leave `glimpses` "
            "out, or add some"
        )
    loaded = load_model(gold)
    settings = Relearning(steps=max(folders))

    def some(subjects: Iterable[str]) -> Groups:
        return tuple(group for s in subjects for group in list(asked.of([s]).pictures.values())[: PICTURES["train"]])

    attack = Attack(0, 0, tuple(forget), (), some(forget), some(asked.without(forget).subjects), seed)
    batches = attack.steps(settings)
    with trained_by(settings, loaded, attack) as parameters:
        loaded.checkpoint_keys(parameters)

        def after_step(number: int) -> dict[str, float]:
            if number in folders and not (folders[number] / MANIFEST).is_file():
                edits = loaded.stored({name: p.detach().clone() for name, p in parameters.items()})
                made = {**about, "steps": number}
                write_edited(loaded.folder, edits, folders[number], made, opens=partial(opens_alike, loaded))
            return {}

        phase = Phase("both", lambda: next(batches), lambda batch: answer_losses(loaded, batch))
        optimiser = torch.optim.AdamW(parameters.values(), lr=settings.rate, fused=True)
        run([phase], optimiser, settings.steps, "glimpsing", None, settings.clip_norm, after_step)
