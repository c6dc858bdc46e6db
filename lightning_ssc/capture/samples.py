"""The samples of a probe, in whatever form a network takes them, and the chunks in which they are run."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_ssc.capture.batches import batch_size, fields, is_graphs, rest_of, take
from lightning_ssc.capture.labels import Path

_TRIED = 7  # samples of a trial run: a number that no other dimension of an output is likely to have
_MASKS = ("probe_mask", "val_mask")  # which nodes of one big graph are the samples


@dataclass(frozen=True)
class Chunk:
    """A batch of the probe.

    Attributes:
        batch: As a loader gives it, with its targets.
        path: Where the targets are.
        samples: How many samples it holds.
        nodes: ``(samples,)`` which rows of what layers put out are the samples, where they are nodes of one graph.
    """

    batch: Any
    path: Path | None
    samples: int
    nodes: Tensor | None = None

    def inputs(self, batch: Any) -> Any:
        """What of the batch, once it is where the network is, the network takes."""
        return rest_of(batch, self.path)


@dataclass(frozen=True)
class Samples:
    """N samples in the form in which they are run.

    Attributes:
        parts: Batches that :func:`~lightning_ssc.capture.batches.take` can cut or that are run whole; or, with
            ``collate``, an item a sample.
        sizes: Samples in each part.
        path: Where in a batch the targets are.
        collate: Joins items to a batch.
        nodes: ``(N,)`` the samples among the nodes of the one graph that is the only part.
    """

    parts: tuple[Any, ...]
    sizes: tuple[int, ...]
    path: Path | None = None
    collate: Callable[[list[Any]], Any] | None = None
    nodes: Tensor | None = None

    @property
    def samples(self) -> int:
        """How many there are, N."""
        return len(self.nodes) if self.nodes is not None else sum(self.sizes)

    def __len__(self) -> int:
        return self.samples

    def chunks(self, size: int) -> list[slice]:
        """The samples in chunks of at most ``size`` where they can be cut; each within one part."""
        if self.nodes is not None:
            return [slice(0, self.samples)]
        if self.collate is not None:
            return _cut(0, self.samples, size)
        found: list[slice] = []
        start = 0
        for part, n in zip(self.parts, self.sizes, strict=True):
            found += _cut(start, start + n, size if self._can_be_cut(part) else n)
            start += n
        return found

    def take(self, rows: slice | Tensor) -> Any:
        """One chunk, or other samples in the order of their numbers."""
        if isinstance(rows, Tensor):
            return self._only(rows)
        first, last = rows.start or 0, min(self.samples, self.samples if rows.stop is None else rows.stop)
        if self.nodes is not None:
            return Chunk(self.parts[0], self.path, last - first, self.nodes[first:last])
        if self.collate is not None:
            return Chunk(self.collate(list(self.parts[first:last])), self.path, last - first)
        ends = list(itertools.accumulate(self.sizes))
        place = bisect.bisect_right(ends, first)
        part, n, start = self.parts[place], self.sizes[place], ends[place] - self.sizes[place]
        if not self._can_be_cut(part):
            return Chunk(part, self.path, n)
        last = min(last, start + n)
        return Chunk(take(part, slice(first - start, last - start), n), self.path, last - first)

    def _only(self, rows: Tensor) -> Samples:
        if self.nodes is not None:
            return replace(self, nodes=self.nodes[rows])
        if self.collate is not None:
            return replace(self, parts=tuple(self.parts[i] for i in rows.tolist()), sizes=(1,) * len(rows))
        parts, sizes, start = [], [], 0
        for part, n in zip(self.parts, self.sizes, strict=True):
            within = rows[(rows >= start) & (rows < start + n)] - start
            if len(within):
                parts.append(take(part, within, n))
                sizes.append(len(within))
            start += n
        return replace(self, parts=tuple(parts), sizes=tuple(sizes))

    @property
    def whole(self) -> bool:
        """Whether some batches can only be run, or left out, as a whole."""
        return self.collate is None and self.nodes is None and not all(map(self._can_be_cut, self.parts))

    def _can_be_cut(self, part: Any) -> bool:
        try:
            batch_size(rest_of(part, self.path))
        except ValueError:
            return False
        return True


def chunks(inputs: Any, size: int) -> list[slice]:
    """The samples of inputs in chunks of at most ``size``.

    A chunk of one sample, of which networks tend to lose the first dimension, is kept off where it can be.

    Example:
        >>> chunks(torch.zeros(9, 2), 4)
        [slice(0, 4, None), slice(4, 7, None), slice(7, 9, None)]
    """
    return inputs.chunks(size) if isinstance(inputs, Samples) else _cut(0, batch_size(inputs), size)


def some(inputs: Any) -> Any:
    """The few samples of a trial run; of inputs that cannot be cut their first batch."""
    return take(inputs, chunks(inputs, _TRIED)[0])


def _cut(start: int, stop: int, size: int) -> list[slice]:
    edges = [*range(start, stop, size), stop]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1 and size > 2:
        edges[-2] -= 1
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def nodes_of(batch: Any, labels: Any = None) -> Tensor | None:
    """Which nodes of a batch that is one big graph are the samples, ``None`` for any other batch.

    One graph is nodes and edges, ``x`` and ``edge_index``, by these names or as the two entries of a tuple, without a
    number of a graph for every node. ``probe_mask``, else ``val_mask``, says which nodes; without either they all are.
    """
    named = fields(batch)
    if isinstance(batch, (tuple, list)) and not named and len(batch) == 2:
        named = {"x": batch[0], "edge_index": batch[1]}
    x, edges, of = (named.get(key) for key in ("x", "edge_index", "batch"))
    if not (isinstance(x, Tensor) and _are_edges(edges, len(x) if x.dim() else 0)):
        return None
    several = int(batch.num_graphs) > 1 if is_graphs(batch) else isinstance(of, Tensor) and bool((of > 0).any())
    if several or (labels is not None and len(labels) != len(x)):
        return None
    mask = next((named[key] for key in _MASKS if isinstance(named.get(key), Tensor)), None)
    return torch.arange(len(x)) if mask is None else mask.reshape(-1).cpu().nonzero().squeeze(1)


def _are_edges(edges: Any, nodes: int) -> bool:
    integers = isinstance(edges, Tensor) and not edges.is_floating_point() and edges.dim() == 2 and len(edges) == 2
    return integers and nodes != 2 and (edges.numel() == 0 or int(edges.max()) < nodes)


def sizes_of(parts: Sequence[Any], labels: Sequence[Any]) -> tuple[int, ...]:
    """How many samples batches hold.

    Args:
        parts: The batches.
        labels: What each has for targets.

    Raises:
        ValueError: Nothing tells.
    """
    sizes = []
    for part, targets in zip(parts, labels, strict=True):
        try:
            sizes.append(batch_size(part))
        except ValueError:
            of = fields(part).get("batch")
            if isinstance(of, Tensor) and of.numel() and not of.is_floating_point():
                sizes.append(int(of.max()) + 1)
            elif isinstance(targets, (Tensor, list, tuple)) and len(targets) and any(True for _ in fields(part)):
                sizes.append(len(targets))
            else:
                raise
    return tuple(sizes)
