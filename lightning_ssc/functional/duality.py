"""The certificate: how far a self-expression is from the optimum, measured in float64 on any solution."""

import math

import torch
from torch import Tensor

from lightning_ssc.functional._checks import CHUNK, blocks
from lightning_ssc.functional._sparse import to_csr


@torch.no_grad()
def duality_gap(gram: Tensor, coef: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Objective and relative duality gap of every row of a self-expression, whoever computed it.

    With r the residual of sample i and u_j = tau <x_j, r> for the other samples j, scaling r by min(1, 1 / max|u|)
    makes it feasible for the dual of ``||c||_1 + tau/2 ||x_i - X'c||^2``; the gap is the difference of the primal and
    that dual value in units of the primal. It bounds how far the objective lies above its optimum.

    Args:
        gram: (N, N) Gram matrix of the samples, as the solver saw it (unit diagonal if samples were normalised).
        coef: (N, N) weights, dense or sparse; row i rebuilds sample i, with nothing on the diagonal.
        tau: Weight of the fit.

    Returns:
        The pair (objective, gap), each (N,) float64. The gap of a zero sample left alone is 0.

    Raises:
        ValueError: Shapes or devices disagree, ``gram`` or ``coef`` is not finite (the row is named), the diagonal of
            ``coef`` is occupied, or ``tau`` is not positive and finite.

    Example:
        >>> gram = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> coef = torch.tensor([[0.0, 0.7, 0.0], [0.6, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> objective, gap = duality_gap(gram, coef, tau=10.0)
        >>> [round(v, 3) for v in gap.tolist()]  # rows 0 and 2 are optimal
        [0.0, 0.192, 0.0]
    """
    n = gram.shape[0]
    if gram.shape != (n, n) or coef.shape != (n, n):
        raise ValueError(f"gram and coef must both be (N, N), got {tuple(gram.shape)} and {tuple(coef.shape)}")
    if gram.device != coef.device:
        raise ValueError(f"gram is on {gram.device} but coef is on {coef.device}: move one of them")
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    coef = to_csr(coef)
    objective = torch.empty(n, dtype=torch.float64, device=gram.device)
    gap = torch.empty_like(objective)
    for block in blocks(n, max(1, CHUNK // n)):
        rows = torch.arange(block.start, block.stop, device=gram.device)
        part = row_block(coef, block)
        c = part.to_dense()
        for name, table in (("coef", c), ("gram", gram[block])):
            if len(bad := (~table.isfinite()).any(1).nonzero()):
                raise ValueError(f"{name} has NaN or infinity in row {block.start + int(bad[0, 0])}")
        if bool((own := c.diagonal(block.start)).any()):
            row = block.start + int(own.nonzero()[0, 0])
            raise ValueError(f"coef[{row}, {row}] is not zero: a sample must not rebuild itself")
        objective[rows], gap[rows] = certify(correlations(gram, rows, part), rows, c, tau)
    return objective, gap


def row_block(coef: Tensor, rows: slice) -> Tensor:
    """Some rows of a CSR matrix, as float64 CSR."""
    crow = coef.crow_indices()[rows.start : rows.stop + 1]
    entries = slice(int(crow[0]), int(crow[-1]))
    val = coef.values()[entries].double()
    return torch.sparse_csr_tensor(crow - crow[0], coef.col_indices()[entries], val, (len(crow) - 1, coef.shape[1]))


def correlations(gram: Tensor, rows: Tensor, coef: Tensor) -> Tensor:
    """Inner products <x_j, residual of x_i>, (len(rows), N) float64, for sparse float64 ``coef`` (len(rows), N)."""
    corr = gram[rows].double()
    for part in blocks(len(gram), max(1, CHUNK // len(gram))):
        corr[:, part] -= coef @ gram[:, part].double()  # float64 a block at a time: no second Gram
    return corr


def certify(corr: Tensor, rows: Tensor, c: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Objective and relative gap of samples ``rows``; clears each sample's own entry of ``corr`` on the way."""
    fit = corr.gather(1, rows[:, None])[:, 0]  # <x_i, residual>
    corr.scatter_(1, rows[:, None], 0.0)
    inner = (c * corr).sum(1)
    square = (fit - inner).clamp_min(0)  # ||residual||^2
    scale = (1 / (tau * corr.abs().amax(1))).clamp_max(1)
    norm = c.abs().sum(1)
    primal = norm + tau / 2 * square
    # primal - dual in a form that does not subtract large numbers from one another
    excess = norm - scale * tau * inner + tau / 2 * (1 - scale) ** 2 * square
    return primal, torch.where(primal == 0, 0.0, excess / primal)  # so that NaN stays NaN
