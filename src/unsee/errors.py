"""The ways a command may end badly on purpose."""


class BadInput(Exception):
    """Something the user gave cannot be used; nothing was written. Exit code 2.

    The message is one line: which file, row or key, what was expected, how to fix it.
    """


class GateFailed(Exception):
    """The run worked but its own gate refuses the result. Exit code 1."""


class WorkerLost(Exception):
    """A process that did a part of the work is gone, e.g. for want of memory. Exit code 1."""
