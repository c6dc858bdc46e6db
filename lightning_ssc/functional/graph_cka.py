"""CKA between affinity graphs that are kept, and compared again and again: one sparse product a pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_ssc.functional.uncertainty import Estimate, jackknife

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

    @cached_property
    def without_each(self) -> NDArray[np.float64]:
        """``(N,)`` squared :attr:`norm` of the graph without each input; NaN where nothing is left."""
        places, weights = self.edges
        at = np.bincount(places // len(self.coef), np.square(weights), len(self.coef))
        before, crossed = float(at.sum()), 2 * self.times(self.degrees)
        after = _centred_without(before, at, crossed, self.degrees, self.degrees)
        return np.where(after > _CONSTANT**2 * before, after, np.nan)

    def times(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(N,)`` product of the affinity and a vector."""
        rows, columns = self.ends
        n, weights = len(self.coef), self.weights
        product = np.bincount(rows, weights * vector[columns], n) + np.bincount(columns, weights * vector[rows], n)
        return np.asarray(product, dtype=np.float64)


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
    if _incomparable(one, other):
        return float("nan")
    _, products = _shared(one, other)
    centred = _centred(len(one.coef), 2 * float(products.sum()), one.degrees, other.degrees)
    return centred / (one.norm * other.norm)


def graph_cka_estimate(one: CentredGraph, other: CentredGraph) -> Estimate:
    r"""SSC-CKA of two graphs with its standard error over the choice of inputs.

    The error is that of :func:`~lightning_ssc.functional.uncertainty.jackknife`: inputs are left out one at a time, of
    both graphs, whose other edges are taken as they are, which errs on the safe side. With the sums of products at an
    input, all N similarities follow in as many steps as the graphs have edges:
    :math:`\langle A, B \rangle_{-i} = \langle A, B \rangle - 2 \langle A_i, B_i \rangle`, and of the row sums a and b
    :math:`a^T b_{-i} = a^T b - a_i b_i - (A b)_i - (B a)_i + \langle A_i, B_i \rangle`.

    Args:
        one: A graph.
        other: A graph of the same inputs.

    Returns:
        Similarity, as of :func:`graph_cka`, and standard error; NaN where either graph is empty or constant.

    Raises:
        ValueError: The graphs differ in their number of inputs.

    Example:
        >>> import torch
        >>> coef = torch.tensor([[0.0, 2, 1, 0], [1, 0, 0, 3], [0, 1, 0, 1], [1, 0, 2, 0]]).to_sparse_csr()
        >>> round(graph_cka_estimate(CentredGraph(coef), CentredGraph(3 * coef)).spread, 6)
        0.0
    """
    if _incomparable(one, other):
        return Estimate(float("nan"), float("nan"))
    n = len(one.coef)
    (rows, columns), products = _shared(one, other)
    at = np.bincount(rows, products, n) + np.bincount(columns, products, n)
    inner, crossed = float(at.sum()), one.times(other.degrees) + other.times(one.degrees)
    hsic = _centred_without(inner, at, crossed, one.degrees, other.degrees)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = hsic / np.sqrt(one.without_each * other.without_each)
    value = _centred(n, inner, one.degrees, other.degrees) / (one.norm * other.norm)
    return Estimate(value, jackknife(torch.from_numpy(without)))


def _incomparable(one: CentredGraph, other: CentredGraph) -> bool:
    if len(one.coef) != len(other.coef):
        raise ValueError(
            f"the graphs are of {len(one.coef)} and {len(other.coef)} inputs: both must see the same probe"
        )
    return math.isnan(one.norm) or math.isnan(other.norm)


def _shared(
    one: CentredGraph, other: CentredGraph
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]:
    """Ends and products of the entries of the first self-expression that the other's affinity has, too."""
    rows, columns = one.ends
    places, weights = other.edges
    wanted = rows * len(one.coef) + columns
    where = np.searchsorted(places, wanted)
    where[where == len(places)] = 0
    shared = places[where] == wanted
    return (rows[shared], columns[shared]), one.weights[shared] * weights[where[shared]]


def _centred(n: int, inner: float, degrees1: NDArray[np.float64], degrees2: NDArray[np.float64]) -> float:
    """Inner product of centred matrices from that of the matrices and their row sums."""
    totals = float(degrees1.sum()) * float(degrees2.sum())
    return inner - 2 / n * _dot(degrees1, degrees2) + totals / n**2


def _centred_without(
    inner: float,
    at: NDArray[Any],
    crossed: NDArray[np.float64],
    degrees1: NDArray[np.float64],
    degrees2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The same without each input: from sums of products at it and the row sums of its neighbours, weighted."""
    n = len(at) - 1
    rows = _dot(degrees1, degrees2) - degrees1 * degrees2 - crossed + at
    totals = (degrees1.sum() - 2 * degrees1) * (degrees2.sum() - 2 * degrees2)
    return np.asarray(inner - 2 * at - 2 / n * rows + totals / n**2, dtype=np.float64)


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """``a @ b`` in this thread; NumPy's own wakes BLAS's for it, which then spin beside a training run."""
    return float(np.einsum("i,i->", a, b))
