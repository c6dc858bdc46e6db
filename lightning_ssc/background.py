"""Where a layer's Gram is solved: at once, or in a thread beside training that holds a bounded number of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Protocol, TypeVar

import torch

from lightning_ssc.capture import NoRoomError
from lightning_ssc.functional.grams import CentredGram
from lightning_ssc.snapshots import LayerGraph
from lightning_ssc.threads import at_most, worth

Solve = Callable[[CentredGram], LayerGraph]
Result = TypeVar("Result")


class Solver(Protocol):
    """What a snapshot hands its Grams to."""

    def submit(self, solve: Solve, gram: CentredGram) -> Future[LayerGraph]:
        """Take a Gram over, to be solved now or later."""


class Foreground:
    """Solves a Gram at once, so that one is held at a time; a failure is raised at once.

    Example:
        >>> Foreground().submit(lambda gram: gram, "a Gram").result()
        'a Gram'
    """

    def submit(self, solve: Solve, gram: CentredGram) -> Future[LayerGraph]:
        """Solve the Gram."""
        done: Future[LayerGraph] = Future()
        try:
            done.set_result(solve(gram))
        except NoRoomError as error:  # of one layer, which the others can do without
            done.set_exception(error)
        return done


class Background:
    """Solves Grams in one thread, in the order in which they come.

    The solver leaves Python for nearly all of its time, so a training loop goes on meanwhile if there is a core to
    spare. Grams of a GPU wait in the memory of the host and are solved on the GPU, in a stream of the thread's own.

    Args:
        limit: Bytes of Grams to hold. Whoever brings one more waits; one is always taken, however large.

    Example:
        >>> worker = Background(limit=100)
        >>> worker.submit(lambda gram: len(gram.centred), CentredGram(torch.eye(3), torch.zeros(3), 0.0)).result()
        3
        >>> worker.close()
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._room = Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lightning_ssc")
        self._stream: torch.cuda.Stream | None = None

    def submit(self, solve: Solve, gram: CentredGram) -> Future[LayerGraph]:
        """Take a Gram over as soon as there is room for it."""
        size = gram.centred.nbytes
        with self._room:
            self._room.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._held += size
        try:
            future = self._thread.submit(self._solve, solve, gram.to(torch.device("cpu")), gram.centred.device)
        except BaseException:
            self._release(size)
            raise
        future.add_done_callback(lambda _: self._release(size))
        return future

    def do(self, job: Callable[[], Result]) -> Future[Result]:
        """Do something else in the thread, after what it was given before."""
        return self._thread.submit(job)

    def _solve(self, solve: Solve, gram: CentredGram, device: torch.device) -> LayerGraph:
        with at_most(worth(len(gram.centred))):
            if device.type != "cuda":
                return solve(gram)
            self._stream = self._stream or torch.cuda.Stream(device)
            with torch.cuda.stream(self._stream):
                return solve(gram.to(device))

    def _release(self, size: int) -> None:
        with self._room:
            self._held -= size
            self._room.notify()

    def close(self) -> None:
        """Begin nothing more. A layer that is being solved goes on to its end, but is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
