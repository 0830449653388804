"""Saliency of weights: fitters, rules, the mask in memory, on disk, and around optimiser steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from unsee.errors import BadInput
from unsee.subspace import saliency
from unsee.subspace.constrain import claimed
from unsee.subspace.saliency import (
    FisherSaliency,
    GradientSaliency,
    Mask,
    Saliency,
    StoredBits,
    kept_mask,
    load_mask,
    pack,
    ratio_rule,
    save_mask,
    steps_masked,
    top_rule,
    unpack,
)

Weights = dict[str, nn.Parameter]
ORIGIN = {"weights": "w", "data": "d", "rule": "r"}


def weights(dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> Weights:
    generator = torch.Generator().manual_seed(0)
    wanted = shapes or {"a": (5, 7), "b": (3,), "c": (2, 3, 3)}
    return {name: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for name, s in wanted.items()}


def feed(fitter: Saliency, gradients: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        fitter.parameters[name].grad = gradient.clone()
    fitter.add()


def random_gradients(parameters: Weights, batches: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()} for _ in range(batches)]


def known(values: Mapping[str, Tensor]) -> Saliency:
    """A saliency of these values."""
    fitter = GradientSaliency({name: nn.Parameter(torch.zeros_like(v)) for name, v in values.items()})
    feed(fitter, values)
    return fitter


@pytest.fixture
def mask() -> Mask:
    generator = torch.Generator().manual_seed(2)
    return Mask.of((n, torch.rand(p.shape, generator=generator) < 0.4) for n, p in weights().items())


# Fitters --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (FisherSaliency, lambda batches: batches.square().mean(0), lambda batches: batches.mean(0).square()),
        (GradientSaliency, lambda batches: batches.sum(0).abs(), lambda batches: batches.abs().sum(0)),
    ],
)
def test_what_saliency_is_made_of(
    kind: type[Saliency], right: Callable[[Tensor], Tensor], wrong: Callable[[Tensor], Tensor]
) -> None:
    """The mean of squared batch gradients; the size of their sum."""
    batches = random_gradients(weights(), 6)
    fitter = kind(weights())
    for gradients in batches:
        feed(fitter, gradients)
    for name in fitter.parameters:
        stacked = torch.stack([gradients[name] for gradients in batches])
        torch.testing.assert_close(fitter[name], right(stacked))
        assert not torch.allclose(fitter[name], wrong(stacked))


@pytest.mark.parametrize("kind", [FisherSaliency, GradientSaliency])
def test_gradients_are_taken_and_cleared(kind: type[Saliency]) -> None:
    fitter = kind(weights())
    feed(fitter, {"a": torch.ones(5, 7)})  # the loss does not depend on the others: their gradient is zero
    assert all(p.grad is None for p in fitter.parameters.values())
    assert fitter["a"].eq(1).all()
    assert fitter["b"].eq(0).all()
    with pytest.raises(ValueError, match="call backward first"):
        fitter.add()


@pytest.mark.parametrize("kind", [FisherSaliency, GradientSaliency])
def test_a_broken_gradient_adds_nothing(kind: type[Saliency]) -> None:
    fitter = kind(weights())
    feed(fitter, {"a": torch.ones(5, 7)})
    with pytest.raises(ValueError, match="'b' is not finite"):
        feed(fitter, {"a": torch.ones(5, 7), "b": torch.tensor([0.0, math.nan, 0.0])})
    assert fitter.batches == 1
    assert fitter["a"].eq(1).all()


def test_parameters_without_gradients_are_refused() -> None:
    frozen = weights()
    frozen["b"].requires_grad_(False)
    with pytest.raises(ValueError, match="'b' collects no gradient"):
        FisherSaliency(frozen)
    with pytest.raises(ValueError, match="no parameters"):
        FisherSaliency({})
    with pytest.raises(ValueError, match="at least one batch"):
        FisherSaliency(weights())["a"]


# Rules ----------------------------------------------------------------------------------------------------------------


def test_ratio_rule_by_hand() -> None:
    forget = known({"w": torch.tensor([0.0, 1.0, 2.0, 1.9, 5.0])})
    preserve = known({"w": torch.tensor([0.0, 0.0, 1.0, 1.0, 5.0])})
    assert dict(ratio_rule(forget, preserve, 2.0))["w"].tolist() == [False, True, True, False, False]
    assert dict(ratio_rule(forget, preserve, 1.0))["w"].tolist() == [False, True, True, True, True]


def test_ratio_rule_refuses_what_it_knows_nothing_of() -> None:
    with pytest.raises(ValueError, match="'b' matters"):
        list(ratio_rule(known({"a": torch.ones(2)}), known({"b": torch.ones(2)}), 1.0))


def test_small_float16_gradients_give_a_sane_mask() -> None:
    """Their squares are zero in float16: 0 / 0 and x / 0 would decide."""
    small = torch.tensor([1e-4, 2e-4, 1e-4, 0.0, 3e-4], dtype=torch.float16)
    large = torch.tensor([2e-4, 1e-4, 1e-4, 0.0, 0.0], dtype=torch.float16)
    expected = [False, True, True, False, True]
    fitters = []
    for gradient in (small, large):
        fitter = FisherSaliency(weights(torch.float16, w=(5,)))
        for _ in range(3):
            feed(fitter, {"w": gradient})
        fitters.append(fitter)
    assert fitters[0]["w"].dtype == torch.float32
    assert dict(ratio_rule(*fitters, 1.0))["w"].tolist() == expected
    epsilon = torch.tensor(1e-15, dtype=torch.float16)
    public = (small.square() + epsilon) / (large.square() + epsilon)
    assert public.isnan().any()
    assert (public >= 1).tolist() != expected


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_top_rule_ranks_all_entries_together(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = {"large": 10 * torch.rand(40, generator=generator), "small": torch.rand(6, 10, generator=generator)}
    everything = torch.cat([v.flatten() for v in values.values()])
    kept = everything.argsort(descending=True)[: round(share * 100)]
    expected = torch.zeros(100, dtype=torch.bool).index_fill(0, kept, True)
    found = dict(top_rule(known(values), share))
    assert torch.equal(torch.cat([found["large"].flatten(), found["small"].flatten()]), expected)
    if share == 0.5:  # a ranking of each parameter by itself keeps others
        apart = {name: dict(top_rule(known({name: v}), share))[name] for name, v in values.items()}
        assert not torch.equal(torch.cat([apart["large"].flatten(), apart["small"].flatten()]), expected)


def test_top_rule_never_keeps_what_does_not_matter() -> None:
    values = {"w": torch.tensor([0.0, 0.0, 0.0, 1e-30, 3.0])}
    assert dict(top_rule(known(values), 0.8))["w"].tolist() == [False, False, False, True, True]
    assert dict(top_rule(known({"w": torch.ones(4)}), 0.5))["w"].all()  # all alike: none is left out


# The mask -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 4), (9, 1), ()])
def test_packing_loses_nothing(shape: tuple[int, ...]) -> None:
    entries = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
    bits = pack(entries)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-entries.numel() // 8)
    assert torch.equal(unpack(bits, tuple(entries.shape)), entries)
    assert not torch.equal(unpack(bits ^ 1, tuple(entries.shape)), entries)


def test_share_counts_entries_not_padding(mask: Mask) -> None:
    kept = sum(int(m.sum()) for m in mask.values())
    assert mask.share == kept / (35 + 3 + 18)
    assert Mask.of([("w", torch.ones(3, dtype=torch.bool))]).share == 1.0


def test_names_must_match(mask: Mask) -> None:
    parameters = weights()
    mask.fits(parameters)
    for wrong, message in (
        ({"a": parameters["a"]}, "match no parameter: b, c"),
        (parameters | weights(d=(2,)), "says nothing of 'd'"),
        (parameters | weights(b=(4,)), "'b' is"),
    ):
        with pytest.raises(ValueError, match=message):
            mask.fits(wrong)
        with pytest.raises(ValueError, match=message), steps_masked(AdamW(wrong.values()), wrong, mask):
            pass


# Steps ----------------------------------------------------------------------------------------------------------------


def forget_and_retain(mask: Mask | None, restored: bool = True, steps: int = 20) -> tuple[list[dict[str, Tensor]], ...]:
    """Weights before and after each of `steps` masked steps; an unmasked one before each feeds the momentum."""
    parameters = weights()
    optimiser = AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    before, after = [], []
    for gradients, others in zip(random_gradients(parameters, steps), random_gradients(parameters, steps), strict=True):
        for name, p in parameters.items():
            p.grad = -others[name]
        optimiser.step()
        before.append({n: p.detach().clone() for n, p in parameters.items()})
        for name, p in parameters.items():
            p.grad = gradients[name].clone()
            if mask is not None and not restored:
                p.grad *= mask[name]
        if mask is not None and restored:
            with steps_masked(optimiser, parameters, mask):
                optimiser.step()
        else:
            optimiser.step()
        after.append({n: p.detach().clone() for n, p in parameters.items()})
    return before, after


def moved_outside(mask: Mask, before: list[dict[str, Tensor]], after: list[dict[str, Tensor]]) -> bool:
    return any(
        not torch.equal(a[name][~m], b[name][~m])
        for b, a in zip(before, after, strict=True)
        for name, m in mask.items()
    )


def test_masked_entries_stay_bit_identical(mask: Mask) -> None:
    before, after = forget_and_retain(mask)
    assert not moved_outside(mask, before, after)
    assert all((a[n] != b[n])[m].all() for b, a in zip(before, after, strict=True) for n, m in mask.items())
    assert moved_outside(mask, *forget_and_retain(mask, restored=False)), "momentum and decay leak through"


def test_a_mask_of_everything_changes_nothing_and_a_smaller_one_does(mask: Mask) -> None:
    everything = Mask.of((name, torch.ones_like(m)) for name, m in mask.items())
    free, full, some = (forget_and_retain(m)[1][-1] for m in (None, everything, mask))
    assert all(torch.equal(free[name], full[name]) for name in free)
    assert not any(torch.equal(free[name], some[name]) for name in free)


def test_momentum_of_masked_entries_stays_nought(mask: Mask) -> None:
    """Where every step is masked."""
    parameters = weights()
    optimiser = AdamW(parameters.values(), lr=1e-2)
    with steps_masked(optimiser, parameters, mask):
        for gradients in random_gradients(parameters, 3):
            for name, p in parameters.items():
                p.grad = gradients[name]
            optimiser.step()
    for name, p in parameters.items():
        moments = optimiser.state[p]["exp_avg"]
        assert moments[~mask[name]].eq(0).all()
        assert moments[mask[name]].ne(0).all()


def test_nothing_remains_of_the_constraint(mask: Mask) -> None:
    parameters = weights()
    optimiser = AdamW(parameters.values(), lr=1e-2)
    with pytest.raises(ValueError, match="one constraint only"), steps_masked(optimiser, parameters, mask):
        steps_masked(optimiser, parameters, mask).__enter__()
    start = {n: p.detach().clone() for n, p in parameters.items()}
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    with claimed(list(parameters.values())):
        optimiser.step()
    assert all((p != start[n]).all() for n, p in parameters.items())


def test_a_mask_of_weights_that_are_not_trained_is_refused(mask: Mask) -> None:
    """Beside adapters, for instance: the public script's mask then does nothing."""
    parameters = weights()
    optimiser = AdamW([p for n, p in parameters.items() if n != "b"])
    with pytest.raises(ValueError, match="'b' is not among the optimiser's"), steps_masked(optimiser, parameters, mask):
        pass


# On disk --------------------------------------------------------------------------------------------------------------


def test_a_file_holds_the_same_in_an_eighth_of_a_byte_per_entry(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    mask = Mask.of((f"layer.{i}.weight", torch.rand(100, 803, generator=generator) < 0.3) for i in range(4))
    path = tmp_path / "new" / "mask.safetensors"
    save_mask(mask, path, ORIGIN)
    stored, origin = load_mask(path)
    assert origin == ORIGIN | {"format": saliency.FORMAT}
    assert {n: torch.equal(stored[n], mask[n]) for n in mask} == dict.fromkeys(mask, True)
    assert stored.share == mask.share
    entries = 4 * 100 * 803
    assert entries / 8 <= path.stat().st_size < entries / 8 + 2000 < entries  # a boolean of torch takes a byte
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_stored_mask_is_read_one_parameter_at_a_time(
    mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_mask(mask, tmp_path / "mask", ORIGIN)
    stored, _ = load_mask(tmp_path / "mask")
    read: list[str] = []
    original = StoredBits.__getitem__
    monkeypatch.setattr(StoredBits, "__getitem__", lambda self, name: read.append(name) or original(self, name))
    stored["b"]
    assert read == ["b"]
    stored.fits(weights())
    assert read == ["b"], "names and shapes cost nothing"


def test_an_interrupted_save_leaves_nothing(mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_mask(mask, tmp_path / "mask", ORIGIN)
    old = (tmp_path / "mask").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BadInput, match="disk full"):
        save_mask(mask, tmp_path / "mask", {"weights": "others"})
    assert (tmp_path / "mask").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def foreign(path: Path) -> None:
    save_file({"w": torch.ones(2)}, path)


def text(path: Path) -> None:
    path.write_text("mask")


def without_shapes(path: Path) -> None:
    save_file(load_file(path), path, metadata={"format": saliency.FORMAT, "sha256": ""})


def of_another_shape(path: Path) -> None:
    shapes = json.dumps({"a": 3})
    save_file(load_file(path), path, metadata={"format": saliency.FORMAT, "sha256": "", "shapes": shapes})


def naming_more(path: Path) -> None:
    shapes = json.dumps({"z": [3]})
    save_file(load_file(path), path, metadata={"format": saliency.FORMAT, "sha256": "", "shapes": shapes})


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil", [truncated, flipped, foreign, text, without_shapes, of_another_shape, naming_more, a_folder]
)
def test_a_damaged_or_foreign_file_is_one_line(mask: Mask, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "mask"
    save_mask(mask, path, ORIGIN)
    load_mask(path)
    spoil(path)
    with pytest.raises(BadInput) as caught:
        kept_mask(path, weights(), lambda: ORIGIN, lambda: mask)
    assert f"mask_file={path}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_one_line(mask: Mask, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        save_mask(mask, tmp_path / "file" / "mask", ORIGIN)


def test_a_kept_mask_is_made_once_and_never_stale(mask: Mask, tmp_path: Path) -> None:
    made: list[int] = []

    def fit() -> Mask:
        made.append(1)
        return mask

    path = tmp_path / "mask"
    for expected in (1, 1):
        found = kept_mask(path, weights(), lambda: ORIGIN, fit)
        assert all(torch.equal(found[n], mask[n]) for n in mask)
        assert len(made) == expected
    for key in ORIGIN:
        with pytest.raises(BadInput, match=f"made of another {key}; delete it"):
            kept_mask(path, weights(), lambda key=key: ORIGIN | {key: "other"}, fit)
    with pytest.raises(BadInput, match="says nothing of 'd'"):
        kept_mask(path, weights() | weights(d=(2,)), lambda: ORIGIN, fit)
    assert len(made) == 1
    kept_mask(None, weights(), pytest.fail, fit)  # without a file nothing is asked about origins
    assert len(made) == 2
