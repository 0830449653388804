"""Statistics do not depend on how, where and in which order they were gathered, and survive the disk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spaces import SIZE, gathered, low_rank, normal, projector
from torch import Tensor, nn

from unsee.errors import BadInput
from unsee.subspace.gradients import GradientMoments
from unsee.subspace.moments import (
    SecondMoment,
    load_extra,
    load_moments,
    save_moments,
    watching,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 32, bias=False), nn.GELU(), nn.Linear(32, 8, bias=False))


# Streaming ------------------------------------------------------------------------------------------------------------


def test_streamed_is_batch_is_merged() -> None:
    x = normal(6, 7, SIZE).float()
    rows = x.reshape(-1, SIZE).double()
    expected = rows.T @ rows / len(rows)
    merged = gathered(x[4:])
    merged.merge(gathered(x[:3], x[3:4]))
    for moment in (gathered(x), gathered(*x.flip(0)), gathered(*rows), merged):
        assert moment.tokens == 42
        torch.testing.assert_close(moment.mean, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moment.covariance, rows.T.cov(correction=0), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(gathered(x[1:]).mean, expected, rtol=1e-3)
    assert not torch.allclose(gathered(x).covariance, expected, rtol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_centring_frees_the_direction_of_the_mean_and_nothing_else_that_moves(offset: float) -> None:
    x = low_rank() + offset * torch.ones(SIZE, dtype=torch.float64)
    centred, plain = (gathered(x).null_space("relative", 1e-10, centred) for centred in (True, False))
    differences = x - x.mean(0)
    assert (projector(centred) @ differences.T).abs().max() < 1e-9 * x.abs().max()
    kept = (projector(plain) @ x.mean(0)).norm(), (projector(centred) @ x.mean(0)).norm()
    assert kept[0] < 1e-9 * x.norm()
    assert centred.kept == plain.kept - (offset > 0)
    assert bool(kept[1] > 0.1 * x.mean(0).norm()) is (offset > 0)


def test_moments_of_other_widths_or_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        _ = SecondMoment(SIZE).mean
    with pytest.raises(ValueError, match="of 1 inputs cannot be added to those of 24"):
        gathered(low_rank()).merge(SecondMoment(1))


def test_watching_sees_every_input_and_stops_even_after_an_exception() -> None:
    net = network()
    x = torch.randn(3, 5, SIZE)
    with torch.no_grad(), watching({"first": net[0], "second": net[2]}) as moments:
        net(x[:2])
        net(x[2:])
    inputs = {"first": x, "second": net[1](net[0](x))}
    for name, seen in inputs.items():
        rows = seen.detach().reshape(15, -1).double()
        torch.testing.assert_close(moments[name].mean, rows.T @ rows / 15, rtol=1e-6, atol=1e-9)
    with pytest.raises(RuntimeError, match="stop"), watching({"first": net[0]}) as broken:
        raise RuntimeError("stop")
    net(x)
    assert (moments["first"].tokens, moments["second"].tokens, broken["first"].tokens) == (15, 15, 0)
    assert not net[0]._forward_pre_hooks


# Gradients ------------------------------------------------------------------------------------------------------------


def gradient_of(net: nn.Sequential, x: Tensor, target: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((net(x) - target).square().mean(), net[0].weight)
    return gradient.double()


def test_gradient_moments_are_the_stacked_or_averaged_gradients() -> None:
    net, x, targets = network(), low_rank(rows=60).float(), normal(60, 8, seed=1).float()
    batches = list(zip(x.split(12), targets.split(12), strict=True))
    G = torch.stack([gradient_of(net, *batch) for batch in batches])
    expected = {"stacked": torch.einsum("boi,boj->ij", G, G), "averaged": G.mean(0).T @ G.mean(0)}
    spaces = {}
    for how, other in (("stacked", "averaged"), ("averaged", "stacked")):
        collector = GradientMoments({"first": net[0]}, how)
        for inputs, target in batches:
            (net(inputs) - target).square().mean().backward()
            collector.add()
            assert net[0].weight.grad is None, "the next backward would add to it"
        total = collector.moments()["first"].total
        torch.testing.assert_close(total, expected[how], rtol=1e-5, atol=1e-12)
        assert not torch.allclose(total, expected[other], rtol=1e-2)
        spaces[how] = collector.moments()["first"].null_space("relative", 1e-9)
    inputs_space = gathered(x).null_space("relative", 1e-9)
    for space in spaces.values():  # gradients lie in the span of the inputs, so what is free there is free here
        torch.testing.assert_close(projector(space) @ inputs_space.basis, inputs_space.basis, rtol=0, atol=1e-3)
        change = 1e-3 * space.project(normal(32, SIZE, seed=2))
        assert abs((change * G.mean(0)).sum()) < 1e-6 * change.norm() * G.mean(0).norm()
    outside = inputs_space.used[:, :1].T
    assert (projector(spaces["stacked"]) @ outside.T).norm() < 0.5


def test_gradient_moments_refuse_gradients_that_are_missing_or_broken() -> None:
    net = network()
    collector = GradientMoments({"first": net[0], "second": net[2]}, "stacked")
    net[2](torch.randn(3, 32)).sum().backward()
    with pytest.raises(ValueError, match="layer 'first' has no gradient"):
        collector.add()
    net[0].weight.grad = torch.full_like(net[0].weight, float("nan"))
    with pytest.raises(ValueError, match="'first' is not finite"):
        collector.add()
    assert collector.batches == collector.moments()["second"].tokens == 0, "half a batch was counted"
    net[0].weight.grad.zero_()
    collector.add()
    assert collector.moments()["second"].tokens == 8
    assert GradientMoments({"first": net[0]}, "averaged").moments()["first"].tokens == 0
    with pytest.raises(ValueError, match="stacked or averaged"):
        GradientMoments({}, "summed")


# On disk --------------------------------------------------------------------------------------------------------------

ORIGIN = {"weights": "a.safetensors:12", "data": "d1", "pictures": "3"}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "statistics.safetensors"
    moments = {"tower.fc1": gathered(low_rank()), "tower.fc2": gathered(low_rank(seed=1))}
    save_moments(moments, path, ORIGIN, {"replay.means": torch.ones(2, 3), "replay.shares": torch.ones(2)})
    return path


def test_moments_survive_the_disk(stored: Path) -> None:
    moments, about = load_moments(stored, ["tower.fc2"])
    expected = gathered(low_rank(seed=1))
    assert list(moments) == ["tower.fc2"]
    assert torch.equal(moments["tower.fc2"].total, expected.total)
    assert torch.equal(moments["tower.fc2"].covariance, expected.covariance)
    assert moments["tower.fc2"].tokens == expected.tokens
    assert about == ORIGIN | {"format": "unsee-moments-2"}
    assert list(load_moments(stored)[0]) == ["tower.fc1", "tower.fc2"]
    assert [file.name for file in stored.parent.iterdir()] == [stored.name]


def test_what_is_stored_beside_the_moments_comes_back_alone(stored: Path, tmp_path: Path) -> None:
    extra = load_extra(stored)
    assert {key: value.shape for key, value in extra.items()} == {"replay.means": (2, 3), "replay.shares": (2,)}
    assert extra["replay.means"].eq(1).all()
    save_moments({"a": gathered(low_rank())}, tmp_path / "bare", ORIGIN)
    assert load_extra(tmp_path / "bare") == {}
    with pytest.raises(ValueError, match=r"'replay\.total' would be taken for a layer's"):
        save_moments({}, tmp_path / "new", ORIGIN, {"replay.total": torch.ones(2)})
    assert not (tmp_path / "new").exists()


def test_a_failed_save_leaves_the_older_file_and_nothing_else(stored: Path) -> None:
    before = stored.read_bytes()
    with pytest.raises(ValueError, match="sparse"):
        save_moments({"a": gathered(low_rank())}, stored, ORIGIN, {"replay.means": torch.eye(3).to_sparse()})
    assert stored.read_bytes() == before
    assert [file.name for file in stored.parent.iterdir()] == [stored.name]


def test_what_was_read_may_be_changed_without_changing_the_file(stored: Path) -> None:
    before = stored.read_bytes()
    load_moments(stored)[0]["tower.fc1"].update(torch.ones(SIZE))
    load_extra(stored)["replay.means"].zero_()
    assert stored.read_bytes() == before


def test_moments_that_cannot_be_used_are_named(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--moments .*no layer 'tower\.fc9'"):
        load_moments(stored, ["tower.fc1", "tower.fc9"])
    with pytest.raises(BadInput, match="no such file"):
        load_moments(tmp_path / "missing", ["tower.fc1"])
    for tag, words in (({}, "not a moments file"), ({"format": "unsee-moments-1"}, "older format.*fit it again")):
        foreign = tmp_path / "foreign.safetensors"
        save_file({"tower.fc1.total": torch.eye(SIZE)}, foreign, tag)
        for read in (load_moments, load_extra):
            with pytest.raises(BadInput, match=words):
                read(foreign)


@pytest.mark.parametrize(
    "part", [{"tokens": torch.tensor(0)}, {"total": torch.ones(3, SIZE)}, {"sum": torch.ones(SIZE + 1)}]
)
def test_damaged_layers_are_named(stored: Path, part: dict[str, Tensor]) -> None:
    spoil(stored, lambda t: t.update({f"tower.fc1.{name}": value for name, value in part.items()}))
    with pytest.raises(BadInput, match=r"'tower\.fc1' is damaged or of no tokens"):
        load_moments(stored)
    assert load_moments(stored, ["tower.fc2"])


@pytest.mark.parametrize("content", [b"", b"just some text", None], ids=["empty", "text", "truncated"])
def test_files_that_are_no_safetensors_are_bad_input(stored: Path, content: bytes | None) -> None:
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        load_moments(stored, ["tower.fc1"])


def spoil(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change tensors of a moments file."""
    with safe_open(path, framework="pt") as file:
        origin = file.metadata()
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, origin)


# Memory ---------------------------------------------------------------------------------------------------------------


class Loaded(dict[str, SecondMoment]):
    """The control of what follows: a mapping that holds everything."""


def test_stored_moments_hold_one_layer_at_a_time(stored: Path) -> None:
    def alive(moments: Mapping[str, SecondMoment]) -> Iterator[int]:
        seen = []
        for name in moments:
            seen.append(weakref.ref(moments[name].total))
            yield sum(total() is not None for total in seen)

    lazy, _ = load_moments(stored)
    assert list(alive(lazy)) == [0, 0]
    assert list(alive(Loaded(lazy))) == [1, 2]
