"""How many threads reading takes: as many as its work is worth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from lightning_ssc.progress import Progress

_MANY = 1000  # inputs of graphs whose products are long enough for threads not to wait for each other
_MOST = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run every operation of PyTorch in one thread: over many small products more threads would only spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], inputs: int, progress: Progress = iter
) -> list[Result]:
    """A function of every item, in their order; several at a time where graphs are of many inputs.

    Args:
        function: What is done to an item; it releases Python's lock in most of its time.
        items: The items.
        inputs: Number of inputs in a graph, N.
        progress: Wrapped around the items, such as ``tqdm.tqdm``.

    Example:
        >>> side_by_side(abs, [-1, 2], inputs=5000)
        [1, 2]
    """
    with ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1) if inputs >= _MANY else 1) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for _, future in zip(progress(items), futures, strict=True)]
        finally:
            pool.shutdown(cancel_futures=True)  # of those that wait, where one has failed
