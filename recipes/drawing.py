"""The paper's figures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_ssc import Snapshot, plots
from lightning_ssc.analysis import Dynamics, find_blocks, inputs, neighbours
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.functional import spectral_embedding

Panel = tuple[str, Table, list[str]]  # title, similarities, layers


def curves(path: Path, table: Dynamics) -> None:
    """Modularity, SSC-CKA and linear CKA to the final state, side by side (figures 1 and 2)."""
    figure = Figure(figsize=(21, 4.2), layout="constrained")
    families = ("modularity", "cka_to_final", "linear_cka_to_final")
    for axes, family in zip(figure.subplots(1, 3), families, strict=True):
        plots.dynamics_curves(table, family, ax=axes)
    figure.savefig(path, dpi=70)


def heatmaps(path: Path, panels: Sequence[Panel], *, label: str = "SSC-CKA (biased HSIC)", blocks: bool = True) -> None:
    """Heatmaps side by side, with the blocks that are found outlined (figures 3 to 7)."""
    figure = Figure(figsize=(6.2 * len(panels), 5.4), layout="constrained")
    for axes, (title, matrix, layers) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        starts = find_blocks(matrix).starts if blocks else ()
        plots.heatmap(matrix, layers, title=title, label=label, blocks=starts, ax=axes)
    figure.savefig(path, dpi=60)


def embeddings(path: Path, taken: Snapshot, layers: Sequence[str], class_names: Sequence[str]) -> None:
    """Embeddings of some layers, of the inputs that the network classifies correctly (figure 8).

    A layer in which fewer than two of them have any affinity to one another stays empty.
    """
    assert taken.predictions is not None
    assert taken.labels is not None
    right = (taken.predictions == taken.labels).nonzero().squeeze(1)
    points = {}
    for layer in layers:
        coo = taken.layers[layer].affinity.to_sparse_coo().index_select(0, right).index_select(1, right)
        graph = coo.coalesce().to_sparse_csr()
        connected = int((graph.crow_indices().diff() > 0).sum()) > 1
        points[layer] = spectral_embedding(graph, tol=1e-3).numpy() if connected else np.full((len(right), 2), np.nan)
    plots.embeddings(points, taken.labels[right].numpy(), class_names, most=len(points)).savefig(path, dpi=60)


def confidently_wrong_input(
    path: Path, taken: Snapshot, layer: str, pictures: NDArray[np.uint8] | None, class_names: Sequence[str]
) -> None:
    """The input that the network is most sure of and wrong about, as a layer sees it (figure 9); none, none."""
    found = inputs(taken, layer)
    nearest, _ = neighbours(taken.layers[layer])
    for first in found.confidently_wrong(1):
        plots.explanation(found, int(first), nearest, pictures, class_names).savefig(path, dpi=80)
