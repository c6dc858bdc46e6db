import os
from collections.abc import Iterator
from typing import Any

import pytest

# Tests run in as many processes as there are cores, with threads that sleep while they wait; before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from lightning_ssc import pipeline
from tests.browser import chromium
from tests.pacing import Gate
from tests.pretend import PretendGPU, pretend_gpu

GPUS = ["pretend", *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One headless Chromium for all tests."""
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds up who solves layers, and lets them go at the end."""
    gate = Gate()
    monkeypatch.setattr(pipeline, "solve_layer", gate)
    yield gate
    gate.open.set()


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A GPU: a pretend one, and a real one where there is one, whose convolutions are as precise as the CPU's."""
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with pretend_gpu() if request.param == "pretend" else exact:
        yield torch.device("cuda", 0)


@pytest.fixture
def pretend() -> Iterator[PretendGPU]:
    """A pretend GPU, for what only that can tell."""
    with pretend_gpu() as mode:
        yield mode
