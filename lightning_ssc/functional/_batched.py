"""The exact solver for GPUs: the active sets of many samples at once, in batched float64 products and factorisations.

The method is that of ``active_set.py`` with two differences. Factors are rebuilt at every Newton step, which batched
hardware does not mind. And G[A, A] gets a small ridge, which turns Newton into a proximal step: where G[A, A] is
singular that step is long along its null space and is cut at the first sign change, which does what the exchange does.
A sample that stops improving is returned as it is, for the kernel to finish.
"""

import torch
from torch import Tensor

from lightning_ssc.functional._checks import CHUNK
from lightning_ssc.functional.duality import certify, correlations

_STEPS = 100  # Newton steps of a round


def solve_batch(
    gram: Tensor, tau: float, tol: float, max_iter: int, index: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve the problems of the samples ``index``, trying the support and signs of ``start`` (len(index), N) first.

    Returns dense float64 coefficients (len(index), N), then objectives, relative gaps and rounds of each sample.
    """
    c = torch.zeros_like(start)
    objective, gap = c.new_full((len(c),), torch.inf), c.new_full((len(c),), torch.inf)
    rounds, lam = torch.zeros_like(index), 1 / tau
    aim = torch.full_like(objective, torch.inf)
    todo = torch.arange(len(c), device=c.device)
    for turn in range(max_iter + 1):
        now = c[todo]
        corr = correlations(gram, index[todo], now.to_sparse_csr())
        value, gap[todo] = certify(corr, index[todo], now, tau)
        rounds[todo] = turn
        # An objective that rests at the last penalty has met the limits of rounding.
        going = ((gap[todo] > tol) & ((value < objective[todo]) | (aim[todo] > lam))).nonzero()[:, 0]
        objective[todo] = value
        if turn == max_iter or len(going) == 0:
            break
        todo, corr, now = todo[going], corr[going], now[going]
        sign, level = _enlarge(now, corr, lam, start[todo] if turn == 0 else None)
        # Penalties above lam while many violate: strides along the path of solutions, as in the kernel.
        aim[todo] = torch.minimum(aim[todo], level / 2).clamp_min(lam)
        size, order = (sign != 0).sum(1).sort(descending=True)
        while len(order):  # samples with supports of like size together, padded to the largest
            width = max(1, int(size[0]))
            count = max(1, CHUNK // width**2)
            batch, order, size = order[:count], order[count:], size[count:]
            act = sign[batch].abs().topk(width, dim=1).indices
            w, r, s = (t[batch].gather(1, act) for t in (now, corr, sign))
            moved = _descend(gram, act, w, r, s, aim[todo[batch]].unsqueeze(1))
            c[todo[batch]] = torch.zeros_like(now[batch]).scatter_(1, act, moved)
    return c, objective, gap, rounds


def _enlarge(c: Tensor, corr: Tensor, lam: float, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Signs of the active sets (0 elsewhere) once the worst violators, or else the samples of ``start``, have joined.

    Also returns the level of the first violator that had to stay out, 0 if none had to.
    """
    sign = c.sign() if start is None else start.sign()
    size = (sign != 0).sum(1)
    room = torch.minimum(size, 24 + size // 4).clamp_min(8)
    violation = torch.where((sign != 0) | (corr.abs() <= lam * (1 + 1e-9)), 0.0, corr.abs())
    if start is not None:
        violation[size > 0] = 0
    worst, which = violation.topk(min(int(room.max()) + 1, corr.shape[1]), dim=1)
    joins = (worst > 0) & (torch.arange(worst.shape[1], device=c.device) < room.unsqueeze(1))
    level = worst.gather(1, room.clamp_max(worst.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return sign.scatter_add(1, which, torch.where(joins, corr.gather(1, which).sign(), 0.0)), level


def _descend(gram: Tensor, act: Tensor, w: Tensor, corr: Tensor, sign: Tensor, lam: Tensor) -> Tensor:
    """Cut Newton steps on the weights ``w`` (batch, k) of the samples ``act``, of which those of sign 0 are padding."""
    h = gram[act.unsqueeze(2), act.unsqueeze(1)].double()
    ridge = 4 * torch.finfo(gram.dtype).eps * h.diagonal(dim1=1, dim2=2)
    slope = corr - lam * sign
    live = torch.arange(len(w), device=w.device)
    for _ in range(_STEPS):
        at, s = w[live], sign[live]
        on = s != 0
        a = torch.where(on.unsqueeze(2) & on.unsqueeze(1), h[live], 0.0)
        a.diagonal(dim1=1, dim2=2).add_(torch.where(on, ridge[live], 1.0))
        factor, failed = torch.linalg.cholesky_ex(a)
        d = torch.cholesky_solve(torch.where(on, slope[live], 0.0).unsqueeze(2), factor).squeeze(2)
        fine = (failed == 0) & d.isfinite().all(1)
        d = torch.where(fine.unsqueeze(1), d, 0.0)  # what cannot be factored stays where it is
        wrong = on & ((at + d) * s <= 0)
        newcomer = wrong & (at == 0) & fine.unsqueeze(1)
        reach = torch.where(wrong & (at != 0), -at / d, 1.0)
        step = torch.where(newcomer.any(1), 0.0, reach.amin(1)).unsqueeze(1)
        moved = at + step * d
        gone = newcomer | (on & (at != 0) & ((moved * s <= 0) | (wrong & (reach <= step))))
        w[live], sign[live] = torch.where(gone, 0.0, moved), torch.where(gone, 0.0, s)
        slope[live] = (1 - step) * slope[live] + step * ridge[live] * d
        live = live[fine & wrong.any(1)]
        if len(live) == 0:
            break
    return w
