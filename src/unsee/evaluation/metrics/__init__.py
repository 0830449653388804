"""The literal table of measures. Adding one: a function with its formula and source, a line here, a row in the page."""

from typing import Any

from unsee.evaluation.metrics import (
    accuracy,
    against_gold,
    health,
    joint,
    membership,
    memory,
    overlap,
    probability,
    ranking,
    utility,
)
from unsee.evaluation.metrics.base import Cost, Direction, Measure, Record

MEASURES: dict[str, Measure[Any]] = {
    "accuracy": accuracy.accuracy,
    "cloze": accuracy.cloze,
    "rouge-1-f": overlap.rouge_1_f,
    "rouge-1-recall": overlap.rouge_1_recall,
    "rouge-2-f": overlap.rouge_2_f,
    "rouge-2-recall": overlap.rouge_2_recall,
    "rouge-l-f": overlap.rouge_l_f,
    "rouge-l-recall": overlap.rouge_l_recall,
    "bleu": overlap.mean_bleu,
    "answer-probability": probability.answer_probability,
    "truth-ratio": probability.truth_ratio,
    "truth-ratio-forget": probability.truth_ratio_forget,
    "truth-ratio-retain": probability.truth_ratio_retain,
    "forget-quality": against_gold.forget_quality,
    "ks-distance": against_gold.ks_distance,
    "jensen-shannon": against_gold.jensen_shannon,
    "model-utility": utility.model_utility,
    "extraction-strength": memory.extraction_strength,
    "exact-memorisation": memory.exact_memorisation,
    "candidate-first": ranking.candidate_first,
    "candidate-rank": ranking.candidate_rank,
    "candidate-probability": ranking.candidate_probability,
    "member-loss": membership.loss,
    "member-zlib": membership.zlib_ratio,
    "member-min-k": membership.min_k,
    "member-min-k-plus-plus": membership.min_k_plus_plus,
    "member-reference": membership.reference,
    "member-gradient-norm": membership.gradient_norm,
    "joint-right": joint.joint_right,
    "joint-wrong": joint.joint_wrong,
    "joint-overlap-retain": joint.joint_overlap_retain,
    "joint-overlap-forget": joint.joint_overlap_forget,
    "health-empty": health.empty,
    "health-repeated": health.repeated,
    "health-off-list": health.unlisted,
}

# Of those that speak for themselves, the most sensitive of each kind of record: found by `unsee study audit` on
# people 100-102 (docs/verdict.md). The report begins with them, and verdicts rest on them where no settings say
# otherwise.
LEADING = ("answer-probability", "truth-ratio", "rouge-1-f")

__all__ = ["LEADING", "MEASURES", "Cost", "Direction", "Measure", "Record"]
