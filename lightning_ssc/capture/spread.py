"""How several processes go through the probe together: each runs a part, and features go to the layer's owner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_ssc.capture.plan import FeatureSlice
from lightning_ssc.capture.trace import WatchedLayer

_ALIGNED = 8  # bytes at whose multiples features begin on their way


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

    def exchange(self, parcels: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send every process its bytes, and get as many as ``sizes`` says from each."""


class Alone:
    """A lone process."""

    rank, size = 0, 1

    def everyones(self, value: Any) -> list[Any]:
        """Its value."""
        return [value]

    def together(self, action: Callable[[], Any]) -> Any:
        """What it does."""
        return action()

    def exchange(self, parcels: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """What it has."""
        return list(parcels)


def is_sharded(model: nn.Module) -> bool:
    """Whether several processes hold parts of the network's weights and run it together (FSDP2, tensor parallel).

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    wrapped = any(kind.__name__ == "FSDPModule" for module in model.modules() for kind in type(module).__mro__)
    return wrapped or any(isinstance(parameter, DTensor) for parameter in model.parameters())


@dataclass(frozen=True)
class Turn:
    """What the processes run at one time.

    Attributes:
        rows: Samples of each process. Those without any run some all the same, in case that the network's forward talks
            to the others, and drop what comes of it.
    """

    rows: Sequence[slice]

    def of(self, rank: int) -> slice:
        """What a process runs."""
        return self.rows[min(rank, len(self.rows) - 1)]

    def count(self, rank: int) -> int:
        """Of how many samples a process has features to give."""
        return self.rows[rank].stop - self.rows[rank].start if rank < len(self.rows) else 0


def turns(chunks: Sequence[slice], ranks: int) -> Iterator[Turn]:
    """A chunk of the samples for each process, until all have been run.

    Example:
        >>> chunks = [slice(0, 2), slice(2, 4), slice(4, 7)]
        >>> [[(rows.start, rows.stop) for rows in turn.rows] for turn in turns(chunks, 2)]
        [[(0, 2), (2, 4)], [(4, 7)]]
    """
    return (Turn(chunks[i : i + ranks]) for i in range(0, len(chunks), ranks))


class Post:
    """Brings features of the samples that a process has run to the processes that own the layers, a turn at a time.

    Args:
        processes: The processes.
        group: The slices of a pass.
        layers: The layers that they are of.
        owners: The process of every layer.
        buffers: ``(N, features)`` of every layer of this process, which is filled.
    """

    def __init__(
        self,
        processes: Processes,
        group: Sequence[FeatureSlice],
        layers: Sequence[WatchedLayer],
        owners: Sequence[int],
        buffers: Mapping[int, Tensor],
        device: torch.device,
    ) -> None:
        self._processes, self._layers, self._buffers, self._device = processes, layers, buffers, device
        self._of = [[part for part in group if owners[part.layer] == rank] for rank in range(processes.size)]

    def parcels(self, turn: Turn) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Room for a turn's features: bytes for every process, and in them ``(n, features)`` for every layer.

        There are no features where this process has none to give.
        """
        count, places = turn.count(self._processes.rank), {}
        parcels = [torch.empty(self._size(parts, count), dtype=torch.uint8, device=self._device) for parts in self._of]
        for parts, parcel in zip(self._of, parcels, strict=True):
            places.update(self._opened(parts, parcel, count) if count else {})
        return parcels, places

    def deliver(self, turn: Turn, parcels: Sequence[Tensor]) -> None:
        """Exchange them, and put what has come where it belongs."""
        mine, ranks = self._of[self._processes.rank], range(self._processes.size)
        came = self._processes.exchange(parcels, [self._size(mine, turn.count(rank)) for rank in ranks])
        for rank, parcel in enumerate(came):
            if count := turn.count(rank):
                for number, features in self._opened(mine, parcel, count).items():
                    self._buffers[number][turn.of(rank)] = features

    def _bytes(self, part: FeatureSlice, count: int) -> int:
        size = count * (part.stop - part.start) * self._layers[part.layer].dtype.itemsize
        return -(-size // _ALIGNED) * _ALIGNED

    def _size(self, parts: Sequence[FeatureSlice], count: int) -> int:
        return sum(self._bytes(part, count) for part in parts)

    def _opened(self, parts: Sequence[FeatureSlice], parcel: Tensor, count: int) -> dict[int, Tensor]:
        found, start = {}, 0
        for part in parts:
            width, dtype = part.stop - part.start, self._layers[part.layer].dtype
            inside = parcel[start : start + count * width * dtype.itemsize]
            found[part.layer] = inside.view(dtype).view(count, width)
            start += self._bytes(part, count)
        return found


def rows_a_turn(
    group: Sequence[FeatureSlice],
    layers: Sequence[WatchedLayer],
    owners: Sequence[int],
    ranks: int,
    samples: int,
    space: int,
) -> int:
    """For how many samples a turn's features fit beside the buffers of a pass, on the way out and in; at least one.

    Args:
        group: The slices of the pass.
        layers: The layers that they are of.
        owners: The process of every layer.
        ranks: Number of processes.
        samples: Number of samples.
        space: Bytes for both.
    """
    own = [0] * ranks
    for part in group:
        own[owners[part.layer]] += (part.stop - part.start) * layers[part.layer].dtype.itemsize
    return max(1, (space - samples * max(own)) // (sum(own) + ranks * max(own)))
