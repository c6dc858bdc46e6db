"""The project's measures as torchmetrics, to be logged from ``validation_step``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_ssc.functional import affinity, linear_cka, modularity, self_expression


class LinearCKA(Metric):
    """Linear CKA of two sets of features over all inputs of an epoch."""

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
        """Add a batch of features."""
        if len(x1) != len(x2):
            raise ValueError(f"x1 has {len(x1)} inputs but x2 has {len(x2)}")
        self.x1.append(x1.detach().flatten(1))
        self.x2.append(x2.detach().flatten(1))

    def compute(self) -> Tensor:
        """Linear CKA over all inputs."""
        value = linear_cka(dim_zero_cat(self.x1), dim_zero_cat(self.x2), unbiased=self.unbiased)
        return torch.tensor(value, device=self.device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value or several."""
        return self._plot(val, ax)


class AffinityModularity(Metric):
    """Modularity of the affinity graph."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    x: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        tau: float = 10.0,
        *,
        normalize: bool = True,
        solver: Literal["active_set", "admm"] = "active_set",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tau, self.normalize, self.solver = tau, normalize, solver
        self.add_state("x", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Add a batch of features and their labels."""
        if len(x) != len(labels):
            raise ValueError(f"x has {len(x)} inputs but labels has {len(labels)}")
        self.x.append(x.detach().flatten(1))
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """Modularity over all inputs."""
        coef = self_expression(dim_zero_cat(self.x), tau=self.tau, normalize=self.normalize, solver=self.solver).coef
        return torch.tensor(modularity(affinity(coef), dim_zero_cat(self.labels)), device=self.device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value or several."""
        return self._plot(val, ax)
