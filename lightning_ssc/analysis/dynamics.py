"""How layers form and settle over the epochs of a run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_ssc.functional import cka
from lightning_ssc.functional.similarity import factor_cka
from lightning_ssc.store import LayerGraph, SnapshotError, SnapshotStore

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Dynamics:
    """Curves of a run, one row an epoch and one column a layer.

    Attributes:
        layers: Labels of the layers in order of execution.
        epochs: ``(T,)`` finished epochs.
        steps: ``(T,)`` logging steps.
        modularity: ``(T, L)`` modularity over the labels (Eq. 5 of the paper); NaN without labels.
        cka_to_final: ``(T, L)`` SSC-CKA (Eq. 3) to the last snapshot.
        cka_to_previous: ``(T, L)`` SSC-CKA to the snapshot before; NaN in the first row.
        linear_cka_to_final: ``(T, L)`` linear CKA to the last snapshot; NaN where it was not kept.
    """

    layers: list[str]
    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    modularity: Table
    cka_to_final: Table
    cka_to_previous: Table
    linear_cka_to_final: Table

    def settled(self, threshold: float = 0.9) -> Table:
        """``(L,)`` first epoch from which a layer's SSC-CKA to final stays at or above the threshold; NaN if never.

        Example:
            >>> import numpy as np
            >>> curve = np.array([[0.2], [0.95], [0.8], [0.92], [1.0]])
            >>> nan = np.full((5, 1), np.nan)
            >>> Dynamics(["fc"], np.arange(5), np.arange(5), nan, curve, nan, nan).settled().tolist()
            [3.0]
        """
        stays = np.logical_and.accumulate((self.cka_to_final >= threshold)[::-1], axis=0)[::-1]
        return np.where(stays.any(0), self.epochs[stays.argmax(0)], np.nan)

    def to_csv(self, path: str | Path) -> None:
        """Write one line an epoch and layer."""
        curves = ("modularity", "cka_to_final", "cka_to_previous", "linear_cka_to_final")
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("epoch", "step", "layer", *curves))
            for t, (epoch, step) in enumerate(zip(self.epochs, self.steps, strict=True)):
                for i, layer in enumerate(self.layers):
                    writer.writerow((epoch, step, layer, *(getattr(self, curve)[t, i] for curve in curves)))


def ssc_cka(one: LayerGraph, other: LayerGraph) -> float:
    """SSC-CKA of two graphs over the same probe (Eq. 3 of the paper)."""
    return cka(one.affinity, other.affinity)


def linear_cka(one: LayerGraph, other: LayerGraph) -> float:
    """Linear CKA of the same two layers; NaN where it was not kept."""
    if one.linear is None or other.linear is None:
        return float("nan")
    return factor_cka(one.linear, other.linear)


def dynamics(store: SnapshotStore, epochs: list[int] | None = None) -> Dynamics:
    """The curves of a run from its stored snapshots; one layer is read at a time.

    Args:
        store: The snapshots.
        epochs: Which of them, ascending; all by default.

    Raises:
        SnapshotError: There are none, one cannot be read, or they are of different probes.

    Example:
        >>> import tempfile, torch
        >>> from lightning_ssc import SnapshotStore, snapshot
        >>> net, store = torch.nn.Linear(4, 3), SnapshotStore(tempfile.mkdtemp())
        >>> x, y = torch.rand(20, 4), torch.arange(20) % 2
        >>> for epoch in (0, 1):
        ...     store.save(snapshot(torch.nn.Sequential(net), x, y, layers="Linear", epoch=epoch))
        >>> dynamics(store).cka_to_final.round(6)
        array([[1.],
               [1.]])
    """
    epochs = store.epochs if epochs is None else epochs
    if not epochs:
        raise SnapshotError(f"There are no snapshots in {store.root}.")
    headers = [store.header(epoch) for epoch in epochs]
    final = headers[-1]
    for header in headers:
        if header.probe != final.probe:
            raise SnapshotError(
                f"The snapshots of epochs {header.epoch} and {final.epoch} in {store.root} are of different probes and "
                f"cannot be compared."
            )
    layers = final.layers
    shape = (len(epochs), len(layers))
    modularity, to_final, to_previous, linear = (np.full(shape, np.nan) for _ in range(4))
    labels = store.labels(final.epoch)
    for i, name in enumerate(layers):
        last = store.load_layer(final.epoch, name)
        previous = None
        for t, header in enumerate(headers):
            if name not in header.layers:
                continue
            layer = last if header is final else store.load_layer(header.epoch, name)
            if labels is not None:
                modularity[t, i] = layer.modularity(labels)
            to_final[t, i], linear[t, i] = ssc_cka(layer, last), linear_cka(layer, last)
            if previous is not None:
                to_previous[t, i] = ssc_cka(layer, previous)
            previous = layer
    steps = np.array([header.step for header in headers])
    return Dynamics(layers, np.array(epochs), steps, modularity, to_final, to_previous, linear)
