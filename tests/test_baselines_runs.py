"""Baselines on answers: what training with them does, what they train on, and what they leave alone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint
from night import by_day
from test_baselines import ALL, REFERENCED, stir
from tiny import byte_tokenizer, tiny
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from unsee.data.examples import Example, Split, UnlearnData
from unsee.data.normalisation import plain
from unsee.methods.ascent import GradientAscent
from unsee.methods.divergence import DivergenceMinimisation
from unsee.methods.parts.likelihood import answer_log_likelihoods, kl_at_answers
from unsee.methods.parts.tuned import Tuned, reference_of
from unsee.methods.preference import NegativePreference, RefusalPreference, SimpleNegativePreference
from unsee.methods.refusal import REFUSALS, Refusal, refusing, writable
from unsee.methods.retain_ft import RetainFinetuning
from unsee.methods.rmu import RepresentationMisdirection, answer_states, control_vector, relative_error
from unsee.methods.undial import AdjustedSelfDistillation
from unsee.models.batching import IGNORED, Batch, answer_loss, answer_scores
from unsee.models.loading import Loaded, load_model

TRAINED: dict[str, Any] = {"steps": 25, "learning_rate": 2e-3, "batch": 12}
FAMILIES = ["llava", "qwen2_vl"]


@dataclasses.dataclass
class Course:
    """A tiny model, what it is taught with, and the questions it is measured on."""

    student: Loaded
    forget: Split
    retain: Split

    def carry_out(self, method: Tuned) -> None:
        torch.manual_seed(0)
        method.plan(self.student, self.forget, self.retain).carry_out("test")

    def batch(self, split: Split) -> Batch:
        return self.student.batcher.for_training(split.pictured.examples)


@pytest.fixture(params=FAMILIES)
def new_course(
    request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint, people: UnlearnData, forget: tuple[str, ...]
) -> Callable[[], Course]:
    folder = new_checkpoint(family=request.param)
    return lambda: Course(load_model(str(folder), torch.float32), people.train.of(forget), people.train.without(forget))


# What training does ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def truth(course: Course) -> float:
    """How likely the true answers about forget pictures are."""
    return answer_log_likelihoods(course.student.model, course.batch(course.forget)).mean().item()


@torch.no_grad()
def openness(course: Course) -> float:
    """How unlikely a refusal is (here: the question, asked back)."""
    batch = course.student.batcher.for_training(refusing(course.forget.pictured.examples, ()))
    return answer_loss(course.student.model, batch).item()


@torch.no_grad()
def order(course: Course) -> float:
    """By how much the reference's order of states is left, seen from the random direction."""
    torch.manual_seed(0)
    direction = control_vector(16)
    model: PreTrainedModel = course.student.model
    layer = RepresentationMisdirection().layer(course.student.family.language_model(model))
    states = answer_states(model, layer, course.batch(course.forget))
    return -F.cosine_similarity(states, direction[None]).mean().item()


LOWERS: dict[str, tuple[type[Tuned], Callable[[Course], float]]] = {
    "kl-min": (DivergenceMinimisation, truth),
    "npo": (NegativePreference, truth),
    "simnpo": (SimpleNegativePreference, truth),
    "undial": (AdjustedSelfDistillation, truth),
    "idk": (Refusal, openness),
    "idk-dpo": (RefusalPreference, lambda course: truth(course) + openness(course)),
    "rmu": (RepresentationMisdirection, order),
}


def on_one_by_day(family: str) -> pytest.MarkDecorator:
    others = (other for other in FAMILIES if other != family)
    return pytest.mark.parametrize("new_course", by_day(family, *others), indirect=True)


def in_turns(*names: str) -> pytest.MarkDecorator:
    """By day each of them on one of the families only: they know of no family."""
    both = [(name, family, (i + j) % 2) for i, name in enumerate(names) for j, family in enumerate(FAMILIES)]
    cases = [pytest.param(*case, marks=[pytest.mark.nightly] if late else []) for *case, late in both]
    return pytest.mark.parametrize(("name", "new_course"), cases, indirect=["new_course"])


@in_turns(*LOWERS)
def test_a_few_steps_lower_what_the_method_says(new_course: Callable[[], Course], name: str) -> None:
    """Its own term by itself; the retained one by itself, which teaches an untrained model to answer, does not."""
    kind, measure = LOWERS[name]
    falls = []
    for forget, retain in ((1.0, 0.0), (0.0, 1.0)):
        course = new_course()
        start = measure(course)
        course.carry_out(kind(**TRAINED, forget_weight=forget, retain_weight=retain))
        falls.append(start - measure(course))
    assert falls[0] > 0.2
    assert falls[1] < 0.2 * falls[0]


@on_one_by_day("llava")
def test_retained_answers_are_all_that_retain_ft_learns(new_course: Callable[[], Course]) -> None:
    falls = []
    for method in (RetainFinetuning(**TRAINED), GradientAscent(**TRAINED)):
        course = new_course()
        batch = course.batch(course.retain)
        start = answer_loss(course.student.model, batch).item()
        course.carry_out(method)
        falls.append(start - answer_loss(course.student.model, batch).item())
    assert falls[0] > 0.05 > 0 > falls[1]


def test_retain_ft_never_sees_a_forget_question(new_course: Callable[[], Course], people: UnlearnData) -> None:
    course = new_course()

    def drawn(method: Tuned, forget: Split) -> Tensor:
        torch.manual_seed(0)
        (phase,) = method.phases(course.student, forget, course.retain)
        return phase.draw()["labels"]  # type: ignore[no-any-return]

    others = people.train.of(people.subjects[1:2])
    assert torch.equal(*(drawn(RetainFinetuning(batch=9), forget) for forget in (course.forget, others)))
    seen = [drawn(GradientAscent(batch=9), forget) for forget in (course.forget, others)]
    assert seen[0].tolist() != seen[1].tolist()


@on_one_by_day("qwen2_vl")
def test_divergence_holds_predictions_on_retained_answers(new_course: Callable[[], Course]) -> None:
    found = []
    for weight in (20.0, 0.0):
        course = new_course()
        batch = course.batch(course.retain)
        before = answer_scores(course.student.model, batch)[0].detach()
        course.carry_out(DivergenceMinimisation(**TRAINED, retain_weight=0.0, divergence_weight=weight))
        found.append(kl_at_answers(answer_scores(course.student.model, batch)[0], before).item())
    assert found[0] < 0.5 * found[1]


@on_one_by_day("llava")
def test_misdirection_holds_states_on_retained_answers(new_course: Callable[[], Course]) -> None:
    found = []
    for weight in (50.0, 0.0):
        course = new_course()
        method = RepresentationMisdirection(**TRAINED, retain_weight=weight)
        model, batch = course.student.model, course.batch(course.retain)
        layer = method.layer(course.student.family.language_model(model))
        before = answer_states(model, layer, batch).detach()
        course.carry_out(method)
        found.append(relative_error(answer_states(model, layer, batch), before, before).item())
    assert found[0] < 0.5 * found[1]


@in_turns(*REFERENCED)
def test_reference_stays_while_the_student_moves(
    new_course: Callable[[], Course], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held: list[PreTrainedModel] = []
    module = sys.modules[type(ALL[name]).__module__]
    monkeypatch.setattr(module, "reference_of", lambda student: held.append(reference_of(student)) or held[-1])
    course = new_course()
    before = {key: p.detach().clone() for key, p in course.student.model.named_parameters()}
    course.carry_out(dataclasses.replace(ALL[name], steps=3, learning_rate=1e-3))

    def moved(model: PreTrainedModel) -> set[str]:
        return {key for key, p in model.named_parameters() if not torch.equal(before[key], p)}

    (reference,) = held
    assert moved(reference) == set()
    assert len(moved(course.student.model)) > 20


@pytest.mark.parametrize(("name", "term"), [("kl-min", "divergence"), ("rmu", "retain")])
@torch.no_grad()
def test_what_holds_is_zero_until_the_student_moves(new_course: Callable[[], Course], name: str, term: str) -> None:
    course = new_course()
    (phase,) = ALL[name].phases(course.student, course.forget, course.retain)
    drawn = phase.draw()
    assert phase.loss(drawn)[term].abs() < 1e-6
    stir(course.student.model)
    assert phase.loss(drawn)[term] > 1e-3


# Preferences ----------------------------------------------------------------------------------------------------------


def gradient(course: Course, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(course.student.model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_negative_preference_without_temperature_is_ascent(new_course: Callable[[], Course]) -> None:
    """Parallel as beta goes to 0, for sums over the answer; not for a large beta, nor for means over its tokens."""
    course = new_course()
    methods = [
        NegativePreference(beta=1e-4),
        NegativePreference(beta=2.0),
        NegativePreference(beta=1e-4, likelihood="token_mean"),
    ]
    losses = [method.forgetting(course.student, course.forget.pictured)[1] for method in methods]
    stir(course.student.model)
    batch = course.batch(course.forget)
    lengths = (batch["labels"] != IGNORED).sum(1)
    assert len(set(lengths.tolist())) > 1
    ascent = gradient(course, -answer_loss(course.student.model, batch))
    alike = [F.cosine_similarity(gradient(course, loss(batch)), ascent, dim=0).item() for loss in losses]
    assert alike[0] > 0.9999
    assert alike[1] < 0.99
    assert alike[2] < 0.999


def test_simple_preference_asks_no_reference(new_course: Callable[[], Course], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Loaded) -> None:
        raise AssertionError("made a reference")

    course = new_course()
    monkeypatch.setattr(sys.modules[NegativePreference.__module__], "reference_of", refuse)
    SimpleNegativePreference().phases(course.student, course.forget, course.retain)
    with pytest.raises(AssertionError, match="made a reference"):
        NegativePreference().phases(course.student, course.forget, course.retain)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def eloquent(people: UnlearnData, tmp_path: Path) -> Loaded:
    """A tiny model whose vocabulary holds the words of every refusal."""
    said = tuple(Example("What?", text, "nobody", None, "general") for text in REFUSALS)
    data = dataclasses.replace(people, strangers=Split((*people.strangers.examples, *said)))
    model, processor = tiny("llava", data)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return load_model(str(tmp_path / "model"), torch.float32)


def decoded(student: Loaded, batch: Batch) -> list[str]:
    """What a batch teaches to say."""
    tokenizer = student.batcher.tokenizer
    rows = [labels[labels != IGNORED] for labels in batch["labels"]]
    return [plain(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def test_refusals_are_what_is_taught_and_true_answers_are_not(
    eloquent: Loaded, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    """CLEAR's public code formats the true answers instead."""
    forgotten, retained = people.train.of(forget), people.train.without(forget)
    refusals, truths = {plain(text) for text in REFUSALS}, {plain(e.answer) for e in forgotten.pictured}
    assert not refusals & truths

    def taught(method: Tuned) -> list[Any]:
        (phase,) = method.phases(eloquent, forgotten, retained)
        return [phase.draw() for _ in range(4)]

    idk = [text for drawn in taught(Refusal(batch=9)) for text in decoded(eloquent, drawn[0])]
    assert set(idk) <= refusals
    assert len(set(idk)) > 5, "drawn at random"
    for (refused, true), _ in taught(RefusalPreference(batch=9)):
        assert set(decoded(eloquent, refused)) <= refusals
        assert set(decoded(eloquent, true)) <= truths
        assert len(refused["input_ids"]) == len(true["input_ids"])
    for ascent in taught(GradientAscent(batch=9)):
        assert set(decoded(eloquent, ascent)) <= truths, "what the public defect would look like"


def test_true_answers_do_not_reach_idk(eloquent: Loaded, people: UnlearnData, forget: tuple[str, ...]) -> None:
    forgotten, retained = people.train.of(forget), people.train.without(forget)
    lies = Split(tuple(dataclasses.replace(e, answer="goat") for e in forgotten))

    def drawn(method: Tuned, split: Split) -> Any:
        torch.manual_seed(0)
        return method.phases(eloquent, split, retained)[0].draw()

    honest, lied = (drawn(Refusal(batch=9), split)[0] for split in (forgotten, lies))
    assert torch.equal(honest["input_ids"], lied["input_ids"])
    assert torch.equal(honest["labels"], lied["labels"])
    honest, lied = (drawn(RefusalPreference(batch=9), split)[0][1] for split in (forgotten, lies))
    assert honest["input_ids"].tolist() != lied["input_ids"].tolist()


def test_a_model_without_the_words_asks_back(loaded: Loaded, eloquent: Loaded, people: UnlearnData) -> None:
    """Otherwise it would be taught to say nothing but the token for unknown words."""
    asked = people.train.pictured.examples[:6]
    unknown = loaded.batcher.tokenizer.unk_token_id
    assert writable(byte_tokenizer([])) == writable(eloquent.batcher.tokenizer) == REFUSALS
    assert writable(loaded.batcher.tokenizer) == ()
    back = refusing(asked, ())
    assert [e.answer for e in back] == [e.question for e in asked]
    assert unknown not in loaded.batcher.for_training(back)["input_ids"]
    assert unknown in loaded.batcher.for_training(refusing(asked, REFUSALS))["input_ids"]


# Misdirection ---------------------------------------------------------------------------------------------------------


def test_control_vector_is_one_direction_of_length_one() -> None:
    torch.manual_seed(0)
    first, second = control_vector(64), control_vector(64)
    assert first.shape == (64,)
    assert first.norm().item() == pytest.approx(1)
    assert first.min() >= 0
    assert not torch.allclose(first, second, atol=1e-2)


def test_shapes_that_would_broadcast_are_refused() -> None:
    """CLEAR's public code compares [rows, width] with [rows, 1, width]."""
    states = torch.randn(3, 8)
    assert (states - states[:, None]).shape == (3, 3, 8), "torch itself does not mind"
    for wanted in (states[:, None], states[:1], states[0]):
        with pytest.raises(ValueError, match="same tokens and widths"):
            relative_error(states, wanted, states)


@torch.no_grad()
def test_ragged_batches_are_means_over_tokens(new_course: Callable[[], Course]) -> None:
    """Batches of other sizes and lengths, one after another, in one and the same run."""
    course = new_course()
    (phase,) = RepresentationMisdirection().phases(course.student, course.forget, course.retain)
    stir(course.student.model)
    examples = [split.pictured.examples for split in (course.forget, course.retain)]

    def loss(rows: slice) -> tuple[Tensor, Tensor]:
        """Terms, and how many tokens they are means of [2]."""
        drawn = tuple(course.student.batcher.for_training(part[rows]) for part in examples)
        tokens = torch.tensor([(batch["labels"] != IGNORED).sum() for batch in drawn])
        return torch.stack(list(phase.loss(drawn).values())), tokens

    whole, tokens = loss(slice(0, 7))
    parts = [loss(rows) for rows in (slice(0, 4), slice(4, 6), slice(6, 7))]
    assert len({tuple(count.tolist()) for _, count in parts}) == 3
    torch.testing.assert_close(sum(value * count for value, count in parts) / tokens, whole, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    unweighed = torch.stack([value for value, _ in parts]).mean(0)
    assert not torch.allclose(unweighed, whole, rtol=1e-3)


def test_layer_is_a_share_of_the_depth(new_course: Callable[[], Course]) -> None:
    course = new_course()
    language_model: Any = course.student.family.language_model(course.student.model)
    for depth, place in ((0.01, 0), (0.5, 0), (0.51, 1), (1.0, 1)):
        assert RepresentationMisdirection(depth=depth).layer(language_model) is language_model.layers[place]


def test_no_hook_stays(new_course: Callable[[], Course], monkeypatch: pytest.MonkeyPatch) -> None:
    course = new_course()
    model: Any = course.student.model
    layer = RepresentationMisdirection().layer(course.student.family.language_model(model))
    batch = course.batch(course.forget)
    answer_states(model, layer, batch)
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer_states(model, layer, batch)
    assert not layer._forward_hooks


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (NegativePreference, {"beta": 0.0}),
        (SimpleNegativePreference, {"margin": -1.0}),
        (RefusalPreference, {"beta": -0.1}),
        (AdjustedSelfDistillation, {"beta": 0.0}),
        (RepresentationMisdirection, {"depth": 0.0}),
        (RepresentationMisdirection, {"depth": 1.5}),
        (DivergenceMinimisation, {"divergence_weight": float("inf")}),
    ],
)
def test_settings_out_of_range_are_refused(kind: Callable[..., Tuned], settings: dict[str, float]) -> None:
    kind()
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        kind(**settings)
