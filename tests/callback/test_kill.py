"""A run that is killed loses at most the snapshot being taken."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from lightning_ssc import SnapshotStore
from tests import processes

EPOCHS, KILLS = 3, {"epochs": 10, "steps": 10, "background": 8}
STEPS = {0: 0, 1: 3, 2: 6, 3: 9}  # by epoch
EXPECTED = {"epochs": [*STEPS.values()], "steps": [*range(10)]}


def train(root: Path, snapshots: int | None = None, seconds: float = 0, how: str = "epochs") -> bool:
    """Train, from the last checkpoint if there is one, and say whether it was done.

    With ``snapshots`` given, the process is killed some seconds after it has begun to store that many.
    """
    process = processes.start(processes.train_with_checkpoints, root, EPOCHS, how == "background", how == "steps")
    if snapshots is not None:
        while process.is_alive() and len(list(root.glob("ssc*/step*"))) < snapshots:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
    process.join(timeout=120)
    return (root / "done").exists()


def stores(root: Path) -> list[SnapshotStore]:
    return [SnapshotStore(folder) for folder in root.glob("ssc*")]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize(("how", "seed"), [(how, seed) for how, kills in KILLS.items() for seed in range(kills)])
def test_a_kill_at_a_random_moment(tmp_path: Path, how: str, seed: int) -> None:
    """Kill a training process, resume it, and read everything that it left."""
    moments = random.Random(f"{how} {seed}")
    last = STEPS[EPOCHS] if how == "steps" else EPOCHS
    for attempt in range(10):
        root = tmp_path / str(attempt)
        root.mkdir()
        if not train(root, moments.randint(0, last), moments.uniform(0, 0.15), how):
            break  # else it was faster
    else:
        pytest.fail("the process was done before every kill")
    for store in stores(root):
        assert how == "background" or store.steps == EXPECTED[how][: len(store)]
        assert [taken.step for taken in store] == store.steps  # every one of them can be read
    finished = {step for store in stores(root) for step in store.steps}
    assert train(root, how=how)
    store = max(stores(root), key=len)
    assert finished <= set(store.steps)
    if how == "steps":
        assert store.steps == list(range(10))
        assert [taken.epoch for taken in store] == pytest.approx([step / 3 for step in range(10)])
    else:
        steps = {taken.epoch: taken.step for taken in store}
        assert steps == {epoch: STEPS[epoch] for epoch in steps}  # type: ignore[index]
        # What is being solved goes with the process, and only the checkpoint's own epoch can be taken again.
        assert len(steps) == EPOCHS + 1 or (how == "background" and EPOCHS in steps)
    assert not list(store.root.glob("*.partial"))
