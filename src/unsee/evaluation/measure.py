"""Take every measure of several models: ask, weigh answers, fill the records, write down what follows from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from unsee.checkpoint.folder import write_json
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.asked import misasked
from unsee.evaluation.engine import Engine
from unsee.evaluation.engine_records import beside, line, measures, records
from unsee.evaluation.engine_requests import EXPOSED, Asked, answered_too, asked_of, everything
from unsee.evaluation.metrics.records import Beside
from unsee.evaluation.predict import (
    PICTURES,
    generate,
    longest_answer,
)
from unsee.evaluation.verdict import is_role, with_scores
from unsee.journal import Journal, Line
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded, load_model, open_checkpoint
from unsee.parallel import side_by_side
from unsee.progress import track
from unsee.provenance import origin
from unsee.storage import alone, replace_text
from unsee.table import table_text

GOLD = "gold"
REFERENCE = "reference"


@dataclass(frozen=True)
class Part:
    """What one model is asked.

    Attributes:
        model: its folder or hub id.
        journal: where its lines stand.
        asked: the requests.
        done: numbers of those that are answered already.
        gradients: whether gradient norms are taken.
    """

    model: str
    journal: Journal
    asked: tuple[Asked, ...]
    done: frozenset[int]
    gradients: bool


@dataclass(frozen=True)
class Study:
    """What all processes know.

    Attributes:
        parts: by role.
        asked: all requests that are measured. Every model gets them in the same batches, the reference those with some
            that it is asked: in other batches likelihoods differ in their last digits, and a model would be told from
            itself.
        others: questions that are answered and no more.
        examples: all questions of the evaluation: the longest true answer among them bounds the model's own.
    """

    parts: dict[str, Part]
    asked: tuple[Asked, ...]
    others: tuple[Asked, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Measuring:
    """What is measured, of whom, and where the files of it stand.

    Attributes:
        models: role -> folder or hub id. With a role `gold` (or `gold-N`) others are measured beside it too.
        forget: subjects that were to be forgotten.
        out: folder of `measures/ROLE.jsonl`, a line per request, `measures.json` and `measures.csv`.
        answers: whether every question of an evaluation is answered too, not only what measures need.
        gradients: also take gradient norms, a backward pass for every question about members and strangers.
        reference: folder or hub id of a model that was taught neither members nor strangers.
    """

    models: Mapping[str, str]
    data: UnlearnData
    forget: Sequence[str]
    out: Path
    answers: bool = False
    gradients: bool = False
    reference: str | None = None

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        named = dict(self.models) if self.reference is None else {**self.models, REFERENCE: self.reference}
        return {role: open_checkpoint(path)[0].hashes() for role, path in named.items()}

    def begin(self, resume: bool) -> Study:
        """Look for lines of a broken run, which go on to be valid.

        Args:
            resume: whether there may be some; gradient norms, a reference model and answers to all questions may be
                asked for only then: batches without something new stay.

        Raises:
            BadInput: lines of another model, data set or request.
        """
        asked, others = asked_of(self.data, self.forget), list[Asked]()
        whole = everything(self.data, self.forget)
        about = {"data": self.data.fingerprint, "forget": list(self.forget), "requests": len(asked)}
        exposed = tuple(a for a in asked if a.part in EXPOSED)
        if self.answers:
            asked, others = answered_too(asked, whole)
        parts = {}
        for role, digests in self.hashes.items():
            journal = Journal(self.out / "measures" / f"{role}.jsonl", {"model": digests, **about})
            measured = role in self.models  # of the reference nobody reads more than likelihoods
            some = (*asked, *others) if measured else exposed
            norms = self.gradients and measured
            done = _begun(journal, resume, some, norms)
            path = self.models[role] if measured else str(self.reference)
            parts[role] = Part(path, journal, some, frozenset(done), norms)
        return Study(parts, tuple(asked), tuple(others), tuple(q.example for q in whole))

    def write(self, lines: Mapping[str, Sequence[Line]], processes: int, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Write `measures.json` and `measures.csv`; returns the content of the first.

        Args:
            lines: by role, all of them.
            scores: by role, of `results.json`: what a verdict reads of them is written down among the measures.
        """
        taken = _measures({role: lines[role] for role in self.models}, lines.get(REFERENCE, ()))
        results = {
            "models": {role: with_scores(cells, scores.get(role, {})) for role, cells in taken.items()},
            "provenance": {
                **origin(),
                "processes": processes,
                "data": self.data.record,
                "forget": list(self.forget),
                "pictures_per_subject": PICTURES,
                "gradients": any("gradient_norm" in x for role in self.models for x in lines[role]),
                "models": {role: {"path": path, "sha256": self.hashes[role]} for role, path in self.models.items()},
                "warnings": misasked(self.models, self.data.source, self.forget, self.data.fingerprint),
                "reference": self.reference and {"path": self.reference, "sha256": self.hashes[REFERENCE]},
            },
        }
        write_json(self.out / "measures.json", results)
        rows = [
            {"role": role, "measure": name, "set": part, **cell}
            for role, cells in results["models"].items()
            for name, sets in cells.items()
            for part, cell in sets.items()
        ]
        replace_text(self.out / "measures.csv", table_text(rows))
        return results


@alone
def measure(
    models: Mapping[str, str],
    data: UnlearnData,
    forget: Sequence[str],
    out: Path,
    resume: bool = False,
    processes: int = 1,
    gradients: bool = False,
    reference: str | None = None,
) -> dict[str, Any]:
    """Measure models without an evaluation, see `Measuring`.

    Args:
        processes: among how many every model's requests are shared. The files do not depend on it, as long as each
            process has as many threads.

    Returns:
        the content of `measures.json`: {"models": {role: {measure: {set: cell}}}, "provenance": …}.

    Raises:
        BadInput: see `check_attacks`; or a model that does not load, or lines of another model, data set or request.
    """
    check_attacks(models, data, forget, gradients, reference)
    measuring = Measuring(models, data, forget, out, False, gradients, reference)
    study = measuring.begin(resume)
    ask(study, processes)
    return measuring.write({role: lines_of(part) for role, part in study.parts.items()}, processes, {})


def ask(study: Study, processes: int) -> None:
    """Put all requests that are left to all models."""
    if processes == 1:
        for role in study.parts:
            work(study, role)
        return
    share = partial(_share, study, processes)
    for _ in side_by_side("asking models", share, {f"share {i}": (i,) for i in range(processes)}, processes):
        pass


def check_attacks(
    models: Collection[str], data: UnlearnData, forget: Sequence[str], gradients: bool, reference: str | None
) -> None:
    """Refuse gradient norms or a reference model that cannot be had, before anything is asked.

    Raises:
        BadInput: a model has the reference's role, nobody to compare the forget set with, or no such reference model.
    """
    if reference is None and not gradients:
        return
    option = "--gradients" if reference is None else f"--reference {reference}"
    if reference is not None and REFERENCE in models:
        raise BadInput(f"--model {REFERENCE}=…: the reference model's lines stand under this role; choose another")
    if not attackable(data, forget):
        raise BadInput(
            f"{option}: {data.source} has no strangers to compare the forget set with; leave the option out, or use "
            "data with strangers"
        )
    if reference is not None:
        try:
            open_checkpoint(reference)
        except BadInput as error:  # it speaks of the other models' option
            raise BadInput(f"--reference {str(error).removeprefix('--model ')}") from error


def attackable(data: UnlearnData, forget: Sequence[str]) -> bool:
    """Whether there are strangers to compare the forget set with."""
    return any(a.part in EXPOSED for a in asked_of(data, forget))


def _measures(lines: Mapping[str, Sequence[Line]], reference: Sequence[Line]) -> dict[str, Any]:
    """Role -> measure -> set -> cell."""
    golds = [role for role in lines if is_role(role, "gold")]
    gold = GOLD if GOLD in golds else next(iter(golds), None)
    by_request = {x["request"]: x for x in reference}
    results = {}
    for role, own in lines.items():
        found = records(own, by_request)
        if gold is not None and role != gold:
            found[Beside] = dict(beside(own, lines[gold]))
        results[role] = measures(found)
    return results


# Files ----------------------------------------------------------------------------------------------------------------


def _begun(journal: Journal, resume: bool, asked: Sequence[Asked], gradients: bool) -> Collection[int]:
    """Numbers of the requests answered already, with all that is wanted of them; the journal holds all lines."""
    lines, spoken = _in_order(journal.left(resume), asked), {a.number for a in asked if a.spoken}
    journal.begin(lines)
    return {
        x["request"]
        for x in lines
        if (not gradients or x["set"] not in EXPOSED or "gradient_norm" in x)
        and ("given" in x or x["request"] not in spoken)
    }


def _in_order(lines: Sequence[Line], asked: Sequence[Asked]) -> list[Line]:
    """Lines in the order of their requests, of each the last."""
    found = {x["request"]: x for x in lines}
    return [found[a.number] for a in asked if a.number in found]


def lines_of(part: Part) -> list[Line]:
    """All lines of a model, put into its file in order."""
    lines = _in_order(part.journal.lines(), part.asked)
    part.journal.begin(lines)
    return lines


# Asking ---------------------------------------------------------------------------------------------------------------


def _share(study: Study, processes: int, process: int) -> tuple[()]:
    """One process's share of all models' requests; `side_by_side` waits for all."""
    for role in study.parts:
        work(study, role, process, processes)
    return ()


def work(study: Study, role: str, process: int = 0, processes: int = 1, loaded: Loaded | None = None) -> None:
    """Every so-manieth batch that has something unanswered; a batch is always computed as a whole.

    Args:
        loaded: the model, where it is opened already.
    """
    part = study.parts[role]
    wanted = {a.number: a for a in part.asked}
    if part.done.issuperset(wanted):
        return
    loaded = loaded or load_model(part.model)
    loaded.batcher.check(study.examples)
    longest = longest_answer(loaded, study.examples)
    left: list[tuple[Engine, tuple[int, ...], list[Asked]]] = []
    for requests in (study.asked, study.others):
        some = [replace(a, spoken=a.number in wanted and wanted[a.number].spoken) for a in requests]
        engine = Engine(loaded, [a.request for a in some], longest)
        for batch in engine.batches:
            if {some[i].number for i in batch} & wanted.keys() - part.done:
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


def _gradient_norm(loaded: Loaded, e: Example) -> float:
    """Norm of the gradient of the answer's loss over the visual module: what an edit may change. Our choice."""
    weights = [p.requires_grad_() for p in loaded.visual.named_parameters().values()]
    with torch.enable_grad():
        loss = answer_loss(loaded.model, loaded.batcher.for_training([e]))
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(torch.stack([g.double().square().sum() for g in gradients if g is not None]).sum().sqrt())
