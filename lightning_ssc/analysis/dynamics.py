"""How layers form and settle over the epochs of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.functional import cka
from lightning_ssc.functional.gram_sketch import sketch_cka
from lightning_ssc.snapshots import LayerGraph, Snapshot, SnapshotError, SnapshotStore

Table = NDArray[np.float64]
Progress = Callable[[Sequence[Any]], Iterable[Any]]

CURVES = ("modularity", "cka_to_final", "cka_to_previous", "cka_to_reference", "linear_cka_to_final")


@dataclass(frozen=True)
class Dynamics:
    """Curves of a run, one row an epoch and one column a layer.

    Attributes:
        layers: Labels of the layers in order of execution.
        epochs: ``(T,)`` finished epochs.
        steps: ``(T,)`` logging steps.
        learning_rate: ``(T,)`` learning rate of the finished epoch; NaN where it is not known.
        modularity: ``(T, L)`` modularity over the labels (Eq. 5 of the paper); NaN without labels.
        cka_to_final: ``(T, L)`` SSC-CKA (Eq. 3) to the last snapshot.
        cka_to_previous: ``(T, L)`` SSC-CKA to the snapshot before; NaN in the first row.
        linear_cka_to_final: ``(T, L)`` linear CKA to the last snapshot; NaN where it was not kept.
        cka_to_reference: ``(T, L)`` SSC-CKA to the layer of the same name in a reference; NaN where there is none.
    """

    layers: list[str]
    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    learning_rate: Table
    modularity: Table
    cka_to_final: Table
    cka_to_previous: Table
    linear_cka_to_final: Table
    cka_to_reference: Table

    def settled(self, threshold: float = 0.9) -> Table:
        """``(L,)`` first epoch from which a layer's SSC-CKA to final stays at or above the threshold; NaN if never.

        Example:
            >>> import numpy as np
            >>> curve = np.array([[0.2], [0.95], [0.8], [0.92], [1.0]])
            >>> nan = np.full((5, 1), np.nan)
            >>> Dynamics(["fc"], np.arange(5), np.arange(5), nan[:, 0], nan, curve, nan, nan, nan).settled().tolist()
            [3.0]
        """
        stays = np.logical_and.accumulate((self.cka_to_final >= threshold)[::-1], axis=0)[::-1]
        return np.where(stays.any(0), self.epochs[stays.argmax(0)], np.nan)

    def depth_correlation(self, threshold: float = 0.9) -> float:
        """Spearman's rank correlation of the epoch at which layers settle with their depth.

        One means that layers settle strictly from the bottom up (section 4.2 of the paper). Layers that never settle
        are left out; NaN where fewer than two are left or all settle at the same epoch.

        Example:
            >>> import numpy as np
            >>> curve = np.array([[0.95, 0.5, 0.2], [0.96, 0.95, 0.6], [1.0, 1.0, 1.0]])
            >>> nan = np.full((3, 3), np.nan)
            >>> table = Dynamics(list("abc"), np.arange(3), np.arange(3), nan[:, 0], nan, curve, nan, nan, nan)
            >>> round(table.depth_correlation(), 6)
            1.0
        """
        settled = self.settled(threshold)
        depths = np.flatnonzero(~np.isnan(settled))
        ranks = _ranks(settled[depths])
        if len(np.unique(ranks)) < 2:
            return float("nan")
        return float(np.corrcoef(ranks, depths)[0, 1])

    def drops(self) -> NDArray[np.int64]:
        """``(D, 2)`` epochs of the snapshots before and after each drop of the learning rate.

        A drop is a fall to half or less from one snapshot to the next: a step of a step-wise schedule. One that falls
        smoothly, such as a cosine between snapshots that are not far apart, has drops at most at its very end.

        Example:
            >>> import numpy as np
            >>> nan, rate = np.full((4, 1), np.nan), np.array([np.nan, 0.1, 0.02, 0.02])
            >>> Dynamics(["fc"], np.array([0, 30, 31, 60]), np.arange(4), rate, *[nan] * 5).drops().tolist()
            [[30, 31]]
        """
        before = self._before_drops()
        return np.stack([self.epochs[before], self.epochs[before + 1]], 1)

    def jumps(self) -> Table:
        """``(D, L)`` gain in SSC-CKA to final across each of the :meth:`drops` (section 4.2 of the paper).

        Example:
            >>> import numpy as np
            >>> curve, nan = np.array([[0.2], [0.3], [0.8], [1.0]]), np.full((4, 1), np.nan)
            >>> rate = np.array([np.nan, 0.1, 0.02, 0.02])
            >>> epochs = np.array([0, 30, 31, 60])
            >>> Dynamics(["fc"], epochs, np.arange(4), rate, nan, curve, nan, nan, nan).jumps().tolist()
            [[0.5]]
        """
        before = self._before_drops()
        return self.cka_to_final[before + 1] - self.cka_to_final[before]

    def _before_drops(self) -> NDArray[np.int64]:
        """Rows of the last snapshots before a drop; an unknown rate is neither above nor below another."""
        rate = self.learning_rate
        return np.flatnonzero(rate[1:] <= 0.5 * (1 + 1e-6) * rate[:-1])

    def to_csv(self, path: str | Path) -> None:
        """Write one line an epoch and layer."""
        count = len(self.layers)
        write_csv(
            path,
            {
                "epoch": np.repeat(self.epochs, count),
                "step": np.repeat(self.steps, count),
                "learning_rate": np.repeat(self.learning_rate, count),
                "layer": np.tile(self.layers, len(self.epochs)),
                **{curve: getattr(self, curve) for curve in CURVES},
            },
        )


def ssc_cka(one: LayerGraph, other: LayerGraph) -> float:
    """SSC-CKA of two graphs over the same probe (Eq. 3 of the paper)."""
    return cka(one.affinity, other.affinity)


def linear_cka(one: LayerGraph, other: LayerGraph) -> float:
    """Linear CKA of the same two layers; NaN where it was not kept."""
    if one.linear is None or other.linear is None:
        return float("nan")
    return sketch_cka(one.linear, other.linear)[0]


def dynamics(
    store: SnapshotStore,
    epochs: list[int] | None = None,
    *,
    reference: Snapshot | None = None,
    progress: Progress = iter,
) -> Dynamics:
    """The curves of a run from its stored snapshots; one layer is read at a time.

    Args:
        store: The snapshots.
        epochs: Which of them, ascending; all by default.
        reference: A snapshot, say of another run, that layers of the same name are compared with.
        progress: Wrapped around the layers, such as ``tqdm.tqdm``.

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
    if reference is not None and reference.probe != final.probe:
        raise SnapshotError(f"The reference and the snapshots in {store.root} are of different probes.")
    layers = final.layers
    tables = {curve: np.full((len(epochs), len(layers)), np.nan) for curve in CURVES}
    labels = store.labels(final.epoch)
    for i, name in enumerate(progress(layers)):
        last = store.load_layer(final.epoch, name)
        refer = None if reference is None else reference.layers.get(name)
        previous = None
        for t, header in enumerate(headers):
            if name not in header.layers:
                continue
            layer = last if header is final else store.load_layer(header.epoch, name)
            tables["modularity"][t, i] = layer.modularity(labels)
            tables["cka_to_final"][t, i] = ssc_cka(layer, last)
            tables["linear_cka_to_final"][t, i] = linear_cka(layer, last)
            for other, curve in ((previous, "cka_to_previous"), (refer, "cka_to_reference")):
                if other is not None:
                    tables[curve][t, i] = ssc_cka(layer, other)
            previous = layer
    steps = np.array([header.step for header in headers])
    rates = np.array([header.learning_rate for header in headers], dtype=float)
    return Dynamics(layers, np.array(epochs), steps, rates, **tables)


def _ranks(values: Table) -> Table:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])
