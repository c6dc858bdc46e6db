"""Checks of what self-expression is given: each error names the culprit and the remedy."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 24  # float64 entries of any intermediate: 128 MB, so that memory beside the Gram does not grow with N
_TILE = 512  # entries a side of what is compared at once: a transposed tile still fits the cache
_SLACK = 1e-4  # relative error granted to a Gram: single precision over many features makes 1e-6


def blocks(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(n)``."""
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def check_dense(table: Tensor, name: str, what: str) -> None:
    """Raise TypeError unless the argument called ``name`` is a tensor, and ValueError if it is a sparse one."""
    if not isinstance(table, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, {what}, got {type(table).__name__}: use torch.as_tensor({name})"
        )
    if table.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got {table.layout}: use {name}.to_dense()")


def check_samples(x: Tensor) -> None:
    """Raise ValueError unless ``x`` is an (N, d) table of at least 3 samples, real and finite."""
    if x.ndim != 2:
        raise ValueError(f"x must have shape (N, d), samples as rows, got {tuple(x.shape)}: use x.flatten(1)")
    if x.is_complex():
        raise ValueError(f"x must be real, got {x.dtype}: use torch.view_as_real(x).flatten(1)")
    if x.shape[0] < 3 or x.shape[1] < 1:
        raise ValueError(f"x must have at least 3 samples and 1 feature, got shape {tuple(x.shape)}")
    bad = (~x.isfinite()).any(1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"x has NaN or infinity in row {int(bad[0])} ({len(bad)} such rows): repair or leave them out")


def check_gram(gram: Tensor) -> None:
    """Raise ValueError unless ``gram`` can be the (N, N) Gram matrix of at least 3 real samples."""
    n = len(gram)
    if gram.shape != (n, n):
        raise ValueError(f"gram must be square, x @ x.T, got shape {tuple(gram.shape)}")
    if gram.is_complex() or gram.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"gram must be real and in single precision or better, got {gram.dtype}: form it from x.float()"
        )
    if n < 3:
        raise ValueError(f"gram must be of at least 3 samples, got {n}")
    square = gram.diagonal().double()
    bad = (~((square >= 0) & square.isfinite())).nonzero()[:, 0]
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"gram[{row}, {row}] is {float(square[row])}, not the squared length of a sample: check row {row}"
        )
    length, slack = square.sqrt(), _SLACK * square.max()
    uneven, beyond = torch.zeros(2, n, dtype=torch.bool, device=gram.device)  # looked at once: a GPU is waited for
    for i in blocks(n, _TILE):
        for j in blocks(i.stop, _TILE):
            tile, mirror = gram[i, j], gram[j, i].T
            uneven[i] |= ~((tile - mirror).abs() <= slack).all(1)
            beyond[i] |= (tile.abs() > torch.outer(length[i], length[j]).to(tile.dtype) + slack).any(1)
    if len(bad := uneven.nonzero()):
        raise ValueError(f"gram is not finite and symmetric in row {int(bad[0, 0])}: pass x @ x.T of finite samples")
    if len(bad := beyond.nonzero()):
        raise ValueError(
            f"gram has an entry in row {int(bad[0, 0])} beyond the product of the two samples' lengths, so it is no "
            "matrix of inner products (of distances?): pass x @ x.T"
        )
