"""Sparse matrices: the one place that meets torch's beta sparse CSR layout, and the checks every graph goes through."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

# torch says once a process that CSR is in beta and that its invariants go unchecked. Meeting both here, while nobody
# listens, keeps them out of the user's output (and out of test runs in which warnings are errors).
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (1, 1)).to_sparse_csr()


def to_csr(matrix: Tensor) -> Tensor:
    """The matrix as sparse CSR with sorted, distinct columns in each row; a CSR matrix is returned as it is."""
    if matrix.layout == torch.sparse_csr:
        return matrix
    if matrix.layout == torch.sparse_coo:
        matrix = matrix.coalesce()
    return matrix.to_sparse_csr()


def to_coo(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row indices, column indices and values of the stored entries, row by row."""
    matrix = to_csr(matrix)
    rows = torch.repeat_interleave(matrix.crow_indices().diff(), output_size=matrix.values().numel())
    return rows, matrix.col_indices(), matrix.values()


def check_square(matrix: Tensor, name: str) -> None:
    """Raise ValueError unless the argument called `name` is a square matrix of real floating-point numbers."""
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be a square (N, N) matrix, got shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise ValueError(f"{name} must hold floating-point weights, got {matrix.dtype}: convert it with .float()")


def check_symmetric(matrix: Tensor, name: str, remedy: str) -> None:
    """Raise ValueError unless the argument called `name` is a symmetric matrix of finite numbers.

    Sparse matrices are compared with their transpose by one product with a fixed vector without pattern, which costs
    O(entries) and differs for all asymmetric matrices but those orthogonal to that very vector.
    """
    check_square(matrix, name)
    n = matrix.shape[0]
    probe = torch.frac(torch.arange(1, n + 1, dtype=torch.float64, device=matrix.device) * 0.6180339887498949) + 0.5
    rows, columns, values = to_coo(matrix) if matrix.layout != torch.strided else (None, None, matrix)
    values = values.double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity")
    if rows is None or columns is None:
        forward, backward, scale = values @ probe, probe @ values, values.abs().sum(1)
    else:
        forward, backward, scale = (
            torch.zeros(n, dtype=torch.float64, device=matrix.device).index_add_(0, to, values_of)
            for to, values_of in (
                (rows, values * probe[columns]),
                (columns, values * probe[rows]),
                (rows, values.abs()),
            )
        )
    difference = (forward - backward).abs()
    if bool((difference > 1e-4 * scale.max()).any()):
        row = int(difference.argmax())
        raise ValueError(f"{name} must be symmetric, but row {row} differs from column {row}: {remedy}")
