"""Quantities as they are defined, dense and in float64: what the package's numbers are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def certificates(gram: Tensor, coef: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Objective and relative duality gap of every row of the very weights that are given."""
    c, gram = coef.to_dense().double(), gram.double()
    along = gram - c @ gram  # <residual of i, x_j>
    square = gram.diagonal() - 2 * (c * gram).sum(1) + ((c @ gram) * c).sum(1)
    steepest = along.clone().fill_diagonal_(0).abs().amax(1)
    scale = (1 / (tau * steepest)).clamp_max(1)  # makes the residual feasible for the dual
    primal = c.abs().sum(1) + tau / 2 * square
    dual = scale * tau * along.diagonal() - scale**2 * tau / 2 * square
    return primal, (primal - dual) / primal


def cka(a: Tensor, b: Tensor) -> float:
    """Equations 3 and 4 of the paper, with centring matrices."""
    a, b = a.to_dense().double(), b.to_dense().double()
    n = len(a)
    h = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(x: Tensor, y: Tensor) -> Tensor:
        return torch.trace(h @ x @ h @ h @ y @ h) / (n - 1) ** 2

    return (hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()).item()
