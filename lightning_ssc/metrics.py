"""The project's measures as torchmetrics, to update and log in ``validation_step``.

Both keep the features of all inputs until ``compute``, because neither is an average over batches: memory grows with
inputs times features, so pool feature maps first where they are large. Features go from the processes of a distributed
run to all of them on ``compute``, together with their labels or counterparts, in one order; a process may have none. A
``DistributedSampler`` that repeats inputs to even out the processes makes those count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_ssc.functional import affinity, linear_cka, modularity, self_expression
from lightning_ssc.functional.graph import labelled

_DTYPES = (  # in which states come, named by their place to processes that have none
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)


class _OfAllInputs(Metric):
    """A metric whose states are lists of batches, each (B, features), of all inputs seen."""

    def _append(self, **batches: Tensor) -> None:
        """Add a batch to each of the states named, or raise ValueError and add none."""
        length, rows = len(next(iter(batches.values()))), {}
        for name, batch in batches.items():
            if len(batch) != length:
                raise ValueError(f"{name} has {len(batch)} inputs, but {length} were given beside it")
            rows[name] = batch.detach().flatten(1) if batch.dim() > 1 else batch.detach()[:, None]
            state, width = getattr(self, name), rows[name].shape[1]
            if state and state[-1].shape[1] != width:
                raise ValueError(f"{name} has {width} features in this batch, but {state[-1].shape[1]} in the last one")
        for name, batch in rows.items():
            getattr(self, name).append(batch)

    def _rows(self, name: str) -> Tensor:
        """All batches of a state, of this process or, once synchronised, of all."""
        state = getattr(self, name)
        if len(state) == 0:
            raise ValueError(f"{type(self).__name__} has seen no inputs: call update() before compute()")
        return dim_zero_cat(state)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None
    ) -> None:
        # A process without inputs must offer a table of the others' width and type, or gathering fails for all.
        for name in self._reductions:
            state = getattr(self, name)
            mine = [state[0].shape[1], _DTYPES.index(state[0].dtype)] if state else [-1, -1]
            header = torch.tensor(mine, device=self.device)
            every = torch.stack(dist_sync_fn(header, group=process_group or self.process_group))
            width, dtype = every.amax(0).tolist()
            if width >= 0 and not state:
                setattr(self, name, [torch.empty(0, width, dtype=_DTYPES[dtype], device=self.device)])
        super()._sync_dist(dist_sync_fn, process_group)


class LinearCKA(_OfAllInputs):
    """Linear CKA between two sets of features over all inputs seen (:func:`lightning_ssc.functional.linear_cka`).

    Features are kept as they are, rather than streamed into covariances: those would take (d1 + d2)² numbers, more than
    the features themselves wherever these outnumber the inputs, as those of convolutions do. The value is that of one
    call over the whole set, in whatever batches it came; an average over batches would depend on their size.

    Call ``update`` rather than the metric itself, which would also compute the value of each single batch.

    Args:
        unbiased: The unbiased estimator of HSIC instead of the biased one.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = LinearCKA()
        >>> x = torch.arange(24.0).view(12, 2) % 7
        >>> for batch in x.split(4):
        ...     metric.update(batch, 10 - 2 * batch)
        >>> metric.compute()
        tensor(1.)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_upper_bound = 1.0

    x1: list[Tensor]
    x2: list[Tensor]

    def __init__(self, *, unbiased: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unbiased = unbiased
        self.add_state("x1", default=[], dist_reduce_fx="cat")
        self.add_state("x2", default=[], dist_reduce_fx="cat")

    def update(self, x1: Tensor, x2: Tensor) -> None:
        """Add a batch.

        Args:
            x1: (B, ...) features of B inputs; dimensions after the first are flattened.
            x2: (B, ...) features of the same inputs, in the same order.

        Raises:
            ValueError: the batches differ in length, or a batch in its number of features from those before.
        """
        self._append(x1=x1, x2=x2)

    def compute(self) -> Tensor:
        """Linear CKA over all inputs, a scalar; NaN as in :func:`lightning_ssc.functional.linear_cka`."""
        value = linear_cka(self._rows("x1"), self._rows("x2"), unbiased=self.unbiased)
        return torch.tensor(value, device=self.device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot a value (``compute()`` when None) or a sequence of them, as torchmetrics do: figure and axes."""
        return self._plot(val, ax)


class AffinityModularity(_OfAllInputs):
    """Modularity of the sparse self-expression graph of all inputs seen, by their labels (Eq. 5).

    One graph is solved over everything that was added since ``reset``: seconds for a thousand inputs, a minute for ten
    thousand. Add as many inputs as the graph should have.

    Call ``update`` rather than the metric itself, which would also solve the graph of each single batch.

    Args:
        tau: Weight of the fit in :func:`lightning_ssc.functional.self_expression`.
        normalize: Scale inputs to unit length first.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = AffinityModularity()
        >>> line, plane = torch.rand(20, 1) @ torch.rand(1, 6), torch.rand(20, 2) @ torch.rand(2, 6)
        >>> metric.update(torch.block_diag(line, plane), torch.tensor([0] * 20 + [1] * 20))
        >>> bool(0.1 < metric.compute() <= 0.5)
        True
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_upper_bound = 1.0

    x: list[Tensor]
    labels: list[Tensor]

    def __init__(self, *, tau: float = 10.0, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tau = tau
        self.normalize = normalize
        self.add_state("x", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            x: (B, ...) features of B inputs; dimensions after the first are flattened.
            labels: (B,) integers; inputs with negative ones are in the graph and left out of its modularity.

        Raises:
            ValueError: the batches differ in length, `labels` are no vector of integers, or the number of features has
                changed.
        """
        if labels.dim() != 1:
            raise ValueError(f"labels must have shape (B,), got {tuple(labels.shape)}: pass class indices")
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels must be integers, got {labels.dtype}: pass class indices")
        self._append(x=x, labels=labels)

    def compute(self) -> Tensor:
        """Modularity of the graph over all inputs, a scalar; NaN for a graph without edges."""
        x = self._rows("x")
        graph = affinity(self_expression(x, tau=self.tau, normalize=self.normalize).coef)
        return torch.tensor(modularity(*labelled(graph, self._rows("labels")[:, 0])), device=self.device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot a value (``compute()`` when None) or a sequence of them, as torchmetrics do: figure and axes."""
        return self._plot(val, ax)
