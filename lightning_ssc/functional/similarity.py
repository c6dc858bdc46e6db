"""How alike two representations of the same inputs are: centred kernel alignment of graphs and of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_ssc.functional._krylov import krylov_spaces
from lightning_ssc.functional._sparse import check_square, check_symmetric, to_csr

_BLOCK = 1 << 23  # float64 numbers (64 MB) worked on at once beside the input
_CONSTANT = 1e-6  # norm after centring over norm before, at which only the rounding of float64 sums is left
_REMEDY = "pass affinity(coef), or (a + a.T) / 2"


def cka(a1: Tensor, a2: Tensor) -> float:
    r"""Centred kernel alignment of two symmetric matrices over the same inputs, such as affinity graphs (Eq. 3, 4).

    .. math:: \frac{\langle HA_1H, HA_2H \rangle}{\|HA_1H\|_F \|HA_2H\|_F}, \qquad H = I - \tfrac1N \mathbf 1\mathbf 1^T

    A similarity: 1 for equal matrices, whatever their scale. The centred matrices are never formed: with row sums r
    and total s, :math:`\langle HAH, HBH \rangle = \langle A, B \rangle - \frac2N r_A^T r_B + \frac{s_A s_B}{N^2}`,
    accumulated in float64 and linear in the number of entries of sparse matrices. This is the biased estimator of
    HSIC; the factor :math:`(N-1)^{-2}` of Eq. 4 cancels.

    Args:
        a1: (N, N) symmetric, sparse or dense.
        a2: (N, N) symmetric, sparse or dense, on the device of `a1`.

    Returns:
        The similarity, in [0, 1] for positive semi-definite matrices and in [-1, 1] for others. NaN where either matrix
        is constant (an empty graph is): after centring nothing is left that could be compared.

    Raises:
        ValueError: a matrix is not square, symmetric and finite, or the two differ in size or device.

    Example:
        >>> a = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        >>> round(cka(a, 2 * a), 6)
        1.0
        >>> cka(a, torch.zeros(4, 4))
        nan
    """
    _check_matrices({"a1": a1, "a2": a2})
    a1, a2 = a1.detach().double(), a2.detach().double()
    if a1.layout == a2.layout == torch.strided:
        inner = (a1 * a2).sum()
    else:
        inner = (to_csr(a1).to_sparse_coo() * to_csr(a2).to_sparse_coo()).coalesce().values().sum()
    ones = torch.ones(a1.shape[0], dtype=torch.float64, device=a1.device)
    sums = torch.stack([a1 @ ones, a2 @ ones])
    norms = torch.stack([(a if a.layout == torch.strided else a.values()).square().sum() for a in (a1, a2)])
    return float(_centred_cosines(inner.view(1, 1), sums[:1], sums[1:], norms[:1], norms[1:]))


def pairwise_cka(graphs: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """:func:`cka` of every pair of many symmetric matrices over the same inputs.

    All graphs are made dense a block of rows at a time, and one matrix product a block gives all inner products, so
    memory beyond the graphs stays bounded whatever N is.

    Args:
        graphs: L matrices (N, N), symmetric, sparse or dense, in any mixture.
        others: M such matrices, for instance the layers of another network on the same inputs; `graphs` when None.

    Returns:
        (L, M) float64; rows and columns of constant or empty graphs are NaN, as in :func:`cka`.

    Raises:
        ValueError: a list is empty, a matrix is not square, symmetric and finite, or they differ in size or device.

    Example:
        >>> pair = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
        >>> star = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 0, 0]])
        >>> pairwise_cka([pair, star, torch.ones(3, 3)])
        tensor([[1.0000, 0.6325,    nan],
                [0.6325, 1.0000,    nan],
                [   nan,    nan,    nan]], dtype=torch.float64)
    """
    named = {f"graphs[{i}]": graph for i, graph in enumerate(graphs)}
    rows = slice(0, len(named))
    if others is not None:
        named |= {f"others[{i}]": graph for i, graph in enumerate(others)}
    columns = slice(0 if others is None else rows.stop, len(named))
    if not named or rows.stop == 0 or columns.start == columns.stop:
        raise ValueError("pairwise_cka needs at least one graph in each list")
    _check_matrices(named)
    every = [graph if graph.layout == torch.strided else to_csr(graph.detach()) for graph in named.values()]
    n = every[0].shape[0]
    sums = torch.zeros(len(every), n, dtype=torch.float64, device=every[0].device)
    norms = sums.new_zeros(len(every))
    inner = sums.new_zeros(rows.stop, columns.stop - columns.start)
    step = max(1, _BLOCK // (n * len(every)))
    for start in range(0, n, step):
        block = torch.stack([_dense_rows(graph, start, start + step) for graph in every])
        sums[:, start : start + step] = block.sum(2)
        block = block.flatten(1)
        norms += block.square().sum(1)
        inner += block[rows] @ block[columns].T
    return _centred_cosines(inner, sums[rows], sums[columns], norms[rows], norms[columns])


def linear_cka(x1: Tensor, x2: Tensor, *, unbiased: bool = False) -> float:
    r"""Linear centred kernel alignment of two sets of features of the same inputs (Kornblith et al. 2019).

    The features are centred first and everything is summed in float64: Grams of uncentred float32 features can be off
    by a third. The smaller of the (d1, d2) cross-covariance and the (N, N) Grams is formed.

    Args:
        x1: (N, ...) features of N inputs, in any real dtype; dimensions after the first are flattened.
        x2: (N, ...) features of the same inputs, with any number of dimensions, on the device of `x1`.
        unbiased: estimate HSIC by the unbiased :math:`\mathrm{HSIC}_1` of Song et al. 2012, as Nguyen et al. 2020 do
            ("debiased CKA"), which is what to use when features are many and inputs few. The default is the biased
            estimator of Eq. 4. The two differ a lot: say which one a number is.

    Returns:
        The similarity: at most 1 by the biased estimator and at least 0; the unbiased one scatters around 0 for
        independent features and can be negative. NaN where features are constant over the inputs, or, unbiased, where
        the estimate of the dependence of `x1` or `x2` on itself is not positive: neither leaves a scale to divide by.

    Raises:
        ValueError: `x1` and `x2` differ in N or device, are not finite, or are fewer than 2 inputs (unbiased: 4).

    Example:
        >>> x = torch.arange(12.0).view(6, 2) % 5
        >>> round(linear_cka(x, -3 * x + 100), 6)
        1.0
        >>> linear_cka(x, torch.ones(6, 3))
        nan
    """
    _check_features(x1, x2, at_least=4 if unbiased else 2)
    n = len(x1)
    x1, x2 = x1.detach().reshape(n, -1), x2.detach().reshape(n, -1)
    if max(x1.shape[1], x2.shape[1]) > n:
        k1, k2 = _centred_gram(x1), _centred_gram(x2)
        hsic = [(a * b).sum() for a, b in ((k1, k2), (k1, k1), (k2, k2))]
        lengths = [k1.diagonal(), k2.diagonal()]
    else:
        c1, c2 = _centred(x1), _centred(x2)
        hsic = [(a.T @ b).square().sum() for a, b in ((c1, c2), (c1, c1), (c2, c2))]
        lengths = [c1.square().sum(1), c2.square().sum(1)]
    if unbiased:
        pairs = ((0, 1), (0, 0), (1, 1))
        hsic = [_unbiased(h, lengths[i], lengths[j]) for h, (i, j) in zip(hsic, pairs, strict=True)]
    cross, self1, self2 = (float(h) for h in hsic)
    return cross / (self1**0.5 * self2**0.5) if self1 > 0 and self2 > 0 else float("nan")


@dataclass(frozen=True)
class GramSketch:
    """A fixed sample of the entries of a centred Gram matrix HGH: all that later linear CKA of its layer needs.

    Entries are relative to the largest diagonal entry, for CKA does not depend on scale.

    Attributes:
        diagonal: (N,) float32, the whole diagonal.
        pairs: (P,) float16, the entries of the same P pairs of inputs in every sketch of N inputs and P pairs.
    """

    diagonal: Tensor
    pairs: Tensor


def gram_sketch(gram: Tensor, pairs: int = 1 << 17) -> GramSketch:
    """Keep enough of a Gram matrix for linear CKA with other layers or epochs: 0.27 MB instead of 4 MB at N = 1000.

    Grams of real layers have long tails of eigenvalues, so that truncated eigendecompositions of this size are off by
    0.05 to 0.17 in CKA. Their entries are many and alike instead, and a sample of them estimates the inner products of
    Eq. 4 to about 1e-3, with an error that can be stated (:func:`sketch_cka`). It costs one pass over the Gram.

    Args:
        gram: (N, N) dense inner products of features, in any floating-point dtype; it need not be centred.
        pairs: pairs of inputs to keep, two bytes each; all of them where there are no more.

    Returns:
        The sketch, on the device of `gram`; all zero for a constant Gram, that of inputs all alike.

    Raises:
        ValueError: `gram` is not a square matrix of finite numbers over at least 2 inputs.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> gram_sketch(x @ x.T, pairs=1000).pairs.shape
        torch.Size([1000])
    """
    check_square(gram, "gram")
    n = len(gram)
    if n < 2:
        raise ValueError(f"gram must have at least 2 inputs, got {n}")
    mean = gram.mean(0, dtype=torch.float64)
    if not bool(mean.isfinite().all()):
        raise ValueError(f"gram holds NaN or infinity, first in column {int((~mean.isfinite()).nonzero()[0])}")
    shift = mean - mean.mean() / 2
    diagonal = gram.diagonal().double() - 2 * shift
    scale = diagonal.max()
    if scale <= 4 * torch.finfo(gram.dtype).eps * gram.diagonal().max():  # only rounding is left
        diagonal, scale = torch.zeros_like(diagonal), torch.full_like(scale, torch.inf)
    i, j = (index.to(gram.device) for index in _sampled_pairs(n, min(pairs, n * (n - 1) // 2)))
    entries = gram[i, j].double() - shift[i] - shift[j]
    return GramSketch((diagonal / scale).float(), (entries / scale).half())


def sketch_cka(s1: GramSketch, s2: GramSketch) -> tuple[float, float]:
    r"""Linear CKA (biased) of the features behind two sketches of the same inputs, and its standard error.

    The error is that of the sample of pairs, by the delta method for a ratio of sample means with the correction for a
    finite population: 0 where all pairs were kept, when rounding to half precision leaves about 1e-6.

    Args:
        s1: a sketch.
        s2: a sketch of the same inputs with as many pairs, on the device of `s1`.

    Returns:
        The similarity and its standard error; both NaN where either Gram was constant, as in :func:`linear_cka`.

    Raises:
        ValueError: the sketches differ in inputs, pairs or device.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> value, error = sketch_cka(gram_sketch(x @ x.T), gram_sketch(x[:, :2] @ x[:, :2].T))
        >>> abs(value - linear_cka(x, x[:, :2])) < 1e-5, error
        (True, 0.0)
    """
    _check_same(s1.diagonal, s2.diagonal, "s1", "s2")
    if len(s1.pairs) != len(s2.pairs):
        raise ValueError(f"s1 keeps {len(s1.pairs)} pairs but s2 keeps {len(s2.pairs)}: sketch both with the same pairs")
    n, kept = len(s1.diagonal), len(s1.pairs)
    pairs = n * (n - 1) // 2
    d1, d2, k1, k2 = (t.double() for t in (s1.diagonal, s2.diagonal, s1.pairs, s2.pairs))
    weight = 2 * pairs / kept
    inner, norm1, norm2 = (
        d @ e + weight * (k @ m) for d, e, k, m in ((d1, d2, k1, k2), (d1, d1, k1, k1), (d2, d2, k2, k2))
    )
    value = inner / (norm1 * norm2).sqrt()
    influence = weight * (k1 * k2 / (norm1 * norm2).sqrt() - value / 2 * (k1.square() / norm1 + k2.square() / norm2))
    variance = kept * influence.var(correction=0) * (1 - kept / pairs)
    return float(value), float(variance.sqrt())


@dataclass(frozen=True)
class GramFactor:
    """The leading eigenvectors of a centred Gram matrix K = HGH, scaled: a compact stand-in for linear CKA.

    Attributes:
        factor: (N, r) float32 F, columns by falling eigenvalue; F Fᵀ approximates K.
        norm: Frobenius norm of the whole K, not of the approximation.
        error: relative error ‖K - F Fᵀ‖_F / ‖K‖_F, measured on `factor` as it is returned.
    """

    factor: Tensor
    norm: float
    error: float


def gram_factor(gram: Tensor, tol: float = 1e-3, max_rank: int = 256) -> GramFactor:
    """Truncated eigendecomposition of a centred Gram matrix, to keep for :func:`factor_cka`.

    Columns are added by a block Krylov method until what is left is at most ``tol`` of the Frobenius norm, and only as
    many eigenvectors are kept as that takes. It costs products of the Gram with about twice as many columns, no full
    eigendecomposition.

    Args:
        gram: (N, N) dense inner products of features, in any floating-point dtype; it need not be centred.
        tol: relative Frobenius error asked for.
        max_rank: most columns to keep. A spectrum too flat for them gives a larger `error`, never more columns.

    Returns:
        The factor, the norm and the measured error. A constant Gram, of inputs all alike, has norm 0 and no columns.

    Raises:
        ValueError: `gram` is not a square, symmetric and finite matrix.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> f = gram_factor(x @ x.T)
        >>> f.factor.shape, f.error < 1e-3
        (torch.Size([50, 3]), True)
    """
    check_symmetric(gram, "gram", "pass x @ x.T")
    kernel = _centre_gram(gram)
    norm = float(kernel.norm())
    n = len(kernel)
    if norm == 0:
        return GramFactor(gram.new_zeros(n, 0, dtype=torch.float32), 0.0, 0.0)
    for basis, image in krylov_spaces(lambda v: kernel @ v, n, block=32, device=gram.device):
        values, vectors = torch.linalg.eigh(basis.T @ image)
        values = values.flip(0).clamp_min(0)
        left = norm**2 - values.square().cumsum(0)  # exact for a projection onto the basis
        if left[-1] <= (tol * norm) ** 2 or basis.shape[1] >= 2 * max_rank:
            break
    rank = min(max_rank, int((left > (tol * norm) ** 2).sum()) + 1, len(values))
    factor = (basis @ vectors.flip(1)[:, :rank] * values[:rank].sqrt()).float()
    error = float((kernel - factor.double() @ factor.double().T).norm()) / norm
    return GramFactor(factor, norm, error)


def factor_cka(f1: GramFactor, f2: GramFactor) -> float:
    r"""Linear CKA (biased) of the features behind two factors of the same inputs: ‖F₁ᵀF₂‖² / (norm₁ norm₂).

    Off from the exact value by at most ``f1.error + f2.error``.

    Returns:
        The similarity; NaN where either Gram was constant, as in :func:`linear_cka`.

    Raises:
        ValueError: the factors differ in the number of inputs or in device.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> f, g = gram_factor(x @ x.T), gram_factor(x[:, :2] @ x[:, :2].T)
        >>> abs(factor_cka(f, g) - linear_cka(x, x[:, :2])) <= f.error + g.error
        True
    """
    _check_same(f1.factor, f2.factor, "f1", "f2")
    if f1.norm == 0 or f2.norm == 0:
        return float("nan")
    return float((f1.factor.double().T @ f2.factor.double()).square().sum()) / (f1.norm * f2.norm)


def _centred_cosines(inner: Tensor, sums1: Tensor, sums2: Tensor, norms1: Tensor, norms2: Tensor) -> Tensor:
    """(L, M) cosines of centred matrices from their inner products (L, M), row sums (L, N), (M, N), squared norms."""
    n = sums1.shape[1]

    def centred(raw: Tensor, products: Tensor, totals: Tensor) -> Tensor:
        return raw - 2 / n * products + totals / n**2

    def scale(norms: Tensor, sums: Tensor) -> Tensor:
        squared = centred(norms, sums.square().sum(1), sums.sum(1).square())
        return squared.where(squared > _CONSTANT**2 * norms, torch.nan).sqrt()

    cross = centred(inner, sums1 @ sums2.T, sums1.sum(1)[:, None] * sums2.sum(1))
    return cross / (scale(norms1, sums1)[:, None] * scale(norms2, sums2))


def _unbiased(inner: Tensor, lengths1: Tensor, lengths2: Tensor) -> Tensor:
    """Song et al. 2012, Eq. 5, from <K, L> and the diagonals of K and L, both centred so that their rows sum to zero."""
    n = len(lengths1)
    diagonal = lengths1 @ lengths2
    off_diagonal = inner - diagonal + lengths1.sum() * lengths2.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonal
    return off_diagonal / (n * (n - 3))


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


def _centre_gram(gram: Tensor) -> Tensor:
    """HGH in float64, exactly zero where only the rounding of a constant Gram is left."""
    mean = gram.mean(0, dtype=torch.float64)
    kernel = gram.double() - mean
    kernel -= (mean - mean.mean())[:, None]
    if kernel.norm() <= 4 * torch.finfo(gram.dtype).eps * gram.double().norm():
        kernel.zero_()
    return kernel


@lru_cache(maxsize=4)
def _sampled_pairs(n: int, count: int) -> tuple[Tensor, Tensor]:
    """(count,) indices i and j of distinct pairs of n inputs, the same on every machine and with every version of torch.

    Pairs are taken at equal distances from the list of all, over inputs in an order without pattern, lest the sample
    fall in step with the order of the labels.
    """
    order = torch.arange(1, n + 1)
    for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13), (0xC2B2AE3D, 16)):  # the mixing steps of xxHash32
        order = order * factor % 2**32
        order ^= order >> shift
    order = order.argsort()
    flat = torch.arange(count) * (n * (n - 1) // 2) // count
    starts = torch.arange(n) * (torch.arange(n) - 1) // 2  # input i has i pairs with those before it
    i = torch.searchsorted(starts, flat, right=True) - 1
    return order[i], order[flat - starts[i]]


def _dense_rows(graph: Tensor, start: int, stop: int) -> Tensor:
    """Rows from start to stop of a dense or CSR matrix, dense in float64."""
    if graph.layout == torch.strided:
        return graph[start:stop].double()
    crow = graph.crow_indices()[start : stop + 1]
    entries = slice(int(crow[0]), int(crow[-1]))
    part = torch.sparse_csr_tensor(
        crow - crow[0], graph.col_indices()[entries], graph.values()[entries].double(), (len(crow) - 1, graph.shape[1])
    )
    return part.to_dense()


def _check_same(first: Tensor, second: Tensor, name1: str, name2: str) -> None:
    if len(first) != len(second):
        raise ValueError(f"{name1} has {len(first)} inputs but {name2} has {len(second)}: both must see the same probe")
    if first.device != second.device:
        raise ValueError(f"{name1} is on {first.device} but {name2} is on {second.device}: move one to the other")


def _check_matrices(named: dict[str, Tensor]) -> None:
    names, matrices = list(named), list(named.values())
    for name, matrix in named.items():
        check_square(matrix, name)
        _check_same(matrices[0], matrix, names[0], name)
    for name, matrix in named.items():
        check_symmetric(matrix, name, _REMEDY)


def _check_features(x1: Tensor, x2: Tensor, at_least: int) -> None:
    _check_same(x1, x2, "x1", "x2")
    for name, x in (("x1", x1), ("x2", x2)):
        if x.dim() < 2 or x.is_complex():
            raise ValueError(f"{name} must hold real features of shape (N, ...), got {x.dtype} {tuple(x.shape)}")
        if len(x) < at_least:
            raise ValueError(f"{name} has {len(x)} inputs, the estimator needs at least {at_least}")
        if not bool(x.isfinite().all()):
            row = int((~x.reshape(len(x), -1).isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{name} holds NaN or infinity, first in row {row}")
