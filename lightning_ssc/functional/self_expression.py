"""Sparse self-expression: every sample rebuilt from few of the others, with a certificate of optimality."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_ssc.functional._checks import CHUNK, blocks, check_dense, check_gram, check_samples
from lightning_ssc.functional._sparse import to_coo, to_csr
from lightning_ssc.functional.active_set import active_set, certified
from lightning_ssc.functional.admm import admm
from lightning_ssc.functional.advice import advise
from lightning_ssc.functional.duality import duality_gap

_ROUNDING = 8  # inner products within this many epsilons of the samples' lengths are taken for zero
_ENOUGH = 2  # alpha at which every sample that can have neighbours has some
_BLOCK = 1 << 19  # entries of simple passes over the Gram: what they make of it stays in the cache

__all__ = ["SelfExpression", "duality_gap", "self_expression"]


@dataclass(frozen=True)
class SelfExpression:
    """The weights by which samples rebuild one another, and the proof of their quality.

    Attributes:
        coef: (N, N) ``torch.sparse_csr``, float64 whatever the input unless ``compact`` was asked for, since the
            certificate speaks of these very numbers; row i holds the weights of the other samples in rebuilding sample
            i (column i of the paper's C).
        gap: (N,) float64, relative duality gap of each row, measured on ``coef`` (:func:`duality_gap`).
        objective: (N,) float64, ``||c||_1 + tau/2 ||x_i - X'c||^2`` of each row.
        converged: Whether every gap is within the tolerance asked for.
        n_iter: Rounds of the slowest row (``"active_set"``) or iterations (``"admm"``).
        tau: Weight of the fit that was used.
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
    compact: bool = False,
) -> SelfExpression:
    """Rebuild every sample from few of the others.

    For each sample x_i (a row of X), minimise over the weights c of the others

        ||c||_1 + tau/2 ||x_i - X'c||^2,   c_i = 0,

    Eq. 2 of Saini, Devineni and Papalexakis, "Subspace Clustering Based Analysis of Neural Networks" (2021), after
    Elhamifar and Vidal, "Sparse Subspace Clustering" (TPAMI 2013).

    Args:
        x: (N, d) samples as rows, any real dtype. Their Gram is formed in float64.
        gram: (N, N) Gram matrix of the samples, instead of ``x``: float32, float64 or integer. It is not modified.
        tau: Weight of the fit. A sample has no neighbours while ``tau <= 1 / max_j |<x_i, x_j>|``; larger means more.
        alpha: ``tau`` in units of the value at which the last sample that can have neighbours gets its first (Elhamifar
            and Vidal's alpha); overrides ``tau``.
        normalize: Scale samples to unit length first; zero samples stay zero.
        solver: ``"active_set"``, exact, or ``"admm"``, Algorithm 1 of the paper.
        tol: Relative duality gap to reach in every row; for ``"admm"``, tolerance of the residuals.
        max_iter: Most rounds of a row (1000 by default) or iterations of ADMM (300 by default).
        init: (N, N) earlier ``coef``, sparse or dense, to start from, say of the previous epoch. A diagonal is ignored.
        preset: ``"paper"`` is the published setting: raw samples, ADMM, tau = mu = 10, adaptive mu, 100 iterations. It
            overrides ``tau``, ``alpha``, ``normalize`` and ``solver``.
        compact: Round the weights to float32, and measure their gaps again, where that leaves every gap within ``tol``
            or within a tenth of what it was. (It does not for raw samples or a large ``tau``.)

    Returns:
        Weights with the certificate of each row, on the device of the input (CPU or CUDA).

    Raises:
        ValueError: Bad input; the message names the row and the remedy.
        TypeError: ``x``, ``gram`` or ``init`` is no tensor.

    Warns:
        UserWarning: ``tau`` is so small that the graph is empty, or so large that it is nearly complete
            (``"active_set"`` only; on CPU said before the time is spent).

    Duplicated samples have no unique solution; one of them is returned, certified like any other.

    Example:
        >>> x = torch.tensor([[1.0, 0.1], [2.0, 0.1], [0.0, 1.0], [0.0, 3.0]])
        >>> found = self_expression(x, tau=5.0)
        >>> found.coef.to_dense().nonzero().tolist()
        [[0, 1], [1, 0], [2, 3], [3, 2]]
        >>> found.converged, bool((found.gap <= 1e-5).all())
        (True, True)
    """
    if preset not in (None, "paper"):
        raise ValueError(f"preset must be 'paper' or None, got {preset!r}")
    if preset == "paper":
        tau, alpha, normalize, solver = 10.0, None, False, "admm"
        max_iter = 100 if max_iter is None else max_iter
    if solver not in ("active_set", "admm"):
        raise ValueError(f"solver must be 'active_set' or 'admm', got {solver!r}")
    if not tol >= 0:
        raise ValueError(f"tol must be a relative duality gap, at least 0, got {tol}")
    if max_iter is not None and max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    gram = _gram(x, gram, normalize)
    init = None if init is None else _start(init, gram)
    tau = _tau(gram, tau, alpha)
    if solver == "active_set":
        coef, objective, gap, n_iter = active_set(gram, tau, tol, max_iter, init)
    else:
        coef, n_iter = admm(gram, tau, tol, max_iter, init)
        objective, gap = duality_gap(gram, coef, tau)
    if compact:
        rounded = coef.float()
        measure = duality_gap if gram.is_cuda else certified
        objective_of_rounded, gap_of_rounded = measure(gram, rounded, tau)
        if bool((gap_of_rounded <= (1.1 * gap).clamp_min(tol)).all()):
            coef, objective, gap = rounded, objective_of_rounded, gap_of_rounded
    return SelfExpression(coef, gap, objective, bool((gap <= tol).all()), n_iter, tau)


def _gram(x: Tensor | None, gram: Tensor | None, normalize: bool) -> Tensor:
    """The checked Gram of the problem, float32 or float64."""
    if (x is None) == (gram is None):
        raise ValueError("pass either x, (N, d) samples, or gram=, their (N, N) Gram")
    if x is not None:
        check_dense(x, "x", "samples as rows")
        check_samples(x)
        result = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
        for part in x.split(max(1, CHUNK // len(x)), dim=1):
            result.addmm_(part.double(), part.double().T)
        check_gram(result)
        return _to_unit_length(result, result) if normalize else result
    assert gram is not None
    check_dense(gram, "gram", "x @ x.T")
    gram = gram.detach()
    if not (gram.is_floating_point() or gram.is_complex()):
        gram = gram.double()  # before the check, whose bounds are no integers
    check_gram(gram)
    return _to_unit_length(gram, torch.empty_like(gram)) if normalize else gram


def _to_unit_length(gram: Tensor, out: Tensor) -> Tensor:
    """Write the Gram of the samples scaled to unit length into ``out``; zero samples stay zero."""
    scale = gram.diagonal().double().rsqrt().nan_to_num(posinf=0.0)
    for rows in blocks(len(gram), max(1, _BLOCK // len(gram))):
        out[rows] = gram[rows].double() * scale * scale[rows].unsqueeze(1)
    out.diagonal().copy_(scale > 0)
    return out


def _start(init: Tensor, gram: Tensor) -> Tensor:
    """The checked start as CSR, with nothing on its diagonal: no sample may begin by rebuilding itself."""
    if not isinstance(init, Tensor):
        raise TypeError(f"init must be a torch.Tensor, got {type(init).__name__}: pass the coef of an earlier result")
    if init.shape != gram.shape:
        raise ValueError(f"init must be the coef of the same samples, {tuple(gram.shape)}, got {tuple(init.shape)}")
    if init.device != gram.device:
        raise ValueError(f"init is on {init.device} but the samples are on {gram.device}: move one of them")
    rows, columns, values = to_coo(init)
    if not bool(values.isfinite().all()):
        raise ValueError("init is not finite: pass the coef of an earlier result, or None")
    others = rows != columns
    if bool(others.all()):
        return to_csr(init)
    indices = torch.stack((rows, columns))[:, others]
    return to_csr(torch.sparse_coo_tensor(indices, values[others], init.shape, is_coalesced=True))


def _tau(gram: Tensor, tau: float | None, alpha: float | None) -> float:
    """The weight of the fit, after a warning if it leaves the graph empty."""
    given = tau if alpha is None else alpha
    if given is None:
        raise ValueError("pass tau, the weight of the fit, or alpha, the same in units of the smallest useful tau")
    if not (math.isfinite(given) and given > 0):
        raise ValueError(f"{'tau' if alpha is None else 'alpha'} must be positive and finite, got {given}")
    n = len(gram)
    reach = torch.empty(n, dtype=torch.float64, device=gram.device)  # max_j |<x_i, x_j>|
    for rows in blocks(n, max(1, _BLOCK // n)):
        others = gram[rows].abs()
        others.diagonal(rows.start).zero_()
        reach[rows] = others.amax(1)
    # Rounding is no reach: orthogonal samples never get neighbours, and must not set the unit of alpha.
    length = gram.diagonal().double().sqrt()
    reach[reach <= _ROUNDING * torch.finfo(gram.dtype).eps * length.max() * length] = 0
    least = torch.where(reach > 0, reach, math.inf).min()
    most, least = torch.stack([reach.max(), least]).tolist()  # a GPU is waited for once
    if most == 0:
        if alpha is not None:
            raise ValueError("alpha counts from where samples get neighbours, and here none ever does: pass tau")
        advise("all samples are zero or orthogonal to one another: the graph is empty for every tau", stacklevel=4)
        return float(given)
    last = 1 / least
    if alpha is not None:
        given = alpha * last
    if given < last:
        isolated = int(((reach > 0) & (given * reach <= 1)).sum())
        if given * most <= 1:
            advise(
                f"tau = {given:g} is too small for any edge: the graph is empty. The first edge appears above "
                f"tau = {1 / most:.4g}, the last sample gets its first above {last:.4g}; alpha = {_ENOUGH} would do",
                stacklevel=4,
            )
        elif 2 * isolated > n:
            advise(
                f"tau = {given:g} leaves {isolated} of {n} samples without neighbours, of which the last gets its "
                f"first above tau = {last:.4g}; alpha = {_ENOUGH} would do",
                stacklevel=4,
            )
    return float(given)
