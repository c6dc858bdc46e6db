"""Grams that no memory holds: on disk, the same, and without a trace."""

from __future__ import annotations

import errno
import os
import re
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ssc import Recorder, snapshot
from lightning_ssc.analysis import dynamics
from lightning_ssc.capture import NoRoomError, Runner, disk, plan
from lightning_ssc.capture.disk import on_disk

GIVES = r"of which .* has .* GB free .No space left on device.. Set TMPDIR to a folder that has more, raise memory="


@pytest.fixture
def small_goes_to_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Grams of a test are large enough to go to disk where the budget does not hold them, into an empty folder."""
    monkeypatch.setattr(plan, "_LARGE", 1)
    monkeypatch.setattr(plan, "_WORK", 10_000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def net_and_probe(n: int = 300) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 80), nn.ReLU(), nn.Linear(80, 10)), torch.randn(n, 20), torch.arange(n) % 3


@pytest.mark.parametrize("options", [{}, {"tau": 100.0}, {"normalize": False}], ids=str)
def test_grams_on_disk_are_those_in_memory(small_goes_to_disk: Path, options: dict[str, Any]) -> None:
    net, x, y = net_and_probe()
    whole = snapshot(net, x, y, "**", **options)
    slices = 4 * 300 * 50 + 10_000  # of at most fifty features
    found = snapshot(net, x, y, "**", memory=slices, **options)
    for name, layer in found.layers.items():
        expected = whole.layers[name]
        assert layer.converged
        torch.testing.assert_close(layer.coef.to_dense(), expected.coef.to_dense(), rtol=0, atol=2e-4)
        for measure, value in expected.values.items():
            assert layer.values[measure] == pytest.approx(value, rel=1e-3, abs=2e-5, nan_ok=True), (name, measure)


def test_the_same_bits_come_back_from_disk(small_goes_to_disk: Path) -> None:
    net, x, y = net_and_probe()
    whole, found = (snapshot(net, x, y, "**", memory=memory) for memory in (1 << 30, 4 * 300 * 170 + 10_000))
    for name, layer in found.layers.items():
        assert torch.equal(layer.coef.to_dense(), whole.layers[name].coef.to_dense())
        assert torch.equal(layer.linear.pairs, whole.layers[name].linear.pairs)
        assert layer.values == pytest.approx(whole.layers[name].values, rel=0, abs=0, nan_ok=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_files_of_grams_have_no_names_and_go_with_their_process(small_goes_to_disk: Path) -> None:
    gram = on_disk(300, torch.float64, torch.device("cpu"))
    assert list(small_goes_to_disk.iterdir()) == []
    assert str(small_goes_to_disk) in Path("/proc/self/maps").read_text()  # or it would lie in memory
    del gram
    assert str(small_goes_to_disk) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kill_leaves_no_file_behind(small_goes_to_disk: Path) -> None:
    pid = os.fork()
    if pid == 0:
        on_disk(300, torch.float32, torch.device("cpu"))[:100] = 1
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert list(small_goes_to_disk.iterdir()) == []


def test_a_layer_whose_gram_fills_the_disk_is_left_out(
    small_goes_to_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net, x, y = net_and_probe()
    reserve, calls = disk._reserve, iter(range(100))

    def full(at: int, file: int, size: int) -> None:
        if next(calls) >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(file, size)

    memory = 4 * 300 * 170 + 10_000
    monkeypatch.setattr(disk, "_reserve", partial(full, 1))
    recorder = Recorder(Runner(net, memory=memory), (x, y), "**")
    recorder.record(epoch=0)
    assert re.search(f"Layer '1' is left out of this snapshot: .* {GIVES}", caplog.text)
    monkeypatch.setattr(disk, "_reserve", reserve)
    recorder.record(epoch=1)
    recorder.finish()
    assert [list(recorder.store.load(epoch).layers) for epoch in (0, 1)] == [["0"], ["0", "1", "2"]]
    assert dynamics(recorder.store).layers == ["0", "1", "2"]
    calls = iter(range(100))
    monkeypatch.setattr(disk, "_reserve", partial(full, 0))
    with pytest.raises(NoRoomError, match=GIVES):
        snapshot(net, x, y, "**", memory=memory)


def test_a_budget_too_small_for_work_beside_the_disk_says_what_would_do(small_goes_to_disk: Path) -> None:
    net, x, y = net_and_probe()
    with pytest.raises(
        ValueError, match=r"0.0 MB does not hold work on the Gram matrices .* on disk; it takes at least"
    ):
        snapshot(net, x, y, "**", memory=500)
    assert snapshot(net, x, y, "0", memory=10_000 + 4 * 300).layers["0"].converged
