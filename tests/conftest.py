"""What many tests share: four generated people and tiny random models, built from configurations alone."""

from __future__ import annotations

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: tests run on the processor, as CI does
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny import TINY, ragged, tiny
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

from unsee.data.examples import ImageSource, Split, UnlearnData
from unsee.data.people import people_data
from unsee.lab.base import BaseRecipe
from unsee.lab.build import Recipe, build_pocket
from unsee.lab.pocket import Shape
from unsee.lab.teach import TeachRecipe
from unsee.methods.parts.base import Plan
from unsee.methods.parts.tuned import Tuned
from unsee.models.anatomy import Family
from unsee.models.loading import Loaded, load_model
from unsee.storage import exclusive

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSEE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test pulls the plug: what is written need not reach the disk. Calls are counted and made to fail as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


DRAWN = Figure.savefig


def _sketch(figure: Figure, file: Any, **_: Any) -> None:
    file.write(f'<svg xmlns="http://www.w3.org/2000/svg"><!-- {len(figure.axes)} axes --></svg>')


@pytest.fixture(scope="session", autouse=True)
def _sketches() -> Iterator[None]:
    """Figures are painted, and not laid out as SVG, which took most of the time of whatever ends with a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _sketch)
        yield


@contextmanager
def whole_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", DRAWN)
        yield


@pytest.fixture
def drawings() -> Iterator[None]:
    """For tests of what figures show."""
    with whole_figures():
        yield


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes from a server that has imported what they need: a fresh one takes five seconds for that."""
    if "forkserver" in multiprocessing.get_all_start_methods():  # not on Windows
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["unsee.evaluation.score", "unsee.editing.unlearn"])
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.fixture
def readings() -> None:
    """For tests of the line that says how many files of some data were read."""


@pytest.fixture(autouse=True)
def _no_readings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """That line is in the way of tests of what else is said."""
    if "readings" not in request.fixturenames:
        monkeypatch.setattr("unsee.data.sources._tell", lambda data: None)


@pytest.fixture(scope="session")
def people() -> UnlearnData:
    return people_data(count=4, seed=5, train=3, validation=2, test=2, strangers=2)


@pytest.fixture(scope="session")
def ragged_people(people: UnlearnData) -> UnlearnData:
    """The same four people on pictures of different sizes and shapes."""
    return ragged(people)


@pytest.fixture(scope="session")
def forget(people: UnlearnData) -> tuple[str, ...]:
    return people.choose("first:1")


@pytest.fixture(scope="session")
def tiny_shape() -> Shape:
    return TINY


NewModel = Callable[..., tuple[PreTrainedModel, ProcessorMixin]]
NewCheckpoint = Callable[..., Path]
Open = Callable[[str], Loaded]


@pytest.fixture(scope="session")
def new_model(people: UnlearnData) -> NewModel:
    """`tiny.tiny` with words for these people."""

    def make(
        family: str = "llava", seed: int = 0, layer: int | None = None, strategy: str = "default"
    ) -> tuple[PreTrainedModel, ProcessorMixin]:
        model, processor = tiny(family, people, seed)
        if layer is not None:
            model.config.vision_feature_layer = layer
            model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = strategy
        return model, processor

    return make


@pytest.fixture(scope="session")
def new_checkpoint(new_model: NewModel, tmp_path_factory: pytest.TempPathFactory) -> NewCheckpoint:
    """Such a model on disk, as `save_pretrained` writes it."""

    def make(dtype: torch.dtype = torch.float32, shard: str = "1GB", **about: int | str) -> Path:
        model, processor = new_model(**about)
        folder = tmp_path_factory.mktemp("checkpoint") / "model"
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        processor.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(new_checkpoint: NewCheckpoint) -> Path:
    """Read only: shared by the whole session."""
    return new_checkpoint()


@pytest.fixture(scope="session")
def checkpoint_bf16(new_checkpoint: NewCheckpoint) -> Path:
    """Read only: shared by the whole session."""
    return new_checkpoint(dtype=torch.bfloat16)


SCHOOL = Recipe(
    shape=Shape(vision_width=48, vision_blocks=3, language_width=48, language_blocks=2),
    base=BaseRecipe(steps=120, pairs=24, strangers=60, pictures_per_stranger=4),
    teach=TeachRecipe(steps=200, pictures=20, text_steps=60, text_rows=24),
)  # some seconds


@pytest.fixture(scope="session")
def class_photos() -> UnlearnData:
    """Six people, enough pictures to learn them from."""
    return people_data(count=6, seed=7, train=12, validation=6, test=12, strangers=2)


@pytest.fixture(scope="session")
def school() -> Recipe:
    return SCHOOL


@pytest.fixture(scope="session")
def taught(class_photos: UnlearnData, school: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pocket model that knows them; for slow tests. Read only, and taught once for all test processes."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    place /= "taught"
    place.mkdir(exist_ok=True)
    with exclusive(place / "lock", wait=True):
        if not (place / "model").exists():
            build_pocket("llava", class_photos, 0, place / "model", recipe=school)
    return place / "model"


@pytest.fixture
def loaded(checkpoint: Path) -> Loaded:
    """The shared checkpoint, opened anew: a test may change it."""
    return load_model(str(checkpoint))


def pixels_of(pictures: Iterable[ImageSource]) -> set[bytes]:
    return {picture.open().tobytes() for picture in pictures}


@pytest.fixture
def seen_pictures(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Pixels of every picture that was turned into tensors."""
    pixels: set[bytes] = set()
    original = Family.encode_images

    def spy(self: Family, processor: Any, pictures: list[Image.Image]) -> Any:
        pixels.update(picture.tobytes() for picture in pictures)
        return original(self, processor, pictures)

    monkeypatch.setattr(Family, "encode_images", spy)
    return pixels


# Methods on answers ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["llava", "qwen2_vl"])
def student(request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint) -> Loaded:
    """A tiny model in float32, for a method to plan on."""
    return load_model(str(new_checkpoint(family=request.param)), torch.float32)


@pytest.fixture(scope="module")
def opened(new_checkpoint: NewCheckpoint) -> Open:
    """A tiny model of a family in float32, opened anew each time."""

    @cache
    def folder(family: str) -> Path:
        return new_checkpoint(family=family)

    return lambda family: load_model(str(folder(family)), torch.float32)


@pytest.fixture
def sides(people: UnlearnData, forget: tuple[str, ...]) -> tuple[Split, Split]:
    """Training questions to forget, and to keep."""
    return people.train.of(forget), people.train.without(forget)


def planned(method: Tuned, student: Loaded, sides: tuple[Split, Split]) -> Plan:
    torch.manual_seed(0)
    return method.plan(student, *sides)


# Results files --------------------------------------------------------------------------------------------------------


def without(keys: Collection[str], value: Any) -> Any:
    """What was read from JSON, without these keys at any depth."""
    if isinstance(value, dict):
        return {key: without(keys, inner) for key, inner in value.items() if key not in keys}
    return [without(keys, inner) for inner in value] if isinstance(value, list) else value
