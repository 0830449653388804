"""The field's benchmarks, read as they are published: what they are, and how to read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from unsee.data.benchmarks.clear import FOLDERS, clear_items, read_clear
from unsee.data.benchmarks.files import BenchmarkFolder, open_folder
from unsee.data.benchmarks.fiubench import fiubench_items, read_fiubench
from unsee.data.benchmarks.items import BenchmarkData, BenchmarkItem, BenchmarkPerson
from unsee.data.benchmarks.mllmu import mllmu_items, read_mllmu
from unsee.data.benchmarks.umu import read_umu, umu_items
from unsee.data.benchmarks.unlearn_data import unlearn_data
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkData", "BenchmarkItem", "BenchmarkPerson"]
__all__ += ["benchmark_data", "read_benchmark", "read_configuration", "unlearn_data"]

NO_LICENCE = "none given: ask the authors before you use it for more than private study"


@dataclass(frozen=True)
class Benchmark:
    """What a researcher needs to know before a download.

    Attributes:
        title: its own name.
        paper: arXiv number or venue.
        hub: its id on the Hugging Face hub.
        licence: as published.
        size: of the download.
        configurations: name -> rows (FIUBench: people), as published, or computed from that; 0 where nobody says.
        forget: percentages with published forget sets.
        files: patterns of the files that reading needs; `{forget}` and `{retain}` stand for percentages.
        reads: what is made of the files; docs/benchmarks.md has it in full.
        read: the whole benchmark for one percentage.
        items: the questions of one configuration.
    """

    title: str
    paper: str
    hub: str
    licence: str
    size: str
    configurations: dict[str, int]
    forget: tuple[int, ...]
    files: tuple[str, ...]
    reads: str
    read: Callable[[BenchmarkFolder, int], BenchmarkData]
    items: Callable[[BenchmarkFolder, str], tuple[BenchmarkItem, ...]]


BENCHMARKS: dict[str, Benchmark] = {
    "mllmu": Benchmark(
        title="MLLMU-Bench",
        paper="arXiv 2410.22108",
        hub="MLLMMU/MLLMU-Bench",
        licence=NO_LICENCE,
        size="about 2.6 GB, of which Test_Set 673 MB; one percentage takes about 1.2 GB",
        configurations={
            **{"Full_Set": 500, "Test_Set": 500, "Retain_Set": 153, "ft_Data": 500},
            **{"forget_5": 25, "forget_10": 50, "forget_15": 75},
            **{"retain_95": 475, "retain_90": 450, "retain_85": 425},
        },
        forget=(5, 10, 15),
        files=("forget_{forget}/*", "retain_{retain}/*", "Full_Set/*", "Test_Set/*", "Retain_Set/*", "ft_Data/*"),
        reads="questions to choose, blanks and sentences, with picture and in text; test views; celebrities; ft_Data",
        read=read_mllmu,
        items=mllmu_items,
    ),
    "clear": Benchmark(
        title="CLEAR",
        paper="arXiv 2410.18057",
        hub="therem/CLEAR",
        licence=NO_LICENCE,
        size="not published; forget01 (35 pictures) is 5.8 MB, so one percentage takes about 2 GB",
        configurations={
            **{"default": 3768, "full": 3768, "full+tofu": 7768},
            **{"forget01": 35, "forget05": 188, "forget10": 379},
            **{"forget01+tofu": 75, "forget05+tofu": 388, "forget10+tofu": 779},
            **{"forget01_perturbed": 35, "forget05_perturbed": 188, "forget10_perturbed": 378},
            **{"retain99": 3735, "retain95": 3580, "retain90": 3389},
            **{"retain99+tofu": 7695, "retain95+tofu": 7380, "retain90+tofu": 6989},
            **{"retain_perturbed": 395, "real_faces": 151, "real_world": 367},
        },
        forget=(1, 5, 10),
        files=(
            *("forget{forget:02d}/*", "forget{forget:02d}+tofu/*", "forget{forget:02d}_perturbed/*"),
            *("retain{retain}/*", "retain{retain}+tofu/*", "retain_perturbed/*", "real_faces/*", "real_world/*"),
        ),
        reads="captions, names and TOFU's questions in text, with false answers; real faces; general knowledge",
        read=read_clear,
        items=clear_items,
    ),
    "umu": Benchmark(
        title="UMU-Bench",
        paper="NeurIPS 2025, Datasets and Benchmarks",
        hub="linbojunzi/UMU-bench",
        licence=NO_LICENCE,
        size="not published; its pictures are those of MLLMU-Bench",
        configurations={
            **{"Full_Set": 500, "Real_Person_Set": 153, "forget_5": 25, "forget_10": 50, "forget_15": 75},
            **{"retain_95": 475, "retain_90": 450, "retain_85": 425},
        },
        forget=(5, 10, 15),
        files=("forget_{forget}/*", "retain_{retain}/*", "Full_Set/*", "Real_Person_Set/*", "real_person/*"),
        reads="choices, blanks and sentences, each with picture and in text; celebrities; lessons MM_QA, UM_QA",
        read=read_umu,
        items=umu_items,
    ),
    "fiubench": Benchmark(
        title="FIUBench",
        paper="arXiv 2411.03554",
        hub="gray311/FIUBench",
        licence="MIT badge in its README; see the data set's card",
        size="not published; 400 pictures",
        configurations={"full": 400, "forget1": 4, "forget5": 20, "forget10": 40, "retain": 0},
        forget=(1, 5, 10),
        files=("*.json", "**/*.json", "**/*.png", "**/*.jpg", "**/*.jpeg"),
        reads="full.json, split.json and the pictures: questions with keywords, false answers, paraphrases",
        read=read_fiubench,
        items=fiubench_items,
    ),
}
DEFAULT_FORGET = 5  # percent: what all four publish


def read_benchmark(name: str, spec: str) -> BenchmarkData:
    """A benchmark's questions and people; no picture is opened.

    Args:
        name: a key of `BENCHMARKS`.
        spec: `PATH` or `HUB_ID`, and `,forget=N` for another percentage than 5.

    Raises:
        BadInput: nothing there, or a file, row or key that would break scores.
    """
    place, marker, wanted = spec.partition(",forget=")
    if not place or re.search(r",\w+=", place) or (marker and not re.fullmatch("[1-9][0-9]?", wanted)):
        percents = ", ".join(map(str, BENCHMARKS[name].forget))
        raise BadInput(f"--data {name}:{spec}: expected {name}:PATH or {name}:PATH,forget=N with N of {percents}")
    forget = int(wanted or DEFAULT_FORGET)
    files = [pattern.format(forget=forget, retain=100 - forget) for pattern in BENCHMARKS[name].files]
    found = open_folder(name, place, files)
    return BENCHMARKS[name].read(replace(found, source=f"{name}:{place},forget={forget}"), forget)


def read_configuration(name: str, place: str, configuration: str) -> tuple[BenchmarkItem, ...]:
    """The questions of one configuration of a benchmark; no picture is opened.

    Raises:
        BadInput: nothing there, or a file, row or key that would break scores.
    """
    files = [f"{folder}/*" for folder in FOLDERS.get(configuration, (configuration,))]
    files = list(BENCHMARKS[name].files) if name == "fiubench" else files
    return BENCHMARKS[name].items(open_folder(name, place, files), configuration)


def benchmark_data(name: str, spec: str) -> UnlearnData:
    """A benchmark as DATA, see `unlearn_data`; the same arguments as `read_benchmark`."""
    return unlearn_data(read_benchmark(name, spec))
