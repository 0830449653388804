"""The relearning attack that is simulated while an edit is made: its steps by hand, and what it is worth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import NewModel
from studies import people_study, uneven_study
from torch import Tensor

from unsee.attacks.relearn import answer_losses, trained_by
from unsee.attacks.relearn_plan import Relearning, attacks
from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput
from unsee.methods import FeatureStudy
from unsee.methods.cvf import ContrastiveObjective, ContrastiveVisualForgetting, weights_of
from unsee.methods.parts.likelihood import by_row
from unsee.methods.parts.simulated_relearning import SimulatedRelearning
from unsee.models.batching import answer_scores
from unsee.models.loading import Loaded, load_model
from unsee.training.loop import Phase, run

STEPS, SIZE, TURN = 4, 0.02, 0.5
WEIGHT = 3.0  # of the term where it is to be seen against a real attack


@pytest.fixture
def study(checkpoint: Path, people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget and two to keep, three pictures each; the edit has moved all weights somewhere."""
    study = people_study(checkpoint, people, people.choose("first:2"))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in edited(study).values():
            weight += 0.3 * weight.std() * torch.randn_like(weight)
    return study


def edited(study: FeatureStudy) -> dict[str, torch.nn.Parameter]:
    return weights_of(study.visual.editable(1))


def simulated(study: FeatureStudy, pictures: int = 2, size: float = SIZE, turn: float = TURN) -> SimulatedRelearning:
    return SimulatedRelearning(study, edited(study), pictures, STEPS, size, turn)


def missing(study: FeatureStudy, attack: SimulatedRelearning, subject: int) -> float:
    """How far one subject is from what the reference saw, under the attack as it stands."""
    theirs = (study.forget.subject == subject).nonzero()[:, 0]
    weights = {name: weight + attack.change[name] for name, weight in edited(study).items()}
    return (attack.see(theirs, weights, attack.turn).states - study.forget.tokens[theirs].states).square().sum().item()


def test_an_attack_begins_with_the_edit_as_it_is(study: FeatureStudy) -> None:
    attack = simulated(study)
    everything = torch.arange(6)
    seen = attack.see(everything, edited(study), attack.turn)
    torch.testing.assert_close(seen.states, study.tail(study.forget.hidden).states)
    assert not any(change.any() for change in attack.change.values())
    attack.attack()
    weights = {name: weight + attack.change[name] for name, weight in edited(study).items()}
    assert not torch.allclose(attack.see(everything, weights, attack.turn).states, seen.states, atol=1e-3)


def test_one_step_is_its_formula(study: FeatureStudy) -> None:
    """All pictures of the attacked; the gradient is taken by autograd on weights changed in place."""
    attack, weights = simulated(study, pictures=3), edited(study)
    theirs = attack.attacked[study.forget.subject].nonzero()[:, 0]
    tokens = study.tail(study.forget.hidden[theirs]).states
    loss = (tokens - study.forget.tokens[theirs].states).square().mean() / study.variance
    slopes = torch.autograd.grad(loss, list(weights.values()))
    attack.attack()
    for slope, (name, change) in zip(slopes, attack.change.items(), strict=True):
        sure = slope.abs() > 1e-6  # the sign of a rounding error is nobody's
        assert sure.float().mean() > 0.5
        torch.testing.assert_close(change[sure], -SIZE / STEPS * slope.sign()[sure], msg=name)
    assert attack.turn.norm().item() == pytest.approx(TURN / STEPS, rel=1e-4)


def test_an_attack_stays_within_its_reach_and_starts_anew(study: FeatureStudy) -> None:
    attack, sides, reached = simulated(study), set(), []
    for step in range(1, 10 * STEPS + 1):
        others, seen = attack.attack()
        assert set(study.forget.subject[others].tolist()) == set((~attack.attacked).nonzero()[:, 0].tolist())
        assert len(others) == 2 == len(set(others.tolist()))
        assert seen.states.requires_grad
        assert not any(change.requires_grad for change in (*attack.change.values(), attack.turn))
        reach = max(change.abs().max().item() for change in attack.change.values())
        taken = (step - 1) % STEPS + 1
        assert reach <= SIZE * taken / STEPS * 1.001
        assert attack.turn.norm() <= TURN * taken / STEPS * 1.001
        if taken == STEPS:
            reached.append(reach)
        sides.add(tuple(attack.attacked.tolist()))
    assert min(reached) > 0.9 * SIZE  # something always goes all the way
    assert sides == {(True, False), (False, True)}


def test_it_brings_the_attacked_back_and_others_with_them(study: FeatureStudy) -> None:
    """Why it is simulated: one damage to all is undone for all by teaching some. A random change undoes nothing."""
    attack = simulated(study, pictures=3, size=0.05)
    hit = int(attack.attacked.nonzero())
    before = missing(study, attack, hit), missing(study, attack, 1 - hit)
    for _ in range(STEPS):
        attack.attack()
    assert missing(study, attack, hit) < 0.9 * before[0]
    assert missing(study, attack, 1 - hit) < before[1]
    attack.change = {name: change[torch.randperm(len(change))] for name, change in attack.change.items()}
    assert missing(study, attack, hit) > 0.9 * before[0]


@pytest.mark.parametrize("what", ["size", "turn"])
def test_an_attacker_without_reach_changes_nothing(study: FeatureStudy, what: str) -> None:
    attack = simulated(study, **{what: 0.0})
    for _ in range(3):
        attack.attack()
    moved = {"size": max(change.abs().max().item() for change in attack.change.values()), "turn": attack.turn.norm()}
    assert moved.pop(what) == 0
    assert all(size > 0 for size in moved.values())


def test_the_term_is_that_of_forgetting_under_attack(study: FeatureStudy) -> None:
    settings = ContrastiveVisualForgetting(
        last_blocks=1,
        relearning_size=1e-30,
        relearning_turn=0.0,
        relearning_weight=0.7,
        forget_weight=2.0,
        variation="never",
    )

    def terms(**changed: float) -> dict[str, Tensor]:
        torch.manual_seed(1)  # the same pictures
        now = dataclasses.replace(settings, **changed)  # type: ignore[arg-type]
        return ContrastiveObjective(now, study).loss((torch.arange(6), torch.arange(6)))

    weak, strong = terms(), terms(relearning_size=0.05)
    assert terms(relearning_weight=1.4)["relearning"].item() == pytest.approx(2 * weak["relearning"].item(), rel=1e-4)
    assert strong["relearning"] > 1.01 * weak["relearning"]
    torch.testing.assert_close(strong["forget"], weak["forget"])
    assert "relearning" not in terms(relearning_weight=0.0)
    # with an attacker who can do nothing it is what is asked of these pictures anyhow
    torch.manual_seed(1)
    objective = ContrastiveObjective(settings, study)
    others, _ = objective.relearning.attack()  # type: ignore[union-attr]
    plain = objective.loss((others, torch.arange(6)))
    torch.manual_seed(1)
    assert terms()["relearning"].item() == pytest.approx(0.7 * (plain["forget"] + plain["alignment"]).item(), rel=1e-3)


def test_there_is_nobody_to_attack_beside_one_target(checkpoint: Path, people: UnlearnData) -> None:
    for count in (1, 2):
        study = people_study(checkpoint, people, people.choose(f"first:{count}"))
        pictures = torch.arange(3)
        terms = ContrastiveObjective(ContrastiveVisualForgetting(last_blocks=1), study).loss((pictures, pictures))
        assert ("relearning" in terms) == (count > 1)


def test_blocks_are_not_what_an_attack_shows(study: FeatureStudy) -> None:
    settings = ContrastiveVisualForgetting(last_blocks=1, features="blocks")
    with pytest.raises(BadInput, match=r"^--set features=blocks: simulated relearning .* add .*relearning_weight=0$"):
        ContrastiveObjective(settings, study)
    ContrastiveObjective(dataclasses.replace(settings, relearning_weight=0.0), study)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "qwen2_5_vl"])
def test_pictures_of_different_sizes_are_attacked(family: str, new_model: NewModel, ragged_people: UnlearnData) -> None:
    study = uneven_study(family, new_model, ragged_people)
    attack = SimulatedRelearning(study, weights_of(study.visual.editable(2)), 3, STEPS, SIZE, TURN)
    others, seen = attack.attack()
    assert seen.grids == study.forget.tokens[others].grids
    assert seen.states.isfinite().all()


# Against an attack on the whole model ---------------------------------------------------------------------------------


@torch.no_grad()
def known(model: Loaded, examples: Split) -> float:
    """Mean probability of the true answers, as a whole."""
    scores, tokens, rows = answer_scores(model.model, model.batcher.for_training(examples.examples))
    return by_row(scores, tokens, rows, len(examples), "sequence_sum").exp().mean().item()


def gain(taught: Path, data: UnlearnData, seed: int, relearning_weight: float) -> tuple[float, float]:
    """What a real attack brings back about people it never shows, mean over both halves; and about whom it teaches.

    The attacker has the whole model, trains all its weights on questions and answers, and is asked about test pictures.
    """
    forget = data.choose("first:2")
    model = load_model(str(taught), torch.float32)
    method = ContrastiveVisualForgetting(steps=120, relearning_weight=relearning_weight)
    torch.manual_seed(seed)
    splits = data.train.of(forget), data.train.without(forget), data.validation.of(forget)
    study = FeatureStudy.of(model.visual, model.batcher, *splits, method.last_blocks)
    method.plan(study, None).carry_out("edit")
    settings = Relearning(splits=1, pictures=4, replay=8, steps=15)
    found = []
    for attack in attacks(data, forget, settings, seed):
        sides = [data.test.of(some).pictured.probing("identity", "fact") for some in (attack.held_out, attack.attacked)]
        before, steps = [known(model, side) for side in sides], attack.steps(settings)
        with trained_by(settings, model, attack) as parameters:
            optimiser = torch.optim.AdamW(parameters.values(), lr=settings.rate)
            phase = Phase("both", lambda steps=steps: next(steps), lambda step: answer_losses(model, step))
            run([phase], optimiser, settings.steps, "attack", None, settings.clip_norm)
            found.append([known(model, side) - was for side, was in zip(sides, before, strict=True)])
    held_out, attacked = (sum(values) / len(values) for values in zip(*found, strict=True))
    return held_out, attacked


@pytest.mark.slow
def test_it_lowers_what_a_real_attack_brings_back(taught: Path, class_photos: UnlearnData) -> None:
    """The control is the same edit without it, seed by seed."""
    braced, control = ([gain(taught, class_photos, seed, w) for seed in (0, 1, 2)] for w in (WEIGHT, 0.0))
    assert all(attacked > 0.3 for _, attacked in (*braced, *control)), "the attack works"
    assert all(held_out > 0.05 for held_out, _ in control), "without it, others come back as well"
    assert all(with_it < without for (with_it, _), (without, _) in zip(braced, control, strict=True))
    assert sum(held_out for held_out, _ in braced) < 0.6 * sum(held_out for held_out, _ in control)  # a third
