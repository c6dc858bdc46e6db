"""Runs over several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_ssc import SnapshotStore, SSCMonitor, snapshot
from tests import processes
from tests.nets import Classifier, data, trainer


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
        assert ("nc3" in layer.values) == (name == "model.9")
    assert stored.layers["model.9"].values["nc3"] == pytest.approx(alone.layers["model.9"].values["nc3"], rel=1e-4)
    metrics = [torch.load(tmp_path / f"metrics-{rank}.pt", weights_only=True) for rank in range(world)]
    assert len(metrics[0]) == len(stored.layers)
    assert all(m == metrics[0] for m in metrics)


def test_ranks_in_the_background_agree_with_ranks_in_the_foreground(tmp_path: Path) -> None:
    for background in (False, True):
        root = tmp_path / str(background)
        root.mkdir()
        assert processes.distributed(processes.train_distributed, 2, root, "**", background) == [0, 0]
    stores = [SnapshotStore(tmp_path / str(background) / "ssc") for background in (False, True)]
    assert stores[0].epochs == stores[1].epochs == [0, 1, 2]
    for one, other in zip(*stores, strict=True):
        assert (one.step, list(one.layers)) == (other.step, list(other.layers))
        for name, layer in one.layers.items():
            assert torch.equal(layer.coef.to_dense(), other.layers[name].coef.to_dense())


@pytest.mark.parametrize("background", [False, True])
def test_a_failure_on_one_rank_is_heard_on_all(tmp_path: Path, background: bool) -> None:
    assert processes.distributed(processes.fail_on_one_rank, 2, tmp_path, background) == [0, 0]
    for rank in (0, 1):
        text = (tmp_path / f"error-{rank}").read_text()
        assert text.startswith("SSC failed on rank ")  # that which owns the layer
        assert "Layer 'model.4' puts out NaN or infinity for 15 of 30 samples, first for sample 15" in text


def test_ranks_collect_together_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    assert processes.distributed(processes.collect_between_snapshots, 2, tmp_path) == [0, 0]
    for rank in (0, 1):
        assert torch.load(tmp_path / f"stored-{rank}.pt") == [[0], [0], [0, 6]]


def test_a_failure_in_the_worker_of_one_rank_is_heard_on_all(tmp_path: Path) -> None:
    assert processes.distributed(processes.fail_in_the_worker_of_one_rank, 2, tmp_path) == [0, 0]
    for rank in (0, 1):
        text = (tmp_path / f"error-{rank}").read_text()
        assert text.startswith("SSC failed on rank 1: ValueError: Layer 'model.")
        assert text.endswith("no solution")


def test_ranks_go_by_the_clock_of_rank_zero(tmp_path: Path) -> None:
    assert processes.distributed(processes.decide_by_the_clock, 2, tmp_path) == [0, 0]
    steps = [torch.load(tmp_path / f"steps-{rank}.pt") for rank in (0, 1)]
    assert steps[0] == steps[1]
    assert len(set(steps[0]) - {2 * epoch for epoch in range(12)}) > 2  # by the clock, inside epochs of two steps


def test_more_ranks_than_layers(tmp_path: Path) -> None:
    assert processes.distributed(processes.train_distributed, 3, tmp_path, ["model.9"]) == [0] * 3
    assert list(SnapshotStore(tmp_path / "ssc").load(2).layers) == ["model.9"]


def test_ranks_with_different_probes_are_told(tmp_path: Path) -> None:
    assert processes.distributed(processes.probe_by_rank, 2, tmp_path) == [0, 0]
    for rank in (0, 1):
        assert "The processes draw different probes" in (tmp_path / f"error-{rank}").read_text()


def test_a_damaged_last_snapshot_does_not_hang_a_resumed_run(tmp_path: Path) -> None:
    assert processes.distributed(processes.resume_damaged, 2, tmp_path) == [0, 0]
    assert SnapshotStore(tmp_path / "ssc").steps == [0, 2, 4]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_run_goes_on_over_more_and_over_fewer_processes(tmp_path: Path) -> None:
    def alone(epochs: int, checkpoint: Path | None) -> pl.Trainer:
        monitor = SSCMonitor("**", schedule=1, probe_size=30, heatmap=False, store=tmp_path / "ssc")
        run = trainer(tmp_path, monitor, max_epochs=epochs)
        run.fit(Classifier(), ckpt_path=checkpoint, weights_only=True)
        return run

    alone(1, None).save_checkpoint(tmp_path / "one.ckpt")
    assert processes.distributed(processes.resume_over_more, 2, tmp_path) == [0, 0]
    alone(3, tmp_path / "two.ckpt")
    store = SnapshotStore(tmp_path / "ssc")
    assert store.steps == [0, 3, 5, 8]  # an epoch has three steps, over two processes two
    assert store.epochs == [0, 1, 2, 3]
    assert len({header.run for header in store.headers()}) == 1
