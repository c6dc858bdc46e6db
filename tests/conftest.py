import subprocess
import sys
from pathlib import Path

import pytest

UNPACK = Path(__file__).parents[1] / "../shared/data/unpack.py"


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with CIFAR-10 as torchvision keeps it and ``cifar100/{train,test}/CLASS/*.png``."""
    if not UNPACK.exists():
        pytest.skip("the packed CIFAR images (../shared/data) are not beside this checkout")
    root = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, UNPACK, root], check=True, capture_output=True)
    return root
