"""What the certificate says is so: drift, its bound, and the effect on the outputs, each against the thing itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest
import torch
from spaces import RANK, SIZE, full_rank, gathered, low_rank, normal, random_space
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from unsee.subspace.certificate import (
    certify,
    drift_bound,
    first_order_effect,
    freed_eigenvalue,
    outside,
)
from unsee.subspace.nullspace import NullSpace, SoftNullSpace, null_space, relative_drift

# torch's own: what it registers for forward mode is written with its deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is:DeprecationWarning:torch.jit._script")

RULES = pytest.mark.parametrize(
    ("rule", "threshold"), [("energy", 0.05), ("relative", 0.02), ("rank", 0.5), ("absolute", 2.0)]
)


def plain_bound(delta: Tensor, weight: Tensor, moment: Tensor, space: NullSpace) -> float:
    """sqrt(largest freed eigenvalue) |ΔW|, which takes for granted that ΔW is inside."""
    return (freed_eigenvalue(space, moment) ** 0.5 * delta.norm() / (weight @ moment * weight).sum().sqrt()).item()


# The bound ------------------------------------------------------------------------------------------------------------


@RULES
def test_drift_of_an_update_inside_is_bounded_by_the_cut(rule: str, threshold: float) -> None:
    moment, weight = full_rank(), normal(7, SIZE, seed=1)
    space = null_space(moment, rule, threshold)
    cut = torch.linalg.eigvalsh(moment)[space.basis.shape[1] - 1]
    assert freed_eigenvalue(space, moment) == pytest.approx(cut.item(), rel=1e-9)
    for seed in range(20):
        delta = space.project(normal(7, SIZE, seed=seed))
        bound = drift_bound(delta, weight, moment, space)
        assert 0 < relative_drift(delta, weight, moment) < bound
        assert bound == pytest.approx(plain_bound(delta, weight, moment, space), rel=1e-6)


@RULES
def test_the_bound_is_reached_along_the_last_freed_direction(rule: str, threshold: float) -> None:
    moment, weight = full_rank(), normal(7, SIZE, seed=1)
    space = null_space(moment, rule, threshold)
    delta = normal(7, 1) @ space.basis[:, -1:].T
    assert relative_drift(delta, weight, moment) == pytest.approx(drift_bound(delta, weight, moment, space), rel=1e-6)
    lower = normal(7, 1) @ space.basis[:, :1].T
    assert relative_drift(lower, weight, moment) < 0.9 * drift_bound(lower, weight, moment, space)


@RULES
def test_an_update_that_leaves_the_space_breaks_the_cut_and_its_outside_part_is_counted(
    rule: str, threshold: float
) -> None:
    moment, weight = full_rank(), normal(7, SIZE, seed=1)
    space = null_space(moment, rule, threshold)
    for seed in range(20):
        delta = normal(7, SIZE, seed=seed)
        drift = relative_drift(delta, weight, moment)
        assert drift > plain_bound(delta, weight, moment, space)
        assert drift <= drift_bound(delta, weight, moment, space)


@pytest.mark.parametrize("threshold", [0.03, 1.0, 10.0])
def test_a_soft_space_bounds_what_steps_of_a_size_can_do_and_the_bound_is_reached(threshold: float) -> None:
    moment, weight = full_rank(), normal(7, SIZE, seed=1)
    space = null_space(moment, "soft", threshold)
    assert isinstance(space, SoftNullSpace)
    held = space.contraction
    values, vectors = torch.linalg.eigh(held @ moment @ held)
    assert values[-1] <= threshold * moment.diagonal().mean() / 4 * (1 + 1e-9), "the promise of the ridge"
    for seed in range(20):
        steps = normal(7, SIZE, seed=seed)
        bound = drift_bound(space.project(steps), weight, moment, space)
        assert relative_drift(space.project(steps), weight, moment) < bound
        assert relative_drift(steps, weight, moment) > bound / 5, "control: a bound of another size means nothing"
    worst, mildest = (space.project(normal(7, 1) @ vectors[:, [i]].T) for i in (-1, 0))
    reached = pytest.approx(drift_bound(worst, weight, moment, space), rel=1e-6)
    assert relative_drift(worst, weight, moment) == reached
    assert relative_drift(mildest, weight, moment) < 0.9 * drift_bound(mildest, weight, moment, space)
    assert drift_bound(0 * worst, weight, moment, space) == 0


def test_bound_holds_on_inputs_the_space_was_not_cut_from() -> None:
    space, weight = null_space(full_rank(), "energy", 0.05), normal(7, SIZE, seed=1)
    unseen = gathered(normal(50, SIZE, seed=7)).mean
    own = freed_eigenvalue(space, full_rank()) ** 0.5
    for seed in range(20):
        delta = space.project(normal(7, SIZE, seed=seed))
        drift = relative_drift(delta, weight, unseen)
        assert drift <= drift_bound(delta, weight, unseen, space)
    rotated = normal(SIZE, SIZE, seed=3) @ full_rank() @ normal(SIZE, SIZE, seed=3).T  # the control: other directions
    assert relative_drift(delta, weight, rotated) > own * delta.norm() / (weight @ rotated * weight).sum().sqrt()
    assert relative_drift(delta, weight, rotated) <= drift_bound(delta, weight, rotated, space)


def test_where_nothing_is_free_or_nothing_changed_the_bound_is_what_leaves() -> None:
    moment, weight, delta = full_rank(), normal(7, SIZE, seed=1), normal(7, SIZE)
    closed = null_space(moment, "rank", 0.0)
    assert freed_eigenvalue(closed, moment) == 0
    assert drift_bound(delta, weight, moment, closed) == pytest.approx(relative_drift(delta, weight, moment))
    assert drift_bound(0 * delta, weight, moment, null_space(moment, "rank", 0.5)) == 0


def test_outside_is_the_share_of_the_update_that_left() -> None:
    space = random_space()
    inside = space.project(normal(5, SIZE))
    leaving = normal(5, RANK) @ space.used.T
    assert outside(inside, space) < 1e-28
    assert outside(leaving, space) == pytest.approx(1)
    both = 3 * inside / inside.norm() + 4 * leaving / leaving.norm()
    assert outside(both, space) == pytest.approx(16 / 25)
    assert outside(0 * inside, space) == 0


# The certificate of a layer -------------------------------------------------------------------------------------------


def test_a_layer_certificate_says_what_was_measured() -> None:
    x, unseen = low_rank(), low_rank(seed=1)
    weight = normal(7, SIZE, seed=1).bfloat16().double()
    space = gathered(x).null_space("relative", 1e-9)
    delta = 0.05 * space.project(normal(7, SIZE)).float()
    stored = (weight + delta.double()).bfloat16().double()

    def measured(x: Tensor, weight_now: Tensor) -> float:
        return ((x @ (weight_now - weight).T).norm() / (x @ weight.T).norm()).item()

    found = certify(delta, weight.float(), gathered(x), space, torch.bfloat16)
    assert found.drift == pytest.approx(measured(x, weight + delta.double()), abs=1e-7)
    assert found.drift < 1e-6
    assert found.drift_after_cast == pytest.approx(measured(x, stored), rel=1e-9)
    assert found.drift_after_cast > 100 * found.drift, "rounding knows no null space"
    assert found.drift <= found.bound < 1e-5
    assert found.outside < 1e-12
    assert (found.free, found.kept, found.tokens, found.dtype) == ((SIZE - RANK) / SIZE, RANK, 60, "bfloat16")
    elsewhere = certify(delta, weight.float(), gathered(unseen), space, torch.float32)
    assert elsewhere.drift == pytest.approx(measured(unseen, weight + delta.double()), rel=1e-6)
    assert elsewhere.drift_after_cast == pytest.approx(elsewhere.drift, rel=1e-5)
    assert elsewhere.bound > elsewhere.drift > 100 * found.drift, "other inputs are not protected"
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_without_a_space_there_is_no_bound_and_a_soft_one_has_no_outside() -> None:
    moment, weight, delta = gathered(normal(50, SIZE)), normal(7, SIZE, seed=1), normal(7, SIZE, seed=2)
    free = certify(delta, weight, moment, None, torch.float64)
    assert (free.bound, free.outside, free.free, free.kept) == (None, None, 1.0, 0)
    assert free.drift == free.drift_after_cast == relative_drift(delta, weight, moment.mean)
    space = moment.null_space("soft", 0.5)
    soft = certify(space.project(delta), weight, moment, space, torch.float64)
    assert (soft.outside, soft.free) == (None, space.free)
    assert 0 < soft.drift < free.drift
    assert soft.bound is not None
    assert soft.drift <= soft.bound
    assert soft.kept == pytest.approx(SIZE * (1 - soft.free))


# The effect on the outputs --------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """A block with everything vision towers have: attention, a residual, layer norm, a nonlinearity."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm(x))))


Effect = tuple[Callable[[Mapping[str, Tensor], Tensor], Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]


@pytest.fixture
def block() -> Effect:
    torch.manual_seed(0)
    module = Attends().double()
    parameters = dict(module.named_parameters())
    deltas = {name: torch.randn_like(parameters[name]) for name in ("qkv.weight", "up.weight")}
    return lambda p, x: functional_call(module, dict(p), (x,)), parameters, deltas, normal(3, 5, 8)


def test_first_order_effect_is_the_limit_of_finite_differences(block: Effect) -> None:
    function, parameters, deltas, x = block
    outputs, effect = first_order_effect(function, parameters, deltas, x)

    def moved(by: float, names: tuple[str, ...] = tuple(deltas)) -> Tensor:
        now = {**parameters, **{name: parameters[name] + by * deltas[name] for name in names}}
        return function(now, x).detach()

    torch.testing.assert_close(outputs, moved(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((moved(1e-5) - moved(-1e-5)) / 2e-5, effect, rtol=1e-6, atol=1e-8)
    assert not outputs.requires_grad
    assert not effect.requires_grad
    assert (moved(1) - moved(0) - effect).norm() > 0.1 * effect.norm(), "the control: it is of first order only"
    one = (moved(1e-5, ("up.weight",)) - moved(-1e-5, ("up.weight",))) / 2e-5
    assert (one - effect).norm() > 0.1 * effect.norm(), "the control: one update is not both"


def test_effects_of_updates_that_fit_nothing_are_refused(block: Effect) -> None:
    function, parameters, _, x = block
    for deltas, words in (
        ({"fc.weight": torch.zeros(2)}, "'fc.weight'.*no such parameter"),
        ({"up.weight": torch.zeros(3, 8)}, r"'up.weight' \[3, 8\]: \[16, 8\]"),
        ({}, "no update"),
    ):
        with pytest.raises(ValueError, match=words):
            first_order_effect(function, parameters, deltas, x)
