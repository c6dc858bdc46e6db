import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import chromium
from tests.pretend import PretendGPU, pretend_gpu

UNPACK = Path(__file__).parents[1] / "../shared/data/unpack.py"
GPUS = ["pretend", *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with CIFAR-10 as torchvision keeps it and ``cifar100/{train,test}/CLASS/*.png``."""
    if not UNPACK.exists():
        pytest.skip("the packed CIFAR images (../shared/data) are not beside this checkout")
    root = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, UNPACK, root], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One headless Chromium for all tests."""
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


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
