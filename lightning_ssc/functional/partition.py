"""A graph parted by the classes of its inputs: modularity, how sure it is, and what chance would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import classes_of, edges, sum_by
from lightning_ssc.functional.uncertainty import Estimate, jackknife

_ROUNDING = 1e-12  # variance over the sum of squared weights, below which labels do not matter


@dataclass(frozen=True, eq=False)
class Partition:
    """Sums over the edges of a graph, by class, from which all that follows is a formula; see :func:`partition`.

    Attributes:
        names: ``(K,)`` int64 labels of the classes, ascending.
        classes: ``(N,)`` int64 class of every input, by its place in ``names``.
        shared: ``(N, K)`` float64 affinity of every input to each class.
        own: ``(N,)`` float64 affinity of every input to itself; zero in graphs of :func:`affinity`.
        squares: Sum of the squared weights off the diagonal.
        crossed: Sum over the weights off the diagonal, each times the degrees of its two inputs.
    """

    names: Tensor
    classes: Tensor
    shared: Tensor
    own: Tensor
    squares: float
    crossed: float

    @cached_property
    def degree(self) -> Tensor:
        """``(N,)`` affinity of every input."""
        return self.shared.sum(1)

    @cached_property
    def total(self) -> float:
        """Twice the weight of all edges; 0 for a graph without any."""
        return float(self.degree.sum())

    @cached_property
    def sizes(self) -> Tensor:
        """``(K,)`` inputs of every class."""
        return torch.bincount(self.classes, minlength=len(self.names))

    @cached_property
    def by_class(self) -> Tensor:
        r"""``(K,)`` float64, what each class adds to the modularity; NaN for a graph without edges.

        Class c adds :math:`w_c / 2m - (d_c / 2m)^2`: its share of affinity within less what degrees alone would give.
        """
        return (self._within - self._degrees.square() / self.total) / self.total

    @property
    def modularity(self) -> float:
        """As :func:`lightning_ssc.functional.modularity`."""
        return float(self.by_class.sum())

    @property
    def ceiling(self) -> float:
        """The modularity of these classes and degrees if no affinity ran between classes.

        It is 1 - 1/K for K classes of equal degree, and less for others; NaN for a graph without edges.
        """
        return 1 - float((self._degrees / self.total).square().sum()) if self.total else math.nan

    @property
    def assortativity(self) -> float:
        """Modularity over its :attr:`ceiling` (Newman, "Mixing patterns in networks", 2003); NaN where that is 0."""
        return self.modularity / self.ceiling if self.ceiling > 0 else math.nan

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64 class with most of an input's affinity, its SSC label (section 6.2 of Saini et al. 2021).

        That of an isolated input is -1 where no class is called so, else one below the lowest class.
        """
        nobody = self.names.min().clamp(max=0) - 1
        return torch.where(self.degree > 0, self.names[self.shared.argmax(1)], nobody)

    @cached_property
    def _within(self) -> Tensor:
        return sum_by(self.classes, self._to_own, len(self.names))

    @cached_property
    def _to_own(self) -> Tensor:
        return self.shared.gather(1, self.classes[:, None])[:, 0]

    @cached_property
    def _degrees(self) -> Tensor:
        return sum_by(self.classes, self.degree, len(self.names))

    def null(self) -> Estimate:
        r"""Mean and standard deviation of modularity over all ways to deal out the labels to the inputs, exactly.

        Modularity is :math:`\frac{1}{2m} \sum_{ij} B_{ij} \delta(c_i, c_j)`, a join count whose moments under
        permutations are those of Cliff & Ord ("Spatial autocorrelation", 1973): with rows of B that sum to zero, only
        the squares of its entries and its diagonal remain. Linear in the number of edges.

        Returns:
            Mean and standard deviation; NaN for a graph without edges or of fewer than four inputs.
        """
        n, sizes = len(self.classes), self.sizes.double()
        if n < 4 or not self.total:
            return Estimate(math.nan, math.nan)
        diagonal = self.own - self.degree.square() / self.total  # of B
        squares = self.degree.square()
        pairs = (  # squares of the entries of B off the diagonal
            self.squares
            - 2 / self.total * self.crossed
            + (float(squares.sum()) ** 2 - float(squares.square().sum())) / self.total**2
        )
        rest = -float(diagonal.sum())  # the entries of B off the diagonal
        corners = float(diagonal.square().sum()) - pairs  # products of two entries of one row
        disjoint = rest**2 - 2 * pairs - 4 * corners
        two, three = sizes * (sizes - 1), sizes * (sizes - 1) * (sizes - 2)
        same2 = float(two.sum()) / (n * (n - 1))  # how likely two inputs are of one class, and so on
        same3 = float(three.sum()) / (n * (n - 1) * (n - 2))
        both = float(two.sum()) ** 2 - float(two.square().sum()) + float((three * (sizes - 3)).sum())
        same22 = both / (n * (n - 1) * (n - 2) * (n - 3))
        variance = 2 * same2 * pairs + 4 * same3 * corners + same22 * disjoint - (same2 * rest) ** 2
        mean = (same2 * rest - rest) / self.total
        return Estimate(mean, math.sqrt(variance) / self.total if variance > _ROUNDING * self.squares else 0.0)

    def z(self) -> float:
        """How many standard deviations modularity lies above what labels dealt out by chance give; see :meth:`null`.

        NaN where there is no chance in it: for one class, for classes of one input each, and for graphs without edges.
        """
        mean, spread = self.null()
        return (self.modularity - mean) / spread if spread > 0 else math.nan


@torch.no_grad()
def partition(affinity: Tensor, labels: Tensor | Sequence[int]) -> Partition:
    """Part a graph by the classes of its inputs, in one pass over its edges, in float64.

    Args:
        affinity: (N, N) symmetric non-negative weights, sparse or dense.
        labels: (N,) integers; each distinct value, negative ones too, is a class of its own.

    Returns:
        The partition, on the device of the graph.

    Raises:
        ValueError: `affinity` is not square, symmetric, finite and non-negative, or `labels` is not N integers on the
            same device.

    Example:
        >>> two_pairs = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        >>> parted = partition(two_pairs, [0, 0, 1, 1])
        >>> parted.modularity, parted.ceiling, parted.labels.tolist()
        (0.5, 0.5, [0, 0, 1, 1])
        >>> mean, spread = parted.null()
        >>> round(mean, 3), round(spread, 3), round(parted.z(), 3)
        (-0.167, 0.471, 1.414)
    """
    names, classes = torch.unique(classes_of(labels, affinity), return_inverse=True)
    rows, columns, weights = edges(affinity)
    n, count = len(classes), len(names)
    shared = sum_by(rows * count + classes[columns], weights, n * count).view(n, count)
    degree, off = shared.sum(1), (rows != columns).double()
    squares, crossed = torch.stack(
        [(off * weights.square()).sum(), (off * weights * degree[rows] * degree[columns]).sum()]
    ).tolist()
    return Partition(names, classes, shared, sum_by(rows, (1 - off) * weights, n), squares, crossed)


@torch.no_grad()
def modularity_error(coef: Tensor, labels: Tensor) -> float:
    r"""Standard error of a self-expression's modularity over the choice of inputs.

    An input is there twice: it is rebuilt (its row of C), and it rebuilds others (its column). As of a statistic of two
    samples (Arvesen, "Jackknifing U-statistics", 1969) the variances of both are added, each by leaving out one input
    at a time among those of its class. Where an input no longer rebuilds others, what rebuilds it stands in for it,
    :math:`|C_{jk}| + |C_{ji}| |C_{ik}|`: taken away without that, it would seem to leave a gap that the graph, solved
    anew without it, would not have. From sums by class it takes as many steps as the graph has edges.

    Args:
        coef: (N, N) sparse CSR on the CPU, the self-expression C, whose affinity is :math:`|C| + |C|^T`.
        labels: (N,) integers; samples of negative ones have no class and are left out.

    Returns:
        The standard error; NaN where no class has two inputs, or where without one input no edges are left.

    Example:
        >>> coef = torch.tensor([[0.0, 2, 1, 0], [1, 0, 0, 3], [0, 1, 0, 1], [1, 0, 2, 0]]).to_sparse_csr()
        >>> round(modularity_error(coef, torch.tensor([0, 0, 1, 1])), 3)
        0.118
    """
    from lightning_ssc.functional._passes import without_roles  # importing numba takes a second

    known = labels >= 0
    names, places = torch.unique(labels[known], return_inverse=True)
    classes = torch.full_like(labels, -1).masked_scatter(known, places)
    rows, columns, weights = coef.crow_indices().numpy(), coef.col_indices().numpy(), coef.values().double().numpy()
    roles = without_roles(rows, columns, weights, classes.numpy(), len(names))
    return math.hypot(*(jackknife(torch.from_numpy(role)[known], places) for role in roles))
