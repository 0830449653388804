"""Likelihoods of given answers, with pictures and prompts shared, are those of one padded pass over all of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import NewCheckpoint
from torch import Tensor

from unsee.data.examples import Example, UnlearnData
from unsee.models.batching import answer_scores
from unsee.models.loading import Loaded, load_model
from unsee.study.protocol import recite

CLOSE = 1e-4


@torch.no_grad()
def padded(loaded: Loaded, examples: list[Example]) -> list[tuple[Tensor, Tensor]]:
    """Every answer in a row of its own: log-likelihoods and whether each token is the most likely one."""
    scores, tokens, rows = answer_scores(loaded.model, loaded.batcher.for_training(examples))
    log_probs = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    hits = scores.argmax(-1) == tokens
    return [(log_probs[rows == row], hits[rows == row]) for row in range(len(examples))]


def agree(found: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(
        one.shape == two.shape and bool((one - two).abs().max() < CLOSE) and bool((hit == hits).all())
        for (one, hit), (two, hits) in zip(found, other, strict=True)
    )


def recited(loaded: Loaded, examples: list[Example]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor(r.log_probs), torch.tensor(r.hits)) for r in recite(loaded, examples)]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_sharing_changes_nothing(family: str, new_checkpoint: NewCheckpoint, ragged_people: UnlearnData) -> None:
    """Several answers to one question, out of order, the same twice, and with two pictures at once."""
    loaded = load_model(str(new_checkpoint(family=family)))
    names = list(ragged_people.names.values())
    asked = [e for e in ragged_people.test if e.probe == "identity"]
    examples = [dataclasses.replace(e, answer=f"{name} said") for name in names for e in asked]
    examples += [examples[0], dataclasses.replace(examples[1], others=(asked[-1].image,))]
    found = recited(loaded, examples)
    assert agree(found, padded(loaded, examples))
    assert agree(recited(loaded, examples[::-1]), found[::-1])
    assert not agree(recited(loaded, examples[1:] + examples[:1]), found)  # control: others of the same form
    turned = [dataclasses.replace(e, image=asked[0].image) for e in examples[:-1]]
    assert not agree(recited(loaded, turned), found[:-1])  # control: another picture
    written = [e for e in ragged_people.train if not e.images]
    assert agree(recited(loaded, written), padded(loaded, written))
