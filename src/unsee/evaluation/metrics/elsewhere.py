"""What other commands measure, for the list of `unsee list metrics`: it is read off no records.

Names are those of the files and of the keys in them. Kept apart from the functions, for those load torch.
"""

from unsee.evaluation.metrics.base import About

ELSEWHERE: dict[str, dict[str, About]] = {
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
