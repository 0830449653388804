"""Unlearning when the pictures of those who stay are gone: what is stored of them, and that nothing else is read."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import Stretched, ragged
from torch.nn import functional as F

from unsee.checkpoint.folder import MANIFEST
from unsee.cli import main
from unsee.data.examples import SPLITS, Example, Split, UnlearnData
from unsee.data.people import people_data
from unsee.editing import retain_free
from unsee.editing.request import EditRequest
from unsee.editing.retain_free import Replayed, fit_moments
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.methods import FeatureMethod, FeatureStudy, Method
from unsee.methods.ascent import GradientDifference
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.models.loading import load_visual
from unsee.subspace.moments import load_extra, load_moments, save_moments

NewCheckpoint = Callable[..., Path]

FEW = {"steps": 3, "forget_pictures": 2, "retain_pictures": 6}
METHODS: dict[str, FeatureMethod] = {
    "nscvf": NullSpaceConstrainedForgetting(**FEW),
    "cvf": ContrastiveVisualForgetting(**FEW),
    "nscvf-direct": DirectForgetting(last_blocks=2),
}
CVF = METHODS["cvf"]
KINDS = ("moments", "replay")


@pytest.fixture(scope="module")
def folk() -> UnlearnData:
    """Seven people: one or two to be forgotten, groups of two or more of the others."""
    return people_data(count=7, seed=9, train=4, validation=2, test=1, strangers=1)


@pytest.fixture(scope="module")
def target(folk: UnlearnData) -> tuple[str, ...]:
    return folk.choose("first:1")


@pytest.fixture(scope="module")
def kept(folk: UnlearnData, target: tuple[str, ...]) -> UnlearnData:
    """What statistics are taken from: everybody but the target."""
    return dataclasses.replace(folk, train=folk.train.without(target))


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def model(request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint) -> Path:
    """Read only."""
    return new_checkpoint(family=request.param)


@pytest.fixture(scope="module")
def qwen(new_checkpoint: NewCheckpoint) -> Path:
    """Read only; it keeps the sizes of pictures."""
    return new_checkpoint(family="qwen2_vl")


@pytest.fixture(scope="module")
def stored(model: Path, kept: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    path = tmp_path_factory.mktemp("stored") / "kept.safetensors"
    fit_moments(str(model), kept, path, replay_group=2)
    return path


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain_free, "SAMPLES", 300)


@dataclasses.dataclass(frozen=True)
class Gone:
    """A picture that is no longer there."""

    label: str

    def open(self) -> Image.Image:
        raise FileNotFoundError(f"{self.label} was opened")


def without_pictures(data: UnlearnData, subjects: tuple[str, ...]) -> UnlearnData:
    """The same questions, pictures of everybody but `subjects` gone."""

    def gone(e: Example) -> Example:
        if e.image is None or e.subject in subjects:
            return e
        return dataclasses.replace(e, image=Gone(e.image.label))

    parts = {name: Split(tuple(map(gone, data.split(name)))) for name in (*SPLITS, "strangers")}
    return dataclasses.replace(data, **parts)


def study_of(model: Path, data: UnlearnData, forget: tuple[str, ...]) -> FeatureStudy:
    """Of the pictures of `forget` alone, as an edit without retained pictures begins."""
    loaded = load_visual(str(model))
    parts = data.train.of(forget), Split(), data.validation.of(forget)
    return FeatureStudy.of(loaded.visual, loaded.batcher, *parts, 2)


def replayed(stored: Path, model: Path, data: UnlearnData, forget: tuple[str, ...]) -> FeatureStudy:
    """The same with samples in the place of retained pictures."""
    torch.manual_seed(0)
    return Replayed.load(stored, load_visual(str(model)), 2).into(study_of(model, data, forget), data.train.of(forget))


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, 0, 1, 2, 3])
def test_the_file_says_what_is_in_it(checkpoint: Path, kept: UnlearnData, tmp_path: Path, group: int | None) -> None:
    path = tmp_path / "kept.safetensors"
    about = fit_moments(str(checkpoint), kept, path, replay_group=group)
    assert about.items() <= load_moments(path)[1].items()
    assert {"weights", "data", "pictures", "image_backend", "moments"} <= about.keys()
    assert (about["pictures"], about["data"]) == ("24", kept.fingerprint)
    assert about["moments"].endswith("stores no single subject's mean")
    assert ("replay" in about) == bool(load_extra(path)) == (group is not None)

    extra, tensors = load_extra(path), load_file(path)
    size = {"replay": sum(t.nbytes for t in extra.values())}
    size["moments"] = sum(t.nbytes for key, t in tensors.items() if key.endswith((".total", ".sum")))
    for kind in KINDS if group is not None else KINDS[:1]:
        assert re.search(r"(\d+) bytes; ", about[kind])[1] == str(size[kind])  # type: ignore[index]
    if group is not None:
        said = "identifies single subjects" if group == 1 else "stores no single subject's mean"
        assert about["replay"].endswith(f"; {said}")
        assert ("biometric template" in about["replay"]) == (group == 1)
        assert len(extra["replay.means"]) == {0: 1, 1: 6, 2: 3, 3: 2}[group]
        assert json.loads(about["replay_shape"])["last_blocks"] == 2


def test_layers_statistics_are_the_same_with_and_without_replay(
    checkpoint: Path, kept: UnlearnData, target: tuple[str, ...], folk: UnlearnData, tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in ("plain", "replay", "others")}
    fit_moments(str(checkpoint), kept, paths["plain"])
    fit_moments(str(checkpoint), kept, paths["replay"], replay_group=2)
    fit_moments(str(checkpoint), folk.only(target), paths["others"])
    plain, replay, others = (load_moments(path)[0] for path in paths.values())
    assert set(plain) == set(replay) == set(others)
    for name in plain:
        assert torch.equal(plain[name].total, replay[name].total)
        assert not torch.equal(plain[name].total, others[name].total)  # control


def test_the_distribution_is_of_hidden_states_of_the_kept(
    stored: Path, model: Path, kept: UnlearnData, folk: UnlearnData, target: tuple[str, ...]
) -> None:
    """Its overall mean is theirs, at the cut; with the target's pictures it would be another."""
    extra = load_extra(stored)
    mean = extra["replay.shares"] @ extra["replay.means"]
    loaded = load_visual(str(model))
    cut = len(loaded.visual.blocks) - 2

    def seen(data: UnlearnData) -> torch.Tensor:
        hidden, _ = retain_free.look(loaded.visual, loaded.batcher, list(data.train.pictures), cut, "")
        return hidden.stack().flatten(1).mean(0)

    torch.testing.assert_close(mean, seen(kept), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mean, seen(folk), atol=1e-3, rtol=1e-2)


# An edit without them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_looks_at_no_picture_of_those_who_stay(
    model: Path, stored: Path, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path, method: str
) -> None:
    gone, out = without_pictures(folk, target), tmp_path / "out"
    manifest = unlearn(
        str(model), EditRequest(gone, target, METHODS[method], 0, moments=stored, gate=False, retain_free=True), out
    )
    assert manifest["retain_free"] is json.loads((out / MANIFEST).read_text())["retain_free"] is True
    old, new = (load_file(folder / "model.safetensors") for folder in (model, out))
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == set(manifest["changed"]) != set()
    language = {key for key in old if re.match(r"(model\.)?(language_model|layers|embed_tokens)|lm_head", key)}
    assert len(language) > 10
    assert not changed & language

    with pytest.raises(FileNotFoundError, match="was opened"):  # control: else they are looked at
        unlearn(str(model), EditRequest(gone, target, CVF, 0, gate=False), tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("method", METHODS)
def test_its_certificate_is_of_the_stored_statistics(
    checkpoint: Path, folk: UnlearnData, kept: UnlearnData, target: tuple[str, ...], tmp_path: Path, method: str
) -> None:
    stored, others, out = tmp_path / "kept", tmp_path / "others", tmp_path / "out"
    fit_moments(str(checkpoint), kept, stored, replay_group=2)
    fit_moments(str(checkpoint), folk.only(target), others)
    manifest = unlearn(
        str(checkpoint),
        EditRequest(folk, target, METHODS[method], 0, moments=stored, gate=False, retain_free=True),
        out,
    )
    layers = manifest["certificate"]["layers"]
    old, new = (load_file(folder / "model.safetensors") for folder in (checkpoint, out))
    keys = load_visual(str(checkpoint)).checkpoint_keys([f"{name}.weight" for name in load_moments(stored)[0]])
    assert sorted(keys[f"{name}.weight"] for name in _names(layers)) == manifest["changed"]

    def drift(path: Path, name: str) -> float:
        moment, key = load_moments(path)[0][name].total, keys[f"{name}.weight"]
        before, change = old[key].double(), new[key].double() - old[key].double()
        return float(((change @ moment * change).sum() / (before @ moment * before).sum()).sqrt())

    moments = load_moments(stored)[0]
    found = {name: layer["drift_after_cast"] for name, layer in zip(_names(layers), layers.values(), strict=True)}
    assert {layer["tokens"] for layer in layers.values()} <= {moments[name].tokens for name in found}
    assert found == pytest.approx({name: drift(stored, name) for name in found}, rel=1e-5)
    assert found != pytest.approx({name: drift(others, name) for name in found}, rel=1e-2)  # control
    assert manifest["certificate"]["tokens"]["unseen"] is None


def _names(layers: dict[str, Any]) -> list[str]:
    return [name.removesuffix(".weight") for name in layers]


def test_the_same_seed_gives_the_same_edit(
    model: Path, stored: Path, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    def weights(out: str, seed: int) -> bytes:
        unlearn(
            str(model),
            EditRequest(folk, target, CVF, seed, moments=stored, gate=False, retain_free=True),
            tmp_path / out,
        )
        return (tmp_path / out / "model.safetensors").read_bytes()

    first = weights("first", 1)
    assert weights("again", 1) == first
    assert weights("other", 2) != first


def test_a_usual_edit_is_not_called_retain_free(
    checkpoint: Path, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    assert (
        unlearn(str(checkpoint), EditRequest(folk, target, CVF, 0, gate=False), tmp_path / "out")["retain_free"]
        is False
    )


# Samples --------------------------------------------------------------------------------------------------------------


def test_samples_stand_for_groups_in_the_place_of_subjects(
    model: Path, stored: Path, folk: UnlearnData, target: tuple[str, ...]
) -> None:
    study = replayed(stored, model, folk, target)
    assert study.subjects == (*target, "group 0", "group 1", "group 2")
    assert study.retain.subject.unique().tolist() == [1, 2, 3]
    assert len(study.retain) == len(study.retain.tokens) > 50
    torch.testing.assert_close(study.reference_tail(study.retain.hidden).states, study.retain.tokens.states)
    assert (study.retain.hidden.lengths[0], study.retain.hidden.grids[0]) == (
        study.forget.hidden.lengths[0],
        study.forget.hidden.grids[0],
    )


def test_samples_that_look_like_a_target_are_left_out(
    checkpoint: Path, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "all"
    fit_moments(str(checkpoint), folk, stored, replay_group=1)  # the target among them

    def likeness() -> torch.Tensor:
        """Cosine of samples to the target's centroid, around the mean of all samples that were drawn."""
        chosen = replayed(stored, checkpoint, folk, target)
        centre = everything.flat(everything.retain.tokens).mean(0)
        own = everything.flat(everything.forget.tokens).mean(0) - centre
        return F.cosine_similarity(everything.flat(chosen.retain.tokens) - centre, own[None])

    with monkeypatch.context() as patch:
        patch.setattr(retain_free, "TARGET_LIKE", 2.0)
        everything = replayed(stored, checkpoint, folk, target)
        all_of_them = likeness()
    assert len(all_of_them) == 300
    assert all_of_them.max() > 0.65  # control: some do look like the target
    assert likeness().max() < 0.65
    assert len(likeness()) == (all_of_them < 0.65).sum()


def test_visible_attributes_are_read_out_of_samples(
    model: Path, stored: Path, folk: UnlearnData, target: tuple[str, ...]
) -> None:
    study, about = replayed(stored, model, folk, target), load_moments(stored)[1]
    looks = json.loads(about["looks"])
    assert len(study.attributes) == len(looks) > 0
    extra = load_extra(stored)
    for table in study.attributes:
        assert len(table) == len(study.forget) + len(study.retain)
        assert table.sum(1).eq(1).all()
    assert len(extra["looks.bias"]) == sum(len(classes) for classes in looks.values())
    assert any(len(table[len(study.forget) :].unique(dim=0)) > 1 for table in study.attributes)  # not all the same


def test_the_read_out_tells_more_than_the_most_common_answer(
    checkpoint: Path, kept: UnlearnData, stored_llava: Path
) -> None:
    loaded = load_visual(str(checkpoint))
    _, tokens = retain_free.look(loaded.visual, loaded.batcher, list(kept.train.pictures), 0, "")
    extra = load_extra(stored_llava)
    tables = retain_free.attributes([kept.train], {})
    scores = (tokens.mean() @ extra["looks.weight"] + extra["looks.bias"]).split([t.shape[1] for _, _, t in tables], 1)
    right = [float(t.gather(1, s.argmax(1, keepdim=True)).mean()) for s, (_, _, t) in zip(scores, tables, strict=True)]
    common = [float(t.mean(0).max()) for _, _, t in tables]
    assert sum(right) > sum(common) + 0.1 * len(tables)


@pytest.fixture
def stored_llava(checkpoint: Path, kept: UnlearnData, tmp_path: Path) -> Path:
    fit_moments(str(checkpoint), kept, tmp_path / "kept", replay_group=2)
    return tmp_path / "kept"


# What does not fit ----------------------------------------------------------------------------------------------------


def refused(
    says: str, model: Path, data: UnlearnData, forget: tuple[str, ...], out: Path, moments: Path | None, method: Method
) -> None:
    """One line, and nothing is written."""
    with pytest.raises(BadInput, match=says) as error:
        unlearn(str(model), EditRequest(data, forget, method, 0, moments=moments, gate=False, retain_free=True), out)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_only_what_can_do_without_them_may(
    checkpoint: Path, stored_llava: Path, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    case = checkpoint, folk, target, tmp_path / "out"
    refused("--retain-free: needs --moments FILE", *case, None, CVF)
    refused("--retain-free: method graddiff needs retained questions", *case, stored_llava, GradientDifference())
    refused("no such file", *case, tmp_path / "gone", CVF)
    unlearn(
        str(checkpoint),
        EditRequest(folk, target, CVF, 0, moments=stored_llava, gate=False, retain_free=True),
        tmp_path / "out",
    )


def test_a_file_without_replay_statistics_is_refused(
    checkpoint: Path, kept: UnlearnData, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    fit_moments(str(checkpoint), kept, tmp_path / "plain")
    says = "plain: no replay statistics in it; fit it again with `unsee moments fit --replay-group 2`"
    refused(says, checkpoint, folk, target, tmp_path / "out", tmp_path / "plain", CVF)


def test_a_damaged_distribution_is_refused(
    checkpoint: Path, stored_llava: Path, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    moments, about = load_moments(stored_llava)
    extra = load_extra(stored_llava)
    case = checkpoint, folk, target, tmp_path / "out", tmp_path / "new"
    for change, says in (
        ({"replay.axes": torch.ones(3, 4)}, "--moments .*new: parts of the replay distribution do not fit together"),
        ({"replay.shares": None}, "--moments .*new: replay distribution without 'shares'; fit it again"),
    ):
        damaged = {key: value for key, value in (extra | change).items() if value is not None}
        save_moments(dict(moments), tmp_path / "new", about, damaged)
        refused(says, *case, CVF)
    save_moments(dict(moments), tmp_path / "new", {**about, "replay_shape": "{"}, extra)
    refused("--moments .*new: .*fit it again", *case, CVF)


def test_another_depth_is_refused(
    checkpoint: Path, kept: UnlearnData, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    path, out = tmp_path / "one", tmp_path / "out"
    fit_moments(str(checkpoint), kept, path, last_blocks=1, replay_group=2)
    says = "is for last_blocks=1, not 2; fit it again with --last-blocks 2"
    refused(says, checkpoint, folk, target, out, path, CVF)
    fits = dataclasses.replace(CVF, last_blocks=1)
    unlearn(
        str(checkpoint), EditRequest(folk, target, fits, 0, moments=path, gate=False, retain_free=True), out
    )  # control


@pytest.mark.parametrize("method", ["cvf", "nscvf"])
def test_another_model_is_refused(
    checkpoint: Path,
    new_checkpoint: NewCheckpoint,
    stored_llava: Path,
    folk: UnlearnData,
    target: tuple[str, ...],
    tmp_path: Path,
    method: str,
) -> None:
    other = new_checkpoint(seed=1)
    refused("taken from another model", other, folk, target, tmp_path / "out", stored_llava, METHODS[method])


def test_pictures_of_another_size_are_refused(
    qwen: Path, kept: UnlearnData, folk: UnlearnData, target: tuple[str, ...], tmp_path: Path
) -> None:
    def smaller(e: Example) -> Example:
        return e if e.image is None else dataclasses.replace(e, image=Stretched(e.image, (32, 32)))

    fit_moments(str(qwen), kept, tmp_path / "kept", replay_group=2)
    shrunk = dataclasses.replace(folk, train=Split(tuple(map(smaller, folk.train))))
    case = tmp_path / "out", tmp_path / "kept", CVF
    refused("kept: taken from pictures of another size", qwen, shrunk, target, *case)


def test_statistics_of_pictures_of_several_sizes_cannot_be_replayed(
    qwen: Path, checkpoint: Path, kept: UnlearnData, tmp_path: Path
) -> None:
    uneven = ragged(kept)
    with pytest.raises(BadInput, match=r"pictures of different sizes; a replay distribution needs one size"):
        fit_moments(str(qwen), uneven, tmp_path / "kept", replay_group=2)
    assert not (tmp_path / "kept").exists()
    fit_moments(str(qwen), uneven, tmp_path / "kept")  # control: without replay they may differ
    fit_moments(str(checkpoint), uneven, tmp_path / "llava", replay_group=2)  # and a model that makes them alike


# Whom it may name -----------------------------------------------------------------------------------------------------


def test_everybody_may_be_forgotten_if_nobody_is_needed(folk: UnlearnData) -> None:
    everybody = ",".join(folk.subjects)
    assert folk.choose(everybody, all_may_go=True) == folk.subjects
    with pytest.raises(BadInput, match="names all 7 subjects"):
        folk.choose(everybody)


def test_only_some_subjects_are_left(folk: UnlearnData) -> None:
    two = folk.choose("first:2")
    left = folk.only(two)
    assert left.subjects == left.validation.subjects == left.test.subjects == two
    assert left.strangers == Split()
    assert (tuple(left.names), left.source) == (two, folk.source)
    assert left.fingerprint != folk.fingerprint
    assert folk.only(folk.subjects).train == folk.train


def run(arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments.split())
    return int(ending.value.code or 0)


def test_from_the_command_line_after_the_pictures_are_deleted(
    checkpoint: Path,
    folk: UnlearnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    number = {subject: f"person{i}" for i, subject in enumerate(folk.subjects)}
    for i, (picture, (question, *_)) in enumerate(folk.train.pictures.items()):
        place = tmp_path / "photos" / number[question.subject] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.open().save(place)
    fit = f"moments fit --model {checkpoint} --data photos --without person0,person1 --replay-group 2 --out kept"
    assert run(fit) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^moments: .* bytes; stores no single subject's mean$", printed, re.MULTILINE)
    assert re.search(r"^replay: 2 means, .* bytes; stores no single subject's mean$", printed, re.MULTILINE)
    for place in number.values():
        if place not in ("person0", "person1"):
            shutil.rmtree(tmp_path / "photos" / place)

    command = (
        f"unlearn --model {checkpoint} --data photos --forget person0,person1 --method cvf --set steps=3 --no-gate"
    )
    assert run(f"{command} --out out --moments kept --retain-free") == 0
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (manifest["retain_free"], manifest["forget"]) == (True, ["person0", "person1"])
    capsys.readouterr()
    assert run(f"{command} --out more") == 2
    assert re.fullmatch(r"unsee: --forget names all 2 subjects of .*\n", capsys.readouterr().err)
    assert run(f"{command} --out more --retain-free") == 2
    assert re.fullmatch(r"unsee: --retain-free: needs --moments FILE .*\n", capsys.readouterr().err)
    assert not (tmp_path / "more").exists()
    assert run(fit.replace("group 2", "group -1").replace("--out kept", "--out new")) == 2
    assert "--replay-group" in capsys.readouterr().err
