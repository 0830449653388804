"""Whole runs side by side: the reading against gold, and a grid that can be broken off anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import NewCheckpoint

from unsee.cli import main
from unsee.errors import BadInput, GateFailed
from unsee.experiments import compare as module
from unsee.experiments.compare import compare, stand_ready, summarise
from unsee.experiments.grid import Arm, Case, CompareGrid, Pocket
from unsee.methods import METHODS
from unsee.report.comparison import page

DATA = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"


# Against gold ---------------------------------------------------------------------------------------------------------


def measures(forget: float, retain: float = 0.9, attributes: float = 1.0, text: float = 1.0) -> dict[str, float | None]:
    shares = {"forget.test": forget, "retain.test": retain, "attributes.forget": attributes, "text": text}
    return {**shares, "text.forget": text, "text.retain": text}


def case(name: str, golds: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "family": "llava",
        "data": "people",
        "request": "first:1",
        "vanilla": measures(1.0),
        "golds": [measures(gold) for gold in golds],
    }


def run(name: str, arm: str, made: dict[str, float | None] | None) -> dict[str, Any]:
    about = {"case": name, "family": "llava", "arm": arm, "method": arm, "seed": 0}
    return about | {"measures": made, "seconds": None if made is None else 2.0, "failed": None if made else "broke"}


def test_distances_are_from_the_mean_of_the_gold_models_on_either_side() -> None:
    found = summarise(
        [case("a", [0.02, 0.06]), case("b", [0.10])],
        [run("a", "m", measures(0.08, 0.88)), run("b", "m", measures(0.02, 0.91)), run("a", "n", measures(0.04))],
    )
    assert found["cases"][0]["gold"] == {"mean": pytest.approx(0.04), "spread": pytest.approx(0.04)}
    m, n = found["arms"]
    assert m["distance"] == {"mean": pytest.approx(0.06), "worst": pytest.approx(0.08)}  # above, and below
    assert m["drops"]["retain"] == {"mean": pytest.approx(0.005), "worst": pytest.approx(0.02)}
    assert n["distance"]["worst"] == pytest.approx(0.0)


def test_what_has_no_gold_or_broke_down_is_not_scored() -> None:
    found = summarise([case("a", [])], [run("a", "m", measures(0.08)), run("a", "m", None)])
    [arm] = found["arms"]
    assert arm["distance"] == {"mean": None, "worst": None}
    assert (arm["cells"], arm["failed"]) == (2, 1)
    assert arm["drops"]["text"]["mean"] == pytest.approx(0.0)
    text, _ = page(found)
    assert "1 broke down" in text
    whole, _ = page(summarise([case("a", [])], [run("a", "m", measures(0.08))]))
    assert "1 broke down" not in whole


# Whole grids ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(new_checkpoint: NewCheckpoint) -> CompareGrid:
    vanilla, gold = str(new_checkpoint()), str(new_checkpoint(seed=1))
    arms = Arm("plain", METHODS["cvf"](steps=2)), Arm("ascent", METHODS["ga"](steps=1))  # type: ignore[call-arg]
    return CompareGrid((Case("tiny", DATA, "first:1", 10, vanilla, (gold,)),), (0, 1), arms)


@pytest.fixture(scope="module")
def whole(grid: CompareGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "whole"
    compare(grid, out)
    return out


def told(out: Path) -> Any:
    """What was found, without times and origin."""
    found = json.loads((out / "compare.json").read_text())
    for one in (*found["cells"], *found["arms"]):
        del one["seconds"]
    return found["arms"], found["cases"], found["cells"]


def test_a_comparison_leaves_a_table_a_page_and_a_report_for_each_case(whole: Path) -> None:
    arms, cases, cells = told(whole)
    assert [(cell["arm"], cell["seed"]) for cell in cells] == [("plain", 0), ("plain", 1), ("ascent", 0), ("ascent", 1)]
    assert [arm["cells"] for arm in arms] == [2, 2]
    assert len(cases) == 1
    folder = whole / "cases" / "tiny"
    assert (folder / "report.html").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert [role for role in results if role != "provenance"] == ["vanilla", "gold", *(cell["role"] for cell in cells)]
    assert cells[0]["measures"]["forget.test"] == results["plain-s0"]["forget"]["test"]["value"]
    assert results["plain-s0"]["tensors"]["language_changed"] == 0
    assert results["ascent-s0"]["tensors"]["changed"] > 0
    assert len((whole / "compare.csv").read_text().splitlines()) == 5
    text = (whole / "compare.html").read_text()
    assert "ascent" in text
    assert "https://" not in text
    assert list((whole / "figures").glob("*.svg"))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_broken_comparison_is_taken_up_again(
    grid: CompareGrid, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    made: list[Path] = []
    carry_out = module.unlearn

    def breaks(*arguments: Any, **options: Any) -> Any:
        if len(made) == after:
            raise KeyboardInterrupt
        made.append(arguments[5])
        return carry_out(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "unlearn", breaks)
        with pytest.raises(KeyboardInterrupt):
            compare(grid, tmp_path)
    assert not (tmp_path / "compare.json").exists()
    monkeypatch.setattr(module, "unlearn", lambda *a, **o: (made.append(a[5]), carry_out(*a, **o))[1])
    compare(grid, tmp_path, resume=True)
    assert len(made) == len(set(made)) == 4, "finished runs are kept"
    assert told(tmp_path) == told(whole)

    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("finished cases are not asked again"))
    compare(grid, tmp_path, resume=True)
    assert told(tmp_path) == told(whole)


def test_models_made_by_another_grid_are_not_taken_for_ours(grid: CompareGrid, tmp_path: Path) -> None:
    other = CompareGrid(grid.cases, (0,), (Arm("plain", METHODS["cvf"](steps=3)),))  # type: ignore[call-arg]
    compare(other, tmp_path)
    with pytest.raises(BadInput, match="plain-s0: made by another grid"):
        compare(grid, tmp_path, resume=True)
    compare(grid, tmp_path)
    assert len(told(tmp_path)[2]) == 4


def test_a_run_that_breaks_down_is_said_and_the_others_go_on(
    grid: CompareGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = module.unlearn

    def wrecks(*arguments: Any, **options: Any) -> Any:
        if arguments[3].name == "ga":
            raise GateFailed("the loss is nan")
        return carry_out(*arguments, **options)

    monkeypatch.setattr(module, "unlearn", wrecks)
    arms = {arm["arm"]: arm for arm in compare(grid, tmp_path)["arms"]}
    assert (arms["ascent"]["failed"], arms["plain"]["failed"]) == (2, 0)
    assert arms["ascent"]["drops"]["retain"]["mean"] is None
    assert arms["plain"]["drops"]["retain"]["mean"] is not None


def test_lab_models_are_built_once_and_refused_when_they_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, int, tuple[str, ...]]] = []

    def build(family: str, data: Any, seed: int, out: Path, without: Any = ()) -> None:
        built.append((out.name, seed, tuple(without)))
        out.mkdir(parents=True)
        about = {"family": family, "seed": seed, "without_images_of": list(without)}
        (out / "unsee.json").write_text(json.dumps({**about, "data": {"fingerprint": data.fingerprint}}))

    monkeypatch.setattr(module, "build_pocket", build)
    wanted = Case("c", DATA, "first:1", 5, Pocket("llava", 5), (Pocket("llava", 5), Pocket("llava", 1005)))
    ready = module.resolve(wanted)
    for _ in range(2):
        vanilla, golds = stand_ready(ready, tmp_path)
    assert [Path(path).name for path in (vanilla, *golds)] == ["vanilla", "gold", "gold-2"]
    assert [(name, seed) for name, seed, _ in built] == [("gold", 5), ("gold-2", 1005), ("vanilla", 5)]
    assert [without for *_, without in built] == [ready.subjects, ready.subjects, ()]
    other = Case("c", DATA, "first:1", 5, Pocket("llava", 6), ())
    with pytest.raises(BadInput, match="vanilla: made for another grid"):
        stand_ready(module.resolve(other), tmp_path)


def test_the_command_takes_options_or_a_grid(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ending:
            main(["compare", "--out", str(tmp_path / "out"), *arguments])
        return int(ending.value.code or 0)

    grid = tmp_path / "grid.toml"
    grid.write_text(
        f'[[given]]\nname = "tiny"\ndata = "{DATA}"\nforget = "first:1"\nvanilla = "{checkpoint}"\n'
        '[[arms]]\nmethod = "cvf"\nsettings = { steps = 2 }\n'
    )
    assert command("--grid", str(grid), "--methods", "ga") == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command("--grid", str(grid)) == 0
    assert "cvf" in capsys.readouterr().out
    options = ["--model", f"vanilla={checkpoint}", "--data", DATA, "--forget", "first:1", "--methods", "ga"]
    assert command(*options, "--overwrite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["arms"][0]["arm"] == "ga"
