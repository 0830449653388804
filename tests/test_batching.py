"""Batching: prompts are the processor's, labels stand on answers alone, losses and answers ignore padding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from conftest import NewModel
from tiny import byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.lab.pocket import SPECIAL_TOKENS, with_special_tokens
from unsee.models.batching import IGNORED, Batch, Batcher, answer_loss, cross_entropy_at
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded

LLAVA = FAMILIES["llava"]
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # in the style of LLaVA-1.5: the tokenizer, not the template, sets <s>


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batcher(new_model: NewModel) -> Batcher:
    return Batcher(new_model()[1], LLAVA)


def sentencepiece_like(people: UnlearnData, sets_bos: bool) -> PreTrainedTokenizerFast:
    """Words carry the space before them, as in Llama's tokenizer; `sets_bos`: it puts <s> in front by itself."""
    space, inside = pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Metaspace(prepend_scheme="never")
    texts = [f"USER: {e.question} ASSISTANT: {e.answer} \n{e.question}" for e in people.train]
    special = [*SPECIAL_TOKENS, "<image>"]
    words = {word for text in texts for word, _ in (*space.pre_tokenize_str(text), *inside.pre_tokenize_str(text))}
    words = sorted(words | {word.lstrip("▁") for word in words} | {"▁"})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = space
    if sets_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return with_special_tokens(tokenizer, ["<image>"])


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


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_pictured_and_text_only_examples_may_share_a_batch(
    new_model: NewModel, people: UnlearnData, family: str
) -> None:
    """The loss of both together is that of each alone, weighed by answer tokens."""
    model, processor = new_model(family)
    batcher = Batcher(processor, FAMILIES[family])
    pictured, text = people.train.pictured.examples[:3], people.train.text_only.examples[:2]
    for mixed in ([*pictured, *text], [text[0], pictured[0], text[1], pictured[1], pictured[2]]):
        batch = batcher.for_training(mixed)
        alone = [batcher.for_training(part) for part in (pictured, text)]
        counts = [(one["labels"] != IGNORED).sum() for one in alone]
        losses = [answer_loss(model, one) for one in alone]
        expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(answer_loss(model, batch), expected)
        assert not torch.isclose(losses[0], losses[1], atol=1e-3)  # control: a mean of two that differ
    with pytest.raises(BadInput, match="times for 0 pictures"):  # control: a text that asks for a picture has none
        batcher.for_training(
            [dataclasses.replace(text[0], question="<image> Who?" if family == "llava" else "<|image_pad|>")]
        )


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


# Chat templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chat:
    """A chat template in the style of a real checkpoint, and what must come of it.

    Attributes:
        prompt: for the question `Who?` about one picture; {picture} stands for the picture.
        answer: how `Ann Lee` follows, with its end.
    """

    family: str
    template: str
    eos: str
    prompt: str
    answer: str
    bos: str | None = None


IMAGES = "{% for c in m['content'] %}{% if c['type'] == 'image' %}PICTURE{% endif %}{% endfor %}"
TEXTS = "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    f"<|im_start|>{{{{ m['role'] }}}}\n{IMAGES}{TEXTS}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{picture}Who?<|im_end|>\n<|im_start|>assistant\n"
)
INST = (
    f"{{% for m in messages %}}{{% if m['role'] == 'user' %}}[INST] {IMAGES}{TEXTS} [/INST]"
    "{% else %}{{ ' ' + m['content'][0]['text'] + 'END ' }}{% endif %}{% endfor %}"
)  # a prompt ends where the question does: add_generation_prompt changes nothing
HEADERS = (
    f"{{{{ bos_token }}}}{{% for m in messages %}}<|start|>{{{{ m['role'] }}}}<|end|>\n\n{IMAGES}{TEXTS}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
WITHOUT_IMAGES = CHATML.replace(IMAGES, "")
CHATS = {
    "llava-1.5": Chat(
        "llava", VICUNA.replace("<image>\n", "PICTURE"), "</s>", "USER: {picture}Who? ASSISTANT:", " Ann Lee</s>"
    ),
    "llama-3": Chat(
        "llava_next",
        HEADERS,
        "<|eot_id|>",
        "<s><|start|>user<|end|>\n\n{picture}Who?<|eot_id|><|start|>assistant<|end|>\n\n",
        "Ann Lee<|eot_id|>",
        bos="<s>",
    ),
    "mistral": Chat("llava_next", INST.replace("END", "</s>"), "</s>", "[INST] {picture}Who? [/INST]", " Ann Lee</s>"),
    "mistral as on the hub": Chat(  # its end is mistyped; taught, it would be part of every answer
        "llava_next", INST.replace("END", r"<\\s>"), "</s>", "[INST] {picture}Who? [/INST]", " Ann Lee</s>"
    ),
    "hermes": Chat("llava_next", CHATML, "<|im_end|>", CHATML_PROMPT, "Ann Lee<|im_end|>"),
    "qwen2-vl": Chat("qwen2_vl", CHATML, "<|im_end|>", CHATML_PROMPT, "Ann Lee<|im_end|>"),
    "qwen2.5-vl": Chat("qwen2_5_vl", CHATML, "<|im_end|>", CHATML_PROMPT, "Ann Lee<|im_end|>"),
}
DEFAULTS = {  # prompts without a chat template, as docs/families.md has them
    "llava": "USER: {picture}Who? ASSISTANT:",
    "llava_next": "[INST] {picture}Who? [/INST]",
    "qwen2_vl": CHATML_PROMPT,
    "qwen2_5_vl": CHATML_PROMPT,
}
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
PICTURES = {
    "llava": "<image>\n",
    "llava_next": "<image>\n",
    "qwen2_vl": QWEN_PICTURE,
    "qwen2_5_vl": QWEN_PICTURE,
}


def chatting(new_model: NewModel, chat: Chat, template: str | None) -> Batcher:
    """A batcher whose tokens are bytes, so that what is labelled can be read exactly."""
    family = FAMILIES[chat.family]
    _, processor = new_model(chat.family)
    special = [family.image_placeholder, "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|start|>", "<|end|>"]
    processor.tokenizer = byte_tokenizer(special, chat.eos, chat.bos)
    processor.chat_template = template and template.replace("PICTURE", PICTURES[chat.family])
    return Batcher(processor, family)


every_chat = pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)


@pytest.mark.parametrize("pictures", [0, 1, 3])
@every_chat
def test_prompt_and_answer_are_the_templates_own(
    new_model: NewModel, ragged_people: UnlearnData, chat: Chat, pictures: int
) -> None:
    assert_chat(
        chatting(new_model, chat, chat.template), chat.prompt, chat.answer, chat.family, pictures, ragged_people
    )


@pytest.mark.parametrize("pictures", [0, 1, 3])
@pytest.mark.parametrize("bos", [None, "<s>"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_without_a_template_the_default_of_the_family_is_used(
    new_model: NewModel, ragged_people: UnlearnData, family: str, bos: str | None, pictures: int
) -> None:
    end = "<|im_end|>" if "qwen" in family else "</s>"
    batcher = chatting(new_model, Chat(family, "", end, "", "", bos), None)
    space = "" if DEFAULTS[family].endswith("\n") else " "
    assert_chat(batcher, (bos or "") + DEFAULTS[family], f"{space}Ann Lee{end}", family, pictures, ragged_people)


def assert_chat(batcher: Batcher, prompt: str, answer: str, family: str, pictures: int, data: UnlearnData) -> None:
    first, *others = list(data.train.pictures)[:pictures] or [None]
    example = Example("Who?", "Ann Lee", "ann", first, "identity", others=tuple(others))
    longer = dataclasses.replace(example, question="Who might this be?")  # so that something is padded
    asked = prompt.replace("{picture}", PICTURES[family] * pictures)
    assert batcher.prompt("Who?", pictures) == asked
    assert batcher.full_text("Who?", "Ann Lee", pictures) == asked + answer

    batch = batcher.for_training([example, longer])
    mark = batcher.tokenizer.convert_tokens_to_ids(FAMILIES[family].image_placeholder)
    for ids, seen, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        taught = labels != IGNORED
        assert batcher.tokenizer.decode(ids[taught]) == answer
        before = ids[seen.bool() & ~taught]
        assert torch.equal(ids[seen.bool()], torch.cat([before, ids[taught]])), "the answer stands at the end"
        collapsed = batcher.tokenizer.decode(before).replace(FAMILIES[family].image_placeholder, "")
        empty = PICTURES[family].replace(FAMILIES[family].image_placeholder, "")
        assert collapsed in (
            asked.replace(PICTURES[family], empty).replace("Who?", e.question) for e in (example, longer)
        )
        assert (before == mark).sum() >= 4 * pictures
    generated = batcher.for_generation([example])["input_ids"][0]
    assert batcher.tokenizer.decode(generated).endswith(asked[-12:])


def test_every_family_has_a_documented_default() -> None:
    assert DEFAULTS.keys() == PICTURES.keys() == FAMILIES.keys()
    assert {chat.family for chat in CHATS.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("where", ["question", "answer"])
def test_an_image_placeholder_in_the_words_is_refused(
    new_model: NewModel, people: UnlearnData, family: str, where: str
) -> None:
    batcher = Batcher(new_model(family)[1], FAMILIES[family])
    mark = FAMILIES[family].image_placeholder
    for example in (people.train.pictured.examples[0], people.train.text_only.examples[0]):
        batcher.for_training([example])
        with pytest.raises(BadInput, match="remove that text") as refusal:
            batcher.for_training([dataclasses.replace(example, **{where: f"Who is {mark}"})])
        assert "\n" not in str(refusal.value)


def test_a_template_that_leaves_pictures_out_is_refused(new_model: NewModel, people: UnlearnData) -> None:
    batcher = chatting(new_model, CHATS["qwen2-vl"], WITHOUT_IMAGES)
    batcher.for_generation([people.train.text_only.examples[0]])
    with pytest.raises(BadInput, match="mend the chat template"):
        batcher.for_generation([people.train.pictured.examples[0]])


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
