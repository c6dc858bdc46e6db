"""The solver's kernel, compiled in a thread while data and training start: the first graph need not wait for it.

On a new machine that takes seconds, later, from numba's files on disk, tenths of one.
"""

from __future__ import annotations

import os
import threading
from functools import cache, partial

import torch

from lightning_ssc.functional.active_set import compile_kernel
from lightning_ssc.functional.gram_sketch import gram_sketch, sketch_cka_estimate
from lightning_ssc.functional.graph_cka import CentredGraph, graph_cka_estimate
from lightning_ssc.settings import Settings

_step = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A process forked in the middle of a step, as workers of a DataLoader are, would find numba's locks held for ever.
    os.register_at_fork(before=_step.acquire, after_in_parent=_step.release, after_in_child=_step.release)


def compile_ahead(settings: Settings, device: torch.device) -> None:
    """Begin to compile, or to load, what graphs on this device will need, unless that was begun before.

    Example:
        >>> compile_ahead(Settings(), torch.device("cpu"))
    """
    if settings.is_exact and device.type != "cuda":
        _compile(settings.needs_double)


@cache
def _compile(double: bool) -> threading.Thread:
    thread = threading.Thread(target=_steps, args=(double,), name="lightning_ssc compiles")
    thread.start()
    return thread


def _steps(double: bool) -> None:
    """What is needed first, then what a comparison takes, and then the solver for layers far from the origin."""
    first, second = (torch.float64, torch.float32) if double else (torch.float32, torch.float64)
    for step in (partial(compile_kernel, first), _compare, partial(compile_kernel, second)):
        with _step:
            if threading.main_thread().is_alive():  # or nobody would want it any more
                step()


def _compare() -> None:
    """What snapshots are compared with, on the smallest there are."""
    coef, sketch = torch.eye(3).roll(1, 0), gram_sketch(torch.eye(3))
    for dtype in (torch.float32, torch.float64):
        graph_cka_estimate(*[CentredGraph(coef.to(dtype).to_sparse_csr()) for _ in range(2)])
    sketch_cka_estimate(sketch, sketch)
