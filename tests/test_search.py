"""The search: the best by the stated measure, within one budget, on people nobody reports about, and taken up again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import NewCheckpoint, without
from studies import carried_out
from test_compare import shares

from unsee.cli import main
from unsee.data.sources import load_data
from unsee.errors import BadInput, GateFailed
from unsee.methods import METHODS
from unsee.study import scenario as files
from unsee.study import search as module
from unsee.study.compare import compare
from unsee.study.grid import Arm, Case, CompareGrid, Search
from unsee.study.scenario import same_people
from unsee.study.search import FROZEN, _apart, freeze, judged, pick, read_frozen, search
from unsee.study.summary import EQUAL, DistanceWeights, read_against

VALIDATION = "people:count=4,seed=100,train=3,validation=2,test=2,strangers=2"
REPORTED = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"


# Choosing -------------------------------------------------------------------------------------------------------------


def tried(
    forget: float, retain: float, seconds: float = 10.0, failed: str | None = None, weights: DistanceWeights = EQUAL
) -> dict[str, Any]:
    """One run whose gold stands at 0.1 and whose vanilla retains 0.9."""
    made = None if failed else shares(forget, retain)
    found = read_against(shares(1.0), {"mean": 0.1, "spread": 0.0}, made, weights)
    return judged([{"failed": failed, "seconds": None if failed else seconds, **found}], budget=60)


def test_the_best_is_the_nearest_to_gold_with_what_it_lost() -> None:
    def tries(weights: DistanceWeights) -> list[dict[str, Any]]:
        return [
            tried(0.1, 0.5, weights=weights),  # forgets like gold, loses 40 points
            tried(0.3, 0.9, weights=weights),  # 20 points from gold, loses nothing
            tried(0.0, 0.7, weights=weights),  # 10 points below gold, loses 20
            tried(1.0, 0.9, weights=weights),
        ]

    assert pick(tries(EQUAL)) == 1
    assert pick(tries(DistanceWeights(retain=0.1))) == 0, "control: another weighting picks another"
    assert pick(tries(DistanceWeights(forget=3.0))) == 0
    assert pick(tries(DistanceWeights(forget=0.0))) == 1, "the first of equals"
    assert pick(tries(EQUAL)[2:]) == 0


def test_what_took_more_than_the_budget_or_broke_down_is_never_chosen() -> None:
    best, late, broken = tried(0.5, 0.8), tried(0.1, 0.9, seconds=61), tried(0, 0, failed="nan")
    assert [one["status"] for one in (best, late, broken)] == ["tried", "over budget", "broke down"]
    assert late["total"] < best["total"]
    assert pick([late, best, broken]) == 1
    assert pick([late, broken]) is None
    assert pick([tried(0.1, 0.9, seconds=60), best]) == 0, "control: within the budget it would have been"


def test_one_late_run_of_several_is_enough() -> None:
    found = read_against(shares(1.0), {"mean": 0.1, "spread": 0.0}, shares(0.1), EQUAL)
    runs = [{"failed": None, "seconds": seconds, **found} for seconds in (50.0, 70.0)]
    assert judged(runs, 60)["status"] == "over budget"
    assert judged(runs, 60)["seconds"] == 70.0
    assert judged(runs, 80)["status"] == "tried"


def test_a_try_is_beaten_once_it_cannot_win_any_more() -> None:
    def runs(*totals: float | None) -> list[dict[str, Any]]:
        found = read_against(shares(1.0), {"mean": 0.1, "spread": 0.0}, shares(0.1), EQUAL)
        return [{"failed": None, "seconds": 1.0, **found, "total": total} for total in totals]

    assert judged(runs(0.1, 0.2), 60, least=0.29)["status"] == "beaten"
    assert judged(runs(0.1, 0.2), 60, least=0.31)["status"] == "tried"
    assert judged(runs(0.25, 0.25), 60, least=0.5)["status"] == "tried", "an equal one is not beaten"
    assert judged(runs(0.3, None), 60, least=0.29)["status"] == "beaten"
    assert pick([judged(runs(0.1), 60, least=0.05), judged(runs(0.3), 60)]) == 1, "half a try cannot be chosen"


# Whole searches -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(new_checkpoint: NewCheckpoint) -> CompareGrid:
    vanilla, gold = str(new_checkpoint()), str(new_checkpoint(seed=1))
    rates = tuple(METHODS["ga"](steps=1, learning_rate=rate) for rate in (1e-5, 5e-2))  # type: ignore[call-arg]
    arms = Arm("ascent", METHODS["ga"](), searched=rates), Arm("plain", METHODS["cvf"](steps=2))  # type: ignore[call-arg]
    reported = Case("reported", REPORTED, "first:1", 10, vanilla, (gold,))
    validation = Case("validation", VALIDATION, "first:1", 10, vanilla, (gold,))
    return CompareGrid((reported,), (0,), arms, search=Search((validation,), (0, 1), 1000.0, 2))


whole = carried_out(search)


def told(out: Path) -> Any:
    """What was found, without times."""
    unlike = ("seconds", "provenance", "commit", "dirty", "created")
    return without(unlike, json.loads((out / "search.json").read_text()))


def test_a_search_leaves_the_best_settings_and_every_try(whole: Path, grid: CompareGrid) -> None:
    found = told(whole)
    ascent, plain = found["arms"]
    assert [one["searched"] for one in ascent["tries"]] == [{"learning_rate": 1e-5}, {"learning_rate": 5e-2}]
    assert [len(one["runs"]) for one in ascent["tries"]] == [2, 1], "what is beaten is not run further"
    assert ascent["tries"][1]["status"] == "beaten"
    assert [one["searched"] for one in plain["tries"]] == [{}]
    totals = [one["total"] for one in ascent["tries"]]
    assert totals[0] != totals[1]
    assert ascent["chosen"] == totals.index(min(totals))
    assert [one["status"] for one in ascent["tries"]].count("chosen") == 1
    models = {path.name for path in (whole / "cases" / "validation" / "models").glob("*")}
    assert not models, "models that have answered are deleted"
    assert len(list((whole / "cases" / "validation" / "tries").iterdir())) == 5
    assert "settings found" in (whole / "search.html").read_text()
    assert len((whole / "search.csv").read_text().splitlines()) == 1 + 3
    assert vars(grid.arms[0].searched[ascent["chosen"]]) == ascent["tries"][ascent["chosen"]]["settings"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_two_jobs_find_what_one_finds(whole: Path, grid: CompareGrid, tmp_path: Path) -> None:
    search(grid, tmp_path / "two", jobs=2)
    assert told(tmp_path / "two") == told(whole)
    settings = [(out / FROZEN).read_text().split("[[tries]]")[0] for out in (tmp_path / "two", whole)]
    assert settings[0] == settings[1]
    others = dataclasses.replace(grid, search=dataclasses.replace(grid.search, seeds=(2, 3)))  # type: ignore[type-var]
    search(others, tmp_path / "others")
    outs = whole, tmp_path / "others"
    totals = [[one["total"] for arm in told(out)["arms"] for one in arm["tries"]] for out in outs]
    assert totals[0] != totals[1], "control: other runs find something else"


def test_arms_with_a_try_in_common_are_searched_one_after_the_other() -> None:
    def arm(name: str, *rates: float) -> Arm:
        tries = tuple(METHODS["ga"](steps=1, learning_rate=rate) for rate in rates)  # type: ignore[call-arg]
        return Arm(name, METHODS["ga"](), searched=tries)

    a, b, c, d = arm("a", 1e-5, 1e-4), arm("b", 1e-3), arm("c", 1e-2), arm("d", 1e-3, 1e-4)
    assert _apart((a, b, c)) == [[a], [b], [c]]
    assert _apart((a, b, c, d)) == [[c], [a, b, d]]


def test_asked_is_about_test_pictures_and_text_of_the_validation_people(whole: Path) -> None:
    asked = list((whole / "cases" / "validation" / "predictions").glob("try-*.jsonl"))
    lines = [json.loads(line) for file in asked for line in file.read_text().splitlines()]
    assert {line["split"] for line in lines} == {"test", "text"}
    theirs, others = (load_data(source).names.values() for source in (VALIDATION, REPORTED))
    named = {line["answer"] for line in lines if line["probe"] == "identity"}
    assert named <= {*theirs}
    assert not named <= {*others}


def test_a_broken_search_is_taken_up_again(
    grid: CompareGrid, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    carry_out = files.unlearn

    def breaks(*arguments: Any, **options: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(f"{arguments[1].method} {arguments[1].seed}")
        return carry_out(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "unlearn", breaks)
        with pytest.raises(KeyboardInterrupt):
            search(grid, tmp_path)
    assert not (tmp_path / FROZEN).exists()
    monkeypatch.setattr(
        files, "unlearn", lambda *a, **o: (made.append(f"{a[1].method} {a[1].seed}"), carry_out(*a, **o))[1]
    )
    search(grid, tmp_path, resume=True)
    assert len(made) == len(set(made)) == 5, "finished tries are not run again"
    assert told(tmp_path) == told(whole)
    chosen = [(tmp_path / FROZEN).read_text().split("[[tries]]")[0] for _ in range(2)]
    assert chosen[0] == (whole / FROZEN).read_text().split("[[tries]]")[0]
    search(dataclasses.replace(grid, weights=DistanceWeights(retain=0.5)), tmp_path, resume=True)
    assert len(made) == 5, "other weights read the same runs anew"
    search(dataclasses.replace(grid, search=dataclasses.replace(grid.search, seeds=(2,))), tmp_path, resume=True)  # type: ignore[type-var]
    assert len(made) == 8, "runs of another seed are not those that lie there"


def test_a_try_over_the_budget_stops_and_is_marked(
    grid: CompareGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {1e-5: 5.0, 5e-2: 500.0}
    read = files.read_manifest

    def slow(folder: Path) -> dict[str, Any]:
        manifest = read(folder)
        rate = manifest.get("settings", {}).get("learning_rate")
        return {**manifest, "seconds": seconds.get(rate, 1.0)} if manifest else manifest

    monkeypatch.setattr(module, "read_manifest", slow)
    limited = dataclasses.replace(grid, search=dataclasses.replace(grid.search, seconds=100.0))  # type: ignore[type-var]
    [ascent, _] = search(limited, tmp_path / "some")["arms"]
    assert [one["status"] for one in ascent["tries"]] == ["chosen", "over budget"]
    assert [len(one["runs"]) for one in ascent["tries"]] == [2, 1], "what is over the budget is not run further"
    none = dataclasses.replace(grid, search=dataclasses.replace(grid.search, seconds=3.0))  # type: ignore[type-var]
    with pytest.raises(GateFailed, match="no settings for 'ascent' on llava"):
        search(none, tmp_path / "none")
    frozen = read_frozen(tmp_path / "none" / FROZEN)
    assert list(frozen.chosen) == [("llava", "plain")], "what was found for the others is written"
    with pytest.raises(BadInput, match=r"settings.toml: nothing for 'ascent' \(ga\) on llava"):
        compare(grid, tmp_path / "compared", frozen=frozen)


# The file of settings -------------------------------------------------------------------------------------------------


def test_settings_are_read_back_exactly(whole: Path, grid: CompareGrid, tmp_path: Path) -> None:
    frozen = read_frozen(whole / FROZEN)
    found = told(whole)
    for arm, read in zip(grid.arms, frozen.arms(grid.arms, "llava"), strict=True):
        chosen = next(one["chosen"] for one in found["arms"] if one["arm"] == arm.name)
        assert vars(read.method) == vars(arm.tries[chosen])
        assert type(read.method) is type(arm.method)
    odd = METHODS["nscvf"](
        forget_weight=0.1 + 0.2, retain_weight=1e-7, same_attributes=False, rule="rank", threshold=0.3
    )  # type: ignore[call-arg]
    results = json.loads((whole / "search.json").read_text())
    freeze(tmp_path / "odd.toml", results, {("llava", "odd"): odd})
    [(place, method)] = read_frozen(tmp_path / "odd.toml").chosen.items()
    assert place == ("llava", "odd")
    assert method == odd
    assert method != dataclasses.replace(odd, forget_weight=0.3)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ('method = "ga"', 'method = "magic"', r"chosen\[0\].method: 'magic' is unknown"),
        ("steps = 1", "stpes = 1", r"chosen\[0\].settings: stpes: no such setting"),
        ("[[people]]", "[[persons]]", "people: missing"),
        ('arm = "plain"', 'arm = "ascent"', "'ascent' on llava is given twice"),
        ("[[chosen]]", "[[chosen]", "not a TOML file"),
    ],
)
def test_a_damaged_file_is_refused_by_key(whole: Path, tmp_path: Path, good: str, bad: str, says: str) -> None:
    text = (whole / FROZEN).read_text()
    assert good in text
    (tmp_path / "settings.toml").write_text(text.replace(good, bad, 1))
    with pytest.raises(BadInput, match=says) as refused:
        read_frozen(tmp_path / "settings.toml")
    assert "settings.toml" in str(refused.value)


def test_compare_runs_what_was_found(whole: Path, grid: CompareGrid, tmp_path: Path) -> None:
    frozen = read_frozen(whole / FROZEN)
    results = compare(grid, tmp_path, frozen=frozen)
    chosen = told(whole)["arms"][0]
    wanted = chosen["tries"][chosen["chosen"]]["settings"]["learning_rate"]
    assert {c["settings"]["learning_rate"] for c in results["cells"] if c["arm"] == "ascent"} == {wanted}
    assert wanted != grid.arms[0].method.learning_rate  # type: ignore[attr-defined]
    assert results["settings"]["sha256"] == frozen.about["sha256"]
    assert frozen.about["sha256"][:12] in (tmp_path / "compare.html").read_text()


# Whose people ---------------------------------------------------------------------------------------------------------


def test_nobody_is_reported_on_whom_settings_were_searched(whole: Path, grid: CompareGrid, tmp_path: Path) -> None:
    fewer = VALIDATION.replace("count=4", "count=3")
    for data in (VALIDATION, fewer):
        same = dataclasses.replace(grid, cases=(dataclasses.replace(grid.cases[0], data=data),))
        for carry_out in (search, compare):
            with pytest.raises(BadInput, match=r"case 'reported': .* shows people that settings are searched on"):
                carry_out(same, tmp_path / "out")
        unaware = dataclasses.replace(same, search=None)
        with pytest.raises(BadInput, match=r"case 'reported': .* shows people on whom .*settings.toml was searched"):
            compare(unaware, tmp_path / "out", frozen=read_frozen(whole / FROZEN))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("people:count=60,seed=10", "people:count=30,seed=10", True),
        ("people:count=60,seed=10", "people:count=60,seed=100", False),
        ("people:count=60,seed=10,train=3", "people:count=60,seed=10", True),
        ("folder:photos", "folder:photos", True),
        ("folder:photos", "folder:others", False),
        ("folder:people,seed=1", "people:count=3,seed=1", False),
    ],
)
def test_generated_people_are_the_same_where_their_seed_is(one: str, other: str, same: bool) -> None:
    assert same_people(one, other) is same
    assert same_people(other, one) is same


def test_the_command_searches_and_compare_takes_it_up(
    new_checkpoint: NewCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vanilla, gold = new_checkpoint(), new_checkpoint(seed=1)
    models = f'forget = "first:1"\nvanilla = "{vanilla}"\ngolds = ["{gold}"]\n'
    reported, validation = (f'data = "{data}"\n{models}' for data in (REPORTED, VALIDATION))
    file = tmp_path / "grid.toml"
    file.write_text(
        f'[[given]]\nname = "r"\n{reported}[search]\nseconds = 500\ntries = 2\npictures = 1\n'
        f'[[search.given]]\nname = "v"\n{validation}'
        '[[arms]]\nmethod = "ga"\nsettings = { steps = 1 }\nsearch = { learning_rate = [1e-5, 1e-2] }\n'
    )

    def command(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ending:
            main([*arguments, "--grid", str(file)])
        return int(ending.value.code or 0)

    found, out = tmp_path / "found", tmp_path / "out"
    assert command("study", "search", "--out", str(found)) == 0
    assert "learning_rate=" in capsys.readouterr().out
    assert command("study", "search", "--out", str(found)) == 2
    assert "exists" in capsys.readouterr().err
    assert command("compare", "--out", str(out), "--settings", str(tmp_path / "nowhere.toml")) == 2
    assert "--settings" in capsys.readouterr().err
    assert command("compare", "--out", str(out), "--settings", str(found / FROZEN), "--json") == 0
    assert json.loads(capsys.readouterr().out)["settings"]["file"] == str(found / FROZEN)
    file.write_text(file.read_text().replace("[search]", "[searches]").replace("search.given", "searches.given"))
    assert command("study", "search", "--out", str(tmp_path / "other")) == 2
    assert "searches: no such key" in capsys.readouterr().err
