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
    def rank(self) -> int:
        """Number of this process, from 0."""
        return distributed.get_rank() if _many() else 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return distributed.get_world_size() if _many() else 1

    def raise_together(self, error: Exception | None) -> None:
        """Raise where any process had an error.

        Raises:
            FailedError: Several processes, one of which had an error; names it. A lone one raises its error itself, and
                what all have been told already is not told again.
        """
        if not _many():
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
        if _many():
            distributed.all_gather_object(told, value)
        return told

    def all_true(self, value: bool) -> bool:
        """Whether it is true on all processes."""
        return all(self.everyones(value))

    def exchange(self, parcels: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send every process its bytes, and get some from each.

        Args:
            parcels: uint8 for every process, in the order of their ranks; what is for this one stays here.
            sizes: How many bytes every process has for this one.

        Returns:
            What has come from every process.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        came = list(parcels)
        for rank in others:
            came[rank] = torch.empty(sizes[rank], dtype=torch.uint8, device=parcels[rank].device)
        ways = [distributed.P2POp(distributed.isend, parcels[rank], rank) for rank in others if len(parcels[rank])]
        ways += [distributed.P2POp(distributed.irecv, came[rank], rank) for rank in others if sizes[rank]]
        for under_way in distributed.batch_isend_irecv(ways) if ways else ():
            under_way.wait()
        self.sent += sum(len(parcels[rank]) for rank in others)
        return came

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes in the order of their ranks on rank zero, ``None`` on the others."""
        if not _many():
            return [value]
        told = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, told)
        return told

    def broadcast(self, value: Any) -> Any:
        """The value of rank zero, on every process."""
        if not _many():
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


def _many() -> bool:
    return distributed.is_available() and distributed.is_initialized()
