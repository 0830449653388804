"""The ways a command may end badly on purpose."""

import unicodedata


def readable(text: str) -> str:
    """A text that any terminal takes: halves of characters, undecodable bytes and control codes as `\\x` escapes.

    White space stays: whoever prints the text decides about its lines.
    """
    odd = {c for c in text if not c.isspace() and unicodedata.category(c) in ("Cs", "Cc")}
    return "".join(_escaped(c) if c in odd else c for c in text) if odd else text


def _escaped(character: str) -> str:
    code = ord(character)
    undecodable = 0xDC80 <= code <= 0xDCFF  # how Python keeps a byte of a file name that is not UTF-8
    return f"\\x{code - 0xDC00:02x}" if undecodable else character.encode("unicode_escape").decode()


def one_line(error: Exception) -> str:
    """What an error of somebody else's code says, in one line; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class BadInput(Exception):
    """Something the user gave cannot be used; nothing was written. Exit code 2.

    The message is one line: which file, row or key, what was expected, how to fix it. Whatever a file is called, it can
    be printed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(readable(message))


class GateFailed(Exception):
    """The run worked but its own gate refuses the result. Exit code 1."""


class WorkerLost(Exception):
    """A process that did a part of the work is gone, e.g. for want of memory. Exit code 1."""
