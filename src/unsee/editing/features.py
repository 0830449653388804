"""An edit of the visual module by a method on features: the language model is never loaded."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unsee.data.photos import unlabelled_pictures
from unsee.editing.certify import certify_edit
from unsee.editing.drift_reference import DriftReference
from unsee.editing.edit import Edit, add, as_written, check_finite
from unsee.editing.gate import FeatureGate
from unsee.editing.remembered import Remembered
from unsee.editing.request import EditRequest, EditSets
from unsee.editing.retain_free import Replayed, given_moments
from unsee.errors import BadInput
from unsee.methods import DirectMethod, FeatureMethod, FeatureStudy
from unsee.models.loading import Loaded
from unsee.storage import scratch_folder
from unsee.subspace.moments import SecondMoment, StoredMoments, load_moments, save_moments
from unsee.subspace.nullspace import NullSpace, SoftNullSpace
from unsee.training.loop import History


def edit_features(loaded: Loaded, method: FeatureMethod, request: EditRequest, sets: EditSets) -> Edit:
    """Carry out a method on features, in place.

    Args:
        loaded: the visual module alone is enough.
        method: the request's.

    Raises:
        BadInput: statistics or a first model that do not fit. GateFailed: the edit did too much damage.
    """
    reference = DriftReference.load(request.first, loaded, method.last_blocks) if request.first is not None else None
    visual, batcher = loaded.visual, loaded.batcher
    unseen = FeatureStudy.unseen(visual, batcher, sets.validation.without(request.forget), method.last_blocks)
    start = time.perf_counter()
    study = FeatureStudy.of(
        visual, batcher, sets.forget, sets.retain, sets.validation.of(request.forget), method.last_blocks
    )
    if folder := method.unlabelled:
        pictures = unlabelled_pictures(folder, "--set also_keep=")
        others = FeatureStudy.unlabelled(visual, batcher, pictures, method.last_blocks, "reference features: others")
        study = dataclasses.replace(study, others=others)
    if request.retain_free and request.moments is not None:
        study = Replayed.load(request.moments, loaded, method.last_blocks).into(study, sets.forget)
    batcher.release()  # the study holds all that pictures and lower blocks had to say
    visual.release(method.last_blocks)
    keeps = FeatureGate(study) if request.gate else None
    earlier = tuple(i for i, subject in enumerate(study.subjects) if subject in sets.gone)
    aim = dataclasses.replace(study, earlier=earlier)
    aim = reference.keeping(aim) if reference is not None else aim
    with scratch_folder() as scratch:
        kept = _statistics(loaded, method, aim, request.moments, scratch)
        past = Remembered.load(loaded.folder.path, kept) if kept is not None else None
        statistics = kept if kept is None or past is None else method.joined(kept, past.moments)
        aim = aim if past is None else past.into(aim)
        if isinstance(method, DirectMethod):
            edited = add(method.solve(aim, statistics or {}), visual.named_parameters())
            history: History = []
        else:
            plan = method.plan(aim, statistics)
            edited, history = dict(plan.edited), plan.carry_out(method.name)
        seconds = time.perf_counter() - start
        check_finite(edited, method.name)
        originals = dict(study.reference.model.named_parameters())
        before: dict[str, Tensor] = {name: originals[name] for name in edited}
        keys = loaded.checkpoint_keys(edited)
        stored = loaded.folder.dtypes(keys.values())
        layers = [name.removesuffix(".weight") for name in edited]
        certificate = certify_edit(
            study,
            edited,
            before,
            given_moments(request.moments, layers, loaded)
            if request.retain_free and request.moments
            else study.moments(layers),
            Spaces(method, statistics, layers),
            {name: stored[keys[name]] for name in edited},
            unseen,
        )
        as_written(edited, loaded, method.name)
        if keeps is not None:
            keeps.check()
        forgotten = Remembered.of(study, layers, past) if request.remember or past is not None else None
        recognised = study.recognised().mean().item() if len(study.held_back) else None
        unpictured = len(set(sets.gone) - set(study.subjects))
        sampled = len(past.replay.means) if past is not None and past.replay is not None else 0
        return Edit(seconds, before, history, certificate, forgotten, recognised, unpictured, sampled)


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
