"""From a network on a GPU, pretend or real, to stored graphs: the results are those of the CPU, and end there."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_ssc import Snapshot, SSCMonitor, snapshot
from lightning_ssc.background import Background
from lightning_ssc.capture import Returned, Runner, WatchedLayer, capture, make_probe, trace
from lightning_ssc.functional import affinity, duality_gap, modularity, self_expression
from lightning_ssc.functional.grams import CentredGram
from lightning_ssc.measures import MEASURES
from lightning_ssc.metrics import AffinityModularity, LinearCKA
from lightning_ssc.pipeline import begin_snapshot
from lightning_ssc.snapshots import Moment, Settings
from lightning_ssc.weights import fingerprint
from tests.nets import Classifier, convnet, data, trainer
from tests.pretend import PretendGPU

CHUNK = 25


@pytest.fixture
def probe() -> tuple[Tensor, Tensor]:
    x, y = data(60).tensors
    return x, y


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return convnet()


def begun(net: nn.Module, x: Tensor, layers: str = "conv", **options: Any) -> tuple[Runner, list[WatchedLayer]]:
    runner = Runner(net, chunk=CHUNK, **options)
    return runner, trace(runner, layers, x)


def grams(
    net: nn.Module, x: Tensor, layers: str = "**", memory: int | None = None, **options: Any
) -> dict[str, CentredGram]:
    found = capture(*begun(net, x, layers, memory=memory), x, **options)
    return {layer.label: gram for layer, gram in found}


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    """All of a snapshot in the CPU's memory, and as a network on the CPU has it."""
    assert list(found.layers) == list(expected.layers)
    for label, graph in found.layers.items():
        linear, theirs = graph.linear, expected.layers[label].linear
        assert linear is not None
        assert theirs is not None
        parts = (graph.coef, graph.gap, linear.diagonal, linear.pairs)
        assert {part.device.type for part in parts} == {"cpu"}
        assert graph.converged == expected.layers[label].converged
        assert graph.features == expected.layers[label].features
        weights = expected.layers[label].coef.to_dense()
        assert_close(graph.coef.to_dense(), weights, rtol=0, atol=1e-2, check_dtype=False)
        assert_close(linear.diagonal, theirs.diagonal, rtol=0, atol=1e-4)
        value, other = (of.layers[label].modularity(of.labels) for of in (found, expected))
        assert value == pytest.approx(other, abs=1e-3)
    assert found.predictions is not None
    assert expected.predictions is not None
    assert torch.equal(found.predictions, expected.predictions)
    assert_close(found.confidence, expected.confidence, rtol=0, atol=1e-4)


@pytest.mark.parametrize("memory", [None, 100_000], ids=["one pass", "layers in slices"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_grams(gpu: torch.device, probe: tuple[Tensor, Tensor], memory: int | None, layout: Any) -> None:
    net, x = network(), probe[0].contiguous(memory_format=layout)
    expected = grams(net, x)
    outputs: dict[int, Returned] = {}
    found = grams(net.to(gpu), x, memory=memory, outputs=outputs)
    assert list(found) == list(expected)
    for label, gram in found.items():
        assert gram.centred.device == gram.offset.device == gpu
        for made, other in ((gram.centred, expected[label].centred), (gram.raw_(), expected[label].raw_())):
            assert_close(made.cpu(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert {output.rows.device.type for output in outputs.values()} == {"cpu"}
    assert {buffer.device for buffer in net.buffers()} == {gpu}


def test_activations_that_are_not_finite(gpu: torch.device, probe: tuple[Tensor, Tensor]) -> None:
    net, x = network().to(gpu), probe[0]
    x[7, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Layer '0' puts out NaN or infinity for 1 of 60 samples, .* sample 7"):
        grams(net, x)


@pytest.mark.parametrize("solver", ["active_set", "admm"])
def test_snapshot(gpu: torch.device, probe: tuple[Tensor, Tensor], solver: Any) -> None:
    options: dict[str, Any] = {"layers": "conv", "solver": solver, "tol": 1e-7, "chunk": CHUNK}
    expected = snapshot(network(), *probe, **options)
    taken = snapshot(network().to(gpu), *probe, **options)
    assert_same(taken, expected)
    for label, gram in grams(network(), probe[0], "conv").items():
        unit = gram.raw_().diagonal().rsqrt()
        gap = duality_gap(unit[:, None] * gram.centred * unit, taken.layers[label].coef, 10.0)[1]
        assert_close(taken.layers[label].gap.double(), gap, rtol=1e-2, atol=1e-5)


def test_a_probe_is_kept_on_the_host(gpu: torch.device, probe: tuple[Tensor, Tensor]) -> None:
    x, labels = probe
    kept = make_probe((x.to(gpu), labels.to(gpu)))
    assert kept.labels is not None
    assert {kept.inputs.device.type, kept.labels.device.type} == {"cpu"}
    assert kept.fingerprint == make_probe(probe).fingerprint


def test_communities_and_the_background(gpu: torch.device, probe: tuple[Tensor, Tensor]) -> None:
    net = network().to(gpu)
    worker = Background(limit=1)
    runner, watched = begun(net, probe[0])
    settings = Settings(groups="communities")
    beside = begin_snapshot(runner, make_probe(probe), watched, settings, Moment(0, 0), solver=worker).result()
    worker.close()
    expected = snapshot(net, probe[0], layers="conv", groups="communities")
    for label, graph in beside.layers.items():
        assert torch.equal(graph.coef.to_dense(), expected.layers[label].coef.to_dense())
        found, other = graph.communities, expected.layers[label].communities
        assert found is not None
        assert other is not None
        assert torch.equal(found, other)


def test_grams_wait_on_the_host_and_are_solved_in_a_stream_of_their_own(gpu: torch.device) -> None:
    begun, go_on = Event(), Event()

    def solve(of: CentredGram) -> Any:
        assert of.centred.device == of.offset.device == gpu
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
        begun.set()
        assert go_on.wait(30)
        return of.centred.sum().cpu()

    x: Tensor = torch.ones(2000, 2000, device=gpu)
    worker = Background(limit=10**9)
    product = x @ x / 2000  # still being computed when it is handed over
    first: Any = worker.submit(solve, CentredGram(product, product[0].double(), 0.0))
    assert begun.wait(30)
    waiting = CentredGram(2 * product, product[0].double(), 0.0)
    on_the_gpu = [weakref.ref(waiting.centred), weakref.ref(waiting.offset)]
    second: Any = worker.submit(solve, waiting)
    del waiting
    assert [left() for left in on_the_gpu] == [None, None]
    go_on.set()
    assert float(first.result(60)) == pytest.approx(4e6)
    assert float(second.result(60)) == pytest.approx(8e6)
    worker.close()


@pytest.mark.parametrize("background", [False, True])
def test_fit(gpu: torch.device, tmp_path: Path, background: bool) -> None:
    pl.seed_everything(0, verbose=False)
    options: dict[str, Any] = {"heatmap": False, "embedding": False, "neighbours": 0}
    watching = SSCMonitor(layers="conv", schedule=1, probe_size=30, background=background, **options)
    model, logger = Classifier(), TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, watching, accelerator="gpu", devices=1, logger=logger, max_epochs=1)
    run.fit(model)
    assert model.device.type == "cpu"  # Lightning has put it back
    store = watching.store
    assert store is not None
    assert store.epochs == [0, 1]
    x, y = data(seed=2).tensors
    last = store.load(1)
    assert last.indices is not None
    assert_same(last, snapshot(model, x[last.indices], y[last.indices], layers="conv", epoch=1))
    events = EventAccumulator(run.log_dir).Reload()
    assert {"ssc/modularity/model.4", "ssc/cka_to_final/model.4"} <= set(events.Tags()["scalars"])


def test_metrics(gpu: torch.device) -> None:
    x, y = (torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    labels = torch.arange(40) % 4
    linear, graph = LinearCKA().to(gpu), AffinityModularity(tau=5.0).to(gpu)
    for rows in torch.arange(40).split(15):
        linear.update(x[rows].to(gpu), y[rows].to(gpu))
        graph.update(x[rows].to(gpu), labels[rows].to(gpu))
    for metric, expected in (
        (linear, LinearCKA()(x, y)),
        (graph, modularity(affinity(self_expression(x, tau=5.0).coef), labels)),
    ):
        found = metric.compute()
        assert found.device == gpu
        assert float(found) == pytest.approx(float(expected), abs=1e-4)


class TestWaits:
    """How often the host waits for the device in each stage of a snapshot, so that a rise is seen."""

    def test_of_forward_passes_and_grams(self, pretend: PretendGPU, probe: tuple[Tensor, Tensor]) -> None:
        net, stages = network().cuda(), Counter[str]()

        @contextmanager
        def timed(stage: str) -> Iterator[None]:
            before = pretend.waits.total()
            yield
            stages[stage] += pretend.waits.total() - before

        layers = len(grams(net, probe[0], timed=timed))
        chunks, buffers = -(-60 // CHUNK), len([*net.buffers()])
        assert stages["forward"] <= 2 * chunks + buffers  # inputs there and outputs back; were buffers changed?
        assert stages["gram"] <= 5 * layers  # is it finite? its gain, and a few looks for features that do not vary

    def test_of_a_look_for_changed_weights(self, pretend: PretendGPU) -> None:
        """Once, however many tensors there are."""
        net = network().cuda()
        pretend.waits.clear()
        assert len(fingerprint(net)) == len([*net.parameters(), *net.buffers()])
        assert pretend.waits.total() == 1

    def test_of_a_snapshot(self, pretend: PretendGPU, probe: tuple[Tensor, Tensor]) -> None:
        """Bounds are what was counted; the solver's part, which rounding may change, has a tenth to spare."""
        runner, watched = begun(network().cuda(), probe[0])
        first, both = Counter[str](), Counter[str]()
        for layers, waits in ((watched[:1], first), (watched, both)):
            pretend.waits.clear()
            begin_snapshot(runner, make_probe(probe), layers, Settings(), Moment(0, 0)).result()
            waits.update(pretend.waits)
        added = both - first  # by a layer
        assert added["upload"] <= 3  # the places that a sketch keeps, and the labels
        assert added["download"] <= 6  # the sketch, the graph and its gaps, and two columns of inputs
        assert added["__bool__"] <= 6  # checks of a Gram and of its solution
        assert added["__float__"] <= 4 + sum(not {"gram", "collapse"}.isdisjoint(measure.needs) for measure in MEASURES)
        assert added.total() <= 92
        assert first.total() <= 99
