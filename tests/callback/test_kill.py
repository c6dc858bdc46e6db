"""A run that is killed loses at most the snapshot being taken."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from lightning_ssc import SnapshotStore
from tests import processes

EPOCHS, KILLS = 3, {False: 20, True: 8}  # in the background or not
STEPS = {0: 0, 1: 2, 2: 5, 3: 8}  # by epoch


def train(root: Path, snapshots: int | None = None, seconds: float = 0, background: bool = False) -> bool:
    """Train, from the last checkpoint if there is one, and say whether it was done.

    With ``snapshots`` given, the process is killed some seconds after it has begun to store that many.
    """
    process = processes.start(processes.train_with_checkpoints, root, EPOCHS, background)
    if snapshots is not None:
        while process.is_alive() and len(list(root.glob("ssc*/epoch*"))) < snapshots:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
    process.join(timeout=120)
    return (root / "done").exists()


def stores(root: Path) -> list[SnapshotStore]:
    return [SnapshotStore(folder) for folder in root.glob("ssc*")]


@pytest.mark.parametrize("background", [False, True])
def test_kills_at_random_moments(tmp_path: Path, background: bool) -> None:
    """Kill a training process at many random moments, resume it each time, and read everything that it left."""
    moments, kills = random.Random(0), 0
    for attempt in range(3 * KILLS[background]):
        if kills == KILLS[background]:
            break
        root = tmp_path / str(attempt)
        root.mkdir()
        if train(root, moments.randint(0, EPOCHS), moments.uniform(0, 0.15), background):
            continue  # it was faster
        kills += 1
        for store in stores(root):
            assert background or store.epochs == list(range(len(store)))
            assert [taken.epoch for taken in store] == store.epochs  # every one of them can be read
        finished = {epoch for store in stores(root) for epoch in store.epochs}
        assert train(root, background=background)
        store = max(stores(root), key=len)
        assert finished <= set(store.epochs)
        steps = {taken.epoch: taken.step for taken in store}
        assert steps == {epoch: STEPS[epoch] for epoch in steps}
        # What is being solved goes with the process, and only the checkpoint's own epoch can be taken again.
        assert len(steps) == EPOCHS + 1 or (background and EPOCHS in steps)
        assert not list(store.root.glob("*.partial"))
    assert kills == KILLS[background]
