"""Contrastive visual forgetting by hand: what a study holds, each term of the loss, adaptive weights, the read-out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import NewModel
from studies import NOBODY, Through, equal, moved, people_study, placed, still, uneven_study
from torch import Tensor, nn
from torch.nn import functional as F

from unsee.data.examples import Example, Split, UnlearnData
from unsee.methods import FeatureStudy
from unsee.methods.cvf import NEAREST, ROUNDS, STEPS, ContrastiveObjective, ContrastiveVisualForgetting
from unsee.methods.parts import features
from unsee.methods.parts.features import Pictures
from unsee.methods.parts.readout import LinearReadout
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import load_visual


@pytest.fixture
def study(checkpoint: Path, people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget and two to keep, three pictures each, at their reference features."""
    return still(people_study(checkpoint, people, people.choose("first:2")))


# without simulated relearning, which has layers to attack: test_simulated_relearning
SETTINGS = ContrastiveVisualForgetting(
    forget_pictures=6, retain_pictures=6, nearest_share=0.0, relearning_weight=0.0, variation="never"
)
EVERYTHING = (torch.arange(6), torch.arange(6))


def test_the_study_knows_the_reference(study: FeatureStudy, people: UnlearnData) -> None:
    assert study.subjects == people.subjects
    assert study.forget.subject.tolist() == [0, 0, 0, 1, 1, 1]
    assert study.retain.subject.tolist() == [2, 2, 2, 3, 3, 3]
    assert study.held_back.subject.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(study.centre[0], study.retain.tokens.stack().mean(0).flatten())
    norms = study.direction(study.forget.tokens).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(6))
    assert [table.shape[0] for table in study.attributes] == [12, 12, 12]
    assert all((table.sum(1) == 1).all() for table in study.attributes)


@pytest.mark.parametrize("negatives", ["own", "all"])
@pytest.mark.parametrize("compared", ["tokens", "pooled", "blocks"])
def test_every_term_is_its_formula(study: FeatureStudy, compared: str, negatives: str) -> None:
    """With a student that is off everywhere, blocks and projector by different amounts."""
    torch.manual_seed(0)
    away = {part: getattr(study, part).tokens.stack() + 0.3 * torch.randn(6, 4, 16) for part in ("forget", "retain")}
    elsewhere = dataclasses.replace(
        study,
        visual=Through(shift=0.2 * torch.randn(16), below=0.2 * torch.randn(16)),
        reference=Through(below=0.1 * torch.randn(16)),
        forget=moved(study.forget, away["forget"]),
        retain=moved(study.retain, away["retain"]),
    )
    student, reference = elsewhere.visual, elsewhere.reference
    assert isinstance(student, Through)
    assert isinstance(reference, Through)
    settings = dataclasses.replace(SETTINGS, contrast_weight=2.0, features=compared, negatives=negatives)
    objective, t = ContrastiveObjective(settings, elsewhere), settings.temperature
    objective.forget_weight = torch.tensor([1.5, 4.0])
    f, r = torch.tensor([4, 0, 2]), torch.tensor([5, 1])
    terms = objective.loss((f, r))

    stand_in = objective.stand_ins.picture.tolist()
    tokens = {part: states + student.below + student.shift for part, states in away.items()}  # the student's
    z0_f, z0_r = study.forget.tokens.stack(), study.retain.tokens.stack()
    if compared == "blocks":  # before the projector, and of the reference likewise
        now = {part: (states + student.below).mean(1) for part, states in away.items()}
        known_f, known_r = ((away[part] + reference.below).mean(1) for part in ("forget", "retain"))
    elif compared == "pooled":
        now, known_f, known_r = {part: states.mean(1) for part, states in tokens.items()}, z0_f.mean(1), z0_r.mean(1)
    else:
        now, known_f, known_r = {part: s.flatten(1) for part, s in tokens.items()}, z0_f.flatten(1), z0_r.flatten(1)

    def n(vector: Tensor) -> Tensor:
        return F.normalize(vector - known_r.mean(0), dim=-1)

    forget, contrast = [], []
    for i in f.tolist():
        own = [j for j in range(6) if study.forget.subject[j] == study.forget.subject[i]]
        good = torch.exp(n(now["forget"][i]) @ n(known_r[stand_in[i]]) / t)
        bad = sum(torch.exp(n(now["forget"][i]) @ n(known_f[j]) / t) for j in own)
        if negatives == "all":
            other = [j for j in r.tolist() if study.retain.subject[j] != study.retain.subject[stand_in[i]]]
            bad += sum(torch.exp(n(now["forget"][i]) @ n(known_r[j]) / t) for j in other)
        forget.append(-objective.forget_weight[study.forget.subject[i]] * torch.log(good / (good + bad)))
    for i in r.tolist():
        others = [*(known_r[j] for j in r.tolist()), *known_f]
        found = torch.exp(n(now["retain"][i]) @ n(known_r[i]) / t)
        contrast.append(-torch.log(found / sum(torch.exp(n(now["retain"][i]) @ n(other) / t) for other in others)))
    variance = torch.cat([*z0_r]).var()
    readout = LinearReadout.fit(elsewhere)
    expected = {
        "forget": torch.stack(forget).mean(),
        "alignment": settings.alignment_weight * (tokens["forget"][f] - z0_r[stand_in][f]).square().mean() / variance,
        "retain": settings.retain_weight * (tokens["retain"][r] - z0_r[r]).square().mean() / variance,
        "contrast": settings.contrast_weight * torch.stack(contrast).mean(),
        "attributes": settings.attribute_weight * readout.change(tokens["forget"][f].flatten(1), z0_f[f].flatten(1)),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(
        settings.contrast_weight * objective.contrast(r), expected["contrast"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("term", "setting"), [("contrast", "contrast_weight"), ("attributes", "attribute_weight")])
def test_a_term_of_no_weight_is_left_out(study: FeatureStudy, term: str, setting: str) -> None:
    for weight in (0.0, 1.0):
        terms = ContrastiveObjective(dataclasses.replace(SETTINGS, **{setting: weight}), study).loss(EVERYTHING)
        assert (term in terms) == (weight > 0)


def test_where_the_contrast_looks_decides_what_it_sees(study: FeatureStudy) -> None:
    """Tokens that changed places look the same to their mean; what the projector does, the blocks do not see."""
    shuffled = study.forget.tokens.stack()[:, torch.tensor([2, 0, 3, 1])]
    changed = {
        "places": dataclasses.replace(study, forget=moved(study.forget, shuffled)),
        "projector": dataclasses.replace(study, visual=Through(shift=torch.randn(16))),
    }

    def forget(compared: str, of: FeatureStudy) -> float:
        return float(
            ContrastiveObjective(dataclasses.replace(SETTINGS, features=compared), of).loss(EVERYTHING)["forget"]
        )

    for compared, blind in (("tokens", ()), ("pooled", ("places",)), ("blocks", ("places", "projector"))):
        before = forget(compared, study)
        for what, now in changed.items():
            assert (forget(compared, now) == pytest.approx(before, rel=1e-5)) == (what in blind), (compared, what)


# Which pictures a step takes ------------------------------------------------------------------------------------------

NEAR = ({1, 2, 3}, {6, 7, 8})


def in_a_row() -> FeatureStudy:
    """Eight retained subjects in a row, ten pictures each, one target before the first and one behind the last."""
    spread = 0.1 * torch.randn(10, 10, 5, generator=torch.Generator().manual_seed(0))
    spread[:, :, 0] += 3.0 * torch.arange(10)[:, None]
    return placed(spread[[0, 9]], spread[1:9])


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_share_of_retained_pictures_is_drawn_from_whom_targets_are_taken_for(share: float) -> None:
    study = in_a_row()
    settings = dataclasses.replace(SETTINGS, retain_pictures=10, nearest_share=share)
    objective, at_risk = ContrastiveObjective(settings, study), round(10 * share)
    subject, near = study.retain.subject - study.forgotten + 1, torch.tensor(sorted(NEAR[0] | NEAR[1]))
    assert len(near) == 2 * NEAREST
    anything, risky = [], []
    for _ in range(120):
        forget, retain = objective.draw()
        assert (len(forget), len(retain)) == (6, 10)
        anything.append(retain[: 10 - at_risk])
        risky.append(retain[10 - at_risk :])
    assert torch.isin(subject[torch.cat(risky)], near).all()
    for drawn, among in ((anything, torch.arange(80)), (risky, torch.isin(subject, near).nonzero()[:, 0])):
        times = torch.cat(drawn).bincount(minlength=80)[among]
        assert int(times.max()) - int(times.min()) <= 1, "in rounds, everything once"
    far = ~torch.isin(subject[torch.cat([torch.cat(anything), torch.cat(risky)])], near)
    assert bool(far.any()) == (share < 1.0)


def test_whoever_is_at_risk_is_at_risk_of_a_single_target() -> None:
    """The subjects nearest to all targets together would be those between them."""
    study = in_a_row()
    for target, near in zip((0, 1), NEAR, strict=True):
        one = study.forget.subject == target
        alone = Pictures(
            study.forget.hidden[one.nonzero()[:, 0]], study.forget.tokens[one.nonzero()[:, 0]], one[one] * 0
        )
        names = study.subjects[1:]
        shifted = dataclasses.replace(study.retain, subject=study.retain.subject - 1)
        objective = ContrastiveObjective(
            dataclasses.replace(SETTINGS, nearest_share=1.0),
            dataclasses.replace(study, forget=alone, retain=shifted, subjects=names),
        )
        drawn = torch.cat([objective.draw()[1] for _ in range(10)])
        assert {*study.retain.subject[drawn].sub(1).tolist()} == near


# What the loss asks for -----------------------------------------------------------------------------------------------


def test_forget_term_falls_on_the_way_to_the_stand_in_and_nothing_is_lost_at_the_start(study: FeatureStudy) -> None:
    d, before = ContrastiveObjective(SETTINGS, study).stand_ins.tokens.stack(), study.forget.tokens.stack()

    def at(share: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        hidden = before + share * (d - before)
        return ContrastiveObjective(SETTINGS, dataclasses.replace(study, forget=moved(study.forget, hidden))).loss(
            EVERYTHING
        )

    way = [at(share) for share in (-0.5, 0.0, 0.5, 1.0)]
    forgets = [terms["forget"].item() for terms in way]
    assert forgets == sorted(forgets, reverse=True)
    assert forgets[-1] < 0.5 * forgets[1]
    start, arrived = way[1], way[-1]
    assert start["retain"] == start["attributes"] == arrived["retain"] == 0
    assert start["alignment"] > 0.01
    assert arrived["alignment"] < 1e-9
    drifted = dataclasses.replace(study, retain=moved(study.retain, study.retain.tokens.stack() + 0.1))
    assert ContrastiveObjective(SETTINGS, drifted).loss(EVERYTHING)["retain"] > 0.01


def at_centroids(study: FeatureStudy, subjects: list[int]) -> FeatureStudy:
    """The same study, its four held-back pictures (two of each target) looking like these subjects."""
    hidden = (study.centroids[torch.tensor(subjects)] + study.centre).view(-1, 4, 16)
    return dataclasses.replace(study, held_back=moved(study.held_back, hidden))


ADAPTING = dataclasses.replace(
    SETTINGS,
    forget_weight=2.0,
    adapt_nearest=1,
    adapt_target=0.05,
    adapt_every=5,
    adapt_factor=2.0,
    forget_weight_low=0.5,
    forget_weight_high=9.0,
)


@pytest.mark.parametrize(
    ("look_like", "recognised", "first", "second"),
    [
        ([0, 0, 1, 1], 1.0, [4, 8, 9, 9], [4, 8, 9, 9]),
        ([2, 3, 3, 2], 0.0, [1, 0.5, 0.5, 0.5], [1, 0.5, 0.5, 0.5]),
        ([1, 1, 0, 0], 0.0, [1, 0.5, 0.5, 0.5], [1, 0.5, 0.5, 0.5]),
        ([0, 3, 2, 2], 0.25, [4, 8, 9, 9], [1, 0.5, 0.5, 0.5]),
    ],
    ids=["everybody", "nobody", "taken for each other", "one of two"],
)
def test_the_weight_rises_for_whoever_is_still_recognised_and_stays_within_bounds(
    study: FeatureStudy, look_like: list[int], recognised: float, first: list[float], second: list[float]
) -> None:
    objective, pushes = ContrastiveObjective(ADAPTING, at_centroids(study, look_like)), []
    for step in range(1, 21):
        told = objective.adapt(step)
        assert bool(told) == (step % 5 == 0)
        if told:
            pushes.append(objective.forget_weight.tolist())
            assert told == {"recognised": recognised, "forget_weight": sum(pushes[-1]) / 2}
    assert pushes == [list(pair) for pair in zip(first, second, strict=True)]


def test_the_target_is_a_share_of_the_held_back_pictures(study: FeatureStudy) -> None:
    half = at_centroids(study, [0, 3, 2, 2])
    assert half.recognised().tolist() == [1, 0, 0, 0]
    wider = [half.recognised(nearest).mean().item() for nearest in (1, 2, 3, 4, 5)]
    assert wider == sorted(wider)
    assert wider[-2:] == [1.0, 1.0], "there are four subjects"
    for target, expected in ((0.4, 4.0), (0.5, 1.0)):
        objective = ContrastiveObjective(dataclasses.replace(ADAPTING, adapt_target=target), half)
        objective.adapt(5)
        assert objective.forget_weight.tolist() == [expected, 1.0]


def test_the_weight_stays_without_held_back_pictures(study: FeatureStudy) -> None:
    """Of anybody, or of one target only: what is not seen is no reason to push less."""
    objective = ContrastiveObjective(ADAPTING, dataclasses.replace(study, held_back=NOBODY))
    assert all(objective.adapt(step) == {} for step in range(1, 30))
    assert objective.forget_weight.tolist() == [2.0, 2.0]
    of_second = Pictures(
        *(part[2:] for part in (study.held_back.hidden, study.held_back.tokens, study.held_back.subject))
    )
    objective = ContrastiveObjective(ADAPTING, at_centroids(dataclasses.replace(study, held_back=of_second), [1, 1]))
    objective.adapt(5)
    assert objective.forget_weight.tolist() == [2.0, 4.0]


def test_a_subject_without_pictures_does_not_blind_the_study(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    """Data may hold questions about things that have no picture, e.g. general knowledge."""
    loaded = load_visual(str(checkpoint))
    general = Example("What is the capital of Norway?", "Oslo", "geography", None, "general")
    splits = people.train.of(forget), people.train.without(forget), people.validation.of(forget)
    with_text = splits[0], Split((*splits[1], general)), splits[2]
    plain, wider = (FeatureStudy.of(loaded.visual, loaded.batcher, *each, 2) for each in (splits, with_text))
    assert plain.recognised().any()
    assert wider.centroids.isfinite().all()
    assert torch.equal(wider.recognised(), plain.recognised())


# The read-out of visible attributes -----------------------------------------------------------------------------------


def planted(study: FeatureStudy, labels: Callable[[Tensor], Tensor]) -> tuple[FeatureStudy, Tensor, Tensor]:
    """Random pictures whose label is the side of a hidden plane they stand on; the last 200 are held out."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(600, 4, 8, generator=generator)
    truth = (tokens.flatten(1) @ torch.randn(32, generator=generator) > 0).long()
    given, shown = labels(truth[:400]), equal(tokens[:400])
    return (
        dataclasses.replace(
            study,
            forget=Pictures(shown[:100], shown[:100], torch.zeros(100, dtype=torch.long)),
            retain=Pictures(shown[100:], shown[100:], torch.ones(300, dtype=torch.long)),
            attributes=(F.one_hot(given, 2).float(),),
        ),
        tokens[400:].flatten(1),
        truth[400:],
    )


def accuracy(study: FeatureStudy, tokens: Tensor, truth: Tensor) -> float:
    scores = (tokens - study.centre) @ LinearReadout.fit(study).weight
    return (scores.argmax(1) == truth).float().mean().item()


def test_readout_finds_a_planted_attribute_and_nothing_in_shuffled_labels(study: FeatureStudy) -> None:
    assert accuracy(*planted(study, lambda truth: truth)) > 0.9
    shuffled = [
        accuracy(*planted(study, lambda t, s=s: t[torch.randperm(400, generator=torch.Generator().manual_seed(s))]))
        for s in range(5)
    ]
    assert 0.35 < sum(shuffled) / 5 < 0.65


def test_change_is_nothing_for_no_change_and_sees_only_the_attribute(study: FeatureStudy) -> None:
    fitted, tokens, _ = planted(study, lambda truth: truth)
    readout = LinearReadout.fit(fitted)
    assert readout.change(tokens, tokens) == 0
    torch.manual_seed(0)
    direction = readout.weight[:, 0] / readout.weight[:, 0].norm()
    random = torch.randn(32)
    beside = random - (random @ direction) * direction
    along, across = (readout.change(tokens + step, tokens) for step in (direction, beside))
    assert along > 0.01
    assert across < 1e-6 * along
    scores = (tokens - fitted.centre) @ readout.weight
    half = readout.change(tokens.mean(0, keepdim=True).expand_as(tokens), tokens)
    torch.testing.assert_close(half, (scores.var(0, correction=0) / readout.spread).mean(), rtol=1e-3, atol=0)


def test_an_attribute_that_everybody_shares_is_no_trouble(study: FeatureStudy) -> None:
    constant = torch.ones(12, 1)
    for looks in ((*study.attributes, constant), (constant,)):
        readout = LinearReadout.fit(dataclasses.replace(study, attributes=looks))
        vectors = study.flat(study.forget.tokens)
        assert readout.change(vectors + 0.1, vectors).isfinite()
        assert readout.change(vectors, vectors) == 0


def test_a_larger_request_gets_more_steps(checkpoint: Path, people: UnlearnData) -> None:
    """Seven rounds of six pictures are fewer steps than the least; those of 360 are not. A given number is kept."""
    real = people_study(checkpoint, people, people.choose("first:2"))
    assert ContrastiveVisualForgetting(last_blocks=1).plan(real, None).steps == STEPS
    assert ContrastiveVisualForgetting(last_blocks=1, steps=3).plan(real, None).steps == 3
    many = real.forget.hidden[torch.arange(6).repeat(60)], real.forget.tokens[torch.arange(6).repeat(60)]
    large = dataclasses.replace(real, forget=Pictures(*many, real.forget.subject.repeat(60)), attributes=())
    for size in (1, 4, 6):
        settings = ContrastiveVisualForgetting(last_blocks=1, forget_pictures=size)
        assert settings.plan(large, None).steps == math.ceil(ROUNDS * 360 / size)


# Pictures of different sizes ------------------------------------------------------------------------------------------


def test_muon_steps_equally_far_in_all_directions_of_a_matrix_and_adam_does_not() -> None:
    """A gradient with one direction a thousand times stronger than the other: only Muon's step gives both their due."""
    spread = {}
    for optimiser in ("muon", "adam"):
        method = ContrastiveVisualForgetting(optimiser=optimiser)
        weight = nn.Parameter(torch.zeros(4, 4))
        weight.grad = torch.ones(4, 4) + 1e-3 * torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        method.stepping([weight]).step()
        sizes = torch.linalg.svdvals(weight.detach())
        spread[optimiser] = (sizes[1] / sizes[0]).item()
    assert spread["muon"] > 0.3
    assert spread["adam"] < 0.01


def test_every_step_keeps_pictures_of_whom_earlier_edits_took_away(study: FeatureStudy) -> None:
    """Six retained pictures of subjects 2 and 3, of which 3 was forgotten before."""
    gone = dataclasses.replace(study, earlier=(3,))
    drawing = ContrastiveObjective(dataclasses.replace(SETTINGS, retain_pictures=4, earlier_share=0.5), gone)
    for _ in range(10):
        drawn = drawing.draw()[1]
        assert len(drawn) == 6
        assert set(study.retain.subject[drawn[4:]].tolist()) == {3}
    control = ContrastiveObjective(dataclasses.replace(SETTINGS, retain_pictures=4, earlier_share=0.5), study)
    assert len(control.draw()[1]) == 4, "nobody was forgotten before"
    assert (
        len(ContrastiveObjective(dataclasses.replace(SETTINGS, retain_pictures=4, earlier_share=0.0), gone).draw()[1])
        == 4
    )


@pytest.fixture(params=["llava_next", "qwen2_vl", "qwen2_5_vl"])
def uneven(request: pytest.FixtureRequest, new_model: NewModel, ragged_people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget and two to keep, three pictures each; the families that keep the sizes of pictures."""
    return uneven_study(request.param, new_model, ragged_people)


def test_pictures_of_different_sizes_are_compared_on_the_smallest_grid(uneven: FeatureStudy) -> None:
    grids = [*uneven.forget.tokens.grids, *uneven.retain.tokens.grids]
    assert len(set(grids)) > 1
    assert uneven.grid == tuple(min(grid[axis] for grid in grids) for axis in range(3))
    width = uneven.retain.tokens.states.shape[1]
    layers, rows, columns = uneven.grid
    assert uneven.centre.shape == (1, layers * rows * columns * width)
    assert uneven.centroids.shape == (4, uneven.centre.shape[1])
    torch.testing.assert_close(uneven.centroids.norm(dim=1), torch.ones(4))
    flat = uneven.flat(uneven.forget.tokens)
    for i, grid in enumerate(uneven.forget.tokens.grids):
        own = uneven.forget.tokens[torch.tensor([i])]
        torch.testing.assert_close(uneven.flat(own)[0], flat[i])
        if grid == uneven.grid:
            assert torch.equal(flat[i], own.states.flatten())
    assert 0 <= uneven.recognised().mean() <= 1


def test_the_study_of_uneven_pictures_is_the_reference(uneven: FeatureStudy) -> None:
    """What was computed once below the cut gives the same tokens; only mixing up pictures changes them."""
    for pictures in (uneven.forget, uneven.retain, uneven.held_back):
        again = uneven.tail(pictures.hidden)
        assert (again.lengths, again.grids) == (pictures.tokens.lengths, pictures.tokens.grids)
        torch.testing.assert_close(again.states, pictures.tokens.states, rtol=1e-5, atol=1e-6)
        backwards = torch.arange(len(pictures)).flip(0)
        picked = uneven.reference_tail(pictures.hidden[backwards])[backwards]
        torch.testing.assert_close(picked.states, pictures.tokens.states, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(uneven.tail(uneven.retain.hidden[torch.arange(6).flip(0)]).mean(), again.mean()[:1])


@pytest.mark.parametrize("compared", ["tokens", "pooled", "blocks"])
def test_cvf_runs_on_pictures_of_different_sizes(uneven: FeatureStudy, compared: str) -> None:
    torch.manual_seed(0)
    settings = ContrastiveVisualForgetting(
        steps=20,
        learning_rate=5e-3,
        forget_pictures=6,
        retain_pictures=4,
        retain_weight=1.0,
        features=compared,  # type: ignore[arg-type]
        negatives="all",
        contrast_weight=1.0,
        relearning_weight=0.0 if compared == "blocks" else 1.0,
    )
    before = ContrastiveObjective(settings, uneven)  # what is held against it stays what it was
    start = before.loss(EVERYTHING)["forget"].item()
    told = settings.plan(uneven, None).carry_out("test")
    assert all(math.isfinite(value) for entry in told for value in entry.values())
    assert "recognised" in told[1]
    assert before.loss(EVERYTHING)["forget"].item() < start - 0.1


def test_very_fine_pictures_are_compared_on_a_coarser_grid(
    uneven: FeatureStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FINEST", 2)
    coarse = dataclasses.replace(uneven)
    assert coarse.grid == (uneven.grid[0], 2, 2)
    cells = coarse.grid[0] * 4
    means = coarse.flat(coarse.forget.tokens).unflatten(1, (cells, -1)).mean(1)
    even = [i for i, grid in enumerate(coarse.forget.tokens.grids) if not any(map(int.__mod__, grid, coarse.grid))]
    torch.testing.assert_close(means[even], coarse.forget.tokens.mean()[even])
    assert len(even) > 0


def test_how_many_pictures_are_looked_at_at_once_does_not_matter(
    ragged_people: UnlearnData, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, family in FAMILIES.items():
        model, processor = new_model(name)
        images, visual = list(ragged_people.train.pictures), family.visual(model)
        seen = []
        for chunk, positions in ((16, 4096), (5, 60), (1, 1)):
            monkeypatch.setattr(features, "CHUNK", chunk)
            monkeypatch.setattr(features, "POSITIONS", positions)
            seen.append(features.look(visual, Batcher(processor, family), images, 1, "test"))
        for other in seen[1:]:
            for part, whole in zip(other, seen[0], strict=True):
                assert (part.lengths, part.grids) == (whole.lengths, whole.grids)
                torch.testing.assert_close(part.states, whole.states, rtol=1e-5, atol=1e-5)
