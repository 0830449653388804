"""What others go on with: an evaluation's scores in their formats, and its questions as tasks of their harnesses.

Task packs are written in the form of lm-evaluation-harness 0.4.13 (questions in text) and lmms-eval 0.7.3 (questions
about pictures), and both have run them (docs/interchange.md). A task is one YAML file beside its questions. Relative
paths in it count from the folder of the pack, so both programs are started there.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import new_folder, write_json
from unsee.data import normalisation
from unsee.data.benchmarks import BenchmarkData, BenchmarkItem
from unsee.data.examples import Example, Split, UnlearnData
from unsee.data.export import export_data
from unsee.errors import BadInput
from unsee.evaluation import answers
from unsee.evaluation.metrics import free_answers
from unsee.evaluation.questions import PICTURES, questions
from unsee.interop.formats import (
    Log,
    evaluation_log,
    long_rows,
    protocol_log,
    scores_log,
    scores_table,
    summary,
)
from unsee.journal import read_lines
from unsee.models.loading import open_checkpoint
from unsee.reporting.read import read_run
from unsee.storage import alone
from unsee.table import table_text

LONGEST = 128  # tokens per answer; our choice, longer than what benchmarks ask for
TAG = "unsee"  # by which all tasks of a pack are called
BLANK = "[Blank]"  # what UMU-Bench and the code of MLLMU-Bench print for `__`
LMMS_MODELS = {"llava": "llava_hf", "llava_next": "llava_hf", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}

# Scores ---------------------------------------------------------------------------------------------------------------


@alone
def write_scores(folder: Path, out: Path) -> dict[str, Any]:
    """Write what `unsee evaluate` or `unsee benchmark run` left in `folder` into a new folder, in other tools' forms.

    Leaves `ROLE/NAME_EVAL.json` and `ROLE/NAME_SUMMARY.json` for every model, NAME being the kind of the data in
    capitals, and `scores.csv` and `scores.tex` for all of them.

    Raises:
        BadInput: nothing to read, files that do not hold what they should, or scores that are not those of the answers.
    """
    name, logs = "", dict[str, Log]()
    for file, read in (("results.json", _evaluated), ("measures.json", _measured), ("protocol.json", _asked)):
        if (folder / file).is_file():
            source, found = read(folder)
            name = name or source.partition(":")[0].upper()
            for role, log in found.items():
                logs.setdefault(role, {}).update(log)
    if not logs:
        raise BadInput(
            f"{folder}: no results.json, measures.json or protocol.json; run `unsee evaluate --out {folder}`"
        )
    with new_folder(out) as new:
        for role, log in logs.items():
            (new / role).mkdir()
            write_json(new / role / f"{name}_EVAL.json", dict(sorted(log.items())))
            write_json(new / role / f"{name}_SUMMARY.json", dict(sorted(summary(log).items())))
        (new / "scores.csv").write_text(table_text(long_rows(logs)), encoding="utf-8")
        (new / "scores.tex").write_text(scores_table(logs), encoding="utf-8")
    return {"out": str(out), "name": name, "models": {role: summary(log) for role, log in logs.items()}}


Found = tuple[str, dict[str, Log]]  # DATA argument, role -> log


def _evaluated(folder: Path) -> Found:
    run, logs = read_run(folder), dict[str, Log]()
    for role in run.roles:
        file = folder / "predictions" / f"{role.name}.jsonl"
        if not file.is_file():
            raise BadInput(f"{file}: not found, though results.json holds this model; run `unsee evaluate` again")
        cells = {path: vars(cell) for path, cell in role.cells.items()}
        logs[role.name] = evaluation_log(cells, list(read_lines(file)), str(file))
    return str((run.provenance.get("data") or {}).get("source")), logs


def _measured(folder: Path) -> Found:
    with _reading(folder / "measures.json") as held:
        logs = {role: scores_log(scores) for role, scores in held["models"].items()}
        return str(held["provenance"]["data"]["source"]), logs


def _asked(folder: Path) -> Found:
    with _reading(folder / "protocol.json") as held:
        rows = {mode: held["modes"][mode] for mode in held["modes"]}
        return str(held["benchmark"]), {role: protocol_log(rows, role) for role in held["roles"]}


@contextmanager
def _reading(file: Path) -> Iterator[dict[str, Any]]:
    try:
        yield json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{file}: does not hold what unsee writes there ({reason}); run the command again") from error


# Questions ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Questions of one kind about one set.

    Attributes:
        name: unique in the pack.
        examples: as they are put to the model; `choices` are the options that an answer is read against.
        choose: weigh the options by their likelihood instead of reading an answer.
    """

    name: str
    examples: tuple[Example, ...]
    choose: bool = False

    @property
    def pictured(self) -> bool:
        return self.examples[0].image is not None


def evaluation_tasks(data: UnlearnData, forget: Sequence[str]) -> list[Task]:
    """The questions of `unsee evaluate` on test pictures, strangers, bystanders and in text, word for word, by set and
    probe.
    """
    names = tuple(dict.fromkeys(data.names.values()))
    found: dict[str, list[Example]] = {}
    for q in questions(data, forget, {**PICTURES, "train": 0, "validation": 0}):
        e = replace(q.example, choices=names) if q.example.probe == "identity" else q.example
        found.setdefault(f"{q.part}_{e.probe}{'' if e.image else '_text'}", []).append(e)
    return list(_tasks(data.source.partition(":")[0], found))


def benchmark_tasks(benchmark: BenchmarkData) -> list[Task]:
    """A benchmark's scored questions by part and kind; one about several views is asked about each of them."""
    found: dict[str, list[Example]] = {}
    for item in benchmark.items:
        for view in range(max(1, len(item.images))):
            found.setdefault(f"{item.part}_{item.kind}{'' if item.images else '_text'}", []).append(_put(item, view))
    return list(_tasks(benchmark.source.partition(":")[0], found))


def _put(item: BenchmarkItem, view: int) -> Example:
    """A question as a model is asked it; our words, the same for all benchmarks. Options say nothing by their order."""
    e = item.example(view)
    if item.kind == "cloze":
        return replace(e, question=f"{e.question.replace('__', BLANK)}\nWhich words belong in the place of {BLANK}?")
    if item.kind == "classification":
        options = e.choices if item.letters else tuple(sorted(e.choices))
        listed = f"\nAnswer with one of: {'; '.join(options)}" if item.images else ""
        return replace(e, question=e.question + listed, choices=options)
    return e


def _tasks(kind: str, found: Mapping[str, Sequence[Example]]) -> Iterator[Task]:
    """Each group as a task; with options and in text also by likelihood, and multiple choice in text only so."""
    for name, examples in found.items():
        stem = f"{TAG}_{kind}_{name}"
        closed = not examples[0].image and all(e.choices for e in examples)
        if not (closed and "classification" in name):
            yield Task(stem, tuple(examples))
        if closed:
            yield Task(f"{stem}_choice", tuple(examples), choose=True)


# Packs ----------------------------------------------------------------------------------------------------------------


@alone
def write_tasks(tasks: Iterable[Task], source: str, model: str, out: Path) -> dict[str, Any]:
    """Write `lm-eval/` and `lmms-eval/`, each only if there are questions for it, and a `README.md` with the commands.

    Args:
        source: the DATA argument the questions come from.
        model: the checkpoint the commands are written for.

    Raises:
        BadInput: no such checkpoint, a family that is not supported, or a picture that cannot be read.
    """
    folder, _, family = open_checkpoint(model)
    place = str(folder.path.resolve()) if Path(model).is_dir() else model  # the commands run in another folder
    written = dict[str, int]()
    with new_folder(out) as new:
        for task in tasks:
            pack = new / ("lmms-eval" if task.pictured else "lm-eval")
            pack.mkdir(exist_ok=True)
            (_pictured if task.pictured else _in_text)(task, pack)
            (pack / "utils.py").write_text(utilities(), encoding="utf-8")
            written[task.name] = len(task.examples)
        (new / "README.md").write_text(_readme(source, place, LMMS_MODELS[family.name]), encoding="utf-8")
    return {"out": str(out), "tasks": written}


def _in_text(task: Task, folder: Path) -> None:
    rows = []
    for e in task.examples:
        options = list(dict.fromkeys((*e.choices, e.answer))) if task.choose else list(e.choices)
        row = {"question": e.question, "answer": e.answer, "subject": e.subject, "key": e.key, "choices": options}
        rows.append(row | ({"gold": options.index(e.answer)} if task.choose else {}))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / f"{task.name}.jsonl").write_text("".join(lines), encoding="utf-8")
    about = _about(task, "json", "jsonl") | {"doc_to_text": "question"}
    if task.choose:
        about |= {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
        about |= {"metric_list": [_mean("acc")]}
    else:
        about |= _free({"until": ["\n\n"], "max_gen_toks": LONGEST, "do_sample": False})
    _write_yaml(about, folder / f"{task.name}.yaml")


def _pictured(task: Task, folder: Path) -> None:
    data = UnlearnData(task.name, Split(), Split(), Split(task.examples))
    export_data(data, folder / f"{task.name}.parquet")
    about = _about(task, "parquet", "parquet") | _free({"max_new_tokens": LONGEST, "do_sample": False})
    about |= {"doc_to_visual": Function("doc_to_visual"), "doc_to_text": Function("doc_to_text")}
    _write_yaml(about, folder / f"{task.name}.yaml")


def _about(task: Task, builder: str, ending: str) -> dict[str, Any]:
    files = {"data_files": {"test": f"{task.name}.{ending}"}}
    return {"task": task.name, "tag": TAG, "dataset_path": builder, "dataset_kwargs": files, "test_split": "test"}


def _free(generation: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": generation,
        "process_results": Function("process_results"),
        "metric_list": [_mean("right"), _mean("rouge_l")],
    }


def _mean(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


class Function(str):
    """The name of a function of `utils.py` beside the YAML file."""


def _write_yaml(about: Mapping[str, Any], path: Path) -> None:
    """Every value but a function as JSON, which YAML reads as it is."""
    lines = []
    for key, value in {**about, "metadata": {"version": 1.0}}.items():
        said = f"!function utils.{value}" if isinstance(value, Function) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{key}: {said}\n")
    path.write_text("".join(lines), encoding="utf-8")


# What stands in the packs ---------------------------------------------------------------------------------------------

HEAD = '''"""How answers are read: written by unsee, from its own source; needs nothing but Python.

`right`: the true answer is the first option named or, without options, stands in the answer. `rouge_l`: F of the
longest common subsequence of words, nothing stemmed; 0 where nothing is shared.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, namedtuple
from functools import lru_cache

Said = namedtuple("Said", ("given", "right"))
'''
TAIL = """

def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    around = lmms_eval_specific_kwargs or {}
    return around.get("pre_prompt", "") + doc["question"] + around.get("post_prompt", "")


def process_results(doc, results):
    said = results[0].strip()
    shared = rouge(Said(said, doc["answer"]), None, "f")
    return {"right": float(is_correct(said, doc["answer"], doc["choices"])), "rouge_l": shared or 0.0}
"""


def utilities() -> str:
    """The `utils.py` of a pack: a copy of the functions by which unsee itself reads answers, so both read alike."""
    counting = [getattr(free_answers, name) for name in ("rouge", "_matches", "_grams", "_subsequence")]
    reading = [normalisation.plain, normalisation._kind, answers._first, answers.mentioned, answers.is_correct]
    return HEAD + "".join(f"\n\n{inspect.getsource(inspect.unwrap(part))}" for part in (*reading, *counting)) + TAIL


def _readme(source: str, model: str, lmms_model: str) -> str:
    return f"""# Tasks from {source}

Written by unsee for {model}, in the form of lm-evaluation-harness 0.4.13 and lmms-eval 0.7.3. They hold names, pictures
and answers of everybody asked about: handle them as you do the data.

    cd lm-eval && lm_eval --model hf-multimodal --model_args pretrained={model} \\
        --include_path . --tasks {TAG} --apply_chat_template

    cd lmms-eval && python -m lmms_eval --model {lmms_model} --model_args pretrained={model},device_map=auto \\
        --include_path . --tasks {TAG} --batch_size 1

Without a GPU put `device_map=cpu,device=cpu` in the place of `device_map=auto`. Tasks named `_choice` weigh options by
likelihood; the others read answers.
"""
