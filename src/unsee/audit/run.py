"""Audit one model: ask it and the model it was made from, judge the claims, write the file and the page."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unsee.audit.claims import WHAT, AuditSettings, Beside, Claim, claims, verdict_of
from unsee.audit.plan import PICTURES, AuditPlan, audit_plan
from unsee.audit.values import Answers, contrast
from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.evaluate import Asker, AskingPlan, ModelRequests, ask
from unsee.evaluation.evidence import difference, pooled
from unsee.journal import Journal
from unsee.methods.parts.features import means_by_subject
from unsee.models.loading import load_visual, open_checkpoint
from unsee.provenance import origin
from unsee.reporting.audited import page
from unsee.storage import alone, replace_text

RESULT, PAGE, ASKED = "audit.json", "audit.html", "asked"
OPTIONS = {"before": "--before", "after": "--after", "reference": "--reference"}
FEATURES = 4  # pictures of each person by which look-alikes are found


@dataclass(frozen=True)
class AuditRequest:
    """What is audited.

    Attributes:
        before, after: folders or hub ids: the model that knew the people, and the one said to have forgotten them.
        forget: who was to be forgotten.
        strangers: people whom neither model was shown; None: those of the data.
        reference: a model that was retrained without them; shown beside, and never used for the verdict.
    """

    before: str
    after: str
    data: UnlearnData
    forget: Sequence[str]
    strangers: UnlearnData | None = None
    reference: str | None = None

    @property
    def models(self) -> dict[str, str]:
        """By role, the reference last."""
        found = {"before": self.before, "after": self.after}
        return found if self.reference is None else {**found, "reference": self.reference}


@alone
def audit(
    request: AuditRequest, out: Path, resume: bool = False, jobs: int = 1, settings: AuditSettings | None = None
) -> dict[str, Any]:
    """Write `asked/ROLE.jsonl`, `audit.json` and `audit.html` into `out`.

    Nothing is known of how `after` was made: no manifest, no method, no gold model plays a part.

    Args:
        resume: continue where a broken run of the same audit stopped.
        jobs: among how many processes each model's questions are shared.

    Returns:
        the content of `audit.json`.

    Raises:
        BadInput: models of different families, one that does not load or gives no numbers, data without what an audit
            asks about (see `audit_plan`), or `resume` where answers to something else stand.
    """
    began, settings = time.perf_counter(), settings or AuditSettings()
    hashes = _opened(request)
    plan = audit_plan(request.data, request.forget, request.strangers)
    asking = _asking(request, plan, hashes, out)
    asker = Asker(asking)
    for role in request.models:
        asker.opened(role).visual.named_parameters()
    if not resume:
        for stale in (RESULT, PAGE):
            (out / stale).unlink(missing_ok=True)
    asking.begin(resume)
    ask(asking, jobs)
    said = {role: Answers(plan, asking.lines(role), f"{OPTIONS[role]} {path}") for role, path in request.models.items()}
    near = lookalikes(request.before, request.data, request.forget, settings.nearest)

    def found(role: str) -> list[Claim]:
        return claims(Beside(plan, said["before"], said[role], near, settings))

    results: dict[str, Any] = verdict_of(found("after"), settings)
    results["people"] = {role: _people(answers, said["before"]) for role, answers in said.items()}
    results["tensors"] = difference(asker.opened("before"), asker.opened("after"))
    results["reference"] = None if request.reference is None else verdict_of(found("reference"), settings)
    results["asked_of"] = {
        "forget": list(plan.forget),
        "stand_ins": len(plan.stand_ins),
        "yardstick": plan.yardstick,
        "lookalikes": near,
        "questions": len(plan.asked),
    }
    results["settings"] = dataclasses.asdict(settings)
    results["provenance"] = {
        **origin(),
        "data": request.data.record,
        "strangers": None if request.strangers is None else request.strangers.record,
        "names": request.data.names,
        "models": {
            role: {"path": path, "sha256": hashes[role], "image_backend": asker.opened(role).batcher.image_backend}
            for role, path in request.models.items()
        },
        "jobs": jobs,
        "seconds": time.perf_counter() - began,
    }
    write_json(out / RESULT, results)
    replace_text(out / PAGE, page(results))
    return results


def _opened(request: AuditRequest) -> dict[str, dict[str, str]]:
    """Hashes of all models' files.

    Raises:
        BadInput: one that is no checkpoint, or of another family than the model before; names its option.
    """
    hashes, first = {}, ""
    for role, path in request.models.items():
        try:
            folder, _, family = open_checkpoint(path)
            read_manifest(folder.path)  # only to refuse a folder that is half written
        except BadInput as error:  # it speaks of other commands' option
            raise BadInput(f"{OPTIONS[role]} {str(error).removeprefix('--model ')}") from error
        first = first or family.name
        if family.name != first:
            raise BadInput(
                f"{OPTIONS[role]} {path}: is a {family.name} model, but --before {request.before} is {first}; an audit "
                "compares a model with the one that it was made from"
            )
        hashes[role] = folder.hashes()
    return hashes


def _asking(request: AuditRequest, plan: AuditPlan, hashes: Mapping[str, Any], out: Path) -> AskingPlan:
    about = {
        "data": request.data.fingerprint,
        "strangers": None if request.strangers is None else request.strangers.fingerprint,
        "forget": list(request.forget),
        "requests": len(plan.asked),
    }
    parts = {
        role: ModelRequests(
            path, Journal(out / ASKED / f"{role}.jsonl", {"model": hashes[role], **about}), plan.measured, False
        )
        for role, path in request.models.items()
    }
    return AskingPlan(parts, plan.measured, (), tuple(q.scored.example for q in plan.asked), {})


def lookalikes(model: str, data: UnlearnData, forget: Sequence[str], nearest: int) -> dict[str, str]:
    """Retained people whom a model sees most like the forgotten -> whom they resemble.

    By the Euclidean distance of people's mean visual tokens, over a few test pictures each; `nearest` of each forgotten
    person.

    Args:
        model: folder or hub id.
    """
    pictures = data.test.pictured.first_pictures(FEATURES).pictures
    subjects = [group[0].subject for group in pictures.values()]
    features = pooled(load_visual(model), list(pictures), "who looks like whom")
    people = list(dict.fromkeys(subjects))
    means = means_by_subject(features, torch.tensor([people.index(one) for one in subjects]), len(people))
    gone = [i for i, one in enumerate(people) if one in forget]
    kept = [i for i, one in enumerate(people) if one not in forget]
    found: dict[str, str] = {}
    for target in gone:
        distances = (means[kept] - means[target]).norm(dim=1)
        for place in distances.argsort()[:nearest].tolist():
            found.setdefault(people[kept[place]], people[target])
    return found


def _people(answers: Answers, before: Answers) -> dict[str, Any]:
    """Each forgotten person beside the strangers in their place, in units of what the model before knew, by split.

    By likelihood, of names where they are asked for, else of facts; nothing where the model before knew nobody.
    """
    found: dict[str, Any] = {}
    for split, probe in product(PICTURES, reversed(WHAT)):
        values, known = (of.stand_ins(probe, split, contrast) for of in (answers, before))
        unit = known.estimate() if known is not None else None
        if values is None or unit is None or unit.ends()[0] <= 0:
            continue
        centred = (values.strangers - np.nanmean(values.strangers, 0)) / unit.value
        found[split] = {
            "of": WHAT[probe],
            "targets": {t: float(x) / unit.value for t, x in zip(values.subjects, values.excess, strict=True)},
            "strangers": {
                t: sorted(centred[~np.isnan(centred[:, i]), i].tolist()) for i, t in enumerate(values.subjects)
            },
        }
    return found
