"""Graphs of torch_geometric as probes: of batches the graphs are the samples, of one big graph the nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_ssc import Snapshot, SSCMonitor, snapshot
from lightning_ssc.functional import duality_gap
from tests.nets import trainer

pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (the extra zoo has it)")

from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, SAGEConv, global_mean_pool

G = torch.Generator().manual_seed(0)
N = 24


def ring(i: int, nodes: int) -> Data:
    edges = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)])
    return Data(x=torch.randn(nodes, 6, generator=G) + i % 3, edge_index=edges, y=torch.tensor([i % 3]))


GRAPHS = [ring(i, 4 + i % 5) for i in range(N)]
ALL = Batch.from_data_list(GRAPHS)
NODES = 40
BIG = Data(
    x=torch.randn(NODES, 6, generator=G),
    edge_index=torch.randint(0, NODES, (2, 150), generator=G),
    y=torch.arange(NODES) % 3,
    val_mask=torch.arange(NODES) % 2 == 0,
)


class OfGraphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = GCNConv(6, 8), nn.Linear(8, 3)

    def forward(self, data: Any) -> Tensor:
        return self.head(global_mean_pool(self.conv(data.x, data.edge_index).relu(), data.batch))


class ByArguments(OfGraphs):
    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.head(global_mean_pool(self.conv(x, edge_index).relu(), batch))


class OfNodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(6, 8), SAGEConv(8, 3)

    def forward(self, data: Any) -> Tensor:
        return self.conv2(self.conv1(data.x, data.edge_index).relu(), data.edge_index)


class Learns(pl.LightningModule):
    def __init__(self, net: nn.Module, of: Callable[[Any], Any] = lambda batch: batch) -> None:
        super().__init__()
        self.net, self.of = net, of

    def forward(self, *given: Any) -> Tensor:
        return self.net(*given)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = batch[1] if isinstance(batch, (tuple, list)) else batch.y
        return nn.functional.cross_entropy(self(self.of(batch)), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def worst(taken: Snapshot, layer: str, rows: Tensor) -> float:
    rows = nn.functional.normalize(rows.detach().double().flatten(1), dim=1)
    return float(duality_gap(rows @ rows.T, taken.layers[layer].coef, 10.0)[1].max())


def fitted(root: Path, net: Learns, loader: Any, **options: Any) -> Snapshot:
    monitor = SSCMonitor(store=False, heatmap=False, schedule=1, **options)
    trainer(root, monitor, max_epochs=1).fit(net, loader, loader)
    assert monitor.store is not None
    return monitor.store.load(1)


@pytest.mark.parametrize("net", [OfGraphs(), ByArguments()])
@pytest.mark.parametrize(
    ("inputs", "labels"),
    [(ALL, None), (ALL, ALL.y), (GRAPHS, None), (ALL.clone(), [i % 3 for i in range(N)])],
    ids=["batch", "labels beside", "list", "list of labels"],
)
def test_graphs_joined_into_one_are_the_samples(net: nn.Module, inputs: Any, labels: Any) -> None:
    taken = snapshot(net, inputs, labels, chunk=7)
    assert list(taken.layers) == ["conv", "head"]
    assert torch.equal(taken.labels, ALL.y)  # type: ignore[arg-type]
    nodes = net.conv(ALL.x, ALL.edge_index)
    assert worst(taken, "conv", global_mean_pool(nodes, ALL.batch)) < 1e-4
    assert worst(taken, "head", OfGraphs.forward(net, ALL)) < 1e-4  # type: ignore[arg-type]
    assert torch.equal(taken.predictions, OfGraphs.forward(net, ALL).argmax(1))  # type: ignore[arg-type]


def pairs(items: list[Data]) -> tuple[Any, Tensor]:
    return Batch.from_data_list(items), torch.cat([item.y for item in items])


@pytest.mark.parametrize("how", ["loader", "probe= loader", "probe= list", "probe= batch", "pairs", "stream of pairs"])
def test_a_fit_on_graphs(tmp_path: Path, how: str) -> None:
    loader = DataLoader(GRAPHS, 8)
    in_pairs = torch.utils.data.DataLoader(GRAPHS, 8, collate_fn=pairs)  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "probe= loader": {"probe": loader},
        "probe= list": {"probe": GRAPHS},
        "probe= batch": {"probe": ALL},
        "stream of pairs": {"probe": iter(in_pairs)},
    }.get(how, {})
    net = Learns(OfGraphs(), (lambda batch: batch[0]) if how == "pairs" else lambda batch: batch)
    taken = fitted(tmp_path, net, in_pairs if how == "pairs" else loader, **options)
    assert torch.equal(taken.labels, ALL.y)  # type: ignore[arg-type]
    assert worst(taken, "net.head", net.eval()(ALL)) < 1e-4


@pytest.mark.parametrize("mask", ["val_mask", "probe_mask"])
@pytest.mark.parametrize("given", [False, True])
def test_of_one_big_graph_the_nodes_are_the_samples(tmp_path: Path, mask: str, given: bool) -> None:
    big = BIG.clone()
    if mask == "probe_mask":
        big.probe_mask = torch.arange(NODES) < 21
    net = Learns(OfNodes())
    taken = fitted(tmp_path, net, DataLoader([big], 1), **({"probe": big} if given else {}))
    chosen = big[mask].nonzero().squeeze(1)
    assert taken.indices.tolist() == chosen.tolist()  # type: ignore[union-attr]
    assert torch.equal(taken.labels, big.y[chosen])  # type: ignore[arg-type]
    out = net.eval()(big)[chosen]
    assert worst(taken, "net.conv2", out) < 1e-4
    assert torch.equal(taken.predictions, out.argmax(1))  # type: ignore[arg-type]
    assert torch.equal(snapshot(OfNodes(), big).labels, big.y[chosen])  # type: ignore[arg-type]


def test_nodes_of_several_kinds() -> None:
    """Labels are of the graph; a layer over the nodes of one kind has no row a graph, and is left out."""
    graphs = []
    for i in range(N):
        graph: Any = HeteroData()
        graph["a"].x, graph["b"].x = torch.randn(3 + i % 3, 4), torch.randn(4, 4)
        graph.y = torch.tensor([i % 2])
        graphs.append(graph)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(10, 2)

        def forward(self, data: Any) -> Tensor:
            kinds = [global_mean_pool(layer(data[k].x), data[k].batch) for k, layer in (("a", self.a), ("b", self.b))]
            return self.head(torch.cat(kinds, 1))

    taken = snapshot(Both(), Batch.from_data_list(graphs))
    assert (list(taken.layers), taken.labels.tolist()) == (["head"], [i % 2 for i in range(N)])  # type: ignore[union-attr]


def test_what_to_write_where_attributes_are_arguments(tmp_path: Path) -> None:
    net = Learns(ByArguments(), lambda batch: batch.x)
    net.training_step = lambda batch, batch_idx: net(batch.x, batch.edge_index, batch.batch).sum()  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"module\(inputs\.x, inputs\.edge_index, inputs\.batch\)"):
        fitted(tmp_path, net, DataLoader(GRAPHS, 8))
