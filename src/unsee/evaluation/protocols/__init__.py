"""The benchmarks' own protocols: what is asked, how answers are read, what they count for."""

from unsee.evaluation.protocols import clear, fiubench, mllmu, umu
from unsee.evaluation.protocols.base import (
    GOALS,
    Goal,
    Protocol,
    ProtocolQuestion,
    ProtocolReply,
    ProtocolRow,
    table,
    wanted,
)
from unsee.evaluation.protocols.wording import MODES, Mode, answer_text, question_text

PROTOCOLS: dict[str, Protocol] = {
    "mllmu": mllmu.PROTOCOL,
    "clear": clear.PROTOCOL,
    "umu": umu.PROTOCOL,
    "fiubench": fiubench.PROTOCOL,
}

__all__ = ["GOALS", "MODES", "PROTOCOLS", "Goal", "Mode", "Protocol", "ProtocolQuestion", "ProtocolReply"]
__all__ += ["ProtocolRow", "answer_text", "question_text", "table", "wanted"]
