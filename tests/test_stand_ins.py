"""Positives of contrastive forgetting by hand: whom a target would be taken for, and what each kind makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import NewModel
from studies import Through, answering, people_study, placed, still, uneven_study
from torch import Tensor

from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.methods import FeatureStudy
from unsee.methods.cvf import ContrastiveObjective, ContrastiveVisualForgetting
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.methods.parts.stand_ins import NOISE, RIDGE, Positive, StandIns, mistaken_for

KINDS: tuple[Positive, ...] = get_args(Positive)
PICTURES: tuple[Positive, Positive] = ("unknowing", "look_alike")
MADE_UP = ("transport", "centre")  # tokens that no hidden states lead to


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def crowd(seed: int = 0) -> FeatureStudy:
    """Two targets and six to keep, five pictures of two positions each, far more alike along some axes than others."""
    people = random(8, 1, 1, 6, seed=seed) * torch.tensor([1.0, 1, 1, 2, 2, 2])
    pictures = random(8, 5, 2, 6, seed=seed + 1) * torch.tensor([0.1, 0.1, 0.1, 3, 3, 3])
    looks = [random(40, classes, seed=seed + 2 + classes).argmax(1) for classes in (2, 3)]
    tables = tuple(torch.nn.functional.one_hot(look).float() for look in looks)
    return placed(people[:2] + pictures[:2], people[2:] + pictures[2:], tables)


# Whom a model that never saw the target would take it for -------------------------------------------------------------


@pytest.mark.parametrize(("pictures", "width"), [(3, 20), (40, 5)], ids=["fewer than entries", "more"])
def test_distance_is_mahalanobis_within_retained_subjects(pictures: int, width: int) -> None:
    inside = random(3, pictures, width, seed=1) @ random(width, width, seed=2)
    study = placed(random(2, 4, width), 10 * random(3, 1, width, seed=3) + inside)
    x, subject = study.retain.tokens.stack()[:, 0].double(), study.retain.subject - 2
    means = torch.stack([x[subject == i].mean(0) for i in range(3)])
    spread = (x - means[subject]).T @ (x - means[subject]) / len(x)
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(width)
    apart = study.forget.tokens.stack()[:, 0].double()[:, None] - means
    distance = mistaken_for(study)
    assert distance.shape == (8, 3)
    torch.testing.assert_close(distance, torch.einsum("fri,ij,frj->fr", apart, (spread + ridge).inverse(), apart))
    everybody = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    total = torch.einsum("fri,ij,frj->fr", apart, (everybody + ridge).inverse(), apart)
    assert not torch.allclose(distance, total, rtol=0.1)  # control: the spread of all pictures, subjects not told apart


def test_distance_by_hand() -> None:
    """Spread 4 along the first axis and 1 along the second, so ridge 0.025; means at (0, 0) and (10, 0)."""
    around = torch.tensor([[2.0, 1], [2, -1], [-2, 1], [-2, -1]])
    study = placed(torch.tensor([[[2.0, 1.0]]]), torch.stack([around, around + torch.tensor([10.0, 0.0])]))
    expected = torch.tensor([[4 / 4.025 + 1 / 1.025, 64 / 4.025 + 1 / 1.025]], dtype=torch.float64)
    torch.testing.assert_close(mistaken_for(study), expected, rtol=1e-6, atol=0)


def test_a_direction_in_which_everybody_varies_counts_for_little() -> None:
    """Two steps off along an axis on which single pictures lie six apart is nearer than one along a quiet one."""
    people = torch.tensor([[2.0, 0.0], [0.0, 1.0]])[:, None]
    target = torch.zeros(1, 1, 2)
    around = torch.tensor([[1.0, 1.0], [1, -1], [-1, 1], [-1, -1]])
    for spread, nearest in ((torch.tensor([3.0, 0.1]), 0), (torch.tensor([1.0, 1.0]), 1)):
        study = placed(target, people + around * spread)
        assert int(mistaken_for(study).argmin()) == nearest
        assert int((people - target).norm(dim=-1).argmin()) == 1  # control: plain distance sees no spread


@pytest.mark.parametrize("change", ["shifted", "scaled", "turned"])
def test_the_distance_does_not_depend_on_how_features_are_written(change: str) -> None:
    study = crowd()
    turn = torch.linalg.qr(random(6, 6, seed=9))[0]
    write: Callable[[Tensor], Tensor] = {
        "shifted": lambda x: x + 5 * random(6, seed=8),
        "scaled": lambda x: 0.01 * x,
        "turned": lambda x: x @ turn,
    }[change]

    def written(*parts: str) -> Tensor:
        changed = {}
        for part in parts:
            pictures = getattr(study, part)
            changed[part] = dataclasses.replace(
                pictures, tokens=pictures.tokens.with_states(write(pictures.tokens.states))
            )
        return mistaken_for(dataclasses.replace(study, **changed))

    torch.testing.assert_close(written("forget", "retain"), mistaken_for(study), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(written("forget"), mistaken_for(study), rtol=0.1)  # control: only one side of it


def test_only_retained_pictures_are_fitted() -> None:
    study, before = crowd(), mistaken_for(crowd())

    def with_first_picture_gone(part: str) -> Tensor:
        pictures = getattr(study, part)
        states = pictures.tokens.states.clone()
        states[:2] += 20.0
        other = dataclasses.replace(pictures, tokens=pictures.tokens.with_states(states))
        return mistaken_for(dataclasses.replace(study, **{part: other}))

    assert torch.equal(with_first_picture_gone("forget")[1:], before[1:])
    assert not torch.allclose(with_first_picture_gone("retain")[1:], before[1:], rtol=0.1)


def test_answers_are_not_looked_at(checkpoint: Path, people: UnlearnData) -> None:
    """Names and facts could all be the same; visible attributes decide who comes first."""
    forget, chosen = people.choose("first:1"), {}
    for probes in ((), ("identity", "fact"), ("attribute",)):
        study = people_study(checkpoint, answering(people, probes), forget)
        chosen[probes] = [StandIns.choose(study, kind, same_attributes=True).tokens.states for kind in KINDS[:4]]
    same, other = (
        [torch.equal(*pair) for pair in zip(chosen[()], chosen[probes], strict=True)] for probes in [*chosen][1:]
    )
    assert all(same)
    assert not all(other)


# The picture that stands in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_attributes", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_looks_come_first_then_who_then_the_most_alike_picture(seed: int, same_attributes: bool) -> None:
    study = crowd(seed)
    shared = sum(table[:10] @ table[10:].T for table in study.attributes) if same_attributes else torch.zeros(10, 30)
    distance = mistaken_for(study)[:, study.retain.subject - 2]
    alike = study.direction(study.forget.tokens) @ study.direction(study.retain.tokens).T

    def best(i: int, *by: Tensor) -> int:
        return max(range(30), key=lambda j: [float(table[i, j]) for table in by])

    found = {kind: StandIns.choose(study, kind, same_attributes) for kind in PICTURES}
    assert found["unknowing"].picture.tolist() == [best(i, shared, -distance, alike) for i in range(10)]
    assert found["look_alike"].picture.tolist() == [best(i, shared, alike) for i in range(10)]
    if not same_attributes:
        assert found["unknowing"].picture.tolist() != found["look_alike"].picture.tolist()
    other = StandIns.choose(study, "unknowing", not same_attributes)
    assert other.picture.tolist() != found["unknowing"].picture.tolist()  # control: looks matter


@pytest.mark.parametrize("kind", PICTURES)
def test_a_stand_in_is_a_retained_picture_however_near_another_target_is(kind: Positive) -> None:
    twins = random(1, 5, 2, 6).expand(2, -1, -1, -1) + 1e-3 * random(2, 5, 2, 6, seed=1)
    study = placed(twins, 5 + random(3, 5, 2, 6, seed=2))
    chosen = StandIns.choose(study, kind, same_attributes=True)
    retained, forgotten = study.retain.tokens.stack(), study.forget.tokens.stack()
    assert chosen.hidden is not None
    assert torch.equal(chosen.tokens.stack(), retained[chosen.picture])
    assert torch.equal(chosen.hidden.stack(), study.retain.hidden.stack()[chosen.picture])
    near = torch.cdist(forgotten.flatten(1), torch.cat([forgotten[5:], retained]).flatten(1)).argmin(1)
    assert (near[:5] < 5).all()  # control: the nearest picture of all would be one of the other target


# What is made of it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unknowing", "look_alike"])
def test_nobody_is_taken_for_whom_earlier_edits_took_away(kind: Positive) -> None:
    study = crowd()

    def chosen(earlier: tuple[int, ...]) -> set[int]:
        one = dataclasses.replace(study, earlier=earlier)
        picked = one.retain.subject[StandIns.choose(one, kind, True).picture].tolist()
        return {*picked, *DirectForgetting().stand_ins(one).tolist()}

    before = chosen(())
    for gone in sorted(before):
        assert gone not in chosen((gone,))
    assert chosen(tuple(sorted(before))).isdisjoint(before)
    assert chosen(tuple(range(2, 8))) == before  # where everybody was, there is nobody else


def test_transport_moves_by_the_difference_of_means_and_keeps_what_a_picture_alone_shows() -> None:
    study = crowd()
    transport, unknowing = StandIns.choose(study, "transport", True), StandIns.choose(study, "unknowing", True)
    own, theirs = study.forget.tokens.stack(), study.retain.tokens.stack()
    subject = study.retain.subject[transport.picture]
    assert len(subject[:5].unique()) > 1, "a picture's subject decides, not its target's"
    for i in range(10):
        there = theirs[study.retain.subject == subject[i]].mean(0)
        here = own[study.forget.subject == study.forget.subject[i]].mean(0)
        torch.testing.assert_close(transport.tokens.stack()[i], own[i] - here + there)
        assert not torch.allclose(unknowing.tokens.stack()[i], own[i] - here + there, atol=0.1)


def test_centre_is_the_mean_of_all_retained_pictures() -> None:
    study = crowd()
    centre = StandIns.choose(study, "centre", True).tokens.stack()
    torch.testing.assert_close(centre, study.retain.tokens.stack().mean(0).expand(10, -1, -1))
    assert not torch.allclose(centre[0], study.forget.tokens.stack().mean(0), atol=0.1)


def test_perturbed_is_nearer_to_its_picture_than_other_pictures_are() -> None:
    study = placed(random(2, 20, 4, 8), random(6, 20, 4, 8, seed=1))
    own, theirs = study.forget.hidden.stack(), study.retain.hidden.stack()
    torch.manual_seed(0)
    perturbed = StandIns.choose(study, "perturbed", True)
    torch.manual_seed(1)
    again = StandIns.choose(study, "perturbed", True)
    assert perturbed.hidden is not None
    noise = perturbed.hidden.stack() - own
    spread = theirs.flatten(0, 1).std(0)
    torch.testing.assert_close(noise.flatten(0, 1).std(0), NOISE * spread, rtol=0.2, atol=0)
    assert noise.abs().amin(0).max() > 0
    assert not torch.equal(perturbed.tokens.states, again.tokens.states)
    far = noise.flatten(1).norm(dim=1)
    others = torch.cdist(own.flatten(1), theirs.flatten(1)).mean(1)
    assert (far < others).float().mean() > 0.95
    assert not (2 * far < others).any()  # control: twice as near would be nothing anybody could forget


def test_mixture_is_read_by_the_reference_halfway_between_two_pictures() -> None:
    """In hidden states, before the reference looks: not halfway between tokens."""

    class Bent(Through):
        def leave(self, hidden: Any) -> Any:
            return hidden.with_states(hidden.states.square())

    study = dataclasses.replace(crowd(), reference=Bent())
    mixture = StandIns.choose(study, "mixture", False)
    first, second = (StandIns.choose(study, kind, False).picture for kind in PICTURES)
    assert torch.equal(mixture.picture, first)
    hidden = study.retain.hidden.stack()
    half = (hidden[first] + hidden[second]) / 2
    assert mixture.hidden is not None
    torch.testing.assert_close(mixture.hidden.stack(), half)
    torch.testing.assert_close(mixture.tokens.stack(), half.square())
    assert not torch.allclose(mixture.tokens.stack(), (hidden[first].square() + hidden[second].square()) / 2)
    assert (first != second).any()


# Every kind, in a loss ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["llava_next", "qwen2_vl", "qwen2_5_vl"])
def uneven(request: pytest.FixtureRequest, new_model: NewModel, ragged_people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget and two to keep, three pictures each; the families that keep the sizes of pictures."""
    return uneven_study(request.param, new_model, ragged_people)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_on_the_grid_of_its_picture(uneven: FeatureStudy, kind: Positive) -> None:
    chosen = StandIns.choose(uneven, kind, same_attributes=True)
    assert chosen.tokens.grids == uneven.forget.tokens.grids
    assert len({*chosen.tokens.grids}) > 1
    assert chosen.tokens.states.isfinite().all()
    assert (chosen.hidden is None) == (kind in MADE_UP)
    assert not torch.allclose(chosen.tokens.states, uneven.forget.tokens.states, atol=1e-2)
    if chosen.hidden is not None:
        again = uneven.reference_tail(chosen.hidden).on(uneven.forget.tokens.grids)
        torch.testing.assert_close(chosen.tokens.states, again.states, rtol=1e-4, atol=1e-5)
        backwards = uneven.reference_tail(chosen.hidden[torch.arange(6).flip(0)]).on(uneven.forget.tokens.grids)
        assert not torch.allclose(chosen.tokens.states, backwards.states, atol=1e-2)


def test_transport_moves_pictures_of_any_size_by_cells_of_the_common_grid(uneven: FeatureStudy) -> None:
    """To be seen where the picture's grid divides evenly."""
    chosen, grids = StandIns.choose(uneven, "transport", same_attributes=True), uneven.forget.tokens.grids
    own, theirs = uneven.flat(uneven.forget.tokens), uneven.flat(uneven.retain.tokens)
    moved, stand_in = uneven.flat(chosen.tokens) - own, uneven.retain.subject[chosen.picture]
    even = [i for i, grid in enumerate(grids) if not any(map(int.__mod__, grid, uneven.grid))]
    assert even
    for i in even:
        there = theirs[uneven.retain.subject == stand_in[i]].mean(0)
        here, elsewhere = (own[(uneven.forget.subject == uneven.forget.subject[i]) == mine].mean(0) for mine in (1, 0))
        torch.testing.assert_close(moved[i], there - here, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(moved[i], there - elsewhere, atol=1e-2)


@pytest.mark.parametrize("compared", ["tokens", "pooled", "blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_loss_or_says_in_one_line_why_not(uneven: FeatureStudy, kind: Positive, compared: str) -> None:
    settings = ContrastiveVisualForgetting(
        positives=kind,
        features=compared,  # type: ignore[arg-type]
        relearning_weight=0.0,
    )
    if compared == "blocks" and kind in MADE_UP:
        with pytest.raises(BadInput, match=f"^--set features=blocks: positives={kind} has no hidden states; use .*$"):
            ContrastiveObjective(settings, uneven)
        return
    with torch.no_grad():
        terms = ContrastiveObjective(settings, uneven).loss((torch.arange(6), torch.arange(6)))
    assert all(value.isfinite() for value in terms.values())
    assert min(float(terms["forget"]), float(terms["alignment"])) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_pulled_once_it_has_arrived(checkpoint: Path, people: UnlearnData, kind: Positive) -> None:
    study = still(people_study(checkpoint, people, people.choose("first:2")))
    torch.manual_seed(0)
    wanted = StandIns.choose(study, kind, True).tokens
    there = dataclasses.replace(study, forget=dataclasses.replace(study.forget, hidden=wanted))
    for where, near in ((there, True), (study, False)):
        torch.manual_seed(0)
        objective = ContrastiveObjective(
            ContrastiveVisualForgetting(positives=kind, alignment_weight=1.0, relearning_weight=0.0, variation="never"),
            where,
        )
        if kind == "perturbed":  # it is drawn around the hidden states, which have moved
            objective.stand_ins = dataclasses.replace(objective.stand_ins, tokens=wanted)
        terms = objective.loss((torch.arange(6), torch.arange(6)))
        assert (float(terms["alignment"]) < 1e-9) == near
