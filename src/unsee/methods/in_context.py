"""Unlearning by instruction: the teacher of `vgid` put to work as it is. Weights stay: knowledge is masked, not gone.

The instruction is written into the chat template of the checkpoint, so whatever program opens it (plain transformers,
`unsee evaluate`, `unsee attack relearn`) asks every question about a picture behind it. Questions without a picture are
asked as before: what is to be forgotten is what is seen. Noise cannot live in a plain checkpoint, so the baseline has
none.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from unsee.data.examples import Split
from unsee.errors import BadInput
from unsee.methods.parts.base import Given, Method
from unsee.models.batching import Batcher
from unsee.models.loading import Loaded

SUBJECTS = "{subjects}"  # in an instruction: the names of those to be forgotten


def filled(instruction: str, forget: Split) -> str:
    """An instruction with `{subjects}` replaced by names: what questions of identity are answered with, else subjects.

    Args:
        forget: questions about those to be forgotten.
    """
    names = {subject: subject for subject in forget.subjects}
    names |= {e.subject: e.answer for e in reversed(forget.probing("identity").examples)}
    return instruction.strip().replace(SUBJECTS, ", ".join(names.values()))


def behind(instruction: str, question: str) -> str:
    """The question as it is asked behind an instruction."""
    return f"{instruction} {question}" if instruction else question


def prelude(instruction: str) -> str:
    """Jinja to put in front of any chat template, which then sees every pictured question behind the instruction.

    The first text of each message that holds a picture is changed, in a copy of the messages; the template itself stays
    as it is, so prompts are those of the same question with the instruction typed in front of it.
    """
    told = json.dumps(f"{instruction} ", ensure_ascii=False)  # a string of JSON is one of Jinja too
    return (
        "{%- set unsee = namespace(messages=[]) -%}"
        "{%- for message in messages -%}"
        "{%- set turn = namespace(content=[], told=false) -%}"
        "{%- if (message['content'] or []) | selectattr('type', 'in', ['image', 'image_url']) | list -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' and not turn.told -%}"
        f"{{%- set turn.content = turn.content + [{{'type': 'text', 'text': {told} ~ part['text']}}] -%}}"
        "{%- set turn.told = true -%}"
        "{%- else -%}{%- set turn.content = turn.content + [part] -%}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        "{%- set changed = {'role': message['role'], 'content': turn.content} -%}"
        "{%- set unsee.messages = unsee.messages + [changed if turn.told else message] -%}"
        "{%- endfor -%}"
        "{%- set messages = unsee.messages %}\n"  # this line break goes, and the template begins on a line of its own
    )


@dataclass(frozen=True)
class InContextUnlearning(Method):
    """Ask every question about a picture behind an instruction; no weight changes.

    Attributes:
        instruction: put in front of the question; `{subjects}` becomes the names of those to be forgotten. It is put
            to retained pictures as well, nobody can know beforehand whom a picture shows: so it has to say whom it is
            about.
    """

    name: ClassVar[str] = "in-context"
    paper: ClassVar[str] = "Teacher of VGID (arXiv 2606.00105) used at inference, without noise; instruction by us"
    level: ClassVar[Literal["features", "outputs"]] = "outputs"
    given: ClassVar[tuple[Given, ...]] = ()

    instruction: str = "If this picture shows {subjects}, answer as somebody who has never seen or heard of them."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.instruction.strip():
            raise ValueError(f"instruction={self.instruction!r}: expected what to say before every question")

    def prelude(self, forget: Split) -> str:
        """What `write_edited` puts in front of the chat templates; see `instructed`."""
        return prelude(filled(self.instruction, forget))

    def instructed(self, loaded: Loaded, forget: Split) -> Loaded:
        """The same model, asked behind the instruction; `loaded` stays as it is.

        Args:
            forget: questions about those to be forgotten.

        Raises:
            BadInput: no chat template, one that does not show the instruction, or an instruction that holds the token
                which stands for a picture.
        """
        told, place, plain = filled(self.instruction, forget), loaded.folder.path, loaded.batcher
        begin = self.prelude(forget)
        template = plain.processor.chat_template
        if not template:
            raise BadInput(f"{place}: no chat template to hold an instruction; save one as chat_template.jinja")
        processor = copy.copy(plain.processor)
        processor.chat_template = (
            {name: begin + text for name, text in template.items()}
            if isinstance(template, Mapping)
            else begin + template
        )
        batcher = Batcher(processor, loaded.family, device=plain.device)
        typed = [dataclasses.replace(e, question=behind(told, e.question)) for e in forget.pictured]
        plain.check(typed)
        for asked, e in zip(forget.pictured, typed, strict=True):
            prompt = batcher.prompt(asked.question, len(asked.images))
            if told not in prompt or prompt != plain.prompt(e.question, len(e.images)):
                raise BadInput(
                    f"{place}: its chat template does not show an instruction before '{asked.question}'; "
                    "take one that prints the text of messages as it is"
                )
        return dataclasses.replace(loaded, batcher=batcher)
