import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium

UNPACK = Path(__file__).parents[1] / "../shared/data/unpack.py"


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
