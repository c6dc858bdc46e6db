"""Checks of input that several functions share: each error names the culprit and the remedy."""

import torch
from torch import Tensor

_CHUNK = 1 << 24  # entries looked at in one go, so that checking a Gram costs no second Gram


def check_samples(x: Tensor) -> None:
    """Raise ValueError unless ``x`` is an (N, d) table of at least 3 finite samples and 1 feature."""
    if x.ndim != 2:
        raise ValueError(f"x must have shape (N, d), samples as rows, got {tuple(x.shape)}: flatten each sample first")
    if x.is_complex():
        raise ValueError("x must be real, got complex numbers: stack real and imaginary parts as features")
    if x.shape[0] < 3:
        raise ValueError(f"self-expression needs at least 3 samples, got {x.shape[0]}")
    if x.shape[1] == 0:
        raise ValueError("x has no features")
    bad = ~x.isfinite().all(1)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"x is not finite in {int(bad.sum())} of {len(x)} rows, first in row {row}: remove or repair them")


def check_gram(gram: Tensor) -> None:
    """Raise ValueError unless ``gram`` is a finite, symmetric (N, N) Gram matrix of at least 3 samples."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be square, (N, N) = x @ x.T, got shape {tuple(gram.shape)}")
    if gram.is_complex():
        raise ValueError("gram must be real, got complex numbers")
    n = gram.shape[0]
    if n < 3:
        raise ValueError(f"self-expression needs at least 3 samples, got {n}")
    length = gram.diagonal()
    if bool((length < 0).any()):
        row = int((length < 0).nonzero()[0, 0])
        raise ValueError(f"gram is not a Gram matrix: gram[{row}, {row}] = {float(length[row]):.3g} is negative")
    length = length.to(torch.float64).sqrt()
    slack = 1e-4 * float(length.max()) ** 2
    for start in range(0, n, step := max(1, _CHUNK // n)):
        rows = gram[start : start + step]
        bad = ~rows.isfinite().all(1)
        if bad.any():
            row = start + int(bad.nonzero()[0, 0])
            raise ValueError(f"gram is not finite, first in row {row}: repair or remove that sample")
        bad = ((rows - gram[:, start : start + step].T).abs() > slack).any(1)
        if bad.any():
            row = start + int(bad.nonzero()[0, 0])
            raise ValueError(f"gram is not symmetric, first in row {row}: pass x @ x.T, or (gram + gram.T) / 2")
        bad = (rows.abs() > length[start : start + step, None] * length + slack).any(1)
        if bad.any():
            row = start + int(bad.nonzero()[0, 0])
            raise ValueError(
                f"gram is not a Gram matrix: row {row} has an entry beyond the product of the two samples' lengths "
                "(a distance or unscaled kernel?): pass x @ x.T"
            )
