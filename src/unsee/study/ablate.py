"""Methods and settings compared at matched forgetting, each arm with its own learning rate.

Two arms cannot be compared after the same number of steps: one of them has simply forgotten more. So every run is
measured along its way, and read off where it has forgotten as much as the gold model (or down to a fixed level).
The learning rate of an arm is chosen on validation pictures; what is printed comes from test pictures.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unsee.checkpoint.folder import CheckpointFolder, write_json
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput, GateFailed
from unsee.evaluation.answers import is_correct
from unsee.evaluation.engine.teacher_forcing import CachedExam
from unsee.evaluation.intervals import share
from unsee.evaluation.predict import generate, longest_answer
from unsee.evaluation.questions import RECOGNITION, Question
from unsee.methods import FeatureMethod, FeatureStudy
from unsee.models.loading import load_model, locate
from unsee.provenance import origin
from unsee.reporting.parts import mean
from unsee.storage import alone
from unsee.study.grid import AblationGrid, Arm
from unsee.study.scenario import Resolved, begin, digest, kept, resolve, stand_ready, write_results
from unsee.study.summary import pooled
from unsee.subspace.nullspace import relative_drift

SPLITS = ("validation", "test")  # learning rates are chosen on the first, the second is printed
READ = ("forget", "retain", "attributes")
ASKED_AT_ONCE = 256  # text questions per call of `generate`
Point = dict[str, Any]
Trajectory = Sequence[Point]


@alone
def ablate(grid: AblationGrid, out: Path, resume: bool = False) -> dict[str, Any]:
    """Run every arm with every learning rate and seed on every case, and compare at matched forgetting.

    Leaves `ablation.json`, `ablation.csv`, `ablation.html`, `figures/`, and one file per run in `cases/NAME/runs/`,
    named after everything that shapes it: `resume` keeps those of an earlier, also of a smaller, grid.

    Raises:
        BadInput: something in the grid cannot be used.
    """
    cases = [resolve(case) for case in grid.cases]
    for case in cases:
        if not case.data.validation.of(case.subjects).pictured:
            raise BadInput(f"case '{case.case.name}': no validation pictures of the forget set to choose by")
    begin(out, grid, resume)
    measured, runs = [], []
    for case in cases:
        about, done = _one_case(case, grid, out / "cases" / case.case.name)
        measured.append(about)
        runs += done
    results = {**summarise(grid, measured, runs), "provenance": origin()}
    results["provenance"]["runs_made_at"] = sorted({_commit_of(one) for one in runs})
    write_results(out, "ablation", results, _rows(results))
    return results


def _commit_of(run: Mapping[str, Any]) -> str:
    return f"{run['commit'] or 'no commit known'}{' with changes' if run['dirty'] else ''}"


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for table in results["tables"]:
        for arm in table["arms"]:
            for level, at in arm["at"].items():
                row = {"family": table["family"], "table": table["name"], "arm": arm["name"], "level": level}
                row |= {key: at[key] for key in ("learning_rate", "runs", "reached", "step")}
                for what in READ:
                    row |= {f"{what}.{end}": (at[what] or {}).get(end) for end in ("value", "low", "high")}
                yield row | {f"drift.{what}": (at["drift"] or {}).get(what) for what in ("statistics", "unseen")}


# Runs -----------------------------------------------------------------------------------------------------------------


def trial(arm: Arm, rate: float) -> FeatureMethod:
    """The method of an arm with one of its learning rates."""
    return cast(FeatureMethod, dataclasses.replace(arm.method, learning_rate=rate))  # type: ignore[type-var]


def _one_case(case: Resolved, grid: AblationGrid, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Vanilla and gold models measured, and all runs; what lies in `folder` already is not made again."""
    vanilla, golds = stand_ready(case, folder / "models")
    asked = list(questions(case.data, case.subjects, grid.forget_pictures, grid.retain_pictures))
    hashes = [CheckpointFolder(locate(path)).hashes() for path in (vanilla, *golds)]
    shown = {"forget": grid.forget_pictures, "retain": grid.retain_pictures}
    study = {"data": case.data.fingerprint, "forget": list(case.subjects), "pictures_per_subject": shown}
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    standing = folder / f"models-{digest({**study, 'models': hashes})}.json"
    known = kept(standing)
    if known is None:
        known = {
            "vanilla": _standing(vanilla, asked),
            "golds": [_standing(path, asked) for path in golds],
            "text": _text(vanilla, case.data, case.subjects),
        }
        write_json(standing, known)

    wanted: dict[str, tuple[dict[str, Any], FeatureMethod]] = {}
    for arm in (arm for table in grid.tables for arm in table.arms):
        for method in (trial(arm, rate) for rate in arm.learning_rates):
            for seed in grid.seeds:
                settings = dataclasses.asdict(method)  # type: ignore[call-overload]
                run = {"method": method.name, "settings": settings, "seed": seed}
                about = {**study, "model": hashes[0], "checkpoints": grid.checkpoints, **run}
                wanted[digest(about)] = (run, method)
    runs, bench = [], None
    for name, (run, method) in sorted(wanted.items(), key=lambda item: item[1][1].last_blocks):
        file = folder / "runs" / f"{name}.json"
        done = kept(file)
        if done is None:
            if bench is None or bench.last_blocks != method.last_blocks:
                bench = None  # the old one leaves memory first
                bench = AblationRuns(case, vanilla, method.last_blocks, asked)
            made = origin()
            done = {"case": case.case.name, **run, **bench.run(method, run["seed"], grid.checkpoints)}
            done |= {"commit": made["commit"], "dirty": made["dirty"], "created": made["created"]}
            write_json(file, done)
        runs.append(done)
    return {**case.about, **known}, runs


class AblationRuns:
    """One vanilla model, opened once for all runs that edit the same blocks.

    The whole model is in memory, because answers are measured; methods still see its visual module alone.
    """

    def __init__(self, case: Resolved, vanilla: str, last_blocks: int, asked: Sequence[Question]) -> None:
        self.last_blocks, self._asked = last_blocks, asked
        loaded = load_model(vanilla, torch.float32)
        data, visual = case.data, loaded.visual
        forget, retain = data.train.of(case.subjects), data.train.without(case.subjects)
        held_back = data.validation.of(case.subjects)
        self._study = FeatureStudy.of(visual, loaded.batcher, forget, retain, held_back, last_blocks)
        self._moments = self._study.moments(visual.editable(last_blocks))
        self._exam = CachedExam(loaded, [q.example for q in asked], self._study.cut)
        unseen = {q.example.image for q in asked if (q.split, q.part) == ("validation", "retain")}
        self._unseen = torch.tensor([i for i, one in enumerate(self._exam.pictures) if one in unseen]).long()
        self._start = {name: p.detach().clone() for name, p in visual.named_parameters().items()}
        self._first = self._point(0, {})

    def run(self, method: FeatureMethod, seed: int, checkpoints: Sequence[int]) -> dict[str, Any]:
        """One run from the vanilla weights: its way (`trajectory`, from step 0), and seconds without measuring.

        A run that breaks down ends early and says why (`stopped`).
        """
        self._restore()
        torch.manual_seed(seed)
        begun, measuring = time.perf_counter(), 0.0
        plan = method.plan(self._study, method.moments(self._study))
        trajectory = [self._first]

        def after_step(step: int) -> Mapping[str, float]:
            nonlocal measuring
            said = plan.after_step(step) if plan.after_step is not None else {}
            if step in checkpoints or step == plan.steps:
                paused = time.perf_counter()
                trajectory.append(self._point(step, plan.edited))
                measuring += time.perf_counter() - paused
            return said

        stopped = None
        try:
            dataclasses.replace(plan, after_step=after_step).carry_out(f"{method.name} {seed}")
        except GateFailed as problem:
            stopped = str(problem)
        seconds = time.perf_counter() - begun - measuring
        return {"trajectory": trajectory, "stopped": stopped, "seconds": seconds}

    @torch.no_grad()
    def _restore(self) -> None:
        for name, parameter in self._study.visual.named_parameters().items():
            parameter.copy_(self._start[name])

    @torch.no_grad()
    def _point(self, step: int, edited: Mapping[str, Tensor]) -> dict[str, Any]:
        """Scores and drift of the visual module as it stands.

        Raises:
            GateFailed: a weight is not finite.
        """
        for name, weight in edited.items():
            if not weight.isfinite().all():
                raise GateFailed(f"'{name}' is no longer finite after step {step}; try a smaller learning rate")
        tokens = self._exam.tokens()
        before, now = (packed[self._unseen].states for packed in (self._exam.reference, tokens))
        drifts = [
            relative_drift(weight - self._start[name], self._start[name], self._moments[layer].mean)
            for name, weight in edited.items()
            if (layer := name.removesuffix(".weight")) in self._moments
        ]
        drift = {
            "statistics": sum(drifts) / len(drifts) if drifts else 0.0,
            "unseen": ((now - before).norm() / before.norm()).item() if len(before) else None,
        }
        return {"step": step, **scores(self._asked, self._exam.right(tokens)), "drift": drift}


# Matched forgetting ---------------------------------------------------------------------------------------------------


def at_level(trajectory: Trajectory, split: str, level: float) -> Point | None:
    """Where the forget set is first answered no better than `level` on `split`, linear between two measured points.

    Returns:
        a point with everything interpolated, the ends of intervals too; None if the run never comes there.
    """
    before: Point | None = None
    for point in trajectory:
        left = point[split]["forget"]["value"]
        if left <= level:
            if before is None:
                return point
            was = before[split]["forget"]["value"]
            return cast(Point, _between(before, point, (was - level) / (was - left)))
        before = point
    return None


def _between(before: Any, after: Any, part: float) -> Any:
    if isinstance(before, dict):
        return {key: _between(value, after.get(key), part) for key, value in before.items()}
    return None if before is None or after is None else before + part * (after - before)


def summarise(grid: AblationGrid, cases: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every table of the grid, once per family.

    Args:
        cases: `name`, `family`, scores of `vanilla` and of the `golds`, `text`.
        runs: `case`, `method`, `settings`, `seed`, `trajectory`, `stopped`, `seconds`.
    """
    made: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in runs:
        made.setdefault((one["case"], _key(one["method"], one["settings"])), []).append(one)
    tables = []
    for family in dict.fromkeys(case["family"] for case in cases):
        own = [case for case in cases if case["family"] == family]
        levels = _levels(own, grid.levels)
        for table in grid.tables:
            arms = []
            for arm in table.arms:
                tried = {
                    rate: [one for case in own for one in made.get((case["name"], _key_of(arm, rate)), ())]
                    for rate in arm.learning_rates
                }
                arms.append(_arm(arm, tried, levels))
            tables.append({"family": family, "name": table.name, "title": table.title, "arms": arms})
    return {"kind": "ablation", "tables": tables, "cases": list(cases)}


def _key(method: str, settings: Mapping[str, Any]) -> str:
    return json.dumps([method, settings], sort_keys=True)


def _key_of(arm: Arm, rate: float) -> str:
    return _key(arm.method.name, dataclasses.asdict(trial(arm, rate)))  # type: ignore[call-overload]


Levels = dict[str, dict[str, dict[str, float]]]


def _levels(cases: Sequence[Mapping[str, Any]], fixed: Sequence[float]) -> Levels:
    """Name of a level -> split -> case -> share of right answers about the forget set.

    Gold is a level where every case has a gold model; the mean of several.
    """
    levels: Levels = {}
    if all(case["golds"] for case in cases):
        levels["gold"] = {
            split: {
                case["name"]: sum(gold[split]["forget"]["value"] for gold in case["golds"]) / len(case["golds"])
                for case in cases
            }
            for split in SPLITS
        }
    for level in fixed:
        levels[f"{level:.0%}"] = {split: {case["name"]: level for case in cases} for split in SPLITS}
    return levels


def _arm(arm: Arm, tried: Mapping[float, Sequence[dict[str, Any]]], levels: Levels) -> dict[str, Any]:
    """One arm at every level, and its way at the learning rate of the first level that it reached."""
    at = {name: _at(tried, level) for name, level in levels.items()}
    reached = [found["learning_rate"] for found in at.values() if found["learning_rate"] is not None]
    shown = reached[0] if reached else arm.learning_rates[-1]
    return {
        "name": arm.name,
        "method": arm.method.name,
        "settings": dataclasses.asdict(arm.method),  # type: ignore[call-overload]
        "learning_rates": list(arm.learning_rates),
        "stopped": [one["stopped"] for ones in tried.values() for one in ones if one["stopped"]],
        "at": at,
        "way": {"learning_rate": shown, "points": _way(tried[shown])},
    }


def _at(tried: Mapping[float, Sequence[dict[str, Any]]], level: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Choose the learning rate on validation pictures, then read test pictures.

    Best is the rate at which most runs reach the level; among those, which retains most there; then the smaller one.
    """

    def read(rate: float, split: str) -> list[tuple[dict[str, Any], Point]]:
        found = ((one, at_level(one["trajectory"], split, level[split][one["case"]])) for one in tried[rate])
        return [(one, point) for one, point in found if point is not None]

    choice: dict[float, tuple[int, float | None]] = {}
    for rate in tried:
        points = read(rate, "validation")
        kept = pooled([(one["case"], point["validation"]["retain"]) for one, point in points])
        choice[rate] = len(points), kept["value"] if kept else None
    rate = max(choice, key=lambda r: (choice[r][0], choice[r][1] or 0.0, -r))
    chosen = choice[rate][0] > 0
    points = read(rate, "test") if chosen else []
    return {
        "learning_rate": rate if chosen else None,
        "edge": chosen and len(tried) > 1 and rate in (min(tried), max(tried)),
        "tried": [{"learning_rate": r, "reached": n, "validation": kept} for r, (n, kept) in choice.items()],
        "runs": len(tried[rate]),
        "reached": len(points),
        "step": mean([point["step"] for _, point in points]),
        **{what: pooled([(one["case"], point["test"][what]) for one, point in points]) for what in READ},
        "drift": {what: mean([p["drift"][what] for _, p in points]) for what in ("statistics", "unseen")},
        "seconds": mean([one["seconds"] for one in tried[rate]]),
    }


def _way(runs: Sequence[dict[str, Any]]) -> list[Point]:
    """Mean scores on test pictures at the steps that every run came to."""
    ways = [{point["step"]: point["test"] for point in one["trajectory"]} for one in runs]
    steps = [step for step in ways[0] if all(step in way for way in ways)] if ways else []
    return [{"step": s, **{what: mean([way[s][what]["value"] for way in ways]) for what in READ}} for s in steps]


# Measuring ------------------------------------------------------------------------------------------------------------


def questions(data: UnlearnData, forget: Sequence[str], of_forget: int, of_retain: int) -> Iterator[Question]:
    """What is measured: all questions about a few pictures of the forget set, recognition of the retain set."""
    for split in SPLITS:
        pictured = data.split(split).pictured
        for e in pictured.of(forget).first_pictures(of_forget).probing("identity", "fact", "attribute"):
            yield Question(e, split, "forget")
        for e in pictured.without(forget).first_pictures(of_retain).probing("identity", "fact"):
            yield Question(e, split, "retain")


def scores(asked: Sequence[Question], right: Sequence[bool]) -> dict[str, Any]:
    """Shares of right answers per split: `forget` and `retain` (names and facts), `attributes` (forget set)."""
    kinds = {
        "forget": ("forget", RECOGNITION),
        "retain": ("retain", RECOGNITION),
        "attributes": ("forget", ("attribute",)),
    }
    found: dict[str, Any] = {}
    for split in SPLITS:
        found[split] = {}
        for what, (part, probes) in kinds.items():
            chosen = [
                (r, q.example.subject)
                for q, r in zip(asked, right, strict=True)
                if q.split == split and q.part == part and q.example.probe in probes
            ]
            found[split][what] = share([r for r, _ in chosen], [subject for _, subject in chosen])
    return found


def _standing(path: str, asked: Sequence[Question]) -> dict[str, Any]:
    """A model as it is."""
    loaded = load_model(path, torch.float32)
    exam = CachedExam(loaded, [q.example for q in asked], len(loaded.visual.blocks))
    return scores(asked, exam.right(exam.reference))


def _text(path: str, data: UnlearnData, forget: Sequence[str]) -> dict[str, Any]:
    """Text questions, asked of the vanilla model: no feature-level method changes what answers them."""
    loaded = load_model(path, torch.float32)
    found = {}
    for part, split in (("forget", data.train.of(forget)), ("retain", data.train.without(forget))):
        examples = split.text_only.examples
        longest = longest_answer(loaded, examples)
        said: list[str] = []
        for start in range(0, len(examples), ASKED_AT_ONCE):
            chunk = examples[start : start + ASKED_AT_ONCE]
            said += generate(loaded, chunk, longest)
        right = [is_correct(words, e.answer, e.choices) for words, e in zip(said, examples, strict=True)]
        found[part] = share(right, [e.subject for e in examples])
    return found
