"""How a patch stores a change: exact for every pair of values, and small where its rank is low."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unsee.checkpoint import tensor_difference
from unsee.checkpoint.apply_patch import ERROR
from unsee.checkpoint.folder import DTYPES
from unsee.checkpoint.tensor_difference import SKETCH, TensorDifference, as_bytes, difference, sketch


def strange(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs of every two special values: signs of zero, subnormals, neighbours, the largest, infinities, NaNs."""
    about = torch.finfo(dtype)
    one = [0.0, -0.0, about.smallest_normal / 4, 1.0, 1.0 + about.eps, -1.0, about.max, about.min, about.tiny]
    values = torch.tensor([*one, float("inf"), -float("inf"), float("nan")], dtype=torch.float64).to(dtype)
    return values.repeat_interleave(len(values)), values.repeat(len(values))


@pytest.mark.parametrize("name", DTYPES)
def test_every_pair_of_values_is_exact_both_ways(name: str) -> None:
    old, new = strange(DTYPES[name])
    before, after = as_bytes(old), as_bytes(new)
    stored = TensorDifference.from_bytes(difference(before, after, name, (len(old),)).to_bytes(), name, (len(old),))
    assert stored.after(before) == after
    assert stored.before(after) == before
    naive = as_bytes((old + (new - old)).to(old.dtype))
    assert naive != after, "these values would not need what is stored beside the difference"


@pytest.mark.parametrize("name", DTYPES)
def test_the_float_difference_is_at_hand(name: str) -> None:
    torch.manual_seed(0)
    old = torch.randn(40, 30).to(DTYPES[name])
    for moved in (torch.randn(40, 30), torch.randn(40, 1) @ torch.randn(1, 30) * 0.01):
        new = (old.double() + moved).to(old.dtype)
        found = difference(as_bytes(old), as_bytes(new), name, (40, 30)).float_difference().double()
        exact, step = new.double() - old.double(), torch.finfo(old.dtype).eps * old.double().norm()
        assert (found - exact).norm() <= step
        assert not (found.flip(0) - exact).norm() <= step


def test_factors_are_taken_where_the_difference_is_of_low_rank() -> None:
    torch.manual_seed(0)
    old = torch.randn(128, 96)
    low, noise = torch.randn(128, 4) @ torch.randn(4, 96) * 0.01, torch.randn(128, 96) * 0.02
    sizes = {}
    for name, moved in (("low", low), ("full", noise), ("both", low + 1e-4 * noise)):
        stored = difference(as_bytes(old), as_bytes(old + moved), "F32", (128, 96))
        sizes[name] = stored.rank, len(stored.to_bytes())
    assert [rank for rank, _ in sizes.values()] == [4, 0, 0]
    assert sizes["low"][1] < 0.4 * sizes["full"][1]


def test_a_product_of_factors_is_the_same_in_every_order() -> None:
    """A patch is made on one machine and applied on another, which may sum in another order."""
    torch.manual_seed(0)
    low = torch.randn(200, 7) @ torch.randn(7, 100)
    factors = tensor_difference._factors(low.double().flatten(), torch.zeros(20000), low.flatten(), (200, 100))
    assert factors is not None
    left, right, exponent = factors
    order = torch.randperm(left.shape[1]).numpy()

    def product(a: Any, b: Any) -> Tensor:
        return tensor_difference._product(a, b, exponent, torch.float64)

    assert np.abs(left.astype(float)).max() ** 2 * left.shape[1] < 2**53
    assert torch.equal(product(left, right), product(left[:, order], right[order]))
    rough = left * 1.1, right * 1.1  # not integers
    assert not torch.equal(product(*rough), product(rough[0][:, order], rough[1][order]))


def test_distance_is_known_without_the_other_tensor() -> None:
    torch.manual_seed(0)
    ratios = []
    for _ in range(200):
        one, sparse = torch.randn(50, 40), torch.zeros(50, 40)
        sparse[3] = torch.randn(40)
        for moved in (torch.randn(50, 40) * 0.01, sparse):
            ratios.append(np.linalg.norm(sketch(one + moved) - sketch(one)) / float(moved.norm()))
    assert np.std(ratios) < 1.3 * ERROR
    assert abs(np.mean(ratios) - 1) < ERROR
    first = [float((moved.flatten()[:SKETCH]).norm() / moved.norm()) * (2000 / SKETCH) ** 0.5 for moved in (sparse,)]
    assert abs(first[0] - 1) > 1.3 * ERROR, "the first few entries would have told as much"
