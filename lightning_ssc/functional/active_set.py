"""The exact solver: one active set a sample, until a duality gap says that it is done.

Method. All N problems share the Gram matrix G and need nothing else. For each sample, in rounds:

1. the correlations of all samples with the residual, a sum of |A| rows of G taken in float64, and from them the
   relative duality gap, which ends the rounds;
2. the worst violators of |<x_j, r>| <= 1/tau join the active set A, at most about as many as it has;
3. Newton steps on A, each cut at the first sign change, where that sample leaves A.

The Cholesky factor of G[A, A] is extended by the newcomers, 32 at a time, and rotated when a sample leaves, so that a
step costs O(|A|^2) and a problem little more than one factorisation of its final support. Where all newcomers are
combinations of A (fewer features than neighbours, duplicates) the factor would turn singular; then one is exchanged for
an active sample along its combination, which leaves the fit alone and lowers the 1-norm. Every move lowers the
objective, so the method is finite, and the certificate belongs to what is returned.

While many samples violate, step 3 uses a penalty above 1/tau, half the level of the worst violators left out: strides
along the path of solutions rather than one leap, which would let few samples fit what many should.

On CPU this is compiled by numba (``_kernel.py``) and rows are shared out among plain threads: rows are independent and
summed in a fixed order, so results are the same for any number of threads; nothing outlives a call, so that any thread
may call, several at once. GPU tensors take the batched path (``_batched.py``). What stalls on one path, by rounding of
a float32 Gram on the kernel's, is solved on the other too, and the smaller gap is kept. The kernel's memory is the
largest active set squared, in float64, in each thread: support^2 * 8 bytes at least, up to four times that as it grows.

Why there is a kernel for the CPU, strides, and no start from an earlier solution by default: measurements in
``tests/benchmarks/README.md``.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ssc.functional._batched import solve_batch
from lightning_ssc.functional._checks import CHUNK, blocks
from lightning_ssc.functional._sparse import to_csr
from lightning_ssc.functional.advice import advise
from lightning_ssc.functional.duality import row_block

_ROWS = 32  # rows a thread takes at a time: enough to forget the call, few enough to end together
_BATCHED = 60  # rounds after which samples left over in a batch are cheaper to finish one by one
_PILOT = 8  # rows solved first, to tell whether the graph will be nearly complete
_SORTED, _LIKE = 10_000, 64  # samples whose Gram no cache holds, and to how many of them the others are likened
_SMALL = 100  # a complete graph of fewer samples costs nothing worth a warning


class Solution(NamedTuple):
    """What a solver returns: (N, N) CSR float64, (N,) float64 objectives and relative gaps, and its iterations."""

    coef: Tensor
    objective: Tensor
    gap: Tensor
    n_iter: int


class _Part(NamedTuple):
    """Solutions of some ``samples``: their nonzero weights one sample after the other, and figures of each."""

    samples: Tensor
    counts: Tensor
    col: Tensor
    val: Tensor
    objective: Tensor
    gap: Tensor
    rounds: Tensor


def active_set(
    gram: Tensor, tau: float, tol: float, max_iter: int | None = None, init: Tensor | None = None
) -> Solution:
    """Solve all samples of a checked Gram to a relative duality gap of ``tol``.

    Args:
        gram: (N, N) float32 or float64.
        tau: Weight of the fit.
        tol: Relative duality gap at which a row is done.
        max_iter: Most rounds of a row, 1000 by default; a row solved twice has as many each time.
        init: (N, N) earlier solution; each row takes it over, starts from its support, or ignores it if it is far off.
    """
    n = len(gram)
    if init is None:
        init = torch.sparse_coo_tensor(torch.empty(2, 0), [], (n, n), dtype=torch.float64, device=gram.device)
    solve = _batched if gram.is_cuda else _compiled
    parts = solve(gram, tau, tol, 1000 if max_iter is None else max_iter, to_csr(init).double())
    index, counts, col, val, objective, gap, rounds = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    order = gap.argsort(stable=True)
    order = order[index[order].argsort(stable=True)]  # by sample, and what was solved twice by its gap
    best = order[index[order].diff(prepend=index.new_full((1,), -1)) > 0]
    kept = torch.zeros_like(index, dtype=torch.bool).index_fill(0, best, True)
    kept, row = (of.repeat_interleave(counts, output_size=len(col)) for of in (kept, index))
    kept = kept.nonzero()[:, 0]
    coef = torch.sparse_coo_tensor(torch.stack((row, col))[:, kept], val[kept], (n, n)).to_sparse_csr()
    return Solution(coef, objective[best], gap[best], int(rounds[best].max()))


def certified(gram: Tensor, coef: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """What :func:`~lightning_ssc.functional.duality_gap` says of sound weights, on CPU by the kernel, a row at a time.

    It reads the rows of the Gram that the weights are of, and no others: of large Grams that is a small part.
    """
    parts = list(_shared_out(gram.contiguous(), tau, math.inf, 0, to_csr(coef).double(), _in_order(gram)))
    objective, gap = torch.empty(2, len(gram), dtype=torch.float64)
    for part in parts:
        objective[part.samples], gap[part.samples] = part.objective, part.gap
    return objective, gap


def _compiled(gram: Tensor, tau: float, tol: float, max_iter: int, init: Tensor) -> list[_Part]:
    """Solve all samples on CPU, and those twice that rounding of the Gram keeps from their tolerance."""
    n, gram, order = len(gram), gram.contiguous(), _in_order(gram)
    pilot = torch.zeros(n, dtype=torch.bool)
    pilot[:: -(-n // _PILOT)] = True
    first = _kernel(gram, tau, tol, max_iter, init, order[pilot])
    _warn_if_complete(first, tau, n)
    parts = [first, *_shared_out(gram, tau, tol, max_iter, init, order[~pilot])]
    if gram.dtype == torch.float32:
        # Single precision leaves a Gram indefinite, on which the exchange can go round in circles; the ridge of the
        # batched path is above that rounding.
        late = torch.cat([part.samples[part.gap > tol] for part in parts])
        for index in late.split(max(1, CHUNK // n)):
            start = torch.zeros(len(index), n, dtype=torch.float64)
            parts.append(_compress(index, *solve_batch(gram, tau, tol, min(max_iter, _BATCHED), index, start)))
    return parts


def _shared_out(gram: Tensor, tau: float, tol: float, max_iter: int, init: Tensor, index: Tensor) -> Iterator[_Part]:
    """Solve samples with the compiled kernel, some at a time in each thread."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        yield from threads.map(lambda rows: _kernel(gram, tau, tol, max_iter, init, rows), index.split(_ROWS))


def _in_order(gram: Tensor) -> Tensor:
    """The samples, those one after the other that are like one another: they read the same rows of the Gram."""
    if len(gram) < _SORTED:
        return torch.arange(len(gram))
    nearest = gram[:: -(-len(gram) // _LIKE)].argmax(0)
    return nearest.argsort(stable=True)


def compile_kernel(dtype: torch.dtype) -> None:
    """Compile the kernel for Grams of a dtype on CPU or, where that was done on this machine, load it."""
    no_start = to_csr(torch.empty(0, 0, dtype=torch.float64))
    _kernel(torch.empty(0, 0, dtype=dtype), 1.0, 1.0, 0, no_start, torch.empty(0, dtype=torch.int64))


def _batched(gram: Tensor, tau: float, tol: float, max_iter: int, init: Tensor) -> list[_Part]:
    """Solve all samples on the device of the Gram, and those that stall there on CPU too."""
    n, parts, host = len(gram), [], None
    for rows in blocks(n, max(1, CHUNK // n)):
        index, start = torch.arange(rows.start, rows.stop, device=gram.device), row_block(init, rows).to_dense()
        c, objective, gap, rounds = solve_batch(gram, tau, tol, min(max_iter, _BATCHED), index, start)
        parts.append(_compress(index, c, objective, gap, rounds))
        if rows.start == 0:
            _warn_if_complete(parts[0], tau, n)
        stalled = index[(gap > tol) & (rounds < max_iter)]
        if len(stalled):
            host = (gram.cpu().contiguous(), init.cpu()) if host is None else host
            again = _kernel(host[0], tau, tol, max_iter, host[1], stalled.cpu())
            parts.append(_Part(*(t.to(gram.device) for t in again)))
    return parts


def _compress(index: Tensor, c: Tensor, objective: Tensor, gap: Tensor, rounds: Tensor) -> _Part:
    """What ``solve_batch`` returns, without the zeros."""
    row, col = c.nonzero(as_tuple=True)
    return _Part(index, (c != 0).sum(1), col, c[row, col], objective, gap, rounds)


def _warn_if_complete(first: _Part, tau: float, n: int) -> None:
    share = float(first.counts.double().mean()) / n
    if share > 0.5 and n >= _SMALL:
        advise(
            f"tau = {tau:g} rebuilds a sample from {share:.0%} of all others: the graph is nearly complete, tells "
            "little and takes long (a row costs the cube of its neighbours). Lower tau, or normalize the samples",
            stacklevel=6,
        )


def _kernel(gram: Tensor, tau: float, tol: float, max_iter: int, init: Tensor, index: Tensor) -> _Part:
    """Solve the samples ``index`` with the compiled kernel, in this thread."""
    from lightning_ssc.functional._kernel import solve_rows  # importing numba takes a second

    ptr, col, val = (t.numpy() for t in (init.crow_indices(), init.col_indices(), init.values()))
    found = solve_rows(gram.numpy(), ptr, col, val, index.numpy(), tau, float(tol), max_iter)
    return _Part(index, *map(torch.from_numpy, found))
