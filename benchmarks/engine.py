"""What the engine saves: it against a plain loop, one question at a time, over all questions of an evaluation.

    .venv/bin/python benchmarks/engine.py --model runs/a/vanilla --data people:count=20,seed=10 --forget first:2

Two jobs are timed. *Answers*: what `unsee evaluate` asks, greedily. *Measures*: what measures are taken of, a greedy
answer and the likelihood of every answer that is weighed, each in a pass of its own in the plain loop. Pictures are
prepared beforehand for both. Exit code 1 if an answer, or a likelihood by more than 1e-3, differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from unsee.data.examples import Example
from unsee.data.sources import load_data
from unsee.evaluation.engine import Engine, EngineRequest, answers
from unsee.evaluation.predict import generate, longest_answer
from unsee.evaluation.questions import asked_of, everything
from unsee.models.batching import answer_scores
from unsee.models.loading import Loaded, load_model

T = TypeVar("T")
Found = tuple[list[str | None], list[float]]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--data", required=True)
    options.add_argument("--forget", default="first:2")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    loaded, data = load_model(given.model), load_data(given.data)
    forget = data.choose(given.forget)
    asked = [q.example for q in everything(data, forget)]
    requests = [a.request for a in asked_of(data, forget)]
    longest = longest_answer(loaded, asked)
    for image in dict.fromkeys(image for e in asked for image in e.images):
        loaded.batcher.images([image])
    print("| job | questions | plain (s) | engine (s) | ratio | same answers | likelihoods apart |")
    print("|---|--:|--:|--:|--:|---|--:|")
    said, slow = timed(lambda: [text for e in asked for text in generate(loaded, [e], longest)])
    again, fast = timed(lambda: answers(loaded, asked, longest))
    fine = row("answers", len(asked), slow, fast, said == again, 0.0)
    (said_, weighed), slow = timed(lambda: plainly(loaded, requests, longest))
    (again_, reweighed), fast = timed(lambda: together(loaded, requests, longest))
    apart = max(abs(one - other) for one, other in zip(weighed, reweighed, strict=True))
    return 0 if row("measures", len(requests), slow, fast, said_ == again_, apart) and fine else 1


def row(job: str, questions: int, slow: float, fast: float, same: bool, apart: float) -> bool:
    verdict = "yes" if same else "NO"
    print(
        f"| {job} | {questions} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} | {verdict} | {apart:.1g} |", flush=True
    )
    return same and apart <= 1e-3


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Its result and the processor's seconds: others may be at work on this machine."""
    started = time.process_time()
    return work(), time.process_time() - started


def plainly(loaded: Loaded, requests: Sequence[EngineRequest], longest: int) -> Found:
    given = [generate(loaded, [r.example], longest)[0] if r.spoken else None for r in requests]
    return given, [alone(loaded, r.example, a) for r in requests for a in (r.example.answer, *r.others)]


@torch.no_grad()
def alone(loaded: Loaded, e: Example, answer: str) -> float:
    """Log-likelihood of one answer, in a pass of its own."""
    scores, targets, _ = answer_scores(
        loaded.model, loaded.batcher.for_training([dataclasses.replace(e, answer=answer)])
    )
    return float(scores.log_softmax(-1).gather(1, targets[:, None]).sum())


def together(loaded: Loaded, requests: Sequence[EngineRequest], longest: int) -> Found:
    run = Engine(loaded, requests, longest)
    found = {i: reply for batch in run.batches for i, reply in zip(batch, run.run(batch), strict=True)}
    replies = [found[i] for i in range(len(requests))]
    return [r.given for r in replies], [sum(w.log_probs) for r in replies for w in r.weighed.values()]


if __name__ == "__main__":
    sys.exit(main())
