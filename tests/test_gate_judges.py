"""Gates judge only what they can see: a model that can do nothing before the edit is named, not the edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from unsee.cli import main
from unsee.data.examples import Example, Split, UnlearnData
from unsee.editing import gate as gates
from unsee.editing.gate import LARGEST_DROP, AnswerGate, FeatureGate
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput, GateFailed
from unsee.methods import METHODS, FeatureStudy
from unsee.methods.parts.base import Plan
from unsee.models.loading import Loaded, load_visual

Says = Callable[[float, Example], str]


def right(share: float, otherwise: str) -> Says:
    """The first answers of a round are true, the others say something else."""
    return lambda place, e: e.answer if place < share else otherwise


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[Says]:
    """What the model says, round by round."""
    left: list[Says] = []

    def generate(_: Loaded, asked: Sequence[Example], longest: int) -> list[str]:
        answer = left.pop(0)
        return [answer(number / len(asked), e) for number, e in enumerate(asked)]

    monkeypatch.setattr(gates, "generate", generate)
    return left


CANNOT = {  # what the model says before the edit -> the share that the line names
    "other words": (right(0, "xyzzy"), "none"),
    "nothing": (right(0, ""), "none"),
    "noise": (right(0, "um um um um"), "none"),
    "hardly more than nothing": (right(LARGEST_DROP - 0.02, "xyzzy"), "[0-9]+%"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_a_model_that_answers_nothing_is_not_judged(
    loaded: Loaded, people: UnlearnData, forget: tuple[str, ...], rounds: list[Says], case: str
) -> None:
    says, share = CANNOT[case]
    rounds.append(says)
    with pytest.raises(BadInput, match=rf"answers {share} of the retained .* processor.* data.* --no-gate") as refused:
        AnswerGate(loaded, people.validation.without(forget))
    assert "\n" not in str(refused.value)
    assert "fell" not in str(refused.value)


JUDGED = {  # before, after, whether it passes
    "as before": (right(0.5, "xyzzy"), right(0.5, "xyzzy"), True),
    "as ill as before": (right(0.5, ""), right(0.5, ""), True),
    "a little worse": (right(0.5, "xyzzy"), right(0.45, "xyzzy"), True),
    "lost": (right(0.5, "xyzzy"), right(0.2, "xyzzy"), False),
    "more ill": (right(0.8, ""), right(0.79, ""), True),
    "much more ill": (right(0.5, "xyzzy"), right(0.5, ""), False),
}


@pytest.mark.parametrize("case", JUDGED)
def test_what_an_edit_did_is_judged_and_not_what_the_model_did_before(
    loaded: Loaded, people: UnlearnData, forget: tuple[str, ...], rounds: list[Says], case: str
) -> None:
    before, after, passes = JUDGED[case]
    rounds += [before, after]
    gate = AnswerGate(loaded, people.validation.without(forget))
    if passes:
        gate.check()
    else:
        with pytest.raises(GateFailed, match=r"went from [58]\d% to .*nothing was written"):
            gate.check()


def test_no_pictures_to_ask_about_is_said(loaded: Loaded, people: UnlearnData, forget: tuple[str, ...]) -> None:
    for empty in (Split(), people.validation.of(forget).without(forget), people.train.text_only):
        with pytest.raises(BadInput, match=r"no validation picture is left of what must stay.*--no-gate"):
            AnswerGate(loaded, empty)


def test_features_that_tell_nobody_apart_are_not_judged(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    loaded = load_visual(str(checkpoint))
    splits = people.train.of(forget), people.train.without(forget), people.validation.of(forget)
    study = FeatureStudy.of(loaded.visual, loaded.batcher, *splits, 2)
    FeatureGate(study).check()  # the control
    strangers = dataclasses.replace(study.retain, subject=torch.full_like(study.retain.subject, -1))
    with pytest.raises(BadInput, match=r"before the edit 0% of the retained pictures.*processor.*data.*--no-gate"):
        FeatureGate(dataclasses.replace(study, retain=strangers))


@pytest.mark.parametrize("method", ["ga", "graddiff", "in-context", "manu"])
def test_it_is_said_before_the_edit_and_nothing_is_written(
    checkpoint: Path,
    people: UnlearnData,
    forget: tuple[str, ...],
    rounds: list[Says],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    def edited(*_: object, **__: object) -> None:
        raise AssertionError("the edit was carried out")

    monkeypatch.setattr(Plan, "carry_out", edited)
    rounds.append(right(0, "xyzzy"))
    with pytest.raises(BadInput, match="answers none of the retained"):
        unlearn(str(checkpoint), EditRequest(people, forget, METHODS[method](), 0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_it_and_goes_on_without_the_gate(
    checkpoint: Path, rounds: list[Says], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "people:count=4,seed=5,train=3,validation=2,test=2"
    command = f"unlearn --model {checkpoint} --data {data} --forget first:1 --method ga --set steps=1 --out"
    rounds.append(right(0, ""))
    for more, code in (([], 2), (["--no-gate"], 0)):
        with pytest.raises(SystemExit) as ending:
            main([*command.split(), str(tmp_path / "out"), *more])
        assert (ending.value.code or 0) == code
        assert (tmp_path / "out").exists() == (code == 0)
    assert capsys.readouterr().err.count("answers none of the retained validation questions") == 1
