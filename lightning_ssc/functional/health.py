"""Whether a layer's activations still tell inputs apart: effective ranks, and features that do not vary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ssc.functional._checks import CHUNK, blocks
from lightning_ssc.functional._sparse import check_square

_INPUTS = 256  # inputs that RankMe is of at most: all eigenvalues of more would take as long as the graph
_FIRST = 8  # rows after which features are looked through again
_ALIKE = 8  # epsilons of a feature's value within which it counts as constant


class Idle(NamedTuple):
    """How many features of a layer do not vary over the inputs.

    Attributes:
        constant: Features with one value for all inputs, dead ones among them.
        dead: Features that are zero for all inputs.
    """

    constant: int
    dead: int


@torch.no_grad()
def participation_ratio(gram: Tensor) -> Tensor:
    r"""Over how many directions variance is spread: :math:`(\operatorname{tr} G)^2 / \|G\|_F^2` of the centred Gram.

    Args:
        gram: (N, N) centred dense Gram of features.

    Returns:
        Scalar float64 tensor from 1 to N - 1, on the device of `gram`; NaN where all inputs are alike.

    Example:
        >>> x = torch.eye(3).repeat(2, 1)[:, :2]
        >>> x = x - x.mean(0)
        >>> round(float(participation_ratio(x @ x.T)), 3)
        1.6
    """
    rows = blocks(len(gram), max(1, CHUNK // len(gram)))  # of which torch makes copies in float64
    norms = torch.stack([torch.linalg.vector_norm(gram[some], dtype=torch.float64) for some in rows])
    return torch.square(gram.diagonal().sum(dtype=torch.float64) / torch.linalg.vector_norm(norms))


@torch.no_grad()
def rankme(gram: Tensor, inputs: int = _INPUTS) -> Tensor:
    r"""RankMe of centred features: the exponential of the entropy of the singular values (Garrido et al. 2023).

    With singular values :math:`\sigma_k`, the roots of the Gram's eigenvalues, and :math:`p_k = \sigma_k / \sum
    \sigma` it is :math:`\exp(-\sum p_k \log p_k)`. It counts small directions for more than
    :func:`participation_ratio`. Of more inputs than `inputs` it is that of a fixed sample of them, centred anew.

    Args:
        gram: (N, N) dense Gram of features.
        inputs: How many inputs to take at most; no more directions than these less one can be told.

    Returns:
        Scalar float64 tensor, at least 1, on the device of `gram`; NaN where all inputs are alike.

    Example:
        >>> x = torch.eye(4, dtype=torch.float64)
        >>> round(float(rankme(x @ x.T)), 6)
        3.0
    """
    check_square(gram, "gram")
    part = gram
    if len(gram) > inputs:
        chosen = sample(len(gram), inputs).to(gram.device)
        part = gram[chosen][:, chosen]
    part = part.double()
    mean = part.mean(1)
    part = part - mean[:, None] - mean + mean.mean()
    values = torch.linalg.eigvalsh(part)
    # Rounding of the Gram is no direction: what it leaves behind would count for a square root each.
    least = len(part) * torch.finfo(gram.dtype).eps * part.diagonal().max()
    values = values.where(values > least, 0).sqrt()
    shares = values / values.sum()
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


@torch.no_grad()
def idle_features(x: Tensor) -> Idle:
    """Features that are the same for all inputs, and among them those that are zero.

    Rows are looked at a few at a time, each time those features that have not varied yet, so that live layers cost next
    to nothing.

    Args:
        x: (N, d) features of N inputs.

    Example:
        >>> idle_features(torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 2.0]]))
        Idle(constant=2, dead=1)
    """
    first = x[0]
    slack = _ALIKE * torch.finfo(x.dtype).eps * first.abs()
    alike, start, stop = torch.arange(x.shape[1], device=x.device), 1, _FIRST
    while start < len(x) and len(alike):
        same = ((x[start:stop].index_select(1, alike) - first[alike]).abs() <= slack[alike]).all(0)
        alike, start, stop = alike[same], stop, 4 * stop
    return Idle(len(alike), int((first[alike] == 0).sum()))


def sample(n: int, count: int) -> Tensor:
    """``(min(n, count),)`` int64 of n inputs, ascending, spread evenly but in step with no pattern; the same always.

    Example:
        >>> sample(10, 4).tolist(), sample(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    place = torch.frac(torch.arange(n, dtype=torch.float64, device="cpu") * 0.6180339887498949)
    return place.argsort()[:count].sort().values
