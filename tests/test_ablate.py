"""Comparing at matched forgetting: the fast measurement, the reading of trajectories, and whole ablations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint, without
from studies import carried_out

from unsee.cli import main
from unsee.data.examples import Example, UnlearnData
from unsee.data.normalisation import plain
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct
from unsee.evaluation.engine.teacher_forcing import CachedExam
from unsee.evaluation.predict import generate, longest_answer
from unsee.methods import METHODS, FeatureMethod
from unsee.models.batching import answer_loss
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model
from unsee.models.packed import Packed
from unsee.study import ablate as module
from unsee.study.ablate import AblationRuns, ablate, at_level, questions, summarise
from unsee.study.grid import AblationGrid, Arm, Case, Table
from unsee.study.scenario import resolve
from unsee.study.summary import pooled

DATA = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"  # as the fixture `people`


# The fast measurement -------------------------------------------------------------------------------------------------


def generated(loaded: Loaded, asked: Sequence[Example]) -> list[str]:
    longest = longest_answer(loaded, asked)
    return [text for e in asked for text in generate(loaded, [e], longest)]


def learn(loaded: Loaded, taught: Sequence[Example]) -> None:
    batch = loaded.batcher.for_training(taught)
    optimiser = torch.optim.Adam(loaded.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        answer_loss(loaded.model, batch).backward()
        optimiser.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_measurement_agrees_with_generated_answers(
    family: str, new_checkpoint: NewCheckpoint, ragged_people: UnlearnData
) -> None:
    """A model that learned some answers by heart: which ones, both ways of asking say alike."""
    loaded = load_model(str(new_checkpoint(family=family)))
    pictured = ragged_people.train.first_pictures(1).pictured
    taught = [*pictured.probing("identity"), *pictured.probing("attribute").examples[::4]]
    learn(loaded, taught)

    asked = list(ragged_people.train.first_pictures(2).pictured)
    exam = CachedExam(loaded, asked, cut=len(loaded.visual.blocks) - 1)
    right = exam.right(exam.tokens())
    said = generated(loaded, asked)
    assert right == [plain(text) == plain(e.answer) for text, e in zip(said, asked, strict=True)]
    assert right == [is_correct(text, e.answer, e.choices) for text, e in zip(said, asked, strict=True)]
    assert any(right)
    assert not all(right)
    blind = exam.tokens().with_states(torch.zeros_like(exam.reference.states))
    assert exam.right(blind) != right, "the answers do not depend on what is seen"


def test_the_fast_measurement_sees_the_blocks_above_the_cut_change(loaded: Loaded, people: UnlearnData) -> None:
    exam = CachedExam(loaded, list(people.test.pictured), cut=len(loaded.visual.blocks) - 1)
    torch.testing.assert_close(exam.tokens().states, exam.reference.states)
    with torch.no_grad():
        for layer in loaded.visual.editable(0).values():
            layer.weight.mul_(1.5)
    whole = loaded.visual.features(loaded.batcher.images(exam.pictures))
    torch.testing.assert_close(exam.tokens().states, whole.states)
    assert not torch.allclose(exam.tokens().states, exam.reference.states)


def test_a_question_about_two_pictures_is_refused(loaded: Loaded, people: UnlearnData) -> None:
    e = people.test.pictured.examples[0]
    assert e.image is not None
    with pytest.raises(BadInput, match="shows 2 pictures"):
        CachedExam(loaded, [dataclasses.replace(e, others=(e.image,))], cut=0)


@pytest.mark.slow
def test_the_fast_measurement_agrees_on_a_trained_model(taught: Path, class_photos: UnlearnData) -> None:
    loaded = load_model(str(taught))
    names = tuple(class_photos.names.values())
    asked = list(class_photos.test.pictured)
    exam = CachedExam(loaded, asked, cut=len(loaded.visual.blocks))
    right = exam.right(exam.reference)
    said = generated(loaded, asked[::7])
    known = [names if e.probe == "identity" else e.choices for e in asked[::7]]
    assert right[::7] == [is_correct(s, e.answer, k) for s, e, k in zip(said, asked[::7], known, strict=True)]
    assert any(right)
    assert not all(right)


# Matched forgetting ---------------------------------------------------------------------------------------------------


def cell(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.05, "n": 20}


def point(step: int, validation: tuple[float, float], test: tuple[float, float]) -> dict[str, Any]:
    """(forget, retain) on either split."""
    splits = {
        split: {"forget": cell(forget), "retain": cell(retain), "attributes": cell(0.9)}
        for split, (forget, retain) in (("validation", validation), ("test", test))
    }
    return {"step": step, **splits, "drift": {"statistics": step / 100, "unseen": step / 50}}


def on_both(*way: tuple[int, float, float]) -> list[dict[str, Any]]:
    return [point(step, (forget, retain), (forget, retain)) for step, forget, retain in way]


def test_a_trajectory_is_read_where_it_first_crosses_the_level() -> None:
    way = on_both((0, 1.0, 0.98), (10, 0.8, 0.96), (20, 0.4, 0.90), (40, 0.6, 0.5), (60, 0.0, 0.1))
    found = at_level(way, "test", 0.5)
    assert found is not None
    assert found["step"] == pytest.approx(17.5)  # three quarters of the way from 0.8 to 0.4
    assert found["test"]["forget"]["value"] == pytest.approx(0.5)
    assert found["test"]["retain"]["value"] == pytest.approx(0.915)
    assert found["test"]["retain"]["low"] == pytest.approx(0.815)
    assert found["drift"]["unseen"] == pytest.approx(0.35)
    later = at_level(way[2:], "test", 0.5)
    assert later == way[2], "already there: nothing to interpolate"
    assert at_level(way[:2], "test", 0.5) is None
    assert at_level(way, "test", 0.4) == way[2]


def test_intervals_of_cases_shrink_and_those_of_seeds_do_not() -> None:
    one, two = cell(0.8), cell(0.6)
    apart = pooled([("a", one), ("b", two)])
    same = pooled([("a", one), ("a", two)])
    assert apart is not None
    assert same is not None
    assert apart["value"] == same["value"] == pytest.approx(0.7)
    assert same["value"] - same["low"] == pytest.approx(0.1)
    assert apart["value"] - apart["low"] == pytest.approx(0.1 / 2**0.5)
    assert pooled([("a", {"value": None, "low": None, "high": None, "n": 0})]) is None


def hand_made(**ways: dict[float, list[dict[str, Any]]]) -> dict[str, Any]:
    """The summary of one table whose arms went these ways at these learning rates; gold stands at 0.1."""
    methods = {name: METHODS["cvf"](steps=i + 1) for i, name in enumerate(ways)}  # type: ignore[call-arg]
    arms = tuple(Arm(name, methods[name], tuple(rates)) for name, rates in ways.items())
    given = Case("one", "data", "someone", 0, "vanilla", ())
    grid = AblationGrid((given,), (0,), (Table("table", "A table", arms),), levels=(0.5,))
    runs = [
        {
            "case": "one",
            "method": "cvf",
            "settings": dataclasses.asdict(module.trial(arm, rate)),  # type: ignore[call-overload]
            "seed": 0,
            "trajectory": way,
            "stopped": None,
            "seconds": 1.0,
        }
        for arm in arms
        for rate, way in ways[arm.name].items()
    ]
    standing = point(0, (1.0, 0.98), (1.0, 0.98))
    gold = point(0, (0.1, 0.98), (0.1, 0.98))
    case = {"name": "one", "family": "llava", "vanilla": standing, "golds": [gold], "text": {}}
    return summarise(grid, [case], runs)


def test_an_arm_that_never_forgets_is_not_reached() -> None:
    lazy = on_both((0, 1.0, 0.98), (10, 0.99, 0.98))
    able = on_both((0, 1.0, 0.98), (10, 0.4, 0.9), (20, 0.0, 0.8))
    arms = hand_made(lazy={1e-3: lazy}, able={1e-3: able})["tables"][0]["arms"]
    assert [arm["at"]["gold"]["reached"] for arm in arms] == [0, 1]
    assert arms[0]["at"]["gold"]["retain"] is None
    assert arms[0]["at"]["gold"]["learning_rate"] is None
    assert arms[1]["at"]["gold"]["retain"]["value"] == pytest.approx(0.825)


def test_the_learning_rate_is_chosen_on_validation_and_read_on_test() -> None:
    start = point(0, (1.0, 0.98), (1.0, 0.98))
    tempting = [start, point(10, (0.0, 0.60), (0.0, 0.97))]  # best on test, bad on validation
    honest = [start, point(10, (0.0, 0.90), (0.0, 0.70))]
    unfinished = [start, point(10, (0.3, 0.98), (0.0, 0.98))]  # retains all, but does not come to gold on validation
    ways = {1e-3: tempting, 2e-3: honest, 3e-3: unfinished}
    at = hand_made(arm=ways)["tables"][0]["arms"][0]["at"]
    assert at["gold"]["learning_rate"] == 2e-3
    assert at["gold"]["retain"]["value"] == pytest.approx(0.98 - 0.9 * 0.28)
    assert not at["gold"]["edge"]
    assert at["50%"]["learning_rate"] == 3e-3, "each level chooses for itself"
    assert at["50%"]["edge"]


# Whole ablations ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(new_checkpoint: NewCheckpoint, people: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> AblationGrid:
    """A tiny model that knows the answers about the pictures that are measured, three arms, four runs."""
    loaded = load_model(str(new_checkpoint()))
    learn(loaded, [q.example for q in questions(people, people.choose("first:1"), 2, 1)])
    model = str(tmp_path_factory.mktemp("knows") / "model")
    loaded.model.save_pretrained(model)
    loaded.batcher.processor.save_pretrained(model)
    case = Case("tiny", DATA, "first:1", 10, model, (model,))
    quick = {"steps": 4, "retain_pictures": 4, "forget_pictures": 2}
    arms = (
        Arm("plain", METHODS["cvf"](**quick), (1e-2, 2e-2)),
        Arm("held", METHODS["nscvf"](**quick, threshold=0.01), (1e-2,)),
    )
    scope = (Arm("plain", arms[0].method, (1e-2,)), Arm("last-1", METHODS["cvf"](**quick, last_blocks=1), (1e-2,)))
    tables = Table("constraint", "With and without", arms), Table("scope", "Blocks", scope)
    return AblationGrid((case,), (0,), tables, checkpoints=(2, 3), levels=(0.5,))


whole = carried_out(ablate)


def told(out: Path) -> Any:
    """What an ablation found, without times and origin."""
    return without(("seconds", "provenance"), json.loads((out / "ablation.json").read_text()))


def test_an_ablation_leaves_tables_figures_and_a_page(whole: Path) -> None:
    found = told(whole)
    assert [table["name"] for table in found["tables"]] == ["constraint", "scope"]
    runs = [json.loads(file.read_text()) for file in (whole / "cases" / "tiny" / "runs").iterdir()]
    assert len(runs) == 4, "one run of two tables is made once"
    assert all([p["step"] for p in run["trajectory"]] == [0, 2, 3, 4] for run in runs)
    assert all(run["trajectory"][0]["drift"] == {"statistics": 0.0, "unseen": 0.0} for run in runs)
    assert all(run["trajectory"][-1]["drift"]["unseen"] > 0 for run in runs)
    alike = [run for run in runs if (run["settings"]["learning_rate"], run["settings"]["last_blocks"]) == (1e-2, 2)]
    held, free = (next(run for run in alike if run["method"] == name) for name in ("nscvf", "cvf"))
    drifts = [run["trajectory"][-1]["drift"]["statistics"] for run in (held, free)]
    assert drifts[0] < 0.7 * drifts[1], "the constraint shows in what is measured"
    page = (whole / "ablation.html").read_text()
    assert "With and without" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert len(list((whole / "figures").glob("*.svg"))) == 4
    lines = (whole / "ablation.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 2  # arms × levels


def test_a_broken_ablation_is_taken_up_again(
    grid: AblationGrid, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    run = AblationRuns.run

    def breaks(self: AblationRuns, method: FeatureMethod, *rest: Any) -> dict[str, Any]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(method.name)
        return run(self, method, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(AblationRuns, "run", breaks)
        with pytest.raises(KeyboardInterrupt):
            ablate(grid, tmp_path)
    assert len(list((tmp_path / "cases" / "tiny" / "runs").iterdir())) == 2
    assert not (tmp_path / "ablation.json").exists()

    monkeypatch.setattr(
        AblationRuns, "run", lambda self, method, *rest: (made.append(method.name), run(self, method, *rest))[1]
    )
    ablate(grid, tmp_path, resume=True)
    assert len(made) == 4
    assert told(tmp_path) == told(whole)
    other = dataclasses.replace(grid, seeds=(1,))
    ablate(other, tmp_path, resume=True)
    assert len(made) == 8, "runs of another seed are not those that lie there"
    runs = [json.loads(file.read_text()) for file in (tmp_path / "cases" / "tiny" / "runs").iterdir()]
    assert len({run["trajectory"][-1]["drift"]["unseen"] for run in runs}) == 8


def test_measuring_does_not_change_a_run(grid: AblationGrid) -> None:
    """The last point of a run that was measured at every step is that of a run measured once."""
    case = resolve(grid.cases[0])
    vanilla = case.case.vanilla
    assert isinstance(vanilla, str)
    bench = AblationRuns(case, vanilla, 2, list(questions(case.data, case.subjects, 2, 1)))
    method = module.trial(grid.tables[0].arms[1], 1e-2)
    often, once = (bench.run(method, 0, steps)["trajectory"] for steps in ((1, 2, 3), ()))
    assert often[-1] == once[-1]
    assert len(often) == 5
    assert bench.run(method, 1, ())["trajectory"][-1] != once[-1], "seeds make no difference"


def test_a_run_that_breaks_down_ends_early_and_says_so(grid: AblationGrid) -> None:
    case = resolve(grid.cases[0])
    vanilla = case.case.vanilla
    assert isinstance(vanilla, str)
    bench = AblationRuns(case, vanilla, 2, list(questions(case.data, case.subjects, 2, 1)))
    wild = bench.run(module.trial(grid.tables[0].arms[0], 1e30), 0, (1, 2, 3))
    assert wild["stopped"] is not None
    assert len(wild["trajectory"]) < 5
    calm = bench.run(module.trial(grid.tables[0].arms[0], 1e-2), 0, (1, 2, 3))
    assert calm["stopped"] is None, "what one run broke does not reach the next"


def test_the_command_prints_the_table(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        f'checkpoints = [1]\n[[given]]\nname = "tiny"\ndata = "{DATA}"\nforget = "first:1"\nvanilla = "{checkpoint}"\n'
        '[[tables]]\nname = "t"\ntitle = "With [or] without"\nsettings = { steps = 2 }\n'
        'learning_rates = [1e-3]\n  [[tables.arms]]\n  method = "cvf"\n'
    )

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ending:
            main(["study", "ablate", "--grid", str(file), "--out", str(tmp_path / "out"), *arguments])
        return int(ending.value.code or 0)

    assert run() == 0
    assert "With [or] without" in capsys.readouterr().out
    before = (tmp_path / "out" / "ablation.json").read_bytes()
    assert run() == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "out" / "ablation.json").read_bytes() == before
    assert run("--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "ablation"


def test_packed_tokens_of_the_exam_stand_in_the_order_of_its_pictures(loaded: Loaded, people: UnlearnData) -> None:
    exam = CachedExam(loaded, list(people.test.pictured), cut=1)
    each: list[Packed] = [loaded.visual.features(loaded.batcher.images([one])) for one in exam.pictures]
    torch.testing.assert_close(exam.tokens().states, torch.cat([one.states for one in each]))
    assert not torch.allclose(exam.tokens().states, torch.cat([one.states for one in each[::-1]]))
