"""The compiled inner loops of the exact solver; ``active_set.py`` tells the method and calls ``solve_rows``.

Kept apart because importing it imports numba. Everything here releases the GIL, so rows can be shared out among
plain threads, and sums in float64 in an order that does not depend on them.

Names: ``act[:k]`` are the samples in play (the active set) in the order of their rows in ``low``, the lower
Cholesky factor of gram[act, act]; ``coef`` and ``sign`` are indexed by sample.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_ssc.functional._jit import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PANEL = 32  # candidates factored together: the factor is read once for all of them
_COLUMNS = 2048  # correlations updated together: 16 kB, at home in the first-level cache
_NEAR = 0.15  # relative gap below which a starting point's support is worth factoring
# A sample is a combination of others when less than this share of its square is left: rounding. With 1e-10, near
# duplicates (closer than 1e-5) were taken for exact ones, and 2 of 491 problems ended above the tolerance; now none.
_DEPENDENT = 1e-13


@compiled
def _dot(a: Floats, b: Floats, count: int) -> float:
    total = 0.0
    for t in range(count):
        total += a[t] * b[t]
    return total


@compiled
def _correlate(gram: NDArray[Any], i: int, act: Ints, k: int, coef: Floats, corr: Floats) -> None:
    """Set corr[j] = <x_j, residual of sample i>."""
    n = gram.shape[0]
    whole = k - k % 4
    for lo in range(0, n, _COLUMNS):
        hi = min(n, lo + _COLUMNS)
        out, g = corr[lo:hi], gram[i, lo:hi]
        for t in range(hi - lo):
            out[t] = g[t]
        for q in range(0, whole, 4):
            c0, c1, c2, c3 = coef[act[q]], coef[act[q + 1]], coef[act[q + 2]], coef[act[q + 3]]
            g0, g1 = gram[act[q], lo:hi], gram[act[q + 1], lo:hi]
            g2, g3 = gram[act[q + 2], lo:hi], gram[act[q + 3], lo:hi]
            for t in range(hi - lo):
                out[t] -= c0 * g0[t] + c1 * g1[t] + c2 * g2[t] + c3 * g3[t]
        for q in range(whole, k):
            c0, g0 = coef[act[q]], gram[act[q], lo:hi]
            for t in range(hi - lo):
                out[t] -= c0 * g0[t]


@compiled
def _append(gram: NDArray[Any], act: Ints, low: Floats, k: int, count: int) -> int:
    """Factor the candidates act[k : k + count] too and return the new size.

    A candidate that is a combination of those before it is left out; the others close ranks. When all are left
    out, low[k, :k] holds the row of the first.
    """
    size = k
    for lo in range(k, k + count, _PANEL):
        hi = min(k + count, lo + _PANEL)
        whole = hi - (hi - lo) % 4
        before = size
        for r in range(before):
            row, j, inverse = low[r], act[r], 1 / low[r, r]
            for q in range(lo, whole, 4):
                l0, l1, l2, l3 = low[q], low[q + 1], low[q + 2], low[q + 3]
                s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
                for t in range(r):
                    v = row[t]
                    s0 += v * l0[t]
                    s1 += v * l1[t]
                    s2 += v * l2[t]
                    s3 += v * l3[t]
                l0[r] = (gram[act[q], j] - s0) * inverse
                l1[r] = (gram[act[q + 1], j] - s1) * inverse
                l2[r] = (gram[act[q + 2], j] - s2) * inverse
                l3[r] = (gram[act[q + 3], j] - s3) * inverse
            for q in range(whole, hi):
                low[q, r] = (gram[act[q], j] - _dot(row, low[q], r)) * inverse
        for q in range(lo, hi):
            j, row = act[q], low[q]
            for r in range(before, size):
                row[r] = (gram[j, act[r]] - _dot(low[r], row, r)) / low[r, r]
            rest = gram[j, j] - _dot(row, row, size)
            if rest > _DEPENDENT * gram[j, j]:
                for r in range(size):
                    low[size, r] = row[r]
                low[size, size] = np.sqrt(rest)
                act[size] = j
                size += 1
    return size


@compiled
def _remove(act: Ints, low: Floats, k: int, p: int, z: Floats, turn: Floats) -> int:
    """Take position ``p`` out of the factor and of z = low^-1 b by plane rotations; returns the new size."""
    for q in range(p, k - 1):
        act[q] = act[q + 1]
    # Without row p, each row below reaches one column too far. Rotating the columns (t - 1, t) for t = p + 1, ...
    # sets that right; the rotations of a row are those of the rows before it and one of its own.
    for lo in range(p + 1, k, 4):
        hi = min(k, lo + 4)
        if hi - lo == 4:  # four rows side by side through the rotations that they share
            r0, r1, r2, r3 = low[lo], low[lo + 1], low[lo + 2], low[lo + 3]
            w0, w1, w2, w3 = r0[p], r1[p], r2[p], r3[p]
            for t in range(p + 1, lo):
                c, s = turn[t, 0], turn[t, 1]
                v0, v1, v2, v3 = r0[t], r1[t], r2[t], r3[t]
                r0[t - 1], w0 = c * w0 + s * v0, c * v0 - s * w0
                r1[t - 1], w1 = c * w1 + s * v1, c * v1 - s * w1
                r2[t - 1], w2 = c * w2 + s * v2, c * v2 - s * w2
                r3[t - 1], w3 = c * w3 + s * v3, c * v3 - s * w3
            r0[lo - 1], r1[lo - 1], r2[lo - 1], r3[lo - 1] = w0, w1, w2, w3
            begin = lo
        else:
            begin = p + 1
        for q in range(lo, hi):
            row = low[q]
            w = row[begin - 1]
            for t in range(begin, q):
                c, s, v = turn[t, 0], turn[t, 1], row[t]
                row[t - 1] = c * w + s * v
                w = c * v - s * w
            norm = np.sqrt(w * w + row[q] * row[q])
            turn[q, 0], turn[q, 1] = w / norm, row[q] / norm
            row[q - 1] = norm
    for q in range(p, k - 1):
        for t in range(q + 1):
            low[q, t] = low[q + 1, t]
    w = z[p]
    for t in range(p + 1, k):
        c, s, v = turn[t, 0], turn[t, 1], z[t]
        z[t - 1] = c * w + s * v
        w = c * v - s * w
    return k - 1


@compiled
def _backward(low: Floats, k: int, z: Floats, x: Floats) -> None:
    """Set x = low^-T z."""
    for r in range(k):
        x[r] = z[r]
    for r in range(k - 1, -1, -1):
        row = low[r]
        v = x[r] / row[r]
        x[r] = v
        for t in range(r):
            x[t] -= v * row[t]


@compiled
def _descend(act: Ints, low: Floats, k: int, coef: Floats, sign: Floats, z: Floats, x: Floats, turn: Floats) -> int:
    """Newton steps from z = low^-1 (corr - lam sign) to the optimum over the active set; returns its size.

    Each step is cut where the first coefficient reaches zero; that one leaves, and so does every newcomer
    (coefficient zero) that Newton would send against its sign.
    """
    while k:
        _backward(low, k, z, x)
        size = k
        for q in range(size - 1, -1, -1):
            j = act[q]
            if coef[j] == 0 and x[q] * sign[j] <= 0:
                k = _remove(act, low, k, q, z, turn)
        if k < size:
            continue
        step = 1.0
        for q in range(k):
            j = act[q]
            if (coef[j] + x[q]) * sign[j] <= 0:
                step = min(step, -coef[j] / x[q])
        for q in range(k - 1, -1, -1):
            j = act[q]
            reaches = (coef[j] + x[q]) * sign[j] <= 0 and -coef[j] / x[q] <= step
            coef[j] += step * x[q]
            if reaches or coef[j] * sign[j] <= 0:
                coef[j] = 0.0
                k = _remove(act, low, k, q, z, turn)
        if k == size:
            break
        for q in range(k):
            z[q] *= 1 - step
    return k


@compiled
def _violators(corr: Floats, act: Ints, k: int, lam: float, budget: int, score: Floats) -> tuple[int, float]:
    """Write about the ``budget`` worst violators of |corr| <= lam behind act[:k]; returns their number and level."""
    n = len(corr)
    for t in range(n):
        score[t] = abs(corr[t])
    for q in range(k):
        score[act[q]] = 0.0
    low, high, above = lam * (1 + 1e-9), 0.0, 0
    for t in range(n):
        high = max(high, score[t])
        above += score[t] > low
    for _ in range(30):  # a level that between half the budget and the budget exceed; ties may prevent one
        if above <= budget:
            break
        level = (low + high) / 2
        count = 0
        for t in range(n):
            count += score[t] > level
        if 2 * count >= budget:
            low, above = level, count
        else:
            high = level
    found = 0
    for t in range(n):
        if score[t] > low and found < budget:
            act[k + found] = t
            found += 1
    return found, low


@compiled
def _exchange(
    gram: NDArray[Any],
    act: Ints,
    low: Floats,
    k: int,
    count: int,
    coef: Floats,
    sign: Floats,
    z: Floats,
    x: Floats,
    turn: Floats,
) -> tuple[int, int]:
    """Exchange dependent candidates act[k : k + count] for active samples; returns the size and how many could be.

    Such a candidate is a combination of the active set. Trading along that combination leaves the fit alone, and it
    lowers the 1-norm when the candidate violates |corr| <= lam, until an active coefficient reaches zero.
    """
    one, traded = np.int64(1), 0
    for p in range(count):
        j = act[k + p]
        act[k] = j
        if _append(gram, act, low, k, one) > k:
            continue  # by rounding alone: its turn comes again
        _backward(low, k, low[k], x)
        slope, step, leaver = 1.0, np.inf, np.int64(-1)
        for q in range(k):
            fall = sign[j] * x[q] * sign[act[q]]
            slope -= fall
            if fall > 0 and abs(coef[act[q]]) < step * fall:
                step, leaver = abs(coef[act[q]]) / fall, q
        if slope >= 0 or leaver < 0:
            continue
        for q in range(k):
            coef[act[q]] -= step * sign[j] * x[q]
        coef[act[leaver]] = 0.0
        coef[j] = step * sign[j]
        _remove(act, low, k, leaver, z, turn)
        act[k - 1] = j
        traded += 1
        if _append(gram, act, low, k - 1, one) < k:  # all but a combination of the others too: do without
            coef[j] = 0.0
            return k - 1, traded
    return k, traded


@compiled
def solve_rows(
    gram: NDArray[Any], ptr: Ints, col: Ints, val: Floats, rows: Ints, tau: float, tol: float, max_iter: int
) -> tuple[Ints, Ints, Floats, Floats, Floats, Ints]:
    """Solve the problems of the samples ``rows``, each until its gap is within ``tol``.

    The CSR coefficients (ptr, col, val) of all samples are tried first. Returns counts, columns and values of the rows'
    coefficients, then their objectives, relative gaps and rounds.
    """
    n, lam = gram.shape[0], 1 / tau
    corr, score, coef, sign = np.empty(n), np.empty(n), np.zeros(n), np.empty(n)
    act = np.empty(n, np.int64)
    room = 0
    low, turn, z, x = np.empty((0, 0)), np.empty((0, 2)), np.empty(0), np.empty(0)
    filled, out_col, out_val = 0, np.empty(0, np.int64), np.empty(0)
    counts, rounds = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    objective, gap = np.empty(len(rows)), np.empty(len(rows))
    for at in range(len(rows)):
        i = rows[at]
        aim, exact, last = np.inf, False, np.inf
        k = np.int64(0)  # np.int64: a literal would compile everything a second time
        for p in range(ptr[i], ptr[i + 1]):
            if col[p] != i and val[p] != 0:
                act[k], coef[col[p]] = col[p], val[p]
                k += 1
        for done in range(max_iter + 1):
            _correlate(gram, i, act, k, coef, corr)
            fit = corr[i]  # <x_i, residual>
            corr[i] = 0.0
            norm, inner, top = 0.0, 0.0, 0.0
            for q in range(k):
                norm += abs(coef[act[q]])
                inner += coef[act[q]] * corr[act[q]]
            for t in range(n):
                top = max(top, abs(corr[t]))
            square = fit - inner  # ||residual||^2
            if square < 0:  # max() would make 0 of NaN
                square = 0.0
            scale = lam / top if top > lam else 1.0
            primal = norm + tau / 2 * square
            excess = norm - scale * tau * inner + tau / 2 * (1 - scale) ** 2 * square
            g = 0.0 if primal == 0 else excess / primal  # so that NaN stays NaN
            objective[at], gap[at], rounds[at] = primal, g, done
            if g <= tol or done == max_iter:
                break
            count = np.int64(0)
            if done == 0 and k:  # not solved by the start: begin from nothing, with its support if it was near
                if g < _NEAR:
                    count, aim = k, lam
                for q in range(k):
                    sign[act[q]] = np.sign(coef[act[q]])
                    coef[act[q]] = 0.0
                k = np.int64(0)
                _correlate(gram, i, act, k, coef, corr)
                corr[i] = 0.0
            if count == 0:
                budget = min(max(8, min(k, 24 + k // 4)), n - 1 - k)
                count, level = _violators(corr, act, k, lam, budget, score)
                for q in range(k, k + count):
                    sign[act[q]] = np.sign(corr[act[q]])
                if count == 0 and exact and g > last / 2:
                    break  # as far as rounding allows
                # Follow the path of solutions in strides: while many violate, a penalty above lam keeps few samples
                # from fitting what many should, which they would have to give back.
                aim = max(lam, min(aim, level / 2))
            last = g
            if k + count > room:
                room = min(n, max(2 * room, k + count, 64))
                wider = np.empty((room, room))
                for q in range(k):
                    for t in range(q + 1):
                        wider[q, t] = low[q, t]
                low, turn, z, x = wider, np.empty((room, 2)), np.empty(room), np.empty(room)
            size = _append(gram, act, low, k, count)
            if size > k or count == 0 or k == 0:
                k = size
            else:
                k, traded = _exchange(gram, act, low, k, count, coef, sign, z, x, turn)
                if traded == 0 and exact:
                    break  # as far as rounding allows
            exact = aim == lam
            for q in range(k):
                z[q] = (corr[act[q]] - aim * sign[act[q]] - _dot(low[q], z, q)) / low[q, q]
            k = _descend(act, low, k, coef, sign, z, x, turn)
        before = filled
        if filled + k > len(out_col):
            longer = max(2 * len(out_col), filled + k)
            more_col, more_val = np.empty(longer, np.int64), np.empty(longer)
            for t in range(filled):
                more_col[t], more_val[t] = out_col[t], out_val[t]
            out_col, out_val = more_col, more_val
        for j in range(n):
            if coef[j] != 0:
                out_col[filled], out_val[filled] = j, coef[j]
                coef[j] = 0.0
                filled += 1
        counts[at] = filled - before
    return counts, out_col[:filled].copy(), out_val[:filled].copy(), objective, gap, rounds
