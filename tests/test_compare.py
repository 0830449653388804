"""Whole runs side by side: the reading against gold, and a grid that can be broken off anywhere."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import NewCheckpoint, without
from night import by_day
from studies import carried_out

from unsee.attacks.relearn_plan import Relearning
from unsee.cli import main
from unsee.errors import BadInput, GateFailed
from unsee.methods import METHODS
from unsee.reporting.compared import latex
from unsee.reporting.comparison import page, sections
from unsee.study import compare as module
from unsee.study import scenario as files
from unsee.study.compare import compare
from unsee.study.grid import Arm, Case, CompareGrid, GridPocket
from unsee.study.scenario import build_models, stand_ready
from unsee.study.summary import DistanceWeights, front, numbers, standing, summarise, together
from unsee.table import escape

DATA = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"


# Against gold ---------------------------------------------------------------------------------------------------------


def share(value: float, half: float = 0.1, n: int = 20) -> dict[str, Any]:
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def shares(forget: float, retain: float = 0.9, attributes: float = 1.0, text: float = 1.0) -> dict[str, Any]:
    found = {"forget.test": forget, "retain.test": retain, "attributes.forget": attributes, "text": text}
    return {name: share(value) for name, value in {**found, "text.forget": text, "text.retain": text}.items()}


def attack(gain: float) -> dict[str, Any]:
    curve = [{"step": step, "held_out": share(0.2 + gain * step / 30)} for step in (0, 30)]
    return {"held_out": {"gain": {"value": gain, "low": None, "high": None, "n": 20}}, "curve": curve}


def case(name: str, golds: Sequence[float], gains: Sequence[float] = (), family: str = "llava") -> dict[str, Any]:
    return {
        "name": name,
        "family": family,
        "data": "people",
        "request": "first:1",
        "shares": {"vanilla": shares(1.0), "golds": [shares(gold) for gold in golds]},
        "attack": {"vanilla": attack(0.0), "golds": [attack(gain) for gain in gains]} if gains else None,
    }


def run(name: str, arm: str, made: dict[str, Any] | None, gain: float | None = None, seconds: float = 2.0) -> Any:
    about = {"case": name, "family": "llava", "arm": arm, "method": arm, "seed": 0, "settings": {"steps": 3}}
    done = made is not None
    about |= {
        "given": ["text"],
        "shares": made,
        "seconds": seconds if done else None,
        "failed": None if done else "broke",
    }
    return about | {"attack": None if gain is None else attack(gain)}


def test_distances_are_from_the_mean_of_the_gold_models_on_either_side() -> None:
    found = summarise(
        [case("a", [0.02, 0.06]), case("b", [0.10])],
        [run("a", "m", shares(0.08, 0.88)), run("b", "m", shares(0.02, 0.91)), run("a", "n", shares(0.04))],
    )
    assert found["cases"][0]["gold"] == {"mean": pytest.approx(0.04), "spread": pytest.approx(0.04)}
    m, n = found["arms"]
    assert m["distance"]["mean"] == pytest.approx(0.06)
    assert m["distance"]["worst"] == pytest.approx(0.08)  # above, and below
    assert m["distance"]["sd"] == pytest.approx(0.04 / 2**0.5)
    assert (m["drops"]["retain"]["mean"], m["drops"]["retain"]["worst"]) == (pytest.approx(0.005), pytest.approx(0.02))
    assert n["distance"]["worst"] == pytest.approx(0.0)
    assert n["distance"]["sd"] is None, "one run has no spread"


def test_the_total_adds_what_was_lost_and_no_gain_pays_for_it() -> None:
    runs = [run("a", "m", shares(0.14, 0.80, 0.97, 0.99)), run("a", "n", shares(0.14, 0.97, 0.97, 0.99))]
    m, n = summarise([case("a", [0.04])], runs)["arms"]
    assert m["total"]["mean"] == pytest.approx(0.10 + 0.10 + 0.03 + 0.01)
    assert n["total"]["mean"] == pytest.approx(0.10 + 0.03 + 0.01), "a gain in retain is not taken off"
    m, _ = summarise([case("a", [0.04])], runs, DistanceWeights(forget=2, retain=0.5, attributes=0, text=1))["arms"]
    assert m["total"]["mean"] == pytest.approx(0.2 + 0.05 + 0.01)


def test_what_has_no_gold_or_broke_down_is_not_scored() -> None:
    found = summarise([case("a", [])], [run("a", "m", shares(0.08)), run("a", "m", None)])
    [arm] = found["arms"]
    assert arm["distance"] == arm["total"] == {"mean": None, "sd": None, "worst": None}
    assert arm["standing"] == {}
    assert (arm["cells"], arm["failed"]) == (2, 1)
    assert arm["drops"]["text"]["mean"] == pytest.approx(0.0)
    text, _ = page(found)
    assert "1 broke down" in text
    whole, _ = page(summarise([case("a", [])], [run("a", "m", shares(0.08))]))
    assert "1 broke down" not in whole


def test_gain_over_gold_is_read_against_the_gold_models_of_the_case() -> None:
    cases = [case("a", [0.1, 0.1], [0.05, 0.15]), case("b", [0.1], [0.3])]
    found = summarise(cases, [run("a", "m", shares(0.1), 0.4), run("b", "m", shares(0.1), 0.4)])
    assert [cell["gain_over_gold"] for cell in found["cells"]] == [pytest.approx(0.3), pytest.approx(0.1)]
    [arm] = found["arms"]
    assert arm["gain_over_gold"]["mean"] == pytest.approx(0.2)
    assert [point["step"] for point in arm["curve"]] == [0, 30]
    assert arm["curve"][1]["held_out"]["value"] == pytest.approx(0.6)
    vanilla, gold = found["baselines"]
    assert vanilla["curve"][1]["held_out"]["value"] == pytest.approx(0.2)
    assert gold["curve"][1]["held_out"]["value"] == pytest.approx((0.3 + 0.5) / 2)
    [unattacked] = summarise([case("a", [0.1])], [run("a", "m", shares(0.1))])["arms"]
    assert unattacked["gain_over_gold"]["mean"] is None
    assert unattacked["curve"] == []


def test_shares_of_different_subjects_add_up_by_their_answers() -> None:
    found = together([share(0.4, 0.1, 30), share(0.8, 0.2, 10)])
    assert found["value"] == pytest.approx(0.5)
    assert found["value"] - found["low"] == pytest.approx((0.075**2 + 0.05**2) ** 0.5)
    assert together([{"value": None, "low": None, "high": None, "n": 0}])["value"] is None


def test_the_front_is_whom_nobody_beats_in_both() -> None:
    points = {"near": (0.0, 0.5), "far": (0.4, 0.99), "between": (0.2, 0.9), "beaten": (0.25, 0.8), "twin": (0.2, 0.9)}
    assert front(points) == {"near", "far", "between", "twin"}
    assert front({**points, "ideal": (0.0, 1.0)}) == {"ideal"}
    assert front({}) == set()


def test_the_front_is_of_nearness_to_gold_not_of_forgetting_most() -> None:
    runs = [
        run("a", "over", shares(0.0, 0.9)),
        run("a", "like-gold", shares(0.2, 0.9)),
        run("a", "lazy", shares(0.9, 1)),
    ]
    arms = summarise([case("a", [0.2])], runs)["arms"]
    assert [arm["arm"] for arm in arms if arm["front"]] == ["like-gold", "lazy"]


def test_time_is_relative_to_the_fastest_of_the_family() -> None:
    runs = [run("a", "slow", shares(0.1), seconds=30), run("a", "fast", shares(0.1), seconds=4), run("a", "m", None)]
    assert [arm["relative_seconds"] for arm in summarise([case("a", [0.1])], runs)["arms"]] == [7.5, 1.0, None]


def many(arm: str, *forgotten: float, retain: float = 0.9, seconds: Sequence[float] = (2.0, 2.0)) -> list[Any]:
    """Runs of one arm, and of another case each."""
    return [run(f"c{i}", arm, shares(f, retain), seconds=seconds[i]) for i, f in enumerate(forgotten)]


def test_every_number_has_a_mean_a_spread_and_its_worst() -> None:
    """n - 1 of two: half their difference times the root of two."""
    runs = many("m", 0.1, 0.3, seconds=(2.0, 4.0))
    [arm] = summarise([case("c0", [0.1]), case("c1", [0.1])], runs)["arms"]
    sd = 0.2 / 2**0.5
    assert arm["forget"] == {"mean": pytest.approx(0.2), "sd": pytest.approx(sd), "worst": pytest.approx(0.3)}
    assert arm["time"] == {"mean": 3.0, "sd": pytest.approx(2**0.5), "worst": 4.0}
    assert arm["seconds"] == 3.0
    for name, of in numbers(arm).items():
        assert set(of) == {"mean", "sd", "worst"}
        assert (of["mean"] is None) == (name in ("gain_over_gold", "drop.bystanders")), (
            "nobody attacked, none asked about"
        )
    [single] = summarise([case("c0", [0.1])], many("m", 0.3))["arms"]
    assert all(of["sd"] is None for of in numbers(single).values()), "one run has no spread"


@pytest.mark.parametrize(
    ("second", "places"),
    [
        ((0.10, 0.02), {"a": "best", "b": "equal to the best"}),  # 2 apart, sd 2.0 and 0.5
        ((0.10, 0.001), {"a": "best", "b": "equal to the best"}),  # the best's own spread counts as well
        ((0.101, 0.02), {"a": "best"}),
        ((0.12, 0.05), {"a": "best", "b": "equal to the best"}),
        ((0.08, 0.001), {"a": "best", "b": "best"}),
        ((None, None), {}),
    ],
)
def test_within_one_standard_deviation_of_the_best_is_called_equal(
    second: tuple[float | None, float | None], places: dict[str, str]
) -> None:
    mean, sd = second
    spreads = {"a": {"mean": 0.08, "sd": 0.0200001}, "b": {"mean": mean, "sd": sd}, "c": {"mean": None, "sd": None}}
    assert standing(spreads) == places


def test_without_a_spread_only_equal_numbers_are_best_together() -> None:
    single = {name: {"mean": mean, "sd": None} for name, mean in {"a": 0.1, "b": 0.1, "c": 0.1000001}.items()}
    assert standing(single) == {"a": "best", "b": "best"}
    assert standing({"a": {"mean": 0.1, "sd": None}}) == {}, "nobody to be better than"


def test_the_page_says_in_words_who_is_best_and_who_is_equal() -> None:
    runs = [*many("m", 0.12, 0.16), *many("n", 0.13, 0.17), *many("o", 0.4, 0.5, seconds=(1.0, 1.0))]
    found = summarise([case("c0", [0.1]), case("c1", [0.1])], runs)
    text, _ = page(found)
    rows = {
        row[0]: dict(zip(section.head, row, strict=True)) for section in sections(found)[:1] for row in section.rows
    }
    drops = "retain drop, attributes drop, text drop"
    assert rows["m"]["best or equal"] == f"best: total, distance, {drops}"
    assert rows["n"]["best or equal"] == f"best: {drops}; equal to the best: total, distance"
    assert rows["o"]["best or equal"] == f"best: {drops}, time"
    assert rows["m"]["distance to gold"] == "4.0 ± 2.8 (6.0)"
    assert rows["m"]["forget"] == "14.0 ± 2.8 (16.0) [7–21]"
    assert rows["o"]["time"] == "1.0 s ± 0.0 s (1.0 s)"
    assert {row["given"] for name, row in rows.items() if name not in ("vanilla", "gold")} == {"text"}
    assert "one standard deviation" in text
    assert rows["m"]["runs"] == "2"
    alone = sections(summarise([case("c0", [0.1])], many("m", 0.12)))[0].rows[-1]
    assert alone[1] == "one run"
    assert "±" not in "".join(alone)
    tex = table_rows(latex(found))
    place = tex["method"].index("distance")
    assert [tex[name][place] for name in "mno"] == [
        r"\textbf{4.0} $\pm$ 2.8 (6.0)",
        r"\emph{5.0} $\pm$ 2.8 (7.0)",
        r"35.0 $\pm$ 7.1 (40.0)",
    ]
    assert tex["m"][-1] == "text"


# LaTeX ----------------------------------------------------------------------------------------------------------------


def balanced(text: str) -> bool:
    """Braces and environments close as they were opened."""
    open_braces, environments = 0, []
    for found in re.finditer(r"\\begin\{(\w+)\}|\\end\{(\w+)\}|\\.|[{}]", text):
        if found[1]:
            environments.append(found[1])
        elif found[2]:
            if not environments or environments.pop() != found[2]:
                return False
        elif found[0] in "{}":
            open_braces += 1 if found[0] == "{" else -1
            if open_braces < 0:
                return False
    return open_braces == 0 and not environments


def table_rows(text: str) -> dict[str, list[str]]:
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    assert len({len(row) for row in rows}) == 1, "every line has as many cells"
    columns = re.search(r"\\begin\{tabular\}\{(\w+)p\{4.5cm\}\}", text)
    assert columns is not None
    assert len(rows[0]) == len(columns[1]) + 1
    return {row[0]: row[1:] for row in rows}


def test_latex_is_balanced_and_escaped_with_the_best_in_bold() -> None:
    runs = [
        run("a", "50%_of&more", shares(0.3, 0.7)),
        run("a", "m", shares(0.12, 0.89), seconds=9),
        run("a", "n", None),
    ]
    text = latex(summarise([case("a", [0.1], family="llava")], runs))
    assert balanced(text)
    assert not balanced(text.replace(r"\end{tabular}", "")), "the check would see it"
    rows = table_rows(text)
    assert list(rows) == ["method", "vanilla", "gold", r"50\%\_of\&more", "m", "n"]
    head, best = rows["method"], rows["m"]
    assert best[head.index("total")] == r"\textbf{3.0}"
    assert best[head.index("seconds")] == "9.0"
    assert rows[r"50\%\_of\&more"][head.index("seconds")] == r"\textbf{2.0}"
    assert best[head.index(r"forget (\%)")] == "12.0 [2.0, 22.0]"
    assert rows["n"][head.index("total")] == "--"
    assert rows["m"][head.index("given")] == "text"
    assert "gain over gold" not in head, "a column without a number"
    assert not re.search(r"(?<!\\)[%&#_$](?!\\pm)", rows[r"50\%\_of\&more"][0])
    assert escape("a_b^2 ~ {x} \\") == r"a\_b\textasciicircum{}2 \textasciitilde{} \{x\} \textbackslash{}"


# Whole grids ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(new_checkpoint: NewCheckpoint) -> CompareGrid:
    vanilla, gold = str(new_checkpoint()), str(new_checkpoint(seed=1))
    arms = Arm("plain", METHODS["cvf"](steps=2)), Arm("ascent", METHODS["ga"](steps=1))  # type: ignore[call-arg]
    return CompareGrid((Case("tiny", DATA, "first:1", 10, vanilla, (gold,)),), (0, 1), arms)


whole = carried_out(compare)


def told(out: Path) -> Any:
    """What was found, without times and origin."""
    found = json.loads((out / "compare.json").read_text())
    for one in (*found["cells"], *found["arms"]):
        del one["seconds"]
        one.pop("time", None)
        one.get("standing", {}).pop("seconds", None)
        one.pop("relative_seconds", None)
    return found["arms"], found["cases"], found["cells"]


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


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
    assert cells[0]["shares"]["forget.test"] == results["plain-s0"]["forget"]["test"]
    assert results["plain-s0"]["tensors"]["language_changed"] == 0
    assert results["ascent-s0"]["tensors"]["changed"] > 0
    text = (whole / "compare.html").read_text()
    assert "ascent" in text
    assert "https://" not in text
    assert {file.stem for file in (whole / "figures").glob("*.svg")} == {"front-llava", "runs-llava"}


def test_the_tables_agree_with_each_other(whole: Path) -> None:
    runs, summary = table(whole / "compare.csv"), table(whole / "compare-summary.csv")
    assert [row["arm"] for row in summary] == ["vanilla", "gold", "plain", "ascent"]
    assert len(runs) == 4
    text = (whole / "compare.tex").read_text()
    assert balanced(text)
    rows = table_rows(text)
    head = rows["method"]
    for row in summary[2:]:
        own = [float(one["total"]) for one in runs if one["arm"] == row["arm"]]
        assert float(row["total.mean"]) == pytest.approx(sum(own) / 2, rel=1e-4)
        said = rows[row["arm"]][head.index("total")].replace(r"\textbf{", "").replace("}", "").split()[0]
        assert said == f"{100 * float(row['total.mean']):.1f}"
        ends = [float(row[f"retain.test{end}"]) for end in ("", ".low", ".high")]
        assert rows[row["arm"]][head.index(r"retain (\%)")] == "{:.1f} [{:.1f}, {:.1f}]".format(
            *(100 * end for end in ends)
        )
    other = table_rows(text.replace("plain", "other").replace("ascent", "plain").replace("other", "ascent"))
    assert other["plain"] != rows["plain"], "the two methods have other numbers"


@pytest.mark.parametrize("after", by_day(1, 0, 3))
def test_a_broken_comparison_is_taken_up_again(
    grid: CompareGrid, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    made: list[Path] = []
    carry_out = files.unlearn

    def breaks(*arguments: Any, **options: Any) -> Any:
        if len(made) == after:
            raise KeyboardInterrupt
        made.append(arguments[2])
        return carry_out(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "unlearn", breaks)
        with pytest.raises(KeyboardInterrupt):
            compare(grid, tmp_path)
    assert not (tmp_path / "compare.json").exists()
    monkeypatch.setattr(files, "unlearn", lambda *a, **o: (made.append(a[2]), carry_out(*a, **o))[1])
    compare(grid, tmp_path, resume=True)
    assert len(made) == len(set(made)) == 4, "finished runs are kept"
    assert told(tmp_path) == told(whole)

    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("finished cases are not asked again"))
    compare(grid, tmp_path, resume=True)
    assert told(tmp_path) == told(whole)


def test_models_made_by_another_grid_are_not_taken_for_ours(grid: CompareGrid, tmp_path: Path) -> None:
    other = CompareGrid(grid.cases, (0,), (Arm("plain", METHODS["cvf"](steps=3)),))  # type: ignore[call-arg]
    compare(other, tmp_path)
    ours = dataclasses.replace(other, arms=grid.arms[:1])
    with pytest.raises(BadInput, match="plain-s0: made by another grid"):
        compare(ours, tmp_path, resume=True)
    compare(ours, tmp_path)
    assert [cell["settings"]["steps"] for cell in told(tmp_path)[2]] == [2]


def test_a_run_that_breaks_down_is_said_and_the_others_go_on(
    grid: CompareGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = files.unlearn

    def wrecks(*arguments: Any, **options: Any) -> Any:
        if arguments[1].method.name == "ga":
            raise GateFailed("the loss is nan")
        return carry_out(*arguments, **options)

    monkeypatch.setattr(files, "unlearn", wrecks)
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

    monkeypatch.setattr(files, "build_pocket", build)
    wanted = Case("c", DATA, "first:1", 5, GridPocket("llava", 5), (GridPocket("llava", 5), GridPocket("llava", 1005)))
    ready = files.resolve(wanted)
    for _ in range(2):
        vanilla, golds = stand_ready(ready, tmp_path)
    assert [Path(path).name for path in (vanilla, *golds)] == ["vanilla", "gold", "gold-2"]
    assert [(name, seed) for name, seed, _ in built] == [("gold", 5), ("gold-2", 1005), ("vanilla", 5)]
    assert [without for *_, without in built] == [ready.subjects, ready.subjects, ()]
    other = Case("c", DATA, "first:1", 5, GridPocket("llava", 6), ())
    with pytest.raises(BadInput, match="vanilla: made for another grid"):
        stand_ready(files.resolve(other), tmp_path)


def test_models_that_share_a_base_are_built_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = {}
    for name, seed in (("one", 5), ("two", 6)):
        golds = GridPocket("llava", seed), GridPocket("llava", seed + 1000)
        ready[tmp_path / name] = files.resolve(Case(name, DATA, "first:1", 5, GridPocket("llava", seed), golds))
    (tmp_path / "two" / "gold").mkdir(parents=True)
    (tmp_path / "two" / "gold" / "unsee.json").write_text("{}")
    built: list[list[str]] = []

    def spy(what: str, function: Any, tasks: Any, jobs: int) -> Any:
        built.extend([f"{out.parent.name} {out.name}" for *_, out in group] for (group,) in tasks.values())
        return ()

    monkeypatch.setattr(files, "side_by_side", spy)
    build_models(ready, 2)
    assert built == [["one gold", "one vanilla"], ["one gold-2"], ["two gold-2"], ["two vanilla"]]


# With attacks ---------------------------------------------------------------------------------------------------------

SHORT = Relearning(splits=1, pictures=1, replay=2, steps=2, every=2, forget_pictures=1)


def test_every_model_of_a_case_is_attacked_once(
    grid: CompareGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = dataclasses.replace(grid.cases[0], forget="first:2")
    attacked = dataclasses.replace(grid, cases=(two,), seeds=(0,), relearning=SHORT)
    found = compare(attacked, tmp_path)
    folder = tmp_path / "cases" / "tiny"
    raw = json.loads((folder / "relearn.json").read_text())
    assert [role for role in raw if "held_out" in raw[role]] == ["vanilla", "gold", "plain-s0", "ascent-s0"]
    for cell in found["cells"]:
        gained = raw[cell["role"]]["held_out"]["gain"]["value"] - raw["gold"]["held_out"]["gain"]["value"]
        assert cell["gain_over_gold"] == pytest.approx(gained)
    assert 'id="attack"' in (folder / "report.html").read_text()
    assert (tmp_path / "figures" / "relearning-llava.svg").is_file()
    assert "gain over gold" in (tmp_path / "compare.tex").read_text()

    lines = (folder / "attacks.jsonl").read_text()
    more = dataclasses.replace(attacked, seeds=(0, 1))
    compare(more, tmp_path, resume=True)
    assert (folder / "attacks.jsonl").read_text().startswith(lines), "finished attacks are kept when models join"
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr("unsee.attacks.relearn_run.load_model", lambda *_: pytest.fail("attacked again"))
    again = compare(more, tmp_path, resume=True)
    assert [cell["gain_over_gold"] for cell in again["cells"]][::2] == [c["gain_over_gold"] for c in found["cells"]]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_two_jobs_find_what_one_finds(grid: CompareGrid, tmp_path: Path) -> None:
    two = dataclasses.replace(grid.cases[0], forget="first:2")
    attacked = dataclasses.replace(grid, cases=(two,), relearning=SHORT)
    compare(attacked, tmp_path / "one")
    compare(attacked, tmp_path / "two", jobs=2)
    assert told(tmp_path / "one") == told(tmp_path / "two")
    found: list[Any] = []
    for jobs, name in enumerate(("one", "two"), 1):
        folder = tmp_path / name / "cases" / "tiny"
        results, attacks = (json.loads((folder / f"{what}.json").read_text()) for what in ("results", "relearn"))
        assert results["provenance"]["jobs"] == attacks["provenance"]["jobs"] == jobs
        weights = {role: about["sha256"] for role, about in results["provenance"]["models"].items()}
        answers = {file.name: file.read_text() for file in (folder / "predictions").glob("*.jsonl")}
        unlike = ("seconds", "cost", "provenance")
        found.append((weights, answers, without(unlike, results), without(unlike, attacks)))
    assert found[0] == found[1]
    weights, answers, *_ = found[0]
    assert len(answers) == 6
    assert weights["ascent-s0"] != weights["ascent-s1"], "control: another seed is another model"


def test_who_cannot_be_attacked_is_said_before_anything_is_made(grid: CompareGrid, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"case 'tiny', relearn: .*needs at least two"):
        compare(dataclasses.replace(grid, relearning=SHORT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The command ----------------------------------------------------------------------------------------------------------


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
