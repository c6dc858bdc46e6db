"""What a page shows of a run, as pieces that can be JSON: pure functions of stored snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_ssc import measures, plots
from lightning_ssc.analysis import Blocks, find_blocks, similarity, stored
from lightning_ssc.analysis.classes import class_table
from lightning_ssc.analysis.dynamics import Dynamics, Table
from lightning_ssc.analysis.inputs import (
    Index,
    classes_of,
    columns_of,
    embedding,
    hidden_layer,
    neighbours,
    shares_of,
    touching,
)
from lightning_ssc.live.packing import pack, pack_coarsely, pack_integers, sprite
from lightning_ssc.measures import Measure
from lightning_ssc.snapshots import LayerGraph, ProbeCard, Snapshot, SnapshotError, SnapshotHeader, SnapshotStore
from lightning_ssc.snapshots.claim import owner

_OF_LABELS = {"labels", "parted", "classed", "collapse", "ssc_label", "nearest_mean", "ridge_margin"}
NEIGHBOURS = 8  # as many as figure 9 of the paper shows
_PICTURE = 1e-3  # residual of eigenvectors that are looked at, not computed with

Piece = dict[str, Any]


def readable(store: SnapshotStore) -> tuple[list[SnapshotHeader], list[str]]:
    """The headers of a run's snapshots, ascending, and why files are left out: damaged, newer, of another probe."""
    found = list(store.headers())
    headers = [header for header in found if isinstance(header, SnapshotHeader)]
    troubles = [str(error) for error in found if isinstance(error, SnapshotError)]
    if headers:
        probe = headers[-1].probe
        troubles += [
            f"The snapshot of {h.moment} is of another probe than the last one." for h in headers if h.probe != probe
        ]
        headers = [header for header in headers if header.probe == probe]
    return headers, troubles


def state(root: Path) -> str:
    """Whether a process writes into a folder: ``"running"``, ``"crashed"``, ``"elsewhere"`` or ``"over"``."""
    process = owner(root)
    if process is None:
        return "over"
    return "elsewhere" if process.is_elsewhere() else "crashed" if process.is_gone() else "running"


def run(store: SnapshotStore) -> Piece:
    """A run as its headers tell it: moments, layers, curves, settings; no graph is read."""
    headers, troubles = readable(store)
    if not headers:
        return {"layers": [], "moments": [], "measures": [], "troubles": troubles}
    table, last, files = stored(headers), headers[-1], store.files()
    samples: Mapping[str, Any] = {}
    classes: Index = np.arange(0)
    features = 0
    try:
        samples = store.of_samples(last.step)
        classes = classes_of(samples.get("labels"), samples.get("predictions"))
        features = store.load_layer(layer=last.layers[-1], step=last.step).features
    except (SnapshotError, IndexError) as error:
        troubles.append(str(error))
    card = None
    try:
        card = _card(store, last.probe)
    except SnapshotError as error:
        troubles.append(str(error))
    return {
        "layers": table.layers,
        "short": plots.short_names(table.layers),
        "hidden": hidden_layer(table.layers, features, len(classes), last.outputs) if table.layers else None,
        "moments": [
            {
                "step": header.step,
                "epoch": float(header.epoch) if np.isfinite(header.epoch) else None,
                "time": files[header.step].stat().st_mtime,
                "text": str(header.moment),
                "rate": header.learning_rate,
                "seconds": {key: value for key, value in header.seconds.items() if value is not None},
            }
            for header in headers
        ],
        "drops": [[t, t + 1] for t in table.before_drops().tolist()],
        "unit": table.unit,
        "measures": [
            curve(record, table.curves[record.name], table.spreads.get(record.name))
            | ({"ceiling": table.ceiling} if record.name == "modularity" and table.ceiling <= 1 else {})
            for record in plots.present(table)
            if record.over != "final"  # which is not known yet
        ],
        "size": last.size,
        "probe": last.probe,
        "settings": {key: str(value) for key, value in last.settings.items()},
        "versions": {key: str(value) for key, value in last.versions.items()},
        "classes": [plots.class_name(c, card.class_names if card else ()) for c in classes.tolist()],
        "labels": "labels" in samples,
        "pictures": len(_shown(card)) == last.size,
        "notes": [{"text": note, "moment": str(header.moment)} for header in headers for note in header.notes],
        "unmeasured": unmeasured(table, last, samples),
        "layer_seconds": pack([[of.layer_seconds.get(name, np.nan) for name in table.layers] for of in headers]),
        "troubles": troubles,
    }


def unmeasured(table: Dynamics, last: SnapshotHeader, samples: Mapping[str, Any]) -> list[dict[str, str]]:
    """What no snapshot has a value of, and why."""
    known = plots.present(table)
    return [
        {"title": record.title, "why": _why(record, table, last, samples)}
        for record in measures.CURVES
        if record not in known and record.over not in ("final", "reference")
    ]


def _why(record: Measure, table: Dynamics, last: SnapshotHeader, samples: Mapping[str, Any]) -> str:
    needs = set(record.needs)
    if needs & _OF_LABELS and "labels" not in samples:
        return "the probe has no class labels"
    if "predictions" in needs and "predictions" not in samples:
        return "what the network returns is not a score a class"
    if "linear" in needs and not last.settings.get("linear_cka", True):
        return "linear_cka=False"
    if record.over in ("previous", "start") and len(table.moments) < 2:
        return "it takes a second snapshot"
    return "this version measures it and the one that took the snapshots did not, or there was nothing to measure"


def curve(record: Measure, values: Table, spreads: Table | None = None) -> Piece:
    """A measure of every layer over the moments, with its standard errors where it has any."""
    return {
        "name": record.name,
        "title": record.title,
        "axis": record.axis,
        "group": record.group,
        "main": record.pictured,
        "meaning": record.meaning,
        "range": list(record.range),
        "log": plots.is_logarithmic(record, values),
        "over": record.over,
        "values": pack(values),
        **({} if spreads is None or np.isnan(spreads).all() else {"spreads": pack(spreads)}),
    }


def computed(
    layer: LayerGraph, measured: Mapping[str, float], latest: LayerGraph, labels: Tensor | None
) -> dict[str, float]:
    """What a layer measures against its latest state, and what was not measured of it when it was taken."""
    values = measures.of_layer(layer.measurable(labels), measured)
    values = {name: value for name, value in values.items() if name not in measured}
    return values | measures.between("final", layer, latest)


def computed_curves(
    headers: Sequence[SnapshotHeader], values: Sequence[Mapping[str, Mapping[str, float]]]
) -> list[Piece]:
    """Curves from what was computed of every snapshot, by layer and measure; those that no header has values of."""
    layers = headers[-1].layers
    known = {record.name for record in plots.present(stored(headers))}

    def table(name: str) -> Table:
        return np.array([[of.get(layer, {}).get(name, np.nan) for layer in layers] for of in values], dtype=float)

    return [
        curve(record, curves, table(record.spread_name) if record.spread else None)
        for record in measures.CURVES
        if record.name not in known and not np.isnan(curves := table(record.name)).all()
    ]


def heatmap(store: SnapshotStore, step: int, layers: Sequence[str]) -> Piece:
    """The tables between the layers of a snapshot, with the blocks found in each."""
    tables = {name: table for name, table in pair_tables(store, step, layers).items() if not np.isnan(table).all()}
    return {
        name: {"values": pack_coarsely(table), "blocks": _blocks(find_blocks(table))} for name, table in tables.items()
    }


def pair_tables(store: SnapshotStore, step: int, layers: Sequence[str]) -> dict[str, Table]:
    """Tables ``(L, L)`` between layers at one snapshot; NaN for those that it does not hold."""
    names, kept = store.header(step=step).layers, store.pairs(step)
    if not kept and names:  # of format 1, which did not keep them
        taken = store.load(step=step)
        table = similarity(taken)
        kept = {"pairwise_cka": table.ssc, "pairwise_linear_cka": table.linear}  # type: ignore[dict-item]
    held = [name for name in layers if name in names]
    there, here = ([of.index(name) for name in held] for of in (names, layers))
    found = {}
    for record in measures.TABLES:
        if record.name in kept:
            found[record.name] = np.full((len(layers), len(layers)), np.nan)
            found[record.name][np.ix_(here, here)] = np.asarray(kept[record.name])[np.ix_(there, there)]
    return found


def classes(store: SnapshotStore, step: int, layers: Sequence[str]) -> Piece:
    """Tables ``(L, K)`` of what was measured of classes at one moment, by measure; empty where nothing was."""
    found, of_samples = store.of_classes(step), store.of_samples(step)
    names = classes_of(of_samples.get("labels"), of_samples.get("predictions"))
    return {
        record.name: {"title": record.title, "meaning": record.meaning, "values": pack_coarsely(table)}
        for record in measures.CLASSES
        if not np.isnan(table := class_table(found, record.name, of_samples.get("labels"), layers, names)).all()
    }


def _blocks(blocks: Blocks) -> Piece:
    contrast, chessboard = blocks.contrast, blocks.chessboard
    return {
        "starts": blocks.starts,
        "within": [None if np.isnan(value) else float(value) for value in blocks.within],
        "contrast": None if np.isnan(contrast) else contrast,
        "chessboard": None if np.isnan(chessboard) else chessboard,
    }


def between(one: Snapshot, other: Snapshot) -> Piece:
    """All layers of one snapshot against all of another one, of the same run or another."""
    table = similarity(one, other)
    tables = {"pairwise_cka": table.ssc, "pairwise_linear_cka": table.linear}
    return {
        "rows": plots.short_names(table.rows),
        "columns": plots.short_names(table.columns),
        "tables": {name: pack_coarsely(values) for name, values in tables.items() if not np.isnan(values).all()},
    }


def samples(store: SnapshotStore, step: int) -> Piece:
    """What the network made of every input at one moment."""
    found = store.of_samples(step)
    classes = classes_of(found.get("labels"), found.get("predictions"))
    kinds: dict[str, Any] = {
        "labels": lambda numbers: pack_integers(columns_of(numbers, classes)),
        "predictions": lambda numbers: pack_integers(columns_of(numbers, classes)),
        "indices": pack_integers,
        "confidence": pack_coarsely,
    }
    return {name: kind(found[name].numpy()) if name in found else None for name, kind in kinds.items()}


def points(graph: LayerGraph, normalized: bool) -> NDArray[np.float32]:
    """``(N, 2)`` places of the inputs by two eigenvectors of a layer's graph, for looking at."""
    return embedding(graph, normalized, _PICTURE).astype(np.float32)


def around(graph: LayerGraph, labels: Any, classes: Index) -> tuple[Index, NDArray[np.float32] | None]:
    """``(N, 8)`` nearest inputs of every input and, with labels, ``(N, K)`` shares of its affinity by class."""
    shares = None if labels is None else shares_of(graph.affinity, labels.numpy(), classes).astype(np.float32)
    return neighbours(graph, NEIGHBOURS)[0], shares


def around_one(graph: LayerGraph, index: int, labels: Any, classes: Index) -> tuple[Index, NDArray[np.float32] | None]:
    """The row of :func:`around` of one input."""
    nearest, shares = around(touching(graph, index), labels, classes)
    return nearest[index], None if shares is None else shares[index]


def pack_rows(rows: Sequence[tuple[Index, NDArray[np.float32] | None]]) -> Piece:
    """Neighbours and shares of one input in several graphs."""
    shares = [of for _, of in rows if of is not None]
    nearest = np.stack([nearest for nearest, _ in rows])
    return pack_around(nearest, np.stack(shares) if len(shares) == len(rows) else None)


def pack_around(nearest: Index, shares: NDArray[np.float32] | None) -> Piece:
    """Neighbours and shares of inputs, one a row."""
    return {"nearest": pack_integers(nearest), "shares": None if shares is None else pack_coarsely(shares)}


def pictures(store: SnapshotStore, probe: str) -> Piece | None:
    """All pictures of the probe on one sheet, or the texts of its inputs; ``None`` where there are neither."""
    card = _card(store, probe)
    if card is None or len(_shown(card)) == 0:
        return None
    return {"texts": list(card.texts)} if card.images is None else sprite(card.images)


def _shown(card: ProbeCard | None) -> Any:
    return () if card is None else card.texts if card.images is None else card.images


def _card(store: SnapshotStore, probe: str) -> ProbeCard | None:
    """What is kept of the probe, unless it shows other inputs."""
    card = store.load_card()
    return card if card is not None and card.fingerprint == probe else None
