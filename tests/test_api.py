"""unsee from Python: what `import unsee` costs, models in memory and by path, methods of one's own, errors."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

import unsee
from unsee.api import in_python
from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput, GateFailed
from unsee.methods import METHODS, DirectMethod, FeatureStudy, Method
from unsee.methods.parts.tuned import Tuned
from unsee.models.anatomy import VisualModule
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded
from unsee.subspace.moments import SecondMoment
from unsee.training.loop import Phase

NewModel = Callable[..., tuple[PreTrainedModel, ProcessorMixin]]
NSCVF = METHODS["nscvf"](steps=12, learning_rate=5e-4, forget_pictures=3, retain_pictures=6, threshold=0.05)  # type: ignore[call-arg]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Importing ------------------------------------------------------------------------------------------------------------


def test_importing_unsee_loads_nothing_heavy() -> None:
    code = (
        "import sys, unsee; print(*unsee.__all__, unsee.__version__); assert 'torch' not in sys.modules; unsee.METHODS"
    )
    code += "; assert 'torch' in sys.modules"  # control
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"unlearn", "evaluate", "verdict", "report", "load_data", "METHODS"} <= set(done.stdout.split())


def test_what_is_listed_is_there_and_nothing_else() -> None:
    assert all(getattr(unsee, name) is not None for name in unsee.__all__)
    assert set(dir(unsee)) == set(unsee.__all__)
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        unsee.forget  # noqa: B018


# Unlearning -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_model_in_memory_ends_as_its_checkpoint_does(
    new_model: NewModel, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, family: str
) -> None:
    model, processor = new_model(family)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    before = weights(model)
    on_disk = unsee.unlearn(tmp_path / "model", people, forget, method=NSCVF, out=tmp_path / "out", seed=3)
    assert on_disk.path == tmp_path / "out"
    assert on_disk.model is None
    held = unsee.unlearn(model, people, forget, method=NSCVF, processor=processor, seed=3)
    assert (held.model, held.path) == (model, None)
    after = weights(model)
    reopened = weights(AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto"))
    assert all(torch.equal(after[name], reopened[name]) for name in after)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert len(moved) == len(held.manifest["changed"]) > 0  # the control: something did happen
    assert not any("language_model" in name or "lm_head" in name for name in moved)
    assert held.manifest["in_memory"]
    assert not on_disk.manifest["in_memory"]


def test_bfloat16_in_memory_stays_so(new_model: NewModel, people: UnlearnData, forget: tuple[str, ...]) -> None:
    model, processor = new_model("llava")
    model.bfloat16()
    before = weights(model)
    unsee.unlearn(model, people, forget, method=NSCVF, processor=processor, gate=False)
    after = weights(model)
    assert {p.dtype for p in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_a_model_in_memory_is_as_it_was_where_the_gate_refuses(
    new_model: NewModel, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    model, processor = new_model("llava")
    before = weights(model)
    wreck = METHODS["cvf"](steps=5, learning_rate=1.0)  # type: ignore[call-arg]
    with pytest.raises(GateFailed):
        unsee.unlearn(model, people, forget, method=wreck, processor=processor)
    assert all(torch.equal(before[name], p) for name, p in weights(model).items())
    unsee.unlearn(model, people, forget, method=wreck, processor=processor, gate=False)  # control
    assert any(not torch.equal(before[name], p) for name, p in weights(model).items())


def test_an_instruction_reaches_the_processor_in_memory(
    new_model: NewModel, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    model, processor = new_model("llava")
    before, template = weights(model), processor.chat_template
    unsee.unlearn(model, people, forget, method="in-context", processor=processor, gate=False)
    assert processor.chat_template.endswith(template)
    assert len(processor.chat_template) > len(template)
    assert all(torch.equal(before[name], p) for name, p in weights(model).items())


def test_data_by_its_source_is_data_loaded(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    source = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"
    assert unsee.load_data(source).fingerprint == people.fingerprint
    made = [
        unsee.unlearn(checkpoint, data, "first:1", method=NSCVF, out=tmp_path / out, seed=3).manifest
        for data, out in ((source, "a"), (people, "b"))
    ]
    assert made[0]["sha256"] == made[1]["sha256"]


# A method of one's own ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shrinking(DirectMethod):
    """Makes the last block's weights smaller. As in a notebook: registered nowhere."""

    name: ClassVar[str] = "shrinking"
    paper: ClassVar[str] = "nobody's"
    last_blocks: int = 1
    moment_pictures: int = 8
    share: float = 0.1

    def layers(self, visual: VisualModule) -> dict[str, nn.Linear]:
        return visual.editable(self.last_blocks)

    def solve(self, study: FeatureStudy, moments: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
        return {
            f"{name}.weight": -self.share * layer.weight.detach() for name, layer in self.layers(study.visual).items()
        }


@dataclass(frozen=True)
class Recalling(Tuned):
    """Trains on pictured and text questions of retained people in one batch."""

    name: ClassVar[str] = "recalling"
    paper: ClassVar[str] = "nobody's"
    steps: int = 2
    learning_rate: float = 1e-3
    batch: int = 8

    def phases(self, student: Loaded, forget: Split, retain: Split) -> list[Phase]:
        both = [e for e in retain if e.image is None][:4] + [e for e in retain if e.image is not None][:4]
        batch = student.batcher.for_training(both)
        return [Phase("retain", lambda: batch, lambda b: {"retain": answer_loss(student.model, b)})]


@pytest.mark.parametrize("method", [Shrinking(), Recalling()], ids=lambda method: str(method.name))
def test_a_method_of_ones_own_needs_no_registry(
    checkpoint: Path, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, method: Method
) -> None:
    assert method.name not in unsee.METHODS
    made = unsee.unlearn(checkpoint, people, forget, method=method, out=tmp_path / "out", gate=False)
    assert made.manifest["method"] == method.name
    assert made.manifest["settings"] == dataclasses.asdict(method)  # type: ignore[call-overload]
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    assert sorted(key for key in before if not torch.equal(before[key], after[key])) == made.manifest["changed"] != []


# Evaluating, judging, reporting ---------------------------------------------------------------------------------------


def test_evaluation_of_models_in_memory_and_of_their_files_is_one(
    new_model: NewModel, people: UnlearnData, forget: tuple[str, ...], tmp_path: Path
) -> None:
    (one, processor), (other, _) = new_model("llava"), new_model("llava", seed=3)
    held = {"vanilla": one, "gold": other}
    files: dict[str, str | Path | PreTrainedModel] = {role: tmp_path / role for role in held}
    for role, model in held.items():
        for part in (model, processor):
            part.save_pretrained(tmp_path / role)
    from_files = unsee.evaluate(files, people, forget, out=tmp_path / "results")
    in_memory = unsee.evaluate(held, people, forget, processor=processor)
    for role in held:
        for results in (from_files, in_memory):
            results[role].pop("cost")
        assert from_files[role] == in_memory[role]
    assert from_files["vanilla"] != from_files["gold"]  # the control
    page = unsee.report(tmp_path / "results")
    assert page == tmp_path / "results" / "report.html"
    assert page.is_file()


def test_the_lines_of_the_readme(
    new_model: NewModel, people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On random models, which no gate could judge."""
    page = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"```python\n(import unsee\n.*?)```", page, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    for subject, name in zip(people.subjects, ("ada", "bob", "cleo", "dora"), strict=True):
        Path("photos", name).mkdir(parents=True)
        for number, picture in enumerate(people.train.of([subject]).pictures):
            picture.open().save(f"photos/{name}/{number}.png")
    for seed, role in enumerate(("mine", "gold")):
        for part in new_model("llava", seed=seed):
            part.save_pretrained(f"models/{role}")
    monkeypatch.setattr("unsee.editing.gate.FeatureGate._recognised", lambda *_: 1.0)
    exec(lines, {})
    assert Path("runs/python/report.html").is_file()
    assert Path("models/without-ada/unsee.json").is_file()


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, d, o: unsee.unlearn(m, d, "nobody", out=o), "forget: unknown subject 'nobody'"),
        (
            lambda m, d, o: unsee.unlearn(m, d, "first:1", method="magic", out=o),
            "method magic: unknown; expected one of",
        ),
        (lambda m, d, o: unsee.unlearn(m, d, "first:1"), "out: missing"),
        (lambda m, d, o: unsee.unlearn("./gone", d, "first:1", out=o), "model ./gone: no such folder"),
        (lambda m, d, o: unsee.unlearn(m, "gone", "first:1", out=o), "data 'gone': no such data"),
        (lambda m, d, o: unsee.unlearn(m, d, "first:1", out=m), "exists; choose another place or add overwrite=True"),
        (
            lambda m, d, o: unsee.unlearn(m, d, "first:1", method="ga", retain_free=True, out=o),
            "retain_free: method ga",
        ),
        (lambda m, d, o: unsee.unlearn(m, d, "first:1", device="tpu", out=o), "device tpu: expected auto, cpu"),
        (lambda m, d, o: unsee.evaluate({"a": "./gone"}, d, "first:1"), "model ./gone: no such folder"),
        (lambda m, d, o: unsee.verdict(o), "measures.json: cannot be read"),
        (lambda m, d, o: unsee.report(o), "results.json: not found"),
        (lambda m, d, o: unsee.load_data("people:count=0"), "data people: count='0'"),
    ],
)
def test_errors_name_the_argument(
    checkpoint: Path, people: UnlearnData, tmp_path: Path, call: Callable[[Path, UnlearnData, Path], Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        call(checkpoint, people, tmp_path / "out")
    assert "--" not in re.sub("`[^`]*`", "", str(refused.value))  # commands in backticks stay as they are
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_needs_its_processor(
    new_model: NewModel, people: UnlearnData, forget: tuple[str, ...]
) -> None:
    with pytest.raises(BadInput, match="processor: missing"):
        unsee.unlearn(new_model("llava")[0], people, forget)


def test_messages_in_python() -> None:
    assert in_python("--retain-free: needs --moments FILE from `unsee moments fit --replay-group 2`") == (
        "retain_free: needs moments FILE from `unsee moments fit --replay-group 2`"
    )
    assert in_python("nothing was written. Use --no-gate") == "nothing was written. Use gate=False"
    assert in_python("2026-001 -- a dash, a--b") == "2026-001 -- a dash, a--b"  # control: these are no flags
