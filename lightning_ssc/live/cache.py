"""What was computed once, kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any, TypeVar

from numpy.typing import NDArray

Value = TypeVar("Value")


class Cache:
    """The values used last, up to a number of bytes; whoever wants one that is being made waits for it.

    Args:
        limit: Bytes to hold. One value is always kept, however large.

    Example:
        >>> cache = Cache(limit=100)
        >>> cache.get("key", lambda: "made"), cache.get("key", lambda: "not made again")
        ('made', 'made')
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = RLock()  # one thing is computed at a time: training beside it wants the cores

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made where it is not there."""
        with self._lock:
            if key not in self._values:
                value = make()
                self._values[key] = value, _bytes(value)
                self._held += self._values[key][1]
            self._values.move_to_end(key)
            while self._held > self._limit and len(self._values) > 1:
                self._held -= self._values.popitem(last=False)[1][1]
            found: Value = self._values[key][0]
            return found


def _bytes(value: Any) -> int:
    """About what a value takes: its arrays and texts."""
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    size: int | NDArray[Any] = getattr(value, "nbytes", 0) or (len(value) if isinstance(value, str) else 8)
    return int(size)
