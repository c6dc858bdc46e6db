"""How several processes go through the probe together: each runs a part, and features go to the layer's owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ssc.capture.plan import FeatureSlice
from lightning_ssc.capture.processes import Processes
from lightning_ssc.capture.trace import WatchedLayer


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
        device: Where features wait for their way.
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

    def places(self, turn: Turn) -> dict[int, Tensor]:
        """Where a turn's features ``(n, features)`` of every layer go: into a buffer, or beside it on their way.

        There is none where this process has none to give.
        """
        rank = self._processes.rank
        count = turn.count(rank)
        return {part.layer: self._place(part, turn, count) for parts in self._of for part in parts if count}

    def _place(self, part: FeatureSlice, turn: Turn, count: int) -> Tensor:
        if part.layer in self._buffers:
            return self._buffers[part.layer][turn.of(self._processes.rank)]
        dtype = self._layers[part.layer].dtype
        return torch.empty(count, part.stop - part.start, dtype=dtype, device=self._device)

    def deliver(self, turn: Turn, places: Mapping[int, Tensor]) -> None:
        """Exchange them with the others, straight into the buffers."""
        mine, ranks = self._of[self._processes.rank], range(self._processes.size)
        given = [[places[part.layer] for part in parts if places] for parts in self._of]
        rows = [turn.of(rank) if turn.count(rank) else None for rank in ranks]
        wanted = [[self._buffers[part.layer][r] for part in mine if r is not None] for r in rows]
        self._processes.exchange(given, wanted)


def rows_a_turn(
    group: Sequence[FeatureSlice],
    layers: Sequence[WatchedLayer],
    owners: Sequence[int],
    ranks: int,
    samples: int,
    space: int,
) -> int:
    """For how many samples a turn's features fit beside the buffers of a pass, on their way out; at least one.

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
    fits = [(space - samples * bytes_) // max(1, sum(own) - bytes_) for bytes_ in own]
    return max(1, min(fits))
