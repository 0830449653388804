"""What pocket models are trained in: measured, not asked of a flag; the same from then on; part of what is cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from unsee.data.people import people_data
from unsee.doctor import examine
from unsee.errors import BadInput
from unsee.lab import precision
from unsee.lab.base import BaseRecipe
from unsee.lab.build import Recipe, build_pocket
from unsee.lab.pocket import Shape
from unsee.lab.precision import CLEARLY, ROUNDS, autocast, kept, measured, native_precision
from unsee.lab.teach import TeachRecipe

FLAGS = ("avx512_bf16", "amx_bf16")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine on which nothing was measured yet."""
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "cache"))
    precision.precision.cache_clear()
    yield
    precision.precision.cache_clear()


class Machine:
    """A clock that moves only while products run: so many seconds for each, in turn, the last one ever after."""

    def __init__(self, **takes: list[float]) -> None:
        self.now, self.takes, self.products = 0.0, takes, 0

    def __call__(self) -> float:
        return self.now

    def run(self, dtype: torch.dtype) -> Callable[[], None]:
        left = self.takes[str(dtype).removeprefix("torch.")]

        def product() -> None:
            self.products += 1
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return product


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(float32: list[float], bfloat16: list[float], flag: bool = True) -> Machine:
        made = Machine(float32=float32, bfloat16=bfloat16)
        monkeypatch.setattr(precision, "perf_counter", made)
        monkeypatch.setattr(precision, "_products", made.run)
        able = torch.cpu.get_capabilities() | dict.fromkeys(FLAGS, flag)
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
        precision.precision.cache_clear()
        return made

    return make


SPEEDS = {  # what -> seconds in float32 and in bfloat16, what is chosen
    "twice as fast": ([2.0], [1.0], "bfloat16"),
    "half as fast": ([1.0], [2.0], "float32"),  # an Intel Xeon that has the instructions
    "alike": ([1.0], [1.0], "float32"),
    "not clearly faster": ([CLEARLY - 0.01], [1.0], "float32"),
    "just clearly faster": ([CLEARLY + 0.01], [1.0], "bfloat16"),
    "slow to begin with": ([2.0], [90.0, 1.0], "bfloat16"),
    "disturbed once": ([1.0, 1.0, 9.0, 1.0], [1.0, 9.0, 1.0], "float32"),
    "disturbed but once": ([2.0], [*[9.0] * ROUNDS, 1.0], "bfloat16"),
}


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("speed", SPEEDS)
def test_what_is_faster_is_chosen_whatever_the_flags_say(
    machine: Callable[..., Machine], speed: str, flag: bool
) -> None:
    float32, bfloat16, chosen = SPEEDS[speed]
    timed = machine(list(float32), list(bfloat16), flag)
    found = measured()
    assert found.chosen == chosen
    assert found.seconds == pytest.approx({"float32": min(float32), "bfloat16": min(bfloat16)})
    assert timed.products == 2 * (1 + ROUNDS)
    assert str(native_precision()) == f"torch.{chosen}"
    assert autocast()._enabled == (chosen == "bfloat16")


def test_the_first_measurement_stands(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Near the limit a second one may say otherwise, and the same seed would give another model."""
    machine([CLEARLY + 0.01], [1.0])
    assert native_precision() == torch.bfloat16
    second = machine([CLEARLY - 0.01], [1.0])  # another process
    assert native_precision() == torch.bfloat16
    assert second.products == 0
    assert len(list((tmp_path / "cache" / "precision").iterdir())) == 1


def test_a_process_that_measured_at_the_same_time_agrees(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([2.0], [1.0])
    slower = measured

    def meanwhile() -> precision.Precision:
        file = precision._file()
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"chosen": "float32", "seconds": {"float32": 1.0, "bfloat16": 2.0}}))
        return slower()

    monkeypatch.setattr(precision, "measured", meanwhile)
    assert native_precision() == torch.float32
    assert [file.suffix for file in precision._file().parent.iterdir()] == [".json"]


def test_another_processor_or_torch_is_measured_anew(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([2.0], [1.0])
    assert native_precision() == torch.bfloat16
    machine([1.0], [2.0], flag=False)
    assert native_precision() == torch.float32
    machine([1.0], [2.0])
    assert native_precision() == torch.bfloat16  # the first one again, in the same home
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    precision.precision.cache_clear()
    assert native_precision() == torch.float32


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"chosen": "float8", "seconds": {}}'])
def test_a_damaged_record_is_one_line(machine: Callable[..., Machine], content: str) -> None:
    machine([2.0], [1.0])
    native_precision()
    precision.precision.cache_clear()
    precision._file().write_text(content)
    with pytest.raises(BadInput, match=r"precision.\w+\.json: not the precision that was measured here .*; delete it"):
        native_precision()


def test_a_cache_that_cannot_be_written_is_one_line(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine([2.0], [1.0])
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNSEE_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="cannot be written"):
        native_precision()


def test_products_are_really_timed() -> None:
    """No fake: every precision has its seconds, and one of them is chosen. Which, nobody can say."""
    found = measured()
    assert found.seconds.keys() == {"float32", "bfloat16"} == precision.DTYPES.keys()
    assert all(0 < seconds < 60 for seconds in found.seconds.values())
    assert found.chosen in precision.DTYPES
    assert kept() is None


def test_the_doctor_measures_and_writes_nothing(machine: Callable[..., Machine], tmp_path: Path) -> None:
    def said() -> str:
        return next(finding["found"] for finding in examine() if finding["what"] == "bfloat16 on the processor")

    machine([1.0], [2.0])
    assert said() == "0.5 times as fast as float32: pocket models train in float32"
    assert not (tmp_path / "cache").exists()
    machine([3.0], [2.0])
    native_precision()
    machine([1.0], [2.0])
    assert said() == "1.5 times as fast as float32: pocket models train in bfloat16"


def test_a_pocket_records_it_and_is_cached_by_it(machine: Callable[..., Machine], tmp_path: Path) -> None:
    data = people_data(count=3, seed=5, train=2, validation=1, test=1, strangers=1)
    recipe = Recipe(
        shape=Shape(vision_width=16, vision_blocks=2, language_width=16, language_blocks=1, heads=2),
        base=BaseRecipe(steps=1, pairs=2, strangers=3, pictures_per_stranger=2),
        teach=TeachRecipe(steps=1, pictures=2, text_steps=1, text_rows=2),
    )

    def built() -> tuple[str, dict[str, float], set[str]]:
        manifest = build_pocket("llava", data, 0, tmp_path / "out", recipe=recipe)
        assert manifest["settings"]["precision"] == f"torch.{manifest['precision']['chosen']}"
        stored = {folder.name for folder in (tmp_path / "cache" / "pockets").iterdir()}
        return manifest["precision"]["chosen"], manifest["precision"]["seconds"], stored

    machine([3.0], [1.0])
    chosen, seconds, first = built()
    assert (chosen, seconds) == ("bfloat16", {"float32": 3.0, "bfloat16": 1.0})
    precision._file().unlink()
    machine([4.0], [1.0])
    assert built() == ("bfloat16", seconds, first)  # other seconds, the same choice: taken from the cache
    precision._file().unlink()
    machine([1.0], [2.0])
    chosen, seconds, both = built()
    assert (chosen, seconds) == ("float32", {"float32": 1.0, "bfloat16": 2.0})
    assert len(both) == 2
    assert both > first
