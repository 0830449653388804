"""VGID: the teacher sees noise and is told to forget, the student sees all; its noise, term by term."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Open, pixels_of
from night import by_day
from numpy.typing import NDArray
from PIL import Image
from tiny import SIZES
from torch import Tensor

from unsee.data.examples import Split, UnlearnData
from unsee.methods import vgid
from unsee.methods.parts.noise import CELLS, LARGEST, Noise, NoisyPicture
from unsee.methods.vgid import Teacher, VisualNoiseGuidedDistillation
from unsee.models.batching import IGNORED, Batch, answer_scores
from unsee.models.loading import Loaded

NOISES: tuple[Noise, ...] = ("gaussian", "blur", "shuffle", "mask")
SMALL: dict[str, Any] = {"steps": 4, "batch": 6, "learning_rate": 2e-3}
NOTHING: dict[str, Any] = {"noise_scale": 0.0, "instruction": ""}
BOTH = pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
ONE_BY_DAY = pytest.mark.parametrize("family", by_day("qwen2_vl", "llava"))


# Noise ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grey:
    """A picture of known statistics: coarse grey noise, far from black and white."""

    size: tuple[int, int] = (48, 48)
    label: str = "grey"

    def open(self) -> Image.Image:
        width, height = self.size
        values = np.random.default_rng(0).integers(118, 138, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(values)


def values(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(picture, dtype=np.float64)


@pytest.mark.parametrize("size", [*SIZES, (12, 6), (100, 9)])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_keeps_size_and_kind_of_a_picture_and_depends_on_its_seed_alone(
    noise: Noise, size: tuple[int, int]
) -> None:
    source = Grey(size)
    pictures = []
    for state, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(state)
        pictures.append(NoisyPicture(source, noise, 1.0, seed).open())
    assert all((p.size, p.mode) == (size, "RGB") for p in pictures)
    first, again, other = (values(p) for p in pictures)
    assert not (first == values(source.open())).all()
    assert (first == again).all()
    whole = noise == "blur" or (noise == "mask")  # nothing random, or everything painted over
    assert (first == other).all() == whole
    assert (values(NoisyPicture(source, noise, 0.0, 7).open()) == values(source.open())).all()


def test_noise_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for noise in NOISES:
        NoisyPicture(Grey(), noise, 1.0, 3).open()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_gaussian_scale_is_in_standard_deviations_of_the_picture(scale: float) -> None:
    clean = values(Grey().open())
    added = values(NoisyPicture(Grey(), "gaussian", scale, 0).open()) - clean
    assert added.std() == pytest.approx(scale * clean.std(), rel=0.05)
    assert abs(added.mean()) < 0.1 * clean.std()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_mask_and_shuffle_take_their_share_of_the_cells(share: float) -> None:
    clean = values(Grey().open())
    masked, shuffled, noisy = (
        values(NoisyPicture(Grey(), noise, share, 0).open()) for noise in ("mask", "shuffle", "gaussian")
    )
    painted = (masked == clean.mean((0, 1)).round()).all(-1)
    assert painted.mean() == pytest.approx(share, abs=0.01)
    assert (masked[~painted] == clean[~painted]).all()

    def cells(pixels: NDArray[np.float64]) -> list[bytes]:
        side = 48 // CELLS
        return [pixels[y : y + side, x : x + side].tobytes() for y in range(0, 48, side) for x in range(0, 48, side)]

    moved = [a != b for a, b in zip(cells(clean), cells(shuffled), strict=True)]
    assert sum(moved) == round(share * CELLS**2)
    assert sorted(cells(clean)) == sorted(cells(shuffled)), "cells move whole"
    assert sorted(cells(clean)) != sorted(cells(noisy)), "the control"


def test_blur_takes_detail_away_and_more_of_it_more() -> None:
    detail = [np.diff(values(NoisyPicture(Grey(), "blur", s, 0).open()), axis=1).std() for s in (0.0, 0.5, 1.0)]
    assert detail[0] > 2 * detail[1] > 2 * detail[2]


@pytest.mark.parametrize("noise", NOISES)
def test_a_share_ends_at_one(noise: Noise) -> None:
    if LARGEST[noise] > 1:
        assert VisualNoiseGuidedDistillation(noise=noise, noise_scale=1.5).noise_scale == 1.5
    else:
        with pytest.raises(ValueError, match=f"at most 1, the share of a picture that {noise}"):
            VisualNoiseGuidedDistillation(noise=noise, noise_scale=1.5)


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise=fog: expected one of gaussian"):
        VisualNoiseGuidedDistillation(noise="fog")  # type: ignore[arg-type]


# The terms ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sides(ragged_people: UnlearnData, forget: tuple[str, ...]) -> tuple[Split, Split]:
    """Forget and retained questions, on pictures of different sizes."""
    return ragged_people.train.of(forget), ragged_people.train.without(forget)


def terms(
    student: Loaded, sides: tuple[Split, Split], seed: int = 0, **settings: Any
) -> tuple[dict[str, float], tuple[Batch, Batch, Batch]]:
    """The terms of the first step, and what was drawn for it."""
    torch.manual_seed(seed)
    (phase,) = VisualNoiseGuidedDistillation(**SMALL, **settings).plan(student, *sides).phases
    assert phase.role == "both"
    batches = phase.draw()
    with torch.no_grad():
        return {name: value.item() for name, value in phase.loss(batches).items()}, batches


@ONE_BY_DAY
@pytest.mark.parametrize("along", ["true_answer", "teacher_answer"])
def test_at_the_start_only_what_the_teacher_lacks_counts(
    opened: Open, sides: tuple[Split, Split], family: str, along: str
) -> None:
    def forgetting(**settings: Any) -> float:
        found, _ = terms(opened(family), sides, along=along, **settings)
        assert found.keys() == {"forget", "retain"}
        assert found["retain"] == pytest.approx(0, abs=1e-6)
        return found["forget"]

    assert forgetting(**NOTHING) == pytest.approx(0, abs=1e-6)
    told = VisualNoiseGuidedDistillation().instruction
    assert forgetting(**NOTHING | {"instruction": told}) > 1e-3
    for noise in NOISES:
        assert forgetting(**NOTHING | {"noise": noise, "noise_scale": 0.75}) > 1e-3


@BOTH
def test_weights_multiply_their_terms(opened: Open, sides: tuple[Split, Split], family: str) -> None:
    one, _ = terms_after_a_change(opened(family), sides)
    other, _ = terms_after_a_change(opened(family), sides, forget_weight=3.0, retain_weight=0.5)
    assert min(one.values()) > 1e-3
    assert other["forget"] == pytest.approx(3 * one["forget"])
    assert other["retain"] == pytest.approx(0.5 * one["retain"])


def terms_after_a_change(
    student: Loaded, sides: tuple[Split, Split], **settings: Any
) -> tuple[dict[str, float], tuple[Batch, Batch, Batch]]:
    """The same once the student is another one than its teacher."""
    torch.manual_seed(0)
    (phase,) = VisualNoiseGuidedDistillation(**SMALL, **settings).plan(student, *sides).phases
    disturb(student)
    batches = phase.draw()
    with torch.no_grad():
        return {name: value.item() for name, value in phase.loss(batches).items()}, batches


@torch.no_grad()
def disturb(student: Loaded) -> None:
    torch.manual_seed(3)
    for parameter in student.model.parameters():
        parameter += 0.1 * parameter.std(correction=0) * torch.randn_like(parameter)


@torch.no_grad()
def by_hand(p_model: Any, p_batch: Batch, q_model: Any, q_batch: Batch, everywhere: bool = False) -> float:
    """KL(p || q) from whole logits in float64, one row at a time, mean over the tokens of answers."""

    def predictions(model: Any, batch: Batch) -> list[Tensor]:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].double().log_softmax(-1)
        answers = batch["labels"][:, 1:] != IGNORED
        if everywhere:
            return [logits.flatten(0, 1)]
        return [row[answer] for row, answer in zip(logits, answers, strict=True)]

    p, q = torch.cat(predictions(p_model, p_batch)), torch.cat(predictions(q_model, q_batch))
    return (p.exp() * (p - q)).sum(-1).mean().item()


@BOTH
def test_both_terms_are_forward_divergences_from_the_base_model(
    opened: Open, sides: tuple[Split, Split], family: str
) -> None:
    base, student = opened(family), opened(family)
    found, (clean, asked, kept) = terms_after_a_change(student, sides)
    assert found["forget"] == pytest.approx(by_hand(base.model, asked, student.model, clean), rel=1e-4)
    assert found["retain"] == pytest.approx(by_hand(base.model, kept, student.model, kept), rel=1e-4)
    backward = by_hand(student.model, clean, base.model, asked), by_hand(student.model, kept, base.model, kept)
    assert found["forget"] != pytest.approx(backward[0], rel=1e-3), "the control"
    assert found["retain"] != pytest.approx(backward[1], rel=1e-3), "the control"
    diluted = by_hand(base.model, kept, student.model, kept, everywhere=True)
    assert found["retain"] != pytest.approx(diluted, rel=1e-3), "prompts and padding are left out"


@BOTH
def test_terms_do_not_change_with_padding(opened: Open, sides: tuple[Split, Split], family: str) -> None:
    """Rows one by one, without any padding, weigh as many tokens as their answers have."""
    base, student = opened(family), opened(family)
    disturb(student)
    teacher = Teacher(VisualNoiseGuidedDistillation(noise="blur"), base, "pretend never to have seen")
    examples = [e for e in sides[0].pictured if e.probe != "attribute"][:6]
    clean, asked = teacher.ask(examples)
    together = student.batcher.for_training(clean)
    assert (together["attention_mask"] == 0).any(), "nothing was padded, so nothing was tested"

    def forget_term(clean: Batch, asked: Batch) -> tuple[float, int]:
        with torch.no_grad():
            taught, said, _ = answer_scores(teacher.model, asked)
            learned, tokens, _ = answer_scores(student.model, clean)
        assert torch.equal(tokens, said)
        return vgid.kl_at_answers(learned, taught).item(), len(tokens)

    value, count = forget_term(together, asked)
    alone = [forget_term(student.batcher.for_training([e]), teacher.ask([e])[1]) for e in clean]
    assert sum(tokens for _, tokens in alone) == count
    assert value == pytest.approx(sum(v * tokens for v, tokens in alone) / count, rel=1e-4)
    assert value != pytest.approx(sum(v for v, _ in alone) / len(alone), rel=1e-4), "the control: rows weigh alike"


# Who sees what --------------------------------------------------------------------------------------------------------


@BOTH
def test_the_teacher_sees_noise_and_the_student_does_not(
    opened: Open, sides: tuple[Split, Split], seen_pictures: set[bytes], family: str
) -> None:
    clean = pixels_of(e.images[0] for split in sides for e in split.pictured)
    for settings, noisy in (({}, True), (NOTHING, False)):
        seen_pictures.clear()
        student = opened(family)
        _, batches = terms(student, sides, **settings)
        assert bool(seen_pictures - clean) == noisy
        theirs, asked, _ = batches
        assert torch.equal(theirs["pixel_values"], asked["pixel_values"]) == (not noisy)
        assert theirs["pixel_values"].shape == asked["pixel_values"].shape
        if family == "qwen2_vl":
            assert torch.equal(theirs["image_grid_thw"], asked["image_grid_thw"])
            assert len(theirs["image_grid_thw"].unique(dim=0)) > 1
        assert (asked["input_ids"].shape[1] > theirs["input_ids"].shape[1]) == noisy, "the instruction"
        plainly = [student.batcher.for_training([e])["input_ids"][0].tolist() for e in sides[0].pictured]
        rows = zip(theirs["input_ids"], theirs["attention_mask"].bool(), strict=True)
        assert all(row[seen].tolist() in plainly for row, seen in rows)


@BOTH
@pytest.mark.parametrize("noise", NOISES)
@torch.no_grad()
def test_noise_reaches_the_teachers_predictions_and_nothing_else_does(
    opened: Open, sides: tuple[Split, Split], family: str, noise: Noise
) -> None:
    loaded = opened(family)
    examples = list(sides[0].pictured.examples[:6])

    def scores(seed: int, scale: float, instruction: str = "") -> Tensor:
        settings = VisualNoiseGuidedDistillation(noise=noise, noise_scale=scale)
        teacher = Teacher(settings, loaded, instruction)
        torch.manual_seed(seed)
        return answer_scores(teacher.model, teacher.ask(examples)[1])[0]

    clean = answer_scores(loaded.model, loaded.batcher.for_training(examples))[0]
    torch.testing.assert_close(scores(0, 0.0), clean)
    first, again, other = scores(0, 0.75), scores(0, 0.75), scores(1, 0.75)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (noise == "blur")
    assert (first - clean).abs().max() > 1e-2
    assert (scores(0, 0.0, "forget this") - clean).abs().max() > 1e-2


def test_every_picture_of_a_question_is_disturbed_each_in_its_own_way(opened: Open, sides: tuple[Split, Split]) -> None:
    first, second, third = list(sides[0].pictures)[:3]
    example = dataclasses.replace(sides[0].pictured.examples[0], image=first, others=(second, third))
    teacher = Teacher(VisualNoiseGuidedDistillation(), opened("qwen2_vl"), "forget")
    (noisy,) = teacher.disturbed([example])
    assert all(isinstance(image, NoisyPicture) for image in noisy.images)
    assert [image.source for image in noisy.images] == [first, second, third]  # type: ignore[attr-defined]
    assert len({image.seed for image in noisy.images}) == 3  # type: ignore[attr-defined]
    assert noisy.question == f"forget {example.question}"
    assert noisy.answer == example.answer
    clean, asked = teacher.ask([example])
    assert clean == [example]
    assert len(asked["image_grid_thw"]) == 3


def test_names_are_put_into_the_instruction(
    opened: Open, people: UnlearnData, forget: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def spy(self: Teacher, examples: Sequence[Any]) -> Any:
        noisy = original(self, examples)
        heard.extend(e.question for e in noisy)
        return noisy

    original = Teacher.disturbed
    monkeypatch.setattr(Teacher, "disturbed", spy)
    sides = people.train.of(forget), people.train.without(forget)
    terms(opened("llava"), sides, instruction="Never heard of {subjects}.")
    (name,) = (people.names[subject] for subject in forget)
    assert heard
    assert all(question.startswith(f"Never heard of {name}. ") for question in heard)


# Answers of the teacher's own -----------------------------------------------------------------------------------------


def test_the_teachers_own_answers_are_read_by_both(opened: Open, sides: tuple[Split, Split]) -> None:
    def said(seed: int, **settings: Any) -> list[list[int]]:
        _, (clean, asked, _) = terms(opened("llava"), sides, seed, **settings)
        answers = [[row[row != IGNORED].tolist() for row in batch["labels"]] for batch in (clean, asked)]
        assert answers[0] == answers[1]
        return answers[0]

    batcher = opened("llava").batcher
    true = {e.answer for e in sides[0].pictured}
    tokens = [batcher.for_training([e])["labels"][0] for e in sides[0].pictured]
    known = [row[row != IGNORED].tolist() for row in tokens]
    longest = max(map(len, known))
    own = said(0, along="teacher_answer")
    assert own == said(0, along="teacher_answer")
    assert own != said(1, along="teacher_answer")
    assert max(map(len, own)) <= longest + 1, "and the end of sequence"
    spoken = set(batcher.decode([torch.tensor(row) for row in own]))  # type: ignore[arg-type]
    assert not spoken <= true
    assert all(row in known for row in said(0)), "the control"


@pytest.mark.parametrize(
    "habit", [{"top_k": 1}, {"top_p": 0.01}, {"temperature": 0.01}, {"repetition_penalty": 9.0}, {"num_beams": 2}]
)
def test_answers_are_drawn_from_the_whole_distribution_whatever_a_checkpoint_is_used_to(
    opened: Open, sides: tuple[Split, Split], habit: dict[str, Any]
) -> None:
    examples = list(sides[0].pictured.examples)
    drawn, plain = [], []
    for habits in ({}, habit):
        student = opened("llava")
        student.model.generation_config.update(**habits)
        teacher = Teacher(VisualNoiseGuidedDistillation(), student, "")
        torch.manual_seed(0)
        drawn.append(teacher.answers(examples))
        torch.manual_seed(0)
        inputs = teacher.batcher.for_generation(examples)
        with torch.no_grad():
            plain.append(teacher.model.generate(**inputs, do_sample=True, max_new_tokens=4).tolist())  # type: ignore[operator]
    assert drawn[0] == drawn[1]
    assert plain[0] != plain[1], "the control"


# A run ----------------------------------------------------------------------------------------------------------------


def run(student: Loaded, sides: tuple[Split, Split], seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    plan = VisualNoiseGuidedDistillation(**SMALL | settings).plan(student, *sides)
    student.model.train()
    plan.carry_out("test")
    student.model.eval()
    return {name: p.detach() for name, p in plan.edited.items()}


@ONE_BY_DAY
@pytest.mark.parametrize("along", ["true_answer", "teacher_answer"])
def test_same_seed_same_weights_and_another_seed_others(
    opened: Open, sides: tuple[Split, Split], family: str, along: str
) -> None:
    first, again, other = (run(opened(family), sides, seed, along=along) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("scope", ["visual", "language", "both"])
def test_the_reference_never_moves(
    opened: Open, sides: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    held: list[Any] = []
    make = vgid.reference_of
    monkeypatch.setattr(vgid, "reference_of", lambda student: held.append(make(student)) or held[-1])
    student, before = opened("llava"), dict(opened("llava").model.named_parameters())
    moved = run(student, sides, scope=scope)
    (reference,) = held
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters() if id(p) not in map(id, moved.values()))
    assert all(torch.equal(p, before[name]) for name, p in reference.named_parameters())
    changed = {name for name, p in moved.items() if not torch.equal(p, before[name])}
    assert changed, "the control: the student does move"


@ONE_BY_DAY
def test_the_student_comes_to_answer_as_its_teacher_and_keeps_the_rest(
    opened: Open, sides: tuple[Split, Split], family: str
) -> None:
    base = opened(family)
    teacher = Teacher(VisualNoiseGuidedDistillation(noise="mask", noise_scale=1.0), base, "forget this")
    clean, asked = teacher.ask(sides[0].pictured.examples)
    theirs, kept = base.batcher.for_training(clean), base.batcher.for_training(sides[1].pictured.examples)
    settings = {"noise": "mask", "noise_scale": 1.0, "instruction": "forget this", "steps": 25, "batch": 24}

    def distances(**more: Any) -> tuple[float, float]:
        student = opened(family)
        run(student, sides, **settings | more)
        return tuple(  # type: ignore[return-value]
            by_hand(base.model, b, student.model, s) for b, s in ((asked, theirs), (kept, kept))
        )

    start = by_hand(base.model, asked, base.model, theirs)
    taught, unmoved = distances(), distances(learning_rate=1e-60)
    careless = distances(retain_weight=0.0)
    assert taught[0] < 0.7 * start
    assert unmoved == (pytest.approx(start), pytest.approx(0, abs=1e-9))
    assert taught[1] < 0.7 * careless[1], "the control: without the retain term the rest goes too"


def test_a_student_elsewhere_is_not_disturbed_by_its_teacher(opened: Open, sides: tuple[Split, Split]) -> None:
    """The teacher has a batcher of its own: noisy pictures do not take the place of clean ones in the student's."""
    student = opened("llava")
    teacher = Teacher(VisualNoiseGuidedDistillation(), student, "")
    examples = list(sides[0].pictured.examples[:6])
    before = copy.deepcopy(student.batcher.for_training(examples))
    for _ in range(3):
        teacher.ask(examples)
    after = student.batcher.for_training(examples)
    assert all(torch.equal(before[key], after[key]) for key in before)
    held = sum(t.numel() * t.element_size() for one in teacher.batcher._cache.values() for t in one.values())
    one_step = teacher.batcher.images(list(dict.fromkeys(e.images[0] for e in teacher.disturbed(examples))))
    assert held <= sum(t.numel() * t.element_size() for t in one_step.values())
