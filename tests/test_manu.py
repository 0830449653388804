"""Pruning by hand: importances, which neurons go, and that nothing but them does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewModel
from safetensors.torch import load_file
from tiny import TINIES
from torch import Tensor, nn

from unsee.data.examples import Example, Split, UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.methods.manu import (
    EPSILON,
    Activity,
    Mlp,
    ModalityAwareNeuronUnlearning,
    importances,
    unseen,
    watching,
)
from unsee.methods.parts.base import OutputMethod
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded

SMALL = ModalityAwareNeuronUnlearning(vision_layers=2, language_layers=1, share=0.1)
NEURONS = 3 * 48  # of these three layers in the tiny LLaVA


def manu(**settings: Any) -> ModalityAwareNeuronUnlearning:
    return dataclasses.replace(SMALL, **settings)


def weights_in(loaded: Loaded) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters()}


def hooks_in(loaded: Loaded) -> int:
    """From the first forward pass on there are some of transformers' own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())


@torch.no_grad()
def carry_out(method: ModalityAwareNeuronUnlearning, loaded: Loaded, sides: tuple[Split, Split]) -> dict[str, Tensor]:
    """Add what the method solves for; returns it."""
    deltas, own = method.solve(loaded, *sides), dict(loaded.model.named_parameters())
    for name, delta in deltas.items():
        own[name] += delta
    return deltas


def silent(mlp: Mlp) -> list[int]:
    """Neurons that nothing leads into or out of."""
    rows = [p.flatten(1).abs().amax(1) if p.dim() > 1 else p.abs() for m in mlp.inputs.values() for p in m.parameters()]
    parts = torch.stack([*rows, mlp.output[1].weight.abs().amax(0)])
    return (parts.amax(0) == 0).nonzero()[:, 0].tolist()


# Importances ----------------------------------------------------------------------------------------------------------


def test_importances_and_score_are_their_formulas() -> None:
    """Streamed in parts of any size."""
    torch.manual_seed(0)
    sides = ("forget", "retain")
    values = {
        (side, shown): (1 + i) * torch.rand(6) * torch.randn(50 + 30 * i, 6) + 0.1 * i
        for i, (side, shown) in enumerate(product(sides, (True, False)))
    }
    found = {place: Activity(6, threshold=0.2) for place in values}
    for place, positions in values.items():
        for part in positions.split([7, 1, len(positions) - 8]):
            found[place].add(part)

    def by_hand(multi: Tensor, text: Tensor) -> list[Tensor]:
        multi, text = multi.double(), text.double()
        pairs = [
            (multi.abs().mean(0), text.abs().mean(0)),
            ((multi.abs() > 0.2).double().mean(0), (text.abs() > 0.2).double().mean(0)),
            (multi.square().mean(0).sqrt(), text.square().mean(0).sqrt()),
        ]
        contrasts = [(m - t).abs() / (m + t + EPSILON) for m, t in pairs]
        spread = (multi.var(0, correction=0) + text.var(0, correction=0)).sqrt()
        return [contrasts[0], contrasts[1], spread, contrasts[2]]

    expected = {side: torch.stack(by_hand(values[side, True], values[side, False])) for side in sides}
    got = {side: importances(found[side, True], found[side, False]) for side in sides}
    for side in sides:
        torch.testing.assert_close(got[side], expected[side])
    weights = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    method = manu(mean=1.0, frequency=0.5, deviation=2.0, root_mean_square=3.0, threshold=0.2)
    sums = {side: (weights[:, None] * expected[side]).sum(0) for side in sides}
    torch.testing.assert_close(method.score(got["forget"], got["retain"]), sums["forget"] / (sums["retain"] + EPSILON))
    assert not torch.allclose(method.score(got["retain"], got["forget"]), method.score(got["forget"], got["retain"]))
    assert manu(deviation=0.0).weights == (1.0, 1.0, 0.0, 1.0)


def test_what_fires_for_pictures_alone_is_before_what_fires_without_them_too() -> None:
    """On forget data; retained data leave both neurons cold."""
    torch.manual_seed(0)
    both = torch.randn(60, 1).abs().expand(60, 2)  # with pictures both do the same
    shown, hidden, cold = Activity(2, 0.1), Activity(2, 0.1), Activity(2, 0.1)
    shown.add(both)
    hidden.add(both * torch.tensor([0.0, 1.0]))
    cold.add(1e-3 * both)
    method = manu(deviation=0.0)
    retained = importances(cold, cold)
    seeing, indifferent = method.score(importances(shown, hidden), retained)
    assert seeing > 1000 * max(indifferent, 1e-9)
    seeing, indifferent = SMALL.score(importances(shown, hidden), retained)
    assert seeing > 2 * indifferent, "and with how they vary"
    without = shown.statistics() / (cold.statistics() + EPSILON)  # the control: no text side, no difference
    assert torch.equal(without[:, 0], without[:, 1])


@torch.no_grad()
def test_without_a_picture_nothing_is_seen_and_the_question_stays(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    asked = sides[0].pictured
    blind = unseen(asked)
    about = [{(e.subject, e.question, e.answer) for e in some} for some in (asked, blind)]
    assert about[0] == about[1]
    assert len(blind) == len(about[1]) < len(asked), "each once"
    assert not blind.pictured
    mlps = SMALL.mlps(loaded)
    shown, hidden = (SMALL.activities(loaded, mlps, some) for some in (asked, blind))
    for mlp, with_picture, without in zip(mlps, shown, hidden, strict=True):
        assert (without.positions > 0) == mlp.language
        assert with_picture.positions > without.positions
        if not mlp.language:
            assert (importances(with_picture, without)[[0, 3]] > 0.9).all(), "all of it is of pictures"


@torch.no_grad()
def test_padding_is_not_looked_at(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    """One question at a time has none; looking at all positions of a padded batch would show."""
    mlps = SMALL.mlps(loaded)
    padded, alone = (manu(batch=size).activities(loaded, mlps, sides[0].pictured) for size in (48, 1))
    for some, other in zip(padded, alone, strict=True):
        assert some.positions == other.positions
        torch.testing.assert_close(some.statistics(), other.statistics(), rtol=1e-4, atol=1e-6)
    with watching(mlps) as latest:
        batch = loaded.batcher.for_training(sides[0].pictured.examples)
        loaded.model.model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    assert not batch["attention_mask"].all()
    careless = Activity(mlps[-1].neurons, SMALL.threshold)
    careless.add(latest[mlps[-1]].flatten(0, -2))
    assert not torch.allclose(careless.statistics(), padded[-1].statistics(), rtol=1e-2)


@pytest.mark.parametrize("place", [0, 2], ids=["vision", "language"])
@pytest.mark.parametrize("busy", ["forget", "retain"])
def test_a_neuron_that_is_active_on_forget_pictures_alone_goes_first(
    loaded: Loaded, sides: tuple[Split, Split], place: int, busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlps, neuron, now = SMALL.mlps(loaded), 7, {"side": "none"}
    read = Batcher.for_training

    def reading(self: Batcher, examples: Sequence[Example]) -> Any:
        side = "forget" if examples[0].subject in sides[0].subjects else "retain"
        now["side"] = side if examples[0].images else "text"
        return read(self, examples)

    def planted(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = inputs[0].clone()
        values[..., neuron] = 3.0 * (now["side"] == busy)
        return (values,)

    monkeypatch.setattr(Batcher, "for_training", reading)
    mlps[place].output[1].register_forward_pre_hook(planted)
    method = manu(share=1 / NEURONS)
    both = [method.importances(loaded, mlps, side.pictured) for side in sides]
    scores = [method.score(*pair) for pair in zip(*both, strict=True)]
    chosen = [part.tolist() for part in method.chosen(scores)]
    wanted = [[neuron] if i == place else [] for i in range(3)]
    assert (chosen == wanted) == (busy == "forget")
    last = [int(part.argmin()) for part in scores][place], min(range(3), key=lambda i: float(scores[i].min()))
    assert (last == (neuron, place)) == (busy == "retain")


# What is pruned -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "pruned"), [(0.02, 2), (0.1, 14), (0.5, 72), (0.999, 143), (1.0, 144)])
def test_so_many_neurons_are_pruned(loaded: Loaded, sides: tuple[Split, Split], share: float, pruned: int) -> None:
    """Rounded down."""
    mlps = SMALL.mlps(loaded)
    assert sum(mlp.neurons for mlp in mlps) == NEURONS
    assert not any(silent(mlp) for mlp in mlps)
    carry_out(manu(share=share), loaded, sides)
    assert sum(len(silent(mlp)) for mlp in mlps) == pruned


def test_equal_scores_prune_no_more_and_the_first_ones() -> None:
    scores = [torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 2.0, 0.0, 3.0])]
    assert [part.tolist() for part in manu(share=3 / 7).chosen(scores)] == [[1, 2], [3]]
    assert [part.tolist() for part in manu(share=0.29).chosen([torch.arange(100.0)])] == [list(range(71, 100))]
    with pytest.raises(BadInput, match=r"share=0.1: prunes none of 7 neurons"):
        manu(share=0.1).chosen(scores)


@pytest.mark.parametrize("family", TINIES)
@torch.no_grad()
def test_pruned_neurons_add_nothing_and_the_others_what_they_did(
    new_model: NewModel, people: UnlearnData, sides: tuple[Split, Split], family: str
) -> None:
    """MLP by MLP, on inputs of its own size; biases of pruned neurons go, that of the sum stays."""
    torch.manual_seed(0)
    model, processor = new_model(family)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_()
    loaded = Loaded(model, Batcher(processor, FAMILIES[family]), FAMILIES[family], None)  # type: ignore[arg-type]
    method = manu(language_layers=2, share=0.3)
    mlps = method.mlps(loaded)
    modules = [model.get_submodule(mlp.output[0].rpartition(".")[0]) for mlp in mlps]
    inputs = [torch.randn(5, next(iter(mlp.inputs.values())).in_features) for mlp in mlps]

    def run() -> tuple[list[Tensor], list[Tensor]]:
        with watching(mlps) as latest:
            given = [module(x) for module, x in zip(modules, inputs, strict=True)]
        return given, [latest[mlp] for mlp in mlps]

    before = weights_in(loaded)
    _, old = run()
    carry_out(method, loaded, sides)
    given, new = run()
    pruned = [silent(mlp) for mlp in mlps]
    assert sum(map(len, pruned)) == int(0.3 * sum(mlp.neurons for mlp in mlps))
    for mlp, gone, a, after, y in zip(mlps, pruned, old, new, given, strict=True):
        rest = [i for i in range(mlp.neurons) if i not in gone]
        assert (after[:, gone] == 0).all()
        assert torch.equal(after[:, rest], a[:, rest])
        for name, layer in mlp.inputs.items():
            for kind, parameter in layer.named_parameters():
                assert torch.equal(parameter[rest], before[f"{name}.{kind}"][rest])
        name, layer = mlp.output
        assert torch.equal(layer.weight[:, rest], before[f"{name}.weight"][:, rest])
        bias = torch.zeros(()) if layer.bias is None else before[f"{name}.bias"]
        contributions = a[:, None] * before[f"{name}.weight"]  # [positions, d_out, neurons]
        torch.testing.assert_close(y, contributions[..., rest].sum(-1) + bias, rtol=1e-4, atol=1e-5)
        if gone:
            assert not torch.allclose(y, contributions.sum(-1) + bias, rtol=1e-3, atol=1e-3)
    touched = {name for mlp in mlps for name in (*mlp.inputs, mlp.output[0])}
    now = dict(model.named_parameters())
    moved = {name.rpartition(".")[0] for name, p in before.items() if not torch.equal(p, now[name])}
    assert moved
    assert moved <= touched


@pytest.mark.parametrize(
    ("settings", "language", "vision"),
    [({}, True, True), ({"language_layers": 0}, False, True), ({"vision_layers": 0}, True, False)],
)
def test_layers_that_are_not_asked_for_stay(
    loaded: Loaded, sides: tuple[Split, Split], settings: dict[str, int], language: bool, vision: bool
) -> None:
    before = weights_in(loaded)
    deltas = carry_out(manu(share=0.5, **settings), loaded, sides)
    now = dict(loaded.model.named_parameters())
    moved = {name for name, p in before.items() if not torch.equal(p, now[name])}
    assert moved == {name for name in deltas if deltas[name].any()}
    assert any("language_model" in name for name in moved) == language
    assert any("vision_tower" in name for name in moved) == vision


def test_layers_are_counted_back_from_those_that_reach_an_answer(loaded: Loaded) -> None:
    """The tiny LLaVA reads the second last of four blocks, so the last one is none of them."""
    names = [mlp.output[0] for mlp in manu(vision_layers=3, language_layers=2).mlps(loaded)]
    assert [int(name.split("layers.")[1].split(".")[0]) for name in names] == [0, 1, 2, 0, 1]
    assert [mlp.language for mlp in manu(vision_layers=3, language_layers=2).mlps(loaded)] == [False] * 3 + [True] * 2


# Names that match nothing ---------------------------------------------------------------------------------------------


class Renamed(nn.Module):
    """Public code looks for `vision_fc1_0` and the like, finds nothing, and prunes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_fc1_0, self.vision_fc2_0 = nn.Linear(16, 32), nn.Linear(32, 16)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_an_mlp_of_unknown_form_is_refused_by_name(loaded: Loaded, sides: tuple[Split, Split], part: str) -> None:
    name = SMALL.mlps(loaded)[0 if part == "vision" else -1].output[0].rpartition(".mlp.")[0]
    loaded.model.set_submodule(f"{name}.mlp", Renamed())
    with pytest.raises(BadInput, match=rf"layer '{name}': expected .* found mlp.vision_fc1_0, mlp.vision_fc2_0"):
        SMALL.solve(loaded, *sides)


@pytest.mark.parametrize("setting", ["vision_layers", "language_layers"])
def test_more_layers_than_there_are_are_refused(loaded: Loaded, setting: str) -> None:
    there = {"vision_layers": 3, "language_layers": 2}[setting]
    assert manu(**{setting: there}).mlps(loaded)
    with pytest.raises(BadInput, match=f"{setting}={there + 1}: this model has {there}"):
        manu(**{setting: there + 1}).mlps(loaded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"share": 1.1}, "share=1.1"),
        ({"vision_layers": 0, "language_layers": 0}, "no neuron to prune"),
        ({"mean": 0.0, "frequency": 0.0, "deviation": 0.0, "root_mean_square": 0.0}, "all four weights are 0"),
    ],
)
def test_settings_that_prune_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manu(**settings)


# A whole run ----------------------------------------------------------------------------------------------------------


def test_the_student_is_left_as_it_was_and_no_chance_is_at_work(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    before, hooks, found = weights_in(loaded), [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(SMALL.solve(loaded, *sides))
        hooks.append(hooks_in(loaded))
    now = dict(loaded.model.named_parameters())
    assert all(torch.equal(p, now[name]) for name, p in before.items())
    with watching(SMALL.mlps(loaded)):
        hooks.append(hooks_in(loaded))
    assert hooks == [hooks[0], hooks[0], hooks[0] + 3]
    assert all(torch.equal(delta, found[1][name]) for name, delta in found[0].items())
    swapped = SMALL.solve(loaded, *sides[::-1])
    assert not all(torch.equal(delta, swapped.get(name, torch.zeros(()))) for name, delta in found[0].items())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_from_a_checkpoint_to_a_checkpoint(
    checkpoint: Path, checkpoint_bf16: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, bf16: bool
) -> None:
    source, out = checkpoint_bf16 if bf16 else checkpoint, tmp_path / "out"
    manifest = unlearn(str(source), EditRequest(people, forget, manu(share=0.3), 0, gate=False), out)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert sorted(changed) == manifest["changed"]
    assert {key.split(".mlp.")[1].split(".")[0] for key in changed} == {
        "fc1",
        "fc2",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    entries = torch.cat([(before[key] != after[key]).flatten() for key in changed])
    assert 0 < entries.float().mean() < 1
    for key in changed:
        assert (after[key][before[key] != after[key]] == 0).all()
    assert (manifest["level"], manifest["history"], manifest["certificate"]) == ("outputs", {"manu": []}, None)


def test_steps_are_refused(loaded: Loaded, sides: tuple[Split, Split]) -> None:
    assert isinstance(SMALL, OutputMethod)
    with pytest.raises(TypeError, match="manu has no steps to plan: call solve"):
        SMALL.plan(loaded, *sides)
