"""Settings for every method, each searched under the same budget, on people nobody reports about, then frozen.

Judged is what `compare` reports, on the *test pictures of the validation people* against their own gold models: methods
themselves may look at validation pictures (adaptive weights), and nothing of these people is ever reported.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import CheckpointFolder, read_manifest, write_json
from unsee.errors import BadInput, GateFailed
from unsee.evaluation.predict import predict
from unsee.evaluation.questions import Question, questions
from unsee.evaluation.score import score
from unsee.journal import Journal
from unsee.methods import METHODS, Method
from unsee.models.loading import load_model, locate
from unsee.parallel import side_by_side
from unsee.provenance import origin
from unsee.settings import named_method
from unsee.storage import alone, replace_text
from unsee.strict_toml import Keys, as_it_is, assignments, mapping, name, open_toml, tables, text
from unsee.study.grid import Arm, CompareGrid, Search
from unsee.study.scenario import (
    Resolved,
    as_json,
    begin,
    build_models,
    digest,
    gold_role,
    keep_apart,
    kept,
    resolve,
    same_people,
    stand_ready,
    unlearned,
    write_results,
)
from unsee.study.summary import DROPS, DistanceWeights, Share, gold_of, read_against, shares_of, spread

FROZEN = "settings.toml"
OPTION = "--settings"


@alone
def search(grid: CompareGrid, out: Path, resume: bool = False, jobs: int = 1, link: bool = False) -> dict[str, Any]:
    """Try every combination of settings of every arm on the people of `grid.search`, and freeze the best.

    Leaves `settings.toml`, `search.json`, `search.csv`, `search.html`, and in `cases/NAME/` models, answers and one
    file per finished run, named after everything that shapes it: `resume` does not run those again. Unlearned models
    are deleted once they have answered.

    Args:
        jobs: arms that are searched side by side, see `parallel.side_by_side`.
        link: of the models it writes, as for `unlearn`.

    Raises:
        BadInput: something in the grid cannot be used, or people stand in both halves of it. GateFailed: no try of some
            method stayed within the budget; what was found for the others is written.
    """
    if grid.search is None:
        raise BadInput("--grid: no table [search]; it says on which people settings are searched, and how long")
    searched, cases = grid.search, [resolve(case) for case in grid.search.cases]
    keep_apart([resolve(case) for case in grid.cases], cases)
    begin(out, grid, resume)
    (out / FROZEN).unlink(missing_ok=True)
    folders = {case.case.name: out / "cases" / case.case.name for case in cases}
    build_models({folders[case.case.name] / "models": case for case in cases}, jobs)
    given = {case.case.name: (case, searched, folders[case.case.name], link) for case in cases}
    ready = {bench.case.case.name: bench for bench in side_by_side("measuring models", _bench, given, jobs)}
    benches = [ready[case.case.name] for case in cases]
    tasks = {
        f"{', '.join(arm.name for arm in group)} on {family}": (family, group)
        for family in dict.fromkeys(case.family for case in cases)
        for group in _apart(grid.arms)
    }
    carry_out = partial(_search, benches, searched, grid.weights)
    found = {(family, arm): tries for family, arm, tries in side_by_side("searching", carry_out, tasks, jobs)}
    arms, methods = [], {}
    for family in dict.fromkeys(case.family for case in cases):
        for arm in grid.arms:
            tries = found[family, arm.name]
            best = pick(tries)
            for number, tried in enumerate(tries):
                tried["status"] = "chosen" if number == best else tried["status"]
                tried["searched"] = _searched(arm, arm.tries[number])
            arms.append({"family": family, "arm": arm.name, "method": arm.method.name, "chosen": best, "tries": tries})
            if best is not None:
                methods[family, arm.name] = arm.tries[best]
    results: dict[str, Any] = {
        "kind": "search",
        "weights": vars(grid.weights),
        **{key: getattr(searched, key) for key in ("seconds", "tries", "pictures")},
        "arms": arms,
        "cases": [bench.about for bench in benches],
        "provenance": {**origin(), "jobs": jobs},
    }
    write_results(out, "search", results, _rows(results))
    freeze(out / FROZEN, results, methods)
    lost = [f"'{arm['arm']}' on {arm['family']}" for arm in arms if arm["chosen"] is None]
    if lost:
        raise GateFailed(f"no settings for {', '.join(lost)}: every try broke down or took more than the budget")
    return results


def pick(tries: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of the try with the smallest total among those within the budget, the first of equals; None: none."""
    able = [i for i, one in enumerate(tries) if one["status"] == "tried" and one["total"] is not None]
    return min(able, key=lambda i: (tries[i]["total"], i), default=None)


def _searched(arm: Arm, method: Method) -> dict[str, Any]:
    """Those settings in which the tries of an arm differ."""
    every = [as_json(one) for one in arm.tries]
    own = as_json(method)
    return {key: own[key] for key in own if any(one[key] != own[key] for one in every)}


def _apart(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that can be searched at the same time: those that have a try in common, which is run once, stay together."""
    groups: list[list[Arm]] = []
    for arm in arms:
        near = [group for group in groups if any(method in other.tries for other in group for method in arm.tries)]
        groups = [group for group in groups if group not in near] + [[*(one for group in near for one in group), arm]]
    return groups


def _search(
    benches: Sequence[SearchCase], searched: Search, weights: DistanceWeights, family: str, arms: Sequence[Arm]
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """All tries of some arms, one after the other: where a try is stopped depends on the best one before it."""
    own = [bench for bench in benches if bench.case.family == family]
    for arm in arms:
        tries: list[dict[str, Any]] = []
        for method in arm.tries:
            tries.append(_try(own, method, searched, weights, _least(tries)))
        yield family, arm.name, tries


def _try(
    benches: Sequence[SearchCase], method: Method, searched: Search, weights: DistanceWeights, least: float
) -> dict[str, Any]:
    """One combination of settings on all cases of a family, up to the run after which it cannot be chosen any more."""
    runs: list[dict[str, Any]] = []
    for bench in benches:
        for seed in searched.seeds:
            if not runs or _status(runs, searched.seconds, least) == "tried":
                runs.append(bench.run(method, seed, weights))
    return judged(runs, searched.seconds, least) | {"settings": as_json(method)}


def _least(tries: Sequence[Mapping[str, Any]]) -> float:
    """What the totals of the best try so far add up to; infinite if there is none."""
    best = pick(tries)
    return math.inf if best is None else _sum(tries[best]["runs"])


def _sum(runs: Sequence[Mapping[str, Any]]) -> float:
    return math.fsum(run["total"] for run in runs if run["total"] is not None)


def judged(runs: Sequence[Mapping[str, Any]], budget: float, least: float = math.inf) -> dict[str, Any]:
    """The runs of one try together.

    Args:
        runs: `failed`, `seconds`, and `total`, `distance`, `drops` as `reading.read_against` gives them.
        budget: seconds that none of the edits may exceed.
        least: what the totals of another try on all cases add up to. No total is below zero, so one whose runs add up
            to more is beaten, whatever its other runs would bring.

    Returns:
        `status` (`tried`, `beaten`, `over budget` or `broke down`), means of the scores, longest edit, and the runs.
    """
    return {
        "status": _status(runs, budget, least),
        "total": spread([run["total"] for run in runs])["mean"],
        "distance": spread([run["distance"] for run in runs])["mean"],
        "drops": {what: spread([run["drops"][what] for run in runs])["mean"] for what in DROPS},
        "seconds": spread([run["seconds"] for run in runs])["worst"],
        "runs": list(runs),
    }


def _status(runs: Sequence[Mapping[str, Any]], budget: float, least: float) -> str:
    if any(run["failed"] for run in runs):
        return "broke down"
    if any(run["seconds"] > budget for run in runs):
        return "over budget"
    return "beaten" if _sum(runs) > least else "tried"


class SearchCase:
    """One case with its vanilla and gold models, measured; tries are run on it."""

    def __init__(self, case: Resolved, searched: Search, folder: Path, link: bool = False) -> None:
        self.case, self._folder, self._link = case, folder, link
        self._vanilla, golds = stand_ready(case, folder / "models")
        asked = questions(case.data, case.subjects, {"train": 0, "validation": 0, "test": searched.pictures})
        self._asked: list[Question] = [q for q in asked if q.split not in ("strangers", "bystanders")]
        self._names = tuple(dict.fromkeys(case.data.names.values()))
        self._study = {
            "data": case.data.fingerprint,
            "forget": list(case.subjects),
            "pictures": searched.pictures,
        }
        self._hashes = CheckpointFolder(locate(self._vanilla)).hashes()
        (folder / "tries").mkdir(parents=True, exist_ok=True)
        self._vanilla_shares = self._standing("vanilla", self._vanilla)
        self._golds = [self._standing(gold_role(i), path) for i, path in enumerate(golds)]
        self._gold = gold_of(self._golds)

    @property
    def about(self) -> dict[str, Any]:
        """The case for a results file."""
        shares = {"vanilla": self._vanilla_shares, "golds": self._golds}
        return {**self.case.about, "fingerprint": self._study["data"], "gold": self._gold, "shares": shares}

    def run(self, method: Method, seed: int, weights: DistanceWeights) -> dict[str, Any]:
        """One unlearning run with its scores; one that is finished is only read."""
        about = {"method": method.name, "settings": as_json(method), "seed": seed}
        key = digest({**self._study, "model": self._hashes, **about})
        file, model = self._folder / "tries" / f"{key}.json", self._folder / "models" / f"try-{key}"
        done = kept(file)
        if done is None:
            failed = unlearned(self.case, self._vanilla, method, seed, model, self._link)
            seconds = None if failed else read_manifest(model)["seconds"]
            shares = None if failed else self._answers(f"try-{key}", str(model))
            made = origin()
            done = {"case": self.case.case.name, **about, "failed": failed, "seconds": seconds, "shares": shares}
            write_json(file, {**done, **{what: made[what] for what in ("commit", "dirty", "created")}})
            shutil.rmtree(model, ignore_errors=True)
        return {**done, **read_against(self._vanilla_shares, self._gold, done["shares"], weights)}

    def _standing(self, role: str, path: str) -> dict[str, Share]:
        """Scores of a model as it is."""
        file = self._folder / f"{role}-{digest({**self._study, 'model': CheckpointFolder(locate(path)).hashes()})}.json"
        known = kept(file)
        if known is None:
            known = self._answers(file.stem, path)
            write_json(file, known)
        return known

    def _answers(self, name: str, path: str) -> dict[str, Share]:
        loaded = load_model(path)
        loaded.visual.named_parameters()
        loaded.batcher.check([q.example for q in self._asked])
        identity = {**self._study, "model": loaded.folder.hashes()}
        journal = Journal(self._folder / "predictions" / f"{name}.jsonl", identity)
        lines = predict(loaded, name, self._asked, self._names, journal, resume=True)
        choices = {q.example.question: q.example.choices for q in self._asked if q.example.choices}
        return shares_of(score(lines, self._names, choices))


def _bench(case: Resolved, searched: Search, folder: Path, link: bool) -> list[SearchCase]:
    return [SearchCase(case, searched, folder, link)]


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per try."""
    for arm in results["arms"]:
        for number, tried in enumerate(arm["tries"]):
            about = {"family": arm["family"], "arm": arm["arm"], "try": number, "status": tried["status"]}
            drops = {f"drop.{what}": value for what, value in tried["drops"].items()}
            scores = {key: tried[key] for key in ("total", "distance", "seconds")}
            yield {**about, **scores, **drops, "settings": json.dumps(tried["searched"])}


# Settings that were found, in a TOML file that `unsee compare --settings` reads back exactly --------------------------


@dataclass(frozen=True)
class Frozen:
    """The best settings of every method, and on whom they were found.

    Attributes:
        chosen: (family, arm) -> the method with its settings.
        people: DATA argument -> fingerprint of the data that was searched on.
        about: what a comparison records: file, SHA-256, when and at which commit it was made.
    """

    chosen: Mapping[tuple[str, str], Method]
    people: Mapping[str, str]
    about: Mapping[str, Any]

    def arms(self, arms: Sequence[Arm], family: str) -> tuple[Arm, ...]:
        """The arms of a grid, each with the settings found for it.

        Raises:
            BadInput: nothing was found for one, or for another method under its name.
        """
        found = []
        for arm in arms:
            method = self.chosen.get((family, arm.name))
            if method is None or method.name != arm.method.name:
                raise BadInput(
                    f"{OPTION} {self.about['file']}: nothing for '{arm.name}' ({arm.method.name}) on {family}; "
                    "run `unsee study search` with this grid, or leave the method out"
                )
            found.append(Arm(arm.name, method))
        return tuple(found)

    def keep_apart(self, cases: Sequence[Resolved]) -> None:
        """Refuse to report on people on whom these settings were chosen.

        Raises:
            BadInput: names the case.
        """
        for case in cases:
            for source, fingerprint in self.people.items():
                if same_people(case.data.source, source) or case.data.fingerprint == fingerprint:
                    raise BadInput(
                        f"case '{case.case.name}': {case.data.source} shows people on whom {self.about['file']} was "
                        "searched; report on others, e.g. people of another seed"
                    )


def freeze(file: Path, results: Mapping[str, Any], methods: Mapping[tuple[str, str], Method]) -> None:
    """Write what a search found: settings to use first, then every try with its score, then where all that comes from.

    Args:
        results: `search.json`.
        methods: (family, arm) -> the method with the settings that were chosen.
    """
    use = "`unsee compare --grid GRID --settings THIS`"
    lines = [f"# Found by `unsee study search`, for {use}. Do not edit: search again."]
    for (family, arm), method in methods.items():
        lines += ["", "[[chosen]]", *assignments({"family": family, "arm": arm, "method": method.name})]
        lines += ["[chosen.settings]", *assignments(as_json(method))]
    for arm in results["arms"]:
        for tried in arm["tries"]:
            about = {"family": arm["family"], "arm": arm["arm"], "status": tried["status"]}
            scores = {key: tried[key] for key in ("total", "distance", "seconds")}
            scores |= {f"{what}_drop": value for what, value in tried["drops"].items()}
            known = {key: value for key, value in scores.items() if value is not None}
            lines += ["", "[[tries]]", *assignments({**about, **known})]
            lines += ["[tries.settings]", *assignments(tried["searched"])]
    for case in results["cases"]:
        about = {key: case[key] for key in ("name", "family", "data", "fingerprint", "request")}
        lines += ["", "[[people]]", *assignments(about)]
    made = results["provenance"]
    record = {key: made[key] for key in ("created", "command", "commit", "dirty") if made.get(key) is not None}
    lines += ["", "[search]", *assignments({"seconds": results["seconds"], "tries": results["tries"]})]
    lines += ["[search.weights]", *assignments(results["weights"]), "", "[provenance]", *assignments(record)]
    replace_text(file, "\n".join(lines) + "\n")


def read_frozen(file: Path) -> Frozen:
    """What `freeze` wrote.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = open_toml(file, OPTION)
    chosen: dict[tuple[str, str], Method] = {}
    for i, item in enumerate(keys.take("chosen", tables)):
        one = Keys(item, f"{keys.where}chosen[{i}].")
        place = one.take("family", text), one.take("arm", name)
        method, settings = one.take("method", text), one.take("settings", mapping)
        one.done()
        if method not in METHODS:
            raise BadInput(f"{one.where}method: '{method}' is unknown; expected one of {', '.join(METHODS)}")
        if place in chosen:
            raise BadInput(f"{one.where}arm: '{place[1]}' on {place[0]} is given twice; search again")
        chosen[place] = named_method(method, settings, f"{one.where}settings: ")
    people = {}
    for i, item in enumerate(keys.take("people", tables)):
        one = Keys(item, f"{keys.where}people[{i}].")
        people[one.take("data", text)] = one.take("fingerprint", text)
    made = keys.take("provenance", mapping)
    for rest in ("tries", "search"):
        keys.take(rest, as_it_is, None)
    keys.done()
    about = {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **made}
    return Frozen(chosen, people, about)
