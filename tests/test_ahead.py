import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from lightning_ssc import Recorder, SSCMonitor, ahead
from lightning_ssc.functional import self_expression
from lightning_ssc.settings import Settings
from tests.nets import Classifier, convnet, trainer


@pytest.fixture
def begun(monkeypatch):
    """What is begun ahead, without any of it."""
    calls = []
    monkeypatch.setattr(ahead, "_compile", calls.append)
    return calls


def test_what_is_compiled_ahead_is_all_that_solving_needs():
    ahead._compile(False).join()
    from lightning_ssc.functional import _passes
    from lightning_ssc.functional._kernel import solve_rows

    compiled = [solve_rows, _passes.both_ways, _passes.products, _passes.pair_products]
    ready = [set(function.signatures) for function in compiled]
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        found = self_expression(gram=(x @ x.T).to(dtype), tol=1)  # a whole number, as YAML may have it
        self_expression(gram=(x @ x.T).to(dtype), init=found.coef, max_iter=5)
    for normalize in (True, False):
        settings = Settings(normalize=normalize)
        recorder = Recorder(convnet(), (torch.rand(40, 3, 8, 8), torch.arange(40) % 2), "conv", settings=settings)
        for epoch in range(2):
            recorder.record(epoch=epoch)
    assert [set(function.signatures) for function in compiled] == ready


def test_a_recorder_begins_it_with_what_its_settings_need(begun):
    probe = (torch.rand(6, 3, 8, 8), torch.arange(6) % 2)
    for settings in (Settings(), Settings(tau=100.0), Settings(solver="admm"), Settings(preset="paper")):
        Recorder(convnet(), probe, layers="Linear", settings=settings)
    assert begun == [False, True]
    ahead.compile_ahead(Settings(), torch.device("cuda"))
    assert len(begun) == 2


def test_a_monitor_begins_it_where_a_fit_is_set_up(begun, tmp_path):
    fit = trainer(tmp_path)
    for stage, expected in (("validate", []), ("fit", [True])):
        SSCMonitor(normalize=False).setup(fit, Classifier(), stage)
        assert begun == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_waits_for_the_step_under_way():
    began, ended = threading.Event(), threading.Event()

    def step():
        with ahead._step:
            began.set()
            time.sleep(0.1)
            ended.set()

    threading.Thread(target=step).start()
    began.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if ended.is_set() and ahead._step.acquire(blocking=False) else 1)
    assert ended.is_set()
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_that_ends_meanwhile_does_not_wait_for_the_next_step():
    code = """
import threading, time, torch
from lightning_ssc import ahead
from lightning_ssc.settings import Settings
done = []
ahead.compile_kernel = lambda dtype: (done.append(dtype), time.sleep(0.2), print(len(done), flush=True))
ahead.compile_ahead(Settings(), torch.device("cpu"))
while not done:
    time.sleep(0.01)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True)
    assert found.stdout.split() == ["1"]
