"""Inputs, moments and spaces small enough to check by hand, for the tests of the subspace room."""

from __future__ import annotations

import torch
from torch import Tensor

from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace

SIZE, RANK = 24, 10
NOTHING_FREE = NullSpace(torch.empty(SIZE, 0, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rows: int = 60, seed: int = 0) -> Tensor:
    """Inputs [rows, SIZE] of rank exactly RANK."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = torch.randn(rows, RANK, generator=generator, dtype=torch.float64)
    return coordinates @ torch.randn(RANK, SIZE, generator=generator, dtype=torch.float64)


def full_rank(seed: int = 0) -> Tensor:
    """A second moment with energies that fall by a factor of about a thousand."""
    x = normal(200, SIZE, seed=seed) * torch.logspace(0, -1.5, SIZE, dtype=torch.float64)
    return x.T @ x


def random_space(seed: int = 0) -> NullSpace:
    basis, _ = torch.linalg.qr(normal(SIZE, SIZE, seed=seed))
    return NullSpace(basis[:, RANK:], basis[:, :RANK])


def projector(space: NullSpace | SoftNullSpace) -> Tensor:
    return space.project(torch.eye(space.size, dtype=torch.float64))


def gathered(*parts: Tensor) -> SecondMoment:
    moment = SecondMoment(parts[0].shape[-1])
    for part in parts:
        moment.update(part)
    return moment
