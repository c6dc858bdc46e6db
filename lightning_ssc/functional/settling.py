"""Since when a graph has been what it is."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_ssc.functional.graph_cka import CentredGraph, graph_cka_estimate
from lightning_ssc.functional.uncertainty import WIDTH

SETTLED = 0.9
"""SSC-CKA from which two states of a layer count as one."""


def alike(one: CentredGraph, other: CentredGraph, threshold: float = SETTLED) -> bool:
    """Whether two graphs of the same inputs are one within noise.

    They are where SSC-CKA reaches the threshold, or where 1 lies in its interval of 95 %
    (:func:`~lightning_ssc.functional.graph_cka.graph_cka_estimate`). An empty graph is like no other.

    Args:
        one: A graph.
        other: A graph of the same inputs.
        threshold: The similarity that is enough.

    Raises:
        ValueError: The graphs differ in their number of inputs.

    Example:
        >>> import torch
        >>> coef = torch.tensor([[0.0, 2, 1, 0], [1, 0, 0, 3], [0, 1, 0, 1], [1, 0, 2, 0]]).to_sparse_csr()
        >>> alike(CentredGraph(coef), CentredGraph(3 * coef))
        True
    """
    value, spread = graph_cka_estimate(one, other)
    return value >= threshold or value + WIDTH * spread >= 1


def settled_since(
    now: CentredGraph, step: int, earlier: Sequence[tuple[int, CentredGraph]], threshold: float = SETTLED
) -> int:
    """The first of some earlier moments at which a layer's graph was already what it is now.

    Told live, for a layer whose last answer is among ``earlier``: while it stays like the graph it had then the answer
    stays, and once it differs the answer is a later moment.

    Args:
        now: The graph now.
        step: Training steps that are done.
        earlier: Steps and graphs of earlier moments, ascending.
        threshold: See :func:`alike`.

    Returns:
        The step of that moment; ``step`` itself where the layer was like that at none.

    Raises:
        ValueError: The graphs differ in their number of inputs.

    Example:
        >>> import torch
        >>> coef = torch.tensor([[0.0, 2, 1, 0], [1, 0, 0, 3], [0, 1, 0, 1], [1, 0, 2, 0]]).to_sparse_csr()
        >>> one, other = CentredGraph(coef), CentredGraph(torch.zeros(4, 4).to_sparse_csr())
        >>> settled_since(one, 30, [(10, other), (20, one)]), settled_since(other, 30, [(10, one), (20, one)])
        (20, 30)
    """
    return next((at for at, before in earlier if alike(before, now, threshold)), step)
