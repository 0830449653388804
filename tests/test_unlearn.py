"""A whole unlearning run: what it reads, what it writes, and when it writes nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pixels_of
from safetensors.torch import load_file

from unsee.checkpoint.folder import MANIFEST, CheckpointFolder, sha256_of
from unsee.data.examples import Example, Split, UnlearnData
from unsee.editing import gate as gates
from unsee.editing import unlearn as module
from unsee.editing.gate import AnswerGate, FeatureGate
from unsee.editing.request import EditRequest
from unsee.editing.retain_free import fit_moments
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput, GateFailed
from unsee.evaluation.answers import is_correct
from unsee.evaluation.predict import generate, longest_answer
from unsee.methods import METHODS, FeatureMethod, FeatureStudy, Method
from unsee.methods.ascent import GradientAscent, GradientDifference
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.models.loading import Loaded, load_model, load_visual
from unsee.settings import from_text

NewCheckpoint = Callable[..., Path]

NSCVF = NullSpaceConstrainedForgetting(
    steps=12, learning_rate=5e-4, forget_pictures=3, retain_pictures=6, rule="energy", threshold=0.05
)
DIRECT = DirectForgetting(strength_high=0.5)
WRECKING = ContrastiveVisualForgetting(steps=5, learning_rate=1.0)
GENERAL = Example("What is the capital of Norway?", "Oslo", "geography", None, "general")


def without(people: UnlearnData, subjects: Sequence[str]) -> UnlearnData:
    return dataclasses.replace(people, train=people.train.without(subjects))


def contents(folder: Path) -> dict[str, str]:
    return {item.name: sha256_of(item) for item in folder.iterdir()}


# A run that ends well -------------------------------------------------------------------------------------------------


def test_nscvf_from_a_checkpoint_to_a_checkpoint(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    before = contents(checkpoint)
    out = tmp_path / "deep" / "out"
    manifest = unlearn(str(checkpoint), EditRequest(people, forget, NSCVF, 3), out)
    assert contents(checkpoint) == before
    assert json.loads((out / MANIFEST).read_text()) == json.loads(json.dumps(manifest))
    assert contents(out).keys() == before.keys() | {MANIFEST, "README.md"}

    assert (manifest["kind"], manifest["method"], manifest["level"]) == ("unlearned", "nscvf", "features")
    assert manifest["settings"] == dataclasses.asdict(NSCVF)
    assert manifest["seed"] == 3
    assert manifest["forget"] == list(forget)
    assert manifest["data"] == {"source": people.source, "fingerprint": people.fingerprint}
    assert manifest["base"]["sha256"] == CheckpointFolder(checkpoint).hashes()
    assert manifest["sha256"] == CheckpointFolder(out).hashes()
    assert manifest["image_backend"] in ("pillow", "torchvision")
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 1e7
    assert {"versions", "machine", "commit", "dirty", "created", "command"} < manifest.keys()
    assert len(manifest["certificate"]["layers"]) == 14
    assert [entry["step"] for entry in manifest["history"]["nscvf"]] == [1, 10, 12]
    assert "recognised" in manifest["history"]["nscvf"][1]

    old, new = (load_file(folder / "model.safetensors") for folder in (checkpoint, out))
    changed = sorted(key for key in old if not torch.equal(old[key], new[key]))
    assert manifest["changed"] == changed
    assert len(changed) == 14
    assert not [item.name for item in out.parent.iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("method", [NSCVF, GradientDifference(steps=1, batch=48)], ids=["nscvf", "graddiff"])
def test_only_pictures_it_may_see_are_looked_at(
    checkpoint: Path,
    people: UnlearnData,
    forget: tuple[str, ...],
    seen_pictures: set[bytes],
    tmp_path: Path,
    method: Method,
) -> None:
    """Dials see held-back pictures of the target, certificates those of others, nothing sees test pictures."""
    unlearn(str(checkpoint), EditRequest(people, forget, method, 0, gate=method is NSCVF), tmp_path / "out")
    allowed = pixels_of(people.train.pictures)
    if method is NSCVF:
        allowed |= pixels_of(people.validation.pictures)
    assert seen_pictures == allowed
    assert not seen_pictures & pixels_of((*people.test.pictures, *people.strangers.pictures))


def test_feature_methods_never_open_the_language_model(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Loaded:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(module, "load_model", refuse)
    unlearn(str(checkpoint), EditRequest(people, forget, NSCVF, 0), tmp_path / "out")
    with pytest.raises(AssertionError, match="whole model"):
        unlearn(str(checkpoint), EditRequest(people, forget, GradientAscent(steps=1), 0), tmp_path / "out")


def test_an_older_result_is_replaced_whole(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "older").touch()
    unlearn(str(checkpoint), EditRequest(people, forget, NSCVF, 0), tmp_path / "out")
    assert not (tmp_path / "out" / "older").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


# Stored statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_blocks", [None, 2])
@pytest.mark.parametrize("method", [NSCVF, DIRECT], ids=["nscvf", "nscvf-direct"])
def test_stored_moments_serve_as_well_as_the_pictures(
    checkpoint: Path,
    people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path: Path,
    method: FeatureMethod,
    last_blocks: int | None,
) -> None:
    file = tmp_path / "moments"
    about = fit_moments(str(checkpoint), without(people, forget), file, last_blocks)
    assert about["pictures"] == "9"
    fresh = unlearn(str(checkpoint), EditRequest(people, forget, method, 0), tmp_path / "fresh")
    stored = unlearn(str(checkpoint), EditRequest(people, forget, method, 0, moments=file), tmp_path / "stored")
    new = [load_file(tmp_path / name / "model.safetensors") for name in ("fresh", "stored")]
    for key, tensor in new[0].items():
        torch.testing.assert_close(new[1][key], tensor, rtol=0, atol=1e-5)
    for name, layer in fresh["certificate"]["layers"].items():
        assert stored["certificate"]["layers"][name]["drift"] == pytest.approx(layer["drift"], rel=1e-3)

    fit_moments(str(checkpoint), without(people, people.subjects[1:]), file, last_blocks)  # the control
    unlearn(str(checkpoint), EditRequest(people, forget, method, 0, moments=file, gate=False), tmp_path / "other")
    other = load_file(tmp_path / "other" / "model.safetensors")
    changed = fresh["changed"]
    assert not any(torch.allclose(other[key], new[0][key], rtol=0, atol=1e-4) for key in changed)


def test_moments_hold_no_picture(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    """Sums over all of them: nothing in the file grows with their number."""
    shapes = []
    for left_out in (forget, people.subjects[:2]):
        fit_moments(str(checkpoint), without(people, left_out), tmp_path / "moments")
        stored = load_file(tmp_path / "moments")
        shapes.append({name: tuple(tensor.shape) for name, tensor in stored.items()})
        for name, tensor in stored.items():
            if name.endswith(".total"):
                torch.testing.assert_close(tensor, tensor.T, rtol=1e-12, atol=1e-12)
                assert stored[name.replace(".total", ".sum")].shape == tensor.shape[:1]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("wrong", ["model", "layers", "kind", "nothing"])
def test_moments_that_do_not_fit_are_bad_input(
    checkpoint: Path,
    new_checkpoint: NewCheckpoint,
    people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path: Path,
    wrong: str,
) -> None:
    file = tmp_path / "moments"
    if wrong == "model":
        fit_moments(str(new_checkpoint(seed=1)), without(people, forget), file)
    elif wrong == "layers":
        fit_moments(str(checkpoint), without(people, forget), file, last_blocks=1)
    elif wrong == "kind":
        shutil.copyfile(checkpoint / "model.safetensors", file)
    words = {
        "model": "another model",
        "layers": "holds no layer",
        "kind": "not a moments file",
        "nothing": "no such file",
    }
    with pytest.raises(BadInput, match=f"--moments .*{words[wrong]}"):
        unlearn(str(checkpoint), EditRequest(people, forget, NSCVF, 0, moments=file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_moments_of_nothing_are_bad_input(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    blind = dataclasses.replace(people, train=people.train.text_only)
    with pytest.raises(BadInput, match="no training pictures"):
        fit_moments(str(checkpoint), blind, tmp_path / "moments")
    assert not list(tmp_path.iterdir())


# Gates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [WRECKING, DirectForgetting(strength_low=1e3, strength_high=1e3, threshold=1)],
    ids=["cvf", "nscvf-direct"],
)
def test_feature_gate_writes_nothing(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, method: FeatureMethod
) -> None:
    out = tmp_path / "out"
    with pytest.raises(GateFailed, match="nothing was written"):
        unlearn(str(checkpoint), EditRequest(people, forget, method, 0), out)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "older").touch()
    with pytest.raises(GateFailed):
        unlearn(str(checkpoint), EditRequest(people, forget, method, 0), out)
    assert [item.name for item in out.iterdir()] == ["older"]
    unlearn(str(checkpoint), EditRequest(people, forget, method, 0, gate=False), out)
    assert (out / MANIFEST).exists()


@pytest.mark.parametrize("also", [(), (GENERAL,)], ids=["people", "people and general knowledge"])
def test_feature_gate_notices_lost_pictures(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], also: tuple[Example, ...]
) -> None:
    loaded = load_visual(str(checkpoint))
    retain = Split((*people.train.without(forget), *also))
    study = FeatureStudy.of(
        loaded.visual, loaded.batcher, people.train.of(forget), retain, people.validation.of(forget), 2
    )
    gate = FeatureGate(study)
    gate.check()
    with torch.no_grad():
        for parameter in loaded.visual.projector.parameters():
            parameter.mul_(-1)
    with pytest.raises(GateFailed, match="retained pictures"):
        gate.check()


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Example], str]]:
    """What a model says: one function per round of questions."""
    rounds: list[Callable[[Example], str]] = []

    def generate(_: Loaded, asked: Sequence[Example], longest: int) -> list[str]:
        answer = rounds.pop(0)
        return [answer(e) for e in asked]

    monkeypatch.setattr(gates, "generate", generate)
    return rounds


def truth(e: Example) -> str:
    return f"{e.answer}."


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [
        (truth, truth, True),
        (truth, lambda e: "no idea" if e.probe == "identity" else e.answer, False),
        (truth, lambda e: "", False),
        (truth, lambda e: "no no no no", False),
        (truth, lambda e: f"{e.answer} {e.answer} {e.answer}", False),
    ],
    ids=["unharmed", "lost", "empty", "repeating", "right but repeating"],
)
def test_answer_gate(
    loaded: Loaded,
    people: UnlearnData,
    forget: tuple[str, ...],
    says: list[Callable[[Example], str]],
    before: Callable[[Example], str],
    after: Callable[[Example], str],
    passes: bool,
) -> None:
    says += [before, after]
    gate = AnswerGate(loaded, people.validation.without(forget))
    if passes:
        gate.check()
    else:
        with pytest.raises(GateFailed, match="nothing was written"):
            gate.check()


def test_answer_gate_writes_nothing_and_asks_about_retained_pictures_only(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Example] = []

    def generate(_: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
        asked.extend(examples)
        return [truth(e) if len(asked) == len(examples) else "" for e in examples]

    monkeypatch.setattr(gates, "generate", generate)
    with pytest.raises(GateFailed, match=r"right answers .* went from 100% to 0%"):
        unlearn(str(checkpoint), EditRequest(people, forget, GradientDifference(steps=1), 0), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert set(asked) == set(people.validation.without(forget).pictured)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(
    "method",
    [
        ContrastiveVisualForgetting(steps=1, learning_rate=1e38),
        GradientAscent(steps=1, learning_rate=1e38, scope="visual"),
    ],
    ids=["cvf", "ga"],
)
def test_weights_that_are_not_finite_are_never_written(
    checkpoint: Path,
    people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path: Path,
    says: list[Callable[[Example], str]],
    method: Method,
    gate: bool,
) -> None:
    """The loss is looked at before a step, so the last step needs its own look."""
    says.append(truth)
    with pytest.raises(GateFailed):
        unlearn(str(checkpoint), EditRequest(people, forget, method, 0, gate=gate), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_anybody_can_see_is_not_to_be_forgotten(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Split] = []
    phases = GradientAscent.phases
    monkeypatch.setattr(GradientAscent, "phases", lambda self, *a: (asked.append(a[1]), phases(self, *a))[1])
    unlearn(str(checkpoint), EditRequest(people, forget, GradientAscent(steps=1), 0, gate=False), tmp_path / "out")
    own = people.train.of(forget)
    assert {e.probe for e in own.pictured} == {"identity", "fact", "attribute"}
    assert asked[0].examples == own.probing("identity", "fact", "general").examples
    looks = dataclasses.replace(people, train=Split((*people.train.without(forget), *own.probing("attribute"))))
    with pytest.raises(BadInput, match="nothing but visible attributes"):
        unlearn(str(checkpoint), EditRequest(looks, forget, GradientAscent(steps=1), 0, gate=False), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nscvf", "ga"])
@pytest.mark.parametrize("problem", ["nobody", "text only", "everybody", "no retained pictures"])
def test_sets_without_pictures_are_bad_input(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, kind: str, problem: str
) -> None:
    pictureless = dataclasses.replace(people, train=Split((*people.train.text_only, *people.train.of(forget))))
    data, chosen, which = {
        "nobody": (people, ("somebody-else",), "forget"),
        "text only": (dataclasses.replace(people, train=Split((*people.train, GENERAL))), ("geography",), "forget"),
        "everybody": (people, people.subjects, "retain"),
        "no retained pictures": (pictureless, forget, "retain"),
    }[problem]
    with pytest.raises(BadInput, match=f"the {which} set has no training pictures"):
        unlearn(str(checkpoint), EditRequest(data, chosen, METHODS[kind](), 0), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_forget_set_without_validation_pictures_is_no_trouble(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    data = dataclasses.replace(people, validation=Split())
    plain = dataclasses.replace(NSCVF, variation="never")
    for method, looked_at in ((NSCVF, True), (plain, False)):  # varied pictures stand in where there are few
        history = unlearn(str(checkpoint), EditRequest(data, forget, method, 0), tmp_path / "out")["history"]["nscvf"]
        assert ("recognised" in history[1]) == looked_at
    unlearn(str(checkpoint), EditRequest(data, forget, GradientDifference(steps=1), 0, gate=False), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("cvf", "last_blocks=99"),
        ("cvf", "last_blocks=-1"),
        ("cvf", "adapt_every=0"),
        ("cvf", "learning_rate=-1"),
        ("cvf", "forget_pictures=0"),
        ("nscvf", "threshold=0"),
        ("nscvf", "rule=cosine"),
        ("nscvf", "basis=outputs"),
        ("nscvf", "moment_pictures=-1"),
        ("nscvf-direct", "rule=soft"),
        ("nscvf-direct", "last_blocks=99"),
        ("cvf", "nearest_share=1.5"),
        ("cvf", "positives=nobody"),
        ("ga", "batch=0"),
        ("ga", "scope=audio"),
    ],
)
def test_settings_that_cannot_be_are_bad_input(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, name: str, setting: str
) -> None:
    def configure_and_run() -> None:
        method = from_text(METHODS[name], [setting] if name == "nscvf-direct" else ["steps=1", setting])
        unlearn(str(checkpoint), EditRequest(people, forget, method, 0), tmp_path / "out")

    with pytest.raises(BadInput):
        configure_and_run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["same path", "a link to it", "a folder around it"])
def test_the_input_is_never_the_output(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, how: str
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "models" / "vanilla")
    out = model.parent if how == "a folder around it" else model
    if how == "a link to it":
        out = tmp_path / "link"
        out.symlink_to(model)
    before = contents(model)
    with pytest.raises(BadInput):
        unlearn(str(model), EditRequest(people, forget, NSCVF, 0), out)
    assert contents(model) == before


# The point of it all --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nscvf", "nscvf-direct", "cvf"])
def test_a_model_forgets_a_face_and_nothing_else(
    class_photos: UnlearnData, taught: Path, tmp_path: Path, name: str
) -> None:
    """Pictures nobody trained on, answers from the checkpoint as written; control: the model before."""
    data, target = class_photos, class_photos.subjects[2:3]
    unlearn(str(taught), EditRequest(data, target, METHODS[name](), 0), tmp_path / "out")

    def said(folder: Path) -> dict[str, list[str]]:
        loaded = load_model(str(folder))
        asked = {
            "target": data.test.of(target).probing("identity"),
            "others": data.test.without(target).probing("identity"),
            "text": data.train.text_only,
        }
        longest = longest_answer(loaded, data.train.examples)
        return {part: generate(loaded, split.examples, longest) for part, split in asked.items()}

    def named(answers: dict[str, list[str]], part: str, split: Split) -> float:
        asked = split.probing("identity")
        right = [is_correct(text, e.answer, data.names.values()) for text, e in zip(answers[part], asked, strict=True)]
        return sum(right) / len(right)

    before, after = said(taught), said(tmp_path / "out")
    scores = {
        part: tuple(named(answers, part, split) for answers in (before, after))
        for part, split in (("target", data.test.of(target)), ("others", data.test.without(target)))
    }
    assert min(scores["target"][0], scores["others"][0]) > 0.6, scores
    assert scores["target"][1] < 0.35, scores
    assert scores["others"][1] > scores["others"][0] - 0.15, scores
    assert after["text"] == before["text"]
