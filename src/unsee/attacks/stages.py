"""What pictures look like inside a model: one vector per picture at every stage, from the first block to the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from unsee.data.examples import Example, ImageSource
from unsee.methods.parts.features import entering
from unsee.models.loading import Loaded, load_visual
from unsee.models.packed import Packed

States = dict[str, Tensor]
"""Stage -> one vector per picture [pictures, width of the stage], float32, on the processor."""

TOWER, PROJECTOR = "tower output", "visual tokens"


@torch.no_grad()
def states(loaded: Loaded, images: Sequence[ImageSource], question: str, depths: int, what: str) -> States:
    """The states of pictures at every stage, in the order in which a pass goes through them.

    Inside the visual module a picture is the mean over its positions; in the language model it is the state at the last
    position of the prompt, where the answer begins. Each picture passes the model once. At most
    `features.POSITIONS` positions (or one picture) are in the tower at a time, and prompts of equal length in the
    language model, so nothing is padded and a picture's states do not depend on its neighbours.

    Args:
        images: one or more.
        question: asked about every picture alone.
        depths: how many blocks of the tower, and layers of the language model, are read, see `evenly_deep`.
        what: is done, for the progress bar.
    """
    visual = loaded.visual
    cuts = evenly_deep(len(visual.blocks), depths)
    names = [*(f"vision block {cut}" for cut in cuts[:-1]), TOWER][: len(cuts)]
    found: dict[str, list[Tensor]] = {}
    at = 0
    for hidden in entering(visual, loaded.batcher, images, what):
        start = 0
        for cut, name in zip(cuts, names, strict=True):
            hidden = visual.run(hidden, start, cut)
            found.setdefault(name, []).append(hidden.with_states(hidden.states.float()).mean())
            start = cut
        tokens = visual.leave(hidden)
        found.setdefault(PROJECTOR, []).append(tokens.with_states(tokens.states.float()).mean())
        shown = images[at : at + len(tokens)]
        for name, values in _answering(loaded, tokens, shown, question, depths).items():
            found.setdefault(name, []).append(values)
        at += len(tokens)
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def _answering(
    loaded: Loaded, tokens: Packed, images: Sequence[ImageSource], question: str, depths: int
) -> dict[str, Tensor]:
    """States at the answer position after layers of the language model [pictures, width]."""
    batcher = loaded.batcher
    layers: Sequence[nn.Module] = list(loaded.family.language_model(loaded.model).layers)  # type: ignore[arg-type]
    chosen = {f"language layer {number}": layers[number - 1] for number in evenly_deep(len(layers), depths)}
    shown = loaded.visual.assemble(tokens, batcher.images(images))
    alike: dict[int, list[int]] = {}
    for picture, positions in enumerate(shown):
        alike.setdefault(len(positions), []).append(picture)
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for pictures in alike.values():
        asked = [Example(question, "", "", images[picture], "identity") for picture in pictures]
        prompts = {name: x for name, x in batcher.for_generation(asked).items() if name != "pixel_values"}
        with last_positions(chosen) as latest:
            loaded.family.with_visual_tokens(loaded.model, [shown[picture] for picture in pictures], prompts)
        for name in chosen:
            found[name].append(latest[name])
    order = torch.tensor([picture for pictures in alike.values() for picture in pictures]).argsort()
    return {name: torch.cat(parts)[order] for name, parts in found.items()}


@contextmanager
def last_positions(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each layer gives at the last position in its latest call [rows, width]; only that is kept of a pass."""
    latest: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            latest[name] = states[:, -1].float()

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def evenly_deep(count: int, depths: int) -> tuple[int, ...]:
    """After how many of `count` layers to read: at most `depths` places, evenly spaced, the last layer among them."""
    places = min(depths, count)
    return tuple(-(-count * (place + 1) // places) for place in range(places))


def random_model(path: str, seed: int) -> Loaded:
    """A model of the configuration of a checkpoint whose weights were never trained: as its class draws them.

    It reads pictures and words as that checkpoint does. The global random state is left as it was.

    Raises:
        BadInput: see `load_visual`.
    """
    with torch.random.fork_rng(devices=[]):
        known = load_visual(path)
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(known.model.config, dtype=torch.float32)
    return dataclasses.replace(known, model=model.eval().to(known.batcher.device))
