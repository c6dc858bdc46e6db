"""Gram matrices made small enough to keep for every layer and epoch, for linear CKA between any two of them later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import check_same_inputs, check_square

_BLOCK = 1 << 14  # pairs whose powers are taken at once


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

    def cpu(self) -> GramSketch:
        """The sketch in the CPU's memory."""
        return GramSketch(self.diagonal.cpu(), self.pairs.cpu())

    def cka(self, other: GramSketch) -> float:
        """The similarity of :func:`sketch_cka` without its error, in a twentieth of the time.

        Raises:
            ValueError: The sketches differ in inputs, pairs or device.
        """
        _check_comparable(self, other)
        return self._inner(other) / (self._norm * other._norm) if self._norm and other._norm else float("nan")

    @cached_property
    def _norm(self) -> float:
        return math.sqrt(self._inner(self))

    def _inner(self, other: GramSketch) -> float:
        """The inner product of the Grams, every kept pair standing for as many as were left out."""
        n = len(self.diagonal)
        diagonal, pairs = (
            (one.double() @ two.double()) for one, two in ((self.diagonal, other.diagonal), (self.pairs, other.pairs))
        )
        return float(diagonal + n * (n - 1) / len(self.pairs) * pairs)


@torch.no_grad()
def gram_sketch(gram: Tensor, pairs: int = 1 << 18) -> GramSketch:
    """Keep enough of a Gram matrix for linear CKA with other layers or epochs: 0.5 MB instead of 4 MB at N = 1000.

    Grams of real layers have long tails of eigenvalues: on ResNet-20 at N = 1000, truncated eigendecompositions of this
    size were off in CKA by 0.03 on average and 0.11 at worst. A sample of entries estimates the inner products of Eq. 4
    instead: there it was off by 0.0006 on average and 0.002 at worst (at N = 2000, 0.0009 and 0.003), and its error can
    be stated (:func:`sketch_cka`). Up to N = 724 all pairs are kept. It costs one pass over the Gram.

    Args:
        gram: (N, N) dense inner products of features, in any floating-point dtype; it need not be centred.
        pairs: Pairs of inputs to keep, two bytes each; all of them where there are no more.

    Returns:
        The sketch, on the device of `gram`; all zero for a constant Gram, that of inputs all alike.

    Raises:
        ValueError: `gram` is not a square matrix of finite numbers over at least 2 inputs, or `pairs` is not positive.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> gram_sketch(x @ x.T, pairs=1000).pairs.shape
        torch.Size([1000])
    """
    check_square(gram, "gram")
    n = len(gram)
    if n < 2:
        raise ValueError(f"gram must have at least 2 inputs, got {n}")
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    mean = gram.mean(1, dtype=torch.float64)
    if not bool(mean.isfinite().all()):
        raise ValueError(f"gram holds NaN or infinity, first in row {int((~mean.isfinite()).nonzero()[0])}")
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
        s1: A sketch.
        s2: A sketch of the same inputs with as many pairs, on the device of `s1`.

    Returns:
        The similarity and its standard error; both NaN where either Gram was constant, as in :func:`linear_cka`.

    Raises:
        ValueError: The sketches differ in inputs, pairs or device.

    Example:
        >>> from lightning_ssc.functional import linear_cka
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> value, error = sketch_cka(gram_sketch(x @ x.T), gram_sketch(x[:, :2] @ x[:, :2].T))
        >>> abs(value - linear_cka(x, x[:, :2])) < 1e-5, error
        (True, 0.0)
    """
    values, errors = pairwise_sketch_cka([s1], [s2])
    return float(values), float(errors)


def pairwise_sketch_cka(
    sketches: Sequence[GramSketch], others: Sequence[GramSketch] | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`sketch_cka` of every pair of many sketches, by a few matrix products.

    Args:
        sketches: L sketches of the same inputs.
        others: M such sketches, for instance of another network; `sketches` when None.

    Returns:
        The similarities and their standard errors, (L, M) float64 both.

    Raises:
        ValueError: A list is empty, or the sketches differ in inputs, pairs or device.
    """
    others = sketches if others is None else others
    if len(sketches) == 0 or len(others) == 0:
        raise ValueError("pairwise_sketch_cka needs at least one sketch in each list")
    for sketch in (*sketches, *others):
        _check_comparable(sketches[0], sketch)
    n, kept = len(sketches[0].diagonal), len(sketches[0].pairs)
    pairs = n * (n - 1) // 2
    d1, d2 = (torch.stack([sketch.diagonal for sketch in of]).double() for of in (sketches, others))
    k1, k2 = (torch.stack([sketch.pairs for sketch in of]) for of in (sketches, others))
    power = {(a, b): d1.new_zeros(len(d1), len(d2)) for a, b in ((1, 1), (2, 2), (3, 1), (1, 3))}  # sums of k1^a k2^b
    own1, own2 = ({a: d.new_zeros(len(d)) for a in (2, 4)} for d in (d1, d2))
    for block1, block2 in zip(k1.split(_BLOCK, dim=1), k2.split(_BLOCK, dim=1), strict=True):
        p1, p2 = _powers(block1.double()), _powers(block2.double())
        for (a, b), total in power.items():
            total += p1[a] @ p2[b].T
        for own, powers in ((own1, p1), (own2, p2)):
            own[2] += powers[2].sum(1)
            own[4] += powers[2].square().sum(1)
    weight = 2 * pairs / kept
    norm1, norm2 = (d.square().sum(1) + weight * own[2] for d, own in ((d1, own1), (d2, own2)))
    norm1, norm2 = norm1[:, None], norm2[None, :]
    scale = (norm1 * norm2).sqrt()
    value = (d1 @ d2.T + weight * power[1, 1]) / scale
    # A pair's influence on the value is weight * (k1 k2 / scale - value / 2 * (k1^2 / norm1 + k2^2 / norm2)).
    mean = power[1, 1] / scale - value / 2 * (own1[2][:, None] / norm1 + own2[2] / norm2)
    square = (
        power[2, 2] / scale**2 * (1 + value.square() / 2)
        + value.square() / 4 * (own1[4][:, None] / norm1**2 + own2[4] / norm2**2)
        - value / scale * (power[3, 1] / norm1 + power[1, 3] / norm2)
    )
    variance = weight**2 * (square - mean.square() / kept) * (1 - kept / pairs)
    return value, variance.clamp_min(0).sqrt()


def _check_comparable(first: GramSketch, other: GramSketch) -> None:
    check_same_inputs(first.diagonal, other.diagonal, "the first sketch", "another")
    if len(other.pairs) != len(first.pairs):
        raise ValueError(
            f"the first sketch keeps {len(first.pairs)} pairs but another {len(other.pairs)}: sketch all "
            "Grams with the same `pairs`"
        )


def _powers(x: Tensor) -> dict[int, Tensor]:
    """The first three powers, by products: ``pow`` takes many times as long."""
    square = x * x
    return {1: x, 2: square, 3: square * x}


@lru_cache(maxsize=4)
def _sampled_pairs(n: int, count: int) -> tuple[Tensor, Tensor]:
    """(count,) indices i and j of distinct pairs of n inputs, the same on every machine and in every version of torch.

    Numbers are shuffled by steps that are one-to-one among those of so many bits; the first ones to number a pair are
    taken, all pairs being equally likely.
    """
    total = n * (n - 1) // 2
    bits = total.bit_length()
    number = torch.arange(min(1 << bits, 4 * count), device="cpu")  # more than every other one is below the total
    for factor in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D):
        number = number * factor % (1 << bits)
        number ^= number >> max(1, bits // 2)
    number = number[number < total][:count]
    inputs = torch.arange(n, device="cpu")
    starts = inputs * (inputs - 1) // 2  # input i has i pairs, with those before it
    i = torch.searchsorted(starts, number, right=True) - 1
    return i, number - starts[i]
