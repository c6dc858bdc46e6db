"""What the eye sees in a heatmap of layers, as numbers: chess boards and large blocks (section 5 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, groupby
from typing import NamedTuple

import numpy as np

from lightning_ssc.analysis.dynamics import Table

_SMALLEST = 2  # layers of a block


class Board(NamedTuple):
    """The chess board of a residual network, by the parity classes of its convolutions.

    Attributes:
        stream: How much more a convolution that reads the residual stream is like the next one that does than like the
            convolutions beside it.
        others: The same for the convolutions that read inside a block.
    """

    stream: float
    others: float

    @property
    def contrast(self) -> float:
        """How far the two differ. On a chess board the stream's convolutions are alike and the others are not."""
        return self.stream - self.others


def board(similarity: Table, layers: Sequence[str]) -> Board:
    r"""The chess board inside the stages of a residual network of basic blocks.

    For each pair of convolutions of one stage an even number of places apart, their similarity less the mean of the
    similarities an odd number of places apart beside it, :math:`S_{i,j} - \tfrac12 (S_{i,j-1} + S_{i,j+1})`, averaged
    over the pairs that read the residual stream (``conv1`` and ``downsample``) and over the others apart. One mean
    over both cancels: what carries the stream on is alike all through a stage, what is added to it is not.

    Args:
        similarity: ``(L, L)`` symmetric similarities.
        layers: Names of the L convolutions in the order in which they run, such as ``layer2.0.conv1``.

    Returns:
        The two means; NaN where there is no pair.

    Example:
        >>> names = [f"layer1.{i}.conv{k}" for i in range(3) for k in (1, 2)]
        >>> stream = np.array([name.endswith("conv1") for name in names])
        >>> found = board(np.where(stream[:, None] & stream, 0.9, 0.2), names)
        >>> round(found.stream, 2), found.others, round(found.contrast, 2)
        (0.7, 0.0, 0.7)
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    places = list(range(len(layers)))
    for _, members in groupby(places, key=lambda i: _stage(layers[i])):
        stage = list(members)
        for a, i in enumerate(stage):
            for j in stage[a + 2 :: 2]:
                if j + 1 in stage and _reads_stream(layers[i]) == _reads_stream(layers[j]):
                    beside = (similarity[i, j - 1] + similarity[i, j + 1]) / 2
                    scores[_reads_stream(layers[i])].append(similarity[i, j] - beside)
    stream, others = (float(np.mean(scores[reads])) if scores[reads] else float("nan") for reads in (True, False))
    return Board(stream, others)


def is_shortcut(layer: str) -> bool:
    """Whether a convolution is the 1 x 1 one of a shortcut.

    Example:
        >>> is_shortcut("layer2.0.downsample.0"), is_shortcut("layer2.0.conv1")
        (True, False)
    """
    return "downsample" in layer or "shortcut" in layer


def _stage(layer: str) -> str:
    """The part of a network that a layer belongs to."""
    return layer.split(".")[0]


def _reads_stream(layer: str) -> bool:
    return layer.endswith("conv1") or is_shortcut(layer)


class Cut(NamedTuple):
    """A cut of the layers into a few runs.

    Attributes:
        starts: First layer of every run.
        contrast: Mean similarity of two layers of one run less that of two layers of different runs.
        largest: Share of the layers that the largest run holds.
    """

    starts: tuple[int, ...]
    contrast: float
    largest: float


def cut_into(similarity: Table, parts: int) -> Cut:
    """The cut of the layers into so many runs of two layers or more that sets them apart most.

    How far a network falls into few large blocks is the contrast of its best cut: 0 where all layers are equally alike.
    Where similarity falls evenly with distance it's above 0, too, as in an untrained network: compare.

    Args:
        similarity: ``(L, L)`` symmetric similarities.
        parts: Number of runs.

    Raises:
        ValueError: There are too few layers.

    Example:
        >>> cut_into(np.kron(np.eye(2), np.full((3, 3), 0.75)), 2)
        Cut(starts=(0, 3), contrast=0.75, largest=0.5)
    """
    count = len(similarity)
    if parts < 2 or count < parts * _SMALLEST:
        raise ValueError(f"{count} layers do not fall into {parts} runs of {_SMALLEST} or more: give it more layers")
    corner = np.zeros((count + 1, count + 1))
    corner[1:, 1:] = np.where(np.eye(count, dtype=bool), 0.0, similarity).cumsum(0).cumsum(1)
    total, pairs = corner[-1, -1], count * (count - 1)
    starts = np.array([(0, *inner) for inner in combinations(range(1, count), parts - 1)])
    ends = np.concatenate([starts[:, 1:], np.full((len(starts), 1), count)], axis=1)
    sizes = ends - starts
    possible = (sizes >= _SMALLEST).all(1)
    starts, ends, sizes = starts[possible], ends[possible], sizes[possible]
    inside = (corner[ends, ends] - corner[starts, ends] - corner[ends, starts] + corner[starts, starts]).sum(1)
    pairs_inside = (sizes * (sizes - 1)).sum(1)
    contrasts = inside / pairs_inside - (total - inside) / (pairs - pairs_inside)
    best = int(contrasts.argmax())
    return Cut(tuple(int(start) for start in starts[best]), float(contrasts[best]), float(sizes[best].max() / count))


def statistics(similarity: Table, layers: Sequence[str]) -> dict[str, float]:
    """What is said of a heatmap of convolutions, by name.

    Args:
        similarity: ``(L, L)`` symmetric similarities.
        layers: Names of the L convolutions in the order in which they run.
    """
    every = board(similarity, layers)
    main = [i for i, layer in enumerate(layers) if not is_shortcut(layer)]
    without = board(similarity[np.ix_(main, main)], [layers[i] for i in main])
    two, three = (cut_into(similarity, parts) for parts in (2, 3))
    found = {
        "board": without.contrast,
        "board: convolutions that read the residual stream": without.stream,
        "board: the others": without.others,
        "cut in two: contrast": two.contrast,
        "cut in two: largest share": two.largest,
        "cut in three: contrast": three.contrast,
        "cut in three: largest share": three.largest,
        "next layers' similarity": float(np.diagonal(similarity, 1).mean()),
    }
    return found if len(main) == len(layers) else found | {"board, shortcut convolutions left in": every.contrast}
