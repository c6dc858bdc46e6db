"""Networks whose weights several processes share: the graphs are those of the same network on one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_ssc import Recorder, SnapshotStore, snapshot
from tests import processes, sharded

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this release of torch does not run on CPUs"
)


def test_graphs_are_those_of_the_network_on_one_process(tmp_path: Path) -> None:
    assert processes.distributed(sharded.share_weights, 2, tmp_path) == [0, 0]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0]["fsdp"] == told[1]["fsdp"] == ["a", "act", "b", "head"]
    # Between the linear layers each process has a part of the activations, which nothing says how to put together.
    assert told[0]["tensor parallel"] == told[1]["tensor parallel"] == ["a", "b", "head"]
    assert told[0]["fsdp apart"] < 1e-5  # batches of another size
    assert told[0]["tensor parallel apart"] < 1e-3  # sums in another order, three features of 31 inputs
    for kind in ("fsdp", "tensor parallel"):
        assert told[0][f"{kind} predictions"]
        assert all(t[f"{kind} as before"] for t in told)  # no process is left with the whole weights
    assert [t["fsdp ran"] for t in told] == [16, 15]  # each its share of the inputs
    assert [t["tensor parallel ran"] for t in told] == [31, 31]  # which all have to run together
    # Whole are those of one layer at a time and, until the end of the network, of what is left to its root.
    net = sharded.Blocks()
    assert max(t["fsdp gathered"] for t in told) == sum(
        p.numel() for layer in (net.b, net.head) for p in layer.parameters()
    )
    for t in told:
        assert "Each process puts out a part of its own of these layers: act. Watch the linear layers" in t["named"]
        assert "is a checkpoint, and no process has room for the weights of a sharded network" in t["reference"]


def assert_last_is_of(store: SnapshotStore, weights: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    """The last snapshot is that of the same network on one process."""
    net, x = sharded.Blocks(), sharded.probe()[0]
    net.load_state_dict(weights)
    last = store.load(step=store.steps[-1])
    alone = snapshot(net, x, last.labels, ["a", "b", "head"])
    assert [name.removeprefix("net.") for name in last.layers] == list(alone.layers)
    for layer, other in zip(last.layers.values(), alone.layers.values(), strict=True):
        torch.testing.assert_close(layer.coef.to_dense(), other.coef.to_dense(), rtol=0, atol=atol)
    assert last.predictions.tolist() == alone.predictions.tolist()


def test_training_with_shared_weights_is_watched_and_left_alone(tmp_path: Path) -> None:
    assert processes.distributed(sharded.train_sharded, 2, tmp_path) == [0, 0]
    for how, atol in (("fsdp", 1e-5), ("tensor parallel", 1e-3)):
        without, weights = torch.load(tmp_path / f"{how}.pt", weights_only=True)
        assert all(torch.equal(value, without[key]) for key, value in weights.items())
        store = SnapshotStore(tmp_path / how)
        assert store.epochs == [0, 1, 2]
        assert_last_is_of(store, weights, atol)


def test_a_run_with_shared_weights_is_resumed(tmp_path: Path) -> None:
    assert processes.distributed(sharded.resume_sharded, 2, tmp_path) == [0, 0]
    store = SnapshotStore(tmp_path / "ssc")
    assert store.epochs == [0, 1, 2]
    assert len({header.run for header in store.headers()}) == 1
    assert_last_is_of(store, torch.load(tmp_path / "weights.pt", weights_only=True))


def test_a_recorder_in_a_loop_of_fabric(tmp_path: Path) -> None:
    assert processes.distributed(sharded.loop_of_fabric, 2, tmp_path) == [0, 0]
    store = SnapshotStore(tmp_path / "ssc")
    assert store.epochs == [0, 1, 2]
    assert_last_is_of(store, torch.load(tmp_path / "weights.pt", weights_only=True))


def test_weights_shared_two_ways(tmp_path: Path) -> None:
    assert processes.distributed(sharded.share_over_a_mesh, 4, tmp_path) == [0] * 4
    assert_last_is_of(
        SnapshotStore(tmp_path / "ssc"), torch.load(tmp_path / "weights.pt", weights_only=True), atol=1e-3
    )


@pytest.mark.parametrize("kind", ["FullyShardedDataParallel", "DeepSpeedEngine"])
def test_networks_that_no_process_can_run_by_parts_are_refused(kind: str) -> None:
    """They cannot be made on a CPU; what they are called is what is gone by."""
    net = type(kind, (nn.Sequential,), {})(nn.Linear(6, 3))
    for watch in (Recorder, snapshot):
        with pytest.raises(ValueError, match=rf"{kind} .*fully_shard"):
            watch(nn.Sequential(net), sharded.probe()[0])
