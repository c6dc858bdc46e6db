from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cifar import without_checksums, write_cifar10


@pytest.fixture(scope="session")
def made_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 of 20 images a file.

    An image's label is its place modulo ten, and its red, green and blue are 10, 20 and 15 times its label.
    """
    root = tmp_path_factory.mktemp("cifar")
    labels = [i % 10 for i in range(20)]
    colours = np.array([[10 * label, 20 * label, 15 * label] for label in labels], dtype=np.uint8)
    write_cifar10(root, np.broadcast_to(colours[:, None, None], (20, 32, 32, 3)), labels)
    return root


@pytest.fixture
def cifar_root(made_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, which torchvision takes for the original one."""
    without_checksums(monkeypatch)
    return made_cifar
