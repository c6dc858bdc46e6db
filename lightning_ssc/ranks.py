"""The processes of a run, and what they tell one another; a lone process tells nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class FailedError(RuntimeError):
    """What went wrong on some of several processes, raised on all of them."""


class Ranks:
    """The processes of ``torch.distributed``, all of which call the same methods in the same order.

    No failure is one rank's alone: where one had an error all raise, so that none waits for another.

    Example:
        >>> Ranks().gather("graphs"), Ranks().from_zero(lambda: 3), Ranks().all_true(True)
        (['graphs'], 3, True)

    Attributes:
        sent: Bytes of features that this process has sent to others.
    """

    sent = 0

    @property
    def _many(self) -> bool:
        return distributed.is_available() and distributed.is_initialized()

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return distributed.get_rank() if self._many else 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return distributed.get_world_size() if self._many else 1

    def raise_together(self, error: Exception | None) -> None:
        """Raise where any process had an error.

        Raises:
            FailedError: Several processes, one of which had an error; names it. A lone one raises its error itself, and
                what all have been told already is not told again.
        """
        if not self._many:
            if error is not None:
                raise error
            return
        told = self.everyones(None if error is None else f"{type(error).__name__}: {error}")
        if isinstance(error, FailedError):
            raise error
        if failed := [f"rank {rank}: {why}" for rank, why in enumerate(told) if why is not None]:
            raise FailedError("SSC failed on " + "; ".join(failed)) from error

    def everyones(self, value: Any) -> list[Any]:
        """The values of all processes, on every process; for small ones."""
        told = [value] * self.size
        if self._many:
            distributed.all_gather_object(told, value)
        return told

    def all_true(self, value: bool) -> bool:
        """Whether it is true on all processes."""
        return all(self.everyones(value))

    def exchange(self, given: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> None:
        """Send every process tensors, and get some from each.

        Args:
            given: For every process, in the order of their ranks, contiguous tensors; none for this one is sent.
            wanted: For every process the tensors that are filled with what it gives to this one, in its order.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        out = [(_bytes(tensor), rank) for rank in others for tensor in given[rank]]
        ways = [distributed.P2POp(distributed.isend, parcel, rank) for parcel, rank in out]
        ways += [distributed.P2POp(distributed.irecv, _bytes(t), rank) for rank in others for t in wanted[rank]]
        for under_way in distributed.batch_isend_irecv(ways) if ways else ():
            under_way.wait()
        self.sent += sum(len(parcel) for parcel, _ in out)

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes in the order of their ranks on rank zero, ``None`` on the others."""
        if not self._many:
            return [value]
        told = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, told)
        return told

    def broadcast(self, value: Any) -> Any:
        """The value of rank zero, on every process."""
        if not self._many:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def together(self, action: Callable[[], Any]) -> Any:
        """What every process does or gets for itself; a failure of one is one of all."""
        value: Any = None
        error: Exception | None = None
        try:
            value = action()
        except Exception as caught:
            error = caught
        self.raise_together(error)
        return value

    def from_zero(self, action: Callable[[], Any]) -> Any:
        """What rank zero alone does or gets, on all ranks; a failure there is one on all."""
        value = self.on_zero(action)
        return self.broadcast(value)

    def on_zero(self, action: Callable[[], Any]) -> Any:
        """What rank zero alone does; its result stays there and is ``None`` on the others. A failure is one on all."""
        return self.together(action if self.rank == 0 else lambda: None)


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor: not all kinds of numbers go all ways."""
    return tensor.view(-1).view(torch.uint8)


class Alone(Ranks):
    """A process that does something by itself, whatever others there are.

    Example:
        >>> Alone().size
        1
    """

    @property
    def _many(self) -> bool:
        return False
