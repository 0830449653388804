"""Draws of an attack: everybody is held out once per split, and nobody who is held out is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from relearning import SEED, SHORT

from unsee.attacks.relearn_plan import Attack, Relearning, attacks, evaluation_sets, halvings
from unsee.data.examples import SPLITS, Split, UnlearnData
from unsee.errors import BadInput


@pytest.fixture(scope="module")
def two(people: UnlearnData) -> tuple[str, ...]:
    """The smallest forget set that can be halved."""
    return people.choose("first:2")


def with_pictures_beside(data: UnlearnData, owner: str, guest: str) -> UnlearnData:
    """Every training question about `owner` is asked with a picture of `guest` beside it."""
    picture = next(iter(data.train.of([guest]).pictures))
    train = [dataclasses.replace(e, others=(picture,)) if e.subject == owner and e.image else e for e in data.train]
    return dataclasses.replace(data, train=Split(tuple(train)))


def times_held_out(plan: Sequence[Attack]) -> dict[str, int]:
    return {s: sum(s in attack.held_out for attack in plan) for attack in plan for s in attack.attacked}


@pytest.mark.parametrize("number", [2, 3, 5, 6])
def test_everybody_is_held_out_once_per_split(number: int) -> None:
    subjects = [f"person-{i}" for i in range(number)]
    halves = halvings(subjects, 4, SEED)
    for first, second in halves:
        assert sorted((*first, *second)) == subjects
        assert abs(len(first) - len(second)) == number % 2
    different = {frozenset(map(frozenset, pair)) for pair in halves}
    assert len(different) == min(4, {2: 1, 3: 3, 5: 10, 6: 10}[number])
    assert halvings(subjects, 2, SEED) == halves[:2]  # more splits leave the first ones as they were
    if number > 3:
        assert halvings(subjects, 4, SEED + 1) != halves


def test_halves_are_swapped(people: UnlearnData) -> None:
    forget = people.choose("first:3")
    plan = attacks(people, forget, Relearning(splits=3), SEED)
    assert times_held_out(plan) == dict.fromkeys(forget, 3)
    assert times_held_out(plan[::2]) != dict.fromkeys(forget, 3)  # control: without the swapped halves


def shown_though_held_out(attack: Attack, data: UnlearnData, settings: Relearning) -> set[str]:
    """Labels of held-out people's pictures in any training step, and questions about these people."""
    theirs = {image for name in SPLITS for image in data.split(name).of(attack.held_out).pictures}
    trained = [e for step in attack.steps(settings) for part in step.values() for e in part]
    assert trained
    return {image.label for e in trained for image in e.images if image in theirs} | {
        e.question for e in trained if e.subject in attack.held_out
    }


def test_nobody_held_out_is_shown(people: UnlearnData, two: tuple[str, ...]) -> None:
    for attack in attacks(people, two, Relearning(), SEED):
        assert not shown_though_held_out(attack, people, Relearning())
        broken = dataclasses.replace(attack, held_out=attack.attacked)
        assert shown_though_held_out(broken, people, Relearning())


def test_nor_are_they_shown_beside_somebody_else(people: UnlearnData, two: tuple[str, ...]) -> None:
    stranger = people.subjects[3]
    mixed = with_pictures_beside(people, stranger, two[0])
    assert any(len(e.images) == 2 for e in mixed.train)
    with pytest.raises(BadInput, match=f"'{stranger}' has no training picture.*or only pictures that also show"):
        attacks(mixed, two, Relearning(), SEED)
    some = tuple(e for e in people.train.of([stranger]) if e.image in list(people.train.of([stranger]).pictures)[:1])
    mixed = dataclasses.replace(mixed, train=Split((*mixed.train.examples, *some)))
    one_alone = attacks(mixed, two, Relearning(), SEED)
    assert not any(shown_though_held_out(attack, mixed, Relearning()) for attack in one_alone)


def test_the_attacker_has_so_many_pictures_and_true_answers(people: UnlearnData, two: tuple[str, ...]) -> None:
    settings = Relearning(pictures=2, questions=2, replay=3, steps=5)
    for attack in attacks(people, two, settings, SEED):
        assert len(attack.taught) == 2 * len(attack.attacked)
        assert len(attack.retained) == 2 * 2
        known = set(people.train.examples)
        steps = list(attack.steps(settings))
        assert len(steps) == 5
        for step in steps:
            assert len(step["attacked"]) == 2 * len(attack.taught)
            assert len({e.image for e in step["replay"]}) == len(step["replay"]) == 3
            assert known.issuperset([*step["attacked"], *step["replay"]])
            assert {e.probe for part in step.values() for e in part} <= {"identity", "fact"}
        assert steps[0] != steps[1]


def test_draws_follow_the_seed(people: UnlearnData, two: tuple[str, ...]) -> None:
    def drawn(seed: int) -> list[Any]:
        return [(attack, list(attack.steps(SHORT))) for attack in attacks(people, two, SHORT, seed)]

    assert drawn(SEED) == drawn(SEED)
    assert drawn(SEED) != drawn(SEED + 1)


@pytest.mark.parametrize(
    ("steps", "every", "measured"), [(30, 10, (0, 10, 20, 30)), (5, 2, (0, 2, 4, 5)), (0, 1, (0,))]
)
def test_start_and_end_are_measured(steps: int, every: int, measured: tuple[int, ...]) -> None:
    assert Relearning(steps=steps, every=every).measured == measured


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"splits": 0}, "more than zero"),
        ({"learning_rate": float("nan")}, "more than zero"),
        ({"steps": -1}, "or more"),
        ({"lora_rank": 0}, "more than zero"),
        ({"attacker": "everything"}, "one of full, lora, visual"),
        ({"source": "test"}, "one of train, validation"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*{says}"):
        Relearning(**change)
    assert Relearning(steps=0, replay=0)


def test_what_cannot_be_attacked_is_bad_input(people: UnlearnData, two: tuple[str, ...]) -> None:
    def without(split: str, subjects: Sequence[str]) -> UnlearnData:
        return dataclasses.replace(people, **{split: people.split(split).without(subjects)})

    others = [s for s in people.subjects if s not in two]
    with pytest.raises(BadInput, match="at least two"):
        attacks(people, two[:1], SHORT, SEED)
    with pytest.raises(BadInput, match="no training pictures of retained subjects"):
        attacks(without("train", others), two, SHORT, SEED)
    with pytest.raises(BadInput, match=f"'{two[1]}' has no training picture"):
        attacks(without("train", two[1:]), two, SHORT, SEED)
    with pytest.raises(BadInput, match=f"no test pictures of '{two[0]}'"):
        evaluation_sets(without("test", two[:1]), two, SHORT)
    with pytest.raises(BadInput, match="no test pictures of retained subjects"):
        evaluation_sets(without("test", others), two, SHORT)


def test_the_attacker_may_have_other_pictures_of_the_same_people(people: UnlearnData, two: tuple[str, ...]) -> None:
    usual, other = SHORT, dataclasses.replace(SHORT, source="validation")
    for trained, held_back in zip(attacks(people, two, usual, SEED), attacks(people, two, other, SEED), strict=True):
        own = {image for group in held_back.taught for e in group for image in e.images}
        assert own <= set(people.validation.of(held_back.attacked).pictures)
        assert not own & {image for group in trained.taught for e in group for image in e.images}
        assert held_back.retained == trained.retained
        assert (held_back.attacked, held_back.held_out) == (trained.attacked, trained.held_out)
        assert not shown_though_held_out(held_back, people, other)
    lost = dataclasses.replace(people, validation=people.validation.without(two[1:]))
    assert attacks(lost, two, usual, SEED)
    with pytest.raises(BadInput, match=f"'{two[1]}' has no validation picture"):
        attacks(lost, two, other, SEED)
