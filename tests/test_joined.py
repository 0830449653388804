"""What must stay and what was forgotten before, in one null space."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unsee.subspace.joined import Joined, JoinedMoments, outside
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace, relative_drift

SIZE = 24


def moment_of(x: Tensor) -> SecondMoment:
    moment = SecondMoment(x.shape[1])
    moment.update(x)
    return moment


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    """Many of what must stay and few of what was forgotten, in different directions."""
    generator = torch.Generator().manual_seed(0)
    kept, gone = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4000, 20))
    axes = torch.linalg.qr(torch.randn(SIZE, 10, generator=generator, dtype=torch.float64))[0]
    return kept @ axes[:, :5].T, gone @ axes[:, 5:].T


def drifts(space: NullSpace, inputs: tuple[Tensor, Tensor]) -> list[float]:
    """Of a random update inside `space`, on both kinds of inputs."""
    generator = torch.Generator().manual_seed(1)
    change, weight = (torch.randn(8, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    return [relative_drift(space.project(change), weight, moment_of(x).mean) for x in inputs]


@pytest.mark.parametrize("how", ["cut", "halves"])
def test_an_update_moves_neither(how: str, inputs: tuple[Tensor, Tensor]) -> None:
    kept, gone = map(moment_of, inputs)
    space = Joined(kept, gone, how).null_space("energy", 1e-3)  # type: ignore[arg-type]
    assert isinstance(space, NullSpace)
    assert max(drifts(space, inputs)) < 0.1
    alone = kept.null_space("energy", 1e-3)
    assert isinstance(alone, NullSpace)
    assert drifts(alone, inputs)[1] > 0.5, "control: without it what was forgotten moves"
    summed = Joined(kept, gone, "tokens").null_space("energy", 0.01)
    assert isinstance(summed, NullSpace)
    assert drifts(summed, inputs)[1] > 0.5, "a few pictures among many are given up"


def test_both_null_spaces_hold_exactly(inputs: tuple[Tensor, Tensor]) -> None:
    kept, gone = map(moment_of, inputs)
    space = Joined(kept, gone, "cut").null_space("relative", 1e-10)
    assert isinstance(space, NullSpace)
    assert space.basis.shape == (SIZE, SIZE - 10)
    assert max(drifts(space, inputs)) < 1e-7
    basis = torch.cat([space.basis, space.used], 1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(SIZE, dtype=torch.float64))
    overlapping = Joined(kept, kept, "cut").null_space("relative", 1e-10)
    assert isinstance(overlapping, NullSpace)
    assert overlapping.basis.shape == (SIZE, SIZE - 5), "what both use is taken away once"


def test_directions_need_not_be_orthogonal() -> None:
    """(1, 0, 0) and (1, 1, 0)/sqrt 2 leave (0, 0, 1)."""
    given = torch.tensor([[1.0, 0, 0], [0.5**0.5, 0.5**0.5, 0]], dtype=torch.float64).T
    space = outside(given)
    torch.testing.assert_close(space.basis.abs(), torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64))


def test_halves_do_not_depend_on_how_many_there_are(inputs: tuple[Tensor, Tensor]) -> None:
    kept, gone = inputs
    once = Joined(moment_of(kept), moment_of(gone), "halves").mean
    twice = Joined(moment_of(kept), moment_of(torch.cat([gone, gone])), "halves").mean
    torch.testing.assert_close(once, twice)
    torch.testing.assert_close(once, (moment_of(kept).mean + moment_of(gone).mean) / 2)
    control = [Joined(moment_of(kept), moment_of(x), "tokens").mean for x in (gone, torch.cat([gone, gone]))]
    assert not torch.allclose(*control)


def test_a_soft_rule_measures_each_by_its_own_mean_eigenvalue(inputs: tuple[Tensor, Tensor]) -> None:
    kept, gone = map(moment_of, inputs)
    space = Joined(kept, gone, "cut").null_space("soft", 0.1)
    assert isinstance(space, SoftNullSpace)
    size = len(kept.sum)
    measured = [moment.mean / (0.1 * moment.mean.trace() / size) for moment in (kept, gone)]
    expected = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + measured[0] + measured[1])
    torch.testing.assert_close(space.contraction, expected)
    few = SecondMoment(size)  # a thousandth of the energy, all along one direction
    few.update(1e-3 * torch.eye(size)[:1])
    along = torch.eye(size, dtype=torch.float64)[0]
    cut, added = (
        Joined(kept, few, how).null_space("soft", 0.1).project(along[None]).norm() for how in ("cut", "tokens")
    )
    assert cut < 0.05  # nearly closed, however little energy it has
    assert added > 5 * cut  # control: in the sum it counts for nothing


def test_what_cannot_be_joined_says_so(inputs: tuple[Tensor, Tensor]) -> None:
    kept, gone = map(moment_of, inputs)
    with pytest.raises(ValueError, match="joining 'sum' unknown; expected one of cut, halves, tokens"):
        Joined(kept, gone, "sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be added"):
        Joined(kept, SecondMoment(3), "cut")
    with pytest.raises(KeyError):
        JoinedMoments({"a": kept}, {}, "cut")["a"]
    assert list(JoinedMoments({"a": kept}, {"a": gone}, "cut")) == ["a"]
