"""Sparse matrices: the one place that meets torch's beta sparse CSR layout, and the checks every graph goes through."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

_AFFINITY = "pass affinity(coef), not coef"

# torch says once a process that CSR is in beta and that its invariants go unchecked. Meeting both here, while nobody
# listens, keeps them out of the user's output (and out of test runs in which warnings are errors).
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_coo_tensor(torch.tensor([[0], [0]], device="cpu"), [1.0], (1, 1), device="cpu").to_sparse_csr()


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
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{name} must be a square (N, N) matrix with N at least 1, got shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise ValueError(f"{name} must hold floating-point weights, got {matrix.dtype}: convert it with .float()")


def check_symmetric(matrix: Tensor, name: str, remedy: str) -> None:
    """Raise ValueError unless the argument called `name` is a symmetric matrix of finite numbers.

    The matrix and its transpose are compared by their products with one fixed vector without pattern, which costs
    O(entries) and tells all asymmetric matrices apart but those whose difference is orthogonal to that very vector.
    """
    check_square(matrix, name)
    n = matrix.shape[0]
    probe = torch.frac(torch.arange(1, n + 1, dtype=torch.float64, device=matrix.device) * 0.6180339887498949) + 0.5
    if matrix.layout == torch.strided:
        values = matrix.double()
        forward, backward, size = values @ probe, probe @ values, values.abs().sum(1)
    else:
        rows, columns, values = to_coo(matrix)
        values = values.double()
        zero = torch.zeros_like(probe)
        forward = zero.index_add(0, rows, values * probe[columns])
        backward = zero.index_add(0, columns, values * probe[rows])
        size = zero.index_add(0, rows, values.abs())
    if not bool(size.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity, first in row {int((~size.isfinite()).nonzero()[0])}")
    difference = (forward - backward).abs()
    if bool((difference > 1e-4 * size.max()).any()):
        row = int(difference.argmax())
        raise ValueError(f"{name} must be symmetric, but row {row} differs from column {row}: {remedy}")


def check_same_inputs(first: Tensor, second: Tensor, name1: str, name2: str) -> None:
    """Raise ValueError unless the two arguments have as many rows and live on one device."""
    if len(first) != len(second):
        raise ValueError(f"{name1} has {len(first)} inputs but {name2} has {len(second)}: both must see the same probe")
    if first.device != second.device:
        raise ValueError(f"{name1} is on {first.device} but {name2} is on {second.device}: move one to the other")


def edges(affinity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and float64 weights of the stored entries of a checked graph."""
    check_symmetric(affinity, "affinity", _AFFINITY)
    rows, columns, weights = to_coo(affinity)
    if bool((weights < 0).any()):
        raise ValueError(f"affinity must be non-negative, but row {int(rows[weights < 0][0])} is not: {_AFFINITY}")
    return rows, columns, weights.double()


def classes_of(labels: Tensor | Sequence[int], affinity: Tensor) -> Tensor:
    """The labels as (N,) int64, checked against the graph."""
    check_square(affinity, "affinity")
    classes = torch.as_tensor(labels, device=None if isinstance(labels, Tensor) else affinity.device)
    if classes.device != affinity.device:
        raise ValueError(f"labels are on {classes.device} but affinity is on {affinity.device}: move one to the other")
    if classes.is_floating_point() or classes.is_complex():
        raise ValueError(f"labels must be integers, got {classes.dtype}")
    if classes.shape != affinity.shape[:1]:
        raise ValueError(
            f"labels must be one integer for each of the graph's {affinity.shape[0]} inputs, got shape "
            f"{tuple(classes.shape)}"
        )
    return classes.long()


def sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """``(size,)`` sums of values by an index."""
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)
