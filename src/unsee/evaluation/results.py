"""What an evaluation found, as one object: `results.json` is written from it, and read into it by whoever reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from unsee.errors import BadInput
from unsee.evaluation.verdict import (
    SCORED,
    Cells,
    Roles,
    VerdictSettings,
    Word,
    is_role,
    verdicts,
    with_scores,
)

SCHEMA = 2  # of `results.json`; 1, which no file names, has no verdicts
AGAIN = "run `unsee evaluate` again"
BESIDE = ("cost", "certificate", "tensors", "verdict")  # what stands beside a model's scores


def check_role(role: str, argument: str) -> None:
    """Refuse what cannot name a model: it is a key of `results.json` and the name of files.

    Raises:
        BadInput: says that it was given in `argument`.
    """
    if not isinstance(role, str) or not role.replace("-", "").replace("_", "").isalnum() or role == "provenance":
        raise BadInput(f"{argument}: role {role!r}; a role is letters, digits, '-' and '_', and not 'provenance'")


@dataclass(frozen=True)
class ModelResult:
    """What was found of one model.

    Attributes:
        scores: cells by key, as `evaluation.score` gives them; docs/evaluation.md says what they are.
        about: `cost`, `certificate` and `tensors`, as far as there are such.
        measures: measure -> set -> cell.
        verdict: what `verdict.assess` says; None of gold and vanilla models, and of what was never judged.
    """

    scores: Mapping[str, Any]
    about: Mapping[str, Any]
    measures: Cells = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took to make the model, if its folder says so."""
        known: float | None = (self.about.get("cost") or {}).get("seconds")
        return known

    def to_json(self) -> dict[str, Any]:
        return {**self.scores, **self.about} | ({} if self.verdict is None else {"verdict": self.verdict})


@dataclass(frozen=True)
class Results:
    """A whole evaluation: models by role, and where everything comes from."""

    models: Mapping[str, ModelResult]
    provenance: Mapping[str, Any]

    def judged(self) -> Results:
        """With the verdict on every model that has none yet and is neither a gold nor a vanilla one."""
        said = verdicts(self.measures, VerdictSettings())
        models = {
            role: replace(one, verdict=one.verdict or said[role]) if role in said else one
            for role, one in self.models.items()
        }
        return replace(self, models=models)

    @cached_property
    def measures(self) -> dict[str, dict[str, dict[str, Mapping[str, Any]]]]:
        """`models` of `measures.json`: measures, and of the scores what a verdict reads."""
        return {role: with_scores(one.measures, one.scores) for role, one in self.models.items()}

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        models = {role: one.to_json() for role, one in self.models.items()}
        return {**models, "provenance": {"schema": SCHEMA, **self.provenance}}

    @staticmethod
    def from_json(content: Mapping[str, Any], measures: Roles, where: str) -> Results:
        """What `to_json` gave, or an older `results.json`.

        Args:
            measures: of the `measures.json` beside it, if there is one.
            where: what messages begin with.

        Raises:
            BadInput: something that no evaluation writes, or that a newer unsee wrote.
        """
        provenance = content.get("provenance")
        if not isinstance(provenance, dict) or not isinstance(provenance.get("forget"), list):
            raise BadInput(f"{where}: expected the key 'provenance' with the list 'forget'; {AGAIN}")
        schema = provenance.get("schema", 1)
        if isinstance(schema, bool) or not isinstance(schema, int) or schema > SCHEMA:
            raise BadInput(f"{where}: provenance.schema is {schema!r}, this unsee reads up to {SCHEMA}; update unsee")
        found = {
            role: raw for role, raw in content.items() if isinstance(raw, dict) and isinstance(raw.get("forget"), dict)
        }
        if not found:
            raise BadInput(f"{where}: holds no model's scores; {AGAIN}")
        for role, raw in found.items():
            for key in dict.fromkeys(what for what, _ in SCORED):
                _scores(raw.get(key), f"{where}: {role}.{key}")
            if "verdict" in raw and not _is_verdict(raw["verdict"]):
                raise BadInput(f"{where}: {role}.verdict: expected what an evaluation writes there; {AGAIN}")
        models = {
            role: ModelResult(
                {key: value for key, value in raw.items() if key not in BESIDE},
                {key: raw[key] for key in BESIDE[:-1] if key in raw},
                measures.get(role, {}),
                None if is_role(role, "gold") or is_role(role, "vanilla") else raw.get("verdict"),
            )
            for role, raw in found.items()
        }
        return Results(models, provenance)


def _scores(raw: object, where: str) -> None:
    """Refuse what a verdict cannot be read from; an absent score is none."""
    if raw is None:
        return
    if not isinstance(raw, Mapping):
        raise BadInput(f"{where}: expected an object, found {type(raw).__name__}; {AGAIN}")
    for part, cell in raw.items():
        if cell is None:
            continue
        if not isinstance(cell, Mapping):
            raise BadInput(f"{where}.{part}: expected an object with value, low, high and n; {AGAIN}")
        for key in ("value", "low", "high"):
            x = cell.get(key)
            if x is not None and (isinstance(x, bool) or not isinstance(x, int | float) or not 0 <= x <= 1):
                raise BadInput(f"{where}.{part}.{key}: expected a fraction from 0 to 1 or null, found {x!r}; {AGAIN}")


def _is_verdict(one: Any) -> bool:
    try:
        lines = [line for criterion in one["criteria"] for line in criterion["lines"]]
        words = {x["verdict"] for x in (one, *one["criteria"], *lines)}
        texts = [line[key] for line in lines for key in ("of", "finding")]
        texts += [criterion["sentence"] for criterion in one["criteria"]]
        values = [line.get(key) for line in lines for key in ("value", "gold", "vanilla", "most", "position")]
    except (KeyError, TypeError, AttributeError):
        return False
    return (
        len(one["criteria"]) == 3
        and words <= set(get_args(Word))
        and all(isinstance(text, str) for text in texts)
        and all(value is None or isinstance(value, int | float) for value in values)
    )


@dataclass(frozen=True)
class Measures:
    """A `measures.json`: cells by role, measure and set, and what was wrong with what the models were asked."""

    models: Roles
    warnings: tuple[str, ...]


def read_measures(file: Path, where: str) -> Measures:
    """What `evaluate` writes, or an older `measures.json`.

    Args:
        where: what messages begin with.

    Raises:
        BadInput: what was expected where.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for role, measures in content["models"].items():
            for measure, parts in measures.items():
                for part, cell in parts.items():
                    if cell["value"] is not None and not math.isfinite(cell["value"]):
                        raise BadInput(f"{where}: {role}.{measure}.{part}: {cell['value']} is no value; measure again")
    except OSError as error:
        raise BadInput(f"{where}: cannot be read ({error.strerror}); expected a measures.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{where}: not a measures.json ({' '.join(str(error).split())}); expected models, by role, measure and set"
        ) from error
    about = content.get("provenance") or {}
    found = about.get("warnings", {}) if isinstance(about, dict) else None
    if not isinstance(found, dict) or not all(isinstance(said, list) for said in found.values()):
        raise BadInput(f"{where}: provenance.warnings: expected lists of sentences by role; measure again")
    return Measures(content["models"], tuple(str(sentence) for said in found.values() for sentence in said))
