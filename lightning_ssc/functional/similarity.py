"""How alike two representations of the same inputs are: centred kernel alignment of graphs and of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import check_same_inputs, check_square, check_symmetric, to_coo, to_csr

_BLOCK = 1 << 23  # float64 numbers (64 MB) worked on at once beside the input
_CONSTANT = 1e-6  # norm after centring over norm before, at which only the rounding of float64 sums is left
_REMEDY = "pass affinity(coef), or (a + a.T) / 2"


@torch.no_grad()
def cka(a1: Tensor, a2: Tensor, *, unbiased: bool = False) -> float:
    r"""Centred kernel alignment of two symmetric matrices over the same inputs, such as affinity graphs (Eq. 3, 4).

    .. math:: \frac{\langle HA_1H, HA_2H \rangle}{\|HA_1H\|_F \|HA_2H\|_F}, \qquad H = I - \tfrac1N \mathbf 1\mathbf 1^T

    A similarity: 1 for equal matrices, whatever their scale. The centred matrices are never formed: with row sums r
    and total s, :math:`\langle HAH, HBH \rangle = \langle A, B \rangle - \frac2N r_A^T r_B + \frac{s_A s_B}{N^2}`,
    accumulated in float64, which is linear in the number of entries of sparse matrices. The factor
    :math:`(N-1)^{-2}` of Eq. 4 cancels.

    Args:
        a1: (N, N) symmetric, sparse or dense.
        a2: (N, N) symmetric, sparse or dense, on the device of `a1`.
        unbiased: Estimate HSIC by the unbiased estimator of Song et al. 2012, see :func:`linear_cka`, instead of the
            biased one of Eq. 4.

    Returns:
        The similarity, in [0, 1] for positive semi-definite matrices and in [-1, 1] for others. NaN where either matrix
        is constant (an empty graph is): after centring nothing is left that could be compared. Unbiased, also where the
        estimate of a matrix's dependence on itself is not positive.

    Raises:
        ValueError: A matrix is not square, symmetric and finite, the two differ in size or device, or N is below 4 for
            the unbiased estimator.

    Example:
        >>> a = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        >>> round(cka(a, 2 * a), 6)
        1.0
        >>> cka(a, torch.zeros(4, 4))
        nan
    """
    a1, a2 = (matrix.double() for matrix in _checked_matrices({"a1": a1, "a2": a2}))
    if a1.layout == a2.layout == torch.strided:
        inner = (a1 * a2).sum()
    else:
        inner = (to_csr(a1).to_sparse_coo() * to_csr(a2).to_sparse_coo()).coalesce().values().sum()
    return float(_cosines(inner.view(1, 1), _summary([a1]), _summary([a2]), unbiased))


@torch.no_grad()
def pairwise_cka(graphs: Sequence[Tensor], others: Sequence[Tensor] | None = None, *, unbiased: bool = False) -> Tensor:
    """:func:`cka` of every pair of many symmetric matrices over the same inputs.

    A block of rows at a time, the places where any graph has an entry become the columns of one dense table, whose
    product with itself adds to all inner products at once. Memory beyond the graphs stays near 100 MB whatever N is.

    Args:
        graphs: L matrices (N, N), symmetric, sparse or dense, in any mixture.
        others: M such matrices, for instance the layers of another network on the same inputs; `graphs` when None.
        unbiased: Use the unbiased estimator, as in :func:`cka`. With Grams of centred features as graphs, this is
            the heatmap of "debiased" linear CKA.

    Returns:
        (L, M) float64; rows and columns of constant or empty graphs are NaN, as in :func:`cka`.

    Raises:
        ValueError: A list is empty, or as in :func:`cka`; the message names the matrix.

    Example:
        >>> pair = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
        >>> star = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 0, 0]])
        >>> pairwise_cka([pair, star, torch.ones(3, 3)])
        tensor([[1.0000, 0.6325,    nan],
                [0.6325, 1.0000,    nan],
                [   nan,    nan,    nan]], dtype=torch.float64)
    """
    named = {f"graphs[{i}]": graph for i, graph in enumerate(graphs)}
    if others is not None:
        named |= {f"others[{i}]": graph for i, graph in enumerate(others)}
    if len(graphs) == 0 or (others is not None and len(others) == 0):
        raise ValueError("pairwise_cka needs at least one graph in each list")
    every = _checked_matrices(named)
    rows = slice(0, len(graphs))
    columns = rows if others is None else slice(len(graphs), len(every))
    summary1 = _summary(every[rows])
    summary2 = summary1 if others is None else _summary(every[columns])
    n = every[0].shape[0]
    inner = summary1.diagonals @ summary2.diagonals.T
    step = max(1, _BLOCK // (n * len(every)))
    for start in range(0, n, step):
        entries = _entries_of_rows(every, start, min(start + step, n))
        inner += 2 * (entries[rows] @ entries[columns].T)
    table = _cosines(inner, summary1, summary2, unbiased)
    return (table + table.T) / 2 if others is None else table  # matrix products are not symmetric to the last bit


@torch.no_grad()
def linear_cka(x1: Tensor, x2: Tensor, *, unbiased: bool = False) -> float:
    r"""Linear centred kernel alignment of two sets of features of the same inputs (Kornblith et al. 2019).

    The features are centred first and everything is summed in float64: Grams of uncentred float32 features can be off
    by a third. The smaller of the (d1, d2) cross-covariance and the (N, N) Grams is formed.

    Args:
        x1: (N, ...) features of N inputs, in any real dtype; dimensions after the first are flattened.
        x2: (N, ...) features of the same inputs, with any number of dimensions, on the device of `x1`.
        unbiased: Estimate HSIC by the unbiased :math:`\mathrm{HSIC}_1` of Song et al. 2012 (Eq. 5), as Nguyen et al.
            2020 do ("debiased CKA"), which is what to use when features are many and inputs few. The default is the
            biased estimator of Eq. 4. The two differ a lot: say which one a number is.

    Returns:
        The similarity: at most 1 by the biased estimator and at least 0; the unbiased one scatters around 0 for
        independent features and can be negative. NaN where features are constant over the inputs, or, unbiased, where
        the estimate of the dependence of `x1` or `x2` on itself is not positive: neither leaves a scale to divide by.

    Raises:
        ValueError: `x1` and `x2` differ in N or device, are empty or not finite, or N is below 4 for the unbiased
            estimator.

    Example:
        >>> x = torch.arange(12.0).view(6, 2) % 5
        >>> round(linear_cka(x, -3 * x + 100), 6)
        1.0
        >>> linear_cka(x, torch.ones(6, 3))
        nan
    """
    _check_features(x1, x2)
    n = len(x1)
    x1, x2 = x1.reshape(n, -1), x2.reshape(n, -1)
    zero = torch.zeros(1, n, dtype=torch.float64, device=x1.device)  # the row sums of centred matrices
    if max(x1.shape[1], x2.shape[1]) > n:
        k1, k2 = _centred_gram(x1), _centred_gram(x2)
        inner, norm1, norm2 = ((a * b).sum().view(1, 1) for a, b in ((k1, k2), (k1, k1), (k2, k2)))
        diagonal1, diagonal2 = k1.diagonal()[None], k2.diagonal()[None]
    else:
        c1, c2 = _centred(x1), _centred(x2)
        inner, norm1, norm2 = ((a.T @ b).square().sum().view(1, 1) for a, b in ((c1, c2), (c1, c1), (c2, c2)))
        diagonal1, diagonal2 = c1.square().sum(1)[None], c2.square().sum(1)[None]
    summary1, summary2 = _Summary(zero, norm1[0], diagonal1), _Summary(zero, norm2[0], diagonal2)
    return float(_cosines(inner, summary1, summary2, unbiased))


class _Summary(NamedTuple):
    """What CKA needs of L matrices beside their inner products, in float64."""

    sums: Tensor  # (L, N) of rows
    norms: Tensor  # (L,) squared
    diagonals: Tensor  # (L, N)


def _summary(matrices: Sequence[Tensor]) -> _Summary:
    """Of dense or CSR matrices."""
    zero = torch.zeros(matrices[0].shape[0], dtype=torch.float64, device=matrices[0].device)
    sums, norms, diagonals = [], [], []
    for matrix in matrices:
        if matrix.layout == torch.strided:
            sums.append(matrix.sum(1, dtype=torch.float64))
            norms.append(matrix.double().square().sum())
            diagonals.append(matrix.diagonal().double())
        else:
            rows, columns, values = to_coo(matrix)
            values = values.double()
            sums.append(zero.index_add(0, rows, values))
            norms.append(values.square().sum())
            diagonals.append(zero.index_add(0, rows, values * (rows == columns)))
    return _Summary(torch.stack(sums), torch.stack(norms), torch.stack(diagonals))


def _cosines(inner: Tensor, one: _Summary, other: _Summary, unbiased: bool) -> Tensor:
    """(L, M) ratios HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) from the inner products (L, M)."""
    n = one.sums.shape[1]
    if unbiased:
        if n < 4:
            raise ValueError(f"the unbiased estimator needs at least 4 inputs, got {n}")
        inner = inner - one.diagonals @ other.diagonals.T
        by_row, by_total = 2 / (n - 2), 1 / ((n - 1) * (n - 2))
    else:
        by_row, by_total = 2 / n, 1 / n**2

    def sums_and_scale(of: _Summary) -> tuple[Tensor, Tensor]:
        sums = of.sums - of.diagonals if unbiased else of.sums
        norms = of.norms - of.diagonals.square().sum(1) if unbiased else of.norms
        hsic = norms - by_row * sums.square().sum(1) + by_total * sums.sum(1).square()
        return sums, hsic.where(hsic > _CONSTANT**2 * of.norms, torch.nan).sqrt()

    (sums1, scale1), (sums2, scale2) = sums_and_scale(one), sums_and_scale(other)
    hsic = inner - by_row * sums1 @ sums2.T + by_total * sums1.sum(1)[:, None] * sums2.sum(1)
    return hsic / (scale1[:, None] * scale2)


def _centred(x: Tensor) -> Tensor:
    """Centred float64 features; taking the first input off before the mean makes constant ones exactly zero."""
    x = x.double()
    x = x - x[0]
    return x - x.mean(0)


def _centred_gram(x: Tensor) -> Tensor:
    """(N, N) float64 Gram of centred features, a block of features at a time."""
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for block in x.split(max(1, _BLOCK // len(x)), dim=1):
        centred = _centred(block)
        gram.addmm_(centred, centred.T)
    return gram


def _entries_of_rows(matrices: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """(L, K) float64 entries right of the diagonal in rows start to stop, for the K places where any matrix has one."""
    n = matrices[0].shape[1]
    device = matrices[0].device
    right = (torch.arange(n, device=device) > torch.arange(start, stop, device=device)[:, None]).flatten()
    used = torch.zeros_like(right)
    entries: list[tuple[Tensor, Tensor]] = []
    for matrix in matrices:
        if matrix.layout == torch.strided:
            places, values = right, matrix[start:stop].flatten()[right]
        else:
            crow = matrix.crow_indices()[start : stop + 1]
            stored = slice(int(crow[0]), int(crow[-1]))
            row = torch.repeat_interleave(crow.diff(), output_size=stored.stop - stored.start)
            column = matrix.col_indices()[stored]
            keep = column > row + start
            places, values = (row * n + column)[keep], matrix.values()[stored][keep]
        used[places] = True
        entries.append((places, values))
    order = used.cumsum(0) - 1
    table = torch.zeros(len(matrices), int(used.sum()), dtype=torch.float64, device=device)
    for line, (places, values) in zip(table, entries, strict=True):
        line[order[places]] = values.double()
    return table


def _checked_matrices(named: dict[str, Tensor]) -> list[Tensor]:
    """The named arguments, sparse ones as CSR, all symmetric matrices of one size and device."""
    names, matrices = list(named), list(named.values())
    for name, matrix in named.items():
        check_square(matrix, name)
        check_same_inputs(matrices[0], matrix, names[0], name)
    for name, matrix in named.items():
        check_symmetric(matrix, name, _REMEDY)
    return [matrix if matrix.layout == torch.strided else to_csr(matrix) for matrix in matrices]


def _check_features(x1: Tensor, x2: Tensor) -> None:
    check_same_inputs(x1, x2, "x1", "x2")
    for name, x in (("x1", x1), ("x2", x2)):
        if x.dim() < 2 or x.is_complex():
            raise ValueError(f"{name} must hold real features of shape (N, ...), got {x.dtype} {tuple(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} of shape {tuple(x.shape)} has no features or no inputs")
        if not bool(x.isfinite().all()):
            row = int((~x.reshape(len(x), -1).isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{name} holds NaN or infinity, first in row {row}")
