"""Results as others read them: logs in the form of open-unlearning, a long CSV table, LaTeX.

open-unlearning (github.com/locuslab/open-unlearning, `src/evals/base.py`) leaves two files per model: `NAME_EVAL.json`,
{metric: {"agg_value": x, "value_by_index": {index: {...}}}}, and `NAME_SUMMARY.json`, {metric: x} without what is
null. Scores keep their interval and the number of answers beside `agg_value`; readers of that form ignore further keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import fsum, isclose
from typing import Any

from unsee.errors import BadInput
from unsee.table import escape, latex_share, latex_table

Line = Mapping[str, Any]  # one answer, as `predictions/ROLE.jsonl` holds it
Score = Mapping[str, Any]  # value, low, high, n
Entry = dict[str, Any]
Log = dict[str, Entry]  # metric -> agg_value, low, high, n and, for a mean over answers, value_by_index
RECOGNITION = ("identity", "fact")  # as `evaluation.score` has it
SHOWN = {"input": "question", "ground_truth": "answer", "generation": "prediction"}  # what that form calls them


def evaluation_log(cells: Mapping[tuple[str, ...], Score], lines: Sequence[Line], where: str) -> Log:
    """The log of one model from its scores and answers.

    Args:
        cells: path in `results.json` -> score.
        lines: the model's answers, in order: their number is the index.
        where: the file of the answers, for messages.

    Returns:
        for ("forget", "test") the metric `forget_test`, and so on. Misattribution and health are no means over answers
        and have `agg_value` alone.

    Raises:
        BadInput: scores that are not the mean of these answers.
    """
    log: Log = {}
    for path, cell in cells.items():
        name, entry = metric(*path), _entry(cell)
        asked = {str(n): line for n, line in enumerate(lines) if _counts(path, line)}
        if _counted(path):
            entry["value_by_index"] = {index: _one(line) for index, line in asked.items()}
            found = [line["correct"] for line in asked.values()]
            mean = fsum(found) / len(found) if found else None
            if (mean is None) != (cell["value"] is None) or not isclose(mean or 0, cell["value"] or 0, abs_tol=1e-9):
                raise BadInput(
                    f"{where}: {'.'.join(path)} is {cell['value']} in results.json, but the mean of its {len(found)} "
                    f"answers here is {mean}; run `unsee evaluate` again"
                )
        log[name] = entry
    return log


def scores_log(scores: Mapping[str, Mapping[str, Score]]) -> Log:
    """The log of {measure: {set: score}}, as `measures.json` has them: `answer_probability_forget`, and so on."""
    return {metric(measure, part): _entry(cell) for measure, parts in scores.items() for part, cell in parts.items()}


def protocol_log(modes: Mapping[str, Sequence[Mapping[str, Any]]], role: str) -> Log:
    """The log of one model from the rows of `protocol.json`: `corrected_forget_cloze_image_accuracy`, and so on.

    `measurable` stands beside each number: whether vanilla knew enough for it to say anything. None is left out.
    """
    return {
        metric(mode, *(row[key] for key in ("part", "what", "side", "name"))): {
            **_entry(row["cells"][role]),
            "measurable": row["measurable"],
        }
        for mode, rows in modes.items()
        for row in rows
    }


def metric(*words: str) -> str:
    """A name as open-unlearning has them: letters and digits, joined by underscores."""
    return "_".join(re.findall("[0-9A-Za-z]+", " ".join(words)))


def summary(log: Log) -> dict[str, float]:
    """{metric: number}; what was not asked is left out, as open-unlearning does."""
    return {name: entry["agg_value"] for name, entry in log.items() if entry["agg_value"] is not None}


def long_rows(logs: Mapping[str, Log]) -> Iterator[dict[str, Any]]:
    """One row per model and metric, for CSV."""
    for role, log in logs.items():
        for name, entry in log.items():
            yield {"model": role, "metric": name, "value": entry["agg_value"], **_ends(entry), "n": entry["n"]}


def scores_table(logs: Mapping[str, Log]) -> str:
    r"""One row per metric that some model has, one column per model, percent with 95 % intervals; for `booktabs`."""
    names = dict.fromkeys(name for log in logs.values() for name in summary(log))
    rows = [[escape(name), *(_cell(log.get(name)) for log in logs.values())] for name in names]
    return latex_table(["in \\%", *map(escape, logs)], rows)


def _entry(cell: Score) -> Entry:
    return {"agg_value": cell["value"], **_ends(cell), "n": cell["n"]}


def _ends(cell: Score) -> dict[str, float | None]:
    return {"low": cell["low"], "high": cell["high"]}


def _one(line: Line) -> Entry:
    shown = {theirs: line[ours] for theirs, ours in SHOWN.items()}
    return {"correct": float(line["correct"]), **shown, "subject": line["subject"], "image": line.get("image")}


def _counted(path: Sequence[str]) -> bool:
    """Whether a score is the share of right answers among some of the lines."""
    return path[0] not in ("misattribution", "health")


def _counts(path: Sequence[str], line: Line) -> bool:
    """Whether an answer counts for a score of `results.json`: the rule of `evaluation.score`, path by path."""
    match path:
        case ("forget" | "retain" as part, split):
            return (line["set"], line["split"]) == (part, split) and line["probe"] in RECOGNITION
        case ("names" | "facts" as what, part, split):
            probe = "identity" if what == "names" else "fact"
            return bool((line["set"], line["split"], line["probe"]) == (part, split, probe))
        case ("attributes", part):
            split = "strangers" if part == "strangers" else "test"
            return bool((line["set"], line["split"], line["probe"]) == (part, split, "attribute"))
        case ("bystanders", "test"):
            return bool(line["set"] == "bystanders")
        case ("text", part):
            return bool((line["set"], line["split"]) == (part, "text"))
    return False


def _cell(entry: Entry | None) -> str:
    return latex_share(entry and {"value": entry["agg_value"], **_ends(entry)})
