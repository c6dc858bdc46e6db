"""The exact solver: active sets (first version: batched, float64)."""

import torch
from torch import Tensor


def active_set(gram: Tensor, tau: float, tol: float, max_iter: int) -> tuple[Tensor, int]:
    """Solve all rows; returns coef (N, N) sparse CSR float64 and the number of rounds."""
    from lightning_ssc.functional.self_expression import duality_gap

    gram = gram.double()
    n, lam = gram.shape[0], 1 / tau
    coef, todo = torch.zeros_like(gram), torch.arange(n, device=gram.device)
    ridge = 1e-10 * gram.diagonal().max()
    zero, two = gram.new_zeros(()), gram.new_full((), 2.0)
    for rounds in range(max_iter):
        gap = duality_gap(gram, coef, tau)[1]
        todo = (gap > tol).nonzero()[:, 0]
        if len(todo) == 0:
            break
        c, g = coef[todo], gram[todo]
        corr = g - c @ gram
        corr[torch.arange(len(todo)), todo] = 0
        active = c != 0
        add = (active.sum(1) * 0.5).long().clamp_min(16 if rounds == 0 else 4)
        violation, where = (corr.abs() - lam).masked_fill(active, -1).topk(min(int(add.max()), n - 1), dim=1)
        take = (violation > 1e-9 * lam) & (torch.arange(where.shape[1], device=gram.device) < add[:, None])
        member = active | torch.zeros_like(active).scatter(1, where, take)
        idx = torch.argsort(member.to(torch.int8), dim=1, descending=True, stable=True)[:, : int(member.sum(1).max())]
        on = member.gather(1, idx)
        w, rhs = c.gather(1, idx) * on, g.gather(1, idx)
        sign = torch.where(w != 0, w.sign(), corr.gather(1, idx).sign())
        h = gram[idx.unsqueeze(2), idx.unsqueeze(1)]
        live = torch.arange(len(todo), device=gram.device)
        for _ in range(50):
            m, wl, sl = on[live], w[live], sign[live]
            a = torch.where(m.unsqueeze(2) & m.unsqueeze(1), h[live], zero)
            a.diagonal(dim1=1, dim2=2).add_((~m).to(a.dtype) + ridge)
            target = torch.where(m, rhs[live] - lam * sl + ridge * wl, zero).unsqueeze(2)
            x = torch.cholesky_solve(target, torch.linalg.cholesky_ex(a)[0]).squeeze(2)
            wrong = m & (x * sl <= 0)
            newcomer = wrong & (wl == 0)
            step = torch.where(wrong & (wl != 0), wl / (wl - x), two)
            alpha = torch.where(newcomer.any(1), zero, step.amin(1).clamp_max(1)).unsqueeze(1)
            hit = (step <= alpha + 1e-14) & wrong & (wl != 0)
            w[live] = torch.where(m & ~hit, wl + alpha * (x - wl), zero)
            on[live] = m & ~hit & ~newcomer
            live = live[wrong.any(1)]
            if len(live) == 0:
                break
        coef[todo] = torch.zeros_like(c).scatter(1, idx, torch.where(on, w, zero))
    return coef.to_sparse_csr(), rounds
