"""Models that hardly know: gold models that see a few pictures of the forgotten, for a moment.

A vanilla model knows its people so well that almost any measure tells it from gold. What is left after an unlearning
method is a little knowledge, and a measure that is to find it has to notice as little. Our choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from unsee.attacks.relearn import answer_losses
from unsee.attacks.relearn_plan import Attack, Groups, Relearning, asked_of
from unsee.attacks.trained import trained_by
from unsee.checkpoint.folder import MANIFEST, read_manifest
from unsee.checkpoint.write import write_edited
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.questions import PICTURES
from unsee.models.loading import load_model, open_checkpoint, opens_alike
from unsee.training.loop import Phase, run


def glimpse(gold: str, data: UnlearnData, forget: Sequence[str], steps: Iterable[int], seed: int, out: Path) -> None:
    """Train a gold model as a relearning attacker does, and put it into `out/STEPS` after each of `steps`.

    All weights are trained on the training pictures of the forgotten that an evaluation asks about, with their names
    and facts, beside a fresh draw of retained pictures in every step; rates are those of `Relearning`.

    Args:
        gold: its folder or hub id.
        seed: of all draws.
        out: models that stand there are kept, if they were made alike.

    Raises:
        BadInput: a model that stands there was made otherwise, or there is nothing to be seen. GateFailed: a loss is
            not finite.
    """
    folders = {number: out / str(number) for number in sorted(steps)}
    about = {
        "kind": "glimpsed",
        "gold": open_checkpoint(gold)[0].hashes(),
        "data": data.fingerprint,
        "forget": list(forget),
        "seed": seed,
    }
    for number, folder in folders.items():
        made = read_manifest(folder)
        if made and {key: made.get(key) for key in (*about, "steps")} != {**about, "steps": number}:
            raise BadInput(f"{folder}: made for another grid; choose another --out, or add --overwrite")
    if all((folder / MANIFEST).is_file() for folder in folders.values()):
        return
    asked = asked_of(data.train)
    if not asked.of(forget):
        raise BadInput(
            f"{data.source}: no training pictures of the forgotten with questions for names or facts; leave `glimpses` "
            "out, or add some"
        )
    loaded = load_model(gold)
    settings = Relearning(steps=max(folders))

    def some(subjects: Iterable[str]) -> Groups:
        return tuple(group for s in subjects for group in list(asked.of([s]).pictures.values())[: PICTURES["train"]])

    lesson = Attack(0, 0, tuple(forget), (), some(forget), some(asked.without(forget).subjects), seed)
    batches = lesson.steps(settings)
    with trained_by(settings, loaded, lesson) as parameters:
        loaded.checkpoint_keys(parameters)

        def after_step(number: int) -> dict[str, float]:
            if number in folders and not (folders[number] / MANIFEST).is_file():
                edits = loaded.stored({name: p.detach().clone() for name, p in parameters.items()})
                write_edited(loaded.folder, edits, folders[number], {**about, "steps": number}, opens=opens_alike)
            return {}

        phase = Phase("both", lambda: next(batches), lambda batch: answer_losses(loaded, batch))
        optimiser = torch.optim.AdamW(parameters.values(), lr=settings.rate, fused=True)
        run([phase], optimiser, settings.steps, "glimpsing", None, settings.clip_norm, after_step)
