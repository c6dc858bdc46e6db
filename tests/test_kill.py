"""A run that is killed loses at most the snapshot being taken."""

from __future__ import annotations

import random
import time
from pathlib import Path

from lightning_ssc import SnapshotStore
from tests import processes

EPOCHS, KILLS = 3, 20


def train(root: Path, snapshots: int | None = None, seconds: float = 0) -> bool:
    """Train, from the last checkpoint if there is one, and say whether it was done.

    With ``snapshots`` given, the process is killed some seconds after it has begun to store that many.
    """
    process = processes.start(processes.train_with_checkpoints, root, EPOCHS)
    if snapshots is not None:
        while process.is_alive() and len(list(root.glob("ssc*/epoch*"))) < snapshots:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
    process.join(timeout=120)
    return (root / "done").exists()


def stores(root: Path) -> list[SnapshotStore]:
    return [SnapshotStore(folder) for folder in root.glob("ssc*")]


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Kill a training process at twenty random moments, resume it each time, and read everything that it left."""
    moments, kills = random.Random(0), 0
    for attempt in range(3 * KILLS):
        if kills == KILLS:
            break
        root = tmp_path / str(attempt)
        root.mkdir()
        if train(root, moments.randint(0, EPOCHS), moments.uniform(0, 0.15)):
            continue  # it was faster
        kills += 1
        for store in stores(root):
            assert store.epochs == list(range(len(store)))
            assert [taken.epoch for taken in store] == store.epochs  # every one of them can be read
        finished = {epoch for store in stores(root) for epoch in store.epochs}
        assert train(root)
        store = max(stores(root), key=len)
        assert finished <= set(store.epochs)
        assert [(taken.epoch, taken.step) for taken in store] == [(0, 0), (1, 2), (2, 5), (3, 8)]
        assert not list(store.root.glob("*.partial"))
    assert kills == KILLS
