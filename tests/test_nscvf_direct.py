"""The closed form: what its ridge solution promises, on tiny models of every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import NewModel
from tiny import TINIES
from torch import Tensor, nn

from unsee.data.examples import Example, Split, UnlearnData
from unsee.methods import FeatureStudy
from unsee.methods.nscvf_direct import DirectForgetting, Regression
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.packed import NOTHING
from unsee.subspace.moments import SecondMoment, watching
from unsee.subspace.nullspace import relative_drift

FREE = 1.0  # of `energy`: all directions
NEGLIGIBLE = 1e-9

Study = Callable[..., FeatureStudy]


@pytest.fixture
def new_study(new_model: NewModel, people: UnlearnData) -> Study:
    """One subject to forget, three to keep, at the reference features of a new model."""

    def make(last_blocks: int = 1, family: str = "llava", data: UnlearnData = people, keep: int = 3) -> FeatureStudy:
        model, processor = new_model(family)
        visual = FAMILIES[family].visual(model.requires_grad_(False))
        forget, kept = data.choose("first:1"), data.subjects[1 : 1 + keep]
        parts = data.train.of(forget), data.train.of(kept), data.validation.of(forget)
        return FeatureStudy.of(visual, Batcher(processor, FAMILIES[family]), *parts, last_blocks)

    return make


def moments_of(study: FeatureStudy, method: DirectForgetting) -> dict[str, SecondMoment]:
    with torch.no_grad(), watching(method.layers(study.visual)) as moments:
        study.tail(study.retain.hidden)
    return moments


def solved(study: FeatureStudy, **settings: Any) -> dict[str, Tensor]:
    method = DirectForgetting(last_blocks=len(study.visual.blocks) - study.cut, **settings)
    return method.solve(study, moments_of(study, method))


def edited(study: FeatureStudy, deltas: dict[str, Tensor]) -> FeatureStudy:
    """The same study with the edit made."""
    parameters = dict(study.visual.model.named_parameters())
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name] += delta
    return study


def targets(study: FeatureStudy, method: DirectForgetting, strength: float) -> Tensor:
    """Every token of the forget pictures, moved as the docstring of the module says."""
    stand_in = int(method.stand_ins(study))
    theirs = study.retain.tokens.stack()[study.retain.subject == stand_in].mean(0)
    own = study.forget.tokens.stack()
    return (own + strength * (theirs - own.mean(0))).flatten(0, 1)


@pytest.mark.parametrize(("weights", "reached"), [(NEGLIGIBLE, True), (3.0, False)])
def test_nothing_kept_means_the_targets_are_met(new_study: Study, weights: float, reached: bool) -> None:
    """Twelve tokens in sixteen directions: a linear layer can put each where it likes, unless others count too."""
    study = new_study(last_blocks=0)
    exact = {
        "retain_weight": weights,
        "ridge": NEGLIGIBLE,
        "threshold": FREE,
        "strength_low": 0.7,
        "strength_high": 0.7,
    }
    wanted = targets(study, DirectForgetting(**exact), strength=0.7)
    with torch.no_grad():
        now = edited(study, solved(study, **exact)).tail(study.forget.hidden).states
    far = (now - wanted).norm() / (wanted - study.forget.tokens.states).norm()
    assert (far < 1e-3) == reached


@pytest.mark.parametrize("last_blocks", [0, 2])
def test_every_edit_stays_in_its_null_space(new_study: Study, last_blocks: int) -> None:
    study = new_study(last_blocks)
    method = DirectForgetting(last_blocks=last_blocks)
    moments = moments_of(study, method)

    def leaving(threshold: float) -> list[float]:
        deltas = dataclasses.replace(method, threshold=threshold).solve(study, moments)
        spaces = {name: moments[name.removesuffix(".weight")].null_space("energy", 0.1) for name in deltas}
        return [float((d - spaces[name].project(d)).norm() / d.norm()) for name, d in deltas.items()]

    inside, outside = leaving(0.1), leaving(FREE)
    assert len(inside) == last_blocks + 1
    assert max(inside) < 1e-5 < 1e-3 < min(outside)


def test_an_exact_null_space_leaves_retained_tokens_alone(new_study: Study) -> None:
    """One retained subject has twelve tokens: four of sixteen directions are none of its business."""
    change = {}
    for rule, threshold in (("relative", 1e-9), ("energy", FREE)):
        study = new_study(last_blocks=0, keep=1)
        deltas = solved(study, rule=rule, threshold=threshold)
        assert deltas["model.multi_modal_projector.linear_2.weight"].norm() > 1e-3
        with torch.no_grad():
            now = edited(study, deltas).tail(study.retain.hidden).states
        change[rule] = float((now - study.retain.tokens.states).norm() / study.retain.tokens.states.norm())
    assert change["relative"] < 1e-4 < 1e-2 < change["energy"]


def test_retained_tokens_move_as_far_as_the_certificate_says(new_study: Study) -> None:
    drift, name = {}, "model.multi_modal_projector.linear_2"
    for keep in (0.01, 3.0, 300.0):
        study = new_study(last_blocks=0)
        layer = study.visual.model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        moment = moments_of(study, DirectForgetting(last_blocks=0))[name].mean
        before, deltas = layer.weight.clone(), solved(study, retain_weight=keep, strength_low=1.0, strength_high=1.0)
        drift[keep] = relative_drift(deltas[f"{name}.weight"], before, moment)
        with torch.no_grad():
            now = edited(study, deltas).tail(study.retain.hidden).states
        without_bias = (study.retain.tokens.states - layer.bias).norm()
        assert float((now - study.retain.tokens.states).norm() / without_bias) == pytest.approx(drift[keep], rel=1e-3)
    assert drift[300.0] < drift[3.0] / 2 < drift[0.01] / 2


@pytest.mark.parametrize("family", TINIES)
@pytest.mark.parametrize("ragged", [False, True])
def test_what_a_layer_adds_is_added_to_its_stage(
    new_study: Study, ragged_people: UnlearnData, people: UnlearnData, family: str, ragged: bool
) -> None:
    """Else the regression would aim at something that the edit does not do."""
    study = new_study(1, family, ragged_people if ragged else people)
    method = DirectForgetting()
    moments = moments_of(study, method)
    for i, (name, layer) in enumerate(method.layers(study.visual).items()):
        stage = Regression(method, study, layer, study.cut + i, moments[name]).stage
        with torch.no_grad():
            before, keys = stage.observe(study.forget.hidden)
            delta = 0.1 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i))
            layer.weight += delta
            after, _ = stage.observe(study.forget.hidden)
            layer.weight -= delta
        moved = after.states - before.states
        torch.testing.assert_close(moved, keys @ delta.T, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(moved, keys.flip(0) @ delta.T, rtol=1e-3, atol=1e-5)  # the order matters
        assert len(stage.place(before)) == len(keys)
        assert set(stage.place(before).tolist()) == set(range(stage.places))


@pytest.mark.parametrize("family", TINIES)
def test_the_module_is_left_as_it_was(new_study: Study, ragged_people: UnlearnData, family: str) -> None:
    study = new_study(2, family, ragged_people)
    before = {name: p.clone() for name, p in study.visual.model.named_parameters()}
    deltas = solved(study)
    assert len(deltas) == 3
    assert all(d.shape == before[name].shape and d.isfinite().all() for name, d in deltas.items())
    assert all(d.abs().max() > 0 for d in deltas.values())
    assert all(torch.equal(p, before[name]) for name, p in study.visual.model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in study.visual.model.modules())


def renamed(data: UnlearnData, probes: tuple[str, ...]) -> UnlearnData:
    """Every answer to these questions replaced by one and the same."""

    def other(e: Example) -> Example:
        return dataclasses.replace(e, answer="nobody") if e.probe in probes else e

    parts = {name: Split(tuple(map(other, data.split(name)))) for name in ("train", "validation")}
    return dataclasses.replace(data, **parts)


def test_names_and_facts_are_not_looked_at(new_study: Study, people: UnlearnData) -> None:
    """Visible attributes are: who looks alike depends on them."""
    deltas = [solved(new_study(data=renamed(people, probes))) for probes in ((), ("identity", "fact"), ("attribute",))]
    same, other = ([torch.equal(d, deltas[0][name]) for name, d in found.items()] for found in deltas[1:])
    assert all(same)
    assert not any(other)


def test_the_least_strength_that_is_enough_is_taken(new_study: Study) -> None:
    study = new_study(last_blocks=0)
    method = DirectForgetting(
        last_blocks=0, threshold=FREE, adapt_target=0.0, adapt_margin=0.0, retain_weight=0.01, strength_high=4.0
    )
    (name,) = method.layers(study.visual)
    layer = study.visual.model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    regression = Regression(method, study, layer, study.cut, moments_of(study, method)[name])
    stand_ins = method.stand_ins(study)
    least = regression.least_strength(stand_ins)
    assert method.strength_low < least < method.strength_high

    def recognised(strength: Tensor) -> float:
        delta = regression.solution(stand_ins, strength)
        with torch.no_grad():
            layer.weight += delta
            found = study.recognised().mean().item()
            layer.weight -= delta
        return found

    assert recognised(least + 0.01) == 0.0
    assert recognised(least - 0.02) > 0.0

    unseen = dataclasses.replace(study, held_back=dataclasses.replace(study.held_back, hidden=NOTHING, tokens=NOTHING))
    unseen = dataclasses.replace(unseen, held_back=dataclasses.replace(unseen.held_back, subject=torch.empty(0).long()))
    blind = Regression(method, unseen, layer, study.cut, moments_of(study, method)[name])
    assert blind.least_strength(stand_ins).tolist() == [1.0]


def test_steps_are_refused() -> None:
    with pytest.raises(TypeError, match="call solve"):
        DirectForgetting().plan(None, None)  # type: ignore[arg-type]
