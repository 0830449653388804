"""What goes out to other tools holds the same questions, pictures and numbers, and reads answers in the same way."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import yaml
from benchmark_files import write_small
from conftest import NewCheckpoint

from unsee.cli import main
from unsee.data.benchmarks import BENCHMARKS, read_benchmark
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.evaluation.metrics import free_answers
from unsee.evaluation.metrics.records import FreeAnswer
from unsee.interop.export import (
    Task,
    benchmark_tasks,
    evaluation_tasks,
    utilities,
    write_scores,
    write_tasks,
)
from unsee.interop.formats import evaluation_log, metric, scores_log, scores_table, summary
from unsee.journal import read_lines

ROLES = ("vanilla", "unlearned")
PATHS = (
    *(("forget", "test"), ("names", "retain", "train"), ("attributes", "strangers")),
    *(("text", "forget"), ("health", "off_list"), ("misattribution", "forget")),
)
Pack = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def evaluated(
    new_checkpoint: NewCheckpoint,
    people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Two random models that answer the same questions."""
    out: Path = tmp_path_factory.mktemp("evaluated") / "run"
    evaluate(
        EvaluationRequest({role: str(new_checkpoint(seed=seed)) for seed, role in enumerate(ROLES)}, people, forget),
        out,
    )
    return out


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def at(results: Mapping[str, Any], *path: str) -> Any:
    for key in path:
        results = results[key]
    return results


# Scores ---------------------------------------------------------------------------------------------------------------


def test_every_number_of_the_summary_is_a_score(run: Path, tmp_path: Path) -> None:
    about = write_scores(run, tmp_path / "out")
    results = load(run / "results.json")
    for role in ROLES:
        log, numbers = (load(tmp_path / f"out/{role}/PEOPLE_{kind}.json") for kind in ("EVAL", "SUMMARY"))
        assert numbers == about["models"][role] == summary(log)
        cells = {metric(*path): at(results[role], *path) for path in PATHS}
        assert {name: numbers.get(name) for name in cells} == {name: cell["value"] for name, cell in cells.items()}
        other = {name: cell["value"] for name, cell in cells.items() if name != "text_forget"} | {"text_forget": 2.0}
        assert {name: numbers.get(name) for name in cells} != other
        assert all(entry["n"] == 0 and name not in numbers for name, entry in log.items() if entry["agg_value"] is None)


def test_every_answer_stands_behind_its_score(run: Path, tmp_path: Path) -> None:
    write_scores(run, tmp_path / "out")
    log = load(tmp_path / "out/vanilla/PEOPLE_EVAL.json")
    lines = list(read_lines(run / "predictions/vanilla.jsonl"))
    shown = {index for entry in log.values() for index in entry.get("value_by_index", {})}
    lost = [line for n, line in enumerate(lines) if str(n) not in shown]
    assert {(line["probe"], line["split"]) for line in lost} == {("attribute", "train"), ("attribute", "validation")}
    for entry in log.values():
        found = entry.get("value_by_index", {})
        assert len(found) == (entry["n"] if found else len(found))
        for index, one in found.items():
            line = lines[int(index)]
            assert (one["input"], one["ground_truth"], one["generation"]) == (
                line["question"],
                line["answer"],
                line["prediction"],
            )
            assert one["correct"] == line["correct"]


def test_scores_that_are_not_those_of_the_answers_are_refused(run: Path, tmp_path: Path) -> None:
    file = run / "predictions/unlearned.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = next(line for line in lines if line["set"] == "retain" and line["split"] == "test" and not line["correct"])
    wrong["correct"] = True
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadInput, match=r"unlearned.jsonl: (\w|\.)+ is .* the mean of its \d+ answers .* again"):
        write_scores(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_csv_and_latex_hold_the_same_numbers(run: Path, tmp_path: Path) -> None:
    about = write_scores(run, tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/scores.csv").read_text())))
    for role in ROLES:
        known = {row["metric"]: float(row["value"]) for row in rows if row["model"] == role and row["value"]}
        assert known.keys() == about["models"][role].keys()
        assert all(math.isclose(known[name], value, rel_tol=1e-5) for name, value in about["models"][role].items())
    text = (tmp_path / "out/scores.tex").read_text()
    assert text.count(r" \\") == 1 + len({name for role in ROLES for name in about["models"][role]})
    assert r"forget\_test" in text
    assert "forget_test" not in text
    value = about["models"]["vanilla"]["health_off_list"]
    assert f"{100 * value:.1f} [" in next(line for line in text.splitlines() if line.startswith(r"health\_off\_list &"))


CELL = {"value": 0.25, "low": 0.1, "high": None, "n": 8}
NOTHING = {"value": None, "low": None, "high": None, "n": 0}


def test_measures_and_protocols_are_read_beside_the_scores(run: Path, tmp_path: Path) -> None:
    measures = {role: {"answer-probability": {"forget": CELL, "retain": NOTHING}} for role in ROLES}
    about = {"data": {"source": "people:count=4"}}
    (run / "measures.json").write_text(json.dumps({"models": measures, "provenance": about}))
    row = {"part": "forget", "what": "cloze", "side": "image", "name": "ROUGE-L F", "measurable": False}
    table = {"corrected": [{**row, "cells": dict.fromkeys(ROLES, CELL)}]}
    protocol = {"benchmark": "mllmu", "roles": ROLES, "modes": table}
    (run / "protocol.json").write_text(json.dumps(protocol))
    numbers = write_scores(run, tmp_path / "both")["models"]["unlearned"]
    assert numbers["answer_probability_forget"] == numbers["corrected_forget_cloze_image_ROUGE_L_F"] == 0.25
    assert "answer_probability_retain" not in numbers
    (run / "results.json").unlink()
    (run / "measures.json").unlink()
    alone = write_scores(run, tmp_path / "alone")
    assert alone["models"]["vanilla"] == {"corrected_forget_cloze_image_ROUGE_L_F": 0.25}
    entry = load(tmp_path / "alone/vanilla/MLLMU_EVAL.json")["corrected_forget_cloze_image_ROUGE_L_F"]
    assert (entry["measurable"], entry["low"], entry["high"], entry["n"]) == (False, 0.1, None, 8)
    assert "25.0" in (tmp_path / "alone/scores.tex").read_text()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("protocol.json", '{"benchmark": "mllmu"}', "protocol.json: does not hold what unsee writes there"),
        ("protocol.json", "{", "protocol.json: does not hold"),
        ("measures.json", '{"models": {"vanilla": {"accuracy": 1}}}', "measures.json: does not hold"),
        ("results.json", "[]", "results.json: expected a JSON object"),
    ],
)
def test_damaged_files_are_named(file: str, content: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no results.json, measures.json or protocol.json"):
        write_scores(tmp_path, tmp_path.parent / "out")
    (tmp_path / file).write_text(content)
    with pytest.raises(BadInput, match=expected) as caught:
        write_scores(tmp_path, tmp_path.parent / "out")
    assert "\n" not in str(caught.value)


def test_a_log_by_hand() -> None:
    line = {"set": "forget", "split": "test", "probe": "fact", "subject": "a", "question": "q", "answer": "b"}
    lines = [{**line, "prediction": p, "correct": p == "b"} for p in ("b", "c")] + [{**line, "set": "retain"}]
    cell = {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2}
    log = evaluation_log({("forget", "test"): cell, ("facts", "forget", "test"): cell}, lines, "x")
    assert log["forget_test"] == log["facts_forget_test"]
    assert [one["correct"] for one in log["forget_test"]["value_by_index"].values()] == [1.0, 0.0]
    with pytest.raises(BadInput, match=r"forget.test is 0.6"):
        evaluation_log({("forget", "test"): {**cell, "value": 0.6}}, lines, "x")
    assert r"100 \%" not in scores_table({"m": scores_log({"accuracy": {"forget.test": {**CELL, "value": -0.5}}})})
    assert "$-$50.0" in scores_table({"m": scores_log({"accuracy": {"forget.test": {**CELL, "value": -0.5}}})})


# Task packs -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """As the harnesses read a task: `!function` is a name here."""


_Loader.add_constructor("!function", lambda loader, node: f"!{loader.construct_scalar(node)}")


def module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("utils", folder / "utils.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Pack]:
    """Every task of a folder by name, its questions loaded by `datasets`, as both harnesses do when started there."""

    def read(folder: Path) -> Pack:
        monkeypatch.chdir(folder)
        found = {}
        for file in sorted(folder.glob("*.yaml")):
            about = yaml.load(file.read_text(), _Loader)
            docs = datasets.load_dataset(
                about["dataset_path"], cache_dir=str(tmp_path / "cache"), **about["dataset_kwargs"]
            )
            found[about["task"]] = {**about, "docs": list(docs[about["test_split"]])}
        return found

    return read


# Of the fields of `TaskConfig`, in lm-evaluation-harness 0.4.13 and lmms-eval 0.7.3, those that packs use. Both make it
# of all that stands in the file: a key that is none of its fields ends in a TypeError.
FIELDS = {
    *("task", "tag", "dataset_path", "dataset_kwargs", "test_split", "metadata"),
    *("output_type", "doc_to_text", "doc_to_target", "process_results", "generation_kwargs", "metric_list"),
}
OWN = {
    "lm-eval": ("doc_to_choice", "max_gen_toks", {"generate_until", "multiple_choice"}),
    "lmms-eval": ("doc_to_visual", "max_new_tokens", {"generate_until"}),
}


def readable(about: Mapping[str, Any], folder: Path) -> None:
    """A task has the keys and types that its harness reads."""
    field, bound, kinds = OWN[folder.name]
    assert about.keys() - {"docs"} <= FIELDS | {field}
    assert about["output_type"] in kinds
    for key, kind in (("task", str), ("tag", str), ("dataset_kwargs", dict), ("metric_list", list), ("metadata", dict)):
        assert type(about[key]) is kind
    for one in about["metric_list"]:  # without an aggregation, both ask for a metric of their own of this name
        assert one.keys() == {"metric", "aggregation", "higher_is_better"}
        assert one["aggregation"] == "mean"
    if about["output_type"] == "generate_until":
        assert type(about["generation_kwargs"][bound]) is int
        assert about["process_results"].startswith("!utils.")
    (file,) = about["dataset_kwargs"]["data_files"].values()
    assert (folder / file).is_file()


def check(task: Task, about: Mapping[str, Any], utils: ModuleType) -> None:
    """A task that was read back holds the questions it was written from."""
    assert (about["tag"], len(about["docs"])) == ("unsee", len(task.examples))
    for doc, e in zip(about["docs"], task.examples, strict=True):
        asked = utils.doc_to_text(doc) if task.pictured else doc[about["doc_to_text"]]
        assert asked == e.question
        if task.choose:
            assert doc["choices"][doc[about["doc_to_target"]]] == e.answer
            assert set(doc["choices"]) == {*e.choices, e.answer}
            continue
        assert doc[about["doc_to_target"]] == e.answer
        assert tuple(doc["choices"]) == e.choices
        right, wrong = ({**utils.process_results(doc, [said])} for said in (e.answer, "zzz"))
        assert {m["metric"] for m in about["metric_list"]} == right.keys()
        assert (right["right"], right["rouge_l"], wrong["right"], wrong["rouge_l"]) == (1.0, 1.0, 0.0, 0.0)
        if e.image:
            (picture,) = utils.doc_to_visual(doc)
            assert (picture.size, picture.tobytes()) == (e.image.open().size, e.image.open().tobytes())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_questions_answers_and_pictures_of_benchmarks_come_back(
    name: str, checkpoint: Path, tmp_path: Path, pack: Callable[[Path], Pack]
) -> None:
    data = read_benchmark(name, f"{write_small(name, tmp_path / name, count=5)},forget=20")
    tasks = benchmark_tasks(data)
    shutil.copytree(checkpoint, tmp_path / "model")
    about = write_tasks(tasks, f"{name}:small", str(tmp_path / "model"), tmp_path / "out")
    shutil.rmtree(tmp_path / name)  # the pictures travel along
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    folders = [moved / "lm-eval", moved / "lmms-eval"] if name != "fiubench" else [moved / "lmms-eval"]
    read: dict[str, Any] = {}
    write_small(name, tmp_path / name, count=5)  # again, to compare with
    for folder in folders:
        found, utils = pack(folder), module(folder)
        read |= found
        for one in found.values():
            readable(one, folder)
            spoiled = [
                {"prompt": "x"},
                {"metric_list": [{"metric": "right"}]},
                {"dataset_kwargs": {"data_files": {"test": "x"}}},
            ]
            for change in spoiled:
                with pytest.raises(AssertionError):
                    readable({**one, **change}, folder)
        for task in tasks:
            if task.pictured == (folder.name == "lmms-eval"):
                check(task, found[task.name], utils)
        damaged = next(about for about in found.values())
        damaged["docs"][0]["answer"] = damaged["docs"][0]["question"] = "other"
        damaged["docs"][0]["gold"] = -1
        with pytest.raises(AssertionError):
            check(next(task for task in tasks if task.name == damaged["task"]), damaged, utils)
    assert read.keys() == about["tasks"].keys() == {task.name for task in tasks}
    for item in data.items:
        assert any(item.answer in (e.answer for e in task.examples) for task in tasks)
    for command in (f"--model llava_hf --model_args pretrained={tmp_path / 'model'},device_map=auto", "hf-multimodal"):
        assert command in (moved / "README.md").read_text()


def test_functions_are_called_as_lmms_eval_does(
    people: UnlearnData, forget: tuple[str, ...], checkpoint: Path, tmp_path: Path, pack: Callable[[Path], Pack]
) -> None:
    """It weighs answers without the columns that hold pictures, and asks with a model's own words around a question."""
    write_tasks(evaluation_tasks(people, forget), "people", str(checkpoint), tmp_path / "out")
    folder = tmp_path / "out/lmms-eval"
    found, utils = pack(folder), module(folder)
    pictured = datasets.load_dataset("parquet", data_files=str(folder / "unsee_people_forget_fact.parquet"))["train"]
    assert [name for name, kind in pictured.features.items() if isinstance(kind, datasets.Image)] == ["image"]
    for about in found.values():
        for doc in about["docs"]:
            bare = {key: value for key, value in doc.items() if key != "image"}
            assert utils.process_results(bare, [f" {doc['answer']}\n"]) == {"right": 1.0, "rouge_l": 1.0}
            with pytest.raises(KeyError):  # control: what needs the picture does not work so
                utils.doc_to_visual(bare)
            assert utils.doc_to_text(doc) == utils.doc_to_text(doc, {}) == utils.doc_to_text(doc, None)
            around = {"pre_prompt": "Look. ", "post_prompt": " Be brief."}
            assert utils.doc_to_text(doc, around) == f"Look. {doc['question']} Be brief."


def test_commands_find_the_model_from_the_packs_folder(
    people: UnlearnData, forget: tuple[str, ...], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint, tmp_path / "here/model")
    monkeypatch.chdir(tmp_path / "here")
    write_tasks(evaluation_tasks(people, forget), "people", "model", Path("out"))
    named = re.findall(r"pretrained=([^, ]+)", Path("out/README.md").read_text())
    assert len(named) == 2
    assert all((tmp_path / "here/out/lmms-eval" / one / "config.json").is_file() for one in named)
    assert not (tmp_path / "here/out/lmms-eval/model").exists()  # control: as it was given it is not found there


def test_options_do_not_tell_the_answer_by_their_order(tmp_path: Path) -> None:
    data = read_benchmark("clear", f"{write_small('clear', tmp_path / 'clear')},forget=20")
    told = [e for task in benchmark_tasks(data) if "classification" in task.name for e in task.examples]
    first = [e.choices[0] == e.answer for e in told]
    assert 0 < sum(first) < len(first)
    assert all(item.example().choices[0] == item.answer for item in data.items if item.kind == "classification")


def test_a_harness_counts_what_an_evaluation_counts(
    evaluated: Path, people: UnlearnData, forget: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    """The same answers, read by the pack: every verdict and every mean is that of results.json."""
    tasks = evaluation_tasks(people, forget)
    write_tasks(tasks, "people", str(checkpoint), tmp_path / "out")
    utils = module(tmp_path / "out/lmms-eval")
    lines = list(read_lines(evaluated / "predictions/vanilla.jsonl"))
    places = {(x["question"], x["subject"], x["image"]): x for x in lines if x["split"] not in ("train", "validation")}
    seen: dict[str, list[float]] = {}
    for task in tasks:
        if not task.choose:
            for e in task.examples:
                line = places.pop((e.question, e.subject, e.image.label if e.image else None))
                doc = {"answer": e.answer, "choices": list(e.choices)}
                verdict = utils.process_results(doc, [line["prediction"]])
                assert verdict["right"] == line["correct"]
                seen.setdefault(task.name, []).append(verdict["right"])
                assert utils.process_results(doc, [e.answer])["right"] == 1.0
    assert not places  # every question is in the pack
    results = load(evaluated / "results.json")["vanilla"]
    for name, path in {
        "unsee_people_forget_identity": ("names", "forget", "test"),
        "unsee_people_retain_fact": ("facts", "retain", "test"),
        "unsee_people_strangers_attribute": ("attributes", "strangers"),
        "unsee_people_retain_fact_text": ("text", "retain"),
    }.items():
        cell = at(results, *path)
        assert (len(seen[name]), sum(seen[name]) / len(seen[name])) == (cell["n"], pytest.approx(cell["value"]))


def test_the_rules_in_a_pack_are_those_of_unsee(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text(utilities())
    utils = module(tmp_path)
    options = ["Oslo", "Lima", "New Lima"]
    for said in ("oslo.", "Lima, Oslo", "new lima", "", "Oslo Lima", "Cairo", "In New Lima, not Oslo"):
        for right in options:
            for closed in ([], options):
                found = utils.process_results({"answer": right, "choices": closed}, [said])
                assert found["right"] == is_correct(said, right, closed)
                assert found["rouge_l"] == free_answers.rouge(FreeAnswer("s", said, right), None, "f")
    assert utils.process_results({"answer": "Lima", "choices": []}, ["Lima, Oslo"])["right"] == 1.0
    assert utils.process_results({"answer": "Oslo", "choices": options}, ["Lima, Oslo"])["right"] == 0.0
    assert "unsee." not in utilities()


# Command line ---------------------------------------------------------------------------------------------------------


def unsee(arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments.split())
    return int(ending.value.code or 0)


def test_commands(run: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unsee(f"benchmark scores {run} --out {tmp_path}/scores --json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "PEOPLE"
    small = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"
    tasks = f"benchmark tasks --model {checkpoint} --data {small} --out {tmp_path}/tasks"
    assert unsee(f"{tasks} --forget first:1") == 0
    assert (tmp_path / "tasks/lm-eval/unsee_people_forget_fact_text_choice.yaml").is_file()
    for arguments, expected in {
        f"benchmark scores {run} --out {run}/scores": "lies inside",
        f"benchmark scores {run} --out {tmp_path}/scores": "exists; choose another place",
        tasks.replace("/tasks", "/more"): "is no benchmark, so --forget must say whom",
        f"benchmark tasks --model {run} --data {small} --forget first:1 --out {tmp_path}/m": "no config.json",
    }.items():
        capsys.readouterr()
        assert unsee(arguments) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1
    assert not (tmp_path / "more").exists()
    assert not (tmp_path / "m").exists()


def test_questions_of_an_evaluation_are_asked_word_for_word(people: UnlearnData, forget: tuple[str, ...]) -> None:
    asked: list[Example] = [e for task in evaluation_tasks(people, forget) for e in task.examples]
    known = {(e.question, e.answer, e.image) for split in (people.test, people.strangers, people.train) for e in split}
    assert {(e.question, e.answer, e.image) for e in asked} <= known
    assert not any(e.image in people.train.pictures for e in asked if e.image)
