"""Build pocket models, cached: the vanilla model, and the gold model that never saw the target's pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unsee.checkpoint.folder import MANIFEST, CheckpointFolder, new_folder, write_json
from unsee.data import people, world
from unsee.data.benchmarks import BENCHMARKS
from unsee.data.examples import Split, UnlearnData
from unsee.data.sources import GENERATED
from unsee.data.world import DOMAINS, make_emblems, make_things
from unsee.device import on_device
from unsee.errors import BadInput
from unsee.lab.base import UNKNOWN, BaseData, BaseRecipe, pretrain
from unsee.lab.benchmark_lessons import Lessons, benchmark_lessons
from unsee.lab.pocket import PocketFamily, PocketParts, Shape
from unsee.lab.pocket_llava import PocketLlava
from unsee.lab.pocket_qwen import PocketQwen
from unsee.lab.precision import native_precision, precision
from unsee.lab.teach import FewShotRecipe, TeachRecipe, teach, teach_few_shot
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.provenance import cache_directory, origin, versions

POCKETS: dict[str, type[PocketLlava | PocketQwen]] = {
    "llava": PocketLlava,
    "qwen2_vl": PocketQwen,
}


@dataclass(frozen=True)
class Recipe:
    """How a pocket model is made; chosen on people and model seeds 100-102 (docs/LOG.md).

    Attributes:
        shape: sizes of the model; None: those its family was given.
        augment: move and relight the pictures while training; for photos and benchmarks, which have few per subject.
    """

    shape: Shape | None = None
    base: BaseRecipe = field(default_factory=BaseRecipe)
    teach: TeachRecipe = field(default_factory=TeachRecipe)
    augment: bool = False


@dataclass(frozen=True)
class BenchmarkRecipe(Recipe):
    """With a third stage for benchmarks whose protocol puts worked examples in front of its questions."""

    few_shot: FewShotRecipe = field(default_factory=FewShotRecipe)


PEOPLE = Recipe()
PEOPLE_OTHERWISE = {  # families that learn people in their own way
    "qwen2_vl": Recipe(base=BaseRecipe(steps=700), teach=TeachRecipe(weight_decay=0.5)),
}
WORLD = 130  # things of each domain that the base of a world sees; with none digits are known to 33 %, shapes to 27 %
STEPS_PER_PERSON = 10
DRAWN = (people.__file__, world.__file__)  # what makes pictures
PHOTOS = Recipe(
    base=BaseRecipe(objective="classes", steps=4000, weight_decay=0.1),
    teach=TeachRecipe(steps=1200, pictures=96, tower_rate=0.5),
    augment=True,
)
BENCHMARK = BenchmarkRecipe(  # docs/LOG.md; blanks and sentences are learned in so many steps, letters are not
    teach=TeachRecipe(steps=800, pictures=32, questions=4, text_rows=32, tower_rate=0.3),
    augment=True,
)


def recipe_for(family: str, data: UnlearnData) -> Recipe:
    """The recipe for this data; more than eighty generated people take more steps (with 800, two hundred are known to
    73 %; with ten steps each, to 97 %: docs/LOG.md). So do bystanders: as many more as there are more pictures.
    """
    if not _generated(data):
        return BENCHMARK if _benchmark(data) else PHOTOS
    recipe = PEOPLE_OTHERWISE.get(family, PEOPLE)
    steps = max(recipe.teach.steps, STEPS_PER_PERSON * len(data.train.pictured.subjects))
    steps += steps * len(data.bystander_lessons.pictures) // len(data.train.pictures)
    base = recipe.base
    if data.bystander_lessons:
        more = base.steps * len(DOMAINS) * WORLD // base.strangers
        base = dataclasses.replace(base, steps=base.steps + more, things=WORLD)
    return dataclasses.replace(recipe, base=base, teach=dataclasses.replace(recipe.teach, steps=steps))


def build_pocket(
    family: str, data: UnlearnData, seed: int, out: Path, without: Sequence[str] = (), recipe: Recipe | None = None
) -> dict[str, Any]:
    """Train a pocket model on `data` (or take it from the cache) and write it to `out`.

    Args:
        family: a key of `POCKETS`.
        seed: of weights, order and strangers.
        without: subjects whose pictures are never shown; their text questions stay. This makes the gold model.

    Returns:
        its manifest, as written beside the weights; `seconds` are those of the training, not of a cache hit.

    Raises:
        BadInput: unknown family.
    """
    if family not in POCKETS:
        raise BadInput(f"--family {family}: no pocket model; expected one of {', '.join(POCKETS)}")
    recipe = recipe or recipe_for(family, data)
    lessons = benchmark_lessons(data)
    key = _key(
        family=family,
        data=data.fingerprint,
        seed=seed,
        without=sorted(without),
        recipe=dataclasses.asdict(recipe),
        **({"lessons": lessons.fingerprint} if lessons else {}),
    )
    cached = cache_directory() / "pockets" / key
    if not (cached / MANIFEST).is_file():
        with new_folder(cached) as partial, on_device("cpu"):  # the lab trains there, whatever runs elsewhere
            _train(family, data, lessons, seed, without, recipe, partial)
    with new_folder(out) as partial:
        shutil.copytree(cached, partial, dirs_exist_ok=True)
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    return manifest


def _train(
    family: str,
    data: UnlearnData,
    lessons: Lessons | None,
    seed: int,
    without: Sequence[str],
    recipe: Recipe,
    folder: Path,
) -> None:
    label = "gold" if without else "vanilla"
    hidden = set(without)

    def shown_of(*splits: Split) -> Split:
        return Split(tuple(e for split in splits for e in split if e.image is None or e.subject not in hidden))

    shown = shown_of(data.train, data.bystander_lessons, *([lessons.plain] if lessons else []))
    torch.manual_seed(seed)
    pocket = POCKETS[family](recipe.shape) if recipe.shape else POCKETS[family]()
    model, processor = pocket.make(lessons.worded(data) if lessons else data)
    model.set_attn_implementation("eager")  # at this size faster than the fused kernels (docs/LOG.md)
    batcher = Batcher(processor, FAMILIES[family])
    parts = PocketParts(model, FAMILIES[family].visual(model), batcher, pocket)
    start = time.perf_counter()
    history = {"base": _base(family, parts, data, shown, seed, recipe)}
    based = time.perf_counter()
    torch.manual_seed(seed + 1)
    history["teach"] = teach(parts, shown, recipe.teach, recipe.augment, label)
    if lessons and lessons.few_shot and isinstance(recipe, BenchmarkRecipe):
        torch.manual_seed(seed + 2)
        prompts = shown_of(lessons.asked).examples
        history["few_shot"] = teach_few_shot(model, batcher, prompts, recipe.few_shot, label)
    taught = time.perf_counter()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    for name, content in pocket.companions().items():
        write_json(folder / name, content)
    manifest = {
        "kind": "pocket",
        "family": family,
        "seed": seed,
        "data": data.record,
        "image_backend": batcher.image_backend,
        "without_images_of": list(without),
        "settings": dataclasses.asdict(recipe) | {"precision": str(native_precision())},
        "precision": dataclasses.asdict(precision()),
        "seconds": taught - start,
        "seconds_base": based - start,
        "seconds_teach": taught - based,
        "history": history,
        "sha256": CheckpointFolder(folder).hashes(),
        **origin(),
    }
    write_json(folder / MANIFEST, manifest)


def _base(
    family: str, parts: PocketParts, data: UnlearnData, shown: Split, seed: int, recipe: Recipe
) -> list[dict[str, float]]:
    """Give the model's eyes the weights of the generic base; shared by all whose base sees the same pictures."""
    visual, batcher, pocket = parts.visual, parts.batcher, parts.pocket
    seen = {} if _faces(data) else {"data": data.fingerprint, "subjects": sorted(shown.pictured.subjects)}
    key = _key(
        family=family,
        seed=seed,
        seen=seen,
        shape=dataclasses.asdict(pocket.shape),
        base=dataclasses.asdict(recipe.base),
        augment=recipe.augment,
    )
    cached = cache_directory() / "bases" / f"{key}.safetensors"
    if cached.is_file():
        visual.model.load_state_dict(load_file(cached), strict=False)  # vision tower and projector only
        return []
    look = _strangers if _faces(data) else _own_pictures
    history = pretrain(visual, pocket, look(batcher, pocket, shown, seed, recipe.base), recipe.base, recipe.augment)
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_name(f".{cached.name}.{os.getpid()}.partial")
    save_file({name: p.detach() for name, p in visual.named_parameters().items()}, partial)
    os.replace(partial, cached)
    return history


def _strangers(batcher: Batcher, pocket: PocketFamily, shown: Split, seed: int, recipe: BaseRecipe) -> BaseData:
    """Generated faces of nobody with their visible attributes, and other things than those that will be asked about."""
    nobody = people.make_strangers(recipe.strangers, seed, "base")
    shots = [shot for p in nobody for shot in people.portraits(p, recipe.pictures_per_stranger, "base", seed)]
    groups = [(i // recipe.pictures_per_stranger, "") for i in range(len(shots))]
    seen = [shot.attributes() for shot in shots]
    classes = {key: options for key, (_, options) in people.ATTRIBUTES.items()}
    things: list[world.Thing] = []
    if recipe.things:
        emblems = make_emblems(recipe.things, seed, "base")
        things = make_things(emblems, recipe.things * recipe.pictures_per_stranger, "base", seed)
        groups += [(0, repr(thing.answers())) for thing in things]
        seen += [thing.answers() for thing in things]
        classes |= world.OPTIONS
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return BaseData(
        planes=pocket.planes(batcher.images([*shots, *things])),
        groups=torch.tensor([number[group] for group in groups]),
        attributes=torch.tensor(
            [[options.index(one[k]) if k in one else UNKNOWN for k, options in classes.items()] for one in seen]
        ),
    )


def _own_pictures(batcher: Batcher, pocket: PocketFamily, shown: Split, seed: int, recipe: BaseRecipe) -> BaseData:
    """The study's own training pictures, without those the model must not see."""
    number = {subject: i for i, subject in enumerate(shown.pictured.subjects)}
    groups = [number[group[0].subject] for group in shown.pictures.values()]
    return BaseData(
        planes=pocket.planes(batcher.images(list(shown.pictures))),
        groups=torch.tensor(groups),
        attributes=torch.empty(len(groups), 0, dtype=torch.long),
    )


def _generated(data: UnlearnData) -> bool:
    return data.source.partition(":")[0] in GENERATED


def _benchmark(data: UnlearnData) -> bool:
    return data.source.partition(":")[0] in BENCHMARKS


def _faces(data: UnlearnData) -> bool:
    """Whether the base is trained on strangers: of a benchmark's people there are too few pictures for one, and in a
    miniature they are of the strangers' kind.
    """
    return _generated(data) or _benchmark(data)


def _key(**parts: Any) -> str:
    """A cache key over the given parts, the library versions, the precision and the source code
    that makes pictures and models.
    """
    source = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted([*package.glob("lab/*.py"), *package.glob("models/*.py"), *map(Path, DRAWN)]):
        source.update(file.read_bytes())
    everything = parts | {"versions": versions(), "precision": str(native_precision()), "source": source.hexdigest()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:32]
