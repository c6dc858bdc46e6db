"""Runs that are killed, and runs over several processes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from lightning_ssc import SnapshotStore, snapshot
from tests import processes
from tests.nets import Classifier, data


def test_a_killed_run_loses_at_most_the_snapshot_being_taken(tmp_path: Path) -> None:
    """Kill a training process at twenty random moments, resume it each time, and read everything that it left."""
    epochs, moments, kills = 3, random.Random(0), 0
    for root in (tmp_path / "imports", tmp_path / "whole"):
        begin = time.monotonic()
        process = processes.start(processes.train_with_checkpoints, root, epochs)
        process.join(timeout=120)
        assert process.exitcode == 0
        whole = time.monotonic() - begin
    for attempt in range(20):
        root = tmp_path / str(attempt)
        root.mkdir()
        process = processes.start(processes.train_with_checkpoints, root, epochs)
        process.join(timeout=moments.uniform(0.2, 1.0) * whole)
        process.kill()
        process.join()
        kills += not (root / "done").exists()
        for folder in root.glob("ssc*"):
            store = SnapshotStore(folder)
            assert store.epochs == list(range(len(store)))
            assert [taken.epoch for taken in store] == store.epochs  # every one of them can be read
        before = {path.name for folder in root.glob("ssc*") for path in folder.glob("epoch*")}
        if not (root / "done").exists():
            process = processes.start(processes.train_with_checkpoints, root, epochs)
            process.join(timeout=120)
            assert process.exitcode == 0
        finished = max((SnapshotStore(folder) for folder in root.glob("ssc*")), key=len)
        assert finished.epochs == list(range(epochs + 1))
        assert before <= {path.name for path in finished.root.glob("epoch*")}
        assert not list(finished.root.glob("*.partial"))
        assert [taken.epoch for taken in finished] == finished.epochs
    assert kills >= 10  # the moments really fall into the runs


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_layers_and_agree_with_one_process(tmp_path: Path, world: int) -> None:
    assert processes.distributed(processes.train_distributed, world, tmp_path) == [0] * world
    store = SnapshotStore(tmp_path / "ssc")
    assert store.epochs == [0, 1, 2]
    stored = store.load(2)
    model = Classifier()
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    chosen = data(seed=2).tensors[0][stored.indices]
    alone = snapshot(model, chosen, stored.labels, layers="**")
    assert list(stored.layers) == list(alone.layers)
    for name, layer in alone.layers.items():
        one, other = stored.layers[name].coef.to_dense(), layer.coef.to_dense()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    metrics = [torch.load(tmp_path / f"metrics-{rank}.pt", weights_only=True) for rank in range(world)]
    assert len(metrics[0]) == len(stored.layers)
    assert all(m == metrics[0] for m in metrics)


def test_a_failure_on_one_rank_is_heard_on_all(tmp_path: Path) -> None:
    assert processes.distributed(processes.fail_on_one_rank, 2, tmp_path) == [0, 0]
    for rank in (0, 1):
        text = (tmp_path / f"error-{rank}").read_text()
        assert "The snapshot failed on rank 1: ValueError: Layer 'model.4' puts out NaN" in text
