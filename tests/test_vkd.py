"""Visual knowledge distillation by hand: every term, the stand-ins, the mask and what it holds."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewModel
from safetensors.torch import load_file
from studies import Through, people_study, placed, uneven_study
from tiny import TINIES
from torch import Tensor, nn
from torch.nn import functional as F

from unsee.data.examples import UnlearnData
from unsee.editing import unlearn as experiment
from unsee.methods import FeatureStudy
from unsee.methods.vkd import DistillationObjective, VisualKnowledgeDistillation, distance, most_salient
from unsee.models.loading import Loaded
from unsee.models.packed import Packed
from unsee.subspace.saliency import FisherSaliency

SETTINGS = VisualKnowledgeDistillation(steps=6, forget_pictures=2, retain_pictures=4, learning_rate=5e-3)
TEACHERS = ("unknowing", "look_alike", "mixture", "perturbed")


def vkd(**settings: Any) -> VisualKnowledgeDistillation:
    return dataclasses.replace(SETTINGS, **settings)


@pytest.fixture
def study(checkpoint: Path, people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget and two to keep; two blocks to edit."""
    return people_study(checkpoint, people, people.choose("first:2"), last_blocks=2)


def weights_in(study: FeatureStudy) -> dict[str, Tensor]:
    """All that are held in memory."""
    return {name: p.detach().clone() for name, p in study.visual.model.named_parameters() if not p.is_meta}


def moved_since(study: FeatureStudy, before: dict[str, Tensor]) -> set[str]:
    now = dict(study.visual.model.named_parameters())
    return {name for name, old in before.items() if not torch.equal(now[name], old)}


# The loss -------------------------------------------------------------------------------------------------------------


class Stairs(Through):
    """Every block adds something of its own."""

    blocks = (nn.Identity(),) * 3

    def __init__(self, steps: Tensor, shift: Tensor) -> None:
        super().__init__(shift)
        self.steps = steps  # [blocks, width]

    def run(self, hidden: Packed, start: int = 0, stop: int | None = None) -> Packed:
        return hidden.with_states(hidden.states + self.steps[start:stop].sum(0))


@pytest.mark.parametrize("main", [0.0, 1.5])
@pytest.mark.parametrize("layers", ["every", "last"])
def test_every_term_is_its_formula(layers: str, main: float) -> None:
    torch.manual_seed(0)
    made = placed(torch.randn(2, 3, 4, 5), torch.randn(3, 3, 4, 5))
    student, teacher = (Stairs(torch.randn(3, 5), torch.randn(5)) for _ in range(2))
    study = dataclasses.replace(made, visual=student, reference=teacher, cut=1)
    settings = vkd(layers=layers, main_weight=main, forget_weight=2.0, retain_weight=7.0)
    objective = DistillationObjective(settings, study)
    f, r = torch.tensor([4, 0, 2]), torch.tensor([8, 1])
    terms = objective.loss((f, r))

    x, kept = study.forget.hidden.stack(), study.retain.hidden.stack()
    stand_in = study.retain.hidden.stack()[objective.stand_ins.picture]
    stops = (2, 3) if layers == "every" else (3,)
    expected = {"forget features": 0.0, "retain features": 0.0}
    for stop in stops:
        now, then = student.steps[1:stop].sum(0), teacher.steps[1:stop].sum(0)
        spread = (kept + then).flatten(0, 1).var(0).mean()
        expected["forget features"] += 2.0 * (x[f] + now - stand_in[f] - then).square().mean() / spread / len(stops)
        expected["retain features"] += 7.0 * (kept[r] + now - kept[r] - then).square().mean() / spread / len(stops)
    if main:
        now, tokens = student.steps[1:].sum(0) + student.shift, study.retain.tokens.stack()  # the teacher's are cached
        spread = tokens.flatten(0, 1).var(0).mean()
        wanted = tokens[objective.stand_ins.picture][f]
        expected["forget main"] = 2.0 * main * (x[f] + now - wanted).square().mean() / spread
        expected["retain main"] = 7.0 * main * (kept[r] + now - tokens[r]).square().mean() / spread
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], torch.as_tensor(value), msg=name)


def test_inner_features_of_pictures_of_different_sizes_are_compared_by_their_means() -> None:
    torch.manual_seed(0)
    small, large, other = torch.randn(4, 3), torch.randn(6, 3), torch.randn(6, 3)
    now = Packed(torch.cat([small, large]), (4, 6), ((1, 2, 2), (1, 2, 3)))
    wanted = Packed(torch.cat([large, other]), (6, 6), ((1, 2, 3), (1, 2, 3)))
    by_hand = (F.mse_loss(small.mean(0), large.mean(0)) + F.mse_loss(large, other)) / 2
    torch.testing.assert_close(distance(now, wanted), by_hand)
    turned = dataclasses.replace(wanted, grids=((1, 2, 3), (1, 3, 2)))  # as many positions, in other places
    torch.testing.assert_close(distance(now[1:], turned[1:]), F.mse_loss(large.mean(0), other.mean(0)))
    assert not torch.isclose(distance(now[1:], turned[1:]), F.mse_loss(large, other))


@pytest.mark.parametrize("family", TINIES)
@torch.no_grad()
def test_every_picture_counts_the_same_at_any_size(
    new_model: NewModel, ragged_people: UnlearnData, family: str
) -> None:
    study = uneven_study(family, new_model, ragged_people)
    objective = DistillationObjective(SETTINGS, study)
    f, r = torch.arange(len(study.forget)), torch.arange(len(study.retain))
    together = objective.loss((f, r))
    alone = [objective.loss((i[None], r)) for i in f]
    for name in ("forget features", "forget main"):
        apart = torch.stack([terms[name] for terms in alone])
        torch.testing.assert_close(together[name], apart.mean(), rtol=1e-4, atol=1e-5)
        assert apart.std() > 1e-3  # so that another weighting would show


@pytest.mark.parametrize("family", TINIES)
def test_what_is_kept_costs_nothing_at_the_reference(
    new_model: NewModel, ragged_people: UnlearnData, family: str
) -> None:
    study = uneven_study(family, new_model, ragged_people)
    objective = DistillationObjective(SETTINGS, study)
    with torch.no_grad():
        batch = torch.arange(2), torch.arange(len(study.retain))
        before = objective.loss(batch)
        layers = VisualKnowledgeDistillation().edited_layers(study.visual)
        next(iter(layers.values())).weight.mul_(1.1)  # of the first edited block: everything behind it moves
        after = objective.loss(batch)
    assert before["retain features"] < 1e-9
    assert before["retain main"] < 1e-9
    assert min(before["forget features"], before["forget main"]) > 1e-3
    assert min(after["retain features"], after["retain main"]) > 1e-5


# The teacher ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_stand_in_is_never_a_target(study: FeatureStudy, teacher: str) -> None:
    objective = DistillationObjective(vkd(teacher=teacher), study)
    everything = torch.arange(len(study.forget))
    assert (study.retain.subject[objective.stand_ins.picture] >= study.forgotten).all()
    asked = objective.forgetting(everything)
    own = objective.taught(study.forget.hidden, study.forget.tokens)
    assert len(asked) == len(own) == 3  # two blocks and the visual tokens
    for wanted, known, spread in zip(asked, own, objective.spread, strict=True):
        away = (wanted.stack() - known.stack()).square().mean((1, 2)) / spread.square().mean()
        assert (away > 0.05).all()
    if teacher in ("unknowing", "look_alike"):  # whole retained pictures: their features as they are
        theirs = objective.taught(study.retain.hidden, study.retain.tokens)
        for wanted, known in zip(asked, theirs, strict=True):
            torch.testing.assert_close(wanted.stack(), known.stack()[objective.stand_ins.picture])


def test_pictures_move_toward_their_stand_ins(study: FeatureStudy) -> None:
    """And nowhere without steps."""
    settings = vkd(steps=60, forget_pictures=6, retain_pictures=6, free=1.0)
    objective, plan = DistillationObjective(settings, study), settings.plan(study, None)
    everything = torch.arange(6), torch.arange(6)
    with torch.no_grad():
        before = objective.loss(everything)
    plan.carry_out("test")
    with torch.no_grad():
        after = objective.loss(everything)
    for name in ("forget features", "forget main"):
        assert after[name] < 0.7 * before[name]


# What may move --------------------------------------------------------------------------------------------------------


def kinds(names: Any) -> set[str]:
    return {"projector" if "projector" in n else "mlp" if ".mlp." in n else "attention" for n in names}


@pytest.mark.parametrize(
    ("settings", "expected", "count"),
    [
        ({}, {"projector", "mlp", "attention"}, 14),
        ({"trains": "attention"}, {"attention"}, 8),
        ({"trains": "mlp"}, {"mlp"}, 4),
        ({"last_blocks": 0}, {"projector"}, 2),
        ({"main_weight": 0.0}, {"mlp", "attention"}, 12),
        ({"layers": "last"}, {"projector", "mlp", "attention"}, 14),
    ],
)
def test_partial_fine_tuning_moves_its_part_and_nothing_else(
    checkpoint: Path, people: UnlearnData, settings: dict[str, Any], expected: set[str], count: int
) -> None:
    method = vkd(**settings)
    study = people_study(checkpoint, people, people.choose("first:2"), method.last_blocks)
    before = weights_in(study)
    plan = method.plan(study, None)
    plan.carry_out("test")
    moved = moved_since(study, before)
    assert moved == plan.edited.keys()
    assert (kinds(moved), len(moved)) == (expected, count)


@pytest.mark.parametrize("family", TINIES)
def test_attention_and_mlp_share_the_blocks_in_every_family(
    new_model: NewModel, ragged_people: UnlearnData, family: str
) -> None:
    visual = uneven_study(family, new_model, ragged_people).visual
    attention, mlp, everything = (vkd(trains=part).edited_layers(visual) for part in ("attention", "mlp", "all"))
    assert attention
    assert mlp
    assert not attention.keys() & mlp.keys()
    projector = everything.keys() - attention.keys() - mlp.keys()
    assert projector == vkd(last_blocks=0).edited_layers(visual).keys()


@pytest.mark.parametrize(
    "settings", [{"last_blocks": 0, "main_weight": 0.0}, {"last_blocks": 0, "trains": "mlp"}, {"free": 0.0}]
)
def test_settings_that_train_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"raise (one|last)|expected more than 0"):
        vkd(**settings)


def test_the_language_model_stays_to_the_bit(loaded: Loaded, people: UnlearnData) -> None:
    """Also where it is there."""
    parts = people.train.of(people.subjects[:1]), people.train.without(people.subjects[:1])
    held_back = people.validation.of(people.subjects[:1])
    study = FeatureStudy.of(loaded.visual, loaded.batcher, *parts, held_back, SETTINGS.last_blocks)
    before = weights_in(study)
    SETTINGS.plan(study, None).carry_out("test")
    inside = loaded.visual.named_parameters()
    moved = moved_since(study, before)
    assert moved
    assert moved <= inside.keys()
    assert len(inside) < len(before)  # there was more that could have moved


def test_a_whole_run_never_opens_the_language_model(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "load_model", lambda *_: pytest.fail("the whole model was opened"))
    out = tmp_path / "out"
    manifest = experiment.unlearn(str(checkpoint), experiment.EditRequest(people, forget, SETTINGS, 0, gate=False), out)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, out))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert sorted(changed) == manifest["changed"]
    assert changed
    assert all("vision_tower" in key or "projector" in key for key in changed)
    assert len(manifest["certificate"]["layers"]) == 14


def test_same_seed_same_weights_and_another_seed_others(checkpoint: Path, people: UnlearnData) -> None:
    def after(seed: int) -> dict[str, Tensor]:
        study = people_study(checkpoint, people, people.choose("first:2"), 2)
        torch.manual_seed(seed)
        plan = SETTINGS.plan(study, None)
        plan.carry_out("test")
        return dict(plan.edited)

    first, again, other = after(0), after(0), after(1)
    assert all(torch.equal(p, again[name]) for name, p in first.items())
    assert not any(torch.equal(p, other[name]) for name, p in first.items())


# The mask -------------------------------------------------------------------------------------------------------------


def moved_entries(study: FeatureStudy, share: float, held: bool) -> dict[str, Tensor]:
    """Which entries differ after a run whose mask was, or was not, put to use."""
    before = weights_in(study)
    plan = vkd(free=share).plan(study, None)
    (plan if held else dataclasses.replace(plan, constraint=nullcontext())).carry_out("test")
    return {name: p.detach() != before[name] for name, p in plan.edited.items()}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_only_so_many_entries_of_each_weight_move(checkpoint: Path, people: UnlearnData, share: float) -> None:
    for held in (True, False):
        study = people_study(checkpoint, people, people.choose("first:2"), 2)
        for name, moved in moved_entries(study, share, held).items():
            allowed = int(share * moved.numel())
            assert (0 < moved.sum() <= allowed) == held, name


class Told(FisherSaliency):
    """Saliency that a test says."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__({name: nn.Parameter(value) for name, value in values.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.parameters[name].detach()


def test_the_entries_that_matter_more_to_forgetting_are_free() -> None:
    forget = Told({"a": torch.tensor([[0.0, 5.0, 1.0], [9.0, 2.0, 2.0]]), "b": torch.full((3, 3), 1e-9)})
    keep = Told({"a": torch.tensor([[0.0, 1.0, 1.0], [9.0, 0.0, 0.1]]), "b": torch.ones(3, 3)})
    free = dict(most_salient(forget, keep, 0.5))
    assert free["a"].tolist() == [[False, True, False], [False, True, True]]
    assert {name: int(entries.sum()) for name, entries in free.items()} == {"a": 3, "b": 4}
    assert int(dict(most_salient(forget, keep, 0.01))["b"].sum()) == 1


def ratio(objective: DistillationObjective, edited: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    forget, keep = objective.saliency(edited)
    return {name: forget[name] / (keep[name] + torch.finfo(torch.float32).tiny) for name in edited}


class Linear(Through):
    """A projector that is one matrix."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def leave(self, hidden: Packed) -> Packed:
        return hidden.with_states(hidden.states @ self.weight.T)


def test_saliency_is_what_matters_to_forgetting_over_what_matters_to_keeping() -> None:
    """For a linear layer both are known: squared gradients of forgetting, and the Fisher information of keeping."""
    torch.manual_seed(0)
    width, scale = 4, torch.tensor([0.3, 1.0, 2.0, 4.0])
    made = placed(scale * torch.randn(2, 200, width), scale.flip(0) * torch.randn(3, 20, width))
    weight = nn.Parameter(torch.randn(width, width))
    study = dataclasses.replace(made, visual=Linear(weight), reference=Linear(weight.detach().clone()))
    settings = vkd(last_blocks=0, forget_pictures=1, retain_pictures=60)
    objective = DistillationObjective(settings, study)
    found = ratio(objective, {"weight": weight})["weight"]

    h, kept = study.forget.hidden.states, study.retain.hidden.states
    v = objective.spread[0].square().mean()
    missing = (h @ weight.T - objective.stand_ins.tokens.states).detach()
    forget = (2 / (width * v) * missing[:, :, None] * h[:, None, :]).square().sum(0)

    def fisher(sampled: Tensor) -> Tensor:
        off = kept @ weight.T.detach() - kept  # the cached tokens are not quite what this student makes of them
        steady = 2 / (60 * width * v) * off.T @ kept
        noise = (2 / (60 * width * v)) ** 2 * sampled[:, None] * kept.square().sum(0)[None]
        return len(h) * (steady.square() + noise)

    right = found / (forget / fisher(objective.spread[0].square()))
    assert right.min() > 0.6
    assert right.max() < 1.6
    wrong = found / (forget / fisher(objective.spread[0].square().flip(0)))
    assert wrong.min() < 0.5 or wrong.max() > 2


def test_noise_alone_tells_what_matters_to_keeping(study: FeatureStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the reference the gradient of keeping is zero, so without noise there is nothing to divide by."""
    edited = {name: p for name, p in study.visual.model.named_parameters() if name.endswith("linear_2.weight")}
    for p in edited.values():
        p.requires_grad_(True)
    torch.manual_seed(0)
    sound = ratio(DistillationObjective(SETTINGS, study), edited)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    blind = ratio(DistillationObjective(SETTINGS, study), edited)
    for name in edited:
        assert sound[name].isfinite().all()
        assert sound[name].median() < 1e6
        assert blind[name].median() > 1e12


@pytest.mark.parametrize("family", TINIES)
def test_pictures_of_mixed_sizes_are_distilled_too(
    new_model: NewModel, ragged_people: UnlearnData, family: str
) -> None:
    study = uneven_study(family, new_model, ragged_people)
    before = weights_in(study)
    told = SETTINGS.plan(study, None).carry_out("test")
    assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in told)
    moved = moved_since(study, before)
    assert moved == {f"{name}.weight" for name in study.visual.editable(2)}
    sizes = {*study.forget.tokens.grids, *study.retain.tokens.grids}
    assert (len(sizes) > 1) == (family != "llava")
