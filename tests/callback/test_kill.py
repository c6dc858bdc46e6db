"""A run that is killed loses at most the snapshot being taken."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from lightning_ssc import SnapshotStore
from tests import kills, processes

EPOCHS = 3
STEPS = {0: 0, 1: 3, 2: 6, 3: 9}  # by epoch
EXPECTED = {"epochs": [*STEPS.values()], "steps": [*range(10)]}

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")


@pytest.mark.parametrize("how", ["epochs", "steps", "background", "ranks"])
def test_a_kill_at_twenty_moments(tmp_path: Path, how: str) -> None:
    """What was finished by then is there and can be read, and the run goes on from it to its end."""
    epochs, world = 2, 2 if how == "ranks" else 1
    for part in (kills.train_and_copy, kills.resume_copies):
        assert processes.distributed(part, world, tmp_path, how, epochs, patience=280) == [0] * world
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told) == kills.MOMENTS
    assert len({str(steps) for steps in told.values()}) > 2  # of all ages
    expected = [*range(7 if how == "steps" else 5)] if how in ("steps", "ranks") else [0, 3, 6]
    for moment, before in told.items():
        root = tmp_path / f"resumed-{moment}"
        store = max(stores(root), key=len)
        finished = {step for steps in before for step in steps}
        assert finished <= set(store.steps)
        assert [taken.step for taken in store] == store.steps
        # What is being solved goes with the process, and only the checkpoint's own epoch can be taken again.
        assert store.steps == expected or (how == "background" and expected[-1] in store.steps)
        assert not list(store.root.glob("*.partial"))


@pytest.mark.parametrize(("how", "seed"), [(how, seed) for how in EXPECTED for seed in range(3)])
def test_a_kill_at_a_random_moment(tmp_path: Path, how: str, seed: int) -> None:
    """Kill a training process, resume it, and read everything that it left."""
    moments = random.Random(f"{how} {seed}")
    last = STEPS[EPOCHS] if how == "steps" else EPOCHS
    for attempt in range(10):
        root = tmp_path / str(attempt)
        root.mkdir()
        if not train(root, how, moments.randint(0, last), moments.uniform(0, 0.15)):
            break  # else it was faster
    else:
        pytest.fail("the process was done before every kill")
    for store in stores(root):
        assert store.steps == EXPECTED[how][: len(store)]
        assert [taken.step for taken in store] == store.steps  # every one of them can be read
    finished = {step for store in stores(root) for step in store.steps}
    assert train(root, how)
    store = max(stores(root), key=len)
    assert finished <= set(store.steps)
    assert store.steps == EXPECTED[how]
    assert [taken.epoch for taken in store] == pytest.approx([step / 3 for step in EXPECTED[how]])
    assert not list(store.root.glob("*.partial"))


def train(root: Path, how: str, snapshots: int | None = None, seconds: float = 0) -> bool:
    """Train, from the last checkpoint if there is one, and say whether it was done.

    With ``snapshots`` given, the process is killed some seconds after it has begun to store that many.
    """
    process = processes.start(kills.train, root, how, EPOCHS)
    if snapshots is not None:
        while process.is_alive() and len(list(root.glob("ssc*/step*"))) < snapshots:
            time.sleep(0.002)
        time.sleep(seconds)
        process.kill()
    process.join(timeout=120)
    return (root / "done").exists()


def stores(root: Path) -> list[SnapshotStore]:
    return [SnapshotStore(folder) for folder in root.glob("ssc*")]
