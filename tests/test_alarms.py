"""A run that collapses says so, once and by name; healthy ones say nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_ssc import Images, Recorder
from tests.nets import convnet, data, train

NO_IMAGES = Images(heatmap=False, embedding=False, neighbours=0)
PROBE = data(40).tensors


def watch(net: nn.Module, probe: object = PROBE, **kwargs: object) -> Recorder:
    return Recorder(net, probe, layers=["0", "4", "6", "9"], images=NO_IMAGES, **kwargs)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return convnet()


@contextmanager
def dead(net: nn.Sequential) -> Iterator[None]:
    """A network whose last ReLU never opens."""
    before = net[5].bias.detach().clone()
    with torch.no_grad():
        net[5].bias.fill_(-100)
    yield
    with torch.no_grad():
        net[5].bias.copy_(before)


def test_a_healthy_run_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    recorder = watch(net)
    recorder.record(0)
    train(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), recorder.record, range(1, 9))
    assert len(recorder.store) == 9
    assert not caplog.records


def test_dead_units_are_told_once_with_what_lies_behind_them(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    recorder = watch(net)
    recorder.record(0)
    with dead(net):
        for epoch in (1, 2):
            recorder.record(epoch)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "lightning_ssc.alarms"]
    assert message.startswith("Layer '6' has collapsed at epoch 1: all inputs are alike in it, and 1 more (of 4: '9').")
    assert recorder.store.load(1).layers["6"].values["dead_features"] == 1
    assert recorder.store.load(1).layers["4"].values["dead_features"] == 0
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_rank_that_falls_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, resumed: bool) -> None:
    """Against the best of the run, also of its part before a resume."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 2))
    probe = torch.randn(60, 30), torch.arange(60) % 2
    recorder = Recorder(net, probe, layers=["0", "1"], images=NO_IMAGES, store=tmp_path / "ssc")
    recorder.record(0)
    if resumed:
        state = recorder.state_dict()
        recorder.close()
        recorder = Recorder(net, probe, layers=["0", "1"], images=NO_IMAGES, store=tmp_path / "ssc", resume=state)
    with torch.no_grad():
        net[0].weight.copy_(torch.outer(torch.randn(30), torch.randn(30)))  # one direction is left
    recorder.record(1)
    (message,) = caplog.messages
    assert message.startswith("Layer '0' has collapsed at epoch 1: RankMe has fallen from 2")
    assert "to 1.0. Lower the learning rate" in message


def test_a_rate_far_too_high_is_told(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    recorder = Recorder(net, PROBE, layers=["2", "4"], images=NO_IMAGES)
    recorder.record(0)
    train(net, torch.optim.SGD(net.parameters(), lr=10.0), recorder.record)
    assert any("has collapsed at" in message for message in caplog.messages)
