"""CKA between affinity graphs that are kept, and compared again and again: one pass over the edges of a pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

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
        before = float(np.square(self.edges[2]).sum())
        after = _centred(before, self.degrees, self.degrees)
        return math.sqrt(after) if after > _CONSTANT**2 * before else float("nan")

    @property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The affinity as compressed rows, of columns in no order: where each begins, columns, weights."""
        return self._affinity[:3]

    @property
    def degrees(self) -> NDArray[np.float64]:
        """``(N,)`` row sums of the affinity."""
        return self._affinity[3]

    @cached_property
    def without_each(self) -> NDArray[np.float64]:
        """``(N,)`` squared :attr:`norm` of the graph without each input; NaN where nothing is left."""
        at, crossed = _products(self, self)
        before, after = float(at.sum()), _centred_without(at, crossed, self.degrees, self.degrees)
        return np.where(after > _CONSTANT**2 * before, after, np.nan)

    @cached_property
    def _affinity(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        from lightning_ssc.functional._passes import both_ways  # importing numba takes a second

        coef = self.coef
        return both_ways(coef.crow_indices().numpy(), coef.col_indices().numpy(), coef.values().numpy())


def graph_cka(one: CentredGraph, other: CentredGraph) -> float:
    r"""SSC-CKA of two graphs over the same inputs (Eq. 3 of Saini et al. 2021, biased HSIC).

    As :func:`lightning_ssc.functional.cka` of their affinities, in one pass over their edges and in one thread, since a
    graph of a thousand inputs is no work to share.

    Args:
        one: A graph.
        other: A graph of the same inputs.

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
    inner = float(_products(one, other)[0].sum())
    return _centred(inner, one.degrees, other.degrees) / (one.norm * other.norm)


def graph_cka_estimate(one: CentredGraph, other: CentredGraph) -> Estimate:
    r"""SSC-CKA of two graphs with its standard error over the choice of inputs.

    The error is that of :func:`~lightning_ssc.functional.uncertainty.jackknife`: inputs are left out one at a time, of
    both graphs, whose other edges are taken as they are. With the sums of products at an input, all N similarities
    follow in as many steps as the graphs have edges:
    :math:`\langle A, B \rangle_{-i} = \langle A, B \rangle - 2 \langle A_i, B_i \rangle`, and of the row sums a and b
    :math:`a^T b_{-i} = a^T b - a_i b_i - (A b)_i - (B a)_i + \langle A_i, B_i \rangle`. What a pair of inputs adds,
    :math:`2 K_{ij} L_{ij} - s (K_{ij}^2 + L_{ij}^2)` of centred graphs of norm 1 with similarity s, is lost with either
    of them and so counted twice; of sparse graphs that is nearly half of the variance, which is taken off.

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
    from lightning_ssc.functional._passes import second_order

    at, crossed = _products(one, other)
    hsic = _centred_without(at, crossed, one.degrees, other.degrees)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = hsic / np.sqrt(one.without_each * other.without_each)
    value = _centred(float(at.sum()), one.degrees, other.degrees) / (one.norm * other.norm)
    (starts1, columns1, weights1), (starts2, columns2, weights2) = one.edges, other.edges
    weights1, weights2 = weights1 / one.norm, weights2 / other.norm
    means1, means2 = (of.degrees / (of.norm * len(of.degrees)) for of in (one, other))
    pairs = second_order(starts1, columns1, weights1, starts2, columns2, weights2, means1, means2, value)
    return Estimate(value, jackknife(torch.from_numpy(without), pairs=pairs))


def _incomparable(one: CentredGraph, other: CentredGraph) -> bool:
    if len(one.coef) != len(other.coef):
        raise ValueError(
            f"the graphs are of {len(one.coef)} and {len(other.coef)} inputs: both must see the same probe"
        )
    return math.isnan(one.norm) or math.isnan(other.norm)


def _products(one: CentredGraph, other: CentredGraph) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""``(N,)`` sums of products of edges at each input, and row sums of its neighbours weighted by the other graph's.

    With affinities A and B and their row sums a and b: :math:`\langle A_i, B_i \rangle` and :math:`(A b + B a)_i`.
    """
    from lightning_ssc.functional._passes import products

    return products(*one.edges, *other.edges, one.degrees, other.degrees)


def _centred(inner: float, degrees1: NDArray[np.float64], degrees2: NDArray[np.float64]) -> float:
    """Inner product of centred matrices from that of the matrices and their row sums."""
    n, totals = len(degrees1), float(degrees1.sum()) * float(degrees2.sum())
    return inner - 2 / n * _dot(degrees1, degrees2) + totals / n**2


def _centred_without(
    at: NDArray[np.float64],
    crossed: NDArray[np.float64],
    degrees1: NDArray[np.float64],
    degrees2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The same without each input: from sums of products at it and the row sums of its neighbours, weighted."""
    n = len(at) - 1
    rows = _dot(degrees1, degrees2) - degrees1 * degrees2 - crossed + at
    totals = (degrees1.sum() - 2 * degrees1) * (degrees2.sum() - 2 * degrees2)
    return np.asarray(at.sum() - 2 * at - 2 / n * rows + totals / n**2, dtype=np.float64)


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """``a @ b`` in this thread; NumPy's own wakes BLAS's for it, which then spin beside a training run."""
    return float(np.einsum("i,i->", a, b))
