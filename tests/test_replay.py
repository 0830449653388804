"""A distribution in the place of pictures: what it keeps of them, what it keeps of whom, and how groups are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unsee.subspace.replay import Replay, microaggregated


def crowd(subjects: int = 6, pictures: int = 40, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States [pictures of all, width] that differ between subjects and, unevenly along the axes, within; of whom."""
    torch.manual_seed(seed)
    subject = torch.arange(subjects).repeat_interleave(pictures)
    own, within = 3 * torch.randn(subjects, width), torch.randn(len(subject), width) * torch.arange(1.0, width + 1)
    return own[subject] + within, subject


def covariance(x: Tensor) -> Tensor:
    return torch.cov(x.double().T, correction=0)


def own_means(states: Tensor, subject: Tensor) -> Tensor:
    return torch.stack([states[subject == i].mean(0) for i in subject.unique().tolist()])


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 12, 40])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_every_point_is_in_one_group_and_no_group_is_small(count: int, size: int) -> None:
    torch.manual_seed(0)
    groups = microaggregated(torch.randn(count, 3), size)
    assert sorted(i for group in groups for i in group) == list(range(count))
    sizes = [len(group) for group in groups]
    if size > count:  # all there are
        assert sizes == [count]
    else:
        assert all(size <= n < 2 * size for n in sizes)
        assert len(groups) == count // size  # control: not simply one group of all


def spread(points: Tensor, groups: list[list[int]]) -> float:
    """Sum of squared distances to the mean of the own group."""
    return sum(float((points[group] - points[group].mean(0)).square().sum()) for group in groups)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_groups_are_of_points_near_each_other(size: int) -> None:
    torch.manual_seed(size)
    points = torch.randn(30, 4)
    groups = microaggregated(points, size)
    for _ in range(20):
        by_chance = [part.tolist() for part in torch.randperm(30).split([len(group) for group in groups])]
        assert spread(points, groups) < 0.75 * spread(points, by_chance)


def test_twins_are_found() -> None:
    places = 100.0 * torch.eye(4)
    points = torch.cat([places, places + 0.1])  # i and i + 4 stand together
    groups = {frozenset(group) for group in microaggregated(points, 2)}
    assert groups == {frozenset((i, i + 4)) for i in range(4)}


# The fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [0, 1, 2, 3])
def test_samples_are_distributed_as_the_pictures_were(group_size: int) -> None:
    states, subject = crowd()
    replay = Replay.fit(states, subject, group_size, rank=64)
    assert replay.axes.shape == (5, 5)  # as many directions as there are
    assert replay.shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(replay.shares @ replay.means, states.mean(0))
    torch.manual_seed(1)
    drawn, group = replay.sample(100_000)
    scale = covariance(states).diagonal().mean()

    def apart(samples: Tensor) -> float:
        return float((covariance(samples) - covariance(states)).abs().max() / scale)

    assert float((drawn.mean(0) - states.mean(0)).abs().max()) < 0.05
    assert apart(drawn) < 0.05
    assert apart(replay.means[group]) > 0.5  # control: means alone
    torch.testing.assert_close(group.bincount() / len(group), replay.shares, atol=0.01, rtol=0)


def test_uneven_numbers_of_pictures_are_shares() -> None:
    states, subject = crowd(subjects=2, pictures=10)
    replay = Replay.fit(states[:14], subject[:14], group_size=1, rank=64)
    assert sorted(replay.shares.tolist()) == pytest.approx([4 / 14, 10 / 14])


def test_the_longest_directions_are_kept() -> None:
    states, subject = crowd()
    whole, cut = (Replay.fit(states, subject, 2, rank) for rank in (64, 2))
    assert cut.axes.shape == (2, 5)
    values, vectors = torch.linalg.eigh(whole.axes.T @ whole.axes)
    best, worst = ((vectors[:, part] * values[part]) @ vectors[:, part].T for part in (slice(-2, None), slice(2)))
    torch.testing.assert_close(cut.axes.T @ cut.axes, best, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(cut.axes.T @ cut.axes, worst, atol=1e-3, rtol=1e-3)  # control
    torch.testing.assert_close(cut.means, whole.means)


def test_pictures_that_are_all_alike_have_no_directions() -> None:
    replay = Replay.fit(torch.ones(6, 3), torch.arange(6) // 2, 0, rank=64)
    assert replay.axes.shape == (0, 3)
    torch.testing.assert_close(replay.sample(10)[0], torch.ones(10, 3))


def test_samples_follow_the_seed() -> None:
    replay = Replay.fit(*crowd(), group_size=2, rank=64)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return replay.sample(10)[0]

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        Replay.fit(torch.empty(0, 3), torch.empty(0, dtype=torch.long), 0, rank=64)


# Whom it tells of -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [0, 1, 2, 3])
def test_only_a_group_of_one_stores_the_mean_of_a_subject(group_size: int) -> None:
    states, subject = crowd()
    replay = Replay.fit(states, subject, group_size, rank=64)
    nearest = torch.cdist(replay.means, own_means(states, subject)).amin(1)
    if group_size == 1:
        assert nearest.amax() < 1e-4
    else:
        assert nearest.amin() > 0.1
    assert replay.identifies == (group_size == 1)
    assert replay.subjects.sum() == 6
    assert replay.subjects.amin() >= (group_size or 6)


@pytest.mark.parametrize(
    ("group_size", "says"),
    [
        (0, "one mean over all 6 subjects, and 5 directions in which pictures of everybody differ"),
        (1, "one mean per subject (6), a biometric template of each face, and 5 directions"),
        (2, "3 means, each over at least 2 subjects, and 5 directions"),
        (3, "2 means, each over at least 3 subjects, and 5 directions"),
        (9, "one mean over all 6 subjects, and 5 directions"),
    ],
)
def test_it_says_what_it_holds(group_size: int, says: str) -> None:
    assert Replay.fit(*crowd(), group_size, rank=64).meaning.startswith(says)


@pytest.mark.parametrize("group_size", [0, 2])
def test_a_group_of_all_does_not_hide_an_only_subject(group_size: int) -> None:
    """However large the groups that were asked for."""
    assert Replay.fit(*crowd(subjects=1), group_size, rank=64).identifies
    assert not Replay.fit(*crowd(subjects=2), group_size, rank=64).identifies  # control


def test_the_directions_of_one_small_group_give_its_members_away() -> None:
    """Two people with one picture each: both pictures are in the file, at the mean plus and minus the only direction.

    With more people the directions are shared by all and tell less of each; docs/retain_free.md warns of it.
    """

    def nearest(pairs: int) -> float:
        """How far the first person's picture is from what mean and first direction give, in units of the pair's gap."""
        torch.manual_seed(0)
        places = 100 * torch.randn(pairs, 20)
        states = (places[:, None] + torch.randn(pairs, 2, 20)).flatten(0, 1)
        replay = Replay.fit(states, torch.arange(2 * pairs), 2, rank=64)
        assert replay.subjects.tolist() == [2] * pairs
        reached = torch.cat([replay.means + replay.axes[-1], replay.means - replay.axes[-1]])
        return float((reached - states[0]).norm(dim=1).min() / (states[1] - states[0]).norm())

    assert nearest(1) < 1e-4
    assert nearest(10) > 0.3


# In a file ------------------------------------------------------------------------------------------------------------


def test_tensors_come_back_as_they_were() -> None:
    replay = Replay.fit(*crowd(), group_size=2, rank=3)
    tensors = replay.tensors()
    assert all(key.startswith("replay.") for key in tensors)
    again = Replay.of({**tensors, "looks.bias": torch.zeros(2)})
    assert again is not None
    for field in dataclasses.fields(Replay):
        assert torch.equal(getattr(again, field.name), getattr(replay, field.name))
    assert Replay.of({"looks.bias": torch.zeros(2)}) is None


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no means": (lambda t: t.pop("replay.means"), "without 'means'"),
    "no shares": (lambda t: t.pop("replay.shares"), "without 'shares'"),
    "no axes": (lambda t: t.pop("replay.axes"), "without 'axes'"),
    "no subjects": (lambda t: t.pop("replay.subjects"), "without 'subjects'"),
    "axes of another width": (lambda t: t.update({"replay.axes": torch.ones(3, 4)}), "do not fit together"),
    "a share too many": (lambda t: t.update({"replay.shares": torch.ones(4)}), "do not fit together"),
    "a group too few": (lambda t: t.update({"replay.subjects": torch.ones(2)}), "do not fit together"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_do_not_fit_are_refused(damage: str) -> None:
    tensors = Replay.fit(*crowd(), group_size=2, rank=3).tensors()
    assert Replay.of(tensors) is not None  # control
    change, says = DAMAGES[damage]
    change(tensors)
    with pytest.raises(ValueError, match=says):
        Replay.of(tensors)


@pytest.mark.parametrize("count", [5, 40], ids=["fewer pictures than numbers", "more"])
def test_axes_carry_the_covariance_from_either_side(count: int) -> None:
    states = torch.randn(count, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(
        1, 13
    )
    replay = Replay.fit(states, torch.zeros(count, dtype=torch.long), 1, 12)
    around = states - states.mean(0)
    assert len(replay.axes) == min(count - 1, 12)
    assert replay.axes.is_contiguous()  # else it cannot be saved
    torch.testing.assert_close(replay.axes.T @ replay.axes, (around.T @ around / count).float(), rtol=1e-4, atol=1e-4)
