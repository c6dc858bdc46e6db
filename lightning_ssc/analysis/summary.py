"""Everything that a report says of a run, in one pass over its snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.analysis.architecture import Blocks, Similarity, find_blocks, similarity
from lightning_ssc.analysis.classes import ByClass, by_class
from lightning_ssc.analysis.dynamics import Dynamics, Table, dynamics
from lightning_ssc.analysis.inputs import Index, Inputs, embeddings, inputs, last_hidden_layer, neighbours
from lightning_ssc.functional import pairwise_cka
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import Snapshot, SnapshotHeader, SnapshotStore
from lightning_ssc.threads import at_most

NEIGHBOURS = 8  # as many as figure 9 of the paper shows
_PICTURE = 1e-3  # residual of eigenvectors that are looked at, not computed with


@dataclass(frozen=True)
class LayerTable:
    """One line a layer, at the last snapshot of a run.

    Attributes:
        layer: ``(L,)`` labels.
        features: ``(L,)`` number of features a sample.
        modularity_first: ``(L,)`` modularity at the first snapshot.
        modularity_last: ``(L,)`` modularity at the last.
        settled: ``(L,)`` epoch (or step, see :attr:`Dynamics.times`) from which SSC-CKA to the final state stays above
            0.9.
        taken_back: ``(L,)`` how often it counted as settled, live, and moved after all (:meth:`Dynamics.taken_back`).
        ssc_accuracy: ``(L,)`` share of inputs whose SSC label is their class; NaN without labels.
        agreement: ``(L,)`` share of inputs whose SSC label is the network's prediction; NaN without predictions.
        neighbours: ``(L,)`` mean number of inputs that rebuild an input.
        isolated: ``(L,)`` number of inputs without any affinity.
        gap: ``(L,)`` largest relative duality gap.
        converged: ``(L,)`` whether all gaps are within the tolerance.
    """

    layer: list[str]
    features: Index
    modularity_first: Table
    modularity_last: Table
    settled: Table
    taken_back: Table
    ssc_accuracy: Table
    agreement: Table
    neighbours: Table
    isolated: Index
    gap: Table
    converged: NDArray[np.bool_]

    def to_csv(self, path: str | Path) -> None:
        """Write one line a layer."""
        write_csv(path, {field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Summary:
    """What there is to say of a run, as tables.

    Attributes:
        root: Folder of the snapshots.
        header: What the last snapshot says of itself.
        size: Number of inputs in the probe, N.
        dynamics: Curves by epoch and layer.
        layers: One line a layer.
        classes: What was measured of every class in every layer, or ``None``.
        heatmaps: ``(T, L, L)`` SSC-CKA between the layers at every snapshot.
        blocks: Blocks of every heatmap.
        similarity: SSC-CKA and linear CKA between the layers at the last snapshot.
        inputs: The inputs in the last layer before the classifier, or in the one asked for; ``None`` without labels.
        nearest: ``(N, 8)`` inputs of highest affinity in that layer.
        layer: That layer.
        embedding: ``(N, 2)`` leading eigenvectors of the affinity, by layer.
        embedding_normalized: ``(N, 2)`` eigenvectors of the normalised Laplacian, by layer.
        images: ``(N, H, W, 3)`` uint8 pictures of the inputs, or ``None``.
        class_names: Names of the classes, by number; may be empty.
    """

    root: Path
    header: SnapshotHeader
    size: int
    dynamics: Dynamics
    layers: LayerTable
    classes: ByClass | None
    heatmaps: Table
    blocks: list[Blocks]
    similarity: Similarity
    inputs: Inputs | None
    nearest: Index
    layer: str
    embedding: dict[str, Table]
    embedding_normalized: dict[str, Table]
    images: NDArray[np.uint8] | None
    class_names: tuple[str, ...]

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write every table as a CSV file; returns the files.

        Raises:
            OSError: The folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = self.dynamics.layers
        count = len(names)
        self.dynamics.to_csv(folder / "dynamics.csv")
        self.layers.to_csv(folder / "layers.csv")
        self.similarity.to_csv(folder / "similarity.csv")
        self.blocks[-1].to_csv(folder / "blocks.csv", names)
        write_csv(
            folder / "heatmaps.csv",
            {
                "epoch": np.repeat(self.dynamics.epochs, count * count),
                "step": np.repeat(self.dynamics.steps, count * count),
                "row": np.tile(np.repeat(names, count), len(self.heatmaps)),
                "column": np.tile(names, len(self.heatmaps) * count),
                "ssc_cka": self.heatmaps,
            },
        )
        points, normalized = (np.stack(list(e.values())) for e in (self.embedding, self.embedding_normalized))
        write_csv(
            folder / "embeddings.csv",
            {
                "layer": np.repeat(names, self.size),
                "input": np.tile(np.arange(self.size), count),
                **{f"affinity_{k + 1}": points[..., k] for k in range(2)},
                **{f"laplacian_{k + 1}": normalized[..., k] for k in range(2)},
            },
        )
        gains = self.dynamics.jumps()
        drops = np.repeat(self.dynamics.drops(), count, axis=0)
        write_csv(
            folder / "jumps.csv",
            {"before": drops[:, 0], "after": drops[:, 1], "layer": np.tile(names, len(gains)), "gain": gains},
        )
        write_csv(
            folder / "run.csv",
            {
                "epoch": self.dynamics.epochs[-1:],
                "step": self.dynamics.steps[-1:],
                "inputs": [self.size],
                "layers": [count],
                "depth_correlation": [self.dynamics.depth_correlation()],
            },
        )
        written = ["dynamics", "layers", "similarity", "blocks", "heatmaps", "embeddings", "jumps", "run", "neighbours"]
        nearest = {f"neighbour_{k + 1}": self.nearest[:, k] for k in range(NEIGHBOURS)}
        write_csv(folder / "neighbours.csv", {"input": np.arange(self.size), **nearest})
        if self.classes is not None:
            self.classes.to_csv(folder / "classes.csv", self.class_names)
            written.append("classes")
        if self.inputs is not None:
            self.inputs.to_csv(folder / "inputs.csv", self.class_names)
            self.inputs.table1_to_csv(folder / "table1.csv")
            written += ["inputs", "table1"]
        return [folder / f"{name}.csv" for name in written]


@at_most(1)
def summarise(
    store: SnapshotStore,
    *,
    layer: str | None = None,
    reference: Snapshot | None = None,
    progress: Progress = iter,
) -> Summary:
    """Read a run's snapshots into tables.

    Args:
        store: The snapshots.
        layer: The layer from which single inputs are read; by default the last one before the classifier.
        reference: A snapshot, say of another run, that layers of the same name are compared with.
        progress: Wrapped around what takes long, such as ``tqdm.tqdm``.

    Raises:
        SnapshotError: There are no snapshots, one cannot be read, they are of different probes, or there is no such
            layer.

    Example:
        >>> import tempfile, torch
        >>> from lightning_ssc import snapshot
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> store = SnapshotStore(tempfile.mkdtemp())
        >>> store.save(snapshot(net, torch.rand(20, 4), torch.arange(20) % 2, layers="Linear"))
        >>> summary = summarise(store)
        >>> summary.layer, summary.heatmaps.shape, summary.nearest.shape
        ('0', (1, 2, 2), (20, 8))
    """
    curves = dynamics(store, reference=reference, progress=progress)
    last = store.load(step=curves.moments[-1].step)
    layer = last_hidden_layer(last) if layer is None else layer
    table = None if last.labels is None else inputs(last, layer)
    heatmaps = np.stack([_heatmap(store, moment.step, curves.layers) for moment in progress(curves.moments)])
    graph = last.layers.get(layer) or store.load_layer(layer=layer, step=last.step)
    card = store.load_card()
    shown = card is not None and card.fingerprint == last.probe  # else these are pictures of other inputs
    images = card.images if card is not None and shown else None
    return Summary(
        root=store.root,
        header=store.header(step=last.step),
        size=len(graph.gap),
        dynamics=curves,
        layers=_layer_table(last, curves),
        classes=by_class(store),
        heatmaps=heatmaps,
        blocks=[find_blocks(heatmap) for heatmap in heatmaps],
        similarity=similarity(last),
        inputs=table,
        nearest=neighbours(graph, NEIGHBOURS)[0],
        layer=layer,
        embedding=embeddings(last, tol=_PICTURE, progress=progress),
        embedding_normalized=embeddings(last, normalized=True, tol=_PICTURE, progress=progress),
        images=images if images is not None and len(images) == len(graph.gap) else None,
        class_names=card.class_names if card is not None and shown else (),
    )


def _heatmap(store: SnapshotStore, step: int, layers: Sequence[str]) -> Table:
    """SSC-CKA between layers at one snapshot; NaN for those that it does not hold."""
    names = store.header(step=step).layers
    stored = store.pairs(step).get("pairwise_cka")
    if stored is None and names:  # of format 1, which did not keep it
        stored = pairwise_cka([layer.affinity for _, layer in store.layers(step)])
    table = np.full((len(layers), len(layers)), np.nan)
    held = [name for name in layers if name in names]
    if held and stored is not None:
        there, here = ([of.index(name) for name in held] for of in (names, layers))
        table[np.ix_(here, here)] = stored.numpy()[np.ix_(there, there)]
    return table


def _layer_table(last: Snapshot, curves: Dynamics) -> LayerTable:
    graphs = list(last.layers.values())
    nan = np.full(len(graphs), np.nan)
    of_layers = [] if last.labels is None else [inputs(last, name) for name in last.layers]
    return LayerTable(
        layer=curves.layers,
        features=np.array([graph.features for graph in graphs]),
        modularity_first=curves.modularity[0],
        modularity_last=curves.modularity[-1],
        settled=curves.settled(),
        taken_back=curves.taken_back(),
        ssc_accuracy=np.array([table.ssc_accuracy for table in of_layers]) if of_layers else nan,
        agreement=np.array([table.agreement for table in of_layers]) if of_layers else nan,
        neighbours=np.array([graph.neighbours for graph in graphs]),
        isolated=np.array([int((graph.affinity.crow_indices().diff() == 0).sum()) for graph in graphs]),
        gap=np.array([float(graph.gap.max()) for graph in graphs]),
        converged=np.array([graph.converged for graph in graphs]),
    )
