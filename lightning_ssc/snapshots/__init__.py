"""Snapshots, the state of every watched layer at one moment, and where they are kept."""

from lightning_ssc.settings import Settings
from lightning_ssc.snapshots.claim import Claim
from lightning_ssc.snapshots.resume import (
    MismatchError,
    OnMismatch,
    continued_folder,
    differences,
    free_folder,
    own_folder,
)
from lightning_ssc.snapshots.snapshot import (
    LayerGraph,
    Moment,
    ProbeCard,
    Snapshot,
    SnapshotError,
    SnapshotHeader,
    epochs_as_steps,
)
from lightning_ssc.snapshots.store import SUPERSEDED, MemoryStore, SnapshotStore, Store

__all__ = [
    "SUPERSEDED",
    "Claim",
    "LayerGraph",
    "MemoryStore",
    "MismatchError",
    "Moment",
    "OnMismatch",
    "ProbeCard",
    "Settings",
    "Snapshot",
    "SnapshotError",
    "SnapshotHeader",
    "SnapshotStore",
    "Store",
    "continued_folder",
    "differences",
    "epochs_as_steps",
    "free_folder",
    "own_folder",
]
