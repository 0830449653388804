"""Pictures of different sizes in one tensor: every way of picking them gives the same states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unsee.models.packed import NOTHING, Grid, Packed, pack

RAGGED: tuple[Grid, ...] = ((1, 2, 3), (1, 4, 1), (2, 1, 2), (1, 2, 3))
EQUAL: tuple[Grid, ...] = ((1, 2, 2),) * 4
WIDTH = 3


def packed(grids: tuple[Grid, ...]) -> Packed:
    lengths = tuple(a * b * c for a, b, c in grids)
    return Packed(torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(0)), lengths, grids)


def parts(pictures: Packed) -> list[Tensor]:
    return list(pictures.states.split(pictures.lengths))


def assert_is(found: Packed, whole: Packed, numbers: list[int]) -> None:
    """`found` holds these pictures of `whole`, in this order."""
    assert len(found) == len(numbers)
    assert found.grids == tuple(whole.grids[i] for i in numbers)
    assert found.lengths == tuple(whole.lengths[i] for i in numbers)
    assert found.states.shape == (sum(found.lengths), WIDTH)
    own = parts(whole)
    assert all(torch.equal(picture, own[i]) for picture, i in zip(parts(found), numbers, strict=True))


@pytest.mark.parametrize("grids", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [2, 0], [3, 3, 1, 3], [1], []])
def test_pictures_are_picked_by_number(grids: tuple[Grid, ...], numbers: list[int]) -> None:
    whole = packed(grids)
    assert_is(whole[torch.tensor(numbers, dtype=torch.long)], whole, numbers)


@pytest.mark.parametrize("grids", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize(
    "chosen", [slice(None), slice(1, 3), slice(2), slice(-1, None), slice(1, 99), slice(3, 1), slice(9, 12)], ids=str
)
def test_pictures_are_picked_by_slice(grids: tuple[Grid, ...], chosen: slice) -> None:
    whole = packed(grids)
    assert_is(whole[chosen], whole, list(range(4))[chosen])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (1, [[0], [1], [2], [3]]),  # a picture is never cut
        (8, [[0], [1, 2], [3]]),
        (10, [[0, 1], [2, 3]]),
        (13, [[0, 1], [2, 3]]),
        (14, [[0, 1, 2], [3]]),
        (20, [[0, 1, 2, 3]]),
    ],
)
def test_parts_hold_as_many_positions_as_they_may(positions: int, expected: list[list[int]]) -> None:
    whole = packed(RAGGED)  # of 6, 4, 4 and 6 positions
    pieces = whole.split(positions)
    assert len(pieces) == len(expected)
    for piece, numbers in zip(pieces, expected, strict=True):
        assert_is(piece, whole, numbers)
    assert_is(pack(pieces), whole, [0, 1, 2, 3])
    assert_is(pack(pieces[::-1]), whole, [i for numbers in expected[::-1] for i in numbers])


@pytest.mark.parametrize("grids", [RAGGED, EQUAL, EQUAL[:1], RAGGED[:1]], ids=["ragged", "equal", "one", "one wide"])
def test_mean_is_each_pictures_own(grids: tuple[Grid, ...]) -> None:
    whole = packed(grids)
    torch.testing.assert_close(whole.mean(), torch.stack([picture.mean(0) for picture in parts(whole)]))
    if len(grids) > 1:
        assert not torch.allclose(whole.mean(), whole.states.mean(0).expand(len(grids), -1))


def test_only_pictures_of_one_size_are_stacked() -> None:
    whole = packed(EQUAL)
    assert whole.uniform
    assert torch.equal(whole.stack(), torch.stack(parts(whole)))
    turned = packed(((1, 2, 3), (1, 3, 2)))  # as many positions, but not the same places
    for ragged in (packed(RAGGED), turned, NOTHING):
        assert not ragged.uniform
        with pytest.raises(ValueError, match="different sizes"):
            ragged.stack()
    assert packed(RAGGED)[torch.tensor([3, 0])].uniform


def test_other_states_of_the_same_pictures() -> None:
    whole = packed(RAGGED)
    wider = whole.with_states(torch.randn(len(whole.states), 7))
    assert (wider.lengths, wider.grids) == (whole.lengths, whole.grids)
    assert wider[torch.tensor([1])].states.shape == (4, 7)


def test_nothing_holds_no_picture() -> None:
    assert len(NOTHING) == 0
    assert len(NOTHING[:3]) == len(NOTHING[torch.empty(0, dtype=torch.long)]) == 0
    assert sum(map(len, NOTHING.split(3))) == 0


# Other grids ----------------------------------------------------------------------------------------------------------


def test_averaging_areas_by_hand() -> None:
    field = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])  # three rows of four
    picture = Packed(torch.stack([field.flatten(), -field.flatten()], 1), (12,), ((1, 3, 4),))

    def on(grid: Grid) -> list[float]:
        moved = picture.on([grid])
        assert (moved.grids, moved.lengths) == ((grid,), (grid[0] * grid[1] * grid[2],))
        assert torch.equal(moved.states[:, 1], -moved.states[:, 0])
        return moved.states[:, 0].tolist()

    assert on((1, 3, 2)) == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert on((1, 1, 4)) == [4, 5, 6, 7]
    assert on((1, 1, 1)) == [5.5]
    assert on((1, 2, 2)) == [2.5, 4.5, 6.5, 8.5]  # rows overlap: 0 and 1, then 1 and 2
    assert on((2, 1, 2)) == [4.5, 6.5, 4.5, 6.5]  # one layer becomes two equal ones
    assert on((1, 3, 4)) == field.flatten().tolist()


def test_rows_are_not_taken_for_columns() -> None:
    wide = Packed(torch.arange(6.0)[:, None], (6,), ((1, 2, 3),))
    tall = Packed(torch.arange(6.0)[:, None], (6,), ((1, 3, 2),))
    assert wide.on([(1, 1, 3)]).states.flatten().tolist() == [1.5, 2.5, 3.5]
    assert tall.on([(1, 1, 2)]).states.flatten().tolist() == [2, 3]


def test_a_picture_that_has_its_grid_is_untouched() -> None:
    whole = packed(RAGGED)
    assert whole.on(RAGGED) is whole
    mixed = whole.on([(1, 1, 1), *RAGGED[1:]])
    assert torch.equal(mixed.states[1:], whole.states[6:])
    torch.testing.assert_close(mixed.states[0], whole.states[:6].mean(0))
    assert whole.on([(1, 1, 2)] * 4).stack().shape == (4, 2, WIDTH)


def test_gradients_pass_through_another_grid() -> None:
    states = torch.ones(6, WIDTH, requires_grad=True)
    Packed(states, (6,), ((1, 2, 3),)).on([(1, 1, 1)]).states.sum().backward()
    torch.testing.assert_close(states.grad, torch.full((6, WIDTH), 1 / 6))
