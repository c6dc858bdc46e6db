"""Where a layer's Gram is solved: at once, or in a thread beside training that holds a bounded number of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Protocol

import torch

from lightning_ssc.capture import GramOfLayer
from lightning_ssc.store import LayerGraph

Solve = Callable[[GramOfLayer], LayerGraph]


class Solver(Protocol):
    """What a snapshot hands its Grams to."""

    def submit(self, solve: Solve, gram: GramOfLayer) -> Future[LayerGraph]:
        """Take a Gram over, to be solved now or later."""


class InTurn:
    """Solves a Gram at once, so that one is held at a time; a failure is raised at once.

    Example:
        >>> InTurn().submit(lambda gram: gram, "a Gram").result()
        'a Gram'
    """

    def submit(self, solve: Solve, gram: GramOfLayer) -> Future[LayerGraph]:
        """Solve the Gram."""
        done: Future[LayerGraph] = Future()
        done.set_result(solve(gram))
        return done


class Beside:
    """Solves Grams in one thread, in the order in which they come.

    The solver leaves Python for nearly all of its time, so a training loop goes on meanwhile if there is a core to
    spare. On a GPU it works in a stream of its own.

    Args:
        limit: Bytes of Grams to hold. Whoever brings one more waits; one is always taken, however large.

    Example:
        >>> from lightning_ssc.capture import WatchedLayer
        >>> from lightning_ssc.layers import Layer
        >>> gram = GramOfLayer(WatchedLayer(Layer("fc"), 0, "fc", 2), torch.eye(3), torch.zeros(3), 0.0)
        >>> worker = Beside(limit=100)
        >>> worker.submit(lambda gram: gram.layer.label, gram).result()
        'fc'
        >>> worker.close()
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._room = Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lightning_ssc")

    def submit(self, solve: Solve, gram: GramOfLayer) -> Future[LayerGraph]:
        """Take a Gram over as soon as there is room for it."""
        size = gram.centred.nbytes
        with self._room:
            self._room.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._held += size
        device = gram.centred.device
        ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        future = self._thread.submit(_in_own_stream, solve, gram, ready)
        future.add_done_callback(lambda _: self._release(size))
        return future

    def _release(self, size: int) -> None:
        with self._room:
            self._held -= size
            self._room.notify()

    def close(self) -> None:
        """Begin nothing more; what is being solved is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _in_own_stream(solve: Solve, gram: GramOfLayer, ready: torch.cuda.Event | None) -> LayerGraph:
    """Solve beside what the training thread computes on the same GPU, once the Gram is there."""
    if ready is None:
        return solve(gram)
    stream = torch.cuda.Stream(gram.centred.device)
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        graph = solve(gram)
    stream.synchronize()  # the Gram's memory goes back to the training thread's stream
    return graph
