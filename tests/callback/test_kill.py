"""A run that is killed loses at most the snapshot being taken."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from lightning_ssc import SnapshotStore
from tests import processes

EPOCHS, KILLS = 3, {False: 20, True: 8}  # in the background or not
STEPS = {0: 0, 1: 3, 2: 6, 3: 9}  # by epoch


def train(root: Path, snapshots: int | None = None, seconds: float = 0, background: bool = False) -> bool:
    """Train, from the last checkpoint if there is one, and say whether it was done.

    With ``snapshots`` given, the process is killed some seconds after it has begun to store that many.
    """
    process = processes.start(processes.train_with_checkpoints, root, EPOCHS, background)
    if snapshots is not None:
        while process.is_alive() and len(list(root.glob("ssc*/step*"))) < snapshots:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
    process.join(timeout=120)
    return (root / "done").exists()


def stores(root: Path) -> list[SnapshotStore]:
    return [SnapshotStore(folder) for folder in root.glob("ssc*")]


@pytest.mark.parametrize(
    ("background", "seed"), [(background, seed) for background, kills in KILLS.items() for seed in range(kills)]
)
def test_a_kill_at_a_random_moment(tmp_path: Path, background: bool, seed: int) -> None:
    """Kill a training process, resume it, and read everything that it left."""
    moments = random.Random(f"{background} {seed}")
    for attempt in range(10):
        root = tmp_path / str(attempt)
        root.mkdir()
        if not train(root, moments.randint(0, EPOCHS), moments.uniform(0, 0.15), background):
            break  # else it was faster
    else:
        pytest.fail("the process was done before every kill")
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
