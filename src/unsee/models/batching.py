"""From examples to tensors and back. The only place that knows processors, image placeholders and -100."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_backends import PilBackend

from unsee.data.examples import Example, ImageSource
from unsee.errors import BadInput
from unsee.models.anatomy import Family

IGNORED = -100  # label of positions that carry no loss
Batch = dict[str, Tensor]


class Batcher:
    """Turns examples into model inputs.

    Prompts come from the processor's own chat template; without one, from the family's documented default.

    Args:
        cache_bytes: pictures are decoded and preprocessed once while their tensors fit into this many bytes.
        device: where the model is, and every tensor made for it.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        family: Family,
        cache_bytes: int = 1 << 29,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.processor = processor
        self.family = family
        self.tokenizer = processor.tokenizer
        self._place = str(self.tokenizer.name_or_path) or "the processor"  # for messages
        if self.tokenizer.pad_token_id is None:
            file = os.path.join(self._place, "tokenizer_config.json")
            raise BadInput(f"{file}: no pad_token; set one (LLaVA uses '<pad>') and try again")
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[ImageSource, dict[str, Tensor]] = OrderedDict()
        self._cached_bytes = 0
        self._prompts: dict[tuple[str, int], list[int]] = {}
        self._answers: dict[tuple[str, str, int], tuple[list[int], int]] = {}

    @property
    def image_backend(self) -> str:
        """What prepares pictures: `pillow` or `torchvision`. Their pixels differ a little, so results record it."""
        return "pillow" if isinstance(self.processor.image_processor, PilBackend) else "torchvision"

    # ---------------------------------------------------------------- text

    def prompt(self, question: str, pictures: int) -> str:
        """The text up to where the answer begins, image placeholders not yet expanded."""
        if getattr(self.processor, "chat_template", None):
            return self._chat([_turn(question, pictures)], add_generation_prompt=True)
        shown = self.family.picture * pictures
        start = self.tokenizer.bos_token or ""
        return start + self.family.default_prompt.format(pictures=shown, question=question)

    def full_text(self, question: str, answer: str, pictures: int) -> str:
        """Prompt, answer and end-of-sequence.

        The chat template decides how an answer follows its prompt, as far as its own text goes on from the prompt;
        else, and without a template, one space stands between them. What a template writes behind the answer is left
        out: it may be more than the end (a line break), or not the end at all (LLaVA-NeXT with Mistral: `<\\s>`).
        """
        prompt, end = self.prompt(question, pictures), self.tokenizer.eos_token or ""
        said = f"{'' if prompt[-1:].isspace() else ' '}{answer}"
        if getattr(self.processor, "chat_template", None):
            reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
            whole = self._chat([_turn(question, pictures), reply])
            at = whole.find(answer, len(prompt))
            if whole.startswith(prompt) and at >= 0:
                said = whole[len(prompt) : at + len(answer)]
        return f"{prompt}{said}{end}"

    def answer_length(self, question: str, answer: str, pictures: int) -> tuple[list[int], int]:
        """Token ids of the whole text (placeholders not expanded), and how many at its end are the answer."""
        known = self._answers.get((question, answer, pictures))
        if known is None:
            prompt = self.prompt_ids(question, pictures)
            full = self.ids([self.full_text(question, answer, pictures)])["input_ids"][0]
            shared = 0
            while shared < min(len(prompt), len(full)) and prompt[shared] == full[shared]:
                shared += 1
            known = self._answers[question, answer, pictures] = full, len(full) - shared
        return known

    def prompt_ids(self, question: str, pictures: int) -> list[int]:
        """Token ids of a prompt, placeholders not expanded."""
        known = self._prompts.get((question, pictures))
        if known is None:
            known = self._prompts[question, pictures] = self.ids([self.prompt(question, pictures)])["input_ids"][0]
        return known

    def _chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        try:
            return str(
                self.processor.apply_chat_template(
                    messages, add_generation_prompt=add_generation_prompt, tokenize=False
                )
            )
        except (TemplateError, TypeError, ValueError) as error:  # what is wrong inside an expression is any of these
            reason = " ".join(str(error).split())
            raise BadInput(f"{self._place}: its chat template does not work ({reason}); correct it") from error

    def check(self, examples: Sequence[Example]) -> None:
        """Write every prompt and answer once, so that what cannot be asked is known before anything is.

        Raises:
            BadInput: a chat template that does not work, leaves pictures out, or a question that holds a placeholder.
        """
        for e in {(e.question, e.answer, len(e.images)): e for e in examples}.values():
            self._between_pictures(e, self.full_text(e.question, e.answer, len(e.images)))

    # ---------------------------------------------------------------- pictures

    def images(self, sources: Sequence[ImageSource]) -> dict[str, Tensor]:
        """Image tensors of the pictures, in order (see `Family.encode_images`)."""
        missing = [s for s in dict.fromkeys(sources) if s not in self._cache]
        fresh = {s: self.family.encode_images(self.processor, [s.open()]) for s in missing}
        rows = [fresh.get(s) or self._cache[s] for s in sources]
        for source, tensors in fresh.items():
            self._remember(source, tensors)
        return self._placed(self.family.join(rows))  # what is kept stays on the processor

    def release(self) -> None:
        """Give back the memory of pictures prepared so far."""
        self._cache.clear()
        self._cached_bytes = 0

    def _remember(self, source: ImageSource, tensors: dict[str, Tensor]) -> None:
        self._cache[source] = tensors
        self._cached_bytes += _bytes(tensors)
        while self._cached_bytes > self._cache_bytes and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _bytes(dropped)

    # ---------------------------------------------------------------- batches

    def for_generation(self, examples: Sequence[Example]) -> Batch:
        """Prompts only, padded on the left."""
        texts = [self.prompt(e.question, len(e.images)) for e in examples]
        return self._placed(self._batch(examples, texts, "left"))

    def for_training(self, examples: Sequence[Example]) -> Batch:
        """Prompt and answer, padded on the right; `labels` are -100 except on answer and end-of-sequence tokens."""
        batch = self._batch(examples, [self.full_text(e.question, e.answer, len(e.images)) for e in examples], "right")
        labels = torch.full_like(batch["input_ids"], IGNORED)
        lengths = batch["attention_mask"].sum(1).tolist()
        for row, (e, length) in enumerate(zip(examples, lengths, strict=True)):
            _, answer = self.answer_length(e.question, e.answer, len(e.images))
            labels[row, length - answer : length] = batch["input_ids"][row, length - answer : length]
        return self._placed(batch | {"labels": labels})

    def decode(self, ids: Tensor) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _placed(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _batch(self, examples: Sequence[Example], texts: list[str], side: str) -> Batch:
        images: dict[str, Tensor] = {}
        if sources := [image for e in examples for image in e.images]:
            images = self.images(sources)
        texts = self._expand(examples, texts, images)
        encoded = self.ids(texts, padding=True, padding_side=side, return_tensors="pt")
        ids = encoded["input_ids"]
        extra = self.family.text_inputs(self.processor, ids) if images else {}
        return {"input_ids": ids, "attention_mask": encoded["attention_mask"], **extra, **images}

    def _expand(self, examples: Sequence[Example], texts: list[str], images: Mapping[str, Tensor]) -> list[str]:
        """Every image placeholder repeated as often as its picture has visual tokens.

        Raises:
            BadInput: a question or answer holds the placeholder itself, or the chat template leaves pictures out.
        """
        index, expanded = 0, []
        for e, text in zip(examples, texts, strict=True):
            start, *rest = self._between_pictures(e, text)
            for part in rest:
                start += self.family.placeholder_tokens(self.processor, images, index) + part
                index += 1
            expanded.append(start)
        return expanded

    def _between_pictures(self, e: Example, text: str) -> list[str]:
        mark = self.family.image_placeholder
        parts = text.split(mark)
        if len(parts) != len(e.images) + 1:
            raise BadInput(
                f"question '{e.question}': its prompt holds '{mark}' {len(parts) - 1} times for {len(e.images)} "
                f"pictures; remove that text from question and answer, or mend the chat template of {self._place}"
            )
        return parts

    def ids(self, texts: list[str], **how: Any) -> Any:
        """Token ids as the processor makes them: the tokenizer sets the beginning, unless the template already did."""
        begun = bool(self.tokenizer.bos_token) and texts[0].startswith(self.tokenizer.bos_token)
        return self.tokenizer(texts, add_special_tokens=not begun, **how)


def _turn(question: str, pictures: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": question}]}


def answer_loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the answer tokens (natural log; scalar).

    Every answer token of the batch weighs the same; prompt, image and padding positions carry nothing, so the value
    does not change when padding is added. Vocabulary scores are computed at answer positions only.
    """
    scores, targets, _ = answer_scores(model, batch)
    return F.cross_entropy(scores, targets)


def answer_scores(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Vocabulary scores where an answer token is predicted, and nowhere else: padding changes nothing.

    Returns:
        scores in float32 [answer tokens, vocabulary]; the true tokens [answer tokens]; the row of the batch that each
        belongs to [answer tokens].
    """
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = model.model(**inputs).last_hidden_state
    scores, targets, wanted = _scores_at(model, hidden, batch["labels"])
    return scores, targets, wanted.nonzero()[:, 0]


def scores_everywhere(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Vocabulary scores at every position that is no padding, in float32 [positions, vocabulary], row after row."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = model.model(**inputs).last_hidden_state
    scores: Tensor = model.get_output_embeddings()(hidden[batch["attention_mask"].bool()])
    return scores.float()


def cross_entropy_at(model: PreTrainedModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of next-token prediction where `labels` [rows, positions] is not -100."""
    scores, targets, _ = _scores_at(model, hidden, labels)
    return F.cross_entropy(scores, targets)


def _scores_at(model: PreTrainedModel, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and true tokens there, and where that is [rows, positions - 1], each position before its token."""
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    scores = model.get_output_embeddings()(hidden[:, :-1][wanted])
    return scores.float(), targets[wanted], wanted


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
