"""Gram matrices of features, formed at full precision and in half the work of a plain product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_ssc.functional.health import Idle, idle_features

_BLOCK = 256  # rows of a Gram that are formed or mirrored at once
_HALVED = 1536  # samples above which a Gram is split into halves, whose product runs at full speed
_TINY = 1e-15  # largest feature of a sample below which squares come near to the least that float32 can hold
_STEEP = 10  # times that the mean's squared length may exceed the spread's before float32 loses of the raw Gram
_AT_ONCE = 1 << 22  # entries that are turned into float64 at once
_NONE_IDLE = Idle(0, 0)
_LOST = 64  # epsilons of the mean's squared length below which that of a sample is rounding


@dataclass
class CentredGram:
    """The Gram matrix of N samples, kept so that neither of its uses loses precision.

    In float32 the product of uncentred features hides a small spread behind a large mean, so features are centred
    first; the mean is added back for self-expression, which wants the raw Gram.

    Attributes:
        centred: ``(N, N)`` float32 or float64, the Gram of the features less their mean over the samples (H X Xᵀ H).
        offset: ``(N,)`` float64, what row and column i have to gain in the raw Gram.
        gain: What every entry has to gain in the raw Gram.
        idle: How many features do not vary.
    """

    centred: Tensor
    offset: Tensor
    gain: float
    idle: Idle = _NONE_IDLE

    def add_(self, other: CentredGram) -> None:
        """Add the Gram of other features of the same samples."""
        self.centred += other.centred
        self.offset += other.offset
        self.gain += other.gain
        self.idle = Idle(*(sum(both) for both in zip(self.idle, other.idle, strict=True)))

    def raw_(self, precise: bool = False) -> Tensor:
        """The raw Gram X Xᵀ, written over :attr:`centred`; in float64 if asked for.

        A sample so near to zero beside the mean that rounding is all that is left of it (less than 0.3 % of the mean's
        length in float32) is taken for zero.
        """
        if precise:
            self.centred = self.centred.double()
        for rows, offset in zip(self.centred.split(_BLOCK), self.offset.split(_BLOCK), strict=True):
            rows += (offset[:, None] + self.offset + self.gain).to(rows.dtype)
        lost = self.centred.diagonal() <= _LOST * torch.finfo(self.centred.dtype).eps * self.gain
        self.centred[lost] = 0
        self.centred[:, lost] = 0
        return self.centred

    def to(self, device: torch.device) -> CentredGram:
        """The same on another device."""
        return CentredGram(self.centred.to(device), self.offset.to(device), self.gain, self.idle)


def centred_gram(x: Tensor, precise: bool = False, onto: CentredGram | None = None) -> CentredGram:
    """The Gram of features at the full precision of their dtype; ``x`` (N, d) is overwritten.

    It is accumulated in float64 where that is asked for, where squares would be too small for float32, and where the
    mean is long beside the spread: what float32 rounds off there is as large as what tells the samples apart, and
    leaves the raw Gram that of no samples at all.

    Args:
        x: ``(N, d)`` float32 or float64 features.
        precise: Whether to accumulate in float64.
        onto: The Gram of other features of the same samples, to which this one is added; a float64 one in its place.

    Raises:
        ValueError: A feature is NaN or infinite; says of how many samples and names the first.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
        >>> centred_gram(x.clone()).raw_().allclose(x @ x.T)
        True
    """
    n = len(x)
    mean = x.mean(0)  # rounded: what matters is that the same is taken off here and given back by raw_()
    sizes = torch.linalg.vector_norm(x, float("inf"), dim=1)
    tiny = ((sizes > 0) & (sizes < _TINY)).any()
    gain, whole = mean.double().square().sum(), torch.linalg.vector_norm(x, dim=1).double().square().mean()
    steep = gain > _STEEP * (whole - gain)
    finite, *needs_more = torch.stack([torch.isfinite(mean).all(), tiny, steep]).tolist()  # a GPU is waited for once
    if not finite:
        if len(bad := (~torch.isfinite(x)).any(1).nonzero().squeeze(1)):
            raise ValueError(f"NaN or infinity for {len(bad)} of {n} samples, first for sample {int(bad[0])}")
        mean = x.mean(0, dtype=torch.float64).to(x.dtype)  # finite values, whose sum was too large
        gain = mean.double().square().sum()
    idle = idle_features(x)
    precise = precise or any(needs_more) or (onto is not None and onto.centred.dtype == torch.float64)
    if precise and x.dtype == torch.float32:
        return _in_double(x, idle, onto)
    x -= mean
    gram = torch.empty(n, n, device=x.device, dtype=x.dtype)
    with _full_precision(x.device):
        _upper_product(x, gram)
        offset = (x @ mean).double()
    for start in range(0, n, _BLOCK):
        rows, stop = gram[start : start + _BLOCK], start + _BLOCK
        own = rows[:, start:stop].triu()
        rows[:, start:stop] = own + own.triu(1).T
        gram[stop:, start:stop] = rows[:, stop:].T
    found = CentredGram(gram, offset, float(gain), idle)
    if onto is not None:
        found.add_(onto)
    return found


def _in_double(x: Tensor, idle: Idle, onto: CentredGram | None) -> CentredGram:
    """The Gram of float32 features accumulated in float64, some features at a time."""
    n = len(x)
    made: Any = {"device": x.device, "dtype": torch.float64}
    found = CentredGram(torch.zeros(n, n, **made), torch.zeros(n, **made), 0.0) if onto is None else onto
    found.centred = found.centred.double()
    gain = torch.zeros((), **made)
    for part in x.split(max(1, _AT_ONCE // n), dim=1):
        features = part.double()
        mean = features.mean(0)
        features -= mean
        found.centred.addmm_(features, features.T)
        found.offset += features @ mean
        gain += mean.square().sum()
    found.gain += float(gain)
    found.idle = Idle(*(sum(both) for both in zip(found.idle, idle, strict=True)))
    return found


def _upper_product(x: Tensor, out: Tensor) -> None:
    """Write X Xᵀ to ``out`` on and above the diagonal; only blocks on the diagonal are formed twice."""
    n = len(x)
    if n > _HALVED:
        half = n // 2
        torch.mm(x[:half], x[half:].T, out=out[:half, half:])
        _upper_product(x[:half], out[:half, :half])
        _upper_product(x[half:], out[half:, half:])
        return
    for start in range(0, n, _BLOCK):
        stop = start + _BLOCK
        torch.mm(x[start:stop], x[start:].T, out=out[start:stop, start:])


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products without TF32 and outside autocast; the global settings are restored."""
    backends: Any = torch.backends
    owner: Any = backends.cuda.matmul if device.type == "cuda" else getattr(backends.mkldnn, "matmul", None)
    new = hasattr(
        owner, "fp32_precision"
    )  # since torch 2.9; reading the old setting may raise once the new one is used
    before = owner.fp32_precision if new else torch.get_float32_matmul_precision()
    try:
        if new:
            owner.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if new:
            owner.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)
