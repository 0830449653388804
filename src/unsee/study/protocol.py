"""Ask models what a public benchmark asks, in its own way and in a corrected one, and print its table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import read_manifest, write_json
from unsee.data.benchmarks import BENCHMARKS, read_benchmark
from unsee.data.examples import Example
from unsee.data.pictures import FileImage
from unsee.data.rows import TableImage
from unsee.errors import BadInput
from unsee.evaluation.engine import SPARE, Engine, EngineRequest
from unsee.evaluation.predict import answered, in_chunks, neighbours
from unsee.evaluation.protocols import MODES, PROTOCOLS, Goal, Mode, ProtocolQuestion, ProtocolReply, table
from unsee.evaluation.protocols.base import MARGIN, VANILLA
from unsee.evaluation.questions import warned
from unsee.journal import Journal, Line, json_line
from unsee.models.loading import Loaded, load_model
from unsee.provenance import origin
from unsee.reporting.parts import Score
from unsee.storage import alone, replace_text
from unsee.table import escape, latex_table, table_text

FOLDER, STEM = "protocol", "protocol"
BATCH = 32  # questions at once
NOT_MEASURABLE = "not measurable"
ARROWS = {"forgotten": "↓", "kept": "↑", "not judged": "·"}


def protocol_for(source: str) -> str | None:
    """The benchmark that a DATA argument names, if it names one."""
    name, marker, _ = source.partition(":")
    return name if marker and name in BENCHMARKS else None


@alone
def run_protocol(
    models: Mapping[str, str],
    data: str,
    modes: Sequence[Mode],
    out: Path,
    goal: Goal = "visual-only",
    resume: bool = False,
    seed: int = 10,
) -> dict[str, Any]:
    """Write `protocol/MODE/ROLE.jsonl`, `protocol.json`, `.csv` and `.tex` into `out`.

    Args:
        models: role -> folder or hub id. `vanilla` says what can be measured, `gold` is what models are read against.
        data: `mllmu:PATH,forget=N` and so on.
        goal: what was to be forgotten; it decides which way each number is wanted, not what is asked.
        resume: continue where a broken run of the same questions stopped.
        seed: of shots, views and samples.

    Returns:
        the content of `protocol.json`.

    Raises:
        BadInput: `data` is no benchmark, a model that does not load, or answers to other questions with `resume`.
    """
    name = protocol_for(data)
    if name is None:
        raise BadInput(f"--data {data}: no benchmark; expected one of {', '.join(f'{b}:PATH' for b in BENCHMARKS)}")
    protocol, benchmark = PROTOCOLS[name], read_benchmark(name, data.partition(":")[2])
    asked = {mode: protocol.ask(benchmark, mode, seed) for mode in modes}
    for path in [*models.values()][1:]:  # refused before anything is written
        _ready(path, name, asked)
    warnings = warned(models, benchmark.source, benchmark.forget)
    replies: dict[Mode, dict[str, list[ProtocolReply]]] = {mode: {} for mode in modes}
    manifests: dict[str, Any] = {}
    for role, path in models.items():
        loaded = _ready(path, name, asked)
        if not (resume or manifests):
            clear(out)  # as late as this: if the first model does not load, older answers stay
        hashes = loaded.folder.hashes()
        manifest = read_manifest(loaded.folder.path) or {"kind": "external"}
        backend = loaded.batcher.image_backend
        manifests[role] = {**manifest, "path": path, "sha256": hashes, "image_backend": backend}
        for mode in modes:
            about = {"model": hashes, "image_backend": backend, "asked": fingerprint(name, asked[mode])}
            journal = Journal(out / FOLDER / mode / f"{role}.jsonl", about)
            replies[mode][role] = [ProtocolReply.of(x) for x in _ask(loaded, role, name, asked[mode], journal, resume)]
    results = {
        "benchmark": name,
        "goal": goal,
        "published_goal": protocol.published,
        "margin": MARGIN,
        "roles": list(models),
        "modes": {mode: [asdict(row) for row in table(protocol, mode, goal, replies[mode])] for mode in modes},
        "provenance": {**origin(), "data": benchmark.source, "seed": seed, "models": manifests, "warnings": warnings},
    }
    write_json(out / f"{STEM}.json", results)
    replace_text(out / f"{STEM}.csv", table_text(csv_rows(results)))
    replace_text(out / f"{STEM}.tex", latex(results))
    return results


def clear(out: Path) -> None:
    """Remove what an earlier run wrote, so that nothing of it stands beside the new answers."""
    for stale in [*(out / FOLDER).glob("*/*.json*"), *(out / f"{STEM}.{end}" for end in ("json", "csv", "tex"))]:
        stale.unlink(missing_ok=True)


def fingerprint(name: str, asked: Sequence[ProtocolQuestion]) -> str:
    """SHA-256 of everything a model is shown and compared with, pictures included, in order."""
    known: dict[Any, str] = {}
    digest = hashlib.sha256()
    for one in asked:
        for image in one.pictures:
            if image not in known:
                content = image.encoded() if isinstance(image, TableImage | FileImage) else image.open().tobytes()
                known[image] = hashlib.sha256(content).hexdigest()
        shown = [known[image] for image in one.pictures]
        digest.update(json_line({**one.line("", "", None), "shown": shown, "candidates": one.candidates}).encode())
        digest.update(f"{name} {one.tokens}".encode())
    return digest.hexdigest()


def _ready(path: str, name: str, asked: Mapping[Mode, Sequence[ProtocolQuestion]]) -> Loaded:
    """The whole model, if every question can be put to it.

    Raises:
        BadInput: see `load_model` and `Batcher.check`.
    """
    loaded = load_model(path)
    loaded.batcher.check([one.example(name) for ones in asked.values() for one in ones])
    return loaded


def _ask(
    loaded: Loaded, role: str, name: str, asked: Sequence[ProtocolQuestion], journal: Journal, resume: bool
) -> list[Line]:
    """Answer all questions greedily, a line each in the journal; the same promises as `predict.predict`.

    Raises:
        BadInput: see `Journal`.
    """

    def ask(chunk: Sequence[ProtocolQuestion]) -> list[Line]:
        said = answered(loaded, [one.example(name) for one in chunk], chunk[0].tokens - SPARE)
        taken = _likelihoods(loaded, name, chunk)
        return [one.line(role, text, known) for one, text, known in zip(chunk, said, taken, strict=True)]

    def kind(one: ProtocolQuestion) -> object:
        return one.tokens, len(one.pictures), one.contrast

    return in_chunks(neighbours(asked, BATCH, kind), ask, f"asking {role}", journal, resume)


def _likelihoods(loaded: Loaded, name: str, chunk: Sequence[ProtocolQuestion]) -> list[dict[str, Any] | None]:
    """Of each question's candidates; None where they are not taken."""
    if not chunk[0].contrast:
        return [None] * len(chunk)
    examples = [one.example(name, text) for one in chunk for text in one.candidates]
    recited = recite(loaded, examples)
    found: list[dict[str, Any] | None] = []
    for one in chunk:
        (right, paraphrase, *wrong), recited = recited[: len(one.candidates)], recited[len(one.candidates) :]
        found.append(
            {
                "log_probs": list(right.log_probs),
                "hits": list(right.hits),
                "paraphrase": paraphrase.per_token,
                "wrong": [other.per_token for other in wrong],
            }
        )
    return found


@dataclass(frozen=True)
class Recited:
    """One answer, token by token, its end included.

    Attributes:
        log_probs: log p(token | picture, question, tokens before it) [tokens].
        hits: whether it was the most likely token [tokens].
    """

    log_probs: tuple[float, ...]
    hits: tuple[bool, ...]

    @property
    def per_token(self) -> float:
        return sum(self.log_probs) / len(self.log_probs)


def recite(loaded: Loaded, examples: Sequence[Example]) -> list[Recited]:
    """How likely a model finds the answers of examples, each token after the true ones before it, in order.

    Pictures and beginnings that they share are looked at once (see `Engine`).
    """
    engine = Engine(loaded, [EngineRequest(e, spoken=False) for e in examples], longest=0)
    weighed = {
        number: reply.weighed[examples[number].answer]
        for batch in engine.batches
        for number, reply in zip(batch, engine.run(batch), strict=True)
    }
    found = (weighed[number] for number in range(len(examples)))
    return [Recited(tuple(min(x, 0.0) for x in one.log_probs), one.hits) for one in found]


# The table ------------------------------------------------------------------------------------------------------------


def shown(row: Mapping[str, Any], role: str) -> str:
    """A number as it is printed; where vanilla did not know the answers, no number is."""
    return NOT_MEASURABLE if row["measurable"] is False else Score.parse(row["cells"].get(role), row["name"]).words


def label(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['part']} {row['what']}, {row['side']}", row["name"], ARROWS[row["wanted"]]


def rows_of(results: Mapping[str, Any], mode: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of one mode, for the terminal and for LaTeX."""
    roles = results["roles"]
    rows = [(*label(row), *(shown(row, role) for role in roles)) for row in results["modes"][mode]]
    return (f"{results['benchmark']}, {mode}, {results['goal']}", "number", "", *roles), rows


def csv_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line per mode, row and role; `measurable` stands beside each number, which is not hidden here."""
    for mode, rows in results["modes"].items():
        for row in rows:
            about = {key: value for key, value in row.items() if key != "cells"}
            for role, cell in row["cells"].items():
                yield {
                    "benchmark": results["benchmark"],
                    "goal": results["goal"],
                    "mode": mode,
                    **about,
                    "role": role,
                    **cell,
                }


def latex(results: Mapping[str, Any]) -> str:
    r"""One table per mode, for `\usepackage{booktabs}`."""
    vanilla = VANILLA in results["roles"]
    parts = []
    for mode in results["modes"]:
        head, rows = rows_of(results, mode)
        arrows = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "·": r"$\cdot$"}
        cells = [(*map(escape, row[:2]), arrows[row[2]], *map(escape, row[3:])) for row in rows]
        said = "\\emph{not measurable}: vanilla is less than 20 points above chance." if vanilla else ""
        caption = (
            f"{escape(results['benchmark'])}, {mode} protocol, goal {results['goal']}: 95\\,\\% intervals clustered by "
            f"person; arrows: wanted of unlearning. {said}"
        )
        columns = "llc" + "r" * (len(head) - 3)
        parts.append(latex_table(("cell", *map(escape, head[1:])), cells, columns=columns, caption=caption))
    return "\n".join(parts)


def modes_of(chosen: str) -> tuple[Mode, ...]:
    """`paper`, `corrected` or `both`.

    Raises:
        BadInput: anything else.
    """
    found = tuple(mode for mode in MODES if chosen in (mode, "both"))
    if not found:
        raise BadInput(f"--mode {chosen}: expected paper, corrected or both")
    return found
