"""The contract of a model family, over the whole table: a new line in `FAMILIES` is tested by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewModel
from safetensors.torch import load_file, save_file
from tiny import TINIES
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from unsee.data.examples import Example, ImageSource, UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.evaluation.evidence import difference
from unsee.evaluation.predict import generate
from unsee.lab.build import POCKETS
from unsee.methods.ascent import GradientDifference
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.models.anatomy import Family, VisualModule
from unsee.models.batching import IGNORED, Batch, Batcher, answer_loss
from unsee.models.families import FAMILIES
from unsee.models.loading import load_model, load_visual
from unsee.models.packed import Packed


@dataclasses.dataclass
class Case:
    """A tiny model of one family as transformers made it, and pictures of different sizes."""

    family: Family
    model: PreTrainedModel
    batcher: Batcher
    data: UnlearnData

    @cached_property
    def visual(self) -> VisualModule:
        return self.family.visual(self.model)

    @cached_property
    def sources(self) -> list[ImageSource]:
        return list(self.data.train.pictures)[:6]

    @cached_property
    def images(self) -> dict[str, Tensor]:
        return self.batcher.images(self.sources)

    @cached_property
    def album(self) -> list[Example]:
        """Questions about one, two and three pictures at once."""
        asked = self.data.train.pictured.examples[:3]
        counts = (2, 1, 3)
        return [
            dataclasses.replace(e, image=self.sources[i], others=tuple(self.sources[i + 1 : i + count]))
            for i, (e, count) in enumerate(zip(asked, counts, strict=True))
        ]

    def keeps_sizes(self) -> bool:
        """Whether pictures of different sizes have different numbers of tokens."""
        return self.family.name != "llava"


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str, new_model: NewModel, ragged_people: UnlearnData) -> Case:
    model, processor = new_model(name)
    return Case(FAMILIES[name], model, Batcher(processor, FAMILIES[name]), ragged_people)


def test_every_family_has_a_tiny_model() -> None:
    assert TINIES.keys() == FAMILIES.keys(), "a family needs a tiny model in tests/tiny.py"
    assert all(family.name == name for name, family in FAMILIES.items())
    types = [kind for family in FAMILIES.values() for kind in family.model_types]
    assert len(types) == len(set(types))


# The visual module ----------------------------------------------------------------------------------------------------


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [tokens.shape for tokens in found] == [tokens.shape for tokens in expected]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-4, atol=1e-5)


def differ(found: list[Tensor], expected: list[Tensor]) -> bool:
    return [len(tokens) for tokens in found] != [len(tokens) for tokens in expected] or not torch.allclose(
        torch.cat(found), torch.cat(expected), rtol=0.1, atol=1e-3
    )


def without_last_block(case: Case) -> list[Tensor]:
    visual = case.visual
    short = visual.leave(visual.run(visual.enter(case.images), stop=len(visual.blocks) - 1))
    return visual.assemble(short, case.images)


def turned(case: Case) -> list[Tensor]:
    """Heights taken for widths."""
    (shapes,) = set(case.images) - {"pixel_values"}
    images = case.images | {shapes: case.images[shapes][:, [*range(case.images[shapes].shape[1] - 2), -1, -2]]}
    return case.visual.assemble(case.visual.features(images), images)


def windows_ignored(case: Case) -> list[Tensor]:
    case.visual.vision_tower.fullatt_block_indexes = list(range(4))  # type: ignore[union-attr]
    return case.visual.assemble(case.visual.features(case.images), case.images)


def windows_everywhere(case: Case) -> list[Tensor]:
    case.visual.vision_tower.fullatt_block_indexes = []  # type: ignore[union-attr]
    return case.visual.assemble(case.visual.features(case.images), case.images)


WRONG: dict[str, list[Callable[[Case], list[Tensor]]]] = {
    "llava_next": [turned],
    "qwen2_vl": [turned],
    "qwen2_5_vl": [turned, windows_ignored, windows_everywhere],
}


@torch.no_grad()
def test_features_are_what_the_whole_model_feeds_its_language_model(case: Case) -> None:
    model: Any = case.model
    expected = list(model.get_image_features(**case.images).pooler_output)  # before the family touches the model
    tokens = case.visual.features(case.images)
    assert_same(case.visual.assemble(tokens, case.images), expected)
    assert tokens.lengths == tuple(layers * rows * columns for layers, rows, columns in tokens.grids)
    assert (len(set(tokens.grids)) > 1) == case.keeps_sizes()
    assert_same(list(model.get_image_features(**case.images).pooler_output), expected)  # nor is the model spoilt by it
    for wrong in (without_last_block, *WRONG.get(case.family.name, [])):
        assert differ(wrong(case), expected), wrong.__name__


@torch.no_grad()
def test_the_module_may_be_cut_between_any_two_blocks(case: Case) -> None:
    visual, images = case.visual, case.images
    whole = visual.features(images)
    for cut in range(len(visual.blocks) + 1):
        below = visual.run(visual.enter(images), stop=cut)
        assert len(below) == len(case.sources)
        again = visual.leave(visual.run(below, start=cut))
        assert torch.equal(again.states, whole.states)
        assert (again.lengths, again.grids) == (whole.lengths, whole.grids)
        if cut:
            skipped = visual.run(visual.run(visual.enter(images), stop=cut - 1), start=cut)
            assert not torch.allclose(visual.leave(skipped).states, whole.states, rtol=0.1)


@torch.no_grad()
def test_pictures_do_not_see_each_other(case: Case) -> None:
    visual = case.visual
    whole, chosen = visual.features(case.images), torch.tensor([4, 1, 1, 0, 5])

    def assert_chosen(found: Packed) -> None:
        assert found.grids == whole[chosen].grids
        torch.testing.assert_close(found.states, whole[chosen].states, rtol=1e-5, atol=1e-5)

    for cut in range(len(visual.blocks) + 1):
        below = visual.run(visual.enter(case.images), stop=cut)
        assert_chosen(visual.leave(visual.run(below[chosen], start=cut)))
    assert_chosen(visual.features(case.batcher.images([case.sources[i] for i in chosen])))
    for i, source in enumerate(case.sources):
        alone = visual.features(case.batcher.images([source]))
        torch.testing.assert_close(alone.states, whole[torch.tensor([i])].states, rtol=1e-5, atol=1e-5)
    first, other = whole[torch.tensor([1])], whole[torch.tensor([5])]  # of the same size
    assert first.grids == other.grids
    assert not torch.allclose(first.states, other.states, rtol=1e-2)


def test_pictures_joined_are_pictures_encoded_together(case: Case) -> None:
    """The batcher encodes pictures one by one and keeps them."""
    together = case.family.encode_images(case.batcher.processor, [source.open() for source in case.sources])
    assert together.keys() == case.images.keys()
    assert all(torch.equal(case.images[key], tensor) for key, tensor in together.items())
    again = case.batcher.images(case.sources)
    assert all(torch.equal(again[key], tensor) for key, tensor in together.items())


def test_only_layers_that_influence_the_output_are_editable(case: Case) -> None:
    visual, modules = case.visual, dict(case.model.named_modules())
    offered = visual.editable(len(visual.blocks))
    assert all(modules[name] is layer for name, layer in offered.items())
    visual.features(case.images).states.square().sum().backward()
    assert all(layer.weight.grad is not None and layer.weight.grad.any() for layer in offered.values())
    linear = [m for part in (visual.vision_tower, visual.projector) for m in part.modules() if isinstance(m, nn.Linear)]
    rest = {m for m in linear if m not in offered.values()}
    assert all(layer.weight.grad is None for layer in rest)
    assert bool(rest) == (case.family.name in ("llava", "llava_next")), "only they read an earlier layer"

    counts = [len(visual.editable(last)) for last in range(len(visual.blocks) + 1)]
    assert counts == sorted(set(counts))
    assert set(visual.editable(0).values()) == {m for m in visual.projector.modules() if isinstance(m, nn.Linear)}
    for last in (-1, len(visual.blocks) + 1):
        with pytest.raises(BadInput, match=f"last_blocks={last}"):
            visual.editable(last)


@pytest.mark.parametrize("last_blocks", [0, 1, 2])
@torch.no_grad()
def test_what_is_released_holds_no_memory_and_the_tail_still_runs(case: Case, last_blocks: int) -> None:
    visual = case.visual
    cut = len(visual.blocks) - last_blocks
    whole = visual.features(case.images)
    below = visual.run(visual.enter(case.images), stop=cut)
    visual.release(last_blocks)
    assert torch.equal(visual.leave(visual.run(below, start=cut)).states, whole.states)
    kept = {id(p) for module in visual.tail(last_blocks) for p in module.parameters()}
    sizes = {id(p): p.untyped_storage().nbytes() for p in visual.named_parameters().values()}
    assert all((size > 0) == (key in kept) for key, size in sizes.items())
    assert len(kept) < len(sizes)
    with pytest.raises(RuntimeError):
        visual.features(case.images)


# Batches --------------------------------------------------------------------------------------------------------------


def continued(model: Any, inputs: Batch) -> Any:
    """Six greedy steps, whatever the model says."""
    return model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=[],
        output_logits=True,
        return_dict_in_generate=True,
    )


def inputs_of(batch: Batch) -> Batch:
    return {key: tensor for key, tensor in batch.items() if key != "labels"}


@torch.no_grad()
def test_several_pictures_in_a_prompt_are_what_plain_transformers_makes_of_them(case: Case) -> None:
    ours = case.batcher.for_generation(case.album)
    plain = case.batcher.processor(
        text=[case.batcher.prompt(e.question, len(e.images)) for e in case.album],
        images=[image.open() for e in case.album for image in e.images],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    assert ours["input_ids"].tolist() == plain["input_ids"].tolist()
    said = case.model(**plain).logits
    assert torch.equal(case.model(**ours).logits, said)

    images = case.batcher.images([image for e in case.album for image in e.images])
    tokens = case.visual.assemble(case.visual.features(images), images)
    mark = case.batcher.tokenizer.convert_tokens_to_ids(case.family.image_placeholder)
    counts = iter([len(picture) for picture in tokens])
    expected = [sum(next(counts) for _ in e.images) for e in case.album]
    assert (ours["input_ids"] == mark).sum(1).tolist() == expected

    order = [dataclasses.replace(e, image=e.images[-1], others=e.images[:-1][::-1]) for e in case.album]
    shuffled = case.model(**case.batcher.for_generation(order)).logits
    assert shuffled.shape != said.shape or not torch.allclose(shuffled[0], said[0], rtol=0.1)


@pytest.mark.parametrize("kind", ["album", "text only"])
@torch.no_grad()
def test_answers_and_losses_do_not_depend_on_the_batch(case: Case, kind: str) -> None:
    texts = case.data.train.text_only.examples
    examples = case.album if kind == "album" else [texts[i] for i in (0, 1, 3, 6)]
    asked = case.batcher.for_generation(examples)
    assert not asked["attention_mask"].all(), "nothing was padded, so nothing was tested"
    assert asked["attention_mask"][:, -1].all()

    def told(inputs: Batch) -> Tensor:
        """Scores of every word at every step [rows, steps, words]."""
        return torch.stack(continued(case.model, inputs).logits, 1)

    one_by_one = torch.cat([told(case.batcher.for_generation([e])) for e in examples])
    torch.testing.assert_close(told(asked), one_by_one, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one_by_one[0], one_by_one[1], rtol=0.1)
    unmasked = told(asked | {"attention_mask": torch.ones_like(asked["attention_mask"])})
    assert not torch.allclose(unmasked, one_by_one, rtol=0.1)

    taught = case.batcher.for_training(examples)
    single = [case.batcher.for_training([e]) for e in examples]
    tokens = torch.tensor([float((one["labels"] != IGNORED).sum()) for one in single])
    losses = torch.stack([answer_loss(case.model, one) for one in single])
    torch.testing.assert_close(
        (losses * tokens).sum() / tokens.sum(), answer_loss(case.model, taught), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(answer_loss(case.model, taught), case.model(**taught).loss, rtol=1e-5, atol=0)
    answers = [case.batcher.tokenizer.decode(row[row != IGNORED], skip_special_tokens=True) for row in taught["labels"]]
    assert [answer.strip() for answer in answers] == [e.answer for e in examples]


@torch.no_grad()
def test_words_alone_mean_the_same_after_pictures(case: Case) -> None:
    """Qwen's models remember how far the pictures of their last call moved the positions."""
    texts = case.data.train.text_only.examples[:5]
    asked, taught = case.batcher.for_generation(texts), case.batcher.for_training(texts)

    def said() -> list[Tensor]:
        spoken = torch.stack(continued(case.model, asked).logits, 1)
        return [spoken, answer_loss(case.model, taught), case.model(**asked).logits]

    before = said()
    pictured = case.batcher.for_generation(case.album)
    for use in (lambda: continued(case.model, pictured), lambda: case.model.model(**pictured)):
        use()
        moved = getattr(case.model.model, "rope_deltas", None)
        assert case.family.name.startswith("llava") or moved.any(), "no trap was set"
        assert all(torch.equal(now, then) for now, then in zip(said(), before, strict=True))


@torch.no_grad()
def test_precomputed_tokens_serve_as_well_as_pixels(case: Case) -> None:
    model, family = case.model, case.family
    inputs = inputs_of(case.batcher.for_training(case.album))
    expected = model.model(**inputs).last_hidden_state
    tokens = case.visual.assemble(case.visual.features(inputs), inputs)
    given = {key: tensor for key, tensor in inputs.items() if key != "pixel_values"}

    def hidden(tokens: list[Tensor], given: Batch) -> Tensor:
        return family.with_visual_tokens(model, tokens, given).last_hidden_state

    torch.testing.assert_close(hidden(tokens, given), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hidden([2 * picture for picture in tokens], given), expected, rtol=0.1)

    one = inputs_of(case.batcher.for_training(case.album[:1]))
    images = case.batcher.images(case.album[0].images)
    bare = {"input_ids": one["input_ids"], "position_ids": family.positions(model, one["input_ids"], images)}
    tokens = case.visual.assemble(case.visual.features(images), images)
    expected = model.model(**one).last_hidden_state
    torch.testing.assert_close(hidden(tokens, bare), expected, rtol=1e-4, atol=1e-5)
    late = bare | {"position_ids": bare["position_ids"] * 2}
    assert not torch.allclose(hidden(tokens, late), expected, rtol=0.1)


@pytest.mark.parametrize("backend", ["pillow", "torchvision"])
@torch.no_grad()
def test_image_backends_agree(case: Case, backend: str, tmp_path: Path) -> None:
    assert case.batcher.image_backend == "pillow"
    if backend == "torchvision":
        pytest.importorskip("torchvision", reason="torchvision is not installed: its image processors are not tested")
    expected = case.visual.features(case.images)
    processor = case.batcher.processor
    processor.save_pretrained(tmp_path)
    known = {"pillow": "pil", "torchvision": "torchvision"}
    processor.image_processor = AutoImageProcessor.from_pretrained(tmp_path, backend=known[backend])
    other = Batcher(processor, case.family)
    assert other.image_backend == backend
    found = case.visual.features(other.images(case.sources))
    assert found.grids == expected.grids
    assert (found.states - expected.states).norm() < 0.1 * expected.states.norm()


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stored(new_model: NewModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every family; read only."""
    folders = {}
    for name in FAMILIES:
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        for part in new_model(name):
            part.save_pretrained(folders[name])
    return folders


def as_on_the_hub(key: str) -> str:
    """LLaVA's towers are stored with a level that newer classes no longer have."""
    return key.replace("vision_tower.", "vision_tower.vision_model.")


def as_in_memory(key: str) -> str:
    """Names as newer versions of transformers have them."""
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
        ("model.layers", "model.language_model.layers"),
        ("model.embed_tokens", "model.language_model.embed_tokens"),
        ("model.norm", "model.language_model.norm"),
    ):
        if key.startswith(old):
            return key.replace(old, new, 1)
    return key if key.startswith("lm_head") else f"model.{key}"


@pytest.mark.parametrize("style", [None, as_on_the_hub, as_in_memory], ids=["as saved", "hub", "in memory"])
@torch.no_grad()
def test_the_visual_module_alone_is_the_whole_models(
    name: str,
    stored: dict[str, Path],
    ragged_people: UnlearnData,
    style: Callable[[str], str] | None,
    tmp_path: Path,
) -> None:
    folder = stored[name]
    if style is not None:
        folder = tmp_path / "renamed"
        folder.mkdir()
        for file in stored[name].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tensors = {style(key): tensor for key, tensor in load_file(stored[name] / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole, alone = load_model(str(folder)), load_visual(str(folder))
    assert whole.family is alone.family is FAMILIES[name]
    images = alone.batcher.images(list(ragged_people.train.pictures)[:6])
    assert torch.equal(alone.visual.features(images).states, whole.visual.features(images).states)

    language = alone.family.language_model(alone.model)
    assert all(p.is_meta for p in language.parameters())
    assert not any(p.is_meta for p in alone.visual.named_parameters().values())
    inside = {id(p) for p in (*language.parameters(), *alone.visual.named_parameters().values())}
    beside = {name for name, p in alone.model.named_parameters() if id(p) not in inside}
    assert beside == {"lm_head.weight"} | ({"model.image_newline"} if name == "llava_next" else set())

    parameters = dict(whole.model.named_parameters())
    keys = whole.checkpoint_keys(parameters)
    assert sorted(keys.values()) == sorted(whole.folder.file_of)
    read = dict(whole.folder.read(keys.values()))
    assert all(torch.equal(parameter, read[keys[name]]) for name, parameter in parameters.items())
    visual = alone.visual.named_parameters()
    assert alone.checkpoint_keys(visual) == {name: keys[name] for name in visual}


METHODS = {
    "nscvf": NullSpaceConstrainedForgetting(
        steps=4, learning_rate=5e-3, last_blocks=1, forget_pictures=2, retain_pictures=4, threshold=0.05
    ),
    "nscvf-direct": DirectForgetting(),
    "graddiff": GradientDifference(steps=2, learning_rate=1e-3, batch=4),
}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in POCKETS])
@pytest.mark.parametrize("method", list(METHODS))
@torch.no_grad()
def test_an_edit_is_a_checkpoint_that_plain_transformers_opens(
    name: str,
    method: str,
    stored: dict[str, Path],
    ragged_people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """Families with a pocket model have every method tested: test_methods."""

    def edit(seed: int, place: str) -> dict[str, Any]:
        with torch.enable_grad():
            source = str(stored[name])
            return unlearn(
                source, EditRequest(ragged_people, forget, METHODS[method], seed, gate=False), tmp_path / place
            )

    manifest, again, other = edit(0, "out"), edit(0, "again"), edit(1, "other")
    assert manifest["sha256"] == again["sha256"]
    assert (manifest["sha256"] == other["sha256"]) == (method == "nscvf-direct")  # which takes no chances

    base, ours = load_model(str(stored[name])), load_model(str(tmp_path / "out"))
    found = difference(base, ours)
    assert found is not None
    assert found["changed"] == len(manifest["changed"]) > 0
    if method != "graddiff":
        assert found["language_changed"] == 0
        layers = base.visual.editable(1) if method == "nscvf" else DirectForgetting().layers(base.visual)
        declared = {f"{layer}.weight" for layer in layers}
        assert manifest["changed"] == sorted(base.checkpoint_keys(dict.fromkeys(declared)).values())
    else:
        assert found["language_changed"] > 0

    for file in ("config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (stored[name] / file).read_bytes()
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    examples = ragged_people.test.pictured.examples[:4]
    asked = ours.batcher.for_generation(examples)
    assert torch.equal(plain(**asked).logits, ours.model(**asked).logits)
    assert not torch.equal(base.model(**asked).logits, ours.model(**asked).logits)
    length = asked["input_ids"].shape[1]
    said = plain.generate(**asked, do_sample=False, max_new_tokens=12)[:, length:]
    assert ours.batcher.decode(said) == generate(ours, examples, longest=4)
    if name == "llava_next":  # Qwen's whole processor needs torchvision for videos
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        prompts = [ours.batcher.prompt(e.question, 1) for e in examples]
        shown = [e.image.open() for e in examples if e.image is not None]
        plainly = processor(text=prompts, images=shown, padding=True, padding_side="left", return_tensors="pt")
        assert all(torch.equal(plainly[key], asked[key]) for key in ("input_ids", "pixel_values"))
