"""What a run is compared with throughout: another run's snapshot, or a network with a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_ssc.snapshots import Snapshot, SnapshotStore
from lightning_ssc.weights import CheckpointError, read_checkpoint


def read_reference(path: Path) -> Snapshot | Mapping[str, Any]:
    """A stored snapshot, the last one of a folder, or the weights in a checkpoint.

    Args:
        path: A file of a folder of snapshots, such a folder, or a checkpoint.

    Raises:
        CheckpointError: It is none of these, or holds no snapshots.
        SnapshotError: The snapshot cannot be read.
    """
    if path.is_dir():
        store = SnapshotStore(path)
        if not store.steps:
            raise CheckpointError(
                f"reference={path} holds no snapshots. Name a run's folder of snapshots, one of its files, or a "
                f"checkpoint of this network."
            )
        return store.load(step=store.steps[-1])
    beside = SnapshotStore(path.parent)
    for step in beside.steps:
        if path == beside.path(step):
            return beside.load(step=step)
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"reference={error} Name a run's folder of snapshots, one of its files, or a checkpoint that "
            f"torch.load(weights_only=True) opens."
        ) from error
    weights: Mapping[str, Any] = content.get("state_dict", content)
    return weights
