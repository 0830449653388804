"""Every method keeps the same contract; the losses, dials and read-outs of single methods are worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from unsee.config import configured
from unsee.data.examples import Example, Split, UnlearnData
from unsee.errors import BadInput
from unsee.experiments import unlearn as experiment
from unsee.methods import METHODS, FeatureMethod, FeatureStudy, Method
from unsee.methods.ascent import GradientAscent, GradientDifference, parameters_in
from unsee.methods.cvf import ContrastiveVisualForgetting, Objective
from unsee.methods.features import Pictures
from unsee.methods.readout import LinearReadout
from unsee.models.anatomy import VisualModule
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded, load_model, load_visual

# The contract, over the whole table -----------------------------------------------------------------------------------

FEATURES = {"steps": 6, "last_blocks": 2, "forget_pictures": 2, "retain_pictures": 4, "learning_rate": 5e-3}
OUTPUTS = {"steps": 3, "batch": 6, "learning_rate": 2e-3}
SMALL: dict[str, list[dict[str, Any]]] = {
    "nscvf": [FEATURES | {"threshold": 1e-2}],
    "cvf": [FEATURES],
    "ga": [OUTPUTS | {"scope": scope} for scope in ("visual", "language", "both")],
    "graddiff": [OUTPUTS | {"scope": scope} for scope in ("visual", "language", "both")],
}
CASES = [
    pytest.param((name, tuple(settings.items())), id=f"{name} {settings.get('scope', '')}".strip())
    for name, variants in SMALL.items()
    for settings in variants
]
Case = tuple[str, tuple[tuple[str, Any], ...]]


@dataclass(frozen=True)
class Run:
    """One unlearning run: what it was given, what it wrote, and the model it held in memory at the end."""

    method: Method
    source: Path
    out: Path
    manifest: dict[str, Any]
    student: Loaded

    @property
    def before(self) -> dict[str, Tensor]:
        return load_file(self.source / "model.safetensors")

    @property
    def after(self) -> dict[str, Tensor]:
        return load_file(self.out / "model.safetensors")


Runner = Callable[..., Run]


@pytest.fixture(scope="module")
def carry_out(
    people: UnlearnData,
    forget: tuple[str, ...],
    checkpoint: Path,
    checkpoint_bf16: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runner:
    @cache
    def run(case: Case, seed: int = 0, bf16: bool = False, repetition: int = 0) -> Run:
        name, settings = case
        method, source = METHODS[name](**dict(settings)), checkpoint_bf16 if bf16 else checkpoint
        out = tmp_path_factory.mktemp("run") / "out"
        held: list[Loaded] = []
        with pytest.MonkeyPatch.context() as patch:
            for opener in (load_model, load_visual):
                patch.setattr(
                    experiment, opener.__name__, lambda *a, opener=opener: held.append(opener(*a)) or held[-1]
                )
            manifest = experiment.unlearn(str(source), people, forget, method, seed, out, gate=False)
        return Run(method, source, out, manifest, held[0])

    return run


def declared(run: Run) -> set[str]:
    """Tensors of the checkpoint that the method says it may change."""
    student = load_model(str(run.source), torch.float32)
    if isinstance(run.method, FeatureMethod):
        names = {f"{layer}.weight" for layer in student.visual.editable(run.method.last_blocks)}
    else:
        names = set(parameters_in(student, run.method.scope))  # type: ignore[attr-defined]
    return set(student.checkpoint_keys(dict.fromkeys(names)).values())


def is_visual(key: str) -> bool:
    return "vision_tower" in key or "multi_modal_projector" in key


def test_every_method_is_under_contract() -> None:
    assert set(SMALL) == set(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_table_settings_and_their_documentation_agree(name: str) -> None:
    kind = METHODS[name]
    assert kind.name == name
    assert kind.paper
    method = kind()  # every setting has a default
    documented = " ".join(parent.__doc__ or "" for parent in kind.__mro__)
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        assert field.name in documented, f"{name}: setting '{field.name}' is not documented"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, 0)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_setting_can_be_set_from_the_command_line(name: str) -> None:
    """Spelt as `unsee methods` prints it."""
    kind = METHODS[name]
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        old = field.default
        choices = get_args(hints[field.name])
        wanted = next(c for c in choices if c != old) if choices else not old if isinstance(old, bool) else old
        changed = configured(kind, [f"{field.name}={wanted}"])
        assert getattr(changed, field.name) == wanted
        assert type(getattr(changed, field.name)) is type(old)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_only_the_declared_scope_moves(carry_out: Runner, case: Case, bf16: bool) -> None:
    run = carry_out(case, bf16=bf16)
    before, after = run.before, run.after
    assert before.keys() == after.keys()
    assert {t.dtype for t in after.values()} == {torch.bfloat16 if bf16 else torch.float32}
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert moved <= declared(run)
    if run.method.level == "features":
        assert not [key for key in moved if not is_visual(key)]
    else:
        scope = run.method.scope  # type: ignore[attr-defined]
        assert {is_visual(key) for key in moved} == {
            "visual": {True},
            "language": {False},
            "both": {True, False},
        }[scope]
    assert all(tensor.isfinite().all() for tensor in after.values())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_manifest_names_the_tensors_that_changed(carry_out: Runner, case: Case, bf16: bool) -> None:
    """The second run is so gentle that bfloat16 rounds some of its changes away."""
    name, settings = case
    for rate in (OUTPUTS["learning_rate"], 1e-5):
        run = carry_out((name, tuple((dict(settings) | {"learning_rate": rate}).items())), bf16=bf16)
        before, after = run.before, run.after
        assert run.manifest["changed"] == sorted(k for k in before if not torch.equal(before[k], after[k]))


@pytest.mark.parametrize("case", CASES)
def test_only_what_may_change_collects_gradients(carry_out: Runner, case: Case) -> None:
    run = carry_out(case)
    collecting = {name for name, p in run.student.model.named_parameters() if p.requires_grad}
    assert set(run.student.checkpoint_keys(dict.fromkeys(collecting)).values()) == declared(run)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_finite(carry_out: Runner, case: Case) -> None:
    run = carry_out(case)
    (history,) = run.manifest["history"].values()
    assert [entry["step"] for entry in history] == [1, run.method.steps]  # type: ignore[attr-defined]
    assert all(len(entry) > 1 for entry in history)
    assert all(math.isfinite(value) for entry in history for value in entry.values())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_must_be_forgotten_changes(
    carry_out: Runner, case: Case, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    run = carry_out(case)
    before, after = load_model(str(run.source)), load_model(str(run.out))
    examples = people.train.of(forget).pictured
    if run.method.level == "outputs":
        batch = before.batcher.for_training(examples.examples)
        assert answer_loss(after.model, batch) > answer_loss(before.model, batch) + 0.01
    else:
        images = before.batcher.images(list(examples.pictures))
        old, new = before.visual.features(images), after.visual.features(images)
        assert (new - old).square().mean() > 1e-3 * old.var()


@pytest.mark.parametrize("case", CASES)
def test_nothing_but_steps_changes_a_weight(carry_out: Runner, case: Case) -> None:
    name, settings = case
    still = carry_out((name, tuple((dict(settings) | {"learning_rate": 1e-60}).items())))
    assert still.manifest["changed"] == []
    assert all(torch.equal(still.before[key], tensor) for key, tensor in still.after.items())


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_weights_and_another_seed_others(carry_out: Runner, case: Case) -> None:
    first, again, other = carry_out(case), carry_out(case, repetition=1), carry_out(case, seed=1)
    assert first.out != again.out
    assert first.manifest["sha256"] == again.manifest["sha256"]
    assert first.manifest["sha256"] != other.manifest["sha256"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@torch.no_grad()
def test_plain_transformers_opens_the_result_and_says_the_same(
    carry_out: Runner, case: Case, bf16: bool, people: UnlearnData
) -> None:
    run = carry_out(case, bf16=bf16)
    plain = AutoModelForImageTextToText.from_pretrained(run.out).eval()
    processor = AutoProcessor.from_pretrained(run.out)
    ours = load_model(str(run.out))
    assert plain.dtype == (torch.bfloat16 if bf16 else torch.float32)
    example = people.test.pictured.examples[0]
    assert example.image is not None
    asked = [{"type": "image", "image": example.image.open()}, {"type": "text", "text": example.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": asked}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    said = plain(**inputs).logits
    assert torch.equal(said, ours.model(**ours.batcher.for_generation([example])).logits)
    assert not torch.equal(said, load_model(str(run.source)).model(**inputs).logits)

    held = run.student.model.eval()  # as it was in memory when it was written
    if bf16:
        plain = plain.float()
        for parameter in held.parameters():
            parameter.copy_(parameter.bfloat16())
    images = {"pixel_values": inputs["pixel_values"]}
    seen = run.student.visual.features(images)
    stored = torch.stack(list(plain.get_image_features(**images).pooler_output))
    torch.testing.assert_close(seen, stored, rtol=1e-4, atol=1e-5)
    if run.method.level == "outputs":
        torch.testing.assert_close(held(**inputs).logits, plain(**inputs).logits, rtol=1e-4, atol=1e-5)


# The null space -------------------------------------------------------------------------------------------------------


def drifts(run: Run, people: UnlearnData, forget: tuple[str, ...]) -> dict[str, float]:
    """Relative change of every edited layer's outputs on retained pictures, from the files alone."""
    reference, edited = load_model(str(run.source)), load_model(str(run.out))
    layers = reference.visual.editable(FEATURES["last_blocks"])  # type: ignore[arg-type]
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: inputs.__setitem__(name, x[0].detach()))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        reference.visual.features(reference.batcher.images(list(people.train.without(forget).pictures)))
    for hook in hooks:
        hook.remove()
    found = {}
    for name, x in inputs.items():
        old, new = layers[name].weight.double(), edited.model.get_submodule(name).weight.double()
        x = x.flatten(0, -2).double()
        found[f"{name}.weight"] = ((x @ (new - old).T).norm() / (x @ old.T).norm()).item()
    return found


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("threshold", [1e-2, 1e-5])
def test_certificate_is_the_drift_of_what_was_written(
    carry_out: Runner, people: UnlearnData, forget: tuple[str, ...], threshold: float, bf16: bool
) -> None:
    """Also after the cast to the stored precision, whose rounding knows no null space."""
    settings = FEATURES | {"threshold": threshold}
    run = carry_out(("nscvf", tuple(settings.items())), bf16=bf16)
    measured, certificate = drifts(run, people, forget), run.manifest["certificate"]["layers"]
    assert certificate.keys() == measured.keys()
    assert {name: layer["drift"] for name, layer in certificate.items()} == pytest.approx(measured, rel=1e-2, abs=1e-6)


def test_null_space_keeps_the_drift_small(carry_out: Runner, people: UnlearnData, forget: tuple[str, ...]) -> None:
    constrained, free = (carry_out((name, tuple(SMALL[name][0].items()))) for name in ("nscvf", "cvf"))
    kept, control = (drifts(run, people, forget) for run in (constrained, free))
    assert len(kept) == 14
    assert all(kept[name] < 0.3 * control[name] for name in kept)
    assert free.manifest["certificate"] is None


# Contrastive visual forgetting, by hand -------------------------------------------------------------------------------


class Through(VisualModule):
    """A visual module without layers: hidden states are the tokens, so a test decides where pictures stand."""

    vision_tower = projector = None  # type: ignore[assignment]
    blocks = ()  # type: ignore[assignment]

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def enter(self, images: Any) -> Tensor:
        raise AssertionError("no picture is needed")

    def run(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return hidden

    def leave(self, hidden: Tensor) -> Tensor:
        return hidden + self.shift


def moved(pictures: Pictures, hidden: Tensor) -> Pictures:
    return dataclasses.replace(pictures, hidden=hidden)


@pytest.fixture
def study(checkpoint: Path, people: UnlearnData) -> FeatureStudy:
    """Two subjects to forget and two to keep, three pictures each, at their reference features."""
    loaded, forget = load_visual(str(checkpoint)), people.choose("first:2")
    real = FeatureStudy.of(
        loaded.visual,
        loaded.batcher,
        people.train.of(forget),
        people.train.without(forget),
        people.validation.of(forget),
        last_blocks=1,
    )
    parts = {part: getattr(real, part) for part in ("forget", "retain", "held_back")}
    still = {part: moved(pictures, pictures.tokens) for part, pictures in parts.items()}
    return dataclasses.replace(real, visual=Through(), reference=Through(), **still)


SETTINGS = ContrastiveVisualForgetting(forget_pictures=6, retain_pictures=6)
PAIRS, SHARE = torch.tensor([[0, 4, 2], [5, 1, 1]]), torch.tensor([0.2, 0.9, 0.5])
EVERYTHING = (torch.arange(6), torch.arange(6), PAIRS, SHARE)


def test_the_study_knows_the_reference(study: FeatureStudy, people: UnlearnData) -> None:
    assert study.subjects == people.subjects
    assert study.forget.subject.tolist() == [0, 0, 0, 1, 1, 1]
    assert study.retain.subject.tolist() == [2, 2, 2, 3, 3, 3]
    assert study.held_back.subject.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(study.centre[0], study.retain.tokens.mean(0))
    norms = study.direction(study.forget.tokens).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(6))
    assert [table.shape[0] for table in study.looks] == [12, 12, 12]
    assert all((table.sum(1) == 1).all() for table in study.looks)


def test_every_term_is_its_formula(study: FeatureStudy) -> None:
    torch.manual_seed(0)
    away = {part: getattr(study, part).tokens + 0.3 * torch.randn(6, 4, 16) for part in ("forget", "retain")}
    elsewhere = dataclasses.replace(
        study,
        reference=Through(shift=0.2),
        forget=moved(study.forget, away["forget"]),
        retain=moved(study.retain, away["retain"]),
    )
    objective, t = Objective(SETTINGS, elsewhere), SETTINGS.temperature
    objective.push = torch.tensor([1.5, 4.0])
    f, r = torch.tensor([4, 0, 2]), torch.tensor([5, 1])
    terms = objective.loss((f, r, PAIRS, SHARE))

    def n(tokens: Tensor) -> Tensor:
        flat = (tokens - study.retain.tokens.mean(0)).flatten()
        return flat / flat.norm()

    z0_f, z0_r, d = study.forget.tokens, study.retain.tokens, objective.stand_in
    forget, apart = [], []
    for i in f.tolist():
        own = [j for j in range(6) if study.forget.subject[j] == study.forget.subject[i]]
        good = torch.exp(n(away["forget"][i]) @ n(d[i]) / t)
        bad = sum(torch.exp(n(away["forget"][i]) @ n(z0_f[j]) / t) for j in own)
        forget.append(-objective.push[study.forget.subject[i]] * torch.log(good / (good + bad)))
    for i in r.tolist():
        others = [*(z0_r[j] for j in r.tolist()), *z0_f]
        found = torch.exp(n(away["retain"][i]) @ n(z0_r[i]) / t)
        apart.append(-torch.log(found / sum(torch.exp(n(away["retain"][i]) @ n(other) / t) for other in others)))
    variance = torch.cat([*z0_r]).var()
    kept = [*(away["retain"][r] - z0_r[r]), *torch.full((3, 4, 16), 0.2)]  # mixtures: as far off as the reference is
    expected = {
        "forget": torch.stack(forget).mean(),
        "pull": SETTINGS.pull * (away["forget"][f] - d[f]).square().mean() / variance,
        "keep": SETTINGS.keep * torch.stack(kept).square().mean() / variance,
        "apart": SETTINGS.apart * torch.stack(apart).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_mixtures_lie_between_two_retained_pictures(study: FeatureStudy) -> None:
    """A module that is right at every picture and wrong between them loses what it should keep."""
    between: list[Tensor] = []

    class Recording(Through):
        def leave(self, hidden: Tensor) -> Tensor:
            between.append(hidden)
            return hidden

    Objective(SETTINGS, dataclasses.replace(study, reference=Recording())).loss(EVERYTHING)
    expected = [
        (1 - share) * study.retain.hidden[first] + share * study.retain.hidden[second]
        for first, second, share in zip(*PAIRS.tolist(), SHARE.tolist(), strict=True)
    ]
    torch.testing.assert_close(between[-1], torch.stack(expected))


def test_stand_ins_look_alike_then_share_no_answer_then_are_near(study: FeatureStudy) -> None:
    def best(looks: bool, answers: bool) -> list[int]:
        near = study.direction(study.forget.tokens) @ study.direction(study.retain.tokens).T
        chosen = []
        for i in range(6):
            ranks = [
                (
                    sum(float(table[i] @ table[6 + j]) for table in study.looks) if looks else 0,
                    -float(study.shared[study.forget.subject[i], study.retain.subject[j]]) if answers else 0,
                    near[i, j].item(),
                )
                for j in range(6)
            ]
            chosen.append(max(range(6), key=ranks.__getitem__))
        return chosen

    found = []
    for looks, answers in ((True, True), (True, False), (False, True), (False, False)):
        settings = dataclasses.replace(SETTINGS, same_looks=looks, unlike_answers=answers)
        found.append(Objective(settings, study).stand_ins().tolist())
        assert found[-1] == best(looks, answers)
    assert found[0] != found[-1]


def test_stand_ins_are_retained_pictures(study: FeatureStudy) -> None:
    objective = Objective(SETTINGS, study)
    for tokens, direction in zip(objective.stand_in, objective.stand_in_direction, strict=True):
        (place,) = [i for i, kept in enumerate(study.retain.tokens) if torch.equal(kept, tokens)]
        torch.testing.assert_close(direction, study.direction(study.retain.tokens)[place])


def test_forget_term_falls_on_the_way_to_the_stand_in_and_nothing_is_lost_at_the_start(study: FeatureStudy) -> None:
    d = Objective(SETTINGS, study).stand_in

    def at(share: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        hidden = study.forget.tokens + share * (d - study.forget.tokens)
        return Objective(SETTINGS, dataclasses.replace(study, forget=moved(study.forget, hidden))).loss(EVERYTHING)

    way = [at(share) for share in (-0.5, 0.0, 0.5, 1.0)]
    forgets = [terms["forget"].item() for terms in way]
    assert forgets == sorted(forgets, reverse=True)
    assert forgets[-1] < 0.5 * forgets[1]
    start, arrived = way[1], way[-1]
    assert start["keep"] == start["looks"] == arrived["keep"] == 0
    assert start["pull"] > 0.01
    assert arrived["pull"] < 1e-9
    drifted = dataclasses.replace(study, retain=moved(study.retain, study.retain.tokens + 0.1))
    assert Objective(SETTINGS, drifted).loss(EVERYTHING)["keep"] > 0.01


def at_centroids(study: FeatureStudy, subjects: list[int]) -> FeatureStudy:
    """The same study, its four held-back pictures (two of each target) looking like these subjects."""
    hidden = study.centroids[torch.tensor(subjects)].view(-1, 4, 16) + study.centre
    return dataclasses.replace(study, held_back=moved(study.held_back, hidden))


DIAL = dataclasses.replace(
    SETTINGS, push=2.0, dial_nearest=1, dial_target=0.05, dial_every=5, dial_step=2.0, dial_low=0.5, dial_high=9.0
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
def test_dial_pushes_whoever_is_still_recognised_and_stays_within_bounds(
    study: FeatureStudy, look_like: list[int], recognised: float, first: list[float], second: list[float]
) -> None:
    objective, pushes = Objective(DIAL, at_centroids(study, look_like)), []
    for step in range(1, 21):
        told = objective.turn_dial(step)
        assert bool(told) == (step % 5 == 0)
        if told:
            pushes.append(objective.push.tolist())
            assert told == {"recognised": recognised, "push": sum(pushes[-1]) / 2}
    assert pushes == [list(pair) for pair in zip(first, second, strict=True)]


def test_dial_target_is_a_share_of_the_held_back_pictures(study: FeatureStudy) -> None:
    half = at_centroids(study, [0, 3, 2, 2])
    assert half.recognised().tolist() == [1, 0, 0, 0]
    wider = [half.recognised(nearest).mean().item() for nearest in (1, 2, 3, 4, 5)]
    assert wider == sorted(wider)
    assert wider[-2:] == [1.0, 1.0], "there are four subjects"
    for target, expected in ((0.4, 4.0), (0.5, 1.0)):
        objective = Objective(dataclasses.replace(DIAL, dial_target=target), half)
        objective.turn_dial(5)
        assert objective.push.tolist() == [expected, 1.0]


def test_dial_rests_without_held_back_pictures(study: FeatureStudy) -> None:
    """Of anybody, or of one target only: what is not seen is no reason to push less."""
    nobody = Pictures(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.long))
    objective = Objective(DIAL, dataclasses.replace(study, held_back=nobody))
    assert all(objective.turn_dial(step) == {} for step in range(1, 30))
    assert objective.push.tolist() == [2.0, 2.0]
    of_second = Pictures(
        *(part[2:] for part in (study.held_back.hidden, study.held_back.tokens, study.held_back.subject))
    )
    objective = Objective(DIAL, at_centroids(dataclasses.replace(study, held_back=of_second), [1, 1]))
    objective.turn_dial(5)
    assert objective.push.tolist() == [2.0, 4.0]


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
    given = labels(truth[:400])
    return (
        dataclasses.replace(
            study,
            forget=Pictures(tokens[:100], tokens[:100], torch.zeros(100, dtype=torch.long)),
            retain=Pictures(tokens[100:400], tokens[100:400], torch.ones(300, dtype=torch.long)),
            looks=(F.one_hot(given, 2).float(),),
        ),
        tokens[400:],
        truth[400:],
    )


def accuracy(study: FeatureStudy, tokens: Tensor, truth: Tensor) -> float:
    scores = (tokens - study.centre).flatten(1) @ LinearReadout.fit(study).weight
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
    along, across = (readout.change(tokens + step.view(4, 8), tokens) for step in (direction, beside))
    assert along > 0.01
    assert across < 1e-6 * along
    scores = (tokens - fitted.centre).flatten(1) @ readout.weight
    half = readout.change(tokens.mean(0, keepdim=True).expand_as(tokens), tokens)
    torch.testing.assert_close(half, (scores.var(0, correction=0) / readout.spread).mean(), rtol=1e-3, atol=0)


def test_an_attribute_that_everybody_shares_is_no_trouble(study: FeatureStudy) -> None:
    constant = torch.ones(12, 1)
    for looks in ((*study.looks, constant), (constant,)):
        readout = LinearReadout.fit(dataclasses.replace(study, looks=looks))
        assert readout.change(study.forget.tokens + 0.1, study.forget.tokens).isfinite()
        assert readout.change(study.forget.tokens, study.forget.tokens) == 0


# Gradient ascent and difference ---------------------------------------------------------------------------------------


def after_steps(checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], method: GradientAscent) -> list[Tensor]:
    loaded = load_model(str(checkpoint), torch.float32)
    torch.manual_seed(0)
    plan = method.plan(loaded, people.train.of(forget), people.train.without(forget))
    plan.carry_out("test")
    return [p.detach() for p in plan.edited.values()]


def test_difference_without_retain_weight_is_ascent(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    settings: dict[str, Any] = {"steps": 1, "learning_rate": 1e-3, "batch": 6}
    ascent = after_steps(checkpoint, people, forget, GradientAscent(**settings))
    for retain_weight, same in ((0.0, True), (1.0, False)):
        difference = GradientDifference(**settings, forget_weight=1.0, retain_weight=retain_weight)
        other = after_steps(checkpoint, people, forget, difference)
        close = [torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ascent, other, strict=True)]
        assert all(close) if same else not any(close[-3:])


def test_difference_holds_the_retained_answers_that_ascent_destroys(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    settings: dict[str, Any] = {"steps": 15, "learning_rate": 2e-3, "batch": 24}
    losses = {}
    for kind in (GradientAscent, GradientDifference):
        loaded = load_model(str(checkpoint), torch.float32)
        retained = loaded.batcher.for_training(people.train.without(forget).pictured.examples)
        forgotten = loaded.batcher.for_training(people.train.of(forget).pictured.examples)
        start = [answer_loss(loaded.model, batch).item() for batch in (retained, forgotten)]
        torch.manual_seed(0)
        kind(**settings).plan(loaded, people.train.of(forget), people.train.without(forget)).carry_out("test")
        losses[kind] = [
            answer_loss(loaded.model, b).item() - s for b, s in zip((retained, forgotten), start, strict=True)
        ]
    assert all(forgotten > 0 for _, forgotten in losses.values())
    assert losses[GradientAscent][0] > 0 > losses[GradientDifference][0]


def test_unknown_scope_is_bad_input(loaded: Loaded) -> None:
    with pytest.raises(BadInput, match="scope=audio"):
        parameters_in(loaded, "audio")  # type: ignore[arg-type]


def test_scopes_divide_the_model(loaded: Loaded) -> None:
    visual, language, both = (parameters_in(loaded, scope) for scope in ("visual", "language", "both"))
    assert both.keys() == dict(loaded.model.named_parameters()).keys()
    assert visual.keys() | language.keys() == both.keys()
    assert not visual.keys() & language.keys()
    assert all(is_visual(name) for name in visual)
    assert "lm_head.weight" in language
