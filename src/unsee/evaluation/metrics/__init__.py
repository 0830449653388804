"""The literal table of measures. Adding one: a function with its formula and source, a line here, a row in the page."""

from typing import Any

from unsee.evaluation.metrics import free_answers, likelihoods, membership
from unsee.evaluation.metrics.base import About, Measure

MEASURES: dict[str, Measure[Any]] = {
    "accuracy": free_answers.accuracy,
    "cloze": free_answers.cloze,
    "rouge-1-f": free_answers.rouge_1_f,
    "rouge-1-recall": free_answers.rouge_1_recall,
    "rouge-2-f": free_answers.rouge_2_f,
    "rouge-2-recall": free_answers.rouge_2_recall,
    "rouge-l-f": free_answers.rouge_l_f,
    "rouge-l-recall": free_answers.rouge_l_recall,
    "bleu": free_answers.mean_bleu,
    "answer-probability": likelihoods.answer_probability,
    "truth-ratio": likelihoods.truth_ratio,
    "truth-ratio-forget": likelihoods.truth_ratio_forget,
    "truth-ratio-retain": likelihoods.truth_ratio_retain,
    "forget-quality": likelihoods.forget_quality,
    "ks-distance": likelihoods.ks_distance,
    "jensen-shannon": likelihoods.jensen_shannon,
    "model-utility": likelihoods.model_utility,
    "extraction-strength": likelihoods.extraction_strength,
    "exact-memorisation": likelihoods.exact_memorisation,
    "candidate-first": likelihoods.candidate_first,
    "candidate-rank": likelihoods.candidate_rank,
    "candidate-probability": likelihoods.candidate_probability,
    "member-loss": membership.loss,
    "member-zlib": membership.zlib_ratio,
    "member-min-k": membership.min_k,
    "member-min-k-plus-plus": membership.min_k_plus_plus,
    "member-reference": membership.reference,
    "member-gradient-norm": membership.gradient_norm,
    "joint-right": free_answers.joint_right,
    "joint-wrong": free_answers.joint_wrong,
    "joint-overlap-retain": free_answers.joint_overlap_retain,
    "joint-overlap-forget": free_answers.joint_overlap_forget,
    "health-empty": free_answers.empty,
    "health-repeated": free_answers.repeated,
    "health-off-list": free_answers.unlisted,
}

# Of those that speak for themselves, the most sensitive of each kind of record: found by `unsee study audit` on
# people 100-102 (docs/verdict.md). The report begins with them, and verdicts rest on them where no settings say
# otherwise.
LEADING = ("answer-probability", "truth-ratio", "rouge-1-f")

# What other commands measure, for `unsee list metrics`: it is read off no records, and taken by functions that load
# torch. File -> key in it.
OTHER_COMMANDS: dict[str, dict[str, About]] = {
    "sequence": {
        "over_gold": About(
            formula="A_now - A_gold, right answers about everybody who has asked so far",
            higher="knows more",
            span=(-1.0, 1.0),
            cost=("answers", "every model", "gold model"),
            source="ours: each subject is compared with itself",
        ),
        "loss": About(
            formula="A_vanilla - A_now, right answers about whom none names, about what is visible, and in text",
            higher="lost more",
            span=(-1.0, 1.0),
            cost=("answers", "every model"),
            source="ours",
        ),
        "rebound": About(
            formula="A_now - A_own, right answers about those of earlier requests, A_own: right after their own",
            higher="came back more",
            span=(-1.0, 1.0),
            cost=("answers", "every model"),
            source="ours: adds up over all later requests",
        ),
        "rebound_per_request": About(
            formula="mean over requests b of max(0, A_history,b - A_history,b-1)",
            higher="came back more",
            cost=("answers", "every model"),
            source="Forgetting Rebound as other work on continual unlearning writes it, in our reading",
        ),
        "retain_stability": About(
            formula="mean over requests b of |A_retain,b - A_retain,b-1|",
            higher="moved more",
            cost=("answers", "every model"),
            source="Retain Stability Rate as other work on continual unlearning writes it",
        ),
    },
    "probes": {
        "forget": About(
            formula="pictures of the forgotten that a linear probe names right / all",
            higher="knows more",
            cost=("states",),
            source="ours: ridge linear discriminant (Friedman, 1989)",
        ),
        "over_gold": About(
            formula="the same - that of a gold model",
            higher="knows more",
            span=(-1.0, 1.0),
            cost=("states", "gold model"),
            source="ours",
        ),
        "over_random": About(
            formula="the same - that of random weights",
            higher="knows more",
            span=(-1.0, 1.0),
            cost=("states", "random model"),
            source="ours",
        ),
    },
    "relearn": {
        "gain": About(
            formula="right answers after attacks - before, about those whose pictures the attacks did not use",
            higher="came back more",
            span=(-1.0, 1.0),
            cost=("answers", "training"),
            source="VKD (arXiv 2512.11325), relearning attack; held-out halves are ours",
        ),
    },
}

__all__ = ["LEADING", "MEASURES", "OTHER_COMMANDS", "Measure"]
