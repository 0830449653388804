"""Nothing is shipped wrecked: what an edited model must still do before it is written.

Thresholds are our choice: generous enough for honest baselines, tight enough that a collapsed model never leaves. A
model that can do so little before the edit that no loss would show cannot be judged: that is said before the edit.
"""

from __future__ import annotations

import torch

from unsee.data.examples import Split
from unsee.errors import BadInput, GateFailed
from unsee.evaluation.answers import is_correct, is_empty, repeats
from unsee.evaluation.predict import generate, longest_answer
from unsee.methods import FeatureStudy
from unsee.models.loading import Loaded
from unsee.models.packed import Packed

LARGEST_DROP = 0.10  # share of retained pictures or answers
LARGEST_ILL = 0.10  # share of empty or repeating answers
SAMPLE = 240  # pictures or questions
GO_ON = "`unsee unlearn --no-gate` goes on without judging"


class FeatureGate:
    """Retained pictures must stay nearest their own subject's reference centroid. No answers are needed.

    Raises:
        BadInput: hardly any of them is before the edit.
    """

    def __init__(self, study: FeatureStudy) -> None:
        self._study = study
        count = len(study.retain)
        self._sample = torch.arange(count)[:: max(1, count // SAMPLE)]
        self._before = self._recognised(study.retain.tokens[self._sample])
        if self._before <= LARGEST_DROP:
            raise BadInput(
                f"before the edit {self._before:.0%} of the retained pictures are nearest their own subject: this "
                "model does not tell these people apart, so the gate cannot judge an edit of it. Is it the right one, "
                f"with its own processor, and the right data? {GO_ON}"
            )

    @torch.no_grad()
    def check(self) -> None:
        """Raises GateFailed if too many retained pictures moved to another subject."""
        after = self._recognised(self._study.tail(self._study.retain.hidden[self._sample]))
        if self._before - after > LARGEST_DROP:
            raise GateFailed(
                f"retained pictures nearest their own subject fell from {self._before:.0%} to {after:.0%} "
                f"(limit: {LARGEST_DROP:.0%} less); nothing was written. Ask for a smaller edit, or use --no-gate"
            )

    def _recognised(self, tokens: Packed) -> float:
        study = self._study
        nearest = (study.direction(tokens) @ study.centroids.T).argmax(1)
        return (nearest == study.retain.subject[self._sample]).float().mean().item()


class AnswerGate:
    """Retained validation questions must still be answered, and no more answers be empty or repeating than before.

    Raises:
        BadInput: hardly any is answered before the edit, or there is none.
    """

    def __init__(self, loaded: Loaded, retain: Split) -> None:
        self._loaded = loaded
        asked = retain.pictured.examples
        self._asked = asked[:: max(1, len(asked) // SAMPLE)]
        if not self._asked:
            raise BadInput(
                "no validation picture is left of what must stay, so the gate has nothing to ask about; add pictures. "
                f"{GO_ON}"
            )
        self._right, self._ill = self._ask(loaded)
        if self._right <= LARGEST_DROP:
            answered = f"{self._right:.0%}" if self._right else "none"
            raise BadInput(
                f"before the edit the model answers {answered} of the retained validation questions right, so the gate "
                "cannot judge an edit of it. Does the model know these people (is it the right one, with its own "
                f"processor), and are the data's questions and answers those it learnt? {GO_ON}"
            )

    def check(self, edited: Loaded | None = None) -> None:
        """Raises GateFailed if the model, or `edited` in its place, lost what it had to keep."""
        right, ill = self._ask(edited or self._loaded)
        if self._right - right > LARGEST_DROP or ill - self._ill > LARGEST_ILL:
            raise GateFailed(
                f"right answers about retained validation pictures went from {self._right:.0%} to {right:.0%}, empty "
                f"or repeating ones from {self._ill:.0%} to {ill:.0%} (limit: {LARGEST_DROP:.0%} less, "
                f"{LARGEST_ILL:.0%} more); nothing was written. Lower learning_rate or steps, or use --no-gate"
            )

    def _ask(self, loaded: Loaded) -> tuple[float, float]:
        said = generate(loaded, self._asked, longest_answer(loaded, self._asked))
        right = [is_correct(text, e.answer, e.choices) for e, text in zip(self._asked, said, strict=True)]
        ill = [repeats(text) or is_empty(text) for text in said]
        return sum(right) / len(right), sum(ill) / len(ill)
