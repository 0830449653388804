"""Independent work side by side, in processes of their own. Light to import: a worker starts with this module."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, TypeVar

from unsee.device import choose_device, chosen_device
from unsee.errors import BadInput, GateFailed, WorkerLost
from unsee.progress import silence, track
from unsee.storage import no_room

T = TypeVar("T")

PATIENCE = 10.0  # seconds that a worker which was told to end has for removing what is half written


def side_by_side(
    what: str, function: Callable[..., Iterable[T]], tasks: Mapping[str, tuple[Any, ...]], jobs: int
) -> Iterator[T]:
    """Call `function` on the arguments of every task; yields what the calls yield, as it comes.

    With one job or one task everything is done in this process, one task after the other. With more, so many worker
    processes share the torch threads that this one would use, and work on the tasks in their order, each on one at a
    time. None of them outlives this generator, nor this process, however it ends. Results of different tasks come in
    any order, so they say themselves what they belong to. (An executor of `concurrent.futures` cannot say which task a
    dead worker had, nor break one off, nor hand on results before a task ends.)

    Args:
        what: is done, for the progress bar and for messages.
        function: of a module, or a `functools.partial` of one: it is sent to each worker once, so what all tasks share
            belongs into it. It must not matter in which process it is called, nor what was called there before.
        tasks: by name, for messages; arguments and results are pickled.

    Raises:
        BadInput, GateFailed: as a task raised them; the others are broken off. WorkerLost: a worker died.
    """
    count = min(jobs, len(tasks))
    if count < 2:
        for arguments in tasks.values():
            yield from function(*arguments)
        return
    import torch

    waiting = iter(tasks.items())
    busy: dict[Connection, _Worker] = {}
    bar = track(range(len(tasks)), what)
    try:
        next(bar)
        for _ in range(count):
            worker = _Worker(what, max(1, torch.get_num_threads() // count))
            busy[worker.link] = worker
        for worker in busy.values():
            worker.send(function)
            worker.begin(*next(waiting))
        while busy:
            for link in wait(list(busy)):
                worker = busy[link]  # type: ignore[index]
                more, value = worker.receive()
                if more:
                    yield value
                elif value is not None:
                    raise value
                else:
                    next(bar, None)
                    if (following := next(waiting, None)) is not None:
                        worker.begin(*following)
                    else:
                        del busy[worker.link]
                        worker.dismiss()
    finally:
        for worker in busy.values():
            worker.process.terminate()
        for worker in busy.values():
            worker.end()
        bar.close()


class _Worker:
    """A process that carries out one task after the other, as the parent sees it."""

    def __init__(self, what: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # torch and fork do not mix
        self._what, self._task = what, "starting"
        self.link, its_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(its_end, threads, chosen_device()), daemon=True)
        self.process.start()
        its_end.close()

    def begin(self, task: str, arguments: tuple[Any, ...]) -> None:
        self._task = task
        self.send(arguments)

    def send(self, message: Any) -> None:
        try:
            self.link.send(message)
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> tuple[bool, Any]:
        try:
            message: tuple[bool, Any] = self.link.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return message

    def dismiss(self) -> None:
        """There is no further task."""
        self.link.close()
        self.process.join()
        self.process.close()

    def end(self) -> None:
        """Wait for a worker that was terminated; one that hangs is killed."""
        self.process.join(PATIENCE)
        self.process.kill()
        self.dismiss()

    def _lost(self) -> WorkerLost:
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            how = f"was killed (signal {-code}), as happens when memory runs out; lower --jobs, and"
        else:
            how = f"broke off (exit code {code}, see above);"
        return WorkerLost(f"{self._what}, {self._task}: its process {how} go on with --resume")


# In the worker --------------------------------------------------------------------------------------------------------


def _serve(link: Connection, threads: int, device: str) -> None:
    """Carry out tasks until none comes: of each its results, marked True, and then (False, None) or (False, error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent then ends its workers
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()
    silence()
    import torch

    torch.set_num_threads(threads)
    try:
        function = link.recv()
        while True:
            arguments = link.recv()
            try:
                choose_device(device)
                for result in function(*arguments):
                    link.send((True, result))
            except (BadInput, GateFailed) as problem:
                link.send((False, problem))
            except OSError as error:
                if (full := no_room(error)) is None:
                    raise
                link.send((False, full))
            else:
                link.send((False, None))
    except EOFError:
        return


def _leave(*_: object) -> NoReturn:
    sys.exit(1)  # an exception, so that temporary files are removed on the way


def _follow_parent() -> None:
    """End this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
