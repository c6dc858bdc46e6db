"""What the graph of one layer says of single inputs (section 6 of the paper)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.functional import class_affinity, spectral_embedding
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import LayerGraph, Snapshot, SnapshotError
from lightning_ssc.threads import at_most

Index = NDArray[np.int64]

_NUMBERED = 10_000  # classes above which numbers are taken for ids, with gaps between them


@dataclass(frozen=True)
class Inputs:
    """The inputs of the probe as one layer's graph sees them.

    Attributes:
        layer: Label of the layer.
        epoch: Finished epochs, a fraction inside one.
        labels: ``(N,)`` class of every input; negative where it has none, and then no share below speaks of it.
        shares: ``(N, K)`` share of an input's affinity that goes to each class; NaN for isolated inputs.
        ssc_labels: ``(N,)`` class with the largest share; -1 for isolated inputs.
        predictions: ``(N,)`` class that the network gave, or ``None`` where it does not return logits.
        confidence: ``(N,)`` softmax score of that class, or ``None``.
        indices: ``(N,)`` place of the input in its data set; its place in the probe where tensors were handed over.
        classes: ``(K,)`` the class of every column of the shares, ascending.
    """

    layer: str
    epoch: float
    labels: Index
    shares: Table
    ssc_labels: Index
    predictions: Index | None
    confidence: NDArray[np.float32] | None
    indices: Index
    classes: Index

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """``(N,)`` whether an input has a class."""
        return self.labels >= 0

    def columns(self, classes: Index) -> Index:
        """Where the shares of classes stand; -1 for what is no class."""
        return columns_of(classes, self.classes)

    @property
    def isolated(self) -> NDArray[np.bool_]:
        """``(N,)`` whether an input has no affinity at all."""
        return self.ssc_labels < 0

    @property
    def ssc_accuracy(self) -> float:
        """Share of inputs whose SSC label is their class; isolated inputs count as wrong (table 1 of the paper)."""
        return self._share(self.ssc_labels, self.labels)

    @property
    def network_accuracy(self) -> float:
        """Share of inputs that the network classifies correctly; NaN where its predictions are not known."""
        return self._share(self.predictions, self.labels)

    @property
    def agreement(self) -> float:
        """Share of inputs whose SSC label is the network's prediction; isolated inputs count as disagreeing."""
        return self._share(self.predictions, self.ssc_labels)

    def _share(self, one: Index | None, other: Index) -> float:
        """How often two agree on inputs that have a class."""
        return float("nan") if one is None else float((one == other)[self.labelled].mean())

    def table1(self) -> dict[str, Any]:
        """The line of table 1 of the paper: how often SSC labels, classes and predictions agree in this layer."""
        return {
            "layer": self.layer,
            "epoch": self.epoch,
            "ssc_label_accuracy": self.ssc_accuracy,
            "network_accuracy": self.network_accuracy,
            "agreement": self.agreement,
        }

    def table1_to_csv(self, path: str | Path) -> None:
        """Write :meth:`table1` as a table of one line."""
        write_csv(path, {name: [value] for name, value in self.table1().items()})

    def confidently_wrong(self, count: int = 12) -> Index:
        """Inputs that the network classifies wrongly, by falling softmax score (figure 9 of the paper)."""
        if self.predictions is None or self.confidence is None:
            return np.empty(0, dtype=np.int64)
        wrong = np.flatnonzero((self.predictions != self.labels) & self.labelled)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]

    def to_csv(self, path: str | Path, class_names: Sequence[str] = ()) -> None:
        """Write one line an input.

        Args:
            path: The file.
            class_names: Names of the classes, for the columns of shares; their numbers by default.
        """
        count = len(self.labels)
        unknown = np.full(count, np.nan)
        names = [f"{c}: {class_names[c] if c < len(class_names) else c}" for c in self.classes.tolist()]
        write_csv(
            path,
            {
                "input": np.arange(count),
                "index": self.indices,
                "label": self.labels,
                "prediction": unknown if self.predictions is None else self.predictions,
                "confidence": unknown if self.confidence is None else self.confidence,
                "ssc_label": self.ssc_labels,
                "isolated": self.isolated,
                **{f"share {name}": self.shares[:, k] for k, name in enumerate(names)},
            },
        )


def last_hidden_layer(snapshot: Snapshot) -> str:
    """The layer that the paper reads single inputs from: the last one that is not the classifier.

    The classifier is what puts out what the network returns, as the forward pass showed; in snapshots that do not say,
    a last layer that puts out one number a class.

    Raises:
        SnapshotError: The snapshot has no layers.

    Example:
        >>> from lightning_ssc import snapshot
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> last_hidden_layer(snapshot(net, torch.rand(20, 4), torch.arange(20) % 2, layers="Linear"))
        '0'
    """
    names = list(snapshot.layers)
    if not names:
        raise SnapshotError(f"The snapshot of {snapshot.moment} has no layers.")
    classes = class_count(snapshot.labels, snapshot.predictions)
    return hidden_layer(names, snapshot.layers[names[-1]].features, classes, snapshot.outputs)


def hidden_layer(names: Sequence[str], features: int, classes: int, outputs: Sequence[str] | None = None) -> str:
    """:func:`last_hidden_layer`, from the names of the layers, the last one's features and the number of classes.

    Args:
        names: The layers.
        features: Features of the last one.
        classes: Number of classes.
        outputs: Those layers that put out what the network returns, or ``None`` where it is not known.

    Example:
        >>> hidden_layer(["conv", "fc"], 10, 10), hidden_layer(["conv", "fc"], 64, 10)
        ('conv', 'fc')
        >>> hidden_layer(["conv", "fc", "auxiliary"], 10, 10, ["fc"])
        'conv'
    """
    if outputs is None:
        outputs = names[-1:] if features == classes else ()
    before = itertools.takewhile(lambda name: name not in outputs, names)
    return [names[0], *before][-1]


def inputs(snapshot: Snapshot, layer: str | None = None) -> Inputs:
    """Class affinities and SSC labels of the probe's inputs in one layer, beside the network's predictions (table 1).

    Args:
        snapshot: A snapshot with labels.
        layer: Label of the layer; by default the last one before the classifier, as in the paper.

    Raises:
        SnapshotError: The snapshot has no labels or no such layer.

    Example:
        >>> from lightning_ssc import snapshot
        >>> x = torch.eye(2).repeat_interleave(6, 0) + 0.01 * torch.arange(12)[:, None]
        >>> net = torch.nn.Sequential(torch.nn.Identity())
        >>> table = inputs(snapshot(net, x, torch.tensor([0] * 6 + [1] * 6), layers="Identity"))
        >>> table.layer, table.ssc_accuracy, table.shares.shape
        ('0', 1.0, (12, 2))
    """
    name = last_hidden_layer(snapshot) if layer is None else layer
    if name not in snapshot.layers:
        raise SnapshotError(
            f"The snapshot of {snapshot.moment} holds no layer {name!r}, only {', '.join(snapshot.layers)}."
        )
    if snapshot.labels is None:
        raise SnapshotError(
            f"The snapshot of {snapshot.moment} has no class labels, so inputs have no class affinity. Give the "
            f"probe labels: (inputs, labels), or a data set whose items are such pairs."
        )
    labels, classes = snapshot.labels.numpy(), classes_of(snapshot.labels, snapshot.predictions)
    shares = shares_of(snapshot.layers[name].affinity, labels, classes)
    isolated = np.asarray(np.isnan(shares).any(1))
    ssc_labels = np.where(isolated, -1, classes[np.where(isolated[:, None], 0, shares).argmax(1)])
    return Inputs(
        layer=name,
        epoch=snapshot.epoch,
        labels=labels,
        shares=shares,
        ssc_labels=ssc_labels,
        predictions=None if snapshot.predictions is None else snapshot.predictions.numpy(),
        confidence=None if snapshot.confidence is None else snapshot.confidence.numpy(),
        indices=np.arange(len(shares)) if snapshot.indices is None else snapshot.indices.numpy(),
        classes=classes,
    )


def neighbours(graph: LayerGraph, k: int = 8) -> tuple[Index, Table]:
    """The inputs with the highest affinity to every input (figure 9 of the paper).

    Args:
        graph: A layer's graph over N inputs.
        k: How many.

    Returns:
        ``(N, k)`` inputs by falling affinity, of equal ones the lower number first, and their affinities. Where an
        input has fewer neighbours the rest is -1 with affinity 0.

    Raises:
        ValueError: ``k`` is below one.

    Example:
        >>> coef = torch.tensor([[0.0, 0.2, 0.9], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).to_sparse_csr()
        >>> neighbours(LayerGraph(coef, torch.zeros(3), True, 1), k=2)[0].tolist()
        [[2, 1], [0, -1], [0, -1]]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    affinity = graph.affinity
    crow, column, value = (
        t.numpy() for t in (affinity.crow_indices(), affinity.col_indices(), affinity.values().double())
    )
    row = np.repeat(np.arange(len(crow) - 1), np.diff(crow))
    order = np.lexsort((column, -value, row))
    place = np.arange(len(row)) - crow[row]
    nearest = np.full((len(crow) - 1, k), -1, dtype=np.int64)
    weight = np.zeros(nearest.shape)
    kept = place < k
    nearest[row[kept], place[kept]] = column[order][kept]
    weight[row[kept], place[kept]] = value[order][kept]
    return nearest, weight


def touching(graph: LayerGraph, i: int) -> LayerGraph:
    """What of a layer's graph touches one input: all that its neighbours and its shares depend on.

    Args:
        graph: The layer's graph over N inputs.
        i: The input.

    Returns:
        A graph over N inputs without the other edges. To ask it about the input is the same as to ask the whole one,
        and takes a tenth of the time.

    Example:
        >>> coef = torch.tensor([[0.0, 0.2, 0.9], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]).to_sparse_csr()
        >>> touching(LayerGraph(coef, torch.zeros(3), True, 1), 0).coef.to_dense()[0]
        tensor([0.0000, 0.2000, 0.9000])
    """
    crow, column = graph.coef.crow_indices(), graph.coef.col_indices()
    row = torch.arange(len(crow) - 1).repeat_interleave(crow.diff())
    kept = (row == i) | (column == i)
    crow = torch.cat([crow[:1], torch.bincount(row[kept], minlength=len(crow) - 1).cumsum(0)])
    coef = torch.sparse_csr_tensor(crow, column[kept], graph.coef.values()[kept], graph.coef.shape)
    return replace(graph, coef=coef, norm=None)


def embeddings(
    snapshot: Snapshot,
    layers: Sequence[str] | None = None,
    *,
    normalized: bool = False,
    tol: float = 1e-8,
    progress: Progress = iter,
) -> dict[str, Table]:
    """Every layer's inputs in the plane of two eigenvectors of its graph (figure 8 of the paper).

    Args:
        snapshot: A snapshot.
        layers: Which layers; all by default.
        normalized: Eigenvectors of the normalised Laplacian in place of the affinity matrix's, see
            :func:`lightning_ssc.functional.spectral_embedding`.
        tol: Relative residual of the eigenvectors; a picture needs no more than 1e-3.
        progress: Wrapped around the layers, such as ``tqdm.tqdm``.

    Returns:
        ``(N, 2)`` coordinates by layer; isolated inputs, and all inputs of a graph with too few edges, are NaN.

    Example:
        >>> from lightning_ssc import snapshot
        >>> x = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
        >>> embeddings(snapshot(torch.nn.Sequential(torch.nn.Linear(4, 8)), x, layers="Linear"))["0"].shape
        (20, 2)
    """
    names = list(snapshot.layers) if layers is None else layers
    with at_most(1):
        return {name: embedding(snapshot.layers[name], normalized, tol) for name in progress(names)}


def embedding(graph: LayerGraph, normalized: bool = False, tol: float = 1e-8) -> Table:
    """One layer's inputs in the plane of two eigenvectors of its graph; see :func:`embeddings`."""
    affinity = graph.affinity
    connected = int((affinity.crow_indices().diff() > 0).sum())
    if connected < 2 + normalized:
        return np.full((affinity.shape[0], 2), np.nan)
    return spectral_embedding(affinity, normalized=normalized, tol=tol).numpy()


def class_count(labels: torch.Tensor | None, predictions: torch.Tensor | None) -> int:
    """One more than the largest class among labels and predictions; 0 where there are neither."""
    return max((int(t.max()) + 1 for t in (labels, predictions) if t is not None), default=0)


def classes_of(labels: torch.Tensor | None, predictions: torch.Tensor | None) -> Index:
    """``(K,)`` the classes there are: all numbers up to the largest or, where those are ids, the ones in use."""
    if (count := class_count(labels, predictions)) <= _NUMBERED:
        return np.arange(count)
    found: Index = np.unique(np.concatenate([t.numpy() for t in (labels, predictions) if t is not None]))
    return found[found >= 0]


def columns_of(numbers: Index, classes: Index) -> Index:
    """Where numbers of classes stand among the classes there are; -1 for negative ones, which are no class."""
    return np.where(numbers < 0, -1, np.searchsorted(classes, numbers))


def shares_of(affinity: torch.Tensor, labels: Index, classes: Index) -> Table:
    """``(N, K)`` share of every input's affinity to inputs with a class that goes to each class; NaN without any."""
    # What goes to inputs without a class stands in a column of its own, which is nobody's share.
    columns = np.where(labels < 0, len(classes), columns_of(labels, classes))
    shares: Table = class_affinity(affinity, torch.from_numpy(columns), len(classes) + 1).numpy()[:, :-1]
    with np.errstate(invalid="ignore"):
        shares = shares / shares.sum(1, keepdims=True)
    return shares
