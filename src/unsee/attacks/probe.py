"""Linear probes on the hidden states of several models, each stage read against gold and random weights.

Can the states of pictures at one stage still be told apart by who they show?
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from unsee.attacks.relearn import Counts, text_alone
from unsee.attacks.relearn_plan import check_sizes
from unsee.attacks.relearn_run import about_model, cell, gain
from unsee.checkpoint.folder import write_json
from unsee.data.examples import Example, ImageSource, Split, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.questions import warned
from unsee.journal import Journal
from unsee.methods.parts.features import entering, evenly
from unsee.models.loading import Loaded, load_model, load_visual
from unsee.models.packed import Packed
from unsee.provenance import origin
from unsee.reporting.probing import GOLD, GROUPS, RANDOM, csv_rows, page
from unsee.storage import alone, replace_text
from unsee.table import table_text

LINES, RESULT, TABLE, PAGE = "probes.jsonl", "probes.json", "probes.csv", "probes.html"
RESERVED = (RANDOM, "settings", "provenance")
QUESTION = "Who is this?"  # where the data asks nobody's name


@dataclass(frozen=True)
class Probing:
    """What a probe is given; the same for every model.

    Attributes:
        pictures: per subject to learn from: so many training pictures, and as many validation pictures. Few, for with
            many every trained tower tells everybody apart, also people it never saw, and nothing can stand out.
        test_pictures: per subject to be named.
        others: retained subjects, evenly spaced, among whom the forgotten are to be found; fewer if there are fewer.
        depths: blocks of the tower and layers of the language model that are read, evenly spaced with the last.
    """

    pictures: int = 1
    test_pictures: int = 12
    others: int = 60
    depths: int = 4

    def __post_init__(self) -> None:
        """All at least one, see `check_sizes`."""
        check_sizes(self)


ProbeRecord = dict[str, Any]
"""One model: `role`, `sha256`, `seconds`, `image_backend` and `stages`, each with its `width`, `ridge`, `left_out` and
`right`: subject -> test pictures named right, test pictures."""


@dataclass(frozen=True)
class ProbeData:
    """Whom probes are to tell apart, and on which pictures; the same for every model.

    Attributes:
        forget, others: subjects, forgotten and retained.
        learn: training and validation pictures with their subject. test: test pictures.
        question: put to the language model about every picture.
    """

    forget: tuple[str, ...]
    others: tuple[str, ...]
    learn: Mapping[ImageSource, str]
    test: Mapping[ImageSource, str]
    question: str


def probe_data(data: UnlearnData, forget: Sequence[str], settings: Probing) -> ProbeData:
    """The pictures of the forget subjects, and of others among whom they are to be found.

    One probe tells all of them apart, so one forgotten subject is enough: it is then told from the retained.

    Raises:
        BadInput: a forget subject with fewer than two pictures to learn from or no test picture, or no retained subject
            that has them.
    """

    def some(split: Split, number: int) -> dict[ImageSource, str]:
        return {image: group[0].subject for image, group in split.pictured.first_pictures(number).pictures.items()}

    learn = {**some(data.train, settings.pictures), **some(data.validation, settings.pictures)}
    test = some(data.test, settings.test_pictures)
    to_learn, to_test = list(learn.values()), set(test.values())
    fit = [s for s in dict.fromkeys(to_learn) if s in to_test and to_learn.count(s) > 1]
    for subject in forget:
        if subject not in fit:
            raise BadInput(
                f"{data.source}: '{subject}' has {to_learn.count(subject)} training and validation pictures to learn "
                f"from and {'some' if subject in to_test else 'no'} test pictures; a probe needs two and one"
            )
    retained = [s for s in fit if s not in forget]
    if not retained:
        raise BadInput(f"{data.source}: no retained subject has two pictures to learn from and one to test; add some")
    others = tuple(retained[i] for i in evenly(len(retained), settings.others).tolist())
    known = {*forget, *others}
    asked = [e.question for e in data.train.pictured if e.probe == "identity"]
    return ProbeData(
        tuple(forget),
        others,
        {image: subject for image, subject in learn.items() if subject in known},
        {image: subject for image, subject in test.items() if subject in known},
        asked[0] if asked else QUESTION,
    )


@alone
def probe(
    models: Mapping[str, str],
    data: UnlearnData,
    forget: Sequence[str],
    settings: Probing,
    seed: int,
    out: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Write `probes.jsonl`, one line per finished model, `probes.json`, `probes.csv` and `probes.html` into `out`.

    Args:
        models: role -> folder or hub id; they are only read. To them comes `random`: the first one's configuration.
        forget: subjects that were to be forgotten.
        seed: of the random weights; nothing else is drawn.
        resume: keep finished models of a broken run, as far as they have the same weights; others may be added.

    Returns:
        the content of `probes.json`.

    Raises:
        BadInput: a model that does not load, one of other stages than the first, data without the pictures probes need,
            or `resume` where probes of other data or settings stand.
    """
    for role in models:
        if role in RESERVED:
            raise BadInput(f"--model {role}={models[role]}: '{role}' is a key of {RESULT}; choose another role")
    plan = probe_data(data, forget, settings)
    about = {role: about_model(path) for role, path in models.items()}
    warnings = warned(models, data.source, forget, data.fingerprint)
    first = next(iter(models))
    about[RANDOM] = {
        "kind": f"configuration of {first}, weights drawn with seed {seed}",
        "sha256": about[first]["sha256"],
    }
    identity = {
        "data": data.fingerprint,
        "forget": list(forget),
        "seed": seed,
        "settings": dataclasses.asdict(settings),
    }
    journal = Journal(out / LINES, identity, "probes of other data or settings")
    done = {record["role"]: record for record in journal.left(resume)}
    done = {role: done[role] for role in about if role in done and done[role]["sha256"] == about[role]["sha256"]}
    begun = False
    for role in about:
        if role not in done:
            path = models.get(role, models[first])
            record = _probed(role, path, seed if role == RANDOM else None, plan, settings)
            _same_stages({**done, role: record})
            if not begun:  # as late as this: if the first model does not load, older results stay
                for stale in (RESULT, TABLE, PAGE):
                    (out / stale).unlink(missing_ok=True)
                journal.begin(done.values())
                begun = True
            done[role] = {**record, "sha256": about[role]["sha256"]}
            journal.append([done[role]])
    results: dict[str, Any] = outcome({role: done[role] for role in about}, plan.forget)
    results["settings"] = {**dataclasses.asdict(settings), "seed": seed, "question": plan.question}
    results["provenance"] = {
        **origin(),
        "data": data.record,
        "forget": list(plan.forget),
        "others": list(plan.others),
        "warnings": warnings,
        "pictures": {"learn": len(plan.learn), "test": len(plan.test)},
        "models": {role: {**about[role], "image_backend": done[role]["image_backend"]} for role in about},
    }
    write_json(out / RESULT, results)
    replace_text(out / TABLE, table_text(csv_rows(results)))
    replace_text(out / PAGE, page(results))
    return results


def _probed(role: str, path: str, seed: int | None, plan: ProbeData, settings: Probing) -> ProbeRecord:
    """What probes find in one model; with a seed, in one of its configuration with random weights."""
    began = time.perf_counter()
    loaded = load_model(path) if seed is None else random_model(path, seed)
    images, learnt = [*plan.learn, *plan.test], len(plan.learn)
    seen = states(loaded, images, plan.question, settings.depths, f"stages of {role}")
    stages = {}
    for stage, values in seen.items():
        if not values.isfinite().all():
            raise BadInput(f"--model {role}={path}: {stage} is not finite; this model is broken, leave it out")
        found = Probe.fit(values[:learnt], list(plan.learn.values()))
        stages[stage] = {
            "width": values.shape[1],
            "ridge": found.strength,
            "left_out": found.left_out,
            "right": found.count(values[learnt:], list(plan.test.values())),
        }
    return {
        "role": role,
        "stages": stages,
        "seconds": time.perf_counter() - began,
        "image_backend": loaded.batcher.image_backend,
    }


def _same_stages(records: Mapping[str, ProbeRecord]) -> None:
    (first, one), *rest = records.items()
    for role, other in rest:
        if list(other["stages"]) != list(one["stages"]):
            raise BadInput(
                f"--model {role}: has the stages {', '.join(other['stages'])}, but '{first}' has "
                f"{', '.join(one['stages'])}; probe models of one configuration together"
            )


def outcome(records: Mapping[str, ProbeRecord], forget: Sequence[str]) -> dict[str, Any]:
    """Cells of every model at every stage, for forgotten and retained subjects, over gold and over random weights."""

    def part(role: str, stage: str, group: str) -> Counts:
        right = records[role]["stages"][stage]["right"]
        return {s: (n[0], n[1]) for s, n in right.items() if (s in forget) == (group == "forget")}

    def over(base: str, role: str, stage: str) -> dict[str, Any] | None:
        if role == base or base not in records:
            return None
        return {group: gain(part(base, stage, group), part(role, stage, group)) for group in GROUPS}

    return {
        role: {
            "stages": {
                stage: {
                    **{group: cell(part(role, stage, group)) for group in GROUPS},
                    "over_gold": over(GOLD, role, stage),
                    "over_random": over(RANDOM, role, stage),
                    "subjects": {s: n[0] / n[1] for s, n in part(role, stage, "forget").items()},
                    **{key: found[key] for key in ("width", "ridge", "left_out")},
                }
                for stage, found in record["stages"].items()
            },
            "seconds": record["seconds"],
        }
        for role, record in records.items()
    }


# Hidden states of every stage -----------------------------------------------------------------------------------------

States = dict[str, Tensor]
"""Stage -> one vector per picture [pictures, width of the stage], float32, on the processor."""

TOWER, PROJECTOR = "tower output", "visual tokens"


@torch.no_grad()
def states(loaded: Loaded, images: Sequence[ImageSource], question: str, depths: int, what: str) -> States:
    """The states of pictures at every stage, in the order in which a pass goes through them.

    Inside the visual module a picture is the mean over its positions; in the language model it is the state at the last
    position of the prompt, where the answer begins. Each picture passes the model once. At most
    `features.POSITIONS` positions (or one picture) are in the tower at a time, and prompts of equal length in the
    language model, so nothing is padded and a picture's states do not depend on its neighbours.

    Args:
        images: one or more.
        question: asked about every picture alone.
        depths: how many blocks of the tower, and layers of the language model, are read, see `evenly_deep`.
        what: is done, for the progress bar.
    """
    visual = loaded.visual
    cuts = evenly_deep(len(visual.blocks), depths)
    names = [*(f"vision block {cut}" for cut in cuts[:-1]), TOWER][: len(cuts)]
    found: dict[str, list[Tensor]] = {}
    at = 0
    for hidden in entering(visual, loaded.batcher, images, what):
        start = 0
        for cut, name in zip(cuts, names, strict=True):
            hidden = visual.run(hidden, start, cut)
            found.setdefault(name, []).append(hidden.with_states(hidden.states.float()).mean())
            start = cut
        tokens = visual.leave(hidden)
        found.setdefault(PROJECTOR, []).append(tokens.with_states(tokens.states.float()).mean())
        shown = images[at : at + len(tokens)]
        for name, values in _answering(loaded, tokens, shown, question, depths).items():
            found.setdefault(name, []).append(values)
        at += len(tokens)
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def _answering(
    loaded: Loaded, tokens: Packed, images: Sequence[ImageSource], question: str, depths: int
) -> dict[str, Tensor]:
    """States at the answer position after layers of the language model [pictures, width]."""
    batcher = loaded.batcher
    layers: Sequence[nn.Module] = list(loaded.family.language_model(loaded.model).layers)  # type: ignore[arg-type]
    chosen = {f"language layer {number}": layers[number - 1] for number in evenly_deep(len(layers), depths)}
    shown = loaded.visual.assemble(tokens, batcher.images(images))
    alike: dict[int, list[int]] = {}
    for picture, positions in enumerate(shown):
        alike.setdefault(len(positions), []).append(picture)
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for pictures in alike.values():
        asked = [Example(question, "", "", images[picture], "identity") for picture in pictures]
        prompts = text_alone(batcher.for_generation(asked))
        with last_positions(chosen) as latest:
            loaded.family.with_visual_tokens(loaded.model, [shown[picture] for picture in pictures], prompts)
        for name in chosen:
            found[name].append(latest[name])
    order = torch.tensor([picture for pictures in alike.values() for picture in pictures]).argsort()
    return {name: torch.cat(parts)[order] for name, parts in found.items()}


@contextmanager
def last_positions(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each layer gives at the last position in its latest call [rows, width]; only that is kept of a pass."""
    latest: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            latest[name] = states[:, -1].float()

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def evenly_deep(count: int, depths: int) -> tuple[int, ...]:
    """After how many of `count` layers to read: at most `depths` places, evenly spaced, the last layer among them."""
    places = min(depths, count)
    return tuple(-(-count * (place + 1) // places) for place in range(places))


def random_model(path: str, seed: int) -> Loaded:
    """A model of the configuration of a checkpoint whose weights were never trained: as its class draws them.

    It reads pictures and words as that checkpoint does. The global random state is left as it was.

    Raises:
        BadInput: see `load_visual`.
    """
    with torch.random.fork_rng(devices=[]):
        known = load_visual(path)
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(known.model.config, dtype=torch.float32)
    return dataclasses.replace(known, model=model.eval().to(known.batcher.device))


# One probe on the states of one stage ---------------------------------------------------------------------------------

STRENGTHS = tuple(10.0**-power for power in range(-1, 7))
"""Ridges that are tried, relative to the mean variance of a feature within subjects; the strongest first."""
ROUNDING = 1e-6  # spread of a feature, relative to its size, below which it is rounding


@dataclass(frozen=True)
class Probe:
    """Nearest subject under one metric for all: a linear classifier, since what is quadratic in a picture cancels.

    Attributes:
        centre, scale: of features, x -> (x - centre) * scale [width]; 0 for a feature that does not vary.
        metric: to coordinates in which subjects scatter alike in all directions [width, directions].
        means: of the subjects in these coordinates [subjects, directions].
        subjects: whom they belong to.
        strength: the ridge that was chosen, one of `STRENGTHS`.
        left_out: share of training pictures named right by the others, mean over subjects, at that ridge.
    """

    centre: Tensor
    scale: Tensor
    metric: Tensor
    means: Tensor
    subjects: tuple[str, ...]
    strength: float
    left_out: float

    @staticmethod
    def fit(states: Tensor, subjects: Sequence[str]) -> Probe:
        """Ridge linear discriminant: d(x, k) = (x - m_k)' (S + r I)^-1 (x - m_k), the nearest k is said.

        S is the covariance within subjects, each subject weighing the same, and no subject is held to be likelier than
        another. The ridge r (Friedman 1989, doi 10.1080/01621459.1989.10478752,
        with the identity as target) is the one under which most training pictures are named right when each in turn is
        left out, which has a closed form (`_left_out`): no random folds, and the order of pictures plays no part. Of
        equal ridges the strongest. Our choice over logistic regression and over ridge regression on indicators, both of
        which found less on the pocket model of people 100 (docs/probes.md).

        Args:
            states: [pictures, width]; finite.
            subjects: whom each picture shows; two or more, each with two pictures or more.
        """
        names = tuple(sorted(set(subjects)))
        label = torch.tensor([names.index(subject) for subject in subjects])
        x = states.double()
        centre, spread = x.mean(0), x.std(0)
        varies = spread > ROUNDING * x.abs().amax(0)
        scale = torch.where(varies, 1 / spread.where(varies, torch.ones_like(spread)), 0)
        x = (x - centre) * scale
        turned = torch.linalg.qr(x.T).Q if x.shape[1] > len(x) else torch.eye(x.shape[1], dtype=x.dtype)
        x = x @ turned  # no more directions than pictures; what a ridge finds lies within these
        means = torch.stack([x[label == number].mean(0) for number in range(len(names))])
        scatter = x - means[label]
        count = torch.bincount(label).double()[label]  # pictures of the same subject [pictures]
        within = scatter.T @ (scatter / (count * len(names))[:, None])
        variances, axes = torch.linalg.eigh(within)
        size = (within.trace() / varies.sum()).clamp(min=torch.finfo(torch.float64).tiny)
        best: tuple[float, float, Tensor] | None = None
        for strength in STRENGTHS:
            metric = axes / (variances.clamp(min=0) + strength * size).sqrt()
            right = _left_out(x @ metric, means @ metric, label, count)
            score = round(float((right / count).sum()) / len(names), 12)  # not by rounding better than a stronger one
            if best is None or score > best[0]:
                best = score, strength, metric
        assert best is not None
        score, strength, metric = best
        return Probe(centre, scale, turned @ metric, means @ metric, names, strength, score)

    def named(self, states: Tensor) -> list[str]:
        """Who is seen in each picture [pictures, width]."""
        x = ((states.double() - self.centre) * self.scale) @ self.metric
        return [self.subjects[number] for number in _distances(x, self.means).argmin(1).tolist()]

    def count(self, states: Tensor, subjects: Sequence[str]) -> Counts:
        """Pictures of each subject that are named right, and pictures of it, for subjects in order of their names."""
        found: Counts = dict.fromkeys(sorted(set(subjects)), (0, 0))
        for said, true in zip(self.named(states), subjects, strict=True):
            right, asked = found[true]
            found[true] = right + (said == true), asked + 1
        return found


def _distances(x: Tensor, means: Tensor) -> Tensor:
    """Squared distances [pictures, subjects]."""
    return x.square().sum(1, keepdim=True) - 2 * x @ means.T + means.square().sum(1)


def _left_out(x: Tensor, means: Tensor, label: Tensor, count: Tensor) -> Tensor:
    """Whether each picture is named right by a probe fitted on all others [pictures], without fitting them.

    In coordinates in which S + r I is the identity, leaving out picture i of subject k, of which there are n, with
    scatter s = x - m_k moves m_k by -s / (n - 1) and takes c s s' off S, c = n / (n - 1) times its weight. By the
    formula of Sherman and Morrison a distance |d|^2 becomes |d|^2 + c (s'd)^2 / (1 - c s's). Weights, scaling and r
    stay.

    Args:
        x: [pictures, directions]. means: [subjects, directions].
        label: number of the subject [pictures]. count: of its pictures, n [pictures].
    """
    rows = torch.arange(len(x))
    scatter = x - means[label]
    along = (scatter * x).sum(1, keepdim=True) - scatter @ means.T  # s'd [pictures, subjects]
    squared = _distances(x, means)
    own, stretch = scatter.square().sum(1), count / (count - 1)
    along[rows, label], squared[rows, label] = own * stretch, own * stretch**2  # d = s n / (n - 1) to the moved mean
    taken = stretch / (count * len(means))
    left = squared + (taken / (1 - taken * own))[:, None] * along**2
    return left.argmin(1) == label
