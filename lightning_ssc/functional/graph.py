"""Affinity graphs: how one is made of a self-expression, and what its communities say about the labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import check_square, classes_of, edges, sum_by, to_coo, to_csr

if TYPE_CHECKING:
    import networkx

_PRODUCTS = 300  # block products after which a Krylov basis is given up; graphs of activations take far fewer
_DENSE = 4096  # inputs up to which a full decomposition stands in: half a minute at most


@torch.no_grad()
def affinity(coef: Tensor) -> Tensor:
    r"""Affinity graph :math:`|C| + |C|^T` of a self-expression (section 2.3 of Saini et al. 2021).

    Args:
        coef: (N, N) coefficients, sparse or dense; row i rebuilds input i. A diagonal is ignored.

    Returns:
        (N, N) sparse CSR, symmetric, with no diagonal, sorted columns and only positive entries, in the dtype and on
        the device of `coef`.

    Raises:
        ValueError: `coef` is not a square floating-point matrix, or holds NaN or infinity (the row is named).

    Example:
        >>> affinity(torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [0.5, 0.0, 0.0]])).to_dense()
        tensor([[0.0000, 3.0000, 0.5000],
                [3.0000, 0.0000, 0.0000],
                [0.5000, 0.0000, 0.0000]])
    """
    check_square(coef, "coef")
    rows, columns, values = to_coo(coef)
    finite = values.isfinite()
    if not bool(finite.all()):
        raise ValueError(f"coef holds NaN or infinity, first in row {int(rows[~finite][0])}")
    keep = (rows != columns) & (values != 0)
    indices = torch.stack([rows[keep], columns[keep]])
    magnitude = torch.sparse_coo_tensor(indices, values[keep].abs(), coef.shape, is_coalesced=True)
    # Transposing through CSC is a counting sort, and the sum of two sorted matrices a merge: half the time of sorting.
    csc = magnitude.to_sparse_csr().to_sparse_csc()
    transpose = torch.sparse_csr_tensor(csc.ccol_indices(), csc.row_indices(), csc.values(), coef.shape)
    return to_csr(magnitude + transpose.to_sparse_coo())


@torch.no_grad()
def modularity(affinity: Tensor, labels: Tensor | Sequence[int]) -> float:
    r"""Newman's modularity of the partition of the graph that the labels make (Eq. 5), on weighted edges.

    .. math:: Q = \frac{1}{2m} \sum_{ij} \Big(A_{ij} - \frac{k_i k_j}{2m}\Big) \delta(c_i, c_j)

    with :math:`k_i = \sum_j A_{ij}` and :math:`2m = \sum_i k_i`. It takes one pass over the edges, in float64. Zero
    means no more affinity within classes than the degrees alone would give; it is at most :math:`1 - 1/\text{classes}`.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        labels: (N,) integers; each distinct value, negative ones too, is a class of its own. To leave out unlabelled
            inputs, index the graph and the labels before the call.

    Returns:
        The modularity; 0 for a single class; NaN for a graph without edges, in which no share of affinity exists.

    Raises:
        ValueError: `affinity` is not square, symmetric, finite and non-negative, or `labels` is not N integers on the
            same device.

    Example:
        >>> two_pairs = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        >>> modularity(two_pairs, [0, 0, 1, 1])
        0.5
    """
    _, classes = torch.unique(classes_of(labels, affinity), return_inverse=True)
    rows, columns, weights = edges(affinity)
    degree = sum_by(rows, weights, len(classes))
    total = degree.sum()
    if not total > 0:
        return float("nan")
    within = weights[classes[rows] == classes[columns]].sum() / total
    by_class = sum_by(classes, degree, len(classes)) / total
    return float(within - by_class.square().sum())


def labelled(affinity: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a graph whose samples have a class: negative labels mark samples that have none.

    Args:
        affinity: (N, N) sparse CSR.
        labels: (N,) integers on the same device.

    Returns:
        The graph of the M samples with a label of at least 0, sparse CSR (M, M), and their labels.

    Example:
        >>> pair_and_one = torch.tensor([[0.0, 2, 1], [2, 0, 0], [1, 0, 0]]).to_sparse_csr()
        >>> graph, classes = labelled(pair_and_one, torch.tensor([1, 1, -1]))
        >>> graph.to_dense().tolist(), classes.tolist()
        ([[0.0, 2.0], [2.0, 0.0]], [1, 1])
    """
    known = labels >= 0
    if bool(known.all()):
        return affinity, labels
    rows, columns, weights = to_coo(affinity)
    inside = known[rows] & known[columns]
    place = known.cumsum(0) - 1
    size = int(known.sum())
    indices = torch.stack((place[rows[inside]], place[columns[inside]]))
    kept = torch.sparse_coo_tensor(indices, weights[inside], (size, size), is_coalesced=True)
    return to_csr(kept), labels[known]


def all_known(labels: Tensor | None) -> Tensor | None:
    """The labels where every sample has one; ``None`` where there are none or some are negative.

    Example:
        >>> all_known(torch.tensor([0, 2])), all_known(torch.tensor([0, -1])), all_known(None)
        (tensor([0, 2]), None, None)
    """
    return None if labels is None or bool((labels < 0).any()) else labels


@torch.no_grad()
def class_affinity(affinity: Tensor, labels: Tensor | Sequence[int], num_classes: int | None = None) -> Tensor:
    """Share of each input's affinity that goes to each class (section 6.2 of Saini et al. 2021).

    ``class_affinity(a, labels).argmax(1)`` is the paper's "SSC label" of each input.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        labels: (N,) integers from 0 to ``num_classes - 1``.
        num_classes: Number of columns of the result; the largest label plus one when None.

    Returns:
        (N, num_classes) float64, each row summing to one. The row of an isolated input, one without any affinity, is
        NaN: it has nothing to share out (and ``argmax`` reads class 0 there, so mask such rows first).

    Raises:
        ValueError: `affinity` is not square, symmetric, finite and non-negative, `labels` is not N integers on the
            same device, or a label lies outside ``[0, num_classes)``.

    Example:
        >>> class_affinity(torch.tensor([[0.0, 3, 1], [3, 0, 0], [1, 0, 0]]), [0, 0, 1])
        tensor([[0.7500, 0.2500],
                [1.0000, 0.0000],
                [1.0000, 0.0000]], dtype=torch.float64)
    """
    classes = classes_of(labels, affinity)
    if num_classes is None:
        num_classes = int(classes.max()) + 1
    outside = (classes < 0) | (classes >= num_classes)
    if bool(outside.any()):
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(classes[outside][0])}")
    rows, columns, weights = edges(affinity)
    shares = sum_by(rows * num_classes + classes[columns], weights, len(classes) * num_classes)
    shares = shares.view(len(classes), num_classes)
    return shares / shares.sum(1, keepdim=True)


@torch.no_grad()
def spectral_embedding(
    affinity: Tensor, num_components: int = 2, *, normalized: bool = False, tol: float = 1e-8
) -> Tensor:
    """Coordinates of the inputs by leading eigenvectors of the graph (section 6.1 of Saini et al. 2021, figure 8).

    The eigenvectors come from a block Krylov method that only multiplies by the sparse matrix, and are fully
    determined: the entry of largest magnitude in each is positive.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        num_components: Dimensions of the embedding.
        normalized: False takes the eigenvectors of the affinity with the largest eigenvalues, of unit length, as in the
            paper's figure. True takes the normalised Laplacian's with the smallest, the trivial first one left out
            and each entry divided by the root of the degree, as ``sklearn.manifold.spectral_embedding`` does.
        tol: Residual of an eigenvector, relative to the largest eigenvalue, at which it is found. A picture needs no
            more than 1e-3.

    Returns:
        (N, num_components) float64, by falling importance. Isolated inputs, having no affinity, have no place: NaN.

    Raises:
        ValueError: `affinity` is not square, symmetric, finite and non-negative, or has too few connected inputs.

    Warns:
        UserWarning: The eigenvalues of a graph of more than 4096 inputs lie too close together to be told apart (as in
            a long ring); residuals are then above ``tol``, and the warning says by how much.

    Example:
        >>> path = torch.diag(torch.ones(2), 1) + torch.diag(torch.ones(2), -1)
        >>> spectral_embedding(path, 1).T
        tensor([[0.5000, 0.7071, 0.5000]], dtype=torch.float64)
    """
    rows, columns, weights = edges(affinity)
    n = affinity.shape[0]
    degree = sum_by(rows, weights, n)
    connected = degree > 0
    size, wanted = int(connected.sum()), num_components + normalized
    if num_components < 1 or wanted > size:
        raise ValueError(
            f"num_components must be from 1 to {size - normalized}, for {size} inputs have any affinity, got "
            f"{num_components}"
        )
    if normalized:
        weights = weights / (degree[rows] * degree[columns]).sqrt()
    joined = weights > 0
    place = connected.cumsum(0) - 1
    indices = torch.stack([place[rows[joined]], place[columns[joined]]])
    matrix = torch.sparse_coo_tensor(indices, weights[joined], (size, size), is_coalesced=True).to_sparse_csr()
    vectors = _leading_eigenvectors(matrix, wanted, tol)
    if normalized:
        vectors = vectors[:, 1:] / degree[connected].sqrt()[:, None]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    embedding = vectors.new_full((n, num_components), torch.nan)
    embedding[connected] = vectors * largest.sign()
    return embedding


@torch.no_grad()
def to_networkx(affinity: Tensor, labels: Tensor | Sequence[int] | None = None) -> networkx.Graph:
    """The graph as a ``networkx.Graph``: nodes 0 to N - 1, edges with a ``weight``, nodes with a ``label`` if given.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        labels: (N,) integers, or None.

    Returns:
        An undirected graph; isolated inputs are nodes without edges.

    Raises:
        ValueError: As for :func:`modularity`.

    Example:
        >>> graph = to_networkx(torch.tensor([[0.0, 3, 1], [3, 0, 0], [1, 0, 0]]), labels=[5, 5, 7])
        >>> graph.edges(data="weight")
        EdgeDataView([(0, 1, 3.0), (0, 2, 1.0)])
        >>> graph.nodes[2]["label"]
        7
    """
    import networkx

    rows, columns, weights = edges(affinity)
    upper = (rows <= columns) & (weights > 0)
    graph = networkx.Graph()
    graph.add_nodes_from(range(affinity.shape[0]))
    graph.add_weighted_edges_from(
        zip(rows[upper].tolist(), columns[upper].tolist(), weights[upper].tolist(), strict=True)
    )
    if labels is not None:
        networkx.set_node_attributes(graph, dict(enumerate(classes_of(labels, affinity).tolist())), "label")
    return graph


def communities(affinity: Tensor, seed: int = 0) -> Tensor:
    """Communities of inputs that Louvain's method finds in a graph, for inputs without classes.

    networkx does the work (Blondel et al., "Fast unfolding of communities in large networks", 2008): seconds for a
    graph of a thousand inputs.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        seed: of the order in which the method visits inputs.

    Returns:
        (N,) int64 community of every input, numbered from 0 by falling size; an isolated input is one of its own.

    Raises:
        ValueError: `affinity` is not square, symmetric, finite and non-negative.

    Example:
        >>> a = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).fill_diagonal_(0)
        >>> communities(a)
        tensor([0, 0, 0, 1, 1])
    """
    import networkx

    found = networkx.community.louvain_communities(to_networkx(affinity), seed=seed)
    groups = torch.empty(affinity.shape[0], dtype=torch.long)
    for number, members in enumerate(sorted(found, key=lambda group: (-len(group), min(group)))):
        groups[list(members)] = number
    return groups.to(affinity.device)


def _leading_eigenvectors(matrix: Tensor, k: int, tol: float) -> Tensor:
    """The k eigenvectors of a symmetric sparse matrix with the largest eigenvalues, (N, k), the largest first.

    Rayleigh-Ritz on a basis that grows by the residuals of the leading Ritz vectors and is cut back to its better half
    when it is full (a thick-restarted block Lanczos method), until residuals are ``tol`` of the largest eigenvalue. If
    eigenvalues lie so close that this takes too long, small matrices are decomposed in full and others said so of. It
    was chosen over ``torch.lobpcg``, which stopped at 1e-5 where eigenvalues lie close together, and over ARPACK, which
    found two of five equal ones (a graph in five like parts) and runs on the CPU only.
    """
    n, block = matrix.shape[0], k + 4
    full = 12 * block
    if n <= full:
        return _all_eigenvectors(matrix)[:, -k:].flip(1)
    start = torch.randn(n, block, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0))
    fresh = start.to(matrix.device)
    basis = image = fresh[:, :0]
    projected = fresh.new_zeros(0, 0)  # the matrix on the basis
    for _ in range(_PRODUCTS):
        for _again in range(2):  # once is not enough for orthogonality where residuals are down to rounding
            fresh = torch.linalg.qr(fresh - basis @ (basis.T @ fresh)).Q
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, matrix @ fresh], 1)
        border = basis.T @ image[:, -fresh.shape[1] :]
        projected = torch.cat([torch.cat([projected, border[: -fresh.shape[1]].T]), border], 1)
        values, vectors = torch.linalg.eigh(projected)
        leading: Tensor = basis @ vectors[:, -block:]
        fresh = image @ vectors[:, -block:] - leading * values[-block:]
        residual = float(fresh[:, -k:].norm(dim=0).max() / values.abs().max())
        if residual <= tol:
            return leading[:, -k:].flip(1)
        if basis.shape[1] + block > full:
            better = vectors[:, -full // 2 :]
            basis, image, projected = basis @ better, image @ better, torch.diag(values[-full // 2 :])
    if n <= _DENSE:
        return _all_eigenvectors(matrix)[:, -k:].flip(1)
    warnings.warn(
        f"the leading eigenvalues of this graph lie too close together: residuals of the embedding are {residual:.1e} "
        "of the largest eigenvalue",
        stacklevel=4,
    )
    return leading[:, -k:].flip(1)


def _all_eigenvectors(matrix: Tensor) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(matrix.to_dense()).eigenvectors
    return vectors
