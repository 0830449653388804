"""An edit by a method on answers: the whole model is loaded and trained, pruned, or told what not to say."""

from __future__ import annotations

import time

from unsee.data.examples import Split
from unsee.editing.edit import Edit, add, as_written
from unsee.editing.gate import AnswerGate
from unsee.editing.request import EditRequest, EditSets
from unsee.errors import BadInput
from unsee.methods import DirectOutputMethod, InContextUnlearning, OutputMethod
from unsee.models.loading import Loaded
from unsee.training.loop import History


def edit_outputs(loaded: Loaded, method: OutputMethod, request: EditRequest, sets: EditSets) -> Edit:
    """Carry out a method on answers, in place.

    Args:
        loaded: the whole model, in float32.
        method: the request's.

    Raises:
        BadInput: nothing to forget but what anybody can see. GateFailed: the edit did too much damage.
    """
    start = time.perf_counter()
    keeps = AnswerGate(loaded, sets.validation.without(sets.forget.subjects)) if request.gate else None
    forget = _to_forget(sets.forget)
    if isinstance(method, DirectOutputMethod):
        deltas, own = method.solve(loaded, forget, sets.retain), dict(loaded.model.named_parameters())
        loaded.checkpoint_keys(deltas)
        before = {name: own[name].detach().clone() for name in deltas}
        edited = add(deltas, own)
        history: History = []
    else:
        plan = method.plan(loaded, forget, sets.retain)
        loaded.checkpoint_keys(plan.edited)  # what cannot be written is refused before it is trained
        loaded.model.train()
        before = {name: p.detach().clone() for name, p in plan.edited.items()}
        edited, history = dict(plan.edited), plan.carry_out(method.name)
    seconds = time.perf_counter() - start
    as_written(edited, loaded, method.name)
    loaded.model.eval()
    if keeps is not None:
        keeps.check()
    return Edit(seconds, before, history, None)


def _to_forget(forget: Split) -> Split:
    """The questions that must no longer be answered: not those about what anybody can see in the picture.

    Our choice, for every method on answers: unlearning visible attributes is asked by nobody, and methods that teach
    another answer to every question about a target would take them along (docs/LOG.md).

    Raises:
        BadInput: nothing is left.
    """
    asked = Split(tuple(e for e in forget if e.probe != "attribute"))
    if not asked.pictured:
        raise BadInput(
            f"{', '.join(forget.subjects)}: asked about their pictures is nothing but visible attributes, which stay; "
            "add questions about who is shown, or take a method on features, such as nscvf"
        )
    return asked


def edit_prompt(loaded: Loaded, method: InContextUnlearning, request: EditRequest, sets: EditSets) -> tuple[Edit, str]:
    """An edit of no weight, and what is to stand in front of every chat template.

    Raises:
        GateFailed: the instruction did too much damage.
    """
    start = time.perf_counter()
    keeps = AnswerGate(loaded, sets.validation.without(sets.forget.subjects)) if request.gate else None
    instructed = method.instructed(loaded, sets.forget)
    seconds = time.perf_counter() - start
    if keeps is not None:
        keeps.check(instructed)
    return Edit(seconds, {}, [], None), method.prelude(sets.forget)
