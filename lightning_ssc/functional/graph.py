"""Affinity graphs: how one is made of a self-expression, and what its communities say about the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_ssc.functional._krylov import krylov_spaces
from lightning_ssc.functional._sparse import check_square, check_symmetric, to_coo, to_csr

if TYPE_CHECKING:
    import networkx

_REMEDY = "pass affinity(coef), not coef"


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
    rows, columns, values = to_coo(coef.detach())
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
    classes, rows, columns, weights = _labelled_edges(affinity, labels)
    _, classes = torch.unique(classes, return_inverse=True)
    degree = _sum_by(rows, weights, len(classes))
    total = degree.sum()
    if not total > 0:
        return float("nan")
    within = weights[classes[rows] == classes[columns]].sum() / total
    by_class = _sum_by(classes, degree, len(classes)) / total
    return float(within - by_class.square().sum())


def class_affinity(affinity: Tensor, labels: Tensor | Sequence[int], num_classes: int | None = None) -> Tensor:
    """Share of each input's affinity that goes to each class (section 6.2 of Saini et al. 2021).

    ``class_affinity(a, labels).argmax(1)`` is the paper's "SSC label" of each input.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        labels: (N,) integers from 0 to ``num_classes - 1``.
        num_classes: number of columns of the result; the largest label plus one when None.

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
    classes, rows, columns, weights = _labelled_edges(affinity, labels)
    if num_classes is None:
        num_classes = int(classes.max()) + 1
    outside = (classes < 0) | (classes >= num_classes)
    if bool(outside.any()):
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(classes[outside][0])}")
    shares = _sum_by(rows * num_classes + classes[columns], weights, len(classes) * num_classes)
    shares = shares.view(len(classes), num_classes)
    return shares / shares.sum(1, keepdim=True)


def spectral_embedding(affinity: Tensor, num_components: int = 2, *, normalized: bool = False) -> Tensor:
    """Coordinates of the inputs by leading eigenvectors of the graph (section 6.1 of Saini et al. 2021, figure 8).

    The eigenvectors come from a block Krylov method that only multiplies by the sparse matrix, and are fully
    determined: the entry of largest magnitude in each is positive.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        num_components: dimensions of the embedding.
        normalized: False takes the eigenvectors of the affinity with the largest eigenvalues, of unit length, as in the
            paper's figure. True takes the normalised Laplacian's with the smallest, the trivial first one left out
            and each entry divided by the root of the degree, as ``sklearn.manifold.spectral_embedding`` does.

    Returns:
        (N, num_components) float64, by falling importance. Isolated inputs, having no affinity, have no place: NaN.

    Raises:
        ValueError: `affinity` is not square, symmetric, finite and non-negative, or has too few connected inputs.

    Example:
        >>> path = torch.diag(torch.ones(2), 1) + torch.diag(torch.ones(2), -1)
        >>> spectral_embedding(path, 1).T
        tensor([[0.5000, 0.7071, 0.5000]], dtype=torch.float64)
    """
    _, rows, columns, weights = _labelled_edges(affinity, range(affinity.shape[0]))
    n = affinity.shape[0]
    degree = _sum_by(rows, weights, n)
    connected = degree > 0
    size, wanted = int(connected.sum()), num_components + normalized
    if not 1 <= wanted <= size:
        raise ValueError(f"num_components is {num_components}, but the graph has {size} inputs with any affinity")
    if normalized:
        weights = weights / (degree[rows] * degree[columns]).sqrt()
    edges = weights > 0
    place = connected.cumsum(0) - 1
    indices = torch.stack([place[rows[edges]], place[columns[edges]]])
    matrix = torch.sparse_coo_tensor(indices, weights[edges], (size, size), is_coalesced=True).to_sparse_csr()
    vectors = _leading_eigenvectors(matrix, wanted)
    if normalized:
        vectors = vectors[:, 1:] / degree[connected].sqrt()[:, None]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    embedding = vectors.new_full((n, num_components), torch.nan)
    embedding[connected] = vectors * largest.sign()
    return embedding


def to_networkx(affinity: Tensor, labels: Tensor | Sequence[int] | None = None) -> networkx.Graph:
    """The graph as a ``networkx.Graph``: nodes 0 to N - 1, edges with a ``weight``, nodes with a ``label`` if given.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        labels: (N,) integers, or None.

    Returns:
        An undirected graph; isolated inputs are nodes without edges.

    Raises:
        ValueError: as for :func:`modularity`.

    Example:
        >>> graph = to_networkx(torch.tensor([[0.0, 3, 1], [3, 0, 0], [1, 0, 0]]), labels=[5, 5, 7])
        >>> graph.edges(data="weight")
        EdgeDataView([(0, 1, 3.0), (0, 2, 1.0)])
        >>> graph.nodes[2]["label"]
        7
    """
    import networkx

    n = affinity.shape[0]
    classes, rows, columns, weights = _labelled_edges(affinity, range(n) if labels is None else labels)
    upper = (rows <= columns) & (weights > 0)
    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from(
        zip(rows[upper].tolist(), columns[upper].tolist(), weights[upper].tolist(), strict=True)
    )
    if labels is not None:
        networkx.set_node_attributes(graph, dict(enumerate(classes.tolist())), "label")
    return graph


def _labelled_edges(affinity: Tensor, labels: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checked (N,) labels and the rows, columns and float64 weights of the graph's stored entries."""
    check_square(affinity, "affinity")
    classes = torch.as_tensor(labels, device=None if isinstance(labels, Tensor) else affinity.device)
    if classes.device != affinity.device:
        raise ValueError(f"labels are on {classes.device} but affinity is on {affinity.device}: move one to the other")
    if classes.is_floating_point() or classes.is_complex():
        raise ValueError(f"labels must be integers, got {classes.dtype}")
    if classes.dim() != 1 or len(classes) != affinity.shape[0]:
        raise ValueError(
            f"labels must be one integer for each of the graph's {affinity.shape[0]} inputs, got shape "
            f"{tuple(classes.shape)}"
        )
    check_symmetric(affinity, "affinity", _REMEDY)
    rows, columns, weights = to_coo(affinity.detach())
    if bool((weights < 0).any()):
        raise ValueError(f"affinity must be non-negative, but row {int(rows[weights < 0][0])} is not: {_REMEDY}")
    return classes.long(), rows, columns, weights.double()


def _leading_eigenvectors(matrix: Tensor, k: int) -> Tensor:
    """The k eigenvectors of a symmetric sparse matrix with the largest eigenvalues, (N, k), the largest first."""
    n = matrix.shape[0]
    for basis, image in krylov_spaces(lambda v: matrix @ v, n, block=k + 6, device=matrix.device):
        values, vectors = torch.linalg.eigh(basis.T @ image)
        values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
        residual = image @ vectors - basis @ vectors * values
        if residual.norm(dim=0).max() <= 1e-8 * values.abs().max():
            break
    return basis @ vectors


def _sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)
