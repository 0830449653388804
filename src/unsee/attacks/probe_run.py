"""Train the same linear probes on the states of several models, and read each stage against gold and random weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsee.attacks.probe import Probe, Probing
from unsee.attacks.relearn import Tally
from unsee.attacks.relearn_tally import cell, gain
from unsee.attacks.stages import random_model, states
from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.examples import ImageSource, Split, UnlearnData
from unsee.durable import replace_text
from unsee.errors import BadInput
from unsee.evaluation.questions import warned
from unsee.journal import Journal
from unsee.lock import alone
from unsee.methods.features import evenly
from unsee.models.loading import load_model, open_checkpoint
from unsee.provenance import origin
from unsee.reporting.probing import GOLD, GROUPS, RANDOM, csv_rows, page
from unsee.table import table_text

LINES, RESULT, TABLE, PAGE = "probes.jsonl", "probes.json", "probes.csv", "probes.html"
RESERVED = (RANDOM, "settings", "provenance")
QUESTION = "Who is this?"  # where the data asks nobody's name

Record = dict[str, Any]
"""One model: `role`, `sha256`, `seconds`, `image_backend` and `stages`, each with its `width`, `ridge`, `left_out` and
`right`: subject -> test pictures named right, test pictures."""


@dataclass(frozen=True)
class Lesson:
    """Whom probes are to tell apart, and on which pictures; the same for every model.

    Attributes:
        forget, others: subjects, forgotten and retained.
        learn: training and validation pictures with their subject. test: test pictures.
        question: put to the language model about every picture.
    """

    forget: tuple[str, ...]
    others: tuple[str, ...]
    learn: Mapping[ImageSource, str]
    test: Mapping[ImageSource, str]
    question: str


def lesson(data: UnlearnData, forget: Sequence[str], settings: Probing) -> Lesson:
    """The pictures of the forget subjects, and of others among whom they are to be found.

    One probe tells all of them apart, so one forgotten subject is enough: it is then told from the retained.

    Raises:
        BadInput: a forget subject with fewer than two pictures to learn from or no test picture, or no retained subject
            that has them.
    """

    def some(split: Split, number: int) -> dict[ImageSource, str]:
        return {image: group[0].subject for image, group in split.pictured.first_pictures(number).pictures.items()}

    learn = {**some(data.train, settings.pictures), **some(data.validation, settings.pictures)}
    test = some(data.test, settings.test_pictures)
    to_learn, to_test = list(learn.values()), set(test.values())
    fit = [s for s in dict.fromkeys(to_learn) if s in to_test and to_learn.count(s) > 1]
    for subject in forget:
        if subject not in fit:
            raise BadInput(
                f"{data.source}: '{subject}' has {to_learn.count(subject)} training and validation pictures to learn "
                f"from and {'some' if subject in to_test else 'no'} test pictures; a probe needs two and one"
            )
    retained = [s for s in fit if s not in forget]
    if not retained:
        raise BadInput(f"{data.source}: no retained subject has two pictures to learn from and one to test; add some")
    others = tuple(retained[i] for i in evenly(len(retained), settings.others).tolist())
    known = {*forget, *others}
    asked = [e.question for e in data.train.pictured if e.probe == "identity"]
    return Lesson(
        tuple(forget),
        others,
        {image: subject for image, subject in learn.items() if subject in known},
        {image: subject for image, subject in test.items() if subject in known},
        asked[0] if asked else QUESTION,
    )


@alone
def probe(
    models: Mapping[str, str],
    data: UnlearnData,
    forget: Sequence[str],
    settings: Probing,
    seed: int,
    out: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Write `probes.jsonl`, one line per finished model, `probes.json`, `probes.csv` and `probes.html` into `out`.

    Args:
        models: role -> folder or hub id; they are only read. To them comes `random`: the first one's configuration.
        forget: subjects that were to be forgotten.
        seed: of the random weights; nothing else is drawn.
        resume: keep finished models of a broken run, as far as they have the same weights; others may be added.

    Returns:
        the content of `probes.json`.

    Raises:
        BadInput: a model that does not load, one of other stages than the first, data without the pictures probes need,
            or `resume` where probes of other data or settings stand.
    """
    for role in models:
        if role in RESERVED:
            raise BadInput(f"--model {role}={models[role]}: '{role}' is a key of {RESULT}; choose another role")
    plan = lesson(data, forget, settings)
    about = {role: _about(path) for role, path in models.items()}
    warnings = warned(models, data.source, forget, data.fingerprint)
    first = next(iter(models))
    about[RANDOM] = {
        "kind": f"configuration of {first}, weights drawn with seed {seed}",
        "sha256": about[first]["sha256"],
    }
    identity = {
        "data": data.fingerprint,
        "forget": list(forget),
        "seed": seed,
        "settings": dataclasses.asdict(settings),
    }
    journal = Journal(out / LINES, identity, "probes of other data or settings")
    done = {record["role"]: record for record in journal.left(resume)}
    done = {role: done[role] for role in about if role in done and done[role]["sha256"] == about[role]["sha256"]}
    begun = False
    for role in about:
        if role not in done:
            path = models.get(role, models[first])
            record = _examined(role, path, seed if role == RANDOM else None, plan, settings)
            _same_stages({**done, role: record})
            if not begun:  # as late as this: if the first model does not load, older results stay
                for stale in (RESULT, TABLE, PAGE):
                    (out / stale).unlink(missing_ok=True)
                journal.begin(done.values())
                begun = True
            done[role] = {**record, "sha256": about[role]["sha256"]}
            journal.append([done[role]])
    results: dict[str, Any] = outcome({role: done[role] for role in about}, plan.forget)
    results["settings"] = {**dataclasses.asdict(settings), "seed": seed, "question": plan.question}
    results["provenance"] = {
        **origin(),
        "data": data.record,
        "forget": list(plan.forget),
        "others": list(plan.others),
        "warnings": warnings,
        "pictures": {"learn": len(plan.learn), "test": len(plan.test)},
        "models": {role: {**about[role], "image_backend": done[role]["image_backend"]} for role in about},
    }
    write_json(out / RESULT, results)
    replace_text(out / TABLE, table_text(csv_rows(results)))
    replace_text(out / PAGE, page(results))
    return results


def _about(path: str) -> dict[str, Any]:
    folder, _, _ = open_checkpoint(path)
    manifest = read_manifest(folder.path)
    return {**{key: manifest.get(key) for key in ("kind", "method", "seed")}, "path": path, "sha256": folder.hashes()}


def _examined(role: str, path: str, seed: int | None, plan: Lesson, settings: Probing) -> Record:
    """What probes find in one model; with a seed, in one of its configuration with random weights."""
    began = time.perf_counter()
    loaded = load_model(path) if seed is None else random_model(path, seed)
    images, learnt = [*plan.learn, *plan.test], len(plan.learn)
    seen = states(loaded, images, plan.question, settings.depths, f"stages of {role}")
    stages = {}
    for stage, values in seen.items():
        if not values.isfinite().all():
            raise BadInput(f"--model {role}={path}: {stage} is not finite; this model is broken, leave it out")
        found = Probe.fit(values[:learnt], list(plan.learn.values()))
        stages[stage] = {
            "width": values.shape[1],
            "ridge": found.strength,
            "left_out": found.left_out,
            "right": found.tally(values[learnt:], list(plan.test.values())),
        }
    return {
        "role": role,
        "stages": stages,
        "seconds": time.perf_counter() - began,
        "image_backend": loaded.batcher.image_backend,
    }


def _same_stages(records: Mapping[str, Record]) -> None:
    (first, one), *rest = records.items()
    for role, other in rest:
        if list(other["stages"]) != list(one["stages"]):
            raise BadInput(
                f"--model {role}: has the stages {', '.join(other['stages'])}, but '{first}' has "
                f"{', '.join(one['stages'])}; probe models of one configuration together"
            )


def outcome(records: Mapping[str, Record], forget: Sequence[str]) -> dict[str, Any]:
    """Cells of every model at every stage, for forgotten and retained subjects, over gold and over random weights."""

    def part(role: str, stage: str, group: str) -> Tally:
        right = records[role]["stages"][stage]["right"]
        return {s: (n[0], n[1]) for s, n in right.items() if (s in forget) == (group == "forget")}

    def over(base: str, role: str, stage: str) -> dict[str, Any] | None:
        if role == base or base not in records:
            return None
        return {group: gain(part(base, stage, group), part(role, stage, group)) for group in GROUPS}

    return {
        role: {
            "stages": {
                stage: {
                    **{group: cell(part(role, stage, group)) for group in GROUPS},
                    "over_gold": over(GOLD, role, stage),
                    "over_random": over(RANDOM, role, stage),
                    "subjects": {s: n[0] / n[1] for s, n in part(role, stage, "forget").items()},
                    **{key: found[key] for key in ("width", "ridge", "left_out")},
                }
                for stage, found in record["stages"].items()
            },
            "seconds": record["seconds"],
        }
        for role, record in records.items()
    }
