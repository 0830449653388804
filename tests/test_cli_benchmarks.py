"""Benchmarks from the command line: listed, written in small, unlearned on, evaluated on, asked as published."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from benchmark_files import write_small
from command_line import run
from safetensors.torch import load_file
from tiny import tiny

from unsee.data.benchmarks import BENCHMARKS, read_benchmark
from unsee.data.sources import load_data
from unsee.lab.miniatures import MINIATURES

PAGE = Path(__file__).parents[1] / "docs/reproduce.md"
SMALL = {"mllmu": {"views": 1}, "clear": {"pictures": 3}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every benchmark in small, each with a random model that knows its words: of five people one is forgotten."""
    root: Path = tmp_path_factory.mktemp("place")
    for name in BENCHMARKS:
        write_small(name, root / name, count=5, **SMALL.get(name, {}))
        for part in tiny("llava", load_data(f"{name}:{root / name},forget=20")):
            part.save_pretrained(root / f"model-{name}")
    return root


def printed(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(arguments) == 0
    return capsys.readouterr().out


# Listing, and in small ------------------------------------------------------------------------------------------------


def test_all_that_a_researcher_must_know_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(printed("list benchmarks --json", capsys))
    assert listed.keys() == BENCHMARKS.keys()
    table = " ".join(printed("list benchmarks", capsys).split())
    for name, about in listed.items():
        known = BENCHMARKS[name]
        assert (about["title"], about["licence"], about["size"]) == (known.title, known.licence, known.size)
        assert about["where"].endswith(known.hub)
        assert known.hub in about["fetch"]
        assert all(about[key] for key in ("paper", "size", "reads", "licence"))
        assert (
            about["data"] == f"{name}:{about['fetch'].partition('--local-dir ')[2]}"
        )  # what is fetched is what is read
        assert known.title in table
        assert name in table
    assert "UMU-Bench-2" not in table


def test_the_command_fetches_all_files_of_one_percentage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(printed("list benchmarks --json", capsys))
    for name, needed in {"mllmu": "forget_5", "clear": "forget05+tofu", "umu": "retain_95"}.items():
        patterns = re.findall(r'--include "(.*?)"', listed[name]["fetch"])
        assert f"{needed}/*" in patterns
        assert not any("{" in pattern or "10" in pattern for pattern in patterns)
        written = {folder.name for folder in (place / name).iterdir()}
        fixed = {pattern.removesuffix("/*") for pattern in patterns if not re.search(r"\d", pattern)}
        assert fixed - {"real_person", "Real_Person_Set"} <= written  # the names are those of the format
    assert "--include" not in listed["fiubench"]["fetch"]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = f"benchmark make {name} --out {tmp_path}/small --people 4 --seed 3"
    about = json.loads(printed(f"{written} --json", capsys))
    assert len(read_benchmark(*about["data"].split(":", 1)).people) == about["people"] == 4
    assert run(written) == 2  # nothing is overwritten
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("make mmlu --out small", "benchmark make mmlu: no such benchmark; expected one of mllmu, clear"),
        ("make mllmu --out small --people 99999", "expected 1 to 676 people"),
        ("make mllmu --out small --people 1", "Invalid value for '--people'"),
    ],
)
def test_what_cannot_be_written_is_said(
    arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(f"benchmark {arguments}") == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


# Unlearn and evaluate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_unlearn_and_evaluate_just_work(name: str, place: Path, tmp_path: Path) -> None:
    data, model = f"{name}:{place / name},forget=20", place / f"model-{name}"
    for method, steps in (("nscvf", "steps=2"), ("graddiff", "steps=2")):
        out = tmp_path / method
        unlearn = f"unlearn --model {model} --data {data} --forget first:1 --method {method} --set {steps} --no-gate"
        assert run(f"{unlearn} --out {out}") == 0
        gone = json.loads((out / "unsee.json").read_text())["forget"]
        assert gone == list(read_benchmark(name, data.partition(":")[2]).forget)  # first:N are the published ones
        before, after = (load_file(folder / "model.safetensors") for folder in (model, out))
        assert any(not before[key].equal(after[key]) for key in before)
    models = f"--model vanilla={model} --model nscvf={tmp_path}/nscvf"
    assert run(f"evaluate {models} --data {data} --forget first:1 --out {tmp_path}/run") == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    for role in ("vanilla", "nscvf"):
        assert results[role]["forget"]["test"]["n"] > 0
        assert results[role]["retain"]["test"]["n"] > results[role]["forget"]["test"]["n"]
    assert results["nscvf"]["tensors"]["changed"] > 0
    assert run(f"benchmark scores {tmp_path}/run --out {tmp_path}/scores") == 0
    assert (tmp_path / f"scores/nscvf/{name.upper()}_SUMMARY.json").is_file()


# The page that repeats a table ----------------------------------------------------------------------------------------


def commands(tmp_path: Path) -> list[list[str]]:
    """What the first snippet of the page calls `hf` and `unsee` with, as bash expands it."""
    snippet = re.search(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert snippet
    for program in ("hf", "unsee"):
        stub = tmp_path / "bin" / program
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/bash\nprintf "%s\\x1f" {program} "$@" >> "$CALLS"\nprintf "\\n" >> "$CALLS"\n')
        stub.chmod(0o755)
    around = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    subprocess.run(["bash", "-euc", snippet[1]], env=around, check=True, cwd=tmp_path)
    return [line.rstrip("\x1f").split("\x1f") for line in (tmp_path / "calls").read_text().splitlines()]


@pytest.mark.slow
def test_the_three_commands_of_the_page_run_on_the_miniature(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand there, but for the download, the model, the numbers of people and steps, and the gate."""
    fetched, *unlearned, protocol = commands(tmp_path)
    listed = json.loads(printed("list benchmarks --json", capsys))["mllmu"]["fetch"]
    assert " ".join(fetched) == listed.replace('"', "")
    assert len(unlearned) >= 5
    (tmp_path / "data").mkdir()
    (tmp_path / "data/MLLMU-Bench").symlink_to(place / "mllmu")
    monkeypatch.chdir(tmp_path)

    def adapted(words: list[str], *more: str) -> str:
        assert words[0] == "unsee"
        text = " ".join([*words[1:], *more])
        for published, small in {"MLLMMU/LLaVA_Vanilla": place / "model-mllmu", ",forget=5": ",forget=20"}.items():
            assert published in text
            text = text.replace(published, str(small))
        return text.replace("first:25", "first:1")

    for words in unlearned:
        assert "first:25" in words
        assert run(adapted(words, "--set", "steps=1", "--no-gate")) == 0
    assert run(adapted(protocol)) == 0
    results = json.loads((tmp_path / "runs/mllmu-5/protocol.json").read_text())
    assert results["roles"] == ["vanilla", *(words[words.index("--method") + 1] for words in unlearned)]
    assert results["modes"].keys() == {"paper", "corrected"}
    for rows in results["modes"].values():
        free = [row["cells"] for row in rows if (row["part"], row["what"]) == ("forget", "generation")]
        assert free
        assert all(cell["n"] > 0 for cells in free for cell in cells.values())
    known = results["modes"]["paper"]
    assert not [row for row in known if (row["part"], row["what"]) == ("forget", "classification")]  # of one, the shots
    assert run(adapted(protocol)) == 2  # a table is never overwritten
    for kind in ("json", "csv", "tex"):
        assert (tmp_path / f"runs/mllmu-5/protocol.{kind}").is_file()
