"""The frozen operators: the projector is one, rules free what they say, the soft rule is a contraction and no more."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from spaces import RANK, SIZE, full_rank, low_rank, normal, projector, random_space
from torch import Tensor

from unsee.subspace.nullspace import RULES, NullSpace, Projection, SoftNullSpace, null_space, relative_drift

# The operator ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [("energy", 1e-12), ("relative", 1e-12), ("absolute", 1e-9), ("rank", (SIZE - RANK) / SIZE)],
)
def test_projector_is_orthogonal_and_kills_what_must_stay(rule: str, threshold: float) -> None:
    x = low_rank()
    space = null_space(x.T @ x, rule, threshold)
    P = projector(space)
    assert space.basis.shape == (SIZE, SIZE - RANK)
    assert space.free == (SIZE - RANK) / SIZE
    assert space.kept == RANK
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-12)
    assert (P @ x.T).abs().max() < 1e-12 * x.abs().max()
    assert (projector(random_space()) @ x.T).abs().max() > 0.1 * x.abs().max()


def test_projection_keeps_the_dtype_of_the_change_and_what_is_already_inside() -> None:
    x, delta = low_rank(), normal(5, SIZE, seed=1).float()
    space = null_space(x.T @ x, "energy", 1e-12)
    inside = space.project(delta)
    assert inside.dtype == torch.float32
    assert not torch.allclose(inside, delta, atol=0.1)
    torch.testing.assert_close(space.project(inside), inside, rtol=0, atol=1e-5)


@pytest.mark.parametrize("free", [1, SIZE - 1])
def test_either_basis_makes_the_same_projector(free: int) -> None:
    space = random_space()
    both = torch.cat([space.basis, space.used], 1)
    space = NullSpace(both[:, :free], both[:, free:])
    projection = space.projection(torch.float64)
    assert projection.directions.shape[1] == 1, "the smaller basis is kept"
    delta = normal(4, SIZE)
    torch.testing.assert_close(projection.project(delta), delta @ space.basis @ space.basis.T, rtol=0, atol=1e-12)
    swapped = Projection(projection.directions, not projection.removes)
    assert not torch.allclose(swapped.project(delta), projection.project(delta))


# The rules ------------------------------------------------------------------------------------------------------------

THRESHOLDS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.6, 0.99, 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_a_larger_threshold_only_adds_directions(rule: str) -> None:
    moment = full_rank() / torch.linalg.eigvalsh(full_rank())[-1]  # a scale on which absolute thresholds say something
    spaces = [null_space(moment, rule, t) for t in THRESHOLDS]
    widths = [space.basis.shape[1] for space in spaces]
    assert widths == sorted(widths)
    assert len(set(widths)) > 4
    for smaller, larger in pairwise(spaces):
        torch.testing.assert_close(projector(larger) @ smaller.basis, smaller.basis, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_energy_of_the_free_directions_is_at_most_the_threshold_and_one_more_would_exceed_it(threshold: float) -> None:
    moment = full_rank()
    space = null_space(moment, "energy", threshold)
    held = torch.einsum("ik,ij,jk->", space.basis, moment, space.basis) / moment.trace()
    assert held <= threshold + 1e-12
    if threshold < 1:
        energies = torch.linalg.eigvalsh(moment) / moment.trace()
        assert energies[: space.basis.shape[1] + 1].sum() > threshold


@pytest.mark.parametrize("rule", ["energy", "relative", "rank"])
def test_threshold_one_frees_every_direction(rule: str) -> None:
    assert [null_space(full_rank(seed), rule, 1.0).free for seed in range(10)] == [1] * 10


@pytest.mark.parametrize(("rule", "threshold"), [("energy", 0.05), ("relative", 0.05), ("soft", 0.05)])
def test_scale_of_the_features_does_not_matter(rule: str, threshold: float) -> None:
    moment = full_rank()
    P = projector(null_space(moment, rule, threshold))
    assert 2 < P.trace() < SIZE - 2
    for scale in (1e-9, 1e9):
        torch.testing.assert_close(projector(null_space(scale * moment, rule, threshold)), P, rtol=0, atol=1e-9)


def test_absolute_rule_cuts_by_size_and_so_depends_on_the_scale_of_the_features() -> None:
    moment, t = full_rank(), 2e-2
    energies = torch.linalg.eigvalsh(moment)
    for scale in (1e-9, t / energies[7].item(), 1e9):
        free = null_space(scale * moment, "absolute", t).basis.shape[1]
        assert free == int((scale * energies <= t * (1 + 1e-9)).sum())
    free = [null_space(scale * moment, "absolute", t).free for scale in (1e-9, 1e9)]
    assert free == [1, 0], "features a billion times smaller would free everything, larger ones nothing"
    assert null_space(1e9 * moment, "absolute", 1e12).free == 1, "its threshold is no share, it may exceed 1"


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 0), (0.25, 6), (0.5, 12), (1.0, SIZE)])
def test_rank_rule_counts_the_least_used_directions(threshold: float, count: int) -> None:
    moment = full_rank()
    space = null_space(moment, "rank", threshold)
    assert space.basis.shape == (SIZE, count)
    energy = torch.einsum("ik,ij,jk->k", space.basis, moment, space.basis)
    torch.testing.assert_close(energy, torch.linalg.eigvalsh(moment)[:count], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("steep", 0.1),
        ("energy", -0.1),
        ("rank", 1.5),
        ("relative", float("nan")),
        ("absolute", -1e-9),
        ("absolute", float("inf")),
        ("soft", 0.0),
        ("soft", float("inf")),
    ],
)
def test_unknown_rule_or_threshold_is_refused(rule: str, threshold: float) -> None:
    with pytest.raises(ValueError, match=f"null-space .*{rule}"):
        null_space(full_rank(), rule, threshold)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_moment_of_overflown_features_is_refused(spoilt: float) -> None:
    moment = full_rank()
    moment[3, 3] = spoilt
    with pytest.raises(ValueError, match="not finite"):
        null_space(moment, "energy", 0.1)


# The soft rule --------------------------------------------------------------------------------------------------------


def test_soft_space_is_the_ridge_formula_and_a_symmetric_contraction() -> None:
    moment, t = full_rank(), 0.05
    space = null_space(moment, "soft", t)
    assert isinstance(space, SoftNullSpace)
    P = projector(space)
    ridge = t * moment.trace() / SIZE
    direct = ridge * torch.linalg.inv(moment + ridge * torch.eye(SIZE, dtype=torch.float64))
    torch.testing.assert_close(P, direct, rtol=0, atol=1e-11)
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-12)
    shares = torch.linalg.eigvalsh(P)
    assert shares.min() > 0
    assert shares.max() < 1
    assert not torch.allclose(P @ P, P, atol=0.1), "it would be a projector"
    assert space.free == pytest.approx(shares.mean().item())
    assert space.kept == pytest.approx(SIZE - shares.sum().item())


def test_soft_space_frees_more_with_a_larger_threshold_and_all_where_nothing_was_seen() -> None:
    free = [null_space(full_rank(), "soft", t).free for t in (1e-6, 1e-3, 0.1, 1.0, 1e3, 1e6)]
    assert free == sorted(free)
    assert free[0] < 0.01
    assert free[-1] > 0.999
    torch.testing.assert_close(projector(null_space(0 * full_rank(), "soft", 0.1)), torch.eye(SIZE).double())


def test_what_one_soft_step_changes_is_bounded_by_the_ridge() -> None:
    """tr(S P C P Sᵀ) ≤ λ/4 |S|², reached by a step along an eigenvector whose eigenvalue is λ."""
    vectors = torch.linalg.qr(normal(SIZE, SIZE))[0]
    values = torch.linspace(0.2, 1.8, SIZE, dtype=torch.float64)
    moment = vectors * values @ vectors.T
    ridge = values[5]
    space = null_space(moment, "soft", (ridge / values.mean()).item())

    def change(step: Tensor) -> float:
        delta = space.project(step)
        return ((delta @ moment * delta).sum() / step.square().sum()).item()

    assert all(change(normal(3, SIZE, seed=seed)) < ridge / 4 for seed in range(20))
    assert change(vectors[:, 5:6].T) == pytest.approx(ridge.item() / 4)
    unconstrained = vectors[:, 5:6].T
    assert (unconstrained @ moment * unconstrained).sum() > ridge / 4


def test_only_the_soft_space_must_be_applied_to_each_step() -> None:
    soft, hard = (null_space(full_rank(), rule, 0.1) for rule in ("soft", "energy"))
    for space, each_step in ((soft, True), (hard, False)):
        assert space.each_step is space.projection(torch.float32).each_step is each_step
        delta = normal(3, SIZE)
        once = space.projection(torch.float64).project(delta)
        torch.testing.assert_close(once, delta @ projector(space), rtol=0, atol=1e-12)
        assert torch.allclose(space.project(once), once, rtol=0, atol=1e-12) is not each_step


# The drift ------------------------------------------------------------------------------------------------------------


def test_relative_drift_is_the_change_of_the_outputs() -> None:
    x, weight, delta = normal(50, SIZE), normal(7, SIZE, seed=1), normal(7, SIZE, seed=2)
    direct = (x @ delta.T).norm() / (x @ weight.T).norm()
    assert relative_drift(delta, weight, x.T @ x / len(x)) == pytest.approx(direct.item(), rel=1e-12)
    assert relative_drift(0 * delta, weight, x.T @ x) == 0
    assert relative_drift(delta, weight, 0 * x.T @ x) == 0, "no output, so no change of it"
    other = normal(50, SIZE, seed=3) * torch.arange(SIZE)
    assert relative_drift(delta, weight, other.T @ other) != pytest.approx(direct.item(), rel=1e-2)
    broken = delta.clone()
    broken[0, 0] = float("nan")
    drift = relative_drift(broken, weight, x.T @ x)
    assert drift != drift, "a broken update must not pass for none"
