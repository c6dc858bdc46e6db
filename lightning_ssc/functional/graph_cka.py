"""CKA between affinity graphs that are kept, and compared again and again: one sparse product a pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_CONSTANT = 1e-6  # norm after centring over norm before, at which only the rounding of float64 sums is left


@dataclass(frozen=True, eq=False)
class CentredGraph:
    """The affinity graph of a self-expression, |C| + |C|ᵀ, as CKA needs it.

    Attributes:
        coef: ``(N, N)`` sparse CSR on the CPU, the self-expression C.
        known_norm: :attr:`norm`, where it was computed before.

    Example:
        >>> import torch
        >>> coef = torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]).to_sparse_csr()
        >>> round(CentredGraph(coef).norm, 3)
        3.1
    """

    coef: Tensor
    known_norm: float | None = None

    @cached_property
    def norm(self) -> float:
        """Norm of the centred affinity, ``‖H A H‖_F``; NaN where nothing is left of it, as of an empty graph."""
        if self.known_norm is not None:
            return self.known_norm
        n, before, degrees = len(self.coef), float(np.square(self.edges[1]).sum()), self.degrees
        after = before - 2 / n * float(np.square(degrees).sum()) + float(degrees.sum()) ** 2 / n**2
        return math.sqrt(after) if after > _CONSTANT**2 * before else float("nan")

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """``(nnz,)`` magnitudes of the stored coefficients."""
        return np.abs(self.coef.values().numpy().astype(np.float64))

    @cached_property
    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(nnz,)`` row and column of every stored coefficient, ascending."""
        rows = np.repeat(np.arange(len(self.coef)), np.diff(self.coef.crow_indices().numpy()))
        return rows, self.coef.col_indices().numpy()

    @cached_property
    def degrees(self) -> NDArray[np.float64]:
        """``(N,)`` row sums of the affinity."""
        of_rows, of_columns = (np.bincount(end, self.weights, len(self.coef)) for end in self.ends)
        return np.asarray(of_rows + of_columns, dtype=np.float64)

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Places, row times N plus column, ascending, and weights of the affinity's entries."""
        rows, columns = self.ends
        both = np.concatenate([rows * len(self.coef) + columns, columns * len(self.coef) + rows])
        places, index = np.unique(both, return_inverse=True)
        return places, np.bincount(index, np.tile(self.weights, 2)).astype(np.float64)


def graph_cka(one: CentredGraph, other: CentredGraph) -> float:
    r"""SSC-CKA of two graphs over the same inputs (Eq. 3 of Saini et al. 2021, biased HSIC).

    As :func:`lightning_ssc.functional.cka` of their affinities, but that of ``one`` is not formed:
    :math:`\langle |C| + |C|^T, B \rangle = 2 \langle |C|, B \rangle` for symmetric B. It is computed in NumPy, in one
    thread, since a graph of a thousand inputs is no work to share.

    Args:
        one: A graph.
        other: A graph of the same inputs; give the one that is compared with many as this.

    Returns:
        The similarity; NaN where either graph is empty or constant.

    Raises:
        ValueError: The graphs differ in their number of inputs.

    Example:
        >>> import torch
        >>> coef = torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]).to_sparse_csr()
        >>> round(graph_cka(CentredGraph(coef), CentredGraph(3 * coef)), 6)
        1.0
    """
    n = len(one.coef)
    if len(other.coef) != n:
        raise ValueError(f"the graphs are of {n} and {len(other.coef)} inputs: both must see the same probe")
    if math.isnan(one.norm) or math.isnan(other.norm):
        return float("nan")
    rows, columns = one.ends
    places, weights = other.edges
    wanted = rows * n + columns
    where = np.searchsorted(places, wanted)
    where[where == len(places)] = 0
    shared = places[where] == wanted
    inner = 2 * _dot(one.weights[shared], weights[where[shared]])
    totals = float(one.degrees.sum()) * float(other.degrees.sum())
    centred = inner - 2 / n * _dot(one.degrees, other.degrees) + totals / n**2
    return centred / (one.norm * other.norm)


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """``a @ b`` in this thread; NumPy's own wakes BLAS's for it, which then spin beside a training run."""
    return float(np.einsum("i,i->", a, b))
