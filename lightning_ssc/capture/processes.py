"""What a capture asks of the processes that run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Processes(Protocol):
    """What :func:`lightning_ssc.capture.capture` asks of the processes that run it; all call it alike."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def everyones(self, value: Any) -> list[Any]:
        """The values of all processes."""

    def together(self, action: Callable[[], Any]) -> Any:
        """What every process does; a failure of one is one of all."""

    def exchange(self, given: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> None:
        """Send every process its tensors, and get from each what it has for this one."""


class Alone:
    """A lone process."""

    rank, size = 0, 1

    def everyones(self, value: Any) -> list[Any]:
        """Its value."""
        return [value]

    def together(self, action: Callable[[], Any]) -> Any:
        """What it does."""
        return action()

    def exchange(self, given: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> None:
        """Nobody is there."""
