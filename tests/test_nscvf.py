"""The constrained methods through whole runs: every choice of the null space, and what an edit says about itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from studies import people_study
from torch import Tensor

from unsee.data.examples import Split, UnlearnData
from unsee.editing import features as on_features
from unsee.editing import unlearn as module
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.evaluation.predict import generate
from unsee.methods import FeatureMethod, FeatureStudy, Plan
from unsee.methods.cvf import ContrastiveObjective
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.models.anatomy import trainable
from unsee.models.loading import load_model
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace

NSCVF = NullSpaceConstrainedForgetting(
    steps=12, learning_rate=2e-3, last_blocks=1, forget_pictures=3, retain_pictures=6, rule="energy", threshold=0.05
)
DIRECT = DirectForgetting(strength_high=0.5)


@pytest.fixture
def study(checkpoint: Path, people: UnlearnData, forget: tuple[str, ...]) -> FeatureStudy:
    """One subject to forget, nine pictures of three others to keep; one block and the projector may be edited."""
    return people_study(checkpoint, people, forget)


# Every choice ---------------------------------------------------------------------------------------------------------

CHOICES: dict[str, dict[str, Any]] = {
    "energy": {},
    "relative": {"rule": "relative", "threshold": 1e-3},
    "rank": {"rule": "rank", "threshold": 0.5},
    "absolute": {"rule": "absolute", "threshold": 0.1},
    "soft": {"rule": "soft", "threshold": 0.01},
    "centred": {"centred": True},
    "stacked gradients": {"basis": "gradients_stacked"},
    "averaged gradients": {"basis": "gradients_averaged"},
    "some pictures": {"moment_pictures": 2},
    "muon": {"optimiser": "muon", "learning_rate": 1e-2},
    "projected gradients": {"projects": "gradient"},
    "projected gradients, soft": {"projects": "gradient", "rule": "soft", "threshold": 0.01},
}
EXACT = [name for name in CHOICES if "projected" not in name and name != "soft"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_runs_and_is_certified(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, choice: str
) -> None:
    """Steps stay inside whatever the space was cut from; projected gradients do not, and no choice leaves all free."""
    method = dataclasses.replace(NSCVF, **CHOICES[choice])
    manifest = unlearn(str(checkpoint), EditRequest(people, forget, method, 0, gate=False), tmp_path / "out")
    assert manifest["settings"] == dataclasses.asdict(method)
    layers = manifest["certificate"]["layers"].values()
    assert len(layers) == len(manifest["changed"]) == 8
    assert all(0 < layer["free"] < 1 for layer in layers)
    assert all(layer["drift"] > 0 for layer in layers)
    assert all(layer["drift"] <= layer["bound"] for layer in layers)
    if "soft" in choice:
        assert all(layer["outside"] is None for layer in layers)
    else:
        outside = [layer["outside"] for layer in layers]
        assert max(outside) < 1e-6 if choice in EXACT else min(outside) > 1e-3


def size_bound(method: NullSpaceConstrainedForgetting, moment: SecondMoment, before: Tensor, change: Tensor) -> float:
    """What the cut promises for any update of this size: sqrt(largest freed eigenvalue) |dW|, relative."""
    space, before = method.space(moment), before.detach().double()
    assert isinstance(space, NullSpace)
    freed = torch.linalg.eigvalsh(space.basis.T @ moment.mean @ space.basis)[-1]
    outputs = ((before @ moment.mean) * before).sum()
    return float((freed * change.detach().double().square().sum() / outputs).sqrt())


def test_projected_steps_keep_the_promise_of_the_cut_and_projected_gradients_break_it(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], study: FeatureStudy, tmp_path: Path
) -> None:
    before, promised = load_model(str(checkpoint)).visual.named_parameters(), {}
    moments = study.moments(study.visual.editable(1))
    for projects in ("step", "gradient"):
        method = dataclasses.replace(NSCVF, projects=projects, threshold=1e-3)
        manifest = unlearn(str(checkpoint), EditRequest(people, forget, method, 0, gate=False), tmp_path / projects)
        after = load_model(str(tmp_path / projects)).visual.named_parameters()
        promised[projects] = [
            layer["drift"]
            / size_bound(method, moments[name.removesuffix(".weight")], before[name], after[name] - before[name])
            for name, layer in manifest["certificate"]["layers"].items()
        ]
    assert max(promised["step"]) < 1.001 < 2 < min(promised["gradient"]), promised


def test_a_centred_space_leaves_the_mean_input_unprotected() -> None:
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)).double()
    inputs = inputs * torch.tensor([1.0, 1.0, 1.0, 1e-3, 1e-3, 0.0]) + torch.tensor([0.0, 0, 0, 0, 0, 5.0])
    moment = SecondMoment(6)
    moment.update(inputs)
    mean = torch.eye(6, dtype=torch.float64)[5:]
    for centred, left in ((True, 1.0), (False, 0.0)):
        space = dataclasses.replace(NSCVF, rule="relative", threshold=1e-3, centred=centred).space(moment)
        assert float(space.project(mean).norm()) == pytest.approx(left, abs=1e-3)
        assert float(space.project(torch.eye(6, dtype=torch.float64)[:3]).norm()) < 1e-2


def test_the_soft_rule_needs_a_threshold_and_the_absolute_one_any() -> None:
    assert dataclasses.replace(NSCVF, rule="absolute", threshold=5.0).threshold == 5
    for rule, threshold in (("soft", 0.0), ("energy", 1.5), ("energy", 1.0), ("rank", -0.1)):
        with pytest.raises(ValueError, match="threshold"):
            dataclasses.replace(NSCVF, rule=rule, threshold=threshold)


# What it is cut from --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_most", "taken"), [(4, [0, 3, 6]), (5, [0, 2, 4, 6, 8]), (0, [*range(9)]), (99, [*range(9)])]
)
def test_moments_are_of_evenly_spaced_pictures(study: FeatureStudy, at_most: int, taken: list[int]) -> None:
    assert len(study.retain) == 9
    layers = study.visual.editable(1)
    moments = dataclasses.replace(NSCVF, moment_pictures=at_most).moments(study)

    def of(pictures: list[int]) -> FeatureStudy:
        chosen = torch.tensor(pictures)
        kept = dataclasses.replace(study.retain, hidden=study.retain.hidden[chosen], tokens=study.retain.tokens[chosen])
        return dataclasses.replace(study, retain=kept)

    expected, first = of(taken).moments(layers), of([*range(len(taken))]).moments(layers)
    for name in layers:
        assert moments[name].tokens == expected[name].tokens
        torch.testing.assert_close(moments[name].total, expected[name].total)
        assert torch.allclose(moments[name].total, first[name].total) == (len(taken) == 9)


@pytest.mark.parametrize(("basis", "batches"), [("gradients_stacked", 3), ("gradients_averaged", 3)])
def test_gradients_are_those_of_telling_retained_pictures_apart(study: FeatureStudy, basis: str, batches: int) -> None:
    method = dataclasses.replace(NSCVF, basis=basis, retain_pictures=3, temperature=0.5)
    weights = study.visual.named_parameters()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    torch.manual_seed(0)
    moments = method.moments(study)
    assert all(torch.equal(weights[name], weight) for name, weight in before.items())
    assert all(weight.grad is None for weight in weights.values()), "no gradient is left for the first step"

    torch.manual_seed(0)
    trainable({f"{name}.weight": layer.weight for name, layer in study.visual.editable(1).items()}, study.visual.model)
    objective, found = ContrastiveObjective(method, study), {name: [] for name in moments}  # type: ignore[var-annotated]
    for pictures in torch.randperm(9).split(3):
        compared = study.direction(study.tail(study.retain.hidden[pictures]))
        own = study.direction(study.retain.tokens)[pictures]
        against = torch.cat([own, study.direction(study.forget.tokens)])
        chance = (compared @ against.T / 0.5).softmax(1)[range(3), range(3)]
        loss = -chance.log().mean()
        torch.testing.assert_close(loss, objective.contrast(pictures))
        for name in moments:
            (gradient,) = torch.autograd.grad(loss, weights[f"{name}.weight"], retain_graph=True)
            found[name].append(gradient.double())
    for name, gradients in found.items():
        assert len(gradients) == batches
        mean = torch.stack(gradients).mean(0)
        stacked, averaged = sum(g.T @ g for g in gradients), mean.T @ mean
        right, wrong = (stacked, averaged) if basis == "gradients_stacked" else (averaged, stacked)
        size = float(right.norm())
        assert float((moments[name].total - right).norm()) < 1e-3 * size
        assert float((moments[name].total - wrong).norm()) > 1e-2 * size


def test_it_cannot_be_planned_without_what_it_is_cut_from(study: FeatureStudy) -> None:
    with pytest.raises(ValueError, match="needs the second moments"):
        NSCVF.plan(study, None)
    NSCVF.plan(study, NSCVF.moments(study))


# What an edit says about itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [dataclasses.replace(NSCVF, variation="never"), DIRECT], ids=["nscvf", "nscvf-direct"]
)
def test_pictures_of_the_certificate_change_no_weight(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, method: FeatureMethod
) -> None:
    """Held-back pictures of those who stay; those of the target move the adaptive weight."""

    def weights(validation: Split, place: str) -> tuple[dict[str, Any], Any]:
        data = dataclasses.replace(people, validation=validation)
        manifest = unlearn(str(checkpoint), EditRequest(data, forget, method, 0), tmp_path / place)
        return manifest["sha256"], manifest["certificate"]["tokens"]["unseen"]

    target, others = people.validation.of(forget), people.validation.without(forget)
    all_seen, fewer, blind = (weights(*about) for about in ((people.validation, "a"), (target, "b"), (others, "c")))
    assert fewer[0] == all_seen[0] != blind[0]
    assert fewer[1] is None
    assert blind[1] is not None
    assert all_seen[1]["pictures"] == len(others.pictures)


@pytest.mark.parametrize("method", [NSCVF, DIRECT], ids=["nscvf", "nscvf-direct"])
def test_seconds_are_those_of_the_edit_alone(
    checkpoint: Path,
    people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: FeatureMethod,
) -> None:
    """By a clock that only these parts move: the edit's own by 1, what reads, certifies and writes by 1000."""
    now = [0.0]
    monkeypatch.setattr(on_features, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def slow(*given: Any, **named: Any) -> Any:
            now[0] += seconds
            return original(*given, **named)

        monkeypatch.setattr(owner, name, staticmethod(slow) if owner is FeatureStudy else slow)

    takes(FeatureStudy, "of", 1)
    takes(type(method), "moments", 1)
    takes(*((type(method), "solve") if method is DIRECT else (Plan, "carry_out")), 1)
    for place, name in ((module, "load_visual"), (on_features, "certify_edit"), (module, "write_edited")):
        takes(place, name, 1000)
    takes(FeatureStudy, "unseen", 1000)
    assert unlearn(str(checkpoint), EditRequest(people, forget, method, 0), tmp_path / "out")["seconds"] == 3
    assert now[0] == 4003


@torch.no_grad()
def test_the_closed_form_as_written_answers_as_in_memory(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    manifest = unlearn(str(checkpoint), EditRequest(people, forget, DIRECT, 0), tmp_path / "out")
    assert (manifest["method"], manifest["level"], len(manifest["changed"])) == ("nscvf-direct", "features", 2)
    before, held, written = load_model(str(checkpoint)), load_model(str(checkpoint)), load_model(str(tmp_path / "out"))
    parts = people.train.of(forget), people.train.without(forget), people.validation.of(forget)
    study = FeatureStudy.of(held.visual, held.batcher, *parts, DIRECT.last_blocks)
    for name, delta in DIRECT.solve(study, DIRECT.moments(study)).items():
        held.visual.named_parameters()[name].add_(delta)
    asked = people.test.pictured.examples
    said = [generate(loaded, asked, 8) for loaded in (before, held, written)]
    assert said[1] == said[2]
    batch = before.batcher.for_generation(asked[:4])
    logits = [loaded.model(**batch).logits for loaded in (before, held, written)]
    torch.testing.assert_close(logits[1], logits[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[2], rtol=1e-2, atol=1e-2)
