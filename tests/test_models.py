"""Models: the visual module alone is the whole model's, prompts are the processor's, losses are the answer's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from unsee.checkpoint.folder import CheckpointFolder
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.lab.teach import PackedPictures
from unsee.models.batching import IGNORED, Batch, Batcher, answer_loss, cross_entropy_at
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model, load_visual, locate

LLAVA = FAMILIES["llava"]
LAYERS = [(-1, "default"), (-2, "default"), (-2, "full"), (2, "default")]  # what is read, and with the first token?
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # in the style of LLaVA-1.5: the tokenizer, not the template, sets <s>

NewModel = Callable[..., tuple[PreTrainedModel, ProcessorMixin]]
NewCheckpoint = Callable[..., Path]


def pictures(batcher: Batcher, people: UnlearnData, count: int = 3) -> dict[str, Tensor]:
    return batcher.images(list(people.train.pictures)[:count])


# The visual module ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "strategy"), LAYERS)
@torch.no_grad()
def test_features_are_what_the_whole_model_feeds_its_language_model(
    new_model: NewModel, people: UnlearnData, layer: int, strategy: str
) -> None:
    model, processor = new_model(layer=layer, strategy=strategy)
    images = pictures(Batcher(processor, LLAVA), people)
    found = LLAVA.visual(model).features(images)
    expected = torch.stack(list(model.get_image_features(**images).pooler_output))
    assert found.shape[1] == (5 if strategy == "full" else 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    model.config.vision_feature_layer = 1
    assert not torch.allclose(LLAVA.visual(model).features(images), expected, rtol=0.1)


@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_the_module_may_be_cut_between_any_two_blocks(new_model: NewModel, people: UnlearnData, layer: int) -> None:
    model, processor = new_model(layer=layer)
    visual, images = LLAVA.visual(model), pictures(Batcher(processor, LLAVA), people)
    whole = visual.features(images)
    for cut in range(len(visual.blocks) + 1):
        below = visual.run(visual.enter(images), stop=cut)
        assert torch.equal(visual.leave(visual.run(below, start=cut)), whole)
        if cut:
            skipped = visual.run(visual.run(visual.enter(images), stop=cut - 1), start=cut)
            assert not torch.allclose(visual.leave(skipped), whole, rtol=0.1)


@pytest.mark.parametrize(("layer", "behind"), [(-1, 0), (-2, 1), (2, 2), (-3, 2)])
def test_only_layers_that_influence_the_output_are_editable(
    new_model: NewModel, people: UnlearnData, layer: int, behind: int
) -> None:
    model, processor = new_model(layer=layer)
    visual = LLAVA.visual(model)
    assert len(visual.blocks) == 4 - behind
    offered = visual.editable(len(visual.blocks))
    visual.features(pictures(Batcher(processor, LLAVA), people)).square().sum().backward()
    assert all(module.weight.grad is not None and module.weight.grad.any() for module in offered.values())
    every = [m for m in (*visual.vision_tower.modules(), *visual.projector.modules()) if isinstance(m, nn.Linear)]
    rest = [m for m in every if m not in offered.values()]
    assert len(rest) == 6 * behind
    assert all(module.weight.grad is None for module in rest)


def test_editable_counts_back_from_the_feature_layer(new_model: NewModel) -> None:
    model, _ = new_model(layer=-2)
    visual = LLAVA.visual(model)
    named = dict(model.named_modules())

    def blocks(last: int) -> set[str]:
        offered = visual.editable(last)
        assert all(named[name] is module for name, module in offered.items())
        assert sum("projector" in name for name in offered) == 2
        return {name.split("layers.")[1][0] for name in offered if "layers." in name}

    assert [blocks(last) for last in range(4)] == [set(), {"2"}, {"1", "2"}, {"0", "1", "2"}]
    for last in (-1, 4):
        with pytest.raises(BadInput, match=f"last_blocks={last}: expected 0 to 3"):
            visual.editable(last)


def test_several_feature_layers_are_refused(new_model: NewModel) -> None:
    model, _ = new_model()
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(BadInput, match="only a single layer"):
        LLAVA.visual(model)


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["single file", "sharded", "bf16"])
def any_checkpoint(request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint) -> Path:
    if request.param == "sharded":
        folder = new_checkpoint(shard="20KB")
        assert len(CheckpointFolder(folder).files) > 3
        return folder
    return new_checkpoint(dtype=torch.bfloat16 if request.param == "bf16" else torch.float32)


def test_visual_module_alone_is_bit_identical_and_reads_nothing_else(
    any_checkpoint: Path, people: UnlearnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(str(any_checkpoint), torch.float32)
    asked: list[str] = []
    read = CheckpointFolder.read

    def spy(self: CheckpointFolder, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        keys = list(keys)
        asked.extend(keys)
        return read(self, keys)

    monkeypatch.setattr(CheckpointFolder, "read", spy)
    alone = load_visual(str(any_checkpoint))
    expected = whole.model.state_dict()
    for part in ("vision_tower", "projector"):
        ours, theirs = getattr(alone.visual, part).state_dict(), getattr(whole.visual, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, theirs[name]), name
    read_here = {name for name, tensor in alone.model.state_dict().items() if not tensor.is_meta}
    assert {name for name in expected if "vision_tower" in name or "projector" in name} == read_here
    assert len(asked) == len(read_here)
    assert not [key for key in asked if "language_model" in key or "lm_head" in key]
    images = pictures(alone.batcher, people)
    assert torch.equal(alone.visual.features(images), whole.visual.features(images))


def test_whole_model_keeps_its_stored_dtype_unless_told(checkpoint_bf16: Path) -> None:
    assert load_model(str(checkpoint_bf16)).model.dtype == torch.bfloat16
    assert load_model(str(checkpoint_bf16), torch.float32).model.dtype == torch.float32
    assert not load_model(str(checkpoint_bf16)).model.training


def test_every_parameter_finds_its_tensor_in_the_checkpoint(any_checkpoint: Path) -> None:
    loaded = load_model(str(any_checkpoint))
    parameters = dict(loaded.model.named_parameters())
    keys = loaded.checkpoint_keys(parameters)
    stored = dict(loaded.folder.read(keys.values()))
    assert all(torch.equal(parameter, stored[keys[name]]) for name, parameter in parameters.items())
    with pytest.raises(BadInput, match=r"no tensor for parameter 'made\.up'"):
        loaded.checkpoint_keys({"made.up": None})


def test_a_tied_head_is_stored_once_and_found(new_model: NewModel, tmp_path: Path) -> None:
    model, processor = new_model()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    parameters = dict(loaded.model.named_parameters())
    assert "lm_head.weight" not in parameters
    keys = loaded.checkpoint_keys(parameters)
    assert set(keys.values()) == set(loaded.folder.file_of)
    assert load_visual(str(tmp_path)).visual.projector.state_dict().keys()


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copied")


OPENERS = pytest.mark.parametrize("open_it", [load_model, load_visual])


@OPENERS
@pytest.mark.parametrize("stored", ["lost", "misshapen"])
def test_weights_that_do_not_fit_the_configuration_are_bad_input(
    copied: Path, stored: str, open_it: Callable[[str], Loaded]
) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("linear_2.weight"))
    tensors[key] = tensors[key][:-1].clone()
    if stored == "lost":
        del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"linear_2\.weight"):
        open_it(str(copied))


@OPENERS
def test_architectures_of_no_family_are_bad_input(copied: Path, open_it: Callable[[str], Loaded]) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(BadInput, match="model_type 'blip' is not supported"):
        open_it(str(copied))


@OPENERS
def test_a_checkpoint_without_its_processor_is_bad_input(copied: Path, open_it: Callable[[str], Loaded]) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match="its processor does not load"):
        open_it(str(copied))


@OPENERS
@pytest.mark.parametrize("content", ["{", '{"model_type": "made_up"}'])
def test_a_broken_configuration_is_bad_input(copied: Path, content: str, open_it: Callable[[str], Loaded]) -> None:
    (copied / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"config\.json"):
        open_it(str(copied))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "no-such-owner/no-such-model"])
def test_models_that_are_nowhere_are_bad_input(name: str) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        locate(name)


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batcher(new_model: NewModel) -> Batcher:
    return Batcher(new_model()[1], LLAVA)


def sentencepiece_like(people: UnlearnData, sets_bos: bool) -> PreTrainedTokenizerFast:
    """Words carry the space before them, as in Llama's tokenizer; `sets_bos`: it puts <s> in front by itself."""
    space, inside = pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Metaspace(prepend_scheme="never")
    texts = [f"USER: {e.question} ASSISTANT: {e.answer} \n{e.question}" for e in people.train]
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    words = {word for text in texts for word, _ in (*space.pre_tokenize_str(text), *inside.pre_tokenize_str(text))}
    words = sorted(words | {word.lstrip("▁") for word in words} | {"▁"})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = space
    if sets_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


@pytest.fixture(params=["pocket", "pocket, no template", "llava-1.5", "llama words, no template"])
def any_batcher(request: pytest.FixtureRequest, new_model: NewModel, people: UnlearnData) -> Batcher:
    _, processor = new_model()
    if not request.param.startswith("pocket"):
        processor.tokenizer = sentencepiece_like(people, sets_bos=request.param == "llava-1.5")
    if request.param == "llava-1.5":
        processor.chat_template = VICUNA
    elif "no template" in request.param:
        processor.chat_template = None
    return Batcher(processor, LLAVA)


def test_without_a_chat_template_the_default_of_the_family_is_used(batcher: Batcher) -> None:
    assert batcher.prompt("Who is this person?", 1) == "<s><image>Who is this person?"
    batcher.processor.chat_template = None
    with_picture, without = (batcher.prompt("Who is this person?", count) for count in (1, 0))
    assert with_picture.strip() == "<s>USER: <image>\nWho is this person? ASSISTANT:"
    assert without.strip() == "<s>USER: Who is this person? ASSISTANT:"


@pytest.mark.parametrize("any_batcher", ["pocket", "llava-1.5"], indirect=True)
def test_token_ids_are_those_of_the_processor(any_batcher: Batcher, people: UnlearnData) -> None:
    """Also the beginning of the sequence: some tokenizers set it, some templates do, none twice."""
    for example in (people.train.pictured.examples[0], people.train.text_only.examples[0]):
        content = [{"type": "text", "text": example.question}]
        if example.image is not None:
            content.insert(0, {"type": "image", "image": example.image.open()})
        expected = any_batcher.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ours = any_batcher.for_generation([example])
        assert any_batcher.tokenizer.unk_token_id not in ours["input_ids"]
        assert ours["input_ids"].tolist() == expected["input_ids"].tolist()
        if example.image is not None:
            assert torch.equal(ours["pixel_values"], torch.as_tensor(expected["pixel_values"]))


def test_training_teaches_what_generation_is_asked(any_batcher: Batcher, people: UnlearnData) -> None:
    """The ids of a prompt are followed by its labels, or a model would be asked from where it was never taught."""
    for example in (people.train.pictured.examples[0], people.train.text_only.examples[0]):
        asked, taught = any_batcher.for_generation([example]), any_batcher.for_training([example])
        answer = taught["labels"][0] != IGNORED
        assert asked["input_ids"][0].tolist() == taught["input_ids"][0][~answer].tolist()


def test_labels_stand_on_the_answer_and_the_end_only(any_batcher: Batcher, people: UnlearnData) -> None:
    end = any_batcher.tokenizer.eos_token_id
    for split in (people.train.pictured, people.train.text_only):
        examples = split.examples[:12]
        batch = any_batcher.for_training(examples)
        lengths = batch["attention_mask"].sum(1)
        assert len(set(lengths.tolist())) > 1, "nothing was padded, so nothing was tested"
        for e, ids, labels, length in zip(examples, batch["input_ids"], batch["labels"], lengths, strict=True):
            answer = any_batcher.tokenizer(f" {e.answer}", add_special_tokens=False)["input_ids"]
            assert labels[labels != IGNORED].tolist() == [*answer, end]
            assert labels[length - len(answer) - 1 : length].tolist() == [*answer, end]
            assert (ids[length:] == any_batcher.tokenizer.pad_token_id).all()


def test_pictured_and_text_only_examples_do_not_mix(batcher: Batcher, people: UnlearnData) -> None:
    mixed = [people.train.pictured.examples[0], people.train.text_only.examples[0]]
    with pytest.raises(ValueError, match="only pictured or only text-only"):
        batcher.for_training(mixed)


def test_tokenizer_without_padding_is_bad_input(new_model: NewModel) -> None:
    _, processor = new_model()
    processor.tokenizer.pad_token = None
    with pytest.raises(BadInput, match="no pad_token"):
        Batcher(processor, LLAVA)


@pytest.mark.parametrize("cache_bytes", [0, 8000, 1 << 20])  # a picture takes 6,912
def test_pictures_come_in_the_order_asked_whatever_was_cached(
    new_model: NewModel, people: UnlearnData, cache_bytes: int
) -> None:
    sources = list(people.train.pictures)[:4]
    single = [LLAVA.encode_images(new_model()[1], [source.open()])["pixel_values"][0] for source in sources]
    batcher = Batcher(new_model()[1], LLAVA, cache_bytes)
    for order in ([0, 1, 2], [2, 0, 2], [3, 1], [1, 1, 0]):
        rows = batcher.images([sources[i] for i in order])["pixel_values"]
        assert all(torch.equal(row, single[i]) for row, i in zip(rows, order, strict=True))
    assert not torch.equal(single[0], single[1])


# Losses ---------------------------------------------------------------------------------------------------------------


def padded(batch: Batch, columns: int, padding: int) -> Batch:
    wider = {key: F.pad(batch[key], (0, columns)) for key in ("attention_mask",)}
    wider["input_ids"] = F.pad(batch["input_ids"], (0, columns), value=padding)
    wider["labels"] = F.pad(batch["labels"], (0, columns), value=IGNORED)
    return batch | wider


@pytest.mark.parametrize("kind", ["pictured", "text_only"])
@torch.no_grad()
def test_loss_does_not_change_when_padding_is_added(loaded: Loaded, people: UnlearnData, kind: str) -> None:
    examples = getattr(people.train, kind).examples[:6]
    batch = loaded.batcher.for_training(examples)
    loss = answer_loss(loaded.model, batch)
    torch.testing.assert_close(answer_loss(loaded.model, padded(batch, 7, 0)), loss, rtol=1e-5, atol=0)

    single = [loaded.batcher.for_training([e]) for e in examples]
    tokens = torch.tensor([float((one["labels"] != IGNORED).sum()) for one in single])
    losses = torch.stack([answer_loss(loaded.model, one) for one in single])
    torch.testing.assert_close((losses * tokens).sum() / tokens.sum(), loss, rtol=1e-5, atol=0)

    every_position = batch | {"labels": batch["input_ids"]}
    careless = padded(every_position, 7, 0) | {"labels": F.pad(batch["input_ids"], (0, 7))}
    assert not torch.allclose(answer_loss(loaded.model, careless), answer_loss(loaded.model, every_position), rtol=1e-2)


@torch.no_grad()
def test_loss_is_the_one_transformers_computes(loaded: Loaded, people: UnlearnData) -> None:
    for examples in (people.train.pictured.examples[:5], people.train.text_only.examples[:5]):
        batch = loaded.batcher.for_training(examples)
        torch.testing.assert_close(answer_loss(loaded.model, batch), loaded.model(**batch).loss, rtol=1e-5, atol=0)


def test_ignored_positions_get_no_gradient(loaded: Loaded, people: UnlearnData) -> None:
    batch = loaded.batcher.for_training(people.train.pictured.examples[:4])
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    hidden = loaded.model.model(**inputs).last_hidden_state.detach().requires_grad_()
    cross_entropy_at(loaded.model, hidden, batch["labels"]).backward()
    assert hidden.grad is not None
    predicts = F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))  # position i predicts token i + 1
    assert predicts.any()
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, predicts)


@torch.no_grad()
def test_the_picture_matters(loaded: Loaded, people: UnlearnData) -> None:
    example = people.train.pictured.examples[0]
    other = next(image for image in people.train.pictures if image != example.image)

    def loss(e: Example) -> float:
        return answer_loss(loaded.model, loaded.batcher.for_training([e])).item()

    text = people.train.text_only.examples[0]
    seen, unseen = loss(example), loss(text)
    assert abs(loss(dataclasses.replace(example, image=other)) - seen) > 1e-3
    assert loss(example) == seen
    for parameter in loaded.visual.projector.parameters():
        parameter.mul_(2)
    assert abs(loss(example) - seen) > 1e-3
    assert loss(text) == unseen


@torch.no_grad()
def test_order_of_a_batch_does_not_matter(loaded: Loaded, people: UnlearnData) -> None:
    examples = people.train.pictured.examples[::7]
    assert len({e.image for e in examples}) > 5

    def losses(order: list[int]) -> Tensor:
        batch = loaded.batcher.for_training([examples[i] for i in order])
        scores = loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        rows = F.cross_entropy(scores.transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED, reduction="none")
        return rows.sum(1)

    straight = losses(list(range(len(examples))))
    for seed in range(3):
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(losses(order.tolist()), straight[order], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(losses(order.tolist()), straight, rtol=1e-3)


# Generation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pictured", "text_only"])
@torch.no_grad()
def test_generating_in_a_left_padded_batch_is_generating_one_by_one(
    loaded: Loaded, people: UnlearnData, kind: str
) -> None:
    examples = [getattr(people.train, kind).examples[i] for i in (0, 1, 2, 3, 9, 10)]
    batch = loaded.batcher.for_generation(examples)
    assert not batch["attention_mask"].all(), "nothing was padded, so nothing was tested"
    assert batch["attention_mask"][:, -1].all()

    def told(inputs: Batch) -> Tensor:
        ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=8, eos_token_id=[])
        return ids[:, inputs["input_ids"].shape[1] :]

    one_by_one = torch.cat([told(loaded.batcher.for_generation([e])) for e in examples])
    assert torch.equal(told(batch), one_by_one)
    assert len({tuple(row) for row in one_by_one.tolist()}) > 1
    unmasked = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    assert not torch.equal(told(unmasked), one_by_one)


# Packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_packed_questions_are_answered_as_if_asked_alone(loaded: Loaded, people: UnlearnData, attention: str) -> None:
    model, batcher = loaded.model, loaded.batcher
    model.set_attn_implementation(attention)
    grouped = people.train.pictures
    packed = PackedPictures.of(people.train, batcher)
    per_picture = packed.ids.shape[1]
    assert packed.ids.shape[:2] == (12, 9)

    def token_losses(hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:] != IGNORED
        scores = model.get_output_embeddings()(hidden[:, :-1][wanted])
        return F.cross_entropy(scores, labels[:, 1:][wanted], reduction="none")

    chosen = torch.tensor([0, 5, 7])
    questions = torch.arange(per_picture).expand(3, -1)
    inputs, labels = packed.batch(chosen, questions)
    tokens = loaded.visual.features({"pixel_values": packed.pixels[chosen]})

    def through_packing(mask: Tensor) -> Tensor:
        given = inputs | {"attention_mask": mask}
        return token_losses(LLAVA.with_visual_tokens(model, tokens, given).last_hidden_state, labels)

    examples = [e for i in chosen.tolist() for e in list(grouped.values())[i]]
    batch = batcher.for_training(examples)
    alone = token_losses(
        model.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state, batch["labels"]
    )
    torch.testing.assert_close(through_packing(inputs["attention_mask"]), alone, rtol=1e-4, atol=1e-5)

    length = inputs["input_ids"].shape[1]
    causal = torch.zeros(length, length).masked_fill(torch.ones(length, length).triu(1) > 0, torch.finfo().min)
    leaky = through_packing(causal.expand(3, 1, -1, -1))
    assert not torch.allclose(leaky, alone, rtol=1e-2)


def test_a_picture_with_fewer_questions_repeats_its_own(batcher: Batcher, people: UnlearnData) -> None:
    examples = people.train.pictured.examples[:11]  # nine about the first picture, two about the second
    packed = PackedPictures.of(dataclasses.replace(people.train, examples=examples), batcher)
    assert packed.ids.shape[:2] == (2, 9)
    assert torch.equal(packed.ids[1], packed.ids[1][[0, 1, 0, 1, 0, 1, 0, 1, 0]])
    assert torch.equal(packed.labels[1], packed.labels[1][[0, 1, 0, 1, 0, 1, 0, 1, 0]])
