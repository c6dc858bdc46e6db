"""Labels are taken only where they are classes, and batches of any kind are run as validation runs them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_ssc import SnapshotStore, SSCMonitor, snapshot
from lightning_ssc.analysis import inputs as inputs_of
from lightning_ssc.capture import Runner, capture, make_probe, split_batch, trace
from lightning_ssc.capture.labels import as_classes
from lightning_ssc.functional import affinity, duality_gap, modularity
from lightning_ssc.functional.graph import labelled
from tests.nets import Classifier, data, trainer

N = 24
Y = torch.arange(N) % 3
X = nn.functional.one_hot(Y, 3).float().repeat(1, 2) + 0.3 * torch.rand(
    N, 6, generator=torch.Generator().manual_seed(0)
)
NET = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (Y, Y),
        (Y[:, None], Y),
        (Y == 0, (Y == 0).long()),
        (nn.functional.one_hot(Y), Y),
        (nn.functional.one_hot(Y).float(), Y),
        (nn.functional.one_hot(Y).bool(), Y),
        (Y.float(), Y),
        (Y.numpy().astype("int32"), Y),
        (Y.to(torch.uint8), Y),
        ([["bird", "cat", "dog"][i] for i in Y], Y),
        ([int(i) for i in Y], Y),
        (list(Y), Y),
        (Y * 2_000_000_007, Y * 2_000_000_007),
        (torch.where(Y == 1, -100, Y), torch.where(Y == 1, -100, Y)),
        (torch.arange(N), None),  # ids
        (torch.arange(N) * 100_000, None),
        ([f"{i}.png" for i in range(N)], None),
        (torch.rand(N), None),  # a regression
        (Y + 0.5, None),
        (torch.full((N,), float("nan")), None),
        (nn.functional.one_hot(Y) * 0.9 + 0.03, None),  # soft labels
        ((torch.rand(N, 4) > 0.5).long(), None),  # several at once
        (torch.full((N,), -1), None),
        (torch.zeros(N, 4, 4).long(), None),  # of every pixel
    ],
)
def test_what_is_classes_and_what_is_not(targets: Any, expected: Tensor | None) -> None:
    found = as_classes(targets)
    assert (None if found is None else found.numbers.tolist()) == (None if expected is None else expected.tolist())
    from_batch = split_batch((X, targets))[1]
    assert (None if from_batch is None else from_batch.tolist()) == (None if expected is None else expected.tolist())


class Named(NamedTuple):
    x: Tensor
    label: Tensor


@pytest.mark.parametrize(
    ("batch", "inputs", "labels"),
    [
        ((X, Y, torch.arange(N)), X, Y),  # with indices
        ((X, Y, [f"{i}.png" for i in range(N)]), X, Y),
        ((X, X, Y), (X, X), Y),
        ((X, Y, torch.rand(N)), (X, Y), None),  # whatever it is, the last one is what is to be learnt
        ((X, {"label": Y, "box": X}), X, Y),
        ({"x": X, "target": {"label": Y}}, {"x": X}, Y),
        ({"x": X, "mask": X > 0, "labels": Y, "path": ["a"] * N}, {"x": X, "mask": X > 0}, Y),
        (Named(X, Y), X, Y),
    ],
    ids=["indices", "paths", "two inputs", "weights", "dict of targets", "nested", "dict", "named tuple"],
)
def test_where_batches_keep_labels(batch: Any, inputs: Any, labels: Any) -> None:
    found, classes = split_batch(batch)
    torch.testing.assert_close(found, inputs)
    assert (None if classes is None else classes.tolist()) == (None if labels is None else labels.tolist())


def test_texts_are_numbered_by_the_names_of_the_data_set() -> None:
    class Texts(Dataset[Any]):
        classes = ("dog", "cat", "bird")

        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            return X[i], ("dog", "cat", "bird")[i % 3]

    probe = make_probe(Texts(), N)
    assert (probe.labels.tolist(), probe.names, probe.classes) == (Y.tolist(), Texts.classes, 3)  # type: ignore[union-attr]
    one_each = make_probe(Texts(), 3)
    assert sorted(one_each.labels.tolist()) == [0, 1, 2]  # type: ignore[union-attr]


def test_one_sample_a_class_is_no_row_of_ids() -> None:
    """Of many classes a balanced probe has one each; the data set says that they are classes."""
    dataset = TensorDataset(torch.rand(90, 2), torch.arange(90) % 30)
    assert sorted(make_probe(dataset, 30).labels.tolist()) == list(range(30))  # type: ignore[union-attr]


def test_negative_labels_are_in_no_measure(tmp_path: Path) -> None:
    y = torch.where(torch.arange(N) % 8 == 5, -100, Y)
    taken, known = snapshot(NET, X, y, layers=["0", "1"]), y >= 0
    layer = taken.layers["0"]
    dense = affinity(layer.coef).to_dense()
    expected = modularity(dense[known][:, known], y[known])
    assert layer.values["modularity"] == layer.modularity(y) == pytest.approx(expected, abs=1e-12)
    graph, classes = labelled(layer.affinity, y)
    assert torch.equal(graph.to_dense(), dense[known][:, known])
    assert torch.equal(classes, y[known])
    table = inputs_of(taken, "0")
    shares = dense[:, known].double() @ nn.functional.one_hot(y[known], 3).double()
    np.testing.assert_allclose(table.shares, (shares / shares.sum(1, keepdim=True)).numpy(), atol=1e-6)
    agree = table.shares.argmax(1) == y.numpy()
    assert table.ssc_accuracy == pytest.approx(agree[known.numpy()].mean())
    assert not set(table.confidently_wrong(N)) & set((~known).nonzero().squeeze(1).tolist())
    store = SnapshotStore(tmp_path)
    store.save(taken)
    assert torch.equal(store.load(0).labels, y)  # type: ignore[arg-type]


def test_large_numbers_of_classes_are_kept_and_read(tmp_path: Path) -> None:
    y = Y * 2_000_000_007 + (1 << 20)
    store = SnapshotStore(tmp_path)
    store.save(snapshot(NET, X, y, layers=["0"]))
    taken = store.load(0)
    assert torch.equal(taken.labels, y)  # type: ignore[arg-type]
    table, plain = inputs_of(taken, "0"), inputs_of(snapshot(NET, X, Y, layers=["0"]), "0")
    np.testing.assert_array_equal(table.shares, plain.shares)
    assert (table.ssc_accuracy, table.classes.tolist()) == (plain.ssc_accuracy, y.unique().tolist())


def test_the_monitor_and_snapshot_say_the_same_of_ids(caplog: pytest.LogCaptureFixture) -> None:
    taken = snapshot(NET, X, torch.arange(N), layers=["0"])
    assert taken.labels is None
    assert math.isnan(taken.layers["0"].modularity(taken.labels))
    assert "The probe has no class labels (one integer a sample), so modularity is left out." in caplog.text


# -- Batches of any kind


class Graphs:
    """Graphs joined into one, as PyG's ``Batch`` has them."""

    def __init__(self, graphs: list[dict[str, Any]]) -> None:
        self.graphs, self.num_graphs = graphs, len(graphs)
        sizes = torch.tensor([len(g["x"]) for g in graphs])
        self.x = torch.cat([g["x"] for g in graphs])
        self.batch = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
        self.y = torch.tensor([g["y"] for g in graphs])

    @classmethod
    def from_data_list(cls, graphs: list[dict[str, Any]]) -> Graphs:
        return cls(graphs)

    def to_data_list(self) -> list[dict[str, Any]]:
        return self.graphs

    def to_dict(self) -> dict[str, Any]:
        return {"x": self.x, "batch": self.batch, "y": self.y}

    def to(self, device: Any, **how: Any) -> Graphs:
        return self


class Plain:
    def __init__(self, graphs: list[dict[str, Any]]) -> None:
        joined = Graphs(graphs)
        self.x, self.batch, self.y = joined.x, joined.batch, joined.y


@dataclass
class Fields:
    x: Tensor
    batch: Tensor
    y: Tensor


def as_fields(graphs: list[dict[str, Any]]) -> Fields:
    joined = Graphs(graphs)
    return Fields(joined.x, joined.batch, joined.y)


class OfGraphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, batch: Any) -> Tensor:
        h = self.fc(batch.x).relu()
        return self.head(torch.zeros(int(batch.batch.max()) + 1, 8).index_add_(0, batch.batch, h))


ITEMS = [{"x": torch.randn(3 + i % 5, 4), "y": i % 3} for i in range(N)]


@pytest.mark.parametrize("collate", [Graphs, Plain, as_fields], ids=["graphs", "object", "dataclass"])
@pytest.mark.parametrize("stream", [False, True], ids=["data set", "stream"])
def test_graphs_are_samples_and_their_nodes_are_averaged(collate: Any, stream: bool) -> None:
    source = DataLoader(ITEMS, 7, collate_fn=collate)  # type: ignore[arg-type]
    probe = make_probe(iter(source) if stream else source, N)  # type: ignore[arg-type]
    net = OfGraphs()
    runner = Runner(net, chunk=10)
    watched = trace(runner, ["fc", "head"], probe.batches)
    found = {layer.label: gram.raw_().float() for layer, gram in capture(runner, watched, probe.batches)}
    assert probe.labels.tolist() == [ITEMS[i]["y"] for i in range(N)]  # type: ignore[union-attr]
    nodes = torch.stack([net.fc(item["x"]).mean(0) for item in ITEMS])
    torch.testing.assert_close(found["fc"], nodes @ nodes.T, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        out = net(Graphs(ITEMS))
    torch.testing.assert_close(found["head"], out @ out.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_nodes_of_one_big_graph_are_samples(masked: bool) -> None:
    class Convolves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.ran = nn.Linear(6, 3), []

        def forward(self, x: Tensor, edge_index: Tensor, probe_mask: Any = None) -> Tensor:
            self.ran.append(len(x))
            return self.fc(x + torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]]))

    net, edges = Convolves(), torch.stack([torch.arange(N), torch.arange(N).roll(1)])
    mask = torch.arange(N) % 2 == 0 if masked else torch.ones(N, dtype=torch.bool)
    batch = {"x": X, "edge_index": edges, "y": Y} | ({"probe_mask": mask} if masked else {})
    probe = make_probe(batch)  # type: ignore[arg-type]
    assert probe.labels.tolist() == Y[mask].tolist()  # type: ignore[union-attr]
    runner = Runner(net, chunk=5)
    watched = trace(runner, ["fc"], probe.batches)
    ((_, gram),) = capture(runner, watched, probe.batches)
    rows = net(X, edges)[mask]
    torch.testing.assert_close(gram.raw_().float(), rows @ rows.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(snapshot(net, (X, edges), Y, layers=["fc"]).labels, Y)  # type: ignore[arg-type]


def test_images_of_several_sizes_in_lists() -> None:
    """As detection has them: a list of images, and one of dicts."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 4)

        def forward(self, images: list[Tensor], targets: Any = None) -> Any:
            assert isinstance(images, list)
            out = self.body(torch.stack([image.mean((1, 2)) for image in images]))
            return [{"boxes": row} for row in out]

    images = [torch.rand(3, 8 + i % 3, 9) for i in range(N)]
    items = [(image, {"boxes": torch.rand(2, 4), "labels": torch.tensor([1, 2])}) for image in images]
    loader = DataLoader(items, 6, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))  # type: ignore[arg-type]
    probe = make_probe(loader, N)
    net = Detector()
    runner = Runner(net, chunk=5)
    ((_, gram),) = capture(runner, trace(runner, ["body"], probe.batches), probe.batches)
    rows = net.body(torch.stack([image.mean((1, 2)) for image in images]))
    torch.testing.assert_close(gram.raw_().float(), rows @ rows.T, rtol=1e-4, atol=1e-4)
    assert probe.labels is None


def test_a_stream_padded_batch_by_batch_is_run_in_its_batches() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return ((X[i, : 2 + i % 5, None], i % 3) for i in range(N))

    def collate(items: Any) -> Any:
        xs, ys = zip(*items, strict=True)
        return pad_sequence(xs, batch_first=True), torch.tensor(ys)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(1, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.fc(x).relu().amax(1))

    loader = DataLoader(Stream(), 4, collate_fn=collate)
    probe, net = make_probe(loader, N), Net()
    runner = Runner(net, chunk=3)
    ((_, gram),) = capture(runner, trace(runner, ["head"], probe.batches), probe.batches)
    with torch.no_grad():
        rows = torch.cat([net(x) for x, _ in loader])
    torch.testing.assert_close(gram.raw_().float(), rows @ rows.T, rtol=1e-4, atol=1e-4)
    assert probe.labels.tolist() == Y.tolist()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"Layer 'fc' puts out .* as of sequences of other lengths"):
        list(capture(runner, trace(runner, ["fc"], probe.batches), probe.batches))


def test_a_dict_is_given_by_the_arguments_there_are() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    batch = {"x": X, "index": torch.arange(N), "labels": Y}
    net = ByName()
    probe = make_probe(batch)  # type: ignore[arg-type]
    runner = Runner(net)
    ((_, gram),) = capture(runner, trace(runner, ["fc"], probe.batches), probe.batches)
    torch.testing.assert_close(gram.raw_().float(), net(X) @ net(X).T, rtol=1e-4, atol=1e-4)


class Hooked(Classifier):
    """Bytes that become numbers on the device, where a batch is given to validation and to nothing else."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
        self.given: list[Tensor] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 1, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return (x.float() / 255 if self.trainer.validating or self.trainer.sanity_checking else x.float()), y

    def val_dataloader(self) -> DataLoader[Any]:
        x = (data(24).tensors[0] * 20 + 100).to(torch.uint8)
        return DataLoader(TensorDataset(x, torch.arange(24) % 3), 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_batches_go_through_the_hooks_of_the_module(tmp_path: Path) -> None:
    net = Hooked()
    monitor = SSCMonitor("Linear", probe_size=24, heatmap=False, embedding=False, store=False)
    trainer(tmp_path, monitor, max_epochs=1).fit(net)
    assert monitor.store is not None
    layer = monitor.store.load(1).layers["model.1"]
    x, _ = next(iter(DataLoader(net.val_dataloader().dataset, 24)))
    rows = nn.functional.normalize(net.model((x + 1).float() / 255).detach().double(), dim=1)
    assert float(duality_gap(rows @ rows.T, layer.coef, 10.0)[1].max()) < 2e-5


def test_what_to_write_where_the_step_does_more() -> None:
    class Steps(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 2)

    with pytest.raises(RuntimeError, match=r"Steps does not run .* \(float32 .*forward=") as e:
        snapshot(Steps(), (X, X > 0), Y, layers=["body"])
    assert "        x1, x2 = inputs\n        return module(x1, x2)" in str(e.value)
    with pytest.raises(RuntimeError, match=r"(?s)which gives it uint8 \(7, 6\) .*module\(inputs\.float\(\) / 255\)"):
        snapshot(NET, X.to(torch.uint8), layers=["0"])
