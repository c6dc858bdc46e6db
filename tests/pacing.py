"""Time as tests want it: a gate before the solver, behind which the background waits, and a clock that hurries."""

from __future__ import annotations

import time
from itertools import count
from threading import Event
from threading import enumerate as enumerate_threads
from types import SimpleNamespace
from typing import Any

from lightning_ssc import Recorder, pipeline
from lightning_ssc.capture import WatchedLayer


class Gate:
    """Stands in for :func:`lightning_ssc.pipeline.solve_layer`: holds whoever solves a layer up until it is open."""

    def __init__(self) -> None:
        self.open = Event()
        self.open.set()
        self.calls: list[str] = []
        self.fails_on = 0  # the first is 1

    def __call__(self, layer: WatchedLayer, *args: Any) -> Any:
        assert self.open.wait(30)
        self.calls.append(layer.label)
        if len(self.calls) == self.fails_on:
            raise ValueError(f"Layer {layer.label!r}: no solution")
        return self.original(layer, *args)

    def shut(self, recorder: Recorder | None) -> None:
        """Shut it behind the snapshot that is being solved."""
        settle(recorder)
        self.open.clear()

    original = staticmethod(pipeline.solve_layer)


def settle(recorder: Recorder | None) -> None:
    """Wait until no snapshot is being solved, as a long batch would."""
    end = time.monotonic() + 30
    while recorder is not None and recorder.busy:
        assert time.monotonic() < end
        time.sleep(0.01)


def assert_no_thread_is_left() -> None:
    end = time.monotonic() + 30
    while any(thread.name.startswith("lightning_ssc") for thread in enumerate_threads()):
        assert time.monotonic() < end
        time.sleep(0.01)


def hasty() -> Any:
    """Stands in for the module ``time``: from one look at the clock to the next three seconds go by."""
    return SimpleNamespace(monotonic=count(step=3.0).__next__)
