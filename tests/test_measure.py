"""Measures of whole models: what is asked, what the records hold, and files that survive crashes and sharing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import NewCheckpoint

from unsee.data.examples import Split, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation import engine
from unsee.evaluation import evaluate as measuring
from unsee.evaluation.evaluate import EvaluationRequest, measure
from unsee.evaluation.metrics import MEASURES
from unsee.evaluation.questions import EXPOSED, SETS, WRONG, MeasuredQuestion, asked_of
from unsee.journal import read_lines
from unsee.models.loading import load_model


@pytest.fixture(scope="module")
def small() -> pytest.MonkeyPatch:
    """Batches of two pictures, so that there are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PICTURES", 2)
        yield patch


@pytest.fixture(scope="module")
def models(new_checkpoint: NewCheckpoint) -> dict[str, str]:
    return {"vanilla": str(new_checkpoint(seed=0)), "gold": str(new_checkpoint(seed=1))}


@pytest.fixture(scope="module")
def whole(models: dict[str, str], people: UnlearnData, tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    out = tmp_path_factory.mktemp("whole")
    measure(EvaluationRequest(models, people, people.subjects[:2]), out)
    return out


@pytest.fixture(scope="module")
def results(whole: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((whole / "measures.json").read_text())
    return content


# What is asked --------------------------------------------------------------------------------------------------------


def test_every_set_holds_what_belongs_to_it(people: UnlearnData) -> None:
    forget = people.subjects[:1]
    asked = asked_of(people, forget)
    assert Counter(a.part for a in asked) == {
        "forget": 2 * 6,  # two test pictures, a name and five facts
        "retain": 3 * 2 * 6,
        "forget_attributes": 2 * 3,
        "retain_attributes": 3 * 2 * 3,
        "forget_text": 5,
        "retain_text": 3 * 5,
        "members": 3 * 6,  # three training pictures, a name and five facts
        "strangers": 2 * 6,  # one picture of each
    }
    shown = {part: {image for a in asked if a.part == part for image in a.example.images} for part in (*SETS, *EXPOSED)}
    assert shown["forget"] <= set(people.test.of(forget).pictures)
    assert shown["retain"] <= set(people.test.without(forget).pictures)
    assert shown["members"] <= set(people.train.of(forget).pictures)
    assert shown["strangers"] <= set(people.strangers.pictures)
    assert not shown["forget_text"] | shown["retain_text"]
    assert len({a.number for a in asked}) == len(asked)


def test_strangers_stand_in_for_the_forgotten(people: UnlearnData) -> None:
    """Both sides have the same questions with the same answers, each as often: only the pictures differ."""
    forget = people.subjects[:2]
    asked = asked_of(people, forget)

    def said(part: str) -> dict[str, list[tuple[str, str, str]]]:
        found: dict[str, list[tuple[str, str, str]]] = {}
        for a in asked:
            if a.part == part:
                found.setdefault(a.example.subject, []).append((a.example.key, a.example.question, a.example.answer))
        return found

    members, strangers = said("members"), said("strangers")
    assert set(members) == set(forget)
    assert set(strangers) == set(people.strangers.subjects)
    assert list(strangers.values()) == [part[: len(part) // 3] for part in members.values()]  # of three pictures
    assert len({answer for part in members.values() for _, _, answer in part}) > 6  # control: two people differ
    assert not {a.example.image for a in asked if a.part == "strangers"} & set(people.train.pictures)


def test_wrong_answers_are_wrong_and_of_the_same_form(people: UnlearnData) -> None:
    asked = {a.number: a for a in asked_of(people, people.subjects[:1]) if a.part in SETS}
    names = set(people.names.values())
    for a in asked.values():
        e = a.example
        assert a.wrong
        assert e.answer not in a.wrong
        assert set(a.wrong) <= (names if e.probe == "identity" else set(e.choices))
        assert set(a.names) == (names if e.probe == "identity" else set())
        assert len({e.answer, *a.request.others}) == 1 + len(a.request.others)


def test_without_a_closed_list_others_answers_are_wrong_ones(people: UnlearnData) -> None:
    def opened(split: Split) -> Split:
        return Split(tuple(dataclasses.replace(e, choices=()) for e in split))

    data = dataclasses.replace(people, train=opened(people.train), test=opened(people.test))
    cities = {e.subject: e.answer for e in people.train if e.key == "city"}
    found: dict[str, set[tuple[str, ...]]] = {}
    for a in asked_of(data, people.subjects[:1]):
        if a.part in SETS:
            assert len(a.wrong) <= WRONG
        if a.part in SETS and a.example.key == "city":
            assert set(a.wrong) <= {city for s, city in cities.items() if s != a.example.subject} - {a.example.answer}
            found.setdefault(a.example.subject, set()).add(a.wrong)
    assert {len(wrong) for wrong in found.values()} == {1}  # the same with every picture and in text
    assert len({wrong for each in found.values() for wrong in each}) > 1


def test_without_strangers_nobody_is_exposed(people: UnlearnData) -> None:
    alone = dataclasses.replace(people, strangers=Split())
    assert {a.part for a in asked_of(alone, people.subjects[:1])} == set(SETS)


# What is written ------------------------------------------------------------------------------------------------------


def test_measures_stand_where_they_were_taken_and_nowhere_else(results: dict[str, Any]) -> None:
    vanilla, gold = results["models"]["vanilla"], results["models"]["gold"]
    beside = {"forget-quality", "ks-distance", "jensen-shannon"}
    untaken = {"member-reference", "member-gradient-norm"}
    assert set(vanilla) == set(MEASURES) - untaken
    assert set(gold) == set(vanilla) - beside
    for cells in results["models"].values():
        for name, sets in cells.items():
            assert set(sets) <= set(SETS)
            for cell in sets.values():
                assert set(cell) == {"value", "low", "high", "n"}
                assert cell["n"] > 0
                assert cell["value"] is not None
            if name in ("accuracy", "answer-probability", "truth-ratio", "health-empty"):
                assert set(sets) == set(SETS)
    assert vanilla["accuracy"]["forget"]["n"] == 2 * 2 * 6
    assert vanilla["candidate-rank"]["retain"]["n"] == 2 * 2
    assert vanilla["joint-right"]["retain"]["n"] == 2 * 2 * 5
    assert vanilla["model-utility"]["retain"]["n"] == 2 * 2 * 6 + 2 * 5
    assert vanilla["member-loss"]["forget"]["n"] == 2 * 3 * 6 + 2 * 6  # members, strangers
    rows = (Path(results["provenance"]["command"]), results["provenance"]["forget"])
    assert len(rows[1]) == 2


def test_the_table_has_a_row_per_cell(whole: Path, results: dict[str, Any]) -> None:
    head, *rows = (whole / "measures.csv").read_text().splitlines()
    assert head == "role,measure,set,value,low,high,n"
    cells = [cell for sets in results["models"].values() for of in sets.values() for cell in of.values()]
    assert len(rows) == len(cells)


def test_a_measure_follows_from_the_lines(whole: Path, results: dict[str, Any]) -> None:
    lines = [x for x in read_lines(whole / "measures" / "vanilla.jsonl") if x["set"] == "forget"]
    hits = [sum(x["hits"]) / len(x["hits"]) for x in lines]
    assert results["models"]["vanilla"]["exact-memorisation"]["forget"]["value"] == pytest.approx(sum(hits) / len(hits))
    first = [x["names"][x["answer"]] == max(x["names"].values()) for x in lines if "names" in x]
    assert results["models"]["vanilla"]["candidate-first"]["forget"]["value"] == pytest.approx(sum(first) / len(first))
    assert {x["request"] for x in lines} == {a.number for a in lines_asked(results) if a.part == "forget"}


def lines_asked(results: dict[str, Any]) -> list[MeasuredQuestion]:
    from unsee.data.people import people_data

    data = people_data(count=4, seed=5, train=3, validation=2, test=2, strangers=2)
    return asked_of(data, results["provenance"]["forget"])


def test_gold_is_like_itself_and_others_are_not(
    models: dict[str, str], people: UnlearnData, results: dict[str, Any], tmp_path: Path
) -> None:
    again = measure(
        EvaluationRequest({"same": models["gold"], "gold-2": models["gold"]}, people, people.subjects[:2]), tmp_path
    )["models"]
    assert again["same"]["jensen-shannon"]["forget"]["value"] == 0
    assert "jensen-shannon" not in again["gold-2"]
    assert results["models"]["vanilla"]["jensen-shannon"]["forget"]["value"] > 0  # control


def test_reference_and_gradients_are_taken_where_asked(
    models: dict[str, str], people: UnlearnData, results: dict[str, Any], tmp_path: Path
) -> None:
    one = {"vanilla": models["vanilla"]}
    found = measure(
        EvaluationRequest(one, people, people.subjects[:2], gradients=True, reference=models["gold"]), tmp_path
    )
    assert set(found["models"]) == {"vanilla"}
    taken = found["models"]["vanilla"]
    assert {"member-reference", "member-gradient-norm"} <= set(taken)
    for name in ("accuracy", "member-loss", "truth-ratio"):
        assert taken[name] == results["models"]["vanilla"][name]
    lines = [x for x in read_lines(tmp_path / "measures" / "vanilla.jsonl") if x["set"] == "members"]
    norms = [x["gradient_norm"] for x in lines]
    loaded = load_model(models["vanilla"])
    [example] = [a.example for a in asked_of(people, people.subjects[:2]) if a.number == lines[0]["request"]]
    from unsee.models.batching import answer_loss

    answer_loss(loaded.model, loaded.batcher.for_training([example])).backward()
    grads = [p.grad for p in loaded.visual.named_parameters().values() if p.grad is not None]
    assert norms[0] == pytest.approx(sum(float((g.double() ** 2).sum()) for g in grads) ** 0.5, rel=1e-4)
    assert len(set(norms)) > 1
    with pytest.raises(BadInput, match="choose another"):
        measure(
            EvaluationRequest({"reference": models["gold"]}, people, people.subjects[:2], reference=models["gold"]),
            tmp_path,
        )


# Broken off, shared ---------------------------------------------------------------------------------------------------


def copy_of(whole: Path, out: Path, lines: int, torn: int = 0, shards: int = 1) -> Path:
    """What a run leaves that breaks off after so many lines, written by one process or more."""
    (out / "measures").mkdir(parents=True)
    for file in (whole / "measures").iterdir():
        content = file.read_bytes()
        if file.suffix == ".jsonl":
            rows = content.splitlines(keepends=True)
            kept = rows[:lines]
            for i in range(1, shards):
                (out / "measures" / f"{file.name}.{i}").write_bytes(b"".join(kept[i::shards]))
            content = b"".join(kept[::shards]) + b"".join(rows[lines : lines + 1])[:torn]
        (out / "measures" / file.name).write_bytes(content)
    return out


def same(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in (one / "measures").iterdir())
    if names != sorted(p.name for p in (other / "measures").iterdir()):
        return False
    return all((one / "measures" / n).read_bytes() == (other / "measures" / n).read_bytes() for n in names)


@pytest.mark.parametrize(("lines", "torn", "shards"), [(0, 0, 1), (17, 30, 1), (40, 0, 3), (10**6, 0, 2)])
def test_a_broken_run_goes_on_to_the_same_files(
    whole: Path, models: dict[str, str], people: UnlearnData, tmp_path: Path, lines: int, torn: int, shards: int
) -> None:
    out = copy_of(whole, tmp_path / "run", lines, torn, shards)
    assert same(out, whole) is False  # control
    again = measure(EvaluationRequest(models, people, people.subjects[:2]), out, resume=True)
    assert same(out, whole)
    assert again["models"] == json.loads((whole / "measures.json").read_text())["models"]


def test_resuming_asks_nothing_twice(
    whole: Path, models: dict[str, str], people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of(whole, tmp_path / "run", 10**6)

    def never(path: str) -> Any:
        raise AssertionError(path)

    monkeypatch.setattr(measuring, "open_model", never)
    measure(EvaluationRequest(models, people, people.subjects[:2]), out, resume=True)
    assert same(out, whole)
    with pytest.raises(AssertionError):  # control
        measure(EvaluationRequest(models, people, people.subjects[:2]), out)


def test_lines_of_another_model_are_not_continued(
    whole: Path, models: dict[str, str], people: UnlearnData, tmp_path: Path
) -> None:
    out = copy_of(whole, tmp_path / "run", 20)
    with pytest.raises(BadInput, match="another model, data set or request"):
        measure(EvaluationRequest({"vanilla": models["gold"]}, people, people.subjects[:2]), out, resume=True)
    with pytest.raises(BadInput, match="another model, data set or request"):
        measure(EvaluationRequest(models, people, people.subjects[:1]), out, resume=True)


def test_shares_of_a_batch_list_are_all_of_it(
    whole: Path, models: dict[str, str], people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes, one after the other in this one, write shards that merge to the same file."""
    sizes = []

    def here(what: str, function: Any, tasks: Any, jobs: int) -> Any:
        asker = measuring.Asker(function.args[0])
        for (process,) in tasks.values():
            for role in function.args[0].parts:
                asker.work(role, process, jobs)
        sizes.extend(p.stat().st_size for p in (tmp_path / "measures").glob("vanilla.jsonl*"))
        return ()

    monkeypatch.setattr(measuring, "side_by_side", here)
    measure(EvaluationRequest(models, people, people.subjects[:2]), tmp_path, processes=3)
    assert same(tmp_path, whole)
    assert len(sizes) == 3
    assert all(sizes)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_two_processes_write_the_same_files(models: dict[str, str], people: UnlearnData, tmp_path: Path) -> None:
    """In processes of their own, whose batches are of the usual size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PICTURES", 32)
        measure(EvaluationRequest(models, people, people.subjects[:2]), tmp_path / "one")
    measure(EvaluationRequest(models, people, people.subjects[:2]), tmp_path / "two", processes=2)
    assert same(tmp_path / "one", tmp_path / "two")
