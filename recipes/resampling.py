"""How sure a number is: other draws of the inputs, and what chance alone would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, triu, vstack
from torch import Tensor

from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.functional import modularity, pairwise_cka

Counts = NDArray[np.int64]
_ROWS = 500  # rows of all graphs that are spread out at once


def bootstrap_counts(inputs: int, draws: int, seed: int = 0) -> Counts:
    """``(draws, inputs)`` how often each input is in a draw of as many with replacement.

    Example:
        >>> bootstrap_counts(5, 3).sum(1).tolist()
        [5, 5, 5]
    """
    return np.random.default_rng(seed).multinomial(inputs, np.full(inputs, 1 / inputs), size=draws)


def as_scipy(graph: Tensor) -> csr_matrix:
    """A sparse CSR tensor in the terms of SciPy."""
    parts = (part.numpy() for part in (graph.values().double(), graph.col_indices(), graph.crow_indices()))
    return csr_matrix(tuple(parts), shape=tuple(graph.shape))


def bootstrap_cka(graphs: Sequence[Tensor], counts: Counts) -> NDArray[np.float64]:
    r"""CKA between graphs when inputs are drawn again (Eq. 3 and 4 of the paper, biased HSIC).

    A draw takes input i :math:`w_i` times, with its edges: entry :math:`A_{ij}` then stands :math:`w_i w_j` times in
    the graph. The graphs are not solved anew, so the interval is that of these graphs' inputs, not of their making.

    Args:
        graphs: L affinity graphs (N, N) over the same inputs, sparse CSR with an empty diagonal.
        counts: ``(B, N)`` from :func:`bootstrap_counts`; ones give :func:`lightning_ssc.functional.pairwise_cka`.

    Returns:
        ``(B, L, L)`` similarities.
    """
    matrices = [as_scipy(graph) for graph in graphs]
    weights = counts.astype(np.float64)
    draws, n = weights.shape
    inner = np.zeros((draws, len(matrices), len(matrices)))
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(start + _ROWS, n))
        flat = vstack([triu(matrix[rows], k=start + 1).reshape(1, -1) for matrix in matrices]).tocsc()
        used = np.flatnonzero(np.diff(flat.indptr))
        entries = torch.from_numpy(flat[:, used].toarray().astype(np.float32))
        of_row, of_column = rows[used // n], used % n
        for draw in range(draws):
            times = torch.from_numpy((weights[draw, of_row] * weights[draw, of_column]).astype(np.float32))
            inner[draw] += 2 * ((entries * times) @ entries.T).numpy()
    sums = np.stack([matrix @ weights.T for matrix in matrices])  # (L, N, B) of rows
    centred = inner - 2 / n * np.einsum("bn,lnb,mnb->blm", weights, sums, sums, optimize=True)
    totals = np.einsum("bn,lnb->bl", weights, sums)
    centred += totals[:, :, None] * totals[:, None, :] / n**2
    scale = np.sqrt(np.diagonal(centred, axis1=1, axis2=2))
    return np.asarray(centred / (scale[:, :, None] * scale[:, None, :]))


def bootstrap_modularity(graph: Tensor, labels: Tensor, counts: Counts) -> Table:
    """``(B,)`` modularity of the classes (Eq. 5) when inputs are drawn again, as in :func:`bootstrap_cka`."""
    matrix, times = as_scipy(graph), counts.T.astype(np.float64)
    n, draws = times.shape
    classes = int(labels.max()) + 1
    of_class = np.eye(classes)[labels.numpy()]  # (N, C)
    members = (times[:, :, None] * of_class[:, None, :]).reshape(n, -1)  # all draws at once, (N, B C)
    to_classes = (matrix @ members).reshape(n, draws, classes) * times[:, :, None]
    between = of_class.T @ to_classes.reshape(n, -1)  # affinity between classes
    shares = between.reshape(classes, draws, classes).transpose(1, 0, 2)
    shares /= shares.sum((1, 2), keepdims=True)
    return np.asarray(np.trace(shares, axis1=1, axis2=2) - np.square(shares.sum(2)).sum(1))


def permuted_cka(graphs: Sequence[Tensor], seed: int = 0, *, unbiased: bool = False) -> Table:
    """``(L, L)`` CKA between graphs and the same graphs with their inputs in another order: what chance gives.

    Args:
        graphs: L graphs over the same inputs, all sparse CSR or all dense.
        seed: Of the order.
        unbiased: By the unbiased estimator of HSIC.
    """
    order = torch.randperm(len(graphs[0]), generator=torch.Generator().manual_seed(seed))
    return pairwise_cka(graphs, [_reordered(graph, order) for graph in graphs], unbiased=unbiased).numpy()


def _reordered(graph: Tensor, order: Tensor) -> Tensor:
    if graph.layout == torch.strided:
        return graph[order][:, order]
    coo = graph.to_sparse_coo().coalesce()
    return torch.sparse_coo_tensor(order.argsort()[coo.indices()], coo.values(), coo.shape).coalesce().to_sparse_csr()


def shuffled_modularity(graph: Tensor, labels: Tensor, draws: int, seed: int = 0) -> Table:
    """``(draws,)`` modularity of the same number of inputs a class, but at random."""
    generator = torch.Generator().manual_seed(seed)
    return np.array([modularity(graph, labels[torch.randperm(len(labels), generator=generator)]) for _ in range(draws)])


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle part of many draws of a number.

    Example:
        >>> interval(np.arange(101.0), 0.5)
        (25.0, 75.0)
    """
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
