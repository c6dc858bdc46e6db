"""What a run is compared with throughout: another run's snapshot, or a network with a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_ssc.snapshots import Snapshot, SnapshotStore
from lightning_ssc.weights import CheckpointError, network_of, read_checkpoint


def read_reference(path: Path) -> Snapshot | Mapping[str, Any]:
    """A stored snapshot, the last one of a folder, or the weights in a checkpoint.

    Args:
        path: A file of a folder of snapshots, such a folder, or a checkpoint; of one that holds several networks
            ``FILE:NAME``, by what stands before the names of the network's weights.

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
    file, _, network = path.name.rpartition(":")
    if not path.exists() and file and (whole := path.with_name(file)).is_file():
        return network_of(_weights(whole), network)
    if not path.exists():
        raise CheckpointError(
            f"reference={path} does not exist. Name a run's folder of snapshots, one of its files, or a checkpoint of "
            f"this network."
        )
    return _weights(path)


def _weights(path: Path) -> Mapping[str, Any]:
    content = read_checkpoint(path)
    weights: Mapping[str, Any] = content.get("state_dict", content)
    return weights
