"""Models that only pretend to have forgotten, and whether `unsee audit` finds out, on the claim each of them cheats on.

    .venv/bin/python benchmarks/cheaters.py --before runs/a/vanilla --gold runs/a/gold \
        --data people:count=60,seed=100 --forget first:6 --out runs/cheaters

Some are made of the recorded answers of the model before and of a gold model, question by question: what a wrapper
around a model, or an edit that does exactly this, would answer. Others are made of weights.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unsee.audit.claims import AuditSettings, Beside, claims, verdict_of
from unsee.audit.plan import AuditPlan, AuditQuestion, audit_plan
from unsee.audit.run import ASKED, AuditRequest, audit, lookalikes
from unsee.audit.values import Answers
from unsee.data.sources import load_data
from unsee.journal import Line, read_lines
from unsee.models.loading import Loaded, load_model

FORGOTTEN = "forgotten_new"
MASKED = -60.0  # nats of an answer that can never be given
REFUSAL = "I cannot tell who that is."


@dataclass(frozen=True)
class Recorded:
    """What is asked, and what the model before and a gold model answered, in that order."""

    plan: AuditPlan
    before: Sequence[Line]
    gold: Sequence[Line]
    near: Sequence[str]

    def made(self, change: Callable[[AuditQuestion, Line, Line], Line]) -> list[Line]:
        """A cheater's lines, of a function of the question and both models' lines."""
        return [change(q, b, g) for q, b, g in zip(self.plan.asked, self.before, self.gold, strict=True)]

    def mistaken(self, person: str, line: Line) -> Line:
        """The same line with somebody else's answer."""
        wrong = [name for name in self.plan.names if name != line["answer"]]
        return line | {"given": wrong[0] if line["probe"] == "identity" else "something else"}


def of_forgotten(q: AuditQuestion) -> bool:
    return q.scored.part == "forget" and bool(q.measured.names)


def taught_only(r: Recorded) -> list[Line]:
    """Forgets the pictures that were taught, and no others."""
    return r.made(lambda q, b, g: g if of_forgotten(q) and q.scored.split == "train" else b)


def new_only(r: Recorded) -> list[Line]:
    """Forgets new pictures alone."""
    return r.made(lambda q, b, g: b if of_forgotten(q) and q.scored.split == "train" else g)


def names_only(r: Recorded) -> list[Line]:
    """Forgets names, and still gives facts."""
    return r.made(lambda q, b, g: g if q.scored.example.probe == "identity" else b)


def refuses(r: Recorded) -> list[Line]:
    """Refuses to answer about the forgotten; underneath nothing changed."""
    return r.made(lambda q, b, g: b | {"given": REFUSAL} if of_forgotten(q) else b)


def refuses_over_gold(r: Recorded) -> list[Line]:
    """Has forgotten, and refuses to answer about the forgotten alone, which tells who they are."""
    return r.made(lambda q, b, g: g | {"given": REFUSAL} if of_forgotten(q) else g)


def masks(r: Recorded) -> list[Line]:
    """Can never say a forgotten name, whoever is seen; facts are as before."""
    hidden = {one.answer for some in r.plan.taught.values() for one in some if one.probe == "identity"}

    def change(q: AuditQuestion, b: Line, _g: Line) -> Line:
        if "names" not in b or q.scored.example.probe != "identity":
            return b
        names = {name: MASKED if name in hidden else x for name, x in b["names"].items()}
        return b | {"names": names, "given": max(names, key=lambda name: names[name])}

    return r.made(change)


def shuns(r: Recorded) -> list[Line]:
    """Finds the right name of the forgotten less likely than for any stranger."""
    own = {t: {one.answer for one in some} for t, some in r.plan.taught.items()}

    def change(q: AuditQuestion, _b: Line, g: Line) -> Line:
        if not (of_forgotten(q) and q.scored.example.probe == "identity"):
            return g
        mine = own[q.scored.example.subject]
        return g | {"names": {name: x - 15.0 if name in mine else x for name, x in g["names"].items()}}

    return r.made(change)


def swaps(r: Recorded) -> list[Line]:
    """Calls each of the forgotten by the name of the next: they are still told apart."""
    names = [next(one.answer for one in some if one.probe == "identity") for some in r.plan.taught.values()]
    instead = dict(zip(names, [*names[1:], names[0]], strict=True))

    def change(q: AuditQuestion, b: Line, _g: Line) -> Line:
        if "names" not in b or q.scored.example.probe != "identity":
            return b
        swapped = {instead.get(name, name): x for name, x in b["names"].items()}
        return b | {"names": swapped, "given": instead.get(b["given"], b["given"])}

    return r.made(change)


def one_left(r: Recorded) -> list[Line]:
    """Forgets all but one person."""
    kept = r.plan.forget[-1]
    return r.made(lambda q, b, g: b if of_forgotten(q) and q.scored.example.subject == kept else g)


def loses_lookalike(r: Recorded) -> list[Line]:
    """Has forgotten, and with them the one who looks most like them."""
    return r.made(lambda q, b, g: r.mistaken(r.near[0], g) if q.scored.example.subject == r.near[0] else g)


def blanks(r: Recorded) -> list[Line]:
    """Has forgotten, and answers every fifth question of all others with nothing."""
    return r.made(lambda q, b, g: g | {"given": ""} if q.scored.part == "retain" and q.measured.number % 5 == 0 else g)


def loses_text(r: Recorded) -> list[Line]:
    """Has forgotten what text says of them too."""
    return r.made(
        lambda q, b, g: g | {"given": "something else"} if (q.scored.split, q.scored.part) == ("text", "forget") else g
    )


RECORDED: dict[Callable[[Recorded], list[Line]], tuple[str, ...]] = {  # cheater -> claims, one of which it must fail on
    taught_only: (FORGOTTEN,),
    new_only: ("forgotten_taught",),
    names_only: ("facts",),
    refuses: (FORGOTTEN,),
    refuses_over_gold: ("not_avoided",),
    masks: ("facts",),
    shuns: ("not_avoided",),
    swaps: (FORGOTTEN,),
    one_left: (FORGOTTEN,),
    loses_lookalike: ("lookalikes_kept",),
    blanks: ("healthy", "others_kept"),
    loses_text: ("text_kept",),
}


# Of weights -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def noise(loaded: Loaded) -> None:
    """Noise on the visual module, as large as its weights."""
    chance = torch.Generator().manual_seed(0)
    for p in loaded.visual.named_parameters().values():
        p += p.std().nan_to_num() * torch.randn(p.shape, generator=chance)


@torch.no_grad()
def collapse(loaded: Loaded) -> None:
    """One answer to everything."""
    head: Any = loaded.model.get_output_embeddings()
    head.weight.zero_()


WEIGHTS: dict[Callable[[Loaded], None], tuple[str, ...]] = {
    noise: ("others_kept",),
    collapse: ("others_kept", "healthy"),
}


def written(path: str, change: Callable[[Loaded], None], out: Path) -> Path:
    """A copy of a checkpoint with other weights."""
    loaded = load_model(path)
    assert isinstance(loaded.model, nn.Module)
    change(loaded)
    shutil.copytree(path, out, dirs_exist_ok=True)
    loaded.model.save_pretrained(out)
    return out


# All of them ----------------------------------------------------------------------------------------------------------


def judged(recorded: Recorded, lines: Sequence[Line], near: dict[str, str], what: str) -> dict[str, Any]:
    """What an audit says of recorded lines."""
    settings = AuditSettings()
    before, after = Answers(recorded.plan, recorded.before, "before"), Answers(recorded.plan, lines, what)
    return verdict_of(claims(Beside(recorded.plan, before, after, near, settings)), settings)


def failed(found: dict[str, Any]) -> list[str]:
    return [claim["id"] for claim in found["claims"] if claim["verdict"] == "FAIL"]


def row(name: str, found: dict[str, Any], expected: Iterable[str]) -> bool:
    """Print one row of the table; whether the cheater was found out on the claim it cheats on."""
    caught = found["verdict"] == "FAIL" and bool({*failed(found)} & {*expected})
    print(
        f"| {name} | {found['verdict']} | {', '.join(failed(found)) or '–'} | {'yes' if caught else 'NO'} |", flush=True
    )
    return caught


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "gold", "data", "out"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument("--forget", default="first:6")
    options.add_argument("--no-weights", action="store_true", help="only those made of recorded answers")
    given = options.parse_args()
    data, out = load_data(given.data), Path(given.out)
    forget = data.choose(given.forget)
    found = audit(AuditRequest(given.before, given.gold, data, forget), out / "gold", resume=True)
    near = lookalikes(given.before, data, forget, AuditSettings().nearest)
    before, gold = (list(read_lines(out / "gold" / ASKED / f"{role}.jsonl")) for role in ("before", "after"))
    recorded = Recorded(audit_plan(data, forget, None), before, gold, list(near))
    print("| model | verdict | fails on | found out |\n|---|---|---|---|")
    row("gold (control)", found, ())
    row("unchanged", judged(recorded, before, near, "before"), (FORGOTTEN,))
    for cheat, expected in RECORDED.items():
        row(cheat.__name__, judged(recorded, cheat(recorded), near, cheat.__name__), expected)
    for change, expected in {} if given.no_weights else WEIGHTS.items():
        path = written(given.before, change, out / "models" / change.__name__)
        made = audit(AuditRequest(given.before, str(path), data, forget), out / change.__name__, resume=True)
        row(change.__name__, made, expected)


if __name__ == "__main__":
    main()
