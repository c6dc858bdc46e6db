"""From the folder that a person names to the snapshots of a run."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_ssc.snapshots import SnapshotError, SnapshotStore
from lightning_ssc.snapshots.store import SUPERSEDED


def find_store(run: str | Path) -> SnapshotStore:
    """The snapshots of the run that a folder holds.

    Args:
        run: The folder of snapshots itself, the version folder of a Lightning logger, or any folder above with the
            snapshots of one run below it.

    Raises:
        SnapshotError: There is no such folder, no snapshot below it, or several runs (the message lists them).

    Example:
        >>> import tempfile, torch
        >>> from lightning_ssc import snapshot
        >>> version = Path(tempfile.mkdtemp())
        >>> SnapshotStore(version / "ssc").save(snapshot(torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.rand(5, 3)))
        >>> find_store(version).root.name
        'ssc'
    """
    root = Path(run)
    if not root.is_dir():
        raise SnapshotError(f"{root} is not a folder. Name a run's version folder, or its folder of snapshots (ssc).")
    if len(store := SnapshotStore(root)):
        return store
    found: list[Path] = []
    for folder, below, _ in os.walk(root):
        below[:] = sorted(name for name in below if name != SUPERSEDED)
        if len(SnapshotStore(folder)):
            found.append(Path(folder))
            below.clear()  # what lies inside belongs to this run
    if not found:
        raise SnapshotError(
            f"There are no snapshots (epoch_*.npz) in {root} or below it. SSCMonitor writes them to <log_dir>/ssc; "
            f"'lightning-ssc analyze' takes them from checkpoints."
        )
    if len(found) > 1:
        raise SnapshotError(f"{root} holds several runs; name one of them: {', '.join(str(path) for path in found)}.")
    return SnapshotStore(found[0])
