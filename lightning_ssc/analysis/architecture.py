"""How the layers of a network, or of two networks, relate, and the blocks that they form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.functional import pairwise_cka
from lightning_ssc.functional.gram_sketch import pairwise_sketch_cka
from lightning_ssc.snapshots import Snapshot, SnapshotError


@dataclass(frozen=True)
class Similarity:
    """Similarity of every layer of one network to every layer of another, or of the same.

    Attributes:
        rows: Labels of the L layers of the first network.
        columns: Labels of the M layers of the second.
        ssc: ``(L, M)`` SSC-CKA (Eq. 3 of the paper, biased HSIC); NaN for layers without a graph.
        linear: ``(L, M)`` linear CKA (biased HSIC); NaN where it was not kept.
    """

    rows: list[str]
    columns: list[str]
    ssc: Table
    linear: Table

    def to_csv(self, path: str | Path) -> None:
        """Write one line a pair of layers."""
        write_csv(
            path,
            {
                "row": np.repeat(self.rows, len(self.columns)),
                "column": np.tile(self.columns, len(self.rows)),
                "ssc_cka": self.ssc,
                "linear_cka": self.linear,
            },
        )


def similarity(one: Snapshot, other: Snapshot | None = None, *, linear: bool = True) -> Similarity:
    """Compare all layers of a network with each other, or with all layers of another network on the same probe.

    Args:
        one: A snapshot.
        other: A snapshot of another network or epoch, with any layers; ``one`` by default.
        linear: Linear CKA too, which takes longer than SSC-CKA.

    Raises:
        SnapshotError: The snapshots are of different probes.

    Example:
        >>> import torch
        >>> from lightning_ssc import snapshot
        >>> x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
        >>> one = snapshot(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)), x, layers="Linear")
        >>> other = snapshot(torch.nn.Sequential(torch.nn.Linear(4, 5)), x, layers="Linear")
        >>> table = similarity(one, other)
        >>> table.ssc.shape, table.rows, table.columns
        ((2, 1), ['0', '1'], ['0'])
    """
    if other is not None and one.probe != other.probe:
        raise SnapshotError(
            f"The snapshots are of different probes ({one.probe} and {other.probe}), so their graphs cannot be "
            f"compared. Take both on the same inputs in the same order, with the same transforms."
        )
    if other is None and "pairwise_cka" in one.pairs:
        ssc = one.pairs["pairwise_cka"].double()
    else:
        ssc = pairwise_cka(
            [layer.affinity for layer in one.layers.values()],
            None if other is None else [layer.affinity for layer in other.layers.values()],
        )
    linear_table = _linear(one, other) if linear else np.full(tuple(ssc.shape), np.nan)
    return Similarity(list(one.layers), list((other or one).layers), ssc.numpy(), linear_table)


def _linear(one: Snapshot, other: Snapshot | None) -> Table:
    if other is None and "pairwise_linear_cka" in one.pairs:
        return one.pairs["pairwise_linear_cka"].double().numpy()
    both = one, other or one
    rows, columns = ([layer.linear for layer in of.layers.values() if layer.linear is not None] for of in both)
    if (len(rows), len(columns)) != (shape := tuple(len(of.layers) for of in both)):
        return np.full(shape, np.nan)
    return pairwise_sketch_cka(rows, columns).numpy()


@dataclass(frozen=True)
class Blocks:
    """Runs of consecutive layers that are alike.

    Attributes:
        starts: ``(B,)`` index of the first layer of every block, ascending from 0.
        within: ``(B,)`` mean similarity between the different layers of a block; NaN for a block of one.
        between: ``(B, B)`` mean similarity of the layers of two blocks; NaN on the diagonal.
        threshold: Similarity from which two neighbours were worth one block.
        chessboard: How much more a layer is like its next but one than like its neighbours, see :func:`chessboard`.
    """

    starts: list[int]
    within: Table
    between: Table
    threshold: float
    chessboard: float

    @property
    def contrast(self) -> float:
        """Mean of ``within`` over the blocks less the mean of ``between`` over their pairs; NaN without both."""
        if np.isnan(self.within).all() or len(self.starts) < 2:
            return float("nan")
        return float(np.nanmean(self.within) - np.nanmean(self.between))

    def ends(self, layers: int) -> list[int]:
        """Index after the last layer of every block, given the number of layers."""
        return [*self.starts[1:], layers]

    def to_csv(self, path: str | Path, layers: Sequence[str]) -> None:
        """Write one line a block.

        Args:
            path: The file.
            layers: Names of the layers that were compared.
        """
        ends = self.ends(len(layers))
        write_csv(
            path,
            {
                "block": range(len(self.starts)),
                "first_layer": [layers[start] for start in self.starts],
                "last_layer": [layers[end - 1] for end in ends],
                "layers": np.subtract(ends, self.starts),
                "similarity_within": self.within,
                "similarity_to_others": [_mean(row) for row in self.between],
                "chessboard": np.full(len(ends), self.chessboard),
            },
        )


def find_blocks(similarity: ArrayLike, threshold: float | None = None) -> Blocks:
    r"""The blocks along the diagonal of a heatmap (figures 3 to 7 of the paper), by kernel change-point detection.

    CKA is the cosine between centred graphs, so a matrix of it is a kernel over layers in which every layer is a unit
    vector. Layers are cut into runs that minimise the scatter of these vectors about their run's mean, plus a penalty
    for every run,

    .. math:: \sum_{\text{runs } R} \Big( \sum_{i \in R} S_{ii} - \frac{1}{|R|} \sum_{i,j \in R} S_{ij} \Big)
        + (1 - s) \cdot \#\text{runs},

    exactly, by dynamic programming (Harchaoui & Cappé 2007; Arlot, Celisse & Harchaoui 2019). Joining n layers of
    mutual similarity c costs (n - 1)(1 - c), so this penalty makes them one block just when c exceeds s. By default s
    is the mean similarity of all pairs of layers: a block is a run of layers more alike than layers of this network
    are on average. Equal optima resolve to fewer blocks.

    Args:
        similarity: ``(L, L)`` symmetric similarities with ones on the diagonal. NaN counts as 0 in the search and is
            left out of the means.
        threshold: The similarity s from which layers belong together.

    Raises:
        ValueError: The matrix is empty or not square and symmetric, or the threshold is not below 1.

    Example:
        >>> heatmap = np.kron(np.eye(2), np.full((3, 3), 0.8)) + 0.1
        >>> np.fill_diagonal(heatmap, 1.0)
        >>> blocks = find_blocks(heatmap)
        >>> blocks.starts, blocks.within.round(2).tolist(), round(blocks.contrast, 2)
        ([0, 3], [0.9, 0.9], 0.8)
    """
    table = np.array(similarity, dtype=float)
    square = table.ndim == 2 and 0 < len(table) == table.shape[1]
    if not square or not np.allclose(table, table.T, equal_nan=True):
        raise ValueError(f"Blocks are found in a symmetric matrix of similarities, not in one of shape {table.shape}.")
    count = len(table)
    known = np.where(np.isnan(table), 0.0, table)
    np.fill_diagonal(known, 1.0)
    if threshold is None:
        mean = float((known.sum() - count) / (count * (count - 1))) if count > 1 else 0.0
        threshold = min(mean, float(np.nextafter(1.0, 0.0)))  # layers all equal leave no penalty otherwise
    elif not threshold < 1:
        raise ValueError(f"threshold must be below 1, the similarity of a layer to itself, got {threshold}.")
    starts = _segment(known, 1.0 - threshold)
    ends = [*starts[1:], count]
    off_diagonal = table.copy()
    np.fill_diagonal(off_diagonal, np.nan)
    means = np.array([[_mean(off_diagonal[a:b, c:d]) for c, d in zip(starts, ends, strict=True)]
                      for a, b in zip(starts, ends, strict=True)])  # fmt: skip
    within = means.diagonal().copy()
    np.fill_diagonal(means, np.nan)
    return Blocks(starts, within, means, threshold, chessboard(table, starts))


def chessboard(similarity: ArrayLike, starts: Sequence[int] = (0,)) -> float:
    r"""How far every second layer is alike inside blocks, the pattern that skip connections leave (section 5.1).

    The mean, over pairs of layers of one block an even distance apart, of
    :math:`S_{i,j} - \tfrac12 (S_{i,j-1} + S_{i,j+1})`: similarity at an even lag less that at the odd lags on either
    side. It is 1 for a perfect chess board and 0 where similarity is constant or falls evenly with distance.

    Args:
        similarity: ``(L, L)`` symmetric similarities; NaN is left out.
        starts: First layers of the blocks, as in :class:`Blocks`; all layers make one block by default.

    Returns:
        The score; NaN where no block has four layers.

    Example:
        >>> layer = np.arange(6)
        >>> chessboard((layer[:, None] + layer) % 2 == 0), chessboard(1 - abs(layer[:, None] - layer) / 6)
        (1.0, 0.0)
    """
    table = np.asarray(similarity, dtype=float)
    scores: list[float] = []
    for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
        for i in range(start, end):
            j = np.arange(i + 2, end - 1, 2)
            scores.extend(table[i, j] - (table[i, j - 1] + table[i, j + 1]) / 2)
    return round(_mean(np.array(scores)), 12) + 0.0


def _segment(kernel: Table, penalty: float) -> list[int]:
    """First elements of the runs that minimise scatter plus a penalty a run."""
    count = len(kernel)
    corner = np.zeros((count + 1, count + 1))
    corner[1:, 1:] = kernel.cumsum(0).cumsum(1)
    trace = np.concatenate([[0.0], kernel.diagonal().cumsum()])
    best, previous = np.zeros(count + 1), np.zeros(count + 1, dtype=int)
    for end in range(1, count + 1):
        start = np.arange(end)
        inside = corner[end, end] - corner[start, end] - corner[end, start] + corner[start, start]
        costs = best[:end] + trace[end] - trace[:end] - inside / (end - start) + penalty
        previous[end] = int(np.argmax(costs <= costs.min() + 1e-9))  # of equal ones the longest run
        best[end] = costs[previous[end]]
    starts: list[int] = []
    end = count
    while end:
        end = int(previous[end])
        starts.insert(0, end)
    return starts


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
