"""When snapshots are taken: plain functions from an epoch to yes or no.

Epochs count finished epochs: 0 is the untrained network, 1 the network after its first epoch, and so on, as the
paper counts them. (Lightning's ``current_epoch`` is one less while an epoch runs.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

Schedule = Callable[[int], bool]


def every(n: int) -> Schedule:
    """Every ``n`` epochs, starting with the untrained network.

    Raises:
        ValueError: ``n`` is below one.

    Example:
        >>> [epoch for epoch in range(8) if every(3)(epoch)]
        [0, 3, 6]
    """
    if n < 1:
        raise ValueError(f"A schedule of every n epochs needs n of at least 1, got {n}.")
    return partial(_is_multiple, n)


def at(epochs: Sequence[int]) -> Schedule:
    """Exactly these epochs; 0 is the untrained network.

    Raises:
        ValueError: The list is empty or holds a negative number.

    Example:
        >>> [epoch for epoch in range(100) if at([0, 1, 31, 61])(epoch)]
        [0, 1, 31, 61]
    """
    chosen = frozenset(epochs)
    if not chosen or min(chosen) < 0:
        raise ValueError(f"A schedule of epochs needs numbers from 0 (the untrained network) up, got {list(epochs)}.")
    return chosen.__contains__


def log_spaced(per_decade: int = 10) -> Schedule:
    """Epochs evenly spaced on a logarithmic axis: dense while the network changes fast, sparse later.

    Args:
        per_decade: How many epochs between one power of ten and the next, where whole numbers allow.

    Raises:
        ValueError: ``per_decade`` is below one.

    Example:
        >>> [epoch for epoch in range(101) if log_spaced(4)(epoch)]
        [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
    """
    if per_decade < 1:
        raise ValueError(f"A log-spaced schedule needs per_decade of at least 1, got {per_decade}.")
    chosen = frozenset(round(10 ** (k / per_decade)) for k in range(6 * per_decade + 1))  # a million epochs
    return (chosen | {0}).__contains__


def _is_multiple(n: int, epoch: int) -> bool:
    return epoch % n == 0


def as_schedule(schedule: int | Sequence[int] | Schedule) -> Schedule:
    """A number means every n epochs, a list exactly these epochs, a function itself.

    Example:
        >>> as_schedule(2)(4), as_schedule([0, 1])(4)
        (True, False)
    """
    if callable(schedule):
        if not isinstance(schedule(1), (bool, int)):  # log_spaced where log_spaced() was meant
            raise ValueError(
                "A schedule says yes or no to an epoch. Give every(n), at([...]) or log_spaced() with their arguments."
            )
        return schedule
    return every(schedule) if isinstance(schedule, int) else at(schedule)
