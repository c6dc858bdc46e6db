"""What was measured of every class in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_ssc import measures
from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.analysis.inputs import Index, classes_of
from lightning_ssc.snapshots import Moment, Store


@dataclass(frozen=True)
class ByClass:
    """Numbers of every class in every layer over the moments of a run.

    Attributes:
        layers: Labels of the layers in order of execution.
        moments: The T moments of the snapshots, ascending.
        classes: ``(K,)`` numbers of the classes, ascending.
        tables: ``(T, L, K)`` values by the names of :data:`lightning_ssc.measures.CLASSES`; NaN where there is none.
    """

    layers: list[str]
    moments: Sequence[Moment]
    classes: Index
    tables: Mapping[str, Table]

    def to_csv(self, path: str | Path, class_names: Sequence[str] = ()) -> None:
        """Write one line a moment, layer and class, with the names of the classes where they are known."""
        moments, layers, count = len(self.moments), len(self.layers), len(self.classes)
        names = [class_names[c] if c < len(class_names) else "" for c in self.classes.tolist()]
        write_csv(
            path,
            {
                "epoch": np.repeat([moment.epoch for moment in self.moments], layers * count),
                "step": np.repeat([moment.step for moment in self.moments], layers * count),
                "layer": np.tile(np.repeat(self.layers, count), moments),
                "class": np.tile(self.classes, moments * layers),
                **({"class_name": np.tile(names, moments * layers)} if class_names else {}),
                **self.tables,
            },
        )


def by_class(store: Store) -> ByClass | None:
    """What was measured of classes when a run's snapshots were taken; ``None`` where nothing was.

    Args:
        store: The snapshots, which are of one probe.

    Raises:
        SnapshotError: One cannot be read.

    Example:
        >>> import torch
        >>> from lightning_ssc import snapshot
        >>> from lightning_ssc.snapshots import MemoryStore
        >>> store, net = MemoryStore(), torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> store.save(snapshot(net, torch.rand(20, 4), torch.arange(20) % 2, layers="Linear"))
        >>> table = by_class(store).tables["class_modularity"]
        >>> table.shape, bool(abs(table.sum() - store.header(0).values["0"]["modularity"]) < 1e-6)
        ((1, 1, 2), True)
    """
    headers = [store.header(step=step) for step in store.steps]
    found = [store.of_classes(header.step) for header in headers]
    if not any(of_layer for snapshot in found for of_layer in snapshot.values()):
        return None
    layers, labels = headers[-1].layers, store.labels(headers[-1].step)
    classes = classes_of(labels, None)
    return ByClass(
        layers,
        [header.moment for header in headers],
        classes,
        {
            record.name: np.stack([class_table(of, record.name, labels, layers, classes) for of in found])
            for record in measures.CLASSES
        },
    )


def class_table(
    found: Mapping[str, Mapping[str, Tensor]], name: str, labels: Tensor | None, layers: Sequence[str], classes: Index
) -> Table:
    """``(L, K)`` one measure of classes at one moment; NaN where there is none.

    Args:
        found: What was measured, by layer and measure.
        name: The measure.
        labels: ``(N,)`` classes of the samples, negative where they have none.
        layers: The L layers.
        classes: ``(K,)`` the classes, ascending, those of the samples among them.
    """
    table = np.full((len(layers), len(classes)), np.nan)
    if labels is not None:
        columns = np.searchsorted(classes, np.unique(labels[labels >= 0].numpy()))
        for i, layer in enumerate(layers):
            if name in (measured := found.get(layer, {})):
                table[i, columns] = measured[name].numpy()
    return table
