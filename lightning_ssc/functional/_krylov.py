"""Leading eigenpairs of symmetric operators, dense or sparse, by a growing block Krylov space (Rayleigh-Ritz)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def krylov_spaces(operator: Callable[[Tensor], Tensor], n: int, block: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Grow an orthonormal basis of the Krylov space of a symmetric (n, n) operator, one block of columns at a time.

    Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate singular value decomposition",
    2015, with full reorthogonalisation. The start is fixed, so results repeat and no random state is touched.

    Args:
        operator: maps (n, b) float64 to the operator times it.
        n: size of the operator.
        block: columns added at each step; eigenvalues of a multiplicity up to this are found whole.
        device: where the vectors live.

    Yields:
        The basis (n, r) and its image (n, r) under the operator, r growing to n.
    """
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(n, min(block, n), dtype=torch.float64, generator=generator).to(device)
    basis = fresh.new_zeros(n, 0)
    image = basis
    while True:
        # The second pass restores the orthogonality that the first loses where a block has run out of rank.
        for _ in range(2):
            fresh = torch.linalg.qr(fresh - basis @ (basis.T @ fresh)).Q
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, operator(fresh)], 1)
        yield basis, image
        if basis.shape[1] == n:
            return
        fresh = image[:, -fresh.shape[1] :][:, : n - basis.shape[1]]
