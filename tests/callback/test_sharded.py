"""Networks whose weights several processes share: the graphs are those of the same network on one process."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lightning_ssc import SnapshotStore, snapshot
from tests import processes


def test_graphs_are_those_of_the_network_on_one_process(tmp_path: Path) -> None:
    assert processes.distributed(processes.share_weights, 2, tmp_path) == [0, 0]
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
    net = processes.Blocks()
    assert max(t["fsdp gathered"] for t in told) == sum(
        p.numel() for layer in (net.b, net.head) for p in layer.parameters()
    )
    for t in told:
        assert "Each process puts out a part of its own of these layers: act. Watch the linear layers" in t["named"]
        assert "is a checkpoint, and no process has room for the weights of a sharded network" in t["reference"]


def test_training_under_fsdp_is_watched_and_left_alone(tmp_path: Path) -> None:
    assert processes.distributed(processes.train_sharded, 2, tmp_path) == [0, 0]
    without, weights = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("without", "with"))
    assert all(torch.equal(value, without[key]) for key, value in weights.items())
    store = SnapshotStore(tmp_path / "ssc")
    assert store.epochs == [0, 1, 2]
    last, net = store.load(2), processes.Blocks()
    net.load_state_dict(weights)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    alone = snapshot(net, x, last.labels, [name.removeprefix("net.") for name in last.layers if name != "net"])
    assert list(alone.layers) == ["a", "act", "b", "head"]
    for name, layer in alone.layers.items():
        torch.testing.assert_close(last.layers[f"net.{name}"].coef.to_dense(), layer.coef.to_dense(), rtol=0, atol=1e-5)
    assert last.predictions.tolist() == alone.predictions.tolist()
    assert last.labels is not None
