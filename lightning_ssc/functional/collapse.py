"""How far a layer has gone towards neural collapse, from its centred Gram and the labels, or a classifier's weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import classes_of

_NONE = 8  # epsilons of the largest eigenvalue of the class means' Gram below which one is rounding


class NeuralCollapse(NamedTuple):
    """What :func:`neural_collapse` returns.

    Attributes:
        variability: Scalar float64 tensor, NC1; NaN where class means do not differ, or a class has one input.
        simplex: Scalar float64 tensor, NC2; NaN where class means do not differ.
        nearest_mean: ``(N,)`` int64 label of the class whose mean is nearest to each input, for NC4.
    """

    variability: Tensor
    simplex: Tensor
    nearest_mean: Tensor


@torch.no_grad()
def neural_collapse(gram: Tensor, labels: Tensor) -> NeuralCollapse:
    r"""Neural collapse of a layer (Papyan, Han & Donoho 2020; by layer in Rangamani et al. 2023).

    With class means about their own mean, NC1 is :math:`\tfrac1K \operatorname{tr} \Sigma_W \Sigma_B^\dagger` of the
    covariance within classes :math:`\Sigma_W` and that of the K class means :math:`\Sigma_B`: 0 where all inputs of a
    class are alike. NC2 is the distance :math:`\| M / \|M\|_F - E / \|E\|_F \|_F` of the class means' Gram M from that
    of a simplex equiangular tight frame, :math:`E = I - \tfrac1K \mathbf 1 \mathbf 1^T` (as in Zhu et al. 2021): 0 for
    class means of one length at angles as wide as can be, below 2 always. NC4 is how often the nearest class mean
    disagrees with the network.

    No feature is needed: inner products with class means are means over rows of the Gram. It costs one pass over the
    Gram and an eigendecomposition of K x K.

    Args:
        gram: (N, N) centred dense Gram of features.
        labels: (N,) integers, on the device of `gram`.

    Returns:
        NC1, NC2 and the nearest class means, on the device of `gram`.

    Raises:
        ValueError: `gram` is not square or `labels` is not N integers.

    Example:
        >>> x = (torch.eye(3) - 1 / 3).repeat(4, 1)  # collapsed
        >>> nc1, nc2, nearest = neural_collapse(x @ x.T, torch.arange(12) % 3)
        >>> abs(float(nc1)) < 1e-6, float(nc2) < 1e-6, nearest.tolist() == [0, 1, 2] * 4
        (True, True, True)
    """
    names, classes, sizes = torch.unique(classes_of(labels, gram), return_inverse=True, return_counts=True)
    count = len(names)
    sums = torch.zeros(count, len(gram), dtype=gram.dtype, device=gram.device).index_add_(0, classes, gram)
    crossed = sums.double() / sizes[:, None]  # inner products of class means and inputs
    means = torch.zeros(count, count, dtype=torch.float64, device=gram.device)
    means = means.index_add_(0, classes, crossed.T) / sizes[:, None]  # and of class means
    nearest = (means.diagonal()[:, None] - 2 * crossed).argmin(0)
    if count < 2:
        nan = torch.full((), math.nan, dtype=torch.float64, device=gram.device)
        return NeuralCollapse(nan, nan, names[nearest])
    within = crossed - means[classes].T  # of class means and what an input differs from its own
    frame = torch.eye(count, dtype=torch.float64, device=gram.device) - 1 / count
    means = frame @ means @ frame
    simplex = torch.linalg.vector_norm(means / torch.linalg.vector_norm(means) - frame / math.sqrt(count - 1))
    values, vectors = torch.linalg.eigh(means)
    values, vectors = values[1:], vectors[:, 1:]  # K means about their mean have K - 1 directions
    inverse = torch.where(values > _NONE * torch.finfo(gram.dtype).eps * values[-1], 1 / values, 0)
    along = inverse[:, None] * (vectors.T @ frame @ within)
    # Alone in its class an input is its own mean, which says nothing of how classes vary.
    known = (sizes.min() > 1) & (values[-1] > 0)
    variability = along.square().sum(0).mean().where(known, torch.nan)
    return NeuralCollapse(variability, simplex, names[nearest])


@torch.no_grad()
def self_duality(weight: Tensor, means: Tensor) -> Tensor:
    r"""How far a linear classifier's weights are from the class means of what it is given (NC3).

    :math:`\| W / \|W\|_F - \dot M / \|\dot M\|_F \|_F^2` of the weights :math:`W` and the class means about their own
    mean :math:`\dot M` (Papyan, Han & Donoho 2020): 0 where every class's weights point to its mean, 2 where they have
    nothing to do with it, at most 4.

    Args:
        weight: (K, d) weights, a row a class.
        means: (K, d) means of the classifier's inputs of each class.

    Returns:
        Scalar float64 tensor; NaN where weights are all zero or class means do not differ.

    Raises:
        ValueError: The two differ in shape, or there are no two classes.

    Example:
        >>> means = torch.eye(3) + 5  # about their mean, a simplex
        >>> float(self_duality(2 * (means - means.mean(0)), means)) < 1e-6
        True
    """
    if weight.shape != means.shape or weight.dim() != 2 or len(weight) < 2:
        raise ValueError(
            f"weight and means must be (K, d) with a row for each of at least 2 classes, got {tuple(weight.shape)} and "
            f"{tuple(means.shape)}"
        )
    w, m = weight.double(), means.double()
    m = m - m.mean(0)
    apart: Tensor = w / torch.linalg.vector_norm(w) - m / torch.linalg.vector_norm(m)
    return apart.square().sum()
