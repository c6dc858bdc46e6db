"""A pass over the probe leaves no trace: whatever a network keeps, and data draw from, is as before."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from lightning_ssc import SSCMonitor, snapshot
from lightning_ssc.capture import isolated_random_state, make_probe, without_trace
from tests.nets import Classifier, data, trainer


class Keeps(nn.Module):
    """Keeps something of every forward pass in every way that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.by_size = 0, [], {"none": 0}
        self.last: deque[int] = deque(maxlen=2)
        self.counts, self.order = Counter({1: 2}), OrderedDict(a=1)
        self.nested = {"history": [torch.zeros(2)], "set": {1}}
        self.mean, self.array = torch.zeros(4), np.zeros(4)
        self.own, self.rng, self.numpy = torch.Generator().manual_seed(3), random.Random(3), np.random.default_rng(3)
        self.state = type("State", (), {})()
        self.state.temperature = 1.0
        self.register_buffer("sizes", torch.zeros(3))
        self.register_buffer("late", None)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("grown", torch.zeros(0))
        self.register_buffer("gone", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x.sum()
        self.seen.append(len(x))
        self.by_size[len(x)] = self.by_size.get(len(x), 0) + 1
        self.last.append(len(x))
        self.counts[len(x)] += 1
        self.order["b"] = self.order.pop("a", 0)
        self.nested["history"][0].add_(1)
        self.nested["set"].add(len(x))
        self.mean.data.mul_(0.9).add_(x.mean(0))
        self.array += 1
        torch.rand(1, generator=self.own)
        self.rng.random()
        self.numpy.random()
        self.state.temperature *= 0.5
        self.sizes[0] += len(x)
        self.late = x.mean(0)
        self.replaced = self.replaced + 1
        self.grown.resize_(4).copy_(x.mean(0))
        del self.gone
        self.register_buffer("new", torch.ones(1))
        return x


def told(net: Keeps) -> Any:
    attributes = {k: v for k, v in vars(net).items() if not k.startswith("_") and not callable(v)}
    buffers = {k: None if v is None else (id(v), v.tolist()) for k, v in net._buffers.items()}
    generators = net.own.get_state().tolist(), net.rng.getstate(), str(net.numpy.bit_generator.state)
    return repr((attributes, vars(net.state), list(net.order), buffers, generators, net.mean.tolist()))


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_a_forward_pass_keeps_is_as_before(fails: bool) -> None:
    net = Keeps()
    before = told(net)
    try:
        with without_trace(net):
            net(torch.ones(5, 4))
            assert told(net) != before
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert told(net) == before


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*reduce_range will be deprecated:UserWarning")
def test_observers_of_quantisation_observe_nothing_of_the_probe() -> None:
    quantization = torch.ao.quantization
    net = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 3)).train()
    net.qconfig = quantization.get_default_qat_qconfig(torch.backends.quantized.engine)
    net = quantization.prepare_qat(net)
    before = {name: (tuple(value.shape), value.tolist()) for name, value in net.state_dict().items()}
    snapshot(net, torch.randn(6, 4), layers=["1"])
    assert {name: (tuple(v.shape), v.tolist()) for name, v in net.state_dict().items()} == before


def test_parameters_that_a_pass_changes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Shrinks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.mul_(0.5)
            return super().forward(x)

    snapshot(nn.Sequential(Shrinks(2, 2)), torch.rand(6, 2), layers=["0"])
    assert "changes its parameters in a forward pass in evaluation mode, which cannot be taken back: 0.weight" in (
        caplog.text
    )


def test_lazy_modules_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"Layer '1' is a LazyLinear whose parameters are made by the first forward"):
        snapshot(net, torch.rand(6, 2), layers=["1"])
    assert isinstance(net[1].weight, nn.UninitializedParameter)


def test_noise_in_evaluation_mode_is_the_same_every_time() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) + random.random() + float(np.random.rand())  # noqa: NPY002

    x = torch.rand(30, 3)
    options: dict[str, Any] = {"layers": ["0"], "chunk": 8}
    net = nn.Sequential(Noisy(), nn.Linear(3, 2))
    one = snapshot(net, x, **options).layers["0"]
    torch.rand(7)
    two = snapshot(net, x, memory=2 * 30 * 30 * 4 + 30 * 4, **options).layers["0"]  # in passes that end early
    torch.testing.assert_close(one.coef.to_dense(), two.coef.to_dense(), rtol=0, atol=1e-2)
    assert one.coef.values().max() > 0.5


def test_the_state_of_mps_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    state = [torch.ones(1)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: state.__setitem__(0, new))
    with isolated_random_state():
        state[0] = torch.zeros(1)
    assert state[0].item() == 1


class Stream(IterableDataset[Any]):
    """Shuffles by a generator that it shares with training, and counts."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.served = generator, 0

    def __iter__(self) -> Any:
        x, y = data(24, seed=2).tensors
        for i in torch.randperm(24, generator=self.generator).tolist():
            self.served += 1
            yield x[i], y[i]


def test_generators_of_data_and_samplers_are_as_before() -> None:
    generator, numpy = torch.Generator().manual_seed(5), np.random.default_rng(5)
    stream = Stream(generator)
    dataset = data(24)
    dataset.transform = {"noise": [numpy]}  # type: ignore[attr-defined]
    shuffled = DataLoader(dataset, 4, shuffle=True, generator=generator)
    before = generator.get_state().tolist(), str(numpy.bit_generator.state)
    for source in (stream, DataLoader(stream, 4), shuffled):
        assert len(make_probe(source, 12)) == 12
        assert (generator.get_state().tolist(), str(numpy.bit_generator.state)) == before
    assert stream.served == 0


class Draws(Classifier):
    """Validation and training draw from one generator of the user's own, and ``forward`` logs."""

    def __init__(self, kind: str) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
        self.kind, self.calls, self.generator = kind, 0, torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        self.log("size", out.abs().mean(), on_step=False, on_epoch=True)
        self.log_dict({"largest": out.max()}, on_step=False, on_epoch=True)
        return out

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(24, seed=1), 12, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> DataLoader[Any]:
        self.calls += 1
        if self.kind == "stream":
            return DataLoader(Stream(self.generator), 12)
        chosen = torch.randperm(24, generator=self.generator)[:20].tolist()
        return DataLoader(Subset(data(24, seed=2), chosen), 12)


@pytest.mark.parametrize("kind", ["stream", "drawn"])
@pytest.mark.parametrize(
    "how",
    [
        {"num_sanity_val_steps": 1},
        {"num_sanity_val_steps": 0},
        {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2},
        {"num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 1},
    ],
    ids=["checked first", "not checked first", "every other epoch", "reloaded"],
)
def test_data_and_logs_are_as_without_the_monitor(tmp_path: Path, kind: str, how: dict[str, Any]) -> None:
    found = []
    for callbacks in ([], [SSCMonitor("Linear", probe_size=12, heatmap=False, embedding=False, store=False)]):
        pl.seed_everything(0, verbose=False)
        net = Draws(kind)
        run = pl.Trainer(
            max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, **how,
        )  # fmt: skip
        run.fit(net)
        logged = {key: float(run.callback_metrics[key]) for key in ("size", "largest", "val_loss")}
        found.append((net.calls, logged, net.generator.get_state().tolist(), net.model[1].weight.tolist()))
    assert found[0] == found[1]


def test_without_validation_the_loader_is_asked_for_and_nothing_is_left(tmp_path: Path) -> None:
    net = Draws("drawn")
    before = net.generator.get_state().tolist()
    monitor = SSCMonitor("Linear", probe_size=12, heatmap=False, embedding=False, store=False)
    trainer(tmp_path, monitor, max_epochs=1, limit_val_batches=0, limit_train_batches=0).fit(net)
    assert (net.calls, net.generator.get_state().tolist()) == (0, before)


def test_a_data_set_of_tensors_only() -> None:
    """Attributes are looked into, tensors of data are not copied."""
    held = TensorDataset(torch.rand(6, 2))
    with isolated_random_state(held):
        held.tensors[0].zero_()
    assert not held.tensors[0].any()
