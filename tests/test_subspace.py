"""Null spaces: the projector is one, steps stay inside it, statistics do not depend on how they were gathered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW

from unsee.errors import BadInput
from unsee.subspace.constrain import steps_inside
from unsee.subspace.moments import SecondMoment, load_moments, save_moments, watching
from unsee.subspace.nullspace import NullSpace, Projection, null_space, relative_drift

SIZE, RANK = 24, 10


def low_rank(rows: int = 60, seed: int = 0) -> Tensor:
    """Inputs [rows, SIZE] of rank exactly RANK."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = torch.randn(rows, RANK, generator=generator, dtype=torch.float64)
    return coordinates @ torch.randn(RANK, SIZE, generator=generator, dtype=torch.float64)


def full_rank(seed: int = 0) -> Tensor:
    """A second moment with energies that fall by a factor of about a thousand."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, SIZE, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, SIZE)
    return x.T @ x


def random_space(seed: int = 0) -> NullSpace:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return NullSpace(basis[:, RANK:], basis[:, :RANK])


def projector(space: NullSpace) -> Tensor:
    return space.project(torch.eye(space.size, dtype=torch.float64))


# The operator ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "threshold"), [("energy", 1e-12), ("relative", 1e-12), ("rank", (SIZE - RANK) / SIZE)]
)
def test_projector_is_orthogonal_and_kills_what_must_stay(rule: str, threshold: float) -> None:
    x = low_rank()
    space = null_space(x.T @ x, rule, threshold)
    P = projector(space)
    assert space.basis.shape == (SIZE, SIZE - RANK)
    assert space.free == (SIZE - RANK) / SIZE
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-12)
    assert (P @ x.T).abs().max() < 1e-12 * x.abs().max()
    assert (projector(random_space()) @ x.T).abs().max() > 0.1 * x.abs().max()


def test_projection_keeps_the_dtype_of_the_change_and_what_is_already_inside() -> None:
    x, delta = low_rank(), torch.randn(5, SIZE, generator=torch.Generator().manual_seed(1))
    space = null_space(x.T @ x, "energy", 1e-12)
    inside = space.project(delta)
    assert inside.dtype == torch.float32
    assert not torch.allclose(inside, delta, atol=0.1)
    torch.testing.assert_close(space.project(inside), inside, rtol=0, atol=1e-5)


# The rules ------------------------------------------------------------------------------------------------------------

THRESHOLDS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.6, 0.99, 1.0)


@pytest.mark.parametrize("rule", ["energy", "relative", "rank"])
def test_a_larger_threshold_only_adds_directions(rule: str) -> None:
    spaces = [null_space(full_rank(), rule, t) for t in THRESHOLDS]
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


@pytest.mark.parametrize("rule", ["energy", "relative"])
def test_scale_of_the_features_does_not_matter(rule: str) -> None:
    moment, t = full_rank(), 0.05
    P = projector(null_space(moment, rule, t))
    assert 2 < P.trace() < SIZE - 2
    for scale in (1e-9, 1e9):
        torch.testing.assert_close(projector(null_space(scale * moment, rule, t)), P, rtol=0, atol=1e-9)
    absolute = [int((torch.linalg.eigvalsh(scale * moment) <= t).sum()) for scale in (1e-9, 1e9)]
    assert absolute == [SIZE, 0]


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 0), (0.25, 6), (0.5, 12), (1.0, SIZE)])
def test_rank_rule_counts_the_least_used_directions(threshold: float, count: int) -> None:
    moment = full_rank()
    space = null_space(moment, "rank", threshold)
    assert space.basis.shape == (SIZE, count)
    energy = torch.einsum("ik,ij,jk->k", space.basis, moment, space.basis)
    torch.testing.assert_close(energy, torch.linalg.eigvalsh(moment)[:count], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rule", "threshold"), [("absolute", 0.1), ("energy", -0.1), ("rank", 1.5)])
def test_unknown_rule_or_threshold_is_refused(rule: str, threshold: float) -> None:
    with pytest.raises(ValueError, match="null-space"):
        null_space(full_rank(), rule, threshold)


def test_relative_drift_is_the_change_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, SIZE, generator=generator, dtype=torch.float64)
    weight, delta = (torch.randn(7, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    direct = (x @ delta.T).norm() / (x @ weight.T).norm()
    assert relative_drift(delta, weight, x.T @ x / len(x)) == pytest.approx(direct.item(), rel=1e-12)
    assert relative_drift(0 * delta, weight, x.T @ x) == 0
    other = torch.randn(50, SIZE, generator=generator, dtype=torch.float64) * torch.arange(SIZE)
    assert relative_drift(delta, weight, other.T @ other) != pytest.approx(direct.item(), rel=1e-2)


# Steps ----------------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 32, bias=False), nn.GELU(), nn.Linear(32, 8, bias=False))


def twenty_steps(inside: bool, project_gradients: bool = False) -> tuple[float, float, float]:
    """Unlearn with AdamW and weight decay; change of the outputs on retained and on other data, worst layer's drift."""
    net = network()
    retained, other = low_rank(rows=20).float(), torch.randn(40, SIZE)
    layers = {"0": net[0], "2": net[2]}
    with torch.no_grad():
        elsewhere = net(other)
        with watching(layers) as moments:
            before = net(retained)
    spaces = {layer.weight: moments[name].null_space("energy", 1e-10) for name, layer in layers.items()}
    start = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    optimiser = AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    with steps_inside(optimiser, spaces if inside else {}):
        for _ in range(20):
            optimiser.zero_grad()
            (net(other) - elsewhere.flip(0)).square().mean().backward()
            if project_gradients:
                for weight, space in spaces.items():
                    weight.grad = space.project(weight.grad)
            optimiser.step()
    with torch.no_grad():
        kept = (net(retained) - before).norm() / before.norm()
        moved = (net(other) - elsewhere).norm() / elsewhere.norm()
    drift = max(relative_drift(layers[n].weight.detach() - start[n], start[n], moments[n].mean) for n in layers)
    return kept.item(), moved.item(), drift


def test_twenty_adamw_steps_stay_in_the_null_space() -> None:
    kept, moved, drift = twenty_steps(inside=True)
    assert kept < 1e-5
    assert drift < 1e-5
    assert moved > 0.1, "the edit did nothing at all"


@pytest.mark.parametrize("project_gradients", [False, True], ids=["unconstrained", "gradient projected"])
def test_controls_without_projected_steps_leak(project_gradients: bool) -> None:
    kept, moved, drift = twenty_steps(inside=False, project_gradients=project_gradients)
    assert min(kept, moved, drift) > 1e-2


def step(layer: nn.Linear, optimiser: torch.optim.Optimizer) -> float:
    """How far one optimiser step moves the weight."""
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    optimiser.step()
    return (layer.weight.detach() - before).abs().max().item()


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(SIZE, 4, bias=False)


NOTHING_FREE = NullSpace(torch.empty(SIZE, 0, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64))


@pytest.mark.parametrize("free", [1, SIZE - 1])
def test_either_basis_makes_the_same_projector(free: int) -> None:
    space = random_space()
    both = torch.cat([space.basis, space.used], 1)
    space = NullSpace(both[:, :free], both[:, free:])
    projection = space.projection(torch.float64)
    assert projection.directions.shape[1] == 1, "the smaller basis is kept"
    delta = torch.randn(4, SIZE, dtype=torch.float64)
    torch.testing.assert_close(projection.project(delta), delta @ space.basis @ space.basis.T, rtol=0, atol=1e-12)
    swapped = Projection(projection.directions, not projection.removes)
    assert not torch.allclose(swapped.project(delta), projection.project(delta))


def test_hooks_are_gone_afterwards_and_after_an_exception(layer: nn.Linear) -> None:
    optimiser = AdamW(layer.parameters(), lr=0.1)
    with steps_inside(optimiser, {layer.weight: NOTHING_FREE}):
        assert step(layer, optimiser) == 0
    assert step(layer, optimiser) > 0.01
    with pytest.raises(RuntimeError, match="stop"), steps_inside(optimiser, {layer.weight: NOTHING_FREE}):
        raise RuntimeError("stop")
    assert step(layer, optimiser) > 0.01
    with steps_inside(optimiser, {layer.weight: NOTHING_FREE}):
        assert step(layer, optimiser) == 0


def test_only_constrained_weights_are_held(layer: nn.Linear) -> None:
    free = nn.Linear(3, 3, bias=False)
    optimiser = AdamW([*layer.parameters(), *free.parameters()], lr=0.1)
    with steps_inside(optimiser, {layer.weight: NOTHING_FREE}):
        free.weight.grad = torch.ones_like(free.weight)
        before = free.weight.detach().clone()
        assert step(layer, optimiser) == 0
    assert (free.weight - before).abs().min() > 0.01


def test_two_constraints_on_one_weight_are_refused(layer: nn.Linear) -> None:
    optimiser = AdamW(layer.parameters(), lr=0.1)
    with steps_inside(optimiser, {layer.weight: NOTHING_FREE}):
        with (
            pytest.raises(ValueError, match="one constraint only"),
            steps_inside(optimiser, {layer.weight: random_space()}),
        ):
            pass
        assert step(layer, optimiser) == 0, "the refusal loosened the first constraint"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda layer: nn.Linear(SIZE, 4, bias=False).weight, "not among the optimiser's parameters"),
        (lambda layer: layer.bfloat16().weight, "float32 or wider"),
        (lambda layer: nn.Parameter(torch.zeros(4, SIZE + 1)), "does not fit"),
        (lambda layer: nn.Parameter(torch.zeros(SIZE)), "does not fit"),
    ],
    ids=["not optimised", "bf16", "other width", "a bias"],
)
def test_weights_that_cannot_be_held_are_refused(
    layer: nn.Linear, spoil: Callable[[nn.Linear], nn.Parameter], words: str
) -> None:
    good = nn.Linear(SIZE, 2, bias=False)
    bad = spoil(layer)
    optimised = [good.weight] if words.startswith("not among") else [good.weight, bad]
    optimiser = AdamW(optimised, lr=0.1)
    with (
        pytest.raises(ValueError, match=words),
        steps_inside(optimiser, {good.weight: NOTHING_FREE, bad: NOTHING_FREE}),
    ):
        pass
    with steps_inside(optimiser, {good.weight: NOTHING_FREE}):  # the refusal left no mark on the good one
        assert step(good, optimiser) == 0


# Statistics -----------------------------------------------------------------------------------------------------------


def gathered(*parts: Tensor) -> SecondMoment:
    moment = SecondMoment(SIZE)
    for part in parts:
        moment.update(part)
    return moment


def test_streamed_is_batch_is_merged() -> None:
    x = torch.randn(6, 7, SIZE, generator=torch.Generator().manual_seed(0))
    rows = x.reshape(-1, SIZE).double()
    expected = rows.T @ rows / len(rows)
    merged = gathered(x[4:])
    merged.merge(gathered(x[:3], x[3:4]))
    for moment in (gathered(x), gathered(*x.flip(0)), gathered(*rows), merged):
        assert moment.tokens == 42
        torch.testing.assert_close(moment.mean, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(gathered(x[1:]).mean, expected, rtol=1e-3)


def test_a_moment_of_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        _ = SecondMoment(SIZE).mean


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


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "statistics.safetensors"
    save_moments({"tower.fc1": gathered(low_rank()), "tower.fc2": gathered(low_rank(seed=1))}, path, {"model": "abc"})
    return path


def test_moments_survive_the_disk(stored: Path) -> None:
    moments, about = load_moments(stored, ["tower.fc2"])
    expected = gathered(low_rank(seed=1))
    assert list(moments) == ["tower.fc2"]
    assert torch.equal(moments["tower.fc2"].total, expected.total)
    assert moments["tower.fc2"].tokens == expected.tokens
    assert about["model"] == "abc"
    assert [file.name for file in stored.parent.iterdir()] == [stored.name]


def test_moments_that_cannot_be_used_are_named(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no layer 'tower\.fc9'"):
        load_moments(stored, ["tower.fc1", "tower.fc9"])
    with pytest.raises(BadInput, match="no such file"):
        load_moments(tmp_path / "missing", ["tower.fc1"])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"tower.fc1.total": torch.eye(SIZE)}, foreign)
    with pytest.raises(BadInput, match="not a moments file"):
        load_moments(foreign, ["tower.fc1"])


@pytest.mark.parametrize("content", [b"", b"just some text", None], ids=["empty", "text", "truncated"])
def test_files_that_are_no_safetensors_are_bad_input(stored: Path, content: bytes | None) -> None:
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        load_moments(stored, ["tower.fc1"])
