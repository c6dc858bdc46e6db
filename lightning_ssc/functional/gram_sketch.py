"""Gram matrices made small enough to keep for every layer and epoch, for linear CKA between any two of them later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from lightning_ssc.functional._checks import CHUNK, blocks
from lightning_ssc.functional._sparse import check_same_inputs, check_square
from lightning_ssc.functional.uncertainty import Estimate, jackknife

_BLOCK = 1 << 14  # pairs of many sketches that are in float64 at once
_CACHED = 1 << 16  # pairs of two that are widened at once: what they take stays in the processor's cache


@dataclass(frozen=True)
class GramSketch:
    """A fixed sample of the entries of a centred Gram matrix HGH: all that later linear CKA of its layer needs.

    Entries are relative to the largest diagonal entry, for CKA does not depend on scale.

    Attributes:
        diagonal: (N,) float32, the whole diagonal.
        pairs: (P,) float16, the entries of the same P pairs of inputs in every sketch of N inputs and P pairs.
        known_norm: :attr:`norm`, where it was computed before.
    """

    diagonal: Tensor
    pairs: Tensor
    known_norm: float | None = None

    def cpu(self) -> GramSketch:
        """The sketch in the CPU's memory."""
        return GramSketch(self.diagonal.cpu(), self.pairs.cpu(), self.known_norm)

    @cached_property
    def norm(self) -> float:
        """The estimate of ‖HGH‖_F, kept because a sketch is compared with many."""
        return math.sqrt(_inner(self, self)) if self.known_norm is None else self.known_norm

    @cached_property
    def dependence(self) -> float:
        """The unbiased estimate of the Gram's dependence on itself, up to the factor of :func:`debiased_sketch_cka`."""
        return _unbiased(self, self, self.norm**2)

    @cached_property
    def squares_without(self) -> Tensor:
        """``(N,)`` float64, :attr:`norm` squared without each input."""
        return _without_each(self, self)[1]

    @property
    def weight(self) -> float:
        """How many entries of the Gram a kept pair stands for, two where all pairs are kept."""
        n = len(self.diagonal)
        return n * (n - 1) / len(self.pairs)


@torch.no_grad()
def gram_sketch(gram: Tensor, pairs: int = 1 << 18) -> GramSketch:
    """Keep enough of a Gram matrix for linear CKA with other layers or epochs: 0.5 MB instead of 4 MB at N = 1000.

    Grams of real layers have long tails of eigenvalues: on ResNet-20 at N = 1000, truncated eigendecompositions of this
    size were off in CKA by 0.03 on average and 0.11 at worst. A sample of entries estimates the inner products of Eq. 4
    instead: there it was off by 0.0006 on average and 0.002 at worst (at N = 2000, 0.0009 and 0.003), and its error can
    be stated (:func:`sketch_cka_error`). Up to N = 724 all pairs are kept. It costs one pass over the Gram.

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
    # Some rows at a time: torch makes a copy in float64 of what it takes the mean of.
    mean = torch.cat([gram[rows].mean(1, dtype=torch.float64) for rows in blocks(n, max(1, CHUNK // n))])
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


def sketch_cka(s1: GramSketch, s2: GramSketch) -> float:
    """Linear CKA (biased) of the features behind two sketches of the same inputs.

    Args:
        s1: A sketch.
        s2: A sketch of the same inputs with as many pairs, on the device of `s1`.

    Returns:
        The similarity, off by what :func:`sketch_cka_error` says or, where all pairs were kept, by about 1e-6, the
        rounding to half precision; NaN where either Gram was constant, as in :func:`linear_cka`.

    Raises:
        ValueError: The sketches differ in inputs, pairs or device.

    Example:
        >>> from lightning_ssc.functional import linear_cka
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> abs(sketch_cka(gram_sketch(x @ x.T), gram_sketch(x[:, :2] @ x[:, :2].T)) - linear_cka(x, x[:, :2])) < 1e-5
        True
    """
    _check_comparable(s1, s2)
    return _inner(s1, s2) / (s1.norm * s2.norm) if s1.norm and s2.norm else float("nan")


def debiased_sketch_cka(s1: GramSketch, s2: GramSketch) -> float:
    r"""Linear CKA of the features behind two sketches by the unbiased estimator of HSIC (Song et al. 2012).

    The biased estimator nears 1 where features outnumber inputs, whatever the features are (Murphy et al. 2024); this
    one, "debiased" CKA, does not: features that have nothing to do with one another are near 0, on either side. Of
    centred Grams it needs what sketches keep: :math:`\langle K, L \rangle` off the diagonal and the diagonals.

    Args:
        s1: A sketch.
        s2: A sketch of the same inputs with as many pairs, on the device of `s1`.

    Returns:
        The similarity, as ``linear_cka(x1, x2, unbiased=True)`` up to the sample of pairs, see :func:`sketch_cka`; NaN
        where the estimate of a Gram's dependence on itself is not positive, and for fewer than four inputs.

    Raises:
        ValueError: The sketches differ in inputs, pairs or device.

    Example:
        >>> from lightning_ssc.functional import linear_cka
        >>> x, y = torch.randn(2, 40, 200, generator=torch.Generator().manual_seed(0))
        >>> one, other = (gram_sketch(of @ of.T) for of in (x, y))
        >>> round(sketch_cka(one, other), 1), abs(debiased_sketch_cka(one, other)) < 0.05
        (0.8, True)
    """
    _check_comparable(s1, s2)
    if not min(s1.dependence, s2.dependence) > 0:
        return float("nan")
    return _unbiased(s1, s2, _inner(s1, s2)) / math.sqrt(s1.dependence * s2.dependence)


def sketch_cka_estimate(s1: GramSketch, s2: GramSketch) -> Estimate:
    r"""Linear CKA of the features behind two sketches with its standard error over the choice of inputs.

    The error is that of :func:`~lightning_ssc.functional.uncertainty.jackknife`. Centring anew without input i takes
    off what row sums, which were zero, have lost: :math:`\langle K, L \rangle_{-i} = \langle K, L \rangle - 2 p_i + d_i
    - \frac{2}{N-1} (p_i - d_i) + \frac{d_i}{(N-1)^2}` with :math:`p_i = \langle K_i, L_i \rangle` and :math:`d_i =
    K_{ii} L_{ii}`. Where a sample of pairs was kept the error holds what that adds, too.

    Args:
        s1: A sketch.
        s2: A sketch of the same inputs with as many pairs, on the device of `s1`.

    Returns:
        Similarity, as of :func:`sketch_cka`, and standard error; NaN where either Gram was constant.

    Raises:
        ValueError: The sketches differ in inputs, pairs or device.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> one, other = (gram_sketch(x[:, :d] @ x[:, :d].T) for d in (2, 4))
        >>> print("{:.3f} +- {:.3f}".format(*sketch_cka_estimate(one, other)))
        0.966 +- 0.006
    """
    _check_comparable(s1, s2)
    if not s1.norm or not s2.norm:
        return Estimate(float("nan"), float("nan"))
    inner, without = _without_each(s1, s2)
    return Estimate(inner / (s1.norm * s2.norm), jackknife(without / (s1.squares_without * s2.squares_without).sqrt()))


def pairwise_sketch_cka(sketches: Sequence[GramSketch], others: Sequence[GramSketch] | None = None) -> Tensor:
    """:func:`sketch_cka` of every pair of many sketches, by a matrix product for every block of their entries.

    Args:
        sketches: L sketches of the same inputs.
        others: M such sketches, for instance of another network; `sketches` when None.

    Returns:
        ``(L, M)`` float64 similarities.

    Raises:
        ValueError: A list is empty, or the sketches differ in inputs, pairs or device.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> pairwise_sketch_cka([gram_sketch(x[:, :d] @ x[:, :d].T) for d in (2, 3, 4)]).shape
        torch.Size([3, 3])
    """
    others = sketches if others is None else others
    if len(sketches) == 0 or len(others) == 0:
        raise ValueError("pairwise_sketch_cka needs at least one sketch in each list")
    for sketch in (*sketches, *others):
        _check_comparable(sketches[0], sketch)
    d1, d2 = (torch.stack([sketch.diagonal for sketch in of]).double() for of in (sketches, others))
    k1, k2 = (torch.stack([sketch.pairs for sketch in of]) for of in (sketches, others))
    inner = d1 @ d2.T
    for block1, block2 in zip(k1.split(_BLOCK, dim=1), k2.split(_BLOCK, dim=1), strict=True):
        # By way of float32: on a CPU torch takes it in a third of the time.
        inner += sketches[0].weight * (block1.float().double() @ block2.float().double().T)
    rows, columns = (inner.new_tensor([sketch.norm for sketch in of]) for of in (sketches, others))
    return inner / (rows[:, None] * columns)


def sketch_cka_error(s1: GramSketch, s2: GramSketch) -> float:
    """The standard error of :func:`sketch_cka` that comes from keeping a sample of the pairs.

    By the delta method for a ratio of sample means with the correction for a finite population: 0 where all
    pairs were kept.

    Args:
        s1: A sketch.
        s2: A sketch of the same inputs with as many pairs, on the device of `s1`.

    Returns:
        The standard error, at least 0; NaN where the similarity is.

    Raises:
        ValueError: The sketches differ in inputs, pairs or device.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(4)
        >>> for pairs in (300, 1225):  # of 1225
        ...     sketches = [gram_sketch(x[:, :d] @ x[:, :d].T, pairs) for d in (2, 4)]
        ...     print(f"{sketch_cka(*sketches):.3f} +- {sketch_cka_error(*sketches):.3f}")
        0.963 +- 0.004
        0.966 +- 0.000
    """
    value, kept, n = sketch_cka(s1, s2), len(s1.pairs), len(s1.diagonal)
    one, other = (sketch.pairs.double() / sketch.norm for sketch in (s1, s2))
    influence = s1.weight * (one * other - value / 2 * (one.square() + other.square()))
    left_out = 1 - kept / (n * (n - 1) / 2)
    return math.sqrt(left_out * kept * float(influence.var(correction=0)))


def _inner(s1: GramSketch, s2: GramSketch) -> float:
    """The inner product of two Grams; a product of float16 numbers is exact in float32."""
    blocks = zip(s1.pairs.split(_CACHED), s2.pairs.split(_CACHED), strict=True)
    pairs = torch.stack([(one.float() * other.float()).double().sum() for one, other in blocks]).sum()
    return float(s1.diagonal.double() @ s2.diagonal.double() + s1.weight * pairs)


def _unbiased(s1: GramSketch, s2: GramSketch, inner: float) -> float:
    """The unbiased estimate of HSIC times N (N - 3), from Grams whose rows sum to zero and their inner product."""
    n, d1, d2 = len(s1.diagonal), s1.diagonal.double(), s2.diagonal.double()
    if n < 4:
        return float("nan")
    both = float(d1 @ d2)
    return inner - both + float(d1.sum()) * float(d2.sum()) / ((n - 1) * (n - 2)) - 2 / (n - 2) * both


def _without_each(s1: GramSketch, s2: GramSketch) -> tuple[float, Tensor]:
    """The inner product of two centred Grams, and ``(N,)`` float64 that without each input, centred anew."""
    n = len(s1.diagonal)
    own = s1.diagonal.double() * s2.diagonal.double()
    at = own + s1.weight / 2 * _at_each(s1.pairs, s2.pairs, n)
    inner = at.sum()
    return float(inner), inner - 2 * at + own - 2 / (n - 1) * (at - own) + own / (n - 1) ** 2


def _at_each(pairs1: Tensor, pairs2: Tensor, n: int) -> Tensor:
    """``(n,)`` float64 sums over the sampled pairs of each input of the products of their entries."""
    from lightning_ssc.functional._passes import pair_products

    ends, entries = _sampled_pairs(n, len(pairs1)), (of.float().cpu().numpy() for of in (pairs1, pairs2))
    return torch.from_numpy(pair_products(n, *(end.numpy() for end in ends), *entries)).to(pairs1.device)


def _check_comparable(first: GramSketch, other: GramSketch) -> None:
    check_same_inputs(first.diagonal, other.diagonal, "the first sketch", "another")
    if len(other.pairs) != len(first.pairs):
        raise ValueError(
            f"the first sketch keeps {len(first.pairs)} pairs but another {len(other.pairs)}: sketch all "
            "Grams with the same `pairs`"
        )


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
