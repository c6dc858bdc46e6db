"""Sparse self-expression: every sample rebuilt from few of the others, with a certificate.

For each sample x_i (a row of X) the weights c of the others minimise

    ||c||_1 + tau/2 ||x_i - X'c||^2,   c_i = 0

(the problem of Eq. 2 of Saini, Devineni and Papalexakis, "Subspace Clustering Based Analysis of Neural Networks",
2021; the noisy LASSO program of Elhamifar and Vidal, "Sparse Subspace Clustering", TPAMI 2013). It needs
the Gram matrix X X' only.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_ssc.functional._checks import check_gram, check_samples

_CHUNK = 1 << 24  # float64 entries (128 MB) held at once beside the Gram


@dataclass(frozen=True)
class SelfExpression:
    """The weights by which samples rebuild one another, and the proof of their quality.

    Attributes:
        coef: (N, N) ``torch.sparse_csr``, float64; row i holds the weights of the other samples in rebuilding
            sample i (column i of the paper's C). Explicit entries are nonzero; the diagonal is empty.
        gap: (N,) float64, relative duality gap of each row, measured on ``coef`` in float64: the objective
            is at most ``gap`` times itself above the optimum.
        objective: (N,) float64, ``||c||_1 + tau/2 ||x_i - X'c||^2`` of each row.
        converged: whether every gap is within the tolerance asked for.
        n_iter: iterations of the solver (of the slowest row, where rows are solved one by one).
        tau: weight of the fit that was used.
    """

    coef: Tensor
    gap: Tensor
    objective: Tensor
    converged: bool
    n_iter: int
    tau: float


@torch.no_grad()
def self_expression(
    x: Tensor | None = None,
    *,
    gram: Tensor | None = None,
    tau: float | None = 10.0,
    alpha: float | None = None,
    normalize: bool = True,
    solver: Literal["active_set", "admm"] = "active_set",
    tol: float = 1e-5,
    max_iter: int | None = None,
    init: Tensor | None = None,
    preset: Literal["paper"] | None = None,
) -> SelfExpression:
    """Rebuild every sample from few of the others (Eq. 2 of the paper), with a certificate of optimality."""
    g = _prepare(x, gram, normalize and preset is None)
    tau_used = _tau(g, 10.0 if preset else tau, None if preset else alpha)
    from lightning_ssc.functional.active_set import active_set

    coef, n_iter = active_set(g, tau_used, tol=tol, max_iter=max_iter or 100)
    objective, gap = duality_gap(g, coef, tau_used)
    return SelfExpression(coef, gap, objective, bool((gap <= tol).all()), n_iter, tau_used)


def _prepare(x: Tensor | None, gram: Tensor | None, normalize: bool) -> Tensor:
    """The checked floating-point Gram the solvers work on."""
    if (x is None) == (gram is None):
        raise ValueError("pass either x (N, d) or gram=(N, N), not both and not neither")
    if x is not None:
        check_samples(x)
        x = x.to(_working_dtype(x))
        gram = x @ x.T
    assert gram is not None
    check_gram(gram)
    gram = gram.to(_working_dtype(gram))
    if normalize:
        scale = gram.diagonal().rsqrt().nan_to_num(0.0, 0.0, 0.0)
        gram = gram * torch.outer(scale, scale)
    return gram


def _working_dtype(t: Tensor) -> torch.dtype:
    if t.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return t.dtype if t.is_floating_point() else torch.float64


def _tau(gram: Tensor, tau: float | None, alpha: float | None) -> float:
    if alpha is None and tau is None:
        raise ValueError("pass tau or alpha")
    off = gram.abs()
    off.fill_diagonal_(0)
    reach = off.amax(1)
    if alpha is not None:
        return float(alpha / reach[reach > 0].min())
    assert tau is not None
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    if tau * float(reach.max()) <= 1:
        warnings.warn(f"tau = {tau:g} leaves the graph empty: the first edge appears above {1 / float(reach.max()):g}", stacklevel=3)
    return float(tau)


@torch.no_grad()
def duality_gap(gram: Tensor, coef: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Objective and relative duality gap of every row of any solution, in float64.

    Args:
        gram: (N, N) Gram matrix of the samples, as the solver saw it (scaled to unit diagonal when normalising).
        coef: (N, N) weights, dense or sparse, row i rebuilding sample i; its diagonal must be zero.
        tau: weight of the fit.

    Returns:
        ``(objective, gap)``, both (N,) float64.
    """
    dense = coef.to_dense() if coef.layout != torch.strided else coef
    n = gram.shape[0]
    objective = torch.empty(n, dtype=torch.float64, device=gram.device)
    gap = torch.empty_like(objective)
    g64 = gram.double()
    for start in range(0, n, step := max(1, _CHUNK // n)):
        rows = slice(start, start + step)
        c, g = dense[rows].double(), g64[rows]
        corr = g - c @ g64
        index = torch.arange(len(c), device=c.device)
        fit = g[index, start + index] - (g * c).sum(1)  # <x_i, residual>
        corr[index, start + index] = 0
        r2 = (fit - (c * corr).sum(1)).clamp_min(0)
        s = (1 / (tau * corr.abs().amax(1))).clamp_max(1)
        p = c.abs().sum(1) + tau / 2 * r2
        diff = c.abs().sum(1) - s * tau * (c * corr).sum(1) + tau / 2 * (1 - s) ** 2 * r2
        objective[rows], gap[rows] = p, torch.where(p > 0, diff / p, 0.0)
    return objective, gap
