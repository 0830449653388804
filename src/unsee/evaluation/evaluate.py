"""Ask several models the same questions once; answers, scores and measures follow from a file of records per model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.engine import Engine, Sheets
from unsee.evaluation.evidence import FeatureMap, difference, write_pictures
from unsee.evaluation.predict import generate, longest_answer
from unsee.evaluation.questions import (
    EXPOSED,
    PICTURES,
    MeasuredQuestion,
    answered_too,
    asked_of,
    everything,
    misasked,
    warned,
)
from unsee.evaluation.results import ModelResult, Results
from unsee.evaluation.score import REFERENCE, line, measures_of, score
from unsee.journal import Journal, Line
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded, open_checkpoint, open_model, with_weights
from unsee.parallel import side_by_side
from unsee.progress import track
from unsee.provenance import origin
from unsee.storage import alone, replace_text
from unsee.table import table_text

BASE = "vanilla"  # the role whose tensors later ones are compared with
OF_NO_PROCESSOR = ("unsee.json", "generation_config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked of which models, about whom.

    Attributes:
        models: role -> folder or hub id; answers come from these checkpoints as saved. With a role `gold` (or `gold-N`)
            others are measured beside it too.
        forget: subjects that were to be forgotten.
        gradients: also take gradient norms, a backward pass for every question about members and strangers.
        reference: folder or hub id of a model that was taught neither members nor strangers.
    """

    models: Mapping[str, str]
    data: UnlearnData
    forget: Sequence[str]
    gradients: bool = False
    reference: str | None = None

    @cached_property
    def paths(self) -> dict[str, str]:
        """Role -> model, the reference model among them."""
        return dict(self.models) if self.reference is None else {**self.models, REFERENCE: self.reference}

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        return {role: open_checkpoint(path)[0].hashes() for role, path in self.paths.items()}

    def check(self) -> None:
        """Refuse gradient norms or a reference model that cannot be had, before anything is asked.

        Raises:
            BadInput: a model has the reference's role, nobody to compare the forget set with, or no such reference.
        """
        if self.reference is None and not self.gradients:
            return
        option = "--gradients" if self.reference is None else f"--reference {self.reference}"
        if self.reference is not None and REFERENCE in self.models:
            raise BadInput(f"--model {REFERENCE}=…: the reference model's lines stand under this role; choose another")
        if not attackable(self.data, self.forget):
            raise BadInput(
                f"{option}: {self.data.source} has no strangers to compare the forget set with; leave the option out, "
                "or use data with strangers"
            )
        if self.reference is not None:
            try:
                open_checkpoint(self.reference)
            except BadInput as error:  # it speaks of the other models' option
                raise BadInput(f"--reference {str(error).removeprefix('--model ')}") from error


def attackable(data: UnlearnData, forget: Sequence[str]) -> bool:
    """Whether there are strangers to compare the forget set with."""
    return any(a.part in EXPOSED for a in asked_of(data, forget))


@alone
def evaluate(request: EvaluationRequest, out: Path, resume: bool = False, jobs: int = 1) -> Results:
    """Write `predictions/`, `results.json`, `pictures/`, `features.json`, and what `measure` writes, into `out`.

    Every model is asked once: `measures/ROLE.jsonl` has a line for everything that it was asked, written as it comes,
    and all else follows from these lines.

    Args:
        resume: continue where a broken run of the same evaluation stopped.
        jobs: among how many processes every model's requests are shared. The files do not depend on it, as long as
            each process has as many threads.

    Returns:
        what `results.json` and `measures.json` are written from.

    Raises:
        BadInput: a model that does not load, a data set without test pictures, or see `EvaluationRequest.check`.
    """
    request.check()
    models, data, forget = request.models, request.data, request.forget
    for path in models.values():
        folder, _, _ = open_checkpoint(path)
        read_manifest(folder.path)
    if not data.test.of(forget).pictured:
        raise BadInput(f"{data.source}: no test pictures of the forget set; evaluation needs pictures not trained on")
    asked = everything(data, forget)
    names = tuple(dict.fromkeys(data.names.values()))
    choices = {q.example.question: q.example.choices for q in asked if q.example.choices}
    warnings = warned(models, data.source, forget, data.fingerprint)
    plan, feature_map = plan_of(request, out, answers=True), FeatureMap(data, forget)
    asker = Asker(plan)
    for role in models:  # what cannot be asked is refused before anything is written
        asker.opened(role).visual.named_parameters()
    ready: Loaded | None = asker.loaded(next(iter(models)))
    if not resume:
        _clear(out)  # as late as this: if a model does not load, older results stay
    study = {"data": data.fingerprint, "forget": list(forget), "questions": len(asked)}
    answers = {
        role: Journal(out / "predictions" / f"{role}.jsonl", {"model": request.hashes[role], **study})
        for role in models
    }
    for journal in answers.values():  # says whose answers these will be, and refuses those of others
        journal.begin(journal.left(resume))
    plan.begin(resume)
    if jobs > 1:  # all answers first
        ready = None
        ask(plan, jobs)
    scores: dict[str, Any] = {}
    about: dict[str, dict[str, Any]] = {}
    records: dict[str, list[Line]] = {}
    base: Loaded | None = None
    manifests = {}
    for role, path in models.items():
        loaded, ready = ready or asker.loaded(role), None
        if jobs == 1:
            asker.work(role, loaded=loaded)
        records[role] = plan.lines(role)
        said = {x["request"]: x["given"] for x in records[role] if "given" in x}
        lines = [q.line(role, said[number], names) for number, q in enumerate(asked)]
        answers[role].begin(lines)
        scores[role] = score(lines, names, choices)
        manifest = read_manifest(loaded.folder.path) or {"kind": "external"}
        backend = loaded.batcher.image_backend
        manifests[role] = {**manifest, "path": path, "sha256": request.hashes[role], "image_backend": backend}
        about[role] = {"cost": {key: manifest.get(key) for key in ("seconds", "peak_memory_bytes")}}
        if manifest.get("certificate"):
            about[role]["certificate"] = manifest["certificate"]
        if role == BASE:
            base = loaded
        elif base is not None:
            about[role]["tensors"] = difference(base, loaded)
        feature_map.add(role, loaded)
    if request.reference is not None:
        if jobs == 1:
            asker.work(REFERENCE)
        records[REFERENCE] = plan.lines(REFERENCE)
    feature_map.write(out)
    write_pictures(data, forget, out)
    provenance = {
        **origin(),
        "jobs": jobs,
        "data": data.record,
        "forget": list(forget),
        "names": data.names,
        "pictures_per_subject": PICTURES,
        "models": manifests,
        "warnings": warnings,
    }
    measured = measures_of(records, list(models))
    found = {role: ModelResult(scores[role], about[role], measured[role]) for role in models}
    results = Results(found, provenance).judged()
    _write_measures(request, results, records, jobs, out)
    write_json(out / "results.json", results.to_json())
    return results


@alone
def measure(request: EvaluationRequest, out: Path, resume: bool = False, processes: int = 1) -> dict[str, Any]:
    """Measure models without an evaluation: `measures/ROLE.jsonl`, a line per request, `measures.json` and `.csv`.

    Args:
        processes: among how many every model's requests are shared. The files do not depend on it, as long as each
            process has as many threads.

    Returns:
        the content of `measures.json`: {"models": {role: {measure: {set: cell}}}, "provenance": …}.

    Raises:
        BadInput: see `EvaluationRequest.check`; or a model that does not load, or lines of another model, data set or
            request.
    """
    request.check()
    plan = plan_of(request, out, answers=False)
    plan.begin(resume)
    ask(plan, processes)
    records = {role: plan.lines(role) for role in request.paths}
    measured = measures_of(records, list(request.models))
    results = Results({role: ModelResult({}, {}, measured[role]) for role in request.models}, {})
    return _write_measures(request, results, records, processes, out)


def _clear(out: Path) -> None:
    """Remove what an earlier evaluation wrote, so that nothing of it stands beside the new answers."""
    files = ("results.json", "features.json", "report.html", "measures.json", "measures.csv")
    for stale in [*(out / "predictions").glob("*"), *(out / "measures").glob("*"), *(out / name for name in files)]:
        stale.unlink(missing_ok=True)


def _write_measures(
    request: EvaluationRequest, results: Results, records: Mapping[str, Sequence[Line]], processes: int, out: Path
) -> dict[str, Any]:
    """Write `measures.json` and `measures.csv`, views of the results; returns the content of the first."""
    reference = request.reference
    provenance = {
        **origin(),
        "processes": processes,
        "data": request.data.record,
        "forget": list(request.forget),
        "pictures_per_subject": PICTURES,
        "gradients": any("gradient_norm" in x for role in request.models for x in records[role]),
        "models": {role: {"path": path, "sha256": request.hashes[role]} for role, path in request.models.items()},
        "warnings": misasked(request.models, request.data.source, request.forget, request.data.fingerprint),
        "reference": reference and {"path": reference, "sha256": request.hashes[REFERENCE]},
    }
    measures = {"models": results.measures, "provenance": provenance}
    write_json(out / "measures.json", measures)
    rows = [
        {"role": role, "measure": name, "set": part, **cell}
        for role, cells in results.measures.items()
        for name, sets in cells.items()
        for part, cell in sets.items()
    ]
    replace_text(out / "measures.csv", table_text(rows))
    return measures


# What is asked of whom ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelRequests:
    """What one model is asked.

    Attributes:
        model: its folder or hub id.
        journal: where its lines stand.
        asked: the requests.
        gradients: whether gradient norms are taken.
    """

    model: str
    journal: Journal
    asked: tuple[MeasuredQuestion, ...]
    gradients: bool


@dataclass(frozen=True)
class AskingPlan:
    """What all processes know.

    Attributes:
        parts: by role.
        asked: all requests that are measured. Every model gets them in the same batches, the reference those with some
            that it is asked: in other batches likelihoods differ in their last digits, and a model would be told from
            itself.
        others: questions that are answered and no more.
        examples: all questions of the evaluation: the longest true answer among them bounds the model's own.
        done: by role, numbers of the requests that are answered already.
    """

    parts: Mapping[str, ModelRequests]
    asked: tuple[MeasuredQuestion, ...]
    others: tuple[MeasuredQuestion, ...]
    examples: tuple[Example, ...]
    done: dict[str, frozenset[int]]

    def begin(self, resume: bool) -> None:
        """Look for lines of a broken run, which go on to be valid; the journals hold them alone.

        Args:
            resume: whether there may be some; gradient norms, a reference model and answers to all questions may be
                asked for only then: batches without something new stay.

        Raises:
            BadInput: lines of another model, data set or request.
        """
        for role, part in self.parts.items():
            lines = _in_order(part.journal.left(resume), part.asked)
            spoken = {a.number for a in part.asked if a.spoken}
            part.journal.begin(lines)
            self.done[role] = frozenset(
                x["request"]
                for x in lines
                if (not part.gradients or x["set"] not in EXPOSED or "gradient_norm" in x)
                and ("given" in x or x["request"] not in spoken)
            )

    def lines(self, role: str) -> list[Line]:
        """All lines of a model, put into its file in order."""
        part = self.parts[role]
        lines = _in_order(part.journal.lines(), part.asked)
        part.journal.begin(lines)
        return lines


def plan_of(request: EvaluationRequest, out: Path, answers: bool) -> AskingPlan:
    """All requests of all models.

    Args:
        answers: whether every question of an evaluation is answered too, not only what measures need.
    """
    data, forget = request.data, request.forget
    asked, others = asked_of(data, forget), list[MeasuredQuestion]()
    whole = everything(data, forget)
    about = {"data": data.fingerprint, "forget": list(forget), "requests": len(asked)}
    exposed = tuple(a for a in asked if a.part in EXPOSED)
    if answers:
        asked, others = answered_too(asked, whole)
    parts = {}
    for role, path in request.paths.items():
        measured = role in request.models  # of the reference nobody reads more than likelihoods
        journal = Journal(out / "measures" / f"{role}.jsonl", {"model": request.hashes[role], **about})
        some = (*asked, *others) if measured else exposed
        parts[role] = ModelRequests(path, journal, some, request.gradients and measured)
    return AskingPlan(parts, tuple(asked), tuple(others), tuple(q.example for q in whole), {})


def _in_order(lines: Sequence[Line], asked: Sequence[MeasuredQuestion]) -> list[Line]:
    """Lines in the order of their requests, of each the last."""
    found = {x["request"]: x for x in lines}
    return [found[a.number] for a in asked if a.number in found]


# Asking ---------------------------------------------------------------------------------------------------------------


def ask(plan: AskingPlan, processes: int) -> None:
    """Put all requests that are left to all models."""
    if processes == 1:
        _share(plan, 1, 0)
        return
    share = partial(_share, plan, processes)
    for _ in side_by_side("asking models", share, {f"share {i}": (i,) for i in range(processes)}, processes):
        pass


def _share(plan: AskingPlan, processes: int, process: int) -> tuple[()]:
    """One process's share of all models' requests; `side_by_side` waits for all."""
    asker = Asker(plan)
    for role in plan.parts:
        asker.work(role, process, processes)
    return ()


class Asker:
    """Puts the requests of a plan to its models, one after the other.

    Models whose processors are made of the same files have one batcher: texts, trees of them and pictures are prepared
    once for all.
    """

    def __init__(self, plan: AskingPlan) -> None:
        self._plan = plan
        self._opened: dict[str, Loaded] = {}
        self._sheets: dict[tuple[str, str], Sheets] = {}

    def opened(self, role: str) -> Loaded:
        """A model without its weights, to which every question can be put.

        Raises:
            BadInput: see `open_model` and `Batcher.check`.
        """
        if role not in self._opened:
            opened = open_model(self._plan.parts[role].model)
            if (like := _processor(opened)) not in self._sheets:
                opened.batcher.check(self._plan.examples)
                self._sheets[like] = Sheets(opened.batcher)
            self._opened[role] = replace(opened, batcher=self._sheets[like].batcher)
        return self._opened[role]

    def loaded(self, role: str) -> Loaded:
        return with_weights(self.opened(role))

    def work(self, role: str, process: int = 0, processes: int = 1, loaded: Loaded | None = None) -> None:
        """Every so-manieth batch that has something unanswered; a batch is always computed as a whole.

        Args:
            loaded: the model, where it is loaded already.
        """
        plan, part = self._plan, self._plan.parts[role]
        wanted, done = {a.number: a for a in part.asked}, plan.done[role]
        if done.issuperset(wanted):
            return
        loaded = loaded or self.loaded(role)
        sheets = self._sheets[_processor(loaded)]
        longest = longest_answer(loaded, plan.examples)
        left: list[tuple[Engine, tuple[int, ...], list[MeasuredQuestion]]] = []
        for requests in (plan.asked, plan.others):
            some = [replace(a, spoken=a.number in wanted and wanted[a.number].spoken) for a in requests]
            engine = Engine(loaded, [a.request for a in some], longest, sheets)
            for batch in engine.batches:
                if {some[i].number for i in batch} & wanted.keys() - done:
                    left.append((engine, batch, [some[i] for i in batch]))
        for engine, batch, asked in track(left[process::processes], f"asking {role}"):
            replies = engine.run(batch)
            mute = [i for i, a in enumerate(asked) if a.spoken and replies[i].given is None]
            said = generate(loaded, [asked[i].example for i in mute], longest) if mute else []
            for i, text in zip(mute, said, strict=True):
                replies[i] = replace(replies[i], given=text)
            norms = [_gradient_norm(loaded, a.example) if part.gradients and a.part in EXPOSED else None for a in asked]
            lines = map(line, asked, replies, norms)
            part.journal.append((x for x in lines if x["request"] in wanted), process)


def _processor(loaded: Loaded) -> tuple[str, str]:
    """What tells processors apart: the family, and the digest of every file that they may be made of."""
    digest = hashlib.sha256()
    for file in sorted(loaded.folder.path.iterdir()):
        if file.suffix in (".json", ".jinja", ".model", ".txt") and file.name not in OF_NO_PROCESSOR:
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return loaded.family.name, digest.hexdigest()


def _gradient_norm(loaded: Loaded, e: Example) -> float:
    """Norm of the gradient of the answer's loss over the visual module: what an edit may change. Our choice."""
    weights = [p.requires_grad_() for p in loaded.visual.named_parameters().values()]
    with torch.enable_grad():
        loss = answer_loss(loaded.model, loaded.batcher.for_training([e]))
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(torch.stack([g.double().square().sum() for g in gradients if g is not None]).sum().sqrt())
