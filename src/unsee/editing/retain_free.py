"""Statistics of what must stay: taken once, stored in a file, used when the pictures are no longer there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unsee.checkpoint.folder import lineage, read_manifest
from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput
from unsee.methods.parts.features import FeatureStudy, Pictures, attributes, look
from unsee.models.loading import Loaded, load_visual
from unsee.models.packed import Packed
from unsee.storage import alone
from unsee.subspace.moments import StoredMoments, load_extra, load_moments, save_moments, watching
from unsee.subspace.replay import Replay

RANK = 64  # directions of a replay distribution's covariance
SAMPLES = 8192  # drawn from it for one edit
TARGET_LIKE = 0.65  # cosine to a target's centroid from which a sample is not kept in place: chosen on seeds 100-102
RIDGE = 1e-2  # of the read-out of visible attributes, relative
NOBODY = "stores no single subject's mean"


@alone
def fit_moments(
    model: str,
    data: UnlearnData,
    out: Path,
    last_blocks: int | None = None,
    replay_group: int | None = None,
) -> dict[str, str]:
    """Second moments of every visual layer's inputs over all training pictures of `data`, and if asked for a replay
    distribution, with which edits need no retained picture at all.

    Args:
        data: only what must be kept.
        last_blocks: how many blocks from the feature layer down; all of them by default. A replay distribution is of
            hidden states below the last two, or as many as given.
        replay_group: subjects per stored mean of the replay distribution, see `Replay.fit`; None: no replay.

    Returns:
        the origin written into the file: what is in it, with bytes, and whether it identifies a person.
    """
    loaded = load_visual(model)
    visual, pictures = loaded.visual, data.train.pictures
    if not pictures:
        raise BadInput(f"{data.source}: no training pictures to take statistics from")
    layers = visual.editable(len(visual.blocks) if last_blocks is None else last_blocks)
    depth = min(2, len(visual.blocks)) if last_blocks is None else last_blocks
    with watching(layers) as moments:
        hidden, tokens = look(
            visual, loaded.batcher, list(pictures), len(visual.blocks) - depth, "statistics of retained pictures"
        )
    about = {"weights": weights_id(loaded.folder.hashes()), "data": data.fingerprint, "pictures": str(len(pictures))}
    about["image_backend"] = loaded.batcher.image_backend
    size = sum(t.nbytes for m in moments.values() for t in (m.total, m.sum))
    about["moments"] = (
        f"{len(moments)} layers, sums over all pictures of {len(data.train.pictured.subjects)} subjects, {size} bytes; "
        f"{NOBODY}"
    )
    extra: dict[str, Tensor] = {}
    if replay_group is not None:
        extra, stored = _replay(data, hidden, tokens, replay_group, depth)
        about |= stored
    save_moments(moments, out, about, extra)
    return about


def _replay(
    data: UnlearnData, hidden: Packed, tokens: Packed, group: int, depth: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not hidden.uniform:
        raise BadInput(f"{data.source}: pictures of different sizes; a replay distribution needs one size for all")
    subjects = data.train.pictured.subjects
    number = {subject: i for i, subject in enumerate(subjects)}
    subject = torch.tensor([number[questions[0].subject] for questions in data.train.pictures.values()])
    replay = Replay.fit(hidden.stack().flatten(1).cpu(), subject, group, RANK)
    tables = attributes([data.train], {})
    extra = replay.tensors()
    if tables:
        seen, shown = tokens.mean().cpu().double(), torch.cat([table for _, _, table in tables], 1).double()
        centre = seen.mean(0)
        gram = (seen - centre).T @ (seen - centre)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, (seen - centre).T @ (shown - shown.mean(0)))
        extra |= {"looks.weight": weight.float().contiguous(), "looks.bias": (shown.mean(0) - centre @ weight).float()}
    stored = {
        "replay": f"{replay.meaning}, {sum(t.nbytes for t in extra.values())} bytes; "
        f"{'identifies single subjects' if replay.identifies else NOBODY}",
        "replay_shape": json.dumps({"last_blocks": depth, "length": hidden.lengths[0], "grid": hidden.grids[0]}),
        "looks": json.dumps({key: classes for key, classes, _ in tables}),
    }
    return extra, stored


@dataclass(frozen=True)
class Replayed:
    """A replay distribution from a file, to be put in the place of retained pictures.

    Attributes:
        looks: visible attributes and their classes.
        weight, bias: their read-out from mean visual tokens [width, classes], [classes]; None without attributes.
    """

    path: Path
    replay: Replay
    length: int
    grid: tuple[int, int, int]
    looks: Mapping[str, Sequence[str]]
    weight: Tensor | None
    bias: Tensor | None

    @staticmethod
    def load(path: Path, loaded: Loaded, last_blocks: int) -> Replayed:
        """Raises BadInput if there is none in the file, or it is of another model or depth."""
        _, about = load_moments(path)
        _same_model(path, about, loaded)
        extra = load_extra(path)
        try:
            replay = Replay.of(extra)
            shape: dict[str, Any] = json.loads(about.get("replay_shape", "{}"))
            looks: dict[str, list[str]] = json.loads(about.get("looks", "{}"))
            depth, length, grid = (shape.get(key) for key in ("last_blocks", "length", "grid"))
            if shape and not (isinstance(length, int) and isinstance(grid, list) and len(grid) == 3):
                raise ValueError("replay distribution without the shape of its pictures")
        except ValueError as error:
            raise BadInput(f"--moments {path}: {error}; fit it again") from error
        if replay is None or length is None or grid is None:
            raise BadInput(
                f"--moments {path}: no replay statistics in it; fit it again with `unsee moments fit --replay-group 2`"
            )
        if depth != last_blocks:
            raise BadInput(
                f"--moments {path}: its replay distribution is for last_blocks={depth}, "
                f"not {last_blocks}; fit it again with --last-blocks {last_blocks}"
            )
        weight, bias = extra.get("looks.weight"), extra.get("looks.bias")
        return Replayed(path, replay, length, (grid[0], grid[1], grid[2]), looks, weight, bias)

    def into(self, study: FeatureStudy, forget: Split) -> FeatureStudy:
        """`study` with samples in the place of retained pictures: groups in the place of subjects.

        Samples that look like a target to the reference are left out: they would hold in place what must move.
        """
        shape = {*zip(study.forget.hidden.lengths, study.forget.hidden.grids, strict=True)}
        if shape != {(self.length, self.grid)}:
            raise BadInput(f"--moments {self.path}: taken from pictures of another size than those to be forgotten")
        states, group = (drawn.to(study.forget.subject.device) for drawn in self.replay.sample(SAMPLES))
        hidden = Packed(states.view(SAMPLES * self.length, -1), (self.length,) * SAMPLES, (self.grid,) * SAMPLES)
        tokens = study.reference_tail(hidden)
        plain = dataclasses.replace(study, retain=Pictures(hidden, tokens, group + study.forgotten))
        like = (plain.direction(tokens) @ plain.target_centroids.T).amax(1)
        chosen = (like < TARGET_LIKE).nonzero()[:, 0]
        if not len(chosen):
            raise BadInput(
                f"--moments {self.path}: every sample looks like somebody to be forgotten; "
                "fit it again without them: --without"
            )
        groups, subject = group[chosen].unique(return_inverse=True)
        return dataclasses.replace(
            study,
            retain=Pictures(hidden[chosen], tokens[chosen], subject + study.forgotten),
            subjects=study.subjects[: study.forgotten] + tuple(f"group {i}" for i in groups.tolist()),
            attributes=self._attributes(forget, tokens[chosen]),
        )

    def _attributes(self, forget: Split, tokens: Packed) -> tuple[Tensor, ...]:
        """Tables of the forget pictures' attributes and of those that the read-out sees in samples."""
        if self.weight is None or self.bias is None:
            return ()
        columns = (tokens.mean().cpu() @ self.weight + self.bias).split([len(c) for c in self.looks.values()], 1)
        scores = dict(zip(self.looks, columns, strict=True))
        tables = []
        for key, classes, table in attributes([forget], self.looks):
            if key in scores:
                known = F.one_hot(scores[key].argmax(1), len(self.looks[key])).float()
                place = torch.tensor([classes.index(c) for c in self.looks[key]])
                samples = torch.zeros(len(tokens), len(classes)).index_copy_(1, place, known)
                tables.append(torch.cat([table, samples]).to(tokens.states.device))
        return tuple(tables)


def given_moments(path: Path, layers: Iterable[str], loaded: Loaded) -> StoredMoments:
    """The moments of these layers in a file, if they were taken from this model or from one it was made from.

    Raises:
        BadInput: see `load_moments`; or they are another model's.
    """
    moments, about = load_moments(path, layers)
    _same_model(path, about, loaded)
    return moments


def _same_model(path: Path, about: Mapping[str, str], loaded: Loaded) -> None:
    """Statistics of what must stay are taken once and used for request after request: edits inside their null space
    leave them what they are, but for the drift that each edit's manifest adds up.
    """
    line = lineage(read_manifest(loaded.folder.path))
    known = [loaded.folder.hashes(), *(ancestor["sha256"] for ancestor in line)]
    if about.get("weights") not in [weights_id(hashes) for hashes in known]:
        raise BadInput(
            f"--moments {path}: taken from another model than {loaded.folder.path} and those it was made from; fit "
            "them again"
        )


def weights_id(hashes: Mapping[str, str]) -> str:
    """SHA-256 of a model's files in one line."""
    return " ".join(f"{name}:{value}" for name, value in sorted(hashes.items()))
