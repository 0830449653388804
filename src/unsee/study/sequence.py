"""Requests one after another on one model, each read against the model that never saw any of the targets."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from unsee.checkpoint.folder import MANIFEST, read_manifest, write_json
from unsee.data.examples import Example, UnlearnData
from unsee.durable import replace_text
from unsee.editing.merge import merge
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import GateFailed
from unsee.evaluation.answers import is_correct
from unsee.evaluation.engine.teacher_forcing import CachedExam
from unsee.evaluation.predict import generate, longest_answer
from unsee.evaluation.questions import RECOGNITION
from unsee.lock import alone
from unsee.methods import FeatureMethod
from unsee.models.loading import load_model
from unsee.parallel import side_by_side
from unsee.provenance import origin
from unsee.reporting.sequence import write_sequence_report
from unsee.study.cases import as_json, begin, build_models, gold_role, kept, resolve, stand_ready
from unsee.study.sequence_grid import SequenceArm, SequenceGrid

LINES, ABOUT = "sequence.jsonl", "sequence.json"
Tally = dict[str, list[int]]  # subject -> right answers, questions asked


@alone
def sequence(grid: SequenceGrid, out: Path, resume: bool = False, jobs: int = 1, link: bool = False) -> Path:
    """Carry out all requests of every arm in every order, one subject each, and write the report; returns its page.

    Leaves `sequence.jsonl` (a line per request: who is still recognised), `sequence.json`, the pages that
    `report.sequence` makes of them, and in `runs/ARM-ORDER/` the last model and a file per request, after the last of
    which `resume` goes on.

    Args:
        jobs: sequences carried out side by side, see `parallel.side_by_side`.
        link: of the models it writes, as for `unlearn`.

    Raises:
        BadInput: something in the grid cannot be used.
    """
    case = resolve(grid.case)
    begin(out, grid, resume)
    build_models({out / "models": case}, jobs)
    vanilla, golds = stand_ready(case, out / "models")
    runs = out / "runs"
    tasks: dict[str, tuple[Any, ...]] = {
        f"'{arm.name}' in order {order}": (arm, order, vanilla, runs / f"{arm.name}-{order}")
        for arm in grid.arms
        for order in arm.orders
    }
    carry_out = partial(_requests, case.data, case.subjects, grid.pictures, link)
    lines = [*_standing(case.data, case.subjects, vanilla, golds, runs)]
    lines += sorted(side_by_side("sequences of requests", carry_out, tasks, jobs), key=_place)
    replace_text(out / LINES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    arms = {arm.name: _about(arm) for arm in grid.arms}
    about = {"case": case.about, "arms": arms, "pictures": grid.pictures}
    write_json(out / ABOUT, {"settings": about, "provenance": {**origin(), "jobs": jobs}})
    return write_sequence_report(out)


def _about(arm: SequenceArm) -> dict[str, Any]:
    settings = as_json(arm.method)
    return {"method": arm.method.name, "settings": settings, "mode": arm.mode, "anchored": arm.anchored}


def _place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["arm"], line["order"], line["request"]


def _standing(
    data: UnlearnData, targets: Sequence[str], vanilla: str, golds: Sequence[str], runs: Path
) -> Iterator[dict[str, Any]]:
    """The lines of models that nothing is taken from."""
    for role, path in (("vanilla", vanilla), *((gold_role(i), gold) for i, gold in enumerate(golds))):
        file = runs / f"{role}.json"
        line = kept(file)
        if line is None:
            found = Examiner(path, data, targets).everything()
            line = {"arm": role, "order": 0, "request": 0 if role == "vanilla" else len(targets), "subject": None}
            line |= {**found, "seconds": None, "free": None, "drift": None, "warnings": []}
            file.parent.mkdir(exist_ok=True)
            write_json(file, line)
        yield line


def _requests(
    data: UnlearnData,
    targets: Sequence[str],
    pictures: int,
    link: bool,
    arm: SequenceArm,
    order: int,
    vanilla: str,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """All requests of one arm in one order."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = list(targets)
    if order:
        random.Random(order).shuffle(asked)
    models = [folder / f"model-{number:03}" for number in range(1, len(asked) + 1)]
    examiner: Examiner | None = None
    for number, subject in enumerate(asked, 1):
        file = folder / f"request-{number:03}.json"
        line = kept(file)
        if line is None:
            model, made = _carry_out(arm, vanilla, models[:number], data, asked[:number], order, link)
            blocks = arm.method.last_blocks if isinstance(arm.method, FeatureMethod) else None
            examiner = examiner or Examiner(vanilla, data, targets, pictures, blocks)
            examiner.wear(model)
            found = examiner.everything() if number == len(asked) else examiner.some(subject)
            line = {"arm": arm.name, "order": order, "request": number, "subject": subject, **found, **made}
            write_json(file, line)
        if arm.mode != "merged" and number > 1:
            shutil.rmtree(models[number - 2], ignore_errors=True)
        yield line


def _carry_out(
    arm: SequenceArm,
    vanilla: str,
    models: Sequence[Path],
    data: UnlearnData,
    asked: Sequence[str],
    order: int,
    link: bool,
) -> tuple[str, dict[str, Any]]:
    """Carry out the last request of `asked`; an edit that stands among `models` already is complete.

    Returns:
        the model with all of them forgotten, and what is known of this request. A method that breaks down leaves the
        model as it was, with the reason among the warnings.
    """
    *earlier, subject = asked
    seed = order * 10_000 + len(asked)
    before = vanilla if arm.mode == "merged" or not earlier else str(models[-2])
    warnings = []
    if not (models[-1] / MANIFEST).is_file():
        try:
            keep = arm.mode == "remembered"
            seen = arm.seen(data, earlier)
            first = vanilla if arm.anchored else None
            wanted = EditRequest(seen, [subject], arm.method, seed, gate=False, remember=keep, first=first, link=link)
            unlearn(before, wanted, models[-1])
        except GateFailed as problem:
            warnings.append(str(problem))
            shutil.copytree(before, models[-1])
    made = {} if warnings else read_manifest(models[-1])
    layers = (made.get("certificate") or {}).get("layers", {})
    about = {
        "seconds": made.get("seconds"),
        "free": {name: layer["free"] for name, layer in layers.items()} or None,
        "drift": made.get("drift_so_far"),
        "warnings": [*warnings, *made.get("warnings", [])],
    }
    if arm.mode != "merged":
        return str(models[-1]), about
    assert isinstance(arm.method, FeatureMethod)
    edited = [str(model) for model in models if read_manifest(model).get("method") == arm.method.name]
    if not edited:
        return vanilla, about
    out = models[-1].parent / "merged"
    merged = merge(vanilla, edited, data, arm.method, out, link)
    return str(out), about | {"drift": merged["drift_so_far"], "seconds": (about["seconds"] or 0) + merged["seconds"]}


class Examiner:
    """Asks about test pictures, again and again while a model changes.

    Args:
        model: where to begin; `wear` takes the weights of another.
        last_blocks: below these nothing ever changes, so pictures are taken there once; None: anything may.
    """

    def __init__(
        self, model: str, data: UnlearnData, targets: Sequence[str], pictures: int = 1, last_blocks: int | None = None
    ) -> None:
        self._loaded = load_model(model, torch.float32)
        self._data, self._targets, self._pictures = data, targets, pictures
        self._cut = None if last_blocks is None else len(self._loaded.visual.blocks) - last_blocks

    @torch.no_grad()
    def wear(self, model: str) -> None:
        """Ask another model of the same shape from now on."""
        other = load_model(model, torch.float32)
        if self._cut is None:
            self._loaded = other
            self.__dict__.pop("_sample", None)  # made of the model before, patch embedding included
            return
        theirs = dict(other.model.named_parameters())
        for name, own in self._loaded.model.named_parameters():
            own.copy_(theirs[name])

    def everything(self) -> dict[str, Tally]:
        """All test pictures of everybody, and all questions without a picture."""
        text = self._data.train.text_only.examples
        said = generate(self._loaded, text, longest_answer(self._loaded, text)) if text else []
        right = [is_correct(answer, e.answer, e.choices) for e, answer in zip(text, said, strict=True)]
        return {**self._told(*self._exam(self._data.test.pictured.examples)), "text": tally(text, right)}

    def some(self, subject: str) -> dict[str, Tally]:
        """All test pictures of one subject, `pictures` of everybody else, no question without a picture."""
        found = self._told(*self._sample)
        own = self._told(*self._exam(self._data.test.of([subject]).pictured.examples))
        return {**found, "targets": found["targets"] | own["targets"], "text": {}}

    @cached_property
    def _sample(self) -> tuple[Sequence[Example], CachedExam]:
        return self._exam(self._data.test.pictured.first_pictures(self._pictures).examples)

    def _exam(self, asked: Sequence[Example]) -> tuple[Sequence[Example], CachedExam]:
        return asked, CachedExam(self._loaded, asked, self._cut or 0)

    def _told(self, asked: Sequence[Example], exam: CachedExam) -> dict[str, Tally]:
        right = exam.right(exam.tokens())
        kinds: dict[str, Callable[[Example], bool]] = {
            "targets": lambda e: e.probe in RECOGNITION and e.subject in self._targets,
            "retain": lambda e: e.probe in RECOGNITION and e.subject not in self._targets,
            "attributes": lambda e: e.probe == "attribute",
        }
        both = list(zip(asked, right, strict=True))
        return {
            kind: tally([e for e, _ in both if keep(e)], [yes for e, yes in both if keep(e)])
            for kind, keep in kinds.items()
        }


def tally(asked: Sequence[Example], right: Sequence[bool]) -> Tally:
    """Right answers and questions of each subject."""
    found: Tally = {e.subject: [0, 0] for e in asked}
    for e, yes in zip(asked, right, strict=True):
        found[e.subject][0] += yes
        found[e.subject][1] += 1
    return found
