"""Requests one after another on one model: the grid file, and every request read against gold."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from unsee.checkpoint.folder import MANIFEST, read_manifest, write_json
from unsee.data.examples import Example, UnlearnData
from unsee.editing.merge import merge
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput, GateFailed
from unsee.evaluation.answers import is_correct
from unsee.evaluation.engine.teacher_forcing import CachedExam
from unsee.evaluation.predict import generate, longest_answer
from unsee.evaluation.questions import RECOGNITION
from unsee.methods import FeatureMethod, Method
from unsee.models.loading import load_model
from unsee.parallel import side_by_side
from unsee.provenance import origin
from unsee.reporting.sequence import write_sequence_report
from unsee.storage import alone, replace_text
from unsee.strict_toml import Keys, at_least_one, open_toml, several, tables, text, truth, whole
from unsee.study.grid import Case, arm_in, cases_in, named_apart
from unsee.study.scenario import as_json, begin, build_models, gold_role, kept, resolve, stand_ready

LINES, ABOUT = "sequence.jsonl", "sequence.json"
Counts = dict[str, list[int]]  # subject -> right answers, questions asked
Mode = Literal["chain", "remembered", "without pictures", "merged"]


@dataclass(frozen=True)
class SequenceArm:
    """How requests are carried out.

    Attributes:
        mode: `chain`: each edit begins where the last one ended, and those forgotten before are kept as they are then
            seen; `remembered`: their pictures are deleted, and statistics of them kept, see `remembered`; `without
            pictures`: neither is there; `merged`: every edit begins with the vanilla model, and all of them are added
            up inside the null space, see `merge`.
        anchored: what must stay is kept as the vanilla model sees it, see `drift_reference`; else as the model before
            each request. For methods on features.
        orders: 0: as the grid names the subjects; others: shuffled with that seed.
    """

    name: str
    method: Method
    mode: Mode
    anchored: bool
    orders: tuple[int, ...]

    def seen(self, data: UnlearnData, earlier: Sequence[str]) -> UnlearnData:
        """What of the data is there when those of `earlier` were forgotten."""
        if self.mode in ("chain", "merged") or not earlier:
            return data
        return dataclasses.replace(data, train=data.train.without(earlier), validation=data.validation.without(earlier))


@dataclass(frozen=True)
class SequenceGrid:
    """One case, whose subjects are asked for one by one, and every arm on it.

    Attributes:
        pictures: test pictures asked about per person after each request; of the person of this request all, and of
            everybody all after the last.
    """

    case: Case
    arms: tuple[SequenceArm, ...]
    pictures: int


def read_sequence(path: Path) -> SequenceGrid:
    """The grid of `unsee study sequence`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = open_toml(path, "--grid")
    cases = cases_in(keys)
    pictures = keys.take("pictures", at_least_one, 4)
    given = keys.take("arms", tables)
    keys.done()
    if len(cases) != 1:
        raise BadInput(f"{keys.where}models: {len(cases)} cases; expected one, so give one family, seed and request")
    arms = tuple(_arm(Keys(item, f"{keys.where}arms[{i}].")) for i, item in enumerate(given))
    return SequenceGrid(cases[0], named_apart(arms, keys.where), pictures)


def _arm(keys: Keys) -> SequenceArm:
    mode = keys.take("mode", _mode, "chain")
    anchored = keys.take("anchored", truth, True)
    orders = keys.take("orders", several(whole), (0,))
    arm = arm_in(keys, sweeps=False)
    if mode in ("merged", "remembered") and not (isinstance(arm.method, FeatureMethod) and arm.method.needs_moments):
        raise BadInput(f"{keys.where}mode: '{mode}' needs a null space, which {arm.method.name} has not; take nscvf")
    anchored = anchored and isinstance(arm.method, FeatureMethod) and mode != "merged"
    return SequenceArm(arm.name, arm.method, mode, anchored, orders)


def _mode(value: object, where: str) -> Mode:
    if text(value, where) not in get_args(Mode):
        raise BadInput(f"{where}: '{value}' is unknown; expected one of {', '.join(get_args(Mode))}")
    return cast(Mode, value)


# The run --------------------------------------------------------------------------------------------------------------


@alone
def sequence(grid: SequenceGrid, out: Path, resume: bool = False, jobs: int = 1, link: bool = False) -> Path:
    """Carry out all requests of every arm in every order, one subject each, and write the report; returns its page.

    Leaves `sequence.jsonl` (a line per request: who is still recognised), `sequence.json`, the pages that
    `reporting.sequence` makes of them, and in `runs/ARM-ORDER/` the last model and a file per request, after the last
    of which `resume` goes on.

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
        f"'{arm.name}' in order {order}": (arm, order, runs / f"{arm.name}-{order}")
        for arm in grid.arms
        for order in arm.orders
    }
    shared = _Shared(case.data, case.subjects, vanilla, grid.pictures, link)
    lines = [*_standing(shared, golds, runs)]
    lines += sorted(side_by_side("sequences of requests", partial(_requests, shared), tasks, jobs), key=_place)
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


@dataclass(frozen=True)
class _Shared:
    """What all arms and orders of a grid have in common; see `sequence` and `SequenceGrid`."""

    data: UnlearnData
    targets: tuple[str, ...]
    vanilla: str
    pictures: int
    link: bool


def _standing(shared: _Shared, golds: Sequence[str], runs: Path) -> Iterator[dict[str, Any]]:
    """The lines of models that nothing is taken from."""
    for role, path in (("vanilla", shared.vanilla), *((gold_role(i), gold) for i, gold in enumerate(golds))):
        file = runs / f"{role}.json"
        line = kept(file)
        if line is None:
            found = Examiner(path, shared.data, shared.targets).everything()
            line = {
                "arm": role,
                "order": 0,
                "request": 0 if role == "vanilla" else len(shared.targets),
                "subject": None,
            }
            line |= {**found, "seconds": None, "free": None, "drift": None, "warnings": []}
            file.parent.mkdir(exist_ok=True)
            write_json(file, line)
        yield line


def _requests(shared: _Shared, arm: SequenceArm, order: int, folder: Path) -> Iterator[dict[str, Any]]:
    """All requests of one arm in one order."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = list(shared.targets)
    if order:
        random.Random(order).shuffle(asked)
    models = [folder / f"model-{number:03}" for number in range(1, len(asked) + 1)]
    examiner: Examiner | None = None
    for number, subject in enumerate(asked, 1):
        file = folder / f"request-{number:03}.json"
        line = kept(file)
        if line is None:
            model, made = _edited(shared, arm, models[:number], asked[:number], order)
            blocks = arm.method.last_blocks if isinstance(arm.method, FeatureMethod) else None
            examiner = examiner or Examiner(shared.vanilla, shared.data, shared.targets, shared.pictures, blocks)
            examiner.load(model)
            found = examiner.everything() if number == len(asked) else examiner.some(subject)
            line = {"arm": arm.name, "order": order, "request": number, "subject": subject, **found, **made}
            write_json(file, line)
        if arm.mode != "merged" and number > 1:
            shutil.rmtree(models[number - 2], ignore_errors=True)
        yield line


def _edited(
    shared: _Shared, arm: SequenceArm, models: Sequence[Path], asked: Sequence[str], order: int
) -> tuple[str, dict[str, Any]]:
    """Carry out the last request of `asked`; an edit that stands among `models` already is complete.

    Returns:
        the model with all of them forgotten, and what is known of this request. A method that breaks down leaves the
        model as it was, with the reason among the warnings.
    """
    vanilla, link = shared.vanilla, shared.link
    *earlier, subject = asked
    seed = order * 10_000 + len(asked)
    before = vanilla if arm.mode == "merged" or not earlier else str(models[-2])
    warnings = []
    if not (models[-1] / MANIFEST).is_file():
        try:
            keep = arm.mode == "remembered"
            seen = arm.seen(shared.data, earlier)
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
    merged = merge(vanilla, edited, shared.data, arm.method, out, link)
    return str(out), about | {"drift": merged["drift_so_far"], "seconds": (about["seconds"] or 0) + merged["seconds"]}


class Examiner:
    """Asks about test pictures, again and again while a model changes.

    Args:
        model: where to begin; `load` takes the weights of another.
        last_blocks: below these nothing ever changes, so pictures are taken there once; None: anything may.
    """

    def __init__(
        self, model: str, data: UnlearnData, targets: Sequence[str], pictures: int = 1, last_blocks: int | None = None
    ) -> None:
        self._loaded = load_model(model, torch.float32)
        self._data, self._targets, self._pictures = data, targets, pictures
        self._cut = None if last_blocks is None else len(self._loaded.visual.blocks) - last_blocks

    @torch.no_grad()
    def load(self, model: str) -> None:
        """Ask another model of the same shape from now on."""
        other = load_model(model, torch.float32)
        if self._cut is None:
            self._loaded = other
            self.__dict__.pop("_sample", None)  # made of the model before, patch embedding included
            return
        theirs = dict(other.model.named_parameters())
        for name, own in self._loaded.model.named_parameters():
            own.copy_(theirs[name])

    def everything(self) -> dict[str, Counts]:
        """All test pictures of everybody, and all questions without a picture."""
        text = self._data.train.text_only.examples
        said = generate(self._loaded, text, longest_answer(self._loaded, text)) if text else []
        right = [is_correct(answer, e.answer, e.choices) for e, answer in zip(text, said, strict=True)]
        return {**self._told(*self._exam(self._data.test.pictured.examples)), "text": counts(text, right)}

    def some(self, subject: str) -> dict[str, Counts]:
        """All test pictures of one subject, `pictures` of everybody else, no question without a picture."""
        found = self._told(*self._sample)
        own = self._told(*self._exam(self._data.test.of([subject]).pictured.examples))
        return {**found, "targets": found["targets"] | own["targets"], "text": {}}

    @cached_property
    def _sample(self) -> tuple[Sequence[Example], CachedExam]:
        return self._exam(self._data.test.pictured.first_pictures(self._pictures).examples)

    def _exam(self, asked: Sequence[Example]) -> tuple[Sequence[Example], CachedExam]:
        return asked, CachedExam(self._loaded, asked, self._cut or 0)

    def _told(self, asked: Sequence[Example], exam: CachedExam) -> dict[str, Counts]:
        right = exam.right(exam.tokens())
        kinds: dict[str, Callable[[Example], bool]] = {
            "targets": lambda e: e.probe in RECOGNITION and e.subject in self._targets,
            "retain": lambda e: e.probe in RECOGNITION and e.subject not in self._targets,
            "attributes": lambda e: e.probe == "attribute",
        }
        both = list(zip(asked, right, strict=True))
        return {
            kind: counts([e for e, _ in both if keep(e)], [yes for e, yes in both if keep(e)])
            for kind, keep in kinds.items()
        }


def counts(asked: Sequence[Example], right: Sequence[bool]) -> Counts:
    """Right answers and questions of each subject."""
    found: Counts = {e.subject: [0, 0] for e in asked}
    for e, yes in zip(asked, right, strict=True):
        found[e.subject][0] += yes
        found[e.subject][1] += 1
    return found
