"""Whole runs on a pretended GPU, held against the same runs on the processor.

Not collected by itself: `test_device.py` runs it in a process of its own, for torch keeps a pretended device for good.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint
from night import by_day
from pretended import Misplaced, pretended_gpu
from relearning import SHORT
from safetensors.torch import load_file
from test_methods import SMALL
from tiny import TINIES

from unsee.attacks.probe import Probing, probe
from unsee.attacks.relearn_plan import AttackRequest
from unsee.attacks.relearn_run import relearn
from unsee.data.examples import UnlearnData
from unsee.editing.merge import merge
from unsee.editing.request import EditRequest
from unsee.editing.retain_free import fit_moments
from unsee.editing.unlearn import unlearn
from unsee.evaluation.engine import Engine, EngineRequest
from unsee.evaluation.engine.teacher_forcing import CachedExam
from unsee.evaluation.evaluate import EvaluationRequest, evaluate, measure
from unsee.evaluation.predict import generate
from unsee.methods import METHODS, Method
from unsee.methods.parts.features import FeatureStudy
from unsee.models.batching import Batcher, answer_loss
from unsee.models.loading import load_model, load_visual
from unsee.study.protocol import recite
from unsee.study.sequence import Examiner
from unsee.subspace.nullspace import NullSpace

NEAR = 0.05  # how far two edits may lie apart, relative to their size


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with pretended_gpu() as device:
        monkeypatch.setattr("unsee.device._chosen", str(device))
        yield device


def on_cpu(run: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unsee.device._chosen", "cpu")
        return run()


def apart(one: Path, other: Path, start: Path) -> float:
    """How far two edits of `start` lie apart, relative to the second. Torch goes other ways on a device: not 0."""
    first, second, before = (load_file(folder / "model.safetensors") for folder in (one, other, start))
    away = sum(float((first[name] - second[name]).square().sum()) for name in before)
    size = sum(float((second[name] - before[name]).square().sum()) for name in before)
    return (away / size) ** 0.5


UNLIKE = ("provenance", "seconds", "cost", "created", "command", "machine", "peak_memory_bytes", "path")


def alike(one: Any, other: Any, where: str = "") -> None:
    """The same results, but for rounding and for what says where and when they were made."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - set(UNLIKE):
            alike(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            alike(x, y, f"{where}/{i}")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=NEAR, abs=1e-3), where
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def data(ragged_people: UnlearnData) -> UnlearnData:
    return ragged_people


def small(name: str, **settings: Any) -> Method:
    """Two steps: enough for what happens between steps, and once in a while."""
    few = {"steps": 2} if "steps" in SMALL[name][-1] else {}
    return METHODS[name](**(SMALL[name][-1] | few | settings))


# The device itself ----------------------------------------------------------------------------------------------------


def test_it_refuses_what_a_gpu_refuses(gpu: torch.device) -> None:
    here, there = torch.ones(3, 3), torch.ones(3, 3, device=gpu)
    index, mask = torch.arange(2), torch.tensor([True, False, True])
    refused: list[Callable[[], Any]] = [
        lambda: here + there,
        lambda: there @ here,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: torch.where(there > 0, there, here),
        lambda: torch.isin(there, here),
        lambda: here[index.to(gpu)],
        lambda: here[mask.to(gpu)],
        lambda: there.__setitem__(index, here[:2]),
        lambda: here.add_(there),
        lambda: torch.zeros(()).add_(there.sum()),
        lambda: there.index_add_(0, torch.arange(3), there),
        lambda: torch.rand(3, device=gpu, generator=torch.Generator()),
        lambda: there.numpy(),
        lambda: torch.nn.functional.cross_entropy(there, torch.arange(3)),
        lambda: torch.nn.Linear(3, 3)(there),
    ]
    for attempt in refused:
        with pytest.raises(Misplaced):
            attempt()
    allowed: list[Callable[[], Any]] = [
        lambda: there + here.to(gpu),
        lambda: there * here.sum(),
        lambda: there[index],
        lambda: there[mask],
        lambda: here.copy_(there),
        lambda: there.__setitem__(slice(2), here[:2]),
        lambda: there.__setitem__(index, 2.0),
        there.tolist,
    ]
    for attempt in allowed:
        attempt()


def test_gradients_and_steps_are_those_of_the_processor(gpu: torch.device) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    moved, x = copy.deepcopy(plain).to(gpu), torch.randn(5, 4)
    for model, given in ((plain, x), (moved, x.to(gpu))):
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            model(given).square().mean().backward()
            optimiser.step()
    for one, other in zip(plain.parameters(), moved.parameters(), strict=True):
        assert other.device == gpu
        assert torch.allclose(one, other.cpu(), atol=1e-6)


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINIES)
def test_whatever_is_loaded_and_made_is_there(family: str, data: UnlearnData, new_checkpoint: NewCheckpoint) -> None:
    source, asked = str(new_checkpoint(family=family)), list(data.test.pictured)[:3]
    whole, alone = load_model(source), load_visual(source)
    kept = [*whole.model.parameters(), *whole.model.buffers(), *alone.visual.named_parameters().values()]
    images = alone.batcher.images(asked[0].images)
    made = [whole.batcher.for_training(asked), whole.batcher.for_generation(asked), images]
    assert {x.device.type for x in (*kept, *(x for batch in made for x in batch.values()))} == {"pretended"}
    with torch.no_grad():
        there = answer_loss(whole.model, made[0]).item()
        features = alone.visual.features(images).states
    here = on_cpu(lambda: load_model(source))
    assert there == pytest.approx(answer_loss(here.model, here.batcher.for_training(asked)).item(), rel=1e-4)
    assert features.device.type == "pretended"


@pytest.mark.parametrize("forgotten", ["batch", "null space", "subjects", "scores"])
def test_one_tensor_left_behind_is_noticed(
    forgotten: str, people: UnlearnData, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The negative control: unsee as it was before it knew of devices, in one place at a time."""
    method, forget = small("nscvf", steps=1, rule="energy"), people.choose("first:2")

    def run() -> None:
        if forgotten in ("batch", "scores"):
            generate_all = Engine(load_model(str(checkpoint)), [EngineRequest(e) for e in people.test.pictured][:4], 4)
            generate_all.run(generate_all.batches[0])
        else:
            unlearn(str(checkpoint), EditRequest(people, forget, method, 0, gate=False), tmp_path / "out")

    if forgotten == "batch":
        monkeypatch.setattr(Batcher, "_placed", lambda self, batch: batch)
    elif forgotten == "null space":
        plain = NullSpace.projection
        monkeypatch.setattr(NullSpace, "projection", lambda self, dtype, device=None: plain(self, dtype))
    elif forgotten == "subjects":
        read = FeatureStudy.of

        def of(*arguments: Any) -> FeatureStudy:
            study = read(*arguments)
            retain = dataclasses.replace(study.retain, subject=study.retain.subject.cpu())
            return dataclasses.replace(study, retain=retain)

        monkeypatch.setattr(FeatureStudy, "of", staticmethod(of))
    else:
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)
    with pytest.raises(Misplaced):
        run()


BY_DAY = ("nscvf", "vkd", "manu", "npo", "vgid", "mmunlearner")  # one of each kind
BY_NIGHT = [pytest.param(name, marks=pytest.mark.nightly) for name in METHODS if name not in BY_DAY]


@pytest.mark.parametrize("name", [*BY_DAY, *BY_NIGHT])
def test_methods(name: str, data: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path) -> None:
    source = new_checkpoint()
    forget = data.choose("first:2")

    def run(out: Path) -> dict[str, Any]:
        return unlearn(str(source), EditRequest(data, forget, small(name), 0, gate=False), out)

    there = run(tmp_path / "gpu")
    here = on_cpu(lambda: run(tmp_path / "cpu"))
    assert (there["machine"]["device"], here["machine"]["device"]) == ("pretended:0", "cpu")
    if name != "in-context":
        assert apart(tmp_path / "gpu", tmp_path / "cpu", source) < NEAR


@pytest.mark.parametrize("family", by_day("qwen2_5_vl", "llava", "llava_next", "qwen2_vl"))
def test_what_is_asked(
    family: str, people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path, gpu: torch.device
) -> None:
    models, forget = {"vanilla": str(new_checkpoint(family=family))}, people.choose("first:1")

    def run(out: Path) -> Any:
        return evaluate(EvaluationRequest(models, people, forget), out).to_json()

    there, here = run(tmp_path / "gpu"), on_cpu(lambda: run(tmp_path / "cpu"))
    assert there["provenance"]["machine"] == here["provenance"]["machine"] | {
        "device": str(gpu),
        "accelerator": "pretended",
    }
    for file in ("results.json", "measures.json", "features.json"):
        alike(json.loads((tmp_path / "gpu" / file).read_text()), json.loads((tmp_path / "cpu" / file).read_text()))


@pytest.mark.parametrize("family", by_day("qwen2_5_vl", "llava", "llava_next", "qwen2_vl"))
def test_exam(family: str, data: UnlearnData, new_checkpoint: NewCheckpoint) -> None:
    source, asked = str(new_checkpoint(family=family)), list(data.test.pictured)[:12]

    def run() -> list[bool]:
        loaded = load_model(source)
        exam = CachedExam(loaded, asked, len(loaded.visual.blocks) - 1)
        return exam.right(exam.tokens()), recite(loaded, asked), generate(loaded, asked, 4)

    alike(*({"all": repr(x)} for x in (run()[::2], on_cpu(run)[::2])))


@pytest.mark.parametrize("attacker", by_day("full", "lora", "visual"))
def test_relearn(attacker: str, people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path) -> None:
    models = {role: str(new_checkpoint(seed=seed)) for seed, role in enumerate(("vanilla", "gold"))}
    settings = dataclasses.replace(SHORT, attacker=attacker)

    def run(out: Path) -> Any:
        return relearn(models, AttackRequest(people, people.subjects[:2], settings, 3), out)

    run(tmp_path / "gpu"), on_cpu(lambda: run(tmp_path / "cpu"))
    alike(*(json.loads((tmp_path / where / "relearn.json").read_text()) for where in ("gpu", "cpu")))


def test_probe(people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path) -> None:
    models = {role: str(new_checkpoint(seed=seed)) for seed, role in enumerate(("vanilla", "gold"))}
    settings = Probing(pictures=2, test_pictures=2, others=3, depths=2)

    def run(out: Path) -> Any:
        return probe(models, people, people.choose("first:1"), settings, 3, out)

    alike(run(tmp_path / "gpu"), on_cpu(lambda: run(tmp_path / "cpu")))


def test_statistics(people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path) -> None:
    source = new_checkpoint()
    forget = people.choose("first:1")
    kept = dataclasses.replace(people, train=people.train.without(forget))

    def run(out: Path) -> None:
        fit_moments(str(source), kept, out / "moments", replay_group=2)
        method = small("nscvf")
        options = {"gate": False, "remember": True}
        unlearn(
            str(source),
            EditRequest(people, forget, method, 0, moments=out / "moments", retain_free=True, **options),
            out / "free",
        )
        unlearn(str(source), EditRequest(people, forget, method, 0, **options), out / "one")
        second = people.subjects[1:2]
        unlearn(str(out / "one"), EditRequest(people, second, method, 0, first=str(source), **options), out / "two")
        unlearn(str(source), EditRequest(people, second, method, 0, gate=False), out / "other")
        merge(str(source), [str(out / "one"), str(out / "other")], people, method, out / "merged")

    run(tmp_path / "gpu")
    on_cpu(lambda: run(tmp_path / "cpu"))
    for name in ("free", "one", "merged"):  # what is left for "two" is mostly rounding
        assert apart(tmp_path / "gpu" / name, tmp_path / "cpu" / name, source) < NEAR


SETTINGS = {
    "nscvf": [
        {"rule": "soft", "basis": "gradients_averaged", "projects": "gradient"},
        {"basis": "gradients_stacked", "positives": "mixture", "negatives": "all", "contrast_weight": 1.0},
        {"positives": "perturbed", "features": "pooled", "optimiser": "muon", "learning_rate": 1e-2},
        {"positives": "look_alike", "features": "blocks", "relearning_weight": 0.0},
    ],
    "cvf": [{"positives": "centre"}, {"positives": "transport"}],
    "vkd": [{"trains": "mlp", "layers": "last", "free": 1.0}],
    "ga": [{"lora_rank": 2}],
    "salun": [{"lora_rank": 2}],
    "vgid": [{"along": "teacher_answer"}],
    "npo": [{"likelihood": "token_mean"}],
}


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "settings"), [(name, one) for name, some in SETTINGS.items() for one in some])
def test_settings(
    name: str, settings: dict[str, Any], data: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path
) -> None:
    blocks = settings.get("features") == "blocks" or "positives" in settings  # asks for pictures of one size
    source = str(new_checkpoint(family="llava" if blocks else "qwen2_5_vl"))
    unlearn(source, EditRequest(data, data.choose("first:2"), small(name, **settings), 0, gate=False), tmp_path / "out")


def test_sequence_and_gradients(people: UnlearnData, new_checkpoint: NewCheckpoint, tmp_path: Path) -> None:
    source, other = str(new_checkpoint()), str(new_checkpoint(seed=1))
    examiner = Examiner(source, people, people.subjects[:1], last_blocks=1)
    examiner.everything()
    examiner.load(other)
    examiner.some(people.subjects[0])
    measure(EvaluationRequest({"one": source}, people, people.subjects[:1], gradients=True), tmp_path / "measured")
