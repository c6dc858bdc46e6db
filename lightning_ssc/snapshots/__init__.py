"""Snapshots, the state of every watched layer at one moment, and where they are kept."""

from lightning_ssc.snapshots.store import (
    LayerGraph,
    MemoryStore,
    ProbeCard,
    Snapshot,
    SnapshotError,
    SnapshotHeader,
    SnapshotStore,
)

__all__ = ["LayerGraph", "MemoryStore", "ProbeCard", "Snapshot", "SnapshotError", "SnapshotHeader", "SnapshotStore"]
