"""Every method keeps the same contract on every family that has a pocket model; what is its own has its own file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import NewCheckpoint
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from unsee.data.examples import UnlearnData
from unsee.editing import unlearn as experiment
from unsee.errors import BadInput
from unsee.evaluation.predict import generate
from unsee.lab.build import POCKETS
from unsee.methods import (
    METHODS,
    DirectMethod,
    DirectOutputMethod,
    FeatureMethod,
    InContextUnlearning,
    Method,
    OutputMethod,
    Plan,
)
from unsee.methods.ascent import GradientAscent
from unsee.methods.manu import ModalityAwareNeuronUnlearning
from unsee.methods.parts.tuned import Tuned, parameters_in
from unsee.models.batching import IGNORED, Batch, Batcher, answer_scores
from unsee.models.loading import Loaded, load_model, load_visual
from unsee.settings import from_text

# The contract, over the whole table -----------------------------------------------------------------------------------

FEATURES = {"steps": 6, "last_blocks": 2, "forget_pictures": 2, "retain_pictures": 4, "learning_rate": 5e-3}
OUTPUTS = {"steps": 3, "batch": 6, "learning_rate": 2e-3}
SCOPES = [OUTPUTS | {"scope": scope} for scope in ("visual", "language", "both")]


def usual(kind: type[Method]) -> dict[str, Any]:
    """Small values of those settings that most methods have."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    small = FEATURES if issubclass(kind, FeatureMethod) else OUTPUTS
    return {name: value for name, value in small.items() if name in known}


SMALL: dict[str, list[dict[str, Any]]] = {
    **{name: [usual(kind)] for name, kind in METHODS.items()},
    "nscvf": [FEATURES | {"threshold": 1e-2}],
    "manu": [{"vision_layers": 2, "language_layers": 1, "share": 0.3}],
    **dict.fromkeys(("ga", "graddiff", "mmunlearner"), SCOPES),
}
GENTLE: dict[str, dict[str, Any]] = {
    "nscvf-direct": {"strength_low": 1e-5, "strength_high": 1e-5},
    "manu": {"share": 0.2},
    "in-context": {},
}
UNTRAINED = (DirectMethod, DirectOutputMethod, InContextUnlearning)
VISUAL = {"llava": ("vision_tower.", "multi_modal_projector."), "qwen2_vl": ("visual.",)}  # parts of names


@dataclass(frozen=True)
class Case:
    """One method on one family."""

    family: str
    name: str
    settings: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.family} {self.name} {dict(self.settings).get('scope', '')}".strip()

    @property
    def kind(self) -> type[Method]:
        return METHODS[self.name]

    def but(self, **settings: Any) -> Case:
        return dataclasses.replace(self, settings=tuple((dict(self.settings) | settings).items()))


ALL = [
    Case(family, name, tuple(settings.items()))
    for number, (family, name) in enumerate(product(POCKETS, SMALL))
    for settings in (SMALL[name] if number < len(SMALL) or name == "ga" else SMALL[name][-1:])  # parts: once, and of ga
]
TRAINED = [case for case in ALL if not issubclass(case.kind, UNTRAINED)]
FAMILY_OF = {name: list(POCKETS)[number % len(POCKETS)] for number, name in enumerate(SMALL)}  # in turns
every_case = pytest.mark.parametrize("case", ALL, ids=str)
every_trained = pytest.mark.parametrize("case", TRAINED, ids=str)


def mostly_at_night(case: Case, *bf16: bool) -> Any:
    """By day on one family only: for what a method does, or a cast, and a family has no part in."""
    marks = [] if case.family == FAMILY_OF[case.name] else [pytest.mark.nightly]
    return pytest.param(case, *bf16, marks=marks, id="-".join([str(case), *(["bf16"] if bf16 else [])]))


every_method = pytest.mark.parametrize("case", [mostly_at_night(case) for case in TRAINED])
in_both_precisions = pytest.mark.parametrize(
    ("case", "bf16"),
    [*(pytest.param(case, False, id=f"{case}-fp32") for case in ALL), *(mostly_at_night(case, True) for case in ALL)],
)


@dataclass(frozen=True)
class Run:
    """One unlearning run: what it was given, what it wrote, and the model it held in memory at the end.

    Attributes:
        batches: how many batches of questions with answers it made.
        planned: the parameters that its plan says may change, by full name; none, if it has no plan.
    """

    case: Case
    method: Method
    source: Path
    out: Path
    manifest: dict[str, Any]
    student: Loaded
    batches: int
    planned: frozenset[str]

    @property
    def before(self) -> dict[str, Tensor]:
        return load_file(self.source / "model.safetensors")

    @property
    def after(self) -> dict[str, Tensor]:
        return load_file(self.out / "model.safetensors")

    @property
    def moved(self) -> set[str]:
        before, after = self.before, self.after
        assert before.keys() == after.keys()
        return {key for key in before if not torch.equal(before[key], after[key])}


Runner = Callable[..., Run]
Sources = Callable[..., Path]


@pytest.fixture(scope="module")
def sources(new_checkpoint: NewCheckpoint) -> Sources:
    """A tiny checkpoint of a family, in either precision. Read only."""

    @cache
    def make(family: str, bf16: bool = False) -> Path:
        return new_checkpoint(family=family, dtype=torch.bfloat16 if bf16 else torch.float32)

    return make


@pytest.fixture(scope="module")
def data(ragged_people: UnlearnData) -> UnlearnData:
    """Pictures of different sizes, which Qwen-VL keeps."""
    return ragged_people


@pytest.fixture(scope="module")
def carry_out(
    data: UnlearnData, forget: tuple[str, ...], sources: Sources, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    read = Batcher.for_training

    @cache
    def run(case: Case, seed: int = 0, bf16: bool = False, repetition: int = 0) -> Run:
        method, source = case.kind(**dict(case.settings)), sources(case.family, bf16)
        out = tmp_path_factory.mktemp("run") / "out"
        held: list[Loaded] = []
        batches: list[Batch] = []
        planned: set[str] = set()
        with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
            for opener in (load_model, load_visual):
                patch.setattr(
                    experiment, opener.__name__, lambda *a, opener=opener: held.append(opener(*a)) or held[-1]
                )
            patch.setattr(Batcher, "for_training", lambda *a: batches.append(read(*a)) or batches[-1])
            perform = Plan.carry_out
            patch.setattr(Plan, "carry_out", lambda plan, name: planned.update(plan.edited) or perform(plan, name))
            manifest = experiment.unlearn(
                str(source), experiment.EditRequest(data, forget, method, seed, gate=False), out
            )
        return Run(case, method, source, out, manifest, held[0], len(batches), frozenset(planned))

    return run


@cache
def opened(source: Path, dtype: torch.dtype | None = None) -> Loaded:
    """A model to look at, opened once."""
    return load_model(str(source), dtype)


def declared(run: Run) -> set[str]:
    """Tensors of the checkpoint that the method says it may change."""
    student = opened(run.source, torch.float32)
    names = set(run.planned)
    if isinstance(run.method, DirectMethod):
        names = {f"{layer}.weight" for layer in edited_layers(run)}
    elif isinstance(run.method, FeatureMethod):
        assert names <= {f"{layer}.weight" for layer in edited_layers(run)}, "what lies below is not there any more"
    elif isinstance(run.method, ModalityAwareNeuronUnlearning):
        names = pruned_weights(run.method, student)
    elif isinstance(run.method, Tuned):
        assert names == set(run.method.edited(student))
    return set(student.checkpoint_keys(dict.fromkeys(names)).values())


def pruned_weights(method: ModalityAwareNeuronUnlearning, student: Loaded) -> set[str]:
    """Parameters that pruning a neuron of any of its MLPs would touch."""
    return {name for mlp in method.mlps(student) for name in mlp.without(torch.arange(1))}


def edited_layers(run: Run) -> Collection[str]:
    """Full names of the layers a method on features says it edits."""
    visual = load_visual(str(run.source)).visual
    if isinstance(run.method, DirectMethod):
        return run.method.layers(visual)
    assert isinstance(run.method, FeatureMethod)
    return visual.editable(run.method.last_blocks)


def is_visual(key: str, family: str) -> bool:
    return any(part in key for part in VISUAL[family])


def test_every_method_is_under_contract() -> None:
    assert set(SMALL) == set(METHODS)
    assert {(case.family, case.name) for case in ALL} == set(product(POCKETS, METHODS))
    assert VISUAL.keys() == POCKETS.keys()


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
    """Spelt as `unsee list methods` prints it."""
    kind = METHODS[name]
    hints = get_type_hints(kind)
    beside = {"rule": ["threshold=0.5"]}  # what goes with another value of a setting
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        old = field.default
        choices = get_args(hints[field.name])
        wanted = next(c for c in choices if c != old) if choices else not old if isinstance(old, bool) else old
        changed = from_text(kind, [f"{field.name}={wanted}", *beside.get(field.name, [])])
        assert getattr(changed, field.name) == wanted
        assert type(getattr(changed, field.name)) is type(old)


@in_both_precisions
def test_only_the_declared_scope_moves(carry_out: Runner, case: Case, bf16: bool) -> None:
    run = carry_out(case, bf16=bf16)
    after, moved, expected = run.after, run.moved, declared(run)
    assert {t.dtype for t in after.values()} == {torch.bfloat16 if bf16 else torch.float32}
    assert moved <= expected
    assert bool(moved) == (case.name != "in-context")
    parts = {"visual": {True}, "language": {False}, "both": {True, False}}
    scope = "visual" if run.method.level == "features" else getattr(run.method, "scope", None)
    assert {is_visual(key, case.family) for key in moved} == {is_visual(key, case.family) for key in expected}
    assert (run.method.language_model == "changed") == any(not is_visual(key, case.family) for key in moved)
    assert (run.method.language_model == "not loaded") == (run.method.level == "features")
    assert scope is None or not expected or {is_visual(key, case.family) for key in expected} == parts[scope]
    assert all(tensor.isfinite().all() for tensor in after.values())


@in_both_precisions
def test_manifest_names_the_tensors_that_changed(carry_out: Runner, case: Case, bf16: bool) -> None:
    """The second run is so gentle that bfloat16 rounds some of its changes away."""
    gentle = case.but(**GENTLE.get(case.name, {"learning_rate": 1e-5}))
    for run in [carry_out(case, bf16=bf16), *([carry_out(gentle, bf16=True)] if bf16 else [])]:
        assert run.manifest["changed"] == sorted(run.moved)


@every_trained
def test_only_what_may_change_collects_gradients(carry_out: Runner, case: Case) -> None:
    run = carry_out(case)
    collecting = {name for name, p in run.student.model.named_parameters() if p.requires_grad}
    assert set(run.student.checkpoint_keys(dict.fromkeys(collecting)).values()) == declared(run)


@every_trained
def test_losses_are_finite(carry_out: Runner, case: Case) -> None:
    run = carry_out(case)
    (history,) = run.manifest["history"].values()
    assert [entry["step"] for entry in history] == [1, run.method.steps]  # type: ignore[attr-defined]
    assert all(len(entry) > 1 for entry in history)
    assert all(math.isfinite(value) for entry in history for value in entry.values())


@every_case
@torch.no_grad()
def test_what_must_be_forgotten_changes(
    carry_out: Runner, case: Case, data: UnlearnData, forget: tuple[str, ...]
) -> None:
    """How likely the true answers about its pictures are, token by token."""
    run = carry_out(case)
    examples = data.train.of(forget).pictured.examples

    def likelihood(loaded: Loaded) -> Tensor:
        scores, tokens, _ = answer_scores(loaded.model, loaded.batcher.for_training(examples))
        return scores.log_softmax(-1).gather(1, tokens[:, None])

    change = likelihood(load_model(str(run.out))) - likelihood(opened(run.source))
    assert change.abs().mean() > 0.03
    # on an untrained model whatever teaches retained or other answers teaches words first
    assert change.mean() < -0.005 or type(run.method) is not GradientAscent


@every_method
def test_nothing_but_steps_changes_a_weight(carry_out: Runner, case: Case) -> None:
    still = carry_out(case.but(learning_rate=1e-60))
    assert still.manifest["changed"] == []
    assert still.moved == set()


@every_method
def test_same_seed_same_weights_and_another_seed_others(carry_out: Runner, case: Case) -> None:
    first, again, other = carry_out(case), carry_out(case, repetition=1), carry_out(case, seed=1)
    assert first.out != again.out
    assert first.manifest["sha256"] == again.manifest["sha256"]
    assert first.manifest["sha256"] != other.manifest["sha256"]


@pytest.mark.parametrize("case", [case for case in ALL if case not in TRAINED], ids=str)
def test_what_is_not_trained_has_no_steps_and_no_chance(carry_out: Runner, case: Case) -> None:
    """Another strength makes other weights, another seed does not."""
    run, other = carry_out(case), carry_out(case, seed=1)
    assert run.out != other.out
    assert run.manifest["sha256"] == other.manifest["sha256"]
    assert run.manifest["history"] == {case.name: []}
    gentle = carry_out(case.but(**GENTLE[case.name]))
    assert (run.manifest["sha256"] != gentle.manifest["sha256"]) == bool(GENTLE[case.name])


@in_both_precisions
@torch.no_grad()
def test_plain_transformers_opens_the_result_and_says_the_same(
    carry_out: Runner, case: Case, bf16: bool, data: UnlearnData
) -> None:
    run = carry_out(case, bf16=bf16)
    plain = AutoModelForImageTextToText.from_pretrained(run.out).eval()
    ours, source = load_model(str(run.out)), opened(run.source)
    # the whole processor of Qwen-VL needs torchvision, for videos
    processor = (AutoProcessor if case.family == "llava" else ours.family.processor_class).from_pretrained(run.out)
    assert plain.dtype == (torch.bfloat16 if bf16 else torch.float32)
    example = data.test.pictured.examples[0]
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
    assert not torch.equal(said, source.model(**source.batcher.for_generation([example])).logits)
    spoken = plain.generate(**inputs, do_sample=False, max_new_tokens=9)[:, inputs["input_ids"].shape[1] :]
    assert ours.batcher.decode(spoken) == generate(ours, [example], longest=1)

    held = run.student.model.eval()  # as it was in memory when it was written
    if bf16:
        plain = plain.float()
        for parameter in held.parameters():
            parameter.copy_(parameter.bfloat16())
    images = {key: inputs[key] for key in ours.family.image_inputs}
    visual = ours.family.visual(plain)  # frozen blocks were given back after the run: they come from the checkpoint
    cut = len(visual.blocks) - (run.method.last_blocks if isinstance(run.method, FeatureMethod) else 0)
    below = visual.run(visual.enter(images), stop=cut)
    seen = run.student.visual.leave(run.student.visual.run(below, start=cut)).states
    stored = torch.cat(list(plain.get_image_features(**images).pooler_output))
    torch.testing.assert_close(seen, stored, rtol=1e-4, atol=1e-5)
    if run.method.level == "outputs":
        torch.testing.assert_close(held(**inputs).logits, plain(**inputs).logits, rtol=1e-4, atol=1e-5)


# Padding --------------------------------------------------------------------------------------------------------------


@every_case
def test_losses_of_answers_are_those_of_methods_under_the_next_test(carry_out: Runner, case: Case) -> None:
    """The others read no answer."""
    run = carry_out(case)
    assert (run.batches > 0) == isinstance(run.method, OutputMethod)


def padded(batch: Batch, left: int = 0, right: int = 0, label: int = IGNORED) -> Batch:
    """More columns of padding; whatever has one value per position grows along. With a label they are none: read."""
    shape = batch["input_ids"].shape
    fill = {"labels": label, "attention_mask": int(label != IGNORED)}
    return {
        key: F.pad(value, (left, right), value=fill.get(key, 0)) if value.shape == shape else value
        for key, value in batch.items()
    }


ON_ANSWERS = [case for case in TRAINED if issubclass(case.kind, OutputMethod)]


@pytest.mark.parametrize("case", ON_ANSWERS, ids=str)
@torch.no_grad()
def test_padding_changes_no_loss(
    sources: Sources, case: Case, data: UnlearnData, forget: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any phase, on a student that has moved away from its reference."""
    method, student = case.kind(**dict(case.settings)), load_model(str(sources(case.family)), torch.float32)
    counted = {f"token {label}": {"right": 7, "label": label} for label in (0, 9)}  # one may be as likely as the answer
    layouts = {"none": {}, "left": {"left": 7}, "right": {"right": 7}} | counted
    assert isinstance(method, OutputMethod)
    sets, prepared = (student, data.train.of(forget), data.train.without(forget)), {}
    for name in layouts:
        torch.manual_seed(0)
        prepared[name] = method.phases(*sets) if isinstance(method, Tuned) else method.plan(*sets).phases
    for parameter in student.model.parameters():
        parameter.add_(0.3 * parameter.std(correction=0) * torch.randn_like(parameter))
    read, found = Batcher.for_training, {}
    for name, layout in layouts.items():
        torch.manual_seed(1)
        monkeypatch.setattr(Batcher, "for_training", lambda *a, layout=layout: padded(read(*a), **layout))
        found[name] = torch.stack([value for phase in prepared[name] for value in phase.loss(phase.draw()).values()])
    assert (found["none"].abs() > 1e-3).all()
    for side in ("left", "right"):
        torch.testing.assert_close(found[side], found["none"], rtol=1e-4, atol=1e-6)
    unnoticed = [torch.isclose(found[name], found["none"], rtol=1e-3) for name in counted]
    assert not (unnoticed[0] & unnoticed[1]).any()


# The null space -------------------------------------------------------------------------------------------------------


def drifts(run: Run, data: UnlearnData, forget: tuple[str, ...]) -> dict[str, float]:
    """Relative change of every edited layer's outputs on retained pictures, from the files alone."""
    reference, edited = (load_model(str(folder), torch.float32) for folder in (run.source, run.out))
    layers = reference.visual.editable(FEATURES["last_blocks"])  # type: ignore[arg-type]
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: inputs.__setitem__(name, x[0].detach()))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        reference.visual.features(reference.batcher.images(list(data.train.without(forget).pictures)))
    for hook in hooks:
        hook.remove()
    found = {}
    for name, x in inputs.items():
        old, new = layers[name].weight.double(), edited.model.get_submodule(name).weight.double()
        x = x.flatten(0, -2).double()
        found[f"{name}.weight"] = ((x @ (new - old).T).norm() / (x @ old.T).norm()).item()
    return found


CERTIFIED = [case for case in ALL if case.name in ("nscvf", "nscvf-direct", "cvf")]
SOFT = next(case for case in CERTIFIED if case.name == "nscvf")
SPACES = [
    pytest.param(SOFT.but(threshold=1e-5), id="hardly any room"),
    pytest.param(SOFT.but(rule="energy"), id="hard cut"),
]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", [*CERTIFIED, *SPACES], ids=str)
def test_certificate_is_the_drift_of_what_was_written(
    carry_out: Runner, data: UnlearnData, forget: tuple[str, ...], case: Case, bf16: bool
) -> None:
    """Also after the cast to the stored precision, whose rounding knows no null space."""
    run = carry_out(case, bf16=bf16)
    measured, certificate = drifts(run, data, forget), run.manifest["certificate"]["layers"]
    assert certificate.keys() == {f"{layer}.weight" for layer in edited_layers(run)}
    found, before_cast = (
        {name: layer[key] for name, layer in certificate.items()} for key in ("drift_after_cast", "drift")
    )
    expected = pytest.approx({name: measured[name] for name in certificate}, rel=1e-2, abs=1e-6)
    assert found == expected
    assert (before_cast == found) == (not bf16)
    assert all((layer["bound"] is None) == (case.name == "cvf") for layer in certificate.values())
    if case.name != "cvf":
        assert all(layer["drift"] <= layer["bound"] for layer in certificate.values())
        closed = case.name == "nscvf-direct" or "rule" in dict(case.settings)
        assert all((layer["outside"] is not None) == closed for layer in certificate.values())
        assert all(layer["outside"] < 1e-6 for layer in certificate.values() if closed)


@pytest.mark.parametrize(("family", "layers"), [("llava", 14), ("qwen2_vl", 10)])
def test_null_space_keeps_the_drift_small(
    carry_out: Runner, data: UnlearnData, forget: tuple[str, ...], family: str, layers: int
) -> None:
    named = {case.name: case for case in CERTIFIED if case.family == family}
    constrained, free = (carry_out(named[name].but(variation="never")) for name in ("nscvf", "cvf"))
    kept, control = (drifts(run, data, forget) for run in (constrained, free))
    assert len(kept) == layers
    assert all(kept[name] < 0.3 * control[name] for name in kept)
    unseen = [run.manifest["certificate"]["tokens"]["unseen"]["measured"] for run in (constrained, free)]
    assert unseen[0] < 0.3 * unseen[1], "pictures that neither of them saw"


# Scopes ---------------------------------------------------------------------------------------------------------------


def test_unknown_scope_is_bad_input(loaded: Loaded) -> None:
    with pytest.raises(BadInput, match="scope=audio"):
        parameters_in(loaded, "audio")  # type: ignore[arg-type]


def test_scopes_divide_the_model(student: Loaded) -> None:
    visual, language, both = (parameters_in(student, scope) for scope in ("visual", "language", "both"))
    assert both.keys() == dict(student.model.named_parameters()).keys()
    assert visual.keys() | language.keys() == both.keys()
    assert not visual.keys() & language.keys()
    assert all(is_visual(name, student.family.name) for name in visual)
    assert "lm_head.weight" in language
