"""One unlearning run, from a checkpoint and a request to an edited checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unsee.checkpoint.card import model_card
from unsee.checkpoint.folder import CheckpointFolder, base_of, forgotten_by, read_manifest
from unsee.checkpoint.untouched import check_room
from unsee.checkpoint.write import write_edited
from unsee.data.examples import Split, UnlearnData
from unsee.durable import true_path
from unsee.errors import BadInput, GateFailed
from unsee.experiments.anchor import Anchor
from unsee.experiments.certify import certify_edit
from unsee.experiments.gate import AnswerGate, FeatureGate
from unsee.experiments.remembered import REMEMBERED, Remembered
from unsee.experiments.remembered import check as check_remembered
from unsee.experiments.statistics import Replayed, given_moments
from unsee.lock import alone
from unsee.methods import (
    DirectMethod,
    DirectOutputMethod,
    FeatureMethod,
    FeatureStudy,
    InContextUnlearning,
    Method,
    OutputMethod,
)
from unsee.models.loading import Loaded, load_model, load_visual, locate
from unsee.progress import say
from unsee.provenance import origin, peak_memory
from unsee.subspace.moments import SecondMoment, StoredMoments, load_moments, save_moments
from unsee.subspace.nullspace import NullSpace, SoftNullSpace
from unsee.temporary import scratch_folder
from unsee.training.loop import History

RECOGNISED = 0.25  # share of held-back pictures from which an edit is warned about: our choice
ROOM = 0.25  # share of free directions of a layer below which is warned, long before forgetting fails: docs/sequence.md


@alone
def unlearn(
    model: str,
    data: UnlearnData,
    forget: Sequence[str],
    method: Method,
    seed: int,
    out: Path,
    moments: Path | None = None,
    gate: bool = True,
    retain_free: bool = False,
    remember: bool = False,
    first: str | None = None,
    about: Mapping[str, Any] | None = None,
    link: bool = False,
) -> dict[str, Any]:
    """Carry out `method` and write the edited checkpoint to `out`; the input is only read.

    Subjects that earlier edits of `model` took away (its manifest names them) are not learnt again: methods on outputs
    never see their pictures, methods on features keep them as `model` sees them now.

    Args:
        model: folder or hub id.
        forget: subjects whose pictures must no longer be recognised.
        moments: stored statistics of what must stay; without it they are taken from the retained training pictures.
        gate: refuse to write a model that lost what it had to keep.
        retain_free: look at no picture of what must stay, but at samples of the replay distribution in `moments`.
        remember: leave statistics of what was forgotten beside the weights (`REMEMBERED`), so that later edits hold it
            in place without its pictures. A model that has them hands them on.
        first: the model before the first of a line of edits: what must stay is kept as *it* sees it, so that what one
            edit moved the next moves back, and drift does not add up. For methods on features.
        about: what else the manifest is to say.
        link: weight files in which nothing changes become hard links: who writes there in place reaches `model`.

    Returns:
        the manifest written beside the weights.

    Raises:
        BadInput: something given does not fit. GateFailed: the edit did too much damage; nothing is written.
    """
    torch.manual_seed(seed)
    if moments is not None and not (retain_free or getattr(method, "needs_moments", False)):
        raise BadInput(f"--moments {moments}: method {method.name} does not use stored statistics; leave it out")
    if retain_free:
        if not isinstance(method, FeatureMethod):
            raise BadInput(f"--retain-free: method {method.name} needs retained questions; use a feature-level method")
        if moments is None:
            raise BadInput("--retain-free: needs --moments FILE from `unsee moments fit --replay-group 2`")
        data = data.only(forget)
    fingerprint = data.fingerprint  # decodes every picture once, before the clock starts
    base = read_manifest(locate(model))  # a damaged one is refused before the edit, not after it
    before = tuple(subject for subject in forgotten_by(base) if subject not in forget)
    retain, validation = data.train.without(forget), data.validation
    if not isinstance(method, FeatureMethod):
        retain, validation = _not_taught(retain, before), _not_taught(validation, before)
    study = data.train.of(forget), retain, validation
    for what, split in (("forget", study[0]), ("retain", study[1])):
        if not split.pictured and not (retain_free and what == "retain"):
            raise BadInput(f"{data.source}: the {what} set has no training pictures")
    place = true_path(locate(model))
    if true_path(out) in (place, *place.parents):
        raise BadInput(f"--out {out}: would replace the model it is made from; choose another place")
    source = CheckpointFolder(locate(model))
    check_room([source.path / name for name in source.files], out, link)
    check_remembered(locate(model), method, remember)
    if first is not None and not isinstance(method, FeatureMethod):
        raise BadInput(f"--first {first}: method {method.name} does not work on features; leave it out")
    prelude = ""
    if isinstance(method, FeatureMethod):
        loaded = load_visual(model)
        anchor = Anchor.load(first, loaded, method.last_blocks) if first is not None else None
        edit = _edit_features(loaded, method, *study, forget, before, moments, gate, retain_free, remember, anchor)
    elif isinstance(method, OutputMethod):
        loaded = load_model(model, torch.float32)
        edit = _edit_outputs(loaded, method, *study, gate)
    elif isinstance(method, InContextUnlearning):
        loaded = load_model(model, torch.float32)
        edit, prelude = _edit_prompt(loaded, method, study[0], validation, gate)
    else:
        raise TypeError(f"{method.name}: neither on features, nor on outputs, nor on the prompt")
    now = dict(loaded.model.named_parameters())
    changed = {name: now[name] for name, old in edit.before.items() if not torch.equal(old, now[name])}
    keys = loaded.checkpoint_keys(edit.before)
    for warning in edit.warnings:
        say(f"warning: {warning}")
    manifest = {
        "kind": "unlearned",
        "method": method.name,
        "paper": method.paper,
        "level": method.level,
        "seed": seed,
        "settings": dataclasses.asdict(method),  # type: ignore[arg-type]
        "data": {"source": data.source, "fingerprint": fingerprint},
        "forget": list(forget),
        "forgotten": [*before, *forget],
        "retain_free": retain_free,
        "first": CheckpointFolder(locate(first)).hashes() if first is not None else None,
        "base": base_of(model, loaded.folder),
        "changed": sorted(keys[name] for name in changed),
        "certificate": edit.certificate,
        "drift_so_far": _drift_so_far(base, edit.certificate),
        "recognised": edit.recognised,
        "warnings": edit.warnings,
        "image_backend": loaded.batcher.image_backend,
        "seconds": edit.seconds,
        "peak_memory_bytes": peak_memory(),
        "history": {method.name: edit.history},
        **(about or {}),
        **origin(),
    }
    edits = {keys[name]: tensor for name, tensor in changed.items()}
    card = model_card(manifest, loaded.folder.path)
    with scratch_folder() as scratch:
        beside = scratch / REMEMBERED
        if edit.forgotten is not None:
            edit.forgotten.save(beside)
        return write_edited(loaded.folder, edits, out, manifest, card, prelude, beside, link)


def _drift_so_far(base: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[str, float] | None:
    """What retained features drifted in each layer, at most, since the first of a line of edits; None if unknown.

    The sum of what each edit certifies of itself: by the triangle inequality the drift of all of them together is no
    larger, as long as statistics and the layer's own output stay what they were.
    """
    if certificate is None or (base.get("kind") in ("unlearned", "patched") and base.get("drift_so_far") is None):
        return None
    sofar = dict(base.get("drift_so_far") or {})
    for layer, about in certificate["layers"].items():
        sofar[layer] = sofar.get(layer, 0.0) + about["drift_after_cast"]
    return sofar


def _not_taught(split: Split, before: Sequence[str]) -> Split:
    """Without pictures of those forgotten before: their true answers must not be learnt again. Their text stays."""
    gone = frozenset(before)
    return Split(tuple(e for e in split if e.image is None or e.subject not in gone))


@torch.no_grad()
def _as_written(edited: Mapping[str, nn.Parameter], loaded: Loaded, label: str) -> None:
    """Round edited weights to the precision they are stored in: gates and certificates speak of what is written.

    Raises:
        GateFailed: a weight is not finite in that precision.
    """
    keys = loaded.checkpoint_keys(edited)
    dtypes = loaded.folder.dtypes(keys.values())
    for name, parameter in edited.items():
        parameter.copy_(parameter.to(dtypes[keys[name]]))
    _check_finite(edited, label)


def _check_finite(edited: Mapping[str, Tensor], label: str) -> None:
    """Raises GateFailed if a weight is not finite: the loop looks at losses before a step, not at weights after it."""
    for name, parameter in edited.items():
        if not parameter.isfinite().all():
            raise GateFailed(f"{label}: '{name}' is no longer finite; nothing was written. Ask for a smaller edit")


@dataclass(frozen=True)
class Edit:
    """What an edit did.

    Attributes:
        seconds: from the loaded model to the edited weights.
        before: the parameters it could change, as they were.
        certificate: what is known of the drift of retained features; None for methods on outputs.
        forgotten: statistics of what is forgotten by now, if they are to be kept.
        recognised: share of held-back forget pictures that are still nearest their own subject's reference features;
            None without such pictures, and for methods on outputs.
        unpictured: how many were forgotten before and have no pictures in the data.
        sampled: for how many samples stand, see `Remembered`.
    """

    seconds: float
    before: Mapping[str, Tensor]
    history: History
    certificate: dict[str, Any] | None
    forgotten: Remembered | None = None
    recognised: float | None = None
    unpictured: int = 0
    sampled: int = 0

    @property
    def warnings(self) -> list[str]:
        """What does not stop the edit, but should be known before its result is used."""
        found = []
        if self.recognised is not None and self.recognised > RECOGNISED:
            found.append(
                f"{self.recognised:.0%} of held-back forget pictures are still nearest their own subject's features; "
                "evaluate before you rely on it, and if it forgets too little ask for more steps or a larger threshold"
            )
        if self.unpictured:
            held = "samples stand for them: over many requests some" if self.sampled else "nothing holds them: they"
            found.append(
                f"{self.unpictured} of those forgotten before have no pictures in the data, and {held} come back; keep "
                "pictures until a re-base, one edit of all requests together from the first model"
            )
        free = {name: layer["free"] for name, layer in (self.certificate or {}).get("layers", {}).items()}
        if tight := {name: share for name, share in free.items() if share < ROOM}:
            name = min(tight, key=lambda layer: tight[layer])
            found.append(
                f"{len(tight)} of {len(free)} edited layers have less than {ROOM:.0%} of their directions left "
                f"({name}: {free[name]:.0%}), later requests will forget less; re-base: one edit of all requests "
                "together from the first model"
            )
        return found


def _edit_features(
    loaded: Loaded,
    method: FeatureMethod,
    forget: Split,
    retain: Split,
    validation: Split,
    subjects: Sequence[str],
    gone: Sequence[str],
    moments: Path | None,
    gate: bool,
    retain_free: bool,
    remember: bool,
    anchor: Anchor | None,
) -> Edit:
    visual, batcher = loaded.visual, loaded.batcher
    unseen = FeatureStudy.unseen(visual, batcher, validation.without(subjects), method.last_blocks)
    start = time.perf_counter()
    study = FeatureStudy.of(visual, batcher, forget, retain, validation.of(subjects), method.last_blocks)
    if retain_free and moments is not None:
        study = Replayed.load(moments, loaded, method.last_blocks).into(study, forget)
    batcher.release()  # the study holds all that pictures and lower blocks had to say
    visual.release(method.last_blocks)
    keeps = FeatureGate(study) if gate else None
    settled = tuple(i for i, subject in enumerate(study.subjects) if subject in gone)
    aim = dataclasses.replace(study, settled=settled)
    aim = anchor.keeping(aim) if anchor is not None else aim
    with scratch_folder() as scratch:
        kept = _statistics(loaded, method, aim, moments, scratch)
        past = Remembered.load(loaded.folder.path, kept) if kept is not None else None
        statistics = kept if kept is None or past is None else method.joined(kept, past.moments)
        aim = aim if past is None else past.into(aim)
        if isinstance(method, DirectMethod):
            edited = _add(method.solve(aim, statistics or {}), visual.named_parameters())
            history: History = []
        else:
            plan = method.plan(aim, statistics)
            edited, history = dict(plan.edited), plan.carry_out(method.name)
        seconds = time.perf_counter() - start
        _check_finite(edited, method.name)
        originals = dict(study.reference.model.named_parameters())
        before: dict[str, Tensor] = {name: originals[name] for name in edited}
        keys = loaded.checkpoint_keys(edited)
        stored = loaded.folder.dtypes(keys.values())
        layers = [name.removesuffix(".weight") for name in edited]
        certificate = certify_edit(
            study,
            edited,
            before,
            given_moments(moments, layers, loaded) if retain_free and moments else study.moments(layers),
            Spaces(method, statistics, layers),
            {name: stored[keys[name]] for name in edited},
            unseen,
        )
        _as_written(edited, loaded, method.name)
        if keeps is not None:
            keeps.check()
        forgotten = Remembered.of(study, layers, past) if remember or past is not None else None
        recognised = study.recognised().mean().item() if len(study.held_back) else None
        unpictured = len(set(gone) - set(study.subjects))
        sampled = len(past.replay.means) if past is not None and past.replay is not None else 0
        return Edit(seconds, before, history, certificate, forgotten, recognised, unpictured, sampled)


@torch.no_grad()
def _add(deltas: Mapping[str, Tensor], own: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Add to the parameters of these names; returns them."""
    for name, delta in deltas.items():
        own[name].add_(delta)
    return {name: own[name] for name in deltas}


@dataclass(frozen=True)
class Spaces(Mapping[str, NullSpace | SoftNullSpace | None]):
    """What a method kept the updates of each layer in, cut anew when asked for: one at a time in memory."""

    method: FeatureMethod
    statistics: Mapping[str, SecondMoment] | None
    layers: Sequence[str]

    def __getitem__(self, name: str) -> NullSpace | SoftNullSpace | None:
        return self.method.space(self.statistics[name]) if self.statistics is not None else None

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _statistics(
    loaded: Loaded, method: FeatureMethod, study: FeatureStudy, given: Path | None, scratch: Path
) -> StoredMoments | None:
    """The statistics a method works with, in a file that is read one layer at a time; None if it needs none."""
    if not method.needs_moments:
        return None
    layers = loaded.visual.editable(method.last_blocks)
    if given is not None:
        if (basis := getattr(method, "basis", "inputs")) != "inputs":
            raise BadInput(
                f"--moments {given}: holds moments of layer inputs, not of {basis}; leave out one of the two"
            )
        return given_moments(given, layers, loaded)
    found = method.moments(study)
    save_moments(found or {}, scratch / "moments.safetensors", {})
    return load_moments(scratch / "moments.safetensors", found)[0]


def _edit_outputs(
    loaded: Loaded, method: OutputMethod, forget: Split, retain: Split, validation: Split, gate: bool
) -> Edit:
    start = time.perf_counter()
    keeps = AnswerGate(loaded, validation.without(forget.subjects)) if gate else None
    forget = _to_forget(forget)
    if isinstance(method, DirectOutputMethod):
        deltas, own = method.solve(loaded, forget, retain), dict(loaded.model.named_parameters())
        before = {name: own[name].detach().clone() for name in deltas}
        edited = _add(deltas, own)
        history: History = []
    else:
        plan = method.plan(loaded, forget, retain)
        loaded.model.train()
        before = {name: p.detach().clone() for name, p in plan.edited.items()}
        edited, history = dict(plan.edited), plan.carry_out(method.name)
    seconds = time.perf_counter() - start
    _as_written(edited, loaded, method.name)
    loaded.model.eval()
    if keeps is not None:
        keeps.check()
    return Edit(seconds, before, history, None)


def _to_forget(forget: Split) -> Split:
    """The questions that must no longer be answered: not those about what anybody can see in the picture.

    Our choice, for every method on answers: unlearning visible attributes is asked by nobody, and methods that teach
    another answer to every question about a target would take them along (docs/LOG.md).

    Raises:
        BadInput: nothing is left.
    """
    asked = Split(tuple(e for e in forget if e.probe != "attribute"))
    if not asked.pictured:
        raise BadInput(
            f"{', '.join(forget.subjects)}: asked about their pictures is nothing but visible attributes, which stay; "
            "add questions about who is shown, or take a method on features, such as nscvf"
        )
    return asked


def _edit_prompt(
    loaded: Loaded, method: InContextUnlearning, forget: Split, validation: Split, gate: bool
) -> tuple[Edit, str]:
    """An edit of no weight, and what is to stand in front of every chat template."""
    start = time.perf_counter()
    keeps = AnswerGate(loaded, validation.without(forget.subjects)) if gate else None
    instructed = method.instructed(loaded, forget)
    seconds = time.perf_counter() - start
    if keeps is not None:
        keeps.check(instructed)
    return Edit(seconds, {}, [], None), method.prelude(forget)
