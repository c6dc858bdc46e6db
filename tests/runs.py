"""Runs without training: snapshots whose graphs are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from lightning_ssc import snapshot
from lightning_ssc.functional.gram_sketch import gram_sketch
from lightning_ssc.measures import of_classes
from lightning_ssc.snapshots import LayerGraph, Moment, ProbeCard, Snapshot, SnapshotStore

HOSTILE = "</script><img src=x onerror=alert(1)><b>&lt;</b>$\\frac{%{x}{{data}}"


def layer_graph(coef: ArrayLike, features: int = 50, linear: bool = False) -> LayerGraph:
    """A layer with these self-expression coefficients, (N, N)."""
    dense = torch.as_tensor(np.asarray(coef), dtype=torch.float32)
    factor = gram_sketch(dense @ dense.T) if linear else None
    return LayerGraph(dense.to_sparse_csr(), torch.full((len(dense),), 1e-6), True, features, factor)


def taken(
    layers: Mapping[str, ArrayLike],
    labels: Sequence[int] | None = None,
    predictions: Sequence[int] | None = None,
    confidence: Sequence[float] | None = None,
    **more: Any,
) -> Snapshot:
    """A snapshot of layers with these coefficients, and what is measured of classes in them."""
    classes = None if labels is None else torch.tensor(labels)
    graphs = {name: layer_graph(coef, linear=more.get("linear", False)) for name, coef in layers.items()}
    return Snapshot(
        moment=Moment(more.get("step", int(more.get("epoch", 0))), more.get("epoch", 0)),
        layers={name: replace(g, of_classes=of_classes(g.measurable(classes))) for name, g in graphs.items()},
        labels=classes,
        predictions=None if predictions is None else torch.tensor(predictions),
        confidence=None if confidence is None else torch.tensor(confidence),
        settings={"tau": 10.0, "solver": "active_set"},
        probe=more.get("probe", "made"),
        seconds={"total": 1.5},
        learning_rate=more.get("learning_rate"),
    )


def random_coef(n: int, seed: int, density: float = 0.3) -> np.ndarray[Any, Any]:
    """Random coefficients of both signs, without a diagonal."""
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(n, n)) * (rng.random((n, n)) < density)
    np.fill_diagonal(coef, 0)
    return coef


def made_run(
    root: Path,
    *,
    n: int = 30,
    epochs: Sequence[int] = (0, 1, 2),
    layers: Sequence[str] = ("net.conv1", "net.conv2", "net.fc"),
    class_names: Sequence[str] = ("cat", "dog", "bird"),
    images: bool = True,
    labels: bool = True,
    probe: str = "made",
    seed: int = 0,
) -> SnapshotStore:
    """A stored run whose graphs move from random ones to final ones, and whose learning rate drops after epoch 1."""
    store = SnapshotStore(root)
    classes = (np.arange(n) % len(class_names)).tolist()
    predictions = [*classes[:-2], (classes[-2] + 1) % len(class_names), (classes[-1] + 1) % len(class_names)]
    for t, epoch in enumerate(epochs):
        share = t / max(1, len(epochs) - 1)
        graphs = {
            name: (1 - share) * random_coef(n, seed + 100 * t + i) + share * random_coef(n, seed + 7 + i)
            for i, name in enumerate(layers)
        }
        of_samples = (classes, predictions, np.linspace(0.5, 0.99, n).tolist()) if labels else (None, None, None)
        rate = 0.1 if epoch < 2 else 0.02
        store.save(
            taken(graphs, *of_samples, epoch=epoch, step=10 * epoch, linear=True, probe=probe, learning_rate=rate)
        )
    pictures = np.random.default_rng(seed).integers(0, 255, (n, 8, 8, 3), dtype=np.uint8) if images else None
    store.save_card(ProbeCard(probe, pictures, tuple(class_names)))
    return store


def doubtful_run(root: Path, wrong: Sequence[int], n: int = 90) -> SnapshotStore:
    """Three classes apart in the last layers and not in the first, at three moments; some labels were changed."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(n) % 3
    x = 3 * torch.eye(8)[labels] + 0.5 * torch.randn(n, 8, generator=generator)
    given = labels.clone()
    given[list(wrong)] = (given[list(wrong)] + 1) % 3
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
    kept = SnapshotStore(root)
    for step in (0, 10, 20):
        kept.save(snapshot(net, x, given, layers="Linear", epoch=step))
    kept.save_card(ProbeCard(kept.header(0).probe, None, ("cat", "dog", "bird")))
    return kept
