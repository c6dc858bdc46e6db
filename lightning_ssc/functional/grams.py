"""Gram matrices of features, formed at full precision and in half the work of a plain product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_ssc.functional._checks import blocks
from lightning_ssc.functional.health import Idle, idle_features

_BLOCK = 256  # rows of a Gram that are formed at once, at least
_CACHED = 1 << 18  # entries that are written over at once: what becomes of them stays in the cache
_TINY = 1e-15  # largest feature of a sample below which squares come near to the least that float32 can hold
_STEEP = 10  # times that the mean's squared length may exceed the spread's before float32 loses of the raw Gram
_AT_ONCE = 1 << 24  # entries that are turned into float64 at once
_NONE_IDLE = Idle(0, 0)
_STRIPS, _HIGHEST = 16, 1024  # in which a Gram is formed, and their rows at most: half of a strip is formed twice
_LOST = 64  # epsilons of the mean's squared length below which that of a sample is rounding


Room = Callable[[int, torch.dtype, torch.device], Tensor]
"""Where a Gram is written: of a number of samples, a dtype and a device, ``(N, N)`` of any content."""


def in_memory(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for a Gram in the memory of its device."""
    return torch.empty(n, n, dtype=dtype, device=device)


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
        room: Where the Gram lies, and a wider one of it is written.
    """

    centred: Tensor
    offset: Tensor
    gain: float
    idle: Idle = _NONE_IDLE
    room: Room = in_memory

    def widen_(self) -> None:
        """Go on in float64."""
        given = self.centred
        if given.dtype != torch.float64:
            self.centred = self.room(len(given), torch.float64, given.device)
            for old, new in zip(given.split(_BLOCK), self.centred.split(_BLOCK), strict=True):
                new.copy_(old)

    def raw_(self, precise: bool = False) -> Tensor:
        """The raw Gram X Xᵀ, written over :attr:`centred`; in float64 if asked for.

        A sample so near to zero beside the mean that rounding is all that is left of it (less than 0.3 % of the mean's
        length in float32) is taken for zero.
        """
        return self._written(precise, unit=False)

    def unit_(self, precise: bool = False) -> Tensor:
        """As :meth:`raw_`, of the samples scaled to unit length; zero samples stay zero."""
        gram = self._written(precise, unit=True)
        gram.diagonal().copy_(gram.diagonal() > 0.5)
        return gram

    def _written(self, precise: bool, unit: bool) -> Tensor:
        """The raw Gram, or that of unit length, in one pass: a large one lies on disk."""
        if precise:
            self.widen_()
        n, dtype = len(self.centred), self.centred.dtype
        square = self.centred.diagonal().double() + 2 * self.offset + self.gain
        lost = square <= _LOST * torch.finfo(dtype).eps * self.gain
        scale = torch.where(lost | (square <= 0), 0, square.rsqrt() if unit else 1)
        for some in blocks(n, max(1, _CACHED // n)):
            rows = self.centred[some]
            # What is the same for (i, j) and (j, i) is put together first, so that the result is symmetric to the bit.
            raw = (self.offset[some, None] + self.offset).add_(self.gain).add_(rows)
            raw.mul_(scale[some, None] * scale)
            rows.copy_(raw.clamp_(-1, 1) if unit else raw)  # rounding may lead short samples beyond
        return self.centred

    def to(self, device: torch.device) -> CentredGram:
        """The same on another device."""
        return CentredGram(self.centred.to(device), self.offset.to(device), self.gain, self.idle, self.room)


def centred_gram(
    x: Tensor, precise: bool = False, *, onto: CentredGram | None = None, room: Room = in_memory
) -> CentredGram:
    """The Gram of features at the full precision of their dtype; ``x`` (N, d) is overwritten.

    It is accumulated in float64 where that is asked for, where squares would be too small for float32, and where the
    mean is long beside the spread: what float32 rounds off there is as large as what tells the samples apart, and
    leaves the raw Gram that of no samples at all.

    Args:
        x: ``(N, d)`` float32 or float64 features.
        precise: Whether to accumulate in float64.
        onto: The Gram of other features of the same samples, which is added to and returned.
        room: Where to write it.

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
    square, whole = mean.double().square().sum(), torch.linalg.vector_norm(x, dim=1).double().square().mean()
    steep = square > _STEEP * (whole - square)
    finite, *needs_more = torch.stack([torch.isfinite(mean).all(), tiny, steep]).tolist()  # a GPU is waited for once
    if not finite:
        if len(bad := (~torch.isfinite(x)).any(1).nonzero().squeeze(1)):
            raise ValueError(f"NaN or infinity for {len(bad)} of {n} samples, first for sample {int(bad[0])}")
        mean = x.mean(0, dtype=torch.float64).to(x.dtype)  # finite values, whose sum was too large
    idle = idle_features(x)
    dtype = torch.float64 if precise or any(needs_more) else x.dtype
    begun = int(onto is not None)
    if onto is None:
        zeros = torch.zeros(n, device=x.device, dtype=torch.float64)
        onto = CentredGram(room(n, dtype, x.device), zeros, 0.0, room=room)
    elif dtype == torch.float64:
        onto.widen_()
    if onto.centred.dtype == x.dtype:
        gain = _add(onto, x.sub_(mean), mean, begun)
    else:
        gain = torch.zeros((), device=x.device, dtype=torch.float64)
        for part in x.split(max(1, _AT_ONCE // n), dim=1):
            features = part.double()
            mean = features.mean(0)
            gain, begun = gain + _add(onto, features.sub_(mean), mean, begun), 1
    onto.gain += float(gain)
    onto.idle = Idle(*(sum(both) for both in zip(onto.idle, idle, strict=True)))
    return onto


def _add(gram: CentredGram, x: Tensor, mean: Tensor, begun: int) -> Tensor:
    """Add the products of features less their mean to a Gram, or begin it with them; returns the mean's square."""
    n, out = len(x), gram.centred
    step = min(_HIGHEST, max(_BLOCK, n // _STRIPS))
    with _full_precision(x.device):
        for start in range(0, n, step):
            stop = min(n, start + step)
            out[start:stop, start:].addmm_(x[start:stop], x[start:].T, beta=begun)
            own = out[start:stop, start:stop]
            own.copy_(own.triu() + own.triu(1).T)
            out[stop:, start:stop] = out[start:stop, stop:].T
        gram.offset += x @ mean
    return mean.double().square().sum()


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
