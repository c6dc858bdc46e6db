"""Compiled passes over what is kept of layers: sums by input, which NumPy would sort or go several times for.

Kept apart because importing it imports numba; see ``_jit.py``. Everything is summed in float64, in this thread.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_ssc.functional._jit import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def both_ways(ptr: Ints, col: Ints, val: NDArray[Any]) -> tuple[Ints, Ints, Floats, Floats]:
    """CSR of |C| + |C|ᵀ from that of C, columns of a row in no order, and its row sums."""
    n = len(ptr) - 1
    degrees = np.zeros(n)
    start = np.zeros(n + 1, np.int64)  # of the columns of C
    for p in range(len(col)):
        start[col[p] + 1] += 1
    for j in range(n):
        start[j + 1] += start[j]
    fill, row, weight = start[:-1].copy(), np.empty(len(col), np.int64), np.empty(len(col))
    for i in range(n):
        for p in range(ptr[i], ptr[i + 1]):
            at = fill[col[p]]
            row[at], weight[at] = i, abs(val[p])
            fill[col[p]] += 1
            degrees[i] += weight[at]
            degrees[col[p]] += weight[at]
    to, out, sums = np.zeros(n + 1, np.int64), np.empty(2 * len(col), np.int64), np.empty(2 * len(col))
    place = np.full(n, -1, np.int64)  # of a column among those of the row so far
    filled = np.int64(0)
    for i in range(n):
        for p in range(ptr[i], ptr[i + 1]):
            place[col[p]] = filled
            out[filled], sums[filled] = col[p], abs(val[p])
            filled += 1
        for p in range(start[i], start[i + 1]):
            at = place[row[p]]
            if at >= to[i]:
                sums[at] += weight[p]
            else:
                out[filled], sums[filled] = row[p], weight[p]
                filled += 1
        to[i + 1] = filled
    return to, out[:filled].copy(), sums[:filled].copy(), degrees


@compiled
def products(
    ptr1: Ints, col1: Ints, val1: Floats, ptr2: Ints, col2: Ints, val2: Floats, degrees1: Floats, degrees2: Floats
) -> tuple[Floats, Floats]:
    """Of two graphs A and B, symmetric CSR, with row sums a and b: sums over j of A_ij B_ij, and A b + B a."""
    n = len(degrees1)
    at, crossed, row = np.zeros(n), np.zeros(n), np.zeros(n)
    for i in range(n):
        inner, through = 0.0, 0.0
        for p in range(ptr2[i], ptr2[i + 1]):
            row[col2[p]] = val2[p]
            through += val2[p] * degrees1[col2[p]]
        for p in range(ptr1[i], ptr1[i + 1]):
            inner += val1[p] * row[col1[p]]
            through += val1[p] * degrees2[col1[p]]
        for p in range(ptr2[i], ptr2[i + 1]):
            row[col2[p]] = 0.0
        at[i], crossed[i] = inner, through
    return at, crossed


@compiled
def without_roles(ptr: Ints, col: Ints, val: Floats, group: Ints, count: int) -> tuple[Floats, Floats]:
    """Modularity of |C| + |C|ᵀ without what rebuilds each input, and without each input to rebuild others.

    These take |C_i| times their weight on it for it, but for themselves: sums by group tell what that changes.

    Args:
        ptr: ``(N + 1,)`` where rows of C begin.
        col: ``(nnz,)`` columns of its entries.
        val: ``(nnz,)`` its entries.
        group: ``(N,)`` the group of each input, below `count`; negative for those that are none of the graph.
        count: How many groups there are.

    Returns:
        ``(N,)`` and ``(N,)``; NaN for inputs that are none of the graph, and where no edges are left.
    """
    n = len(ptr) - 1
    start = np.zeros(n + 1, np.int64)  # of the columns of C
    for p in range(len(col)):
        start[col[p] + 1] += 1
    for j in range(n):
        start[j + 1] += start[j]
    fill, row, weight = start[:-1].copy(), np.empty(len(col), np.int64), np.empty(len(col))
    degrees, within = np.zeros(count), 0.0
    for i in range(n):
        for p in range(ptr[i], ptr[i + 1]):
            at = fill[col[p]]
            row[at], weight[at] = i, abs(val[p])
            fill[col[p]] += 1
            if group[i] >= 0 and group[col[p]] >= 0:
                degrees[group[i]] += weight[at]
                degrees[group[col[p]]] += weight[at]
                within += 2 * weight[at] if group[i] == group[col[p]] else 0.0
    as_query, as_neighbour, own, left = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n), np.empty(count)
    for i in range(n):
        if group[i] < 0:
            continue
        given, taken, both = np.zeros(count), np.zeros(count), np.zeros(count)  # of row i, of column i, of products
        for p in range(ptr[i], ptr[i + 1]):
            if group[col[p]] >= 0:
                own[col[p]] = abs(val[p])
                given[group[col[p]]] += own[col[p]]
        for p in range(start[i], start[i + 1]):
            if group[row[p]] >= 0:
                taken[group[row[p]]] += weight[p]
                both[group[row[p]]] += weight[p] * own[row[p]]
        for p in range(ptr[i], ptr[i + 1]):
            own[col[p]] = 0.0
        rebuilt, rebuilds, instead = 0.0, 0.0, 0.0
        for c in range(count):
            rebuilt += given[c]
            rebuilds += taken[c]
            instead += taken[c] * given[c] - both[c]
        for c in range(count):
            left[c] = degrees[c] - given[c] - (rebuilt if c == group[i] else 0.0)
        as_query[i] = _modularity(left, within - 2 * given[group[i]])
        for c in range(count):
            moved = rebuilt * taken[c] + rebuilds * given[c] - 2 * both[c]
            left[c] = degrees[c] - taken[c] + moved - (rebuilds if c == group[i] else 0.0)
        as_neighbour[i] = _modularity(left, within - 2 * taken[group[i]] + 2 * instead)
    return as_query, as_neighbour


@compiled
def _modularity(degrees: Floats, within: float) -> float:
    total, squares = 0.0, 0.0
    for degree in degrees:
        total += degree
        squares += degree * degree
    return (within - squares / total) / total if total > 0 else np.nan


@compiled
def pair_products(n: int, i: Ints, j: Ints, one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """``(n,)`` sums by input of the products of two values a pair; i and j are the inputs of each."""
    at = np.zeros(n)
    for p in range(len(one)):
        product = float(one[p]) * float(other[p])
        at[i[p]] += product
        at[j[p]] += product
    return at


@compiled
def second_order(
    ptr1: Ints,
    col1: Ints,
    val1: Floats,
    ptr2: Ints,
    col2: Ints,
    val2: Floats,
    means1: Floats,
    means2: Floats,
    cka: float,
) -> float:
    """Sum of squares of what each pair of inputs adds to the CKA of two graphs, over those with an edge in either.

    Weights and row means are relative to the norms of the centred graphs.
    """
    n, total = len(means1), 0.0
    mean1, mean2, row = means1.mean(), means2.mean(), np.zeros(n)
    for i in range(n):
        for p in range(ptr2[i], ptr2[i + 1]):
            row[col2[p]] = val2[p]
        for p in range(ptr1[i], ptr1[i + 1]):
            j = col1[p]
            one, other = val1[p] - means1[i] - means1[j] + mean1, row[j] - means2[i] - means2[j] + mean2
            total += (2 * one * other - cka * (one * one + other * other)) ** 2
            row[j] = 0.0
        for p in range(ptr2[i], ptr2[i + 1]):
            j = col2[p]
            if row[j] != 0:
                one, other = mean1 - means1[i] - means1[j], row[j] - means2[i] - means2[j] + mean2
                total += (2 * one * other - cka * (one * one + other * other)) ** 2
                row[j] = 0.0
    return total / 2
