"""Small work takes one thread, beside a training run that needs the others."""

import subprocess
import sys
from threading import Thread

import pytest
import torch

from lightning_ssc.threads import at_most, worth


def in_a_new_thread() -> int:
    """Threads of PyTorch that one of Python made now would have."""
    found: list[int] = []
    thread = Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture
def two() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
def test_only_this_thread_is_held_back() -> None:
    with at_most(1):
        assert (torch.get_num_threads(), in_a_new_thread()) == (1, 2)
        with at_most(2):
            assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("two")
def test_it_is_let_go_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="mine"), at_most(1):
        raise RuntimeError("mine")
    assert torch.get_num_threads() == 2


def test_large_graphs_are_worth_more() -> None:
    assert [worth(n) for n in (2, 500, 1000, 2000, 10_000)] == [1, 1, 1, 2, 10]


def test_a_snapshot_in_the_background_wakes_no_other_thread() -> None:
    """Solving, comparing and logging: a pool of PyTorch's would be there, and spin, from the first that does."""
    code = """
import threading
import numpy, psutil, torch
from torch import nn
from lightning_ssc.functional import self_expression
from lightning_ssc.recorder import Recorder
from lightning_ssc.threads import at_most
from lightning_ssc.writers import Images

class Logger:
    def log_metrics(self, metrics, step):
        pass
    def log_image(self, tag, images, step):
        pass

def pool():
    python = {thread.native_id for thread in threading.enumerate()}
    return {thread.id for thread in psutil.Process().threads()} - python

torch.set_num_threads(2)
with at_most(1):  # the network may take more; here it does not, or its pool would be there already
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    samples = (torch.randn(500, 64), torch.arange(500) % 10)
    recorder = Recorder(net, samples, layers="Linear", loggers=[Logger()], images=Images(), background=True)
    self_expression(torch.ones(3, 2) + torch.eye(3, 2))  # loads what has a sleeping thread of its own
    before = pool()
for step in range(2):
    with at_most(1):
        recorder.record(step=step)
    recorder.collect()
recorder.finish()
print(len(pool() - before), len(recorder.store.load(step=1).layers), len(recorder.scalars) > 10)
"""
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "3", "True"]
