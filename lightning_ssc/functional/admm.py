"""Algorithm 1 of the paper: matrix LASSO by the alternating direction method of multipliers.

As printed (Saini, Devineni and Papalexakis, 2021, Algorithm 1; Boyd et al., "Distributed Optimization and Statistical
Learning via ADMM", 2011), with three points that the print leaves open. The factor of the Z step belongs to the current
mu, here through one eigendecomposition of the Gram. The diagonal is cleared in C only: clearing it in Z as well would
solve another problem. And the iterations stop on Boyd's primal and dual residuals (section 3.3.1), which do not depend
on the scale of the data.

Kept for comparison with published figures: it closes gaps slowly, so ``active_set`` is the default.
"""

import torch
from torch import Tensor

from lightning_ssc.functional._sparse import to_csr


def admm(
    gram: Tensor,
    tau: float,
    tol: float,
    max_iter: int | None = None,
    init: Tensor | None = None,
    *,
    mu: float | None = None,
    adaptive: bool = True,
) -> tuple[Tensor, int]:
    """Run Algorithm 1 on a checked Gram, in float64.

    Args:
        gram: (N, N) Gram matrix.
        tau: Weight of the fit.
        tol: Absolute and relative tolerance of both residuals; 0 runs all iterations.
        max_iter: Iterations, 300 by default.
        init: (N, N) C to start from, row i rebuilding sample i; zeros by default.
        mu: Penalty to start from, ``tau`` by default as in the paper.
        adaptive: Double or halve mu when one residual exceeds ten times the other (Boyd et al., Eq. 3.13).

    Returns:
        The final C as (N, N) CSR float64, row i rebuilding sample i, and the number of iterations.
    """
    n = len(gram)
    mu = tau if mu is None else mu
    scaled = tau * gram.double()
    eigenvalues, vectors = torch.linalg.eigh(scaled)
    eigenvalues.clamp_min_(0)  # a Gram has none below but for rounding
    c = torch.zeros_like(scaled) if init is None else init.to_dense().double().T.clone()
    dual = torch.zeros_like(scaled)  # Lambda_2 of the paper
    inverse, inverse_mu = scaled, 0.0
    done, last = 0, 300 if max_iter is None else max_iter
    while done < last:
        done += 1
        if mu != inverse_mu:
            inverse, inverse_mu = vectors / (eigenvalues + mu) @ vectors.T, mu
        z = inverse @ (scaled + mu * c - dual)
        before, c = c, torch.nn.functional.softshrink(z + dual / mu, 1 / mu)
        c.fill_diagonal_(0)
        dual.add_(z - c, alpha=mu)
        norms = torch.stack([torch.linalg.norm(of) for of in (z - c, c - before, z, c, dual)])
        primal, change, *sizes, size_of_dual = norms.tolist()  # at once: a GPU is waited for every time
        change *= mu
        if primal <= tol * (n + max(sizes)) and change <= tol * (n + size_of_dual):
            break
        if adaptive and primal > 10 * change:
            mu *= 2
        elif adaptive and change > 10 * primal:
            mu /= 2
    return to_csr(c.T), done
