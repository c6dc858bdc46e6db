"""Inputs whose label is in doubt: those that their neighbours and a linear probe vote against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.analysis.inputs import Index, last_hidden_layer
from lightning_ssc.functional.graph import all_known
from lightning_ssc.functional.partition import partition
from lightning_ssc.functional.probes import margin
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import LayerGraph, SnapshotError, SnapshotStore
from lightning_ssc.threads import at_most


@dataclass(frozen=True)
class Doubts:
    """How far the label of every input is in doubt.

    Attributes:
        layers: The layers that were asked.
        steps: The moments that they were asked at.
        labels: ``(N,)`` given class of every input.
        suggestions: ``(N,)`` class that most affinity goes to over all layers and moments; -1 for inputs without any.
        doubt: ``(N,)`` best score of another class less that of the given one, mean over layers and moments: above 0
            the label is outvoted. Scores are those of the linear probe that was fitted to all other inputs or, where
            it was not kept of all, shares of affinity.
        against: ``(N,)`` share of layers and moments at which most affinity goes to another class; NaN for inputs
            without any.
        predictions: ``(N,)`` class that the network gave last, or ``None`` where it does not return logits.
        indices: ``(N,)`` place of the input in its data set; its place in the probe where tensors were handed over.
    """

    layers: Sequence[str]
    steps: Sequence[int]
    labels: Index
    suggestions: Index
    doubt: Table
    against: Table
    predictions: Index | None
    indices: Index

    def ranked(self) -> Index:
        """All inputs, the label most in doubt first."""
        return np.argsort(-self.doubt, kind="stable")

    def in_doubt(self) -> Index:
        """Inputs that are outvoted by the scores and by most layers and moments, the label most in doubt first."""
        ranked = self.ranked()
        return ranked[(self.doubt[ranked] > 0) & (self.against[ranked] > 0.5)]

    def to_csv(self, path: str | Path, class_names: Sequence[str] = ()) -> None:
        """Write one line an input, the label most in doubt first.

        Args:
            path: The file.
            class_names: Names of the classes; their numbers by default.
        """
        order, listed = self.ranked(), np.zeros(len(self.labels), dtype=bool)
        listed[self.in_doubt()] = True
        columns = {"label": self.labels, "suggestion": self.suggestions}
        if self.predictions is not None:
            columns["prediction"] = self.predictions
        names = {
            name: [class_names[c] if 0 <= c < len(class_names) else str(c) for c in column[order].tolist()]
            for name, column in columns.items()
        }
        write_csv(
            path,
            {
                "input": order,
                "index": self.indices[order],
                **names,
                "doubt": self.doubt[order],
                "against": self.against[order],
                "in_doubt": listed[order],
            },
        )


@at_most(1)
def doubts(
    store: SnapshotStore,
    layers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    progress: Progress = iter,
) -> Doubts:
    """Ask layers and moments of a run how far they doubt the labels of the probe's inputs.

    No classifier and no label of the training is needed: what votes are the other inputs of the probe, so that it
    should have some hundred inputs a class or more. Labels of a whole class that is named wrongly are not found.

    Args:
        store: The snapshots.
        layers: Which layers; by default the last one before the classifier and what follows.
        steps: Which snapshots, by steps; by default the later half.
        progress: Wrapped around the snapshots, such as ``tqdm.tqdm``.

    Raises:
        SnapshotError: There are no snapshots or labels, one cannot be read, or there is no such layer.

    Example:
        >>> import tempfile
        >>> from lightning_ssc import snapshot
        >>> x = torch.eye(2).repeat_interleave(8, 0) + 0.05 * torch.arange(16)[:, None] % 0.3
        >>> y = torch.tensor([0] * 8 + [1] * 8)
        >>> y[3] = 1  # a label that is wrong
        >>> store = SnapshotStore(tempfile.mkdtemp())
        >>> store.save(snapshot(torch.nn.Sequential(torch.nn.Identity()), x, y, layers="Identity"))
        >>> doubts(store).in_doubt().tolist()
        [3]
    """
    if not len(store):
        raise SnapshotError(f"There are no snapshots in {store}.")
    steps = store.steps[len(store) // 2 :] if steps is None else steps
    last = store.load(step=steps[-1])
    if last.labels is None:
        raise SnapshotError(
            f"The snapshots in {store} have no class labels that could be doubted. Give the probe labels: (inputs, "
            f"labels), or a data set whose items are such pairs."
        )
    if all_known(last.labels) is None:
        raise SnapshotError(f"Some inputs in {store} have no class (a negative one); give all of them one.")
    names = list(last.layers)
    layers = names[names.index(last_hidden_layer(last)) :] if layers is None else layers
    if unknown := [layer for layer in layers if layer not in names]:
        raise SnapshotError(f"The snapshot of {last.moment} holds no layer {unknown[0]!r}, only {', '.join(names)}.")
    asked = [layer for step in progress(steps) for _, layer in store.layers(step, layers)]
    kinds, labels = torch.unique(last.labels, return_inverse=True)
    shares = torch.stack([_shares(layer, labels) for layer in asked])
    votes = shares.argmax(2).double().where(~shares.isnan().any(2), torch.nan)
    against = (votes != labels).double().where(~votes.isnan(), torch.nan).nanmean(0)
    total = shares.nanmean(0)
    isolated = total.isnan().any(1)
    suggested = torch.where(isolated, -1, kinds[total.nan_to_num(0).argmax(1)])
    margins = [layer.of_inputs.get("ridge_margin", torch.full_like(total[:, 0], torch.nan)) for layer in asked]
    doubt = -torch.stack(margins).double().mean(0)
    if bool(doubt.isnan().any()):  # of old runs, or of more inputs than were probed
        doubt = -margin(total, labels)
    return Doubts(
        layers=list(layers),
        steps=list(steps),
        labels=last.labels.numpy(),
        suggestions=suggested.numpy(),
        doubt=doubt.numpy(),
        against=against.numpy(),
        predictions=None if last.predictions is None else last.predictions.numpy(),
        indices=np.arange(len(labels)) if last.indices is None else last.indices.numpy(),
    )


def _shares(layer: LayerGraph, classes: Tensor) -> Tensor:
    """``(N, K)`` share of every input's affinity that goes to each class; NaN for isolated ones."""
    parted = partition(layer.affinity, classes)
    return parted.shared / parted.degree[:, None]
