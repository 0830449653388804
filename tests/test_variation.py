"""Pictures varied as those of others vary: the formula by hand, what spreads, who lends, and when it is done at all."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from studies import NOBODY, Through, equal, people_study
from torch import Tensor

from unsee.data.examples import UnlearnData
from unsee.methods import FeatureStudy
from unsee.methods.cvf import FEW, ContrastiveObjective, ContrastiveVisualForgetting
from unsee.methods.parts.features import Pictures
from unsee.methods.parts.variation import Variation
from unsee.models.packed import Packed, pack

WIDTH = 4


def pictures(states: Tensor, subject: list[int]) -> Pictures:
    """One position each."""
    return Pictures(equal(states[:, None]), equal(states[:, None]), torch.tensor(subject))


def study_of(forget: Pictures, retain: Pictures) -> FeatureStudy:
    """A study of hidden states alone."""
    subjects = tuple(str(i) for i in range(int(retain.subject.max()) + 1))
    return FeatureStudy(Through(), Through(), 0, forget, retain, NOBODY, subjects, ())


def spread_study(forget_pictures: int) -> tuple[FeatureStudy, Tensor]:
    """One target and thirty others whose pictures all spread by one covariance; the study, and its square root."""
    torch.manual_seed(0)
    root = torch.diag(torch.tensor([3.0, 1.0, 0.3, 0.1]))
    retain = 10 * torch.randn(30, 1, WIDTH) + torch.randn(30, 40, WIDTH) @ root
    forget = 10 * torch.randn(1, WIDTH) + torch.randn(forget_pictures, WIDTH) @ root
    owners = [1 + i // 40 for i in range(1200)]
    return study_of(pictures(forget, [0] * forget_pictures), pictures(retain.flatten(0, 1), owners)), root


def test_a_varied_picture_is_its_formula() -> None:
    torch.manual_seed(1)
    forget, retain = torch.randn(3, WIDTH), torch.randn(5, WIDTH)
    study = study_of(pictures(forget, [0, 0, 1]), pictures(retain, [2, 2, 3, 3, 3]))
    variation = Variation(study)
    torch.manual_seed(7)
    draws = torch.rand(3, 2)
    torch.manual_seed(7)
    found = variation.of_forget(torch.tensor([0, 2, 1])).states
    own = {0: forget[:2].mean(0), 1: forget[2]}
    means = [retain[:2].mean(0)] * 2 + [retain[2:].mean(0)] * 3
    for row, (picture, subject) in enumerate([(0, 0), (2, 1), (1, 0)]):
        turn, lender = float(draws[row, 0]) * math.pi / 2, int(draws[row, 1] * 5)
        lent = retain[lender] - means[lender]
        expected = own[subject] + math.cos(turn) * (forget[picture] - own[subject]) + math.sin(turn) * lent
        torch.testing.assert_close(found[row], expected)


def test_few_pictures_spread_as_those_of_the_others_do() -> None:
    study, root = spread_study(2)
    varied = Variation(study).of_forget(torch.arange(2).repeat(3000)).states
    taken = study.forget.hidden.states
    lent = (varied - taken.mean(0)).T @ (varied - taken.mean(0)) / len(varied)
    own = (taken - taken.mean(0)).T @ (taken - taken.mean(0)) / len(taken)
    assert torch.linalg.matrix_rank(own) == 1  # control: two pictures differ in one direction
    expected = (own + root @ root) / 2  # cos² and sin² are 1/2 on average
    torch.testing.assert_close(lent, expected, rtol=0.15, atol=0.15)


def test_retained_pictures_vary_around_their_own_mean() -> None:
    study, _ = spread_study(2)
    chosen = torch.full((4000,), 41)  # a picture of subject 2
    varied = Variation(study).of_retain(chosen).states
    own = study.retain.hidden.states[40:80].mean(0)
    shown = study.retain.hidden.states[41]
    expected = own + (2 / math.pi) * (shown - own)  # the mean of cos(a)
    torch.testing.assert_close(varied.mean(0), expected, atol=0.2, rtol=0)
    assert not torch.allclose(varied.mean(0), study.retain.hidden.states[:40].mean(0), atol=0.2)  # control: another's


def test_only_pictures_of_equal_size_lend_and_single_pictures_lend_nothing() -> None:
    torch.manual_seed(2)
    small, large = equal(torch.randn(4, 1, WIDTH)), equal(torch.randn(2, 3, WIDTH))
    forget = pack([small[:1], large[:1]])
    retain = pack(
        [small[1:], large[1:]]
    )  # two small ones of subject 1, single ones of subjects 2 (small) and 3 (large)
    study = study_of(
        Pictures(forget, forget, torch.tensor([0, 0])), Pictures(retain, retain, torch.tensor([1, 1, 2, 3]))
    )
    varied: Packed = Variation(study).of_forget(torch.tensor([0, 1]))
    assert not torch.equal(varied[:1].states, forget[:1].states)
    assert torch.equal(varied[1:].states, forget[1:].states)  # nobody lends to a large picture
    singles = dataclasses.replace(study.retain, subject=torch.tensor([1, 2, 3, 4]))
    alone = Variation(dataclasses.replace(study, retain=singles, subjects=tuple("01234")))
    assert torch.equal(alone.of_forget(torch.tensor([0, 1])).states, forget.states)


@pytest.fixture
def study(checkpoint: Path, people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget, three pictures each."""
    return people_study(checkpoint, people, people.choose("first:2"))


def repeated(study: FeatureStudy, times: int) -> FeatureStudy:
    """The same forget pictures several times."""
    again = torch.arange(len(study.forget)).repeat(times)
    forget = Pictures(study.forget.hidden[again], study.forget.tokens[again], study.forget.subject[again])
    attributes = tuple(torch.cat([t[again], t[len(study.forget) :]]) for t in study.attributes)
    return dataclasses.replace(study, forget=forget, attributes=attributes)


def objective(study: FeatureStudy, variation: str) -> ContrastiveObjective:
    settings = ContrastiveVisualForgetting(variation=variation, relearning_weight=0.0)  # type: ignore[arg-type]
    return ContrastiveObjective(settings, study)


def test_it_is_done_where_there_are_few_pictures_of_a_target(study: FeatureStudy) -> None:
    assert len(study.forget) < FEW * 2
    many = repeated(study, 4)
    assert len(many.forget) >= FEW * 2
    done = {
        (setting, name): objective(one, setting).variation is not None
        for setting in ("few", "always", "never")
        for name, one in {"few": study, "many": many}.items()
    }
    assert {key for key, varied in done.items() if varied} == {("few", "few"), ("always", "few"), ("always", "many")}


def test_at_the_start_nothing_is_lost_of_varied_pictures_either(study: FeatureStudy) -> None:
    torch.manual_seed(3)
    varied = objective(study, "always")
    terms = varied.loss(varied.draw())
    assert terms["retain"].item() == pytest.approx(0.0, abs=1e-6)
    assert terms["attributes"].item() == pytest.approx(0.0, abs=1e-6)
    assert varied.variation is not None
    some = torch.arange(3)  # control: they are varied
    assert not torch.allclose(varied.variation.of_forget(some).states, study.forget.hidden[some].states)


def test_the_weight_adapts_to_varied_pictures_where_none_is_held_back(study: FeatureStudy) -> None:
    blind = dataclasses.replace(study, held_back=NOBODY)
    varied, plain = objective(blind, "always"), objective(blind, "never")
    assert varied.adapt(10)["recognised"] > 0.5  # nothing was edited yet
    assert (varied.forget_weight > plain.forget_weight).all()
    assert plain.adapt(10) == {}  # control


def test_what_must_stay_may_be_what_another_model_saw(study: FeatureStudy) -> None:
    """Where a line of edits keeps to its first model, a varied picture is kept as far from now as the picture is."""
    other = study.retain.tokens.with_states(study.retain.tokens.states + 0.5)
    anchored = dataclasses.replace(study, retain=dataclasses.replace(study.retain, tokens=other))
    batch = torch.arange(3), torch.arange(4)
    kept = {}
    for name, one in {"now": study, "first": anchored}.items():
        torch.manual_seed(5)
        kept[name] = objective(one, "always")._seen(*batch)[2].states
    torch.testing.assert_close(kept["first"], kept["now"] + 0.5, atol=1e-5, rtol=0)
