"""How many threads work takes: as many as it is worth, since idle ones of PyTorch spin, beside a training run too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import torch

_INPUTS = 1000  # that keep one thread busy


def worth(inputs: int) -> int:
    """Threads that work on a graph of so many inputs is worth.

    Example:
        >>> worth(500), worth(10_000)
        (1, 10)
    """
    return max(1, inputs // _INPUTS)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Run the operations of PyTorch that this thread of Python begins in so many threads, or in fewer.

    Other threads of Python keep their number, and so do those that are made meanwhile.

    Args:
        threads: How many, at least 1.

    Example:
        >>> with at_most(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if threads >= before:
        yield
        return
    torch.set_num_threads(threads)  # of this thread, and of those that are made from now on
    other = Thread(target=torch.set_num_threads, args=(before,))  # the latter get theirs back
    other.start()
    other.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)
