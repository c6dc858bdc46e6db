"""How sure a number over inputs is: standard errors by leaving one input out, and of shares."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import sum_by

WIDTH = 1.96
"""Standard errors to either side of a number that make an interval of 95 %."""


class Estimate(NamedTuple):
    """A number and its standard error.

    Attributes:
        value: The number.
        spread: Its standard error, in the same unit; an interval of 95 % is :data:`WIDTH` of it to either side. NaN
            where it is not known.

    Example:
        >>> Estimate(0.5, 0.01).spread
        0.01
    """

    value: float
    spread: float


@torch.no_grad()
def jackknife(without: Tensor, groups: Tensor | None = None, pairs: float = 0.0) -> float:
    r"""Standard error of a statistic from its values without one input each (Tukey's jackknife).

    .. math:: \hat\sigma^2 = \sum_c \frac{n_c - 1}{n_c} \sum_{i \in c} \big(T_{-i} - \bar T_c\big)^2

    Of statistics of graphs it errs on the safe side as the inputs grow (Lin, Lunde & Sarkar, "On the theoretical
    properties of the network jackknife", ICML 2020): what a pair of inputs adds by itself is counted with both of them
    (Efron & Stein, "The jackknife estimate of variance", 1981).

    Args:
        without: ``(N,)`` float64, the statistic without each input.
        groups: ``(N,)`` integer group of each input, where inputs were drawn from every group by itself: what groups
            differ by is then none of chance. Inputs alone in their group say nothing and are left out.
        pairs: Sum of squares of what pairs of inputs add by themselves, where it is known: it is taken off once. As it
            is in the variance twice, no more than half of that.

    Returns:
        The standard error; NaN where no group has two inputs, or a value is NaN.

    Example:
        >>> x = torch.tensor([1.0, 2, 4, 9], dtype=torch.float64)
        >>> error = jackknife((x.sum() - x) / 3)  # of the mean
        >>> round(error, 6) == round(float(x.std() / 2), 6)
        True
    """
    if groups is None:  # one
        n = len(without)
        variance = (n - 1) / n * float((without - without.mean()).square().sum()) if n > 1 else math.nan
    else:
        _, groups, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
        if not bool((sizes > 1).any()):
            return math.nan
        deviations = without - (sum_by(groups, without, len(sizes)) / sizes)[groups]
        weights = ((sizes - 1) / sizes.double())[groups]
        variance = float((weights * deviations.square()).sum())
    return math.sqrt(variance - min(pairs, variance / 2))


def share(hits: float, count: int) -> Estimate:
    """A share of inputs, with the standard error of a binomial share.

    Args:
        hits: The share, from 0 to 1.
        count: Of how many inputs.

    Example:
        >>> share(0.5, 100)
        Estimate(value=0.5, spread=0.05)
    """
    return Estimate(hits, math.sqrt(hits * (1 - hits) / count))
